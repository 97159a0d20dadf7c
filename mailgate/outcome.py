"""What became of a message on its way through policies, and the readable trace of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from mailgate.address import Address
from mailgate.headers import Headers
from mailgate.message import Change, Message
from mailgate.question import Step
from mailgate.stage import MESSAGE_STAGES, Stage
from mailgate.verdict import Discard, Quarantine, Reply, Verdict, verb


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What a test gets back; ``str()`` of it is the trace.

    ``reply`` is the last reply, or the one that refused; ``stage`` and ``by`` ("gate.greylist")
    say who refused, "" where nobody did.  ``replies`` has the reply to each RCPT.  ``raw`` is
    the message as it leaves, edits applied; it is there for refused ones, too, with the edits
    made until then; ``received`` is the size of it as it came, in octets.
    """

    reply: Reply
    verdict: Verdict | None = None
    stage: Stage | None = None
    by: str = ""
    replies: Mapping[Address, Reply] = field(default_factory=dict)
    message: Message | None = None
    raw: bytes = b""
    received: int = 0
    steps: Sequence[Step] = ()

    @property
    def accepted(self) -> bool:
        """Tell whether the server took the message (and perhaps discarded or held it)."""
        return self.reply.code < 300 and self.message is not None

    @property
    def changes(self) -> Sequence[Change]:
        """The edits that were made."""
        return self.message.changes if self.message is not None else ()

    @property
    def headers(self) -> Headers:
        """The header fields as they leave."""
        if self.message is None:
            raise LookupError("no message came as far as its header fields")
        return self.message.headers

    @property
    def body(self) -> bytes:
        """The body as it leaves."""
        return self.raw[len(bytes(self.headers)) :].removeprefix(b"\r\n")

    def __str__(self) -> str:
        return "\n".join(lines(self))


_SHOWN = (Stage.CONNECT, Stage.MAIL)
_ORDER: Mapping[Stage, int] = {
    **{stage: at for at, stage in enumerate(Stage)},
    **dict.fromkeys((Stage.COMMAND, Stage.EVENT, Stage.CLOSE), 1),  # before any MAIL, perhaps
}


def lines(outcome: Outcome) -> Iterator[str]:
    """Yield the trace of an outcome: a line for each stage and handler, then the end."""
    before = ""
    shown: set[Stage] = set()
    for step in outcome.steps:
        for stage in _SHOWN:
            if stage not in shown and _ORDER[stage] < _ORDER[step.stage]:
                yield _row(stage, subject(outcome, stage), "", "continue")
                shown.add(stage)
        start = step.subject or subject(outcome, step.stage)
        head = f"{step.stage}{start}"
        first = head != before
        before = head
        shown.add(step.stage)
        yield _row(
            step.stage if first else "",
            start if first else "",
            step.by,
            _answer(step),
            step.seconds,
        )
        for change in step.changes:
            yield f"{'':12}  {printable(str(change))}"
    yield printable(summary(outcome))


def _answer(step: Step) -> str:
    if step.error is not None:
        return f"{verb(step.verdict)}  ({_said(step.error)})"[:120]
    reply = getattr(step.verdict, "reply", None)
    return f"{verb(step.verdict)}  {reply}" if reply is not None else verb(step.verdict)


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # it is the policy's own __str__
        return type(error).__name__


def _row(stage: str, subject: str, by: str, answer: str, seconds: float = 0.0) -> str:
    slow = f"  {seconds * 1000:.1f} ms" if seconds >= 0.0005 else ""
    left = f"{stage:<9} {printable(subject):<24} {by:<22} "
    return (left + printable(answer) + slow).rstrip()


def printable(text: str) -> str:
    """Return text in which nothing moves a cursor or breaks a line."""
    text = text.replace("\n", " / ")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def subject(outcome: Outcome, stage: Stage) -> str:
    """Return what a stage is about: the client, the sender, the size."""
    message = outcome.message
    if message is None:
        return ""
    session = message.session
    match stage:
        case Stage.CONNECT | Stage.CLOSE:
            rdns = session.rdns if session.tells("rdns") else None
            return f"{session.client or 'local'}" + (f" ({rdns})" if rdns else "")
        case Stage.HELO:
            return session.helo
        case Stage.MAIL:
            return message.original_sender or "<>"
        case Stage.HEADERS | Stage.BODY | Stage.MESSAGE | Stage.DONE if outcome.received:
            return f"{outcome.received} octets"
        case _ if stage in MESSAGE_STAGES:
            return message.original_sender
    return ""


def summary(outcome: Outcome) -> str:
    """Return the last line of a trace: what became of the message."""
    message = outcome.message
    if not outcome.accepted or message is None:
        by = f" by {outcome.by}" if outcome.by else ""
        return f"refused   {outcome.reply}{by}"
    if isinstance(outcome.verdict, Discard):
        return f"discarded by {outcome.by}: {outcome.verdict.reason}"
    if isinstance(outcome.verdict, Quarantine):
        return f"held by {outcome.by}: {outcome.verdict.reason}"
    count = len(message.recipients)
    return f"accepted  {outcome.reply.code}, {count} recipient{'s' if count != 1 else ''}"
