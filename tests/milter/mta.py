"""An MTA for tests: it takes SMTP from a client and asks a filter, as Postfix or Sendmail does.

    mta = Postfix(open_channel)               # postfix.py, sendmail.py
    await mta.connect()
    await mta.say(b"EHLO client.example\\r\\n")
    assert mta.faults == []

What the filter says is judged twice.  ``faults`` collects what an MTA would misread or must not
rely on, whether this one stumbles over it or not; the conversation goes on as the real MTA's
would.  It writes its packets with the codec of the adapter, which `test_wire_traces.py` holds to
what the real ones wrote; the edits of a filter are taken apart here.
"""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, final

from mailgate_milter import wire
from mailgate_milter.wire import Action, Command, MacroStage, Response, Step
from tests.milter.queued import Envelope, Queued, bracketed

HOST = "mta.example.org"
CHUNK = 65_535  # octets in a piece of a body
REPLY_LINES, REPLY_OCTETS = 32, 980  # libmilter's own limits (smfi_setmlreply)


class Channel(Protocol):
    """A connection to a filter."""

    def send(self, data: bytes) -> None:
        """Write octets, one packet or a macro packet with the one it belongs to."""

    async def receive(self) -> bytes:
        """Return what the filter has written, at least one octet; none where it has ended."""

    async def early(self) -> bytes:
        """Return what the filter has written by itself; only looked at before a command."""

    def close(self) -> None:
        """End it."""


@final
@dataclass(frozen=True, slots=True)
class Client:
    """An SMTP client: ``name`` is empty where its address has none."""

    name: str = ""
    address: str = "127.0.0.1"
    port: int = 4321

    @property
    def family(self) -> str:
        return "6" if ":" in self.address else "4"


class Answer(NamedTuple):
    """What ended the wait for an answer; ``text`` is the reply of REPLYCODE."""

    code: int
    text: bytes = b""


class Failed(Exception):
    """The filter has failed: ``args[0]`` says how, for the log of an MTA."""


FINAL = {
    *(Response.CONTINUE, Response.ACCEPT, Response.REJECT, Response.TEMPFAIL),
    *(Response.DISCARD, Response.REPLYCODE),
}
NEEDS = {
    Response.ADDHEADER: Action.ADDHDRS,
    Response.INSHEADER: Action.ADDHDRS,
    Response.CHGHEADER: Action.CHGHDRS,
    Response.REPLBODY: Action.CHGBODY,
    Response.ADDRCPT: Action.ADDRCPT,
    Response.ADDRCPT_PAR: Action.ADDRCPT_PAR,
    Response.DELRCPT: Action.DELRCPT,
    Response.CHGFROM: Action.CHGFROM,
    Response.QUARANTINE: Action.QUARANTINE,
}
NO = {
    Command.CONNECT: Step.NOCONNECT,
    Command.HELO: Step.NOHELO,
    Command.MAIL: Step.NOMAIL,
    Command.RCPT: Step.NORCPT,
    Command.DATA: Step.NODATA,
    Command.HEADER: Step.NOHDRS,
    Command.EOH: Step.NOEOH,
    Command.BODY: Step.NOBODY,
    Command.UNKNOWN: Step.NOUNKNOWN,
}
NO_REPLY = {
    Command.CONNECT: Step.NR_CONN,
    Command.HELO: Step.NR_HELO,
    Command.MAIL: Step.NR_MAIL,
    Command.RCPT: Step.NR_RCPT,
    Command.DATA: Step.NR_DATA,
    Command.HEADER: Step.NR_HDR,
    Command.EOH: Step.NR_EOH,
    Command.BODY: Step.NR_BODY,
    Command.UNKNOWN: Step.NR_UNKN,
}
SINCE = {Command.UNKNOWN: 3, Command.DATA: 4}
STAGES = {
    Command.CONNECT: MacroStage.CONNECT,
    Command.HELO: MacroStage.HELO,
    Command.MAIL: MacroStage.MAIL,
    Command.RCPT: MacroStage.RCPT,
    Command.DATA: MacroStage.DATA,
    Command.HEADER: MacroStage.EOH,
    Command.EOH: MacroStage.EOH,
    Command.BODY: MacroStage.EOM,
    Command.EOM: MacroStage.EOM,
}
OFFER = wire.Offer(6, 0x1FF, 0x1FFFFF)  # of both MTAs

