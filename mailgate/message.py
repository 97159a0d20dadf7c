"""A mail transaction, as policies see and edit it."""

from __future__ import annotations

import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, final

from mailgate.address import UNTOLD, Address
from mailgate.content import PIECE, Body
from mailgate.errors import LimitExceeded, TooEarly, TooLate
from mailgate.headers import Field, Headers, Mark, Section, join
from mailgate.invocation import CURRENT, Invocation, may, require
from mailgate.session import Session
from mailgate.stage import MESSAGE_STAGES, Capability, Stage
from mailgate.syntax import (
    check_mailbox,
    format_parameters,
    normal_line_ends,
)
from mailgate.verdict import Verdict

if TYPE_CHECKING:
    from email.message import EmailMessage

MAX_EDITS = 1000


@final
@dataclass(frozen=True, slots=True)
class Ending:
    """How a message ended: ``verdict`` is the refusal, ``by`` the handler ("gate.greylist").

    ``aborted``: the client or the server gave the message up.  ``by`` is empty where the
    server, not a policy, refused.
    """

    result: Literal["accepted", "refused", "aborted"]
    verdict: Verdict | None = None
    by: str = ""


@final
@dataclass(frozen=True, slots=True)
class Change:
    """One edit: ``sign`` is ``+``, ``~`` or ``-``, ``text`` says what of."""

    sign: str
    text: str

    def __str__(self) -> str:
        return f"{self.sign} {self.text}"


@dataclass(frozen=True, slots=True)
class _Snapshot:
    sender: Address
    recipients: tuple[Address, ...]
    candidate: Address | None
    headers: Mark | None
    body: bytes | None
    changes: int


_HEADER_STAGES = frozenset({Stage.HEADERS, Stage.MESSAGE})
_BODY_STAGES = frozenset({Stage.MESSAGE})


