"""A message's lines on their way through the policy: held or passed on in step."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum, auto
from typing import Literal, TypeAlias, final

from mailgate.content import PIECE, Body
from mailgate.engine import FAILURE, NO_SPACE, Conversation
from mailgate.head import OPENSMTPD, is_only_own, mark_own
from mailgate.headers import Section, continues_section, is_mbox_line, parse_fields
from mailgate.limits import Limits
from mailgate.stage import Stage
from mailgate.syntax import stuff_dots, unstuff_dots
from mailgate.verdict import Reject, refuses
from mailgate_opensmtpd.wire import (
    DataLines,
    LineTooLong,
    data_end,
    data_lines,
    data_text,
    line_limit,
)

log = logging.getLogger(__name__)

LongLines: TypeAlias = Literal["reject", "cut"]

TOO_LONG = Reject("a line is too long for this mail server's filters", 554, "5.6.0")


class _Mode(Enum):
    HEAD = auto()  # gathering the header section
    ECHO = auto()  # answering each line with itself
    HOLD = auto()  # keeping all lines until the end
    DROP = auto()  # refused: only the final dot is answered
    ENDED = auto()


@final
class Stream:
    """The data phase of one message.  Whatever happens, one dot is answered to one dot."""

    def __init__(
        self,
        conversation: Conversation,
        first: DataLines,
        limits: Limits,
        long_lines: LongLines,
        write: Callable[[bytes], None],
        room: Callable[[], Awaitable[None] | None],
    ) -> None:
        """Begin with the first lines; ``room`` returns what to await before more is written."""
        self._conversation = conversation
        self._version, self._session, self._token = first.version, first.session, first.token
        self._limits = limits
        self._long_lines = long_lines
        self._write = write
        self._room = room
        interest = conversation.interest
        self._holds = interest.content == "buffer"
        self._shows_body = Stage.BODY in interest.asked
        self._mode = _Mode.HEAD
        self._head: list[bytes] = []
        self._head_size = 0
        self._body: Body | None = None
        self._unshown: list[bytes] = []  # of the body
        self._unshown_size = 0
        self._warned = False

    async def receive(self, lines: list[bytes]) -> None:
        """Take some lines; the dot among them ends the message, and nothing may follow it."""
        if self._mode is _Mode.ENDED:
            return
        ended = b"." in lines
        if ended:
            lines = lines[: lines.index(b".")]
        try:
            if self._mode is _Mode.HEAD and lines:
                lines = await self._take_head(lines)
            if lines:
                await self._take_body(lines)
            if ended:
                await self._end()
        except Exception:
            log.exception("a fault of mailgate itself in message %s", self._conversation.id)
            self._conversation.refuse(FAILURE, "mailgate")
            self._drop()
        finally:
            if ended:
                self._mode = _Mode.ENDED
                self._write(data_end(self._version, self._session, self._token))

    # -- the header section --------------------------------------------------------------------

    async def _take_head(self, lines: list[bytes]) -> list[bytes]:
        """Gather the header section; return the lines that are behind it."""
        for at, line in enumerate(lines):
            text = line[1:] if line[:1] == b"." else line
            if not continues_section(text, first=self._is_first(text)):
                await self._headers(b"" if text else b"\r\n")
                return lines[at:] if text else lines[at + 1 :]
            self._head_size += len(text) + 2
            if self._head_size <= self._limits.headers:
                self._head.append(text)
        return []

    def _is_first(self, line: bytes) -> bool:
        """Tell whether a line is the client's first: an mbox line may follow smtpd's own field."""
        if not self._head or not is_mbox_line(line):
            return not self._head
        return is_only_own(b"".join(text + b"\r\n" for text in self._head), OPENSMTPD)

    async def _headers(self, separator: bytes) -> None:
        if self._head_size > self._limits.headers:
            self._conversation.too_much_header()
            self._mode = _Mode.DROP
            return
        section = b"".join(line + b"\r\n" for line in self._head)
        fields = parse_fields(section, self._limits.fields + 1)
        self._head.clear()
        mark_own(fields, OPENSMTPD, b" id " + self._conversation.id.encode("latin-1", "replace"))
        verdict = await self._conversation.headers(Section.of(fields), separator)
        if refuses(verdict):
            self._mode = _Mode.DROP
        elif self._holds:
            self._mode = _Mode.HOLD
            self._body = Body(self._limits.memory)
        else:
            self._mode = _Mode.ECHO
            message = self._conversation.message
            if message is not None:
                await self._emit([message.head()])

    # -- the body ------------------------------------------------------------------------------

    async def _take_body(self, lines: list[bytes]) -> None:
        if self._mode is _Mode.ECHO:
            self._answer(lines)
        if self._mode is _Mode.HOLD or (self._mode is _Mode.ECHO and self._shows_body):
            piece = unstuff_dots(b"\r\n".join(lines) + b"\r\n")
            if self._mode is _Mode.HOLD:
                await self._hold(piece)
            if self._shows_body:
                self._unshown.append(piece)
                self._unshown_size += len(piece)
                if self._unshown_size >= PIECE:
                    await self._show()

    async def _show(self) -> None:
        """Show the policy what has gathered of the body."""
        piece = b"".join(self._unshown)
        self._unshown.clear()
        self._unshown_size = 0
        if refuses(await self._conversation.body(piece)):
            self._drop()

    async def _hold(self, piece: bytes) -> None:
        body = self._body
        if body is None or self._conversation.hold(body, piece):
            return
        message = self._conversation.message
        if message is None or refuses(self._conversation.verdict):
            self._drop()
            return
        self._shows_body = False  # over the size limit: it passes on unseen
        self._mode = _Mode.ECHO
        message.set_body(body)
        await self._emit([message.head()])
        await self._emit(body.pieces())
        self._body = None
        body.close()

    def _drop(self) -> None:
        self._mode = _Mode.DROP
        if self._body is not None:
            self._body.close()
            self._body = None

    async def _end(self) -> None:
        if self._mode is _Mode.HEAD:
            await self._headers(b"")
        if self._unshown and self._mode is not _Mode.DROP:
            await self._show()
        verdict = await self._conversation.end(self._body)
        message = self._conversation.message
        if self._mode is _Mode.HOLD and verdict is None and message is not None:
            await self._emit(message.pieces(trace=True))

    # -- answers -------------------------------------------------------------------------------

    async def _emit(self, pieces: Iterator[bytes] | list[bytes]) -> None:
        """Answer with CRLF text, which need not be divided at line ends.

        An empty line of two octets is answered with some fifty, so smtpd takes one piece before
        the next is made.
        """
        rest = b""
        try:
            for piece in pieces:
                waiting = self._room()
                if waiting is not None:
                    await waiting
                text, line_end, rest = (rest + piece).rpartition(b"\r\n")
                if line_end and not self._answer_text(stuff_dots(text + line_end)):
                    return
        except OSError as error:
            log.error("message %s cannot be read back: %s", self._conversation.id, error)
            self._conversation.refuse(NO_SPACE, "limits.memory")

    def _answer_text(self, text: bytes) -> bool:
        """Answer with stuffed CRLF lines; False where one is too long: the message is refused."""
        try:
            self._write(data_text(self._version, self._session, self._token, text))
        except LineTooLong:
            return self._too_long(text.removesuffix(b"\r\n").split(b"\r\n"))
        return True

    def _answer(self, lines: list[bytes]) -> bool:
        """Answer with stuffed lines; False where one is too long: the message is refused."""
        try:
            self._write(data_lines(self._version, self._session, self._token, lines))
        except LineTooLong:
            return self._too_long(lines)
        return True

    def _too_long(self, lines: list[bytes]) -> bool:
        limit = line_limit(self._version) - len(self._session) - len(self._token) - 18
        if not self._warned:
            self._warned = True
            log.warning(
                "message %s has a line over %d octets, which this OpenSMTPD cannot take back "
                "from a filter; long_lines = %r",
                *(self._conversation.id, limit, self._long_lines),
            )
        if self._long_lines == "cut":
            cut = [line[:limit] for line in lines]
            self._write(data_lines(self._version, self._session, self._token, cut))
            return True
        self._conversation.refuse(TOO_LONG, "opensmtpd.long_lines")
        self._drop()
        return False
