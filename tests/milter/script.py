"""A policy that decides and edits as a recorded filter did."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias, final

from mailgate import Accept, Address, Defer, Discard, Message, Policy, Quarantine, Reject, Session
from mailgate.stage import Capability
from tests.milter.played import TRACE
from tests.milter.queued import params
from tests.milter.recorded import Frame, Recording

Said: TypeAlias = Accept | Reject | Defer | Discard | Quarantine


def verdict_of(answers: Sequence[Frame]) -> Said | None:
    """Return the verdict that stands for what was answered to one packet."""
    held = next((one.data for one in answers if one.code == b"q"), None)
    if held is not None:
        return Quarantine(held[:-1].decode())
    match answers[-1].code if answers else b"c":
        case b"a":
            return Accept()
        case b"r":
            return Reject("Command rejected")
        case b"t":
            return Defer("Please try again later")
        case b"d":
            return Discard("as recorded")
        case b"y":
            return _reply(answers[-1].data[:-1].decode())
    return None


def _reply(text: str) -> Reject | Defer:
    lines = [re.fullmatch(r"([0-9]{3})[ -]([0-9.]+) (.*)", line) for line in text.split("\r\n")]
    first = lines[0]
    assert first is not None
    words = "\n".join(line[3] for line in lines if line is not None)
    make = Reject if first[1].startswith("5") else Defer
    return make(words, int(first[1]), first[2])


@final
class Script:
    """The policy; a stage has a handler only where the recorded filter said more than CONTINUE."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.policy = Policy("script")
        self._said: dict[bytes, list[list[Frame]]] = {}
        for asked, answers in recording.connections[0].answers():
            self._said.setdefault(asked.code, []).append(answers)
        self._asked: Counter[bytes] = Counter()
        self._register_envelope()
        self._register_content()

    @property
    def refusal(self) -> list[bytes]:
        """The lines of the reply that was recorded to refuse with, if one was."""
        replies = (v.reply for v in self._verdicts() if isinstance(v, (Reject, Defer)))
        reply = next(replies, None)
        if reply is None:
            return []
        *first, last = (f"{reply.enhanced} {line}" for line in reply.lines)
        return [
            *(f"{reply.code}-{line}".encode() for line in first),
            f"{reply.code} {last}".encode(),
        ]

    @property
    def refusals(self) -> int:
        """How often it is given; HELP, which Postfix calls unknown too, is not ours to refuse."""
        every = [v for v in self._verdicts() if isinstance(v, (Reject, Defer))]
        helped = b"U" in self._said and self.recording.kind == "postfix"
        return len(every) - 1 if helped and len(every) > 1 else len(every)

    def _verdicts(self) -> list[Said]:
        every = (verdict_of(answers) for said in self._said.values() for answers in said)
        return [verdict for verdict in every if verdict is not None]

    def _decides(self, *codes: bytes) -> bool:
        """Tell whether any answer to these packets was more than CONTINUE."""
        every = (answers for code in codes for answers in self._said.get(code, ()))
        return any(one.code not in b"cps" for answers in every for one in answers)

    def _next(self, code: bytes) -> Said | None:
        """Return what was said to the next packet of that kind."""
        said, at = self._said.get(code, []), self._asked[code]
        self._asked[code] += 1
        return verdict_of(said[at]) if at < len(said) else None

    def _any(self, *codes: bytes) -> Said | None:
        every = (verdict_of(answers) for code in codes for answers in self._said.get(code, ()))
        return next((verdict for verdict in every if verdict is not None), None)

    def _register_envelope(self) -> None:
        policy = self.policy
        if self._decides(b"C"):

            @policy.connect
            async def connect(session: Session) -> Accept | Reject | Defer | None:
                return _not_of_a_message(self._next(b"C"))

        if self._decides(b"H"):

            @policy.helo
            async def helo(session: Session) -> Accept | Reject | Defer | None:
                return _not_of_a_message(self._next(b"H"))

        if self._decides(b"U"):

            @policy.command("XFROB", "BOGUS")
            async def command(session: Session, verb: str, argument: str) -> Reject | None:
                return Reject("Command rejected")

        if self._decides(b"M"):

            @policy.mail(needs={"discard", "quarantine"})
            async def mail(message: Message) -> Said | None:
                return self._next(b"M")

        if self._decides(b"R"):

            @policy.rcpt(needs={"discard", "quarantine"})
            async def rcpt(message: Message, recipient: Address) -> Said | None:
                return self._next(b"R")

        if self._decides(b"T"):

            @policy.data(needs={"discard", "quarantine"})
            async def data(message: Message) -> Said | None:
                return self._next(b"T")

    def _register_content(self) -> None:
        policy = self.policy
        if self._decides(b"L", b"N"):

            @policy.headers(needs={"discard", "quarantine"})
            async def headers(message: Message) -> Said | None:
                return self._any(b"L", b"N")

        if self._decides(b"B"):

            @policy.body(needs={"discard", "quarantine"})
            async def body(message: Message, piece: bytes) -> Said | None:
                return self._any(b"B")

        if self._decides(b"E"):
            needs: set[Capability] = {"discard", "quarantine"}
            needs |= {"change_sender", "add_recipient", "remove_recipient"}

            @policy.message(needs=needs)
            async def whole(message: Message) -> Said | None:
                self._edit(message)
                return self._any(b"E")

    def _edit(self, message: Message) -> None:
        """Change a message as the recorded filter did."""
        (edits,) = self._said[b"E"]
        for one in edits:
            strings = [*(text.decode("latin-1") for text in one.data.split(b"\0")), ""]
            match one.code:
                case b"+" | b"2":
                    message.add_recipient(_address(strings[0]), _params(strings[1]))
                case b"-":
                    message.remove_recipient(_address(strings[0]))
                case b"e":
                    message.change_sender(_address(strings[0]), _params(strings[1]) or None)
        body = [one.data for one in edits if one.code == b"b"]
        if body:
            message.body = b"".join(body)
        if self.recording.delivered and any(one.code in b"him" for one in edits):
            edit_fields(message, self.recording.delivered[0].raw)