@final
class Message:
    """One mail transaction: the envelope, and the content once it is known."""

    __slots__ = (
        "_body",
        "_candidate",
        "_guarded",
        "_headers",
        "_limit",
        "_lock",
        "_log",
        "_memory",
        "_new_body",
        "_original_recipients",
        "_recipients",
        "_sender",
        "_separator",
        "_stage",
        "id",
        "original_sender",
        "outcome",
        "session",
        "state",
    )

    def __init__(
        self,
        session: Session,
        sender: Address,
        id: str,
        *,
        memory: int,
        limit: int,
        guarded: bool = False,
    ) -> None:
        """Begin a message; ``guarded`` allows edits in handlers only, as service wants it."""
        self.session = session
        self.id = id
        self.original_sender = sender
        self._original_recipients: list[Address] = []
        self.outcome: Ending | None = None
        self.state: dict[object, object] = {}
        self._sender = sender
        self._recipients: list[Address] = []
        self._candidate: Address | None = None  # the recipient that rcpt handlers are asked about
        self._stage = Stage.MAIL
        self._headers: Headers | None = None
        self._separator = b""
        self._body: Body | None = None
        self._new_body: bytes | None = None
        self._log: list[Change] = []
        self._memory = memory
        self._guarded = guarded
        self._limit = limit
        self._lock = threading.Lock()  # a `def` handler edits while the loop may roll it back

    def __repr__(self) -> str:
        return f"<Message {self.id} from <{self.sender}>>"

    # -- the envelope ------------------------------------------------------------------------

    @property
    def sender(self) -> Address:
        """The envelope sender, changes included; "" is the null sender."""
        return self._sender

    @property
    def recipients(self) -> Sequence[Address]:
        """The recipients accepted so far, changes included."""
        return tuple(self._recipients)

    @property
    def recipient_count(self) -> int:
        """How many there are in `recipients`."""
        return len(self._recipients)

    @property
    def original_recipient_count(self) -> int:
        """How many there are in `original_recipients`."""
        return len(self._original_recipients)

    @property
    def original_recipients(self) -> Sequence[Address]:
        """The recipients accepted so far, as the client gave them."""
        return tuple(self._original_recipients)

    def can(self, capability: Capability) -> bool:
        """Tell whether this handler may use a capability: this protocol, this stage."""
        return may(capability)

    def change_sender(self, address: str, params: Mapping[str, str | None] | None = None) -> None:
        """Change the envelope sender; ``""`` is the null sender.

        ``params`` replaces the ESMTP parameters of MAIL; None keeps them.  Raises ValueError
        unless it is one address.
        """
        require("change_sender", "message.change_sender()")
        address = "" if address in ("", "<>") else check_mailbox(address, utf8=self._utf8)
        new = self._with_params(address, self._sender.params if params is None else params)

        def apply() -> None:
            self._sender = new

        self._edit([Change("~", f"sender {new}")], apply)

    def change_recipient(self, old: Address, new: str) -> None:
        """Replace one recipient; ValueError if ``old`` is none or ``new`` is no address."""
        require("change_recipient", "message.change_recipient()")
        changed = self._with_params(check_mailbox(new, utf8=self._utf8), old.params)
        if old == self._candidate and CURRENT.get() is not None:

            def apply() -> None:
                self._candidate = changed

        elif old in self._recipients:

            def apply() -> None:
                self._recipients = [changed if r == old else r for r in self._recipients]

        else:
            raise ValueError(f"{str(old)[:60]!a} is not a recipient of this message")
        self._edit([Change("~", f"recipient {old} -> {changed}")], apply)

    def add_recipient(self, address: str, params: Mapping[str, str | None] | None = None) -> None:
        """Add a recipient; one that is there already is left as it is."""
        require("add_recipient", "message.add_recipient()")
        given = {} if params is None else params
        new = self._with_params(check_mailbox(address, utf8=self._utf8), given)

        def apply() -> None:
            if new not in self._recipients:
                self._recipients = [*self._recipients, new]

        self._edit([Change("+", f"recipient {new}")], apply)

    def remove_recipient(self, address: str) -> None:
        """Remove a recipient; one that is not there is no error."""
        require("remove_recipient", "message.remove_recipient()")
        gone = Address(check_mailbox(address, utf8=self._utf8))

        def apply() -> None:
            self._recipients = [r for r in self._recipients if r != gone]

        self._edit([Change("-", f"recipient {gone}")], apply)

    @property
    def _utf8(self) -> bool:
        params = self.original_sender.params
        return params is not UNTOLD and "SMTPUTF8" in params

    @staticmethod
    def _with_params(address: str, params: Mapping[str, str | None]) -> Address:
        if params is not UNTOLD:
            format_parameters(params)  # raises for what no command could carry
        return Address(address, params)

    # -- the content -------------------------------------------------------------------------

    @property
    def headers(self) -> Headers:
        """The header section; known from ``headers`` on, editable there and in ``message``."""
        if self._headers is None:
            raise TooEarly("the header fields are known from @policy.headers on")
        return self._headers

    @property
    def body(self) -> bytes:
        """The body as CRLF lines; known and assignable in ``message``.

        Assigned line ends become CRLF, but for what is the old body at the start or the end of
        the new one: a footer leaves the octets above it alone.  TypeError unless bytes, ValueError for a NUL octet,
        LimitExceeded above the message size limit.
        """
        original = self._whole_body()
        return original.read() if self._new_body is None else self._new_body

    @body.setter
    def body(self, data: bytes) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError("message.body must be bytes: encode text in the body's own charset")
        if len(data) > self._limit:
            raise LimitExceeded(f"a body of {len(data)} octets is over the limit {self._limit}")
        old = self.body
        lines = _body_lines(bytes(data), old)
        before = len(old)

        def apply() -> None:
            self._new_body = lines

        self._edit([Change("~", f"body {before} -> {len(lines)} octets")], apply, _BODY_STAGES)

    @property
    def raw(self) -> bytes:
        """The whole message, edits applied, CRLF lines; known in ``message``."""
        return b"".join(self.pieces())

    @property
    def size(self) -> int:
        """Octets of the whole message, edits applied; known in ``message``."""
        body = len(self._new_body) if self._new_body is not None else self._whole_body().size
        return len(self._head(trace=False)) + body

    def open(self) -> BinaryIO:
        """Return the whole message as a file, read from its start; on disk where it is big."""
        if self.size <= self._memory:
            return io.BytesIO(self.raw)
        import tempfile

        file = tempfile.TemporaryFile(prefix="mailgate-")
        for piece in self.pieces():
            file.write(piece)
        file.seek(0)
        return file

    async def chunks(self, size: int = PIECE) -> AsyncIterator[bytes]:
        """Yield the whole message, at most about ``size`` octets at a time."""
        for piece in self.pieces(size):
            for at in range(0, len(piece), size):
                yield piece[at : at + size]

    def pieces(self, size: int = PIECE, *, trace: bool = False) -> Iterator[bytes]:
        """Yield the whole message; ``trace`` adds the server's own field (for adapters)."""
        body = self._whole_body()
        yield self._head(trace=trace)
        if self._new_body is None:
            yield from body.pieces(size)
        else:
            yield self._new_body

    def _head(self, *, trace: bool) -> bytes:
        headers, separator = self.headers, self._separator
        if not separator and (self._new_body or (headers.none_came and headers.fields)):
            separator = b"\r\n"  # it came without a blank line, and a body could pass for fields
        return join(headers.fields, separator, trace=trace)

    def head(self) -> bytes:
        """Return the header section as it leaves, with its blank line; for adapters."""
        return self._head(trace=True)

    @property
    def new_body(self) -> bytes | None:
        """The body that the policies made, or None where it is the one that came; for adapters."""
        return self._new_body

    def _whole_body(self) -> Body:
        if self._body is None or self._stage not in (Stage.MESSAGE, Stage.DONE):
            raise TooEarly("the body is known from @policy.message on")
        return self._body

    def parse(self) -> EmailMessage:
        """Return the message as the standard library's parser has it, anew at each call.

        A copy: give it back with `replace`.  Hostile input costs bounded time: what is over a
        cap (see `mailgate.mime`) stays unparsed and is noted in the copy's ``defects``.
        """
        from mailgate import mime

        body = self.body
        return mime.parse(bytes(self.headers), body)

    def replace(self, mail: EmailMessage) -> None:
        """Put an edited copy back: only the fields and the body that differ are changed."""
        from mailgate import mime

        body = self.body
        fields, new_body = mime.differences(self.headers.fields, body, mail)
        if fields is not None:
            changes = _field_changes(self.headers.fields, fields)
            self._edit(changes, lambda: self.headers.restore(fields), _HEADER_STAGES)
        if new_body is not None:
            self.body = new_body

    @property
    def changes(self) -> Sequence[Change]:
        """The edits made so far."""
        return tuple(self._log)

    @property
    def edits(self) -> int:
        """How many there are in `changes`."""
        return len(self._log)

    # -- for the engine ----------------------------------------------------------------------

    def enter(self, stage: Stage) -> None:
        """Say which stage the message has reached."""
        self._stage = stage

    def propose(self, recipient: Address | None) -> Address | None:
        """Set the recipient that handlers are asked about; return the one before."""
        before, self._candidate = self._candidate, recipient
        return before

    @property
    def candidate(self) -> Address | None:
        """The recipient that handlers are being asked about."""
        return self._candidate

    def accept_recipient(self, original: Address, recipient: Address) -> None:
        """Take a recipient, maybe changed, into the envelope."""
        self._original_recipients.append(original)
        self._recipients.append(recipient)

    def drop_recipient(self) -> None:
        """Take back the last recipient: the server refused what the policy accepted."""
        if self._recipients:
            del self._original_recipients[-1], self._recipients[-1]

    def adopt_sender(self, sender: Address) -> None:
        """Take over what the server made of the sender: not an edit of ours."""
        self._sender = sender

    def adopt_recipient(self, recipient: Address) -> None:
        """Take over what the server made of the recipient accepted last."""
        self._recipients[-1:] = [recipient]

    def set_headers(self, section: Section, separator: bytes) -> None:
        """Give the message its header section as it came."""
        self._headers = Headers(section, self._edit_headers)
        self._separator = separator

    def set_body(self, body: Body) -> None:
        """Give the message its body as it came."""
        self._body = body

    def release(self) -> None:
        """Give the content's space back; the envelope and the header fields stay."""
        if self._body is not None:
            self._body.close()
        if self._headers is not None:
            self._headers.seal()  # who refer to each other would stay until they are looked for
        self._body = self._new_body = None

    def roll_back(self, invocation: Invocation) -> None:
        """End an invocation and drop what it changed."""
        with self._lock:
            invocation.live = False
            undo: _Snapshot | None = invocation.undo
            if undo is None:
                return
            self._sender, self._recipients = undo.sender, list(undo.recipients)
            self._candidate = undo.candidate
            self._new_body = undo.body
            if self._headers is not None and undo.headers is not None:
                self._headers.back_to(undo.headers)
            del self._log[undo.changes :]

    # -- edits -------------------------------------------------------------------------------

    def _edit_headers(self, sign: str, text: str, apply: Callable[[], None]) -> None:
        self._edit([Change(sign, text)], apply, _HEADER_STAGES)

    def _edit(
        self,
        changes: Sequence[Change],
        apply: Callable[[], None],
        stages: frozenset[Stage] = MESSAGE_STAGES,
    ) -> None:
        """Make one edit, or raise where the running handler may not make it."""
        invocation = CURRENT.get()
        with self._lock:
            if self.outcome is not None or (invocation is not None and not invocation.live):
                raise TooLate("an edit after the end of its handler, or of the message")
            if invocation is None and self._guarded:
                raise TooLate("an edit from a thread or a task that is not the handler's own")
            if invocation is not None and invocation.message is not self:
                raise TooLate("an edit of a message that this handler was not asked about")
            if self._stage not in stages:
                wanted = " and ".join(f"@policy.{s}" for s in Stage if s in stages)
                raise TooLate(f"in {self._stage}: this edit is made in {wanted}")
            if len(self._log) + len(changes) > MAX_EDITS:
                raise LimitExceeded(f"more than {MAX_EDITS} edits of one message")
            if invocation is not None and invocation.undo is None:
                invocation.undo = self._snapshot()
            apply()
            self._log += changes

    def _snapshot(self) -> _Snapshot:
        headers = self._headers.mark() if self._headers is not None else None
        return _Snapshot(
            self._sender,
            tuple(self._recipients),
            self._candidate,
            headers,
            self._new_body,
            len(self._log),
        )


def _field_changes(old: tuple[Field, ...], new: tuple[Field, ...]) -> list[Change]:
    """Return what says that fields were replaced: those gone, then those that are new."""
    gone = [
        Change("-", f"header {f.original_name.decode('latin-1')}") for f in old if f not in new
    ]
    text = [f.raw.decode("latin-1").strip() for f in new if f not in old]
    return gone + [Change("+", f"header {line}") for line in text]


def _body_lines(data: bytes, old: bytes) -> bytes:
    """Return a new body as CRLF lines; ValueError for NUL.  What is old in it stays as it is."""
    head = tail = b""
    if data.startswith(old):
        head, data = old, data[len(old) :]
    elif data.endswith(old):
        tail, data = old, data[: len(data) - len(old)]
    lines = normal_line_ends(data)
    if b"\0" in lines:
        raise ValueError("a body must not hold NUL (RFC 5321 2.3.8)")
    if lines and not tail and not lines.endswith(b"\r\n"):
        lines += b"\r\n"
    return head + lines + tail