_NAME = re.compile(rb"[!-9;-~]+")
_REPLY = re.compile(rb"([45])[0-9]{2}[ -](?:([245])\.[0-9]{1,3}\.[0-9]{1,3} )?[\t -~]*")
_PATH = re.compile(rb'<(?:"(?:[^"\\]|\\.)*"|[^<>\s",])*>')


class Mta(ABC):
    """One SMTP session, and the filter that is asked about it."""

    def __init__(
        self,
        open_channel: Callable[[], Awaitable[Channel]],
        client: Client | None = None,
        *,
        ids: Iterable[str] = (),
        offer: wire.Offer = OFFER,
    ) -> None:
        """Begin before the client connects; ``ids`` are queue ids to use."""
        self.faults: list[str] = []
        self.delivered: list[Queued] = []
        self.held: list[Queued] = []
        self.ended = False  # the client has gone, or was sent away
        self.client = client or Client()
        self.agreed = wire.Negotiated(0, 0, 0, {})
        self._offer = offer
        self._open = open_channel
        self._channel: Channel | None = None
        self._rest = b""
        self._ids = itertools.chain(ids, ("1A2B3C4D5E", "2A2B3C4D5E", "3A2B3C4D5E"))
        self._id = ""
        self._symbols: dict[str, str] = {}  # macros that have a value now
        self._helo = b""
        self._envelope: Envelope | None = None
        self._text = b""  # of a message, while it is sent
        self._in_data = False
        self._failed = False  # every later event gets the answer of a filter in error
        self._left_alone = False  # the filter has accepted, or dropped, this message
        self._dropped = False
        self._skipped: Command | None = None
        self._queued: Queued | None = None
        self._body_run = 0  # 1 while pieces of a new body come, 2 behind them

    # -- the SMTP side ---------------------------------------------------------------------------

    @abstractmethod
    async def connect(self) -> bytes:
        """Take the client; return the banner."""

    async def say(self, text: bytes) -> bytes:
        """Take what the client writes, whole lines; return the replies."""
        replies = []
        while text and not self.ended:
            if self._in_data:
                message, dot, text = self._until_dot(text)
                self._text += message
                if not dot:
                    break
                self._in_data = False
                replies.append(await self._content(_unstuffed(self._text)))
                self._text = b""
                continue
            line, _, text = text.partition(b"\r\n")
            if line[:5].upper() == b"BDAT " and self._takes_bdat:
                size = int(line.split()[1])
                replies.append(await self._content(text[:size], bdat=size))
                text = text[size:]
            else:
                replies.append(await self._command(line))
        return b"".join(reply + b"\r\n" for reply in replies)

    def _until_dot(self, text: bytes) -> tuple[bytes, bool, bytes]:
        whole = self._text + text
        if whole.startswith(b".\r\n"):
            return b"", True, whole[3:]
        message, dot, rest = whole.partition(b"\r\n.\r\n")
        if not dot:
            return text, False, b""
        return message[len(self._text) :] + b"\r\n", True, rest

    _takes_bdat: ClassVar[bool] = False

    async def _command(self, line: bytes) -> bytes:
        verb, _, argument = line.partition(b" ")
        name = verb.upper().decode("latin-1")
        match name:
            case "HELO" | "EHLO":
                return await self._hello(name, argument)
            case "MAIL":
                return await self._mail(*_path(argument))
            case "RCPT":
                return await self._rcpt(*_path(argument))
            case "DATA":
                return await self._data()
            case "RSET":
                return await self._rset()
            case "QUIT":
                await self.end()
                return self._farewell
        return await self._other(name, line)

    _farewell: ClassVar[bytes]

    @abstractmethod
    async def _hello(self, verb: str, name: bytes) -> bytes: ...

    @abstractmethod
    async def _mail(self, path: bytes, arguments: Sequence[bytes]) -> bytes: ...

    @abstractmethod
    async def _rcpt(self, path: bytes, arguments: Sequence[bytes]) -> bytes: ...

    @abstractmethod
    async def _data(self) -> bytes: ...

    @abstractmethod
    async def _rset(self) -> bytes: ...

    @abstractmethod
    async def _other(self, verb: str, line: bytes) -> bytes: ...

    @abstractmethod
    async def _content(self, text: bytes, bdat: int | None = None) -> bytes: ...

    @abstractmethod
    async def end(self) -> None:
        """End the session: the client said QUIT, or its connection was lost."""

    # -- the filter ------------------------------------------------------------------------------

    async def _negotiate(self) -> None:
        """Connect to the filter and agree with it."""
        try:
            self._channel = await self._open()
            self._channel.send(wire.offer(*self._offer))
            code, data = await self._packet()
            if code != Response.OPTNEG or len(data) < 12:
                self._wrong(f"{chr(code)} of {len(data)} octets as answer to OPTNEG")
            self.agreed = agreed = wire.parse_negotiated(data)
            if agreed.steps & ~self._offer.steps:
                self.faults.append(f"steps that were not offered: {agreed.steps:#x}")
            if agreed.actions & ~self._offer.actions:
                self._wrong(f"actions that were not offered: {agreed.actions:#x}")
            if not 2 <= agreed.version <= self._offer.version:
                self.faults.append(f"version {agreed.version} was not offered")
            self._check_agreed(agreed)
        except Failed:
            self._fail()

    @abstractmethod
    def _check_agreed(self, agreed: wire.Negotiated) -> None:
        """Raise Failed for an answer to OPTNEG that this MTA does not take."""

    async def _ask(self, command: Command, data: bytes = b"") -> Answer | None:
        """Send a command with its macros, and wait for the answer where one is due.

        None: nothing was asked, or no answer is due.  Raises Failed.
        """
        channel = self._channel
        if channel is None or self._left_alone or self._skipped is command:
            return None
        self._skipped = None
        if 1 < self.agreed.version < SINCE.get(command, 0):
            return None
        out = self._macros_for(command)
        wanted = not self.agreed.steps & NO.get(command, 0)
        if wanted:
            out += wire.packet(command, data)
        elif command in (Command.HEADER, Command.EOH, Command.BODY):
            return None
        await self._send(out)
        if not wanted or self.agreed.steps & NO_REPLY.get(command, 0):
            return None
        return await self._answer(command)

    async def _send(self, data: bytes) -> None:
        channel = self._channel
        if channel is None:
            return
        self._rest += await channel.early()
        if self._rest:
            self.faults.append(f"an answer to nothing: {self._rest[:20]!r}")
        if data:
            channel.send(data)

    async def _answer(self, command: Command) -> Answer:
        """Wait for the answer to a command; edits come before it at the end of a message."""
        self._body_run = 0
        while True:
            code, data = await self._packet()
            if code in NEEDS and command is Command.EOM:
                self._edit(Response(code), data)
                continue
            if code == Response.PROGRESS and not data and self._takes_progress(command):
                continue
            return self._final(command, code, data)

    def _final(self, command: Command, code: int, data: bytes) -> Answer:
        if code == Response.SKIP and not data:
            if command is not Command.BODY or not self.agreed.steps & Step.SKIP:
                self.faults.append(f"SKIP at {command.name}, or not agreed on")
            return Answer(code)
        if code == Response.REPLYCODE:
            return Answer(code, self._reply_text(data))
        if code not in FINAL:
            self._unknown(command, code)
        if data:
            self.faults.append(f"data behind {Response(code).name}")
            self._extra_data()
        if code == Response.DISCARD and command in (Command.CONNECT, Command.HELO):
            self.faults.append(f"DISCARD at {command.name}")
        return Answer(code)

    @abstractmethod
    def _takes_progress(self, command: Command) -> bool: ...

    @abstractmethod
    def _extra_data(self) -> None:
        """Take data behind an answer that has none; raises Failed where the MTA would mind."""

    def _unknown(self, command: Command, code: int) -> None:
        """Take an answer that is none; raises Failed where the MTA notices at once."""
        self._wrong(f"{chr(code)!a} as answer to {command.name}")

    def _reply_text(self, data: bytes) -> bytes:
        """Return a REPLYCODE as the client gets it, and judge it."""
        text = data.removesuffix(b"\0")
        lines = text.split(b"\r\n")
        found = [_REPLY.fullmatch(line) for line in lines]
        good = len(lines) <= REPLY_LINES and data.endswith(b"\0")
        for at, (line, one) in enumerate(zip(lines, found, strict=True)):
            divider = b"-" if at < len(lines) - 1 else b" "
            good = good and (
                one is not None
                and one[1] == one[2]
                and line[:3] == lines[0][:3]
                and line[3:4] == divider
                and len(line) <= REPLY_OCTETS
                and b"%" not in line.replace(b"%%", b"")
            )
        if not good:
            self.faults.append(f"a reply that is none: {data[:80]!r}")
        return self._as_sent(text)

    @abstractmethod
    def _as_sent(self, text: bytes) -> bytes:
        """Return what the client gets of a reply's text; raises Unusable for none."""

    async def _packet(self) -> tuple[int, bytes]:
        """Return the next packet of the filter; raises Failed where there is none."""
        while len(self._rest) < 4 or len(self._rest) < 4 + self._length():
            more = await self._channel.receive() if self._channel is not None else b""
            if not more:
                self._wrong("the filter has closed the connection")
            self._rest += more
        size = self._length()
        frame, self._rest = self._rest[4 : 4 + size], self._rest[4 + size :]
        return frame[0], frame[1:]

    def _length(self) -> int:
        size = int.from_bytes(self._rest[:4])
        if not 0 < size <= CHUNK + 1:
            self._wrong(f"a packet of length {size}")
        return size

    def _wrong(self, what: str) -> None:
        """Note what the filter did, and give it up."""
        self.faults.append(what)
        raise Failed(what)

    def _fail(self) -> None:
        """Do without the filter from now on: it is in error."""
        self._failed = True
        self._hang_up()

    def _hang_up(self) -> None:
        """Close the connection to the filter without a word."""
        if self._channel is not None:
            self._channel.close()
        self._channel, self._rest = None, b""

    async def _quit(self) -> None:
        """Say QUIT to the filter and close the connection."""
        await self._send(wire.packet(Command.QUIT))
        self._hang_up()

    # -- macros ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _defaults(self) -> Mapping[MacroStage, Sequence[str]]:
        """The macros that are sent at a stage where the filter has not asked for others."""

    def _macros_for(self, command: Command) -> bytes:
        """Return the MACRO packet that goes before a command; nothing where there is none."""
        names = self._names(command)
        if names is None:
            return b""
        values = {name: self._symbols[name] for name in names if name in self._symbols}
        return wire.macros(command, values)

    @abstractmethod
    def _names(self, command: Command) -> Sequence[str] | None:
        """Return the names of the macros to send, None where no packet is sent at all."""

    def _client_symbols(self, name: str) -> dict[str, str]:
        """Return the macros about the client that a filter may ask for."""
        return {
            "client_addr": self.client.address,
            "client_name": name,
            "client_ptr": name,
            "client_port": str(self.client.port),
        }

    def _asked(self, stage: MacroStage) -> list[str] | None:
        names = self.agreed.symbols.get(stage)
        return None if names is None else [name.strip("{}") for name in names]

    # -- edits -----------------------------------------------------------------------------------

    def _edit(self, code: Response, data: bytes) -> None:
        """Make an edit as this MTA does; raises Failed for half a packet, Unusable."""
        if not NEEDS[code] & self.agreed.actions:
            self.faults.append(f"{code.name} was not agreed on")
        queued = self._queued
        assert queued is not None
        if code is Response.REPLBODY:
            if self._body_run == 2:
                self.faults.append("a body in two runs")
                self._second_body()
            self._body_run = 1
            queued.replace_body(data)
            return
        self._body_run *= 2
        if code in (Response.ADDHEADER, Response.INSHEADER, Response.CHGHEADER):
            self._edit_header(queued, code, data)
        else:
            self._edit_envelope(queued, code, data)

    @abstractmethod
    def _second_body(self) -> None:
        """Take a piece of a body behind another edit; raises Unusable where that is too late."""

    def _edit_header(self, queued: Queued, code: Response, data: bytes) -> None:
        index = 0
        if code is not Response.ADDHEADER:
            index, data = int.from_bytes(data[:4]), data[4:]
        strings = self._strings(code, data, 2)
        if strings is None:
            return
        name, value = strings
        if not _NAME.fullmatch(name) or re.search(rb"\r|\n(?![ \t])", value):
            self.faults.append(f"{code.name} of {name + b':' + value[:60]!r}")
        space = b"" if self.agreed.steps & Step.HDR_LEADSPC else b" "
        match code:
            case Response.ADDHEADER:
                queued.add_header(name, space + value)
            case Response.INSHEADER:
                queued.insert_header(index, name, space + value)
            case _:
                queued.change_header(index, name, space + value if value else None)

    def _edit_envelope(self, queued: Queued, code: Response, data: bytes) -> None:
        most = 2 if code in (Response.ADDRCPT_PAR, Response.CHGFROM) else 1
        strings = self._strings(code, data, 1, most)
        if strings is None:
            return
        first, *rest = strings
        arguments = rest[0] if rest else b""
        if code is Response.QUARANTINE:
            queued.held = first
            return
        null = code is Response.CHGFROM and first == b"<>"
        if not _PATH.fullmatch(bracketed(first)) or (len(first) < 3 and not null):
            self.faults.append(f"{code.name} of {first[:60]!r}")
        match code:
            case Response.CHGFROM:
                queued.change_sender(first, arguments)
            case Response.DELRCPT:
                queued.envelope.delete(first)
            case _:
                queued.envelope.add(first, arguments)

    def _strings(
        self, code: Response, data: bytes, least: int, most: int = 0
    ) -> list[bytes] | None:
        """Return the strings of an edit; None where it is cut and the MTA passes over it."""
        strings = data.split(b"\0")
        if strings.pop() or not least <= len(strings) <= max(least, most):
            self.faults.append(f"half a {code.name}: {data[:60]!r}")
            self._half_an_edit()
            return None
        return strings

    @abstractmethod
    def _half_an_edit(self) -> None:
        """Take an edit that is cut; raises Failed where the MTA minds."""


def _path(argument: bytes) -> tuple[bytes, list[bytes]]:
    """Return the path of MAIL or RCPT, and the ESMTP arguments."""
    found = re.match(rb'(?i)(?:from|to):\s*(<(?:"(?:[^"\\]|\\.)*"|[^>"])*>)', argument)
    assert found is not None, argument
    return found[1], argument[found.end() :].split()


def _unstuffed(text: bytes) -> bytes:
    return re.sub(rb"(?m)^\.", b"", text)


def section_and_body(text: bytes) -> tuple[list[bytes], bytes | None]:
    """Return the fields of a message, lines divided by LF, and its body.

    None as body: the message ended before a blank line.
    """
    if text.startswith(b"\r\n"):
        return [], text[2:]
    head, blank, body = text.partition(b"\r\n\r\n")
    if not blank:
        head, body_or_none = text.removesuffix(b"\r\n"), None
    else:
        body_or_none = body
    fields = re.split(rb"\r\n(?![ \t])", head) if head else []
    return [one.replace(b"\r\n", b"\n") for one in fields], body_or_none


def pieces(body: bytes) -> Iterator[bytes]:
    """Cut a body as both MTAs do."""
    for at in range(0, len(body), CHUNK):
        yield body[at : at + CHUNK]
