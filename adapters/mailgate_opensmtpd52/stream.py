"""A message's octets on their way through the policy: held, or passed on in step."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable
from enum import Enum, auto
from itertools import chain
from typing import Protocol, final

from mailgate.content import PIECE, Body
from mailgate.engine import FAILURE, NO_SPACE, Conversation
from mailgate.head import OPENSMTPD, Head, mark_own
from mailgate.headers import Field, Section, parse_fields
from mailgate.limits import Limits
from mailgate.stage import Stage
from mailgate.syntax import with_crlf, with_lf
from mailgate.verdict import Verdict, refuses

log = logging.getLogger(__name__)


class Outlet(Protocol):
    """Where a message goes, as lines that end with LF."""

    def write(self, *pieces: bytes) -> None: ...

    def room(self) -> Awaitable[None] | None:
        """Return what to await before more is written, or None."""


class _Mode(Enum):
    HEAD = auto()  # gathering the header section
    ECHO = auto()  # passing on what comes
    HOLD = auto()  # keeping the body until the end
    DROP = auto()  # refused: nothing leaves any more


@final
class Stream:
    """The content of one message.

    It comes as lines that end with LF, without dot-stuffing, and is kept like that; a CR before
    the LF is the client's own.  Policies see CRLF.
    """

    def __init__(self, conversation: Conversation, limits: Limits, sink: Outlet) -> None:
        self._conversation = conversation
        self._limits = limits
        self._sink = sink
        interest = conversation.interest
        self._holds = interest.content == "buffer"
        self._shows_body = Stage.BODY in interest.asked
        self._mode = _Mode.HEAD
        self._head = Head(limits, OPENSMTPD)
        self._body: Body | None = None
        self._unshown = bytearray()

    def take(self, data: bytes) -> Awaitable[None] | None:
        """Take octets, cut anywhere; what is returned has to be awaited before there are more."""
        if self._mode is _Mode.HEAD:
            end = data.find(b"\n\n") + 2  # a blank line ends every section
            start, rest = (data[:end], data[end:]) if end > 1 else (data, b"")
            behind = self._head.receive(with_crlf(start))
            return None if behind is None else self._take_head(with_lf(behind) + rest)
        return None if self._mode is _Mode.DROP else self._take_body(data)

    # -- the header section --------------------------------------------------------------------

    async def _take_head(self, rest: bytes) -> None:
        head = self._head
        octets, limits = bytes(head.octets), self._limits

        def fields() -> tuple[Field, ...]:
            found = parse_fields(octets, limits.fields + 1)
            mark_own(found, OPENSMTPD)
            return tuple(found)

        section = Section(fields, head.fields, len(octets))
        verdict = await self._conversation.headers(section, head.separator)
        if refuses(verdict):
            self.drop()
            return
        if self._holds:
            self._mode = _Mode.HOLD
            self._body = Body(limits.memory, form="lf")
            work = self._take_body(rest) if rest else None
        else:
            self._mode = _Mode.ECHO
            self._sink.write(self._new_head(), rest)
            work = self._shown(rest)
        if work is not None:
            await work

    def _new_head(self) -> bytes:
        """Return the header section as it leaves, edits applied."""
        message, head = self._conversation.message, self._head
        if message is not None and message.edits:
            return with_lf(message.head())
        return with_lf(bytes(head.octets) + head.separator)

    # -- the body ------------------------------------------------------------------------------

    def _take_body(self, data: bytes) -> Awaitable[None] | None:
        if self._mode is _Mode.ECHO:
            self._sink.write(data)
            return self._shown(data)
        if self._body is None or self._conversation.hold(self._body, data):
            return self._show(data) if self._shows_body else None
        return self._too_big()

    def _shown(self, data: bytes) -> Awaitable[None] | None:
        """Return what to await for octets that were written."""
        return self._show_and_wait(data) if self._shows_body else self._sink.room()

    async def _show_and_wait(self, data: bytes) -> None:
        await self._show(data)
        room = self._sink.room()
        if room is not None:
            await room

    async def _show(self, data: bytes, *, last: bool = False) -> None:
        """Show the policies what has come of the body, as whole lines."""
        gathered = self._unshown
        gathered += data
        if len(gathered) < PIECE and not last:
            return
        end = gathered.rfind(b"\n") + 1
        if last or len(gathered) - end > max(self._limits.memory, PIECE):
            end = len(gathered)  # the last line has no end, or none in sight
        if not end:
            return
        piece = with_crlf(bytes(gathered[:end]))
        del gathered[:end]
        if self._conversation.wants_body and refuses(await self._conversation.body(piece)):
            self.drop()

    async def _too_big(self) -> None:
        """Go on with a message over the size limit: it is refused, or passes on unseen."""
        body, self._body = self._body, None
        if body is None or refuses(self._conversation.verdict):
            self.drop()
        else:
            self._mode = _Mode.ECHO
            self._shows_body = False
            await self._emit(chain([self._new_head()], body.held_pieces()))
        if body is not None:
            body.close()

    # -- the end -------------------------------------------------------------------------------

    async def end(self) -> Verdict | None:
        """Have all of it be there; return what it is to be answered with, None to take it.

        What the policies made of it is at the sink then.
        """
        if self._mode is _Mode.HEAD:
            await self._take_head(b"")
        if self._unshown and self._mode is not _Mode.DROP:
            await self._show(b"", last=True)
        body, self._body = self._body, None  # the message has it now, until its own end
        verdict = await self._conversation.end(body)
        message = self._conversation.message
        if self._mode is _Mode.DROP and not refuses(verdict):
            return FAILURE  # never take what has not left us
        if verdict is not None or message is None:
            return verdict
        if body is not None:
            new = message.new_body
            pieces = body.held_pieces() if new is None else [with_lf(new)]
            await self._emit(chain([self._new_head()], pieces))
        return self._conversation.verdict

    @property
    def dropped(self) -> bool:
        """Tell whether nothing more of it leaves."""
        return self._mode is _Mode.DROP

    def drop(self) -> None:
        """Let nothing more of it leave."""
        self._mode = _Mode.DROP
        self._unshown.clear()
        if self._body is not None:
            self._body.close()
            self._body = None

    async def _emit(self, pieces: Iterable[bytes]) -> None:
        """Write a message as the sink takes it; what is small is written as one."""
        gathered: list[bytes] = []
        size = 0
        try:
            for piece in pieces:
                gathered.append(piece)
                size += len(piece)
                if size >= PIECE:
                    self._sink.write(*gathered)
                    gathered.clear()
                    size = 0
                    room = self._sink.room()
                    if room is not None:
                        await room
        except OSError as error:
            log.error("message %s cannot be read back: %s", self._conversation.id, error)
            self._conversation.refuse(NO_SPACE, "limits.memory")
        else:
            self._sink.write(*gathered)
