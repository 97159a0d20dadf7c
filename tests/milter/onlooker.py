"""What a policy sees of a session, and what an MTA's packets tell of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import final

from mailgate import Address, Event, Message, Policy, Reject, Session
from tests.milter.queued import params
from tests.milter.recorded import Connection, Frame


@dataclass(slots=True)
class SeenSession:
    """A client: its address and port, its name, what it greeted with."""

    client: str
    port: int
    name: str | None
    greetings: list[bytes] = field(default_factory=list)
    commands: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class SeenMessage:
    """A message; ``ending`` is how it ended."""

    sender: bytes
    params: dict[bytes, bytes]
    user: str | None
    recipients: list[tuple[bytes, dict[bytes, bytes]]] = field(default_factory=list)
    section: bytes = b""
    body: bytes = b""
    ending: str = "aborted"


@final
class Seen:
    """A policy that is asked everything and says nothing."""

    def __init__(self) -> None:
        self.policy = Policy("seen")
        self.sessions: list[SeenSession] = []
        self.messages: list[SeenMessage] = []
        self._of: dict[int, SeenMessage] = {}
        self._register_session()
        self._register_message()

    def _register_session(self) -> None:
        @self.policy.connect
        async def connect(session: Session) -> Reject | None:
            name = session.rdns if session.rdns_verified else None
            self.sessions.append(SeenSession(str(session.client), session.client_port, name))
            return None

        @self.policy.helo
        async def helo(session: Session) -> Reject | None:
            self.sessions[-1].greetings.append(_octets(session.helo))
            return None

        @self.policy.command()
        async def command(session: Session, verb: str, argument: str) -> None:
            self.sessions[-1].commands.append(_octets(f"{verb} {argument}".strip()))

        @self.policy.event
        async def event(session: Session, event: Event) -> None: ...

    def _register_message(self) -> None:
        @self.policy.mail
        async def mail(message: Message) -> Reject | None:
            seen = SeenMessage(
                _octets(message.sender), _params(message.sender), message.session.user
            )
            self._of[id(message)] = seen
            self.messages.append(seen)
            return None

        @self.policy.rcpt
        async def rcpt(message: Message, recipient: Address) -> Reject | None:
            self._of[id(message)].recipients.append((_octets(recipient), _params(recipient)))
            return None

        @self.policy.headers
        async def headers(message: Message) -> Reject | None:
            self._of[id(message)].section = bytes(message.headers)
            return None

        @self.policy.body
        async def body(message: Message, piece: bytes) -> Reject | None:
            self._of[id(message)].body += piece
            return None

        @self.policy.message
        async def whole(message: Message) -> Reject | None:
            assert message.body == self._of[id(message)].body
            assert message.raw == self._of[id(message)].section + b"\r\n" + message.body
            return None

        @self.policy.done
        async def done(message: Message) -> None:
            assert message.outcome is not None
            self._of[id(message)].ending = message.outcome.result


def _octets(text: str) -> bytes:
    return str(text).encode("utf-8", "surrogateescape")


def _params(address: Address) -> dict[bytes, bytes]:
    return {_octets(name): _octets(value or "") for name, value in address.params.items()}


@final
class Told:
    """What the packets of one connection tell, read without the adapter.

    All of it was asked for, and each header field is taken as if HDR_LEADSPC had been agreed on.
    """

    def __init__(self, connection: Connection) -> None:
        self.sessions: list[SeenSession] = []
        self.messages: list[SeenMessage] = []
        self._message: SeenMessage | None = None
        self._section = b""
        self._macros: dict[bytes, dict[bytes, bytes]] = {}
        for frame in connection.of("M"):
            self._tell(frame)

    def _tell(self, frame: Frame) -> None:
        strings = frame.data.split(b"\0")
        match frame.code:
            case b"D":
                pairs = frame.data[1:].split(b"\0")
                self._macros[frame.data[:1]] = dict(zip(pairs[::2], pairs[1::2], strict=False))
            case b"C":
                name = strings[0].decode()
                where = frame.data[len(strings[0]) + 2 :]  # the port, two octets, may hold a NUL
                client = str(ip_address(where[2:-1].decode()))
                port = int.from_bytes(where[:2])
                known = None if name.startswith("[") else name
                self.sessions.append(SeenSession(client, port, known))
            case b"H":
                self.sessions[-1].greetings.append(strings[0])
            case b"U":
                verb, _, rest = strings[0].partition(b" ")
                self.sessions[-1].commands.append((verb.upper() + b" " + rest).strip())
            case b"A":
                self._message = None
            case _:
                self._tell_message(frame, strings)

    def _tell_message(self, frame: Frame, strings: list[bytes]) -> None:
        if frame.code == b"M":
            user = self._macros.get(b"M", {}).get(b"{auth_authen}")
            self._message = SeenMessage(
                strings[0].strip(b"<>"), params(strings[1:-1]), user.decode() if user else None
            )
            self.messages.append(self._message)
            self._section = b""
            return
        message = self._message
        if message is None:
            return
        match frame.code:
            case b"R":
                if self._macros.get(b"R", {}).get(b"{rcpt_mailer}") != b"error":
                    message.recipients.append((strings[0].strip(b"<>"), params(strings[1:-1])))
            case b"L":
                field = strings[0] + b":" + strings[1]
                self._section += field.replace(b"\n", b"\r\n") + b"\r\n"
            case b"N":  # not before: a policy is asked about the whole section
                message.section = self._section
            case b"B":
                message.body += frame.data
            case b"E":
                message.ending = "accepted"
                self._message = None