def _not_of_a_message(verdict: Said | None) -> Accept | Reject | Defer | None:
    assert not isinstance(verdict, (Discard, Quarantine))
    return verdict


def _address(path: str) -> str:
    return path.removeprefix("<").removesuffix(">")


def _params(arguments: str) -> dict[str, str | None]:
    return {k.decode(): v.decode() for k, v in params(arguments.encode().split()).items()}


# -- header fields ----------------------------------------------------------------------------------


def edit_fields(message: Message, arrived: bytes) -> None:
    """Make the header section the one that arrived, by the calls that a policy has for it."""
    head = arrived.partition(b"\r\n\r\n")[0] + b"\r\n"
    above, below = (_fields(section) for section in TRACE.split(head, maxsplit=1))
    came = [field.raw for field in message.headers.fields if not field.trace]
    kept = [raw for raw in below if raw in came]
    if below[: len(kept)] != kept or _names(came, but=kept) & _names(kept):
        _replace(message, below)
    else:
        for name in _names(came, but=kept):
            del message.headers[name]
        for raw in below[len(kept) :]:
            message.headers.add(*_name_and_value(raw))
    for raw in reversed(above):
        message.headers.prepend(*_name_and_value(raw))


def _fields(section: bytes) -> list[bytes]:
    return re.split(rb"(?<=\r\n)(?![ \t])", section)[:-1] if section else []


def _names(fields: Sequence[bytes], but: Sequence[bytes] = ()) -> set[str]:
    return {_name_and_value(raw)[0].lower() for raw in fields if raw not in but}


def _name_and_value(raw: bytes) -> tuple[str, str]:
    name, _, value = raw.decode("latin-1").removesuffix("\r\n").partition(":")
    return name, value.removeprefix(" ").replace("\r\n", "\n")


def _replace(message: Message, wanted: Sequence[bytes]) -> None:
    """Put a copy back that has these fields; what is old in it stays as it is."""
    named = [one.raw for one in message.headers.fields if one.name and not one.trace]
    changed = [raw for raw in wanted if raw not in named]
    gone = [raw for raw in named if raw not in wanted]
    if len(changed) == len(gone) == 1 and len(wanted) == len(named):
        name, value = _name_and_value(changed[0])
        if len(message.headers.get_all(name)) == 1:
            message.headers[name] = value
            return
    mail = message.parse()
    old = dict(zip(named, mail.raw_items(), strict=True))
    for name in {name for name, _ in old.values()}:
        del mail[name]
    for raw in wanted:
        mail.set_raw(*old.get(raw, _name_and_value(raw)))
    message.replace(mail)
