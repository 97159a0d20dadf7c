"""A message as it comes from a client: held until its end, or passed on in step with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol, final

from mailgate.content import PIECE, Body
from mailgate.engine import Conversation
from mailgate.head import Head
from mailgate.headers import Section, parse_fields
from mailgate.limits import Limits
from mailgate.stage import Stage
from mailgate.syntax import stuff_dots, unstuff_dots
from mailgate.verdict import Reject, refuses
from mailgate_smtp.options import SmtpOptions
from mailgate_smtp.wire import ODD_OCTET, ChunkDecoder, DataDecoder, DotStuffer

TOO_BIG = Reject("Message size exceeds fixed limit", 552, "5.3.4")
TOO_MANY_HOPS = Reject("Too many hops: the message goes round in circles", 554, "5.4.6")


_NO_SECTION = Section.of(())


class Outlet(Protocol):
    """What a message is passed to in step: the next hop, which has given leave for it."""

    async def write(self, piece: bytes) -> None: ...


class Intake(Protocol):
    """What follows a reply 354, or a BDAT command."""

    @property
    def octets(self) -> int:
        """How much of it has come."""

    @property
    def ended(self) -> bool:
        """Tell whether all of it has come that is announced."""

    def receive(self, data: bytes) -> tuple[Awaitable[None] | None, bytes]:
        """Take what was read; return what has to be awaited, and what is not content."""


@final
class Unwanted:
    """A chunk that is refused: its octets come all the same."""

    def __init__(self, size: int) -> None:
        self._left = size
        self.octets = 0

    @property
    def ended(self) -> bool:
        return not self._left

    def receive(self, data: bytes) -> tuple[None, bytes]:
        taken = min(self._left, len(data))
        self._left -= taken
        self.octets += taken
        return None, data[taken:]


@final
class Content:
    """The content of one message.

    Octets are kept as they came: dot-stuffed from DATA, plain from BDAT.  A fault of the message
    refuses it in the conversation; what comes after that is dropped.
    """

    def __init__(
        self,
        conversation: Conversation,
        options: SmtpOptions,
        limits: Limits,
        *,
        chunks: bool,
        received: bytes,
        outlet: Outlet | None,
        size_limit: int,
        spend: Callable[[int], bool],
    ) -> None:
        """Begin a message; ``chunks`` where it comes by BDAT, ``outlet`` where it is streamed.

        ``received`` is a field to put on top.  ``spend`` is told of memory that is taken and
        given back, and tells whether all of it is spent.
        """
        self._conversation = conversation
        self._options = options
        self._limits = limits
        self._size_limit = size_limit
        self._received = received
        self._outlet = outlet
        self._spend = spend
        self._spent = 0
        interest = conversation.interest
        self._shows_content = interest.content != "none"
        self._shows_body = Stage.BODY in interest.asked
        line = options.limits.line
        self.chunks = ChunkDecoder(line) if chunks else None
        self._decoder: DataDecoder | ChunkDecoder = self.chunks or DataDecoder(
            line, normalise=options.line_ends == "normalise"
        )
        self._head: Head | None = Head(limits)
        self._raw_head = b""  # with what divides it from the body, as it came
        self._body = Body(limits.memory, form="crlf" if chunks else "stuffed")
        self._stuffer = DotStuffer() if chunks else None  # of what is passed on in step
        self._section = _NO_SECTION, b""
        self._dropped = self._closed = False
        self._unshown = bytearray()

    @property
    def octets(self) -> int:
        return self._decoder.octets

    @property
    def ended(self) -> bool:
        return self._decoder.ended

    def begin_chunk(self, size: int) -> None:
        """Hear that so many octets come by a BDAT command."""
        if self.chunks is not None:
            self.chunks.begin(size)

    def receive(self, data: bytes) -> tuple[Awaitable[None] | None, bytes]:
        content, rest = self._decoder.receive(data)
        return self.take(content), rest

    def take(self, content: bytes) -> Awaitable[None] | None:
        """Take some of the content; what is returned has to be awaited before there is more."""
        if self._dropped:
            return None
        if self._decoder.octets > self._size_limit:
            self._refuse(TOO_BIG, "smtp.limits.message")
            return None
        fault = self._decoder.strictness.fault
        if fault:
            key = "smtp.line_ends" if fault == ODD_OCTET else "smtp.limits.line"
            self._refuse(Reject(f"The message has {fault}", 554, "5.6.0"), key)
            return None
        if not content:
            return None
        if self._head is not None:
            rest = self._head.receive(content)
            if rest is None:
                self._account()
                return None
            content = rest
            if self._shows_content or self._outlet is not None:
                return self._take_head(content)
            self._end_head()
        return self._take_body(content) if content and not self._dropped else None

    # -- the header section ----------------------------------------------------------------------

    def _end_head(self) -> None:
        """Have the header section end here."""
        head, self._head = self._head, None
        if head is None:
            return
        self._raw_head = bytes(head.octets) + head.separator
        if len(head.octets) > self._limits.headers or head.fields > self._limits.fields:
            self._conversation.too_much_header()
            self.drop()
        elif _hops(head.octets) > self._options.limits.hops:
            self._refuse(TOO_MANY_HOPS, "smtp.limits.hops")
        elif self._shows_content:
            self._section = self._section_of(bytes(head.octets), head.fields), head.separator

    def _section_of(self, octets: bytes, count: int) -> Section:
        plain = octets if self.chunks is not None else unstuff_dots(octets)
        most = self._limits.fields + 1
        return Section(lambda: tuple(parse_fields(plain, most)), count, len(plain))

    async def _take_head(self, rest: bytes) -> None:
        self._end_head()
        if not self._dropped and self._shows_content:
            verdict = await self._conversation.headers(*self._section)
            if refuses(verdict):
                self.drop()
        if not self._dropped and self._outlet is not None:
            await self._outlet.write(self._new_head())
        if rest and not self._dropped:
            work = self._take_body(rest)
            if work is not None:
                await work

    # -- the body --------------------------------------------------------------------------------

    def _take_body(self, content: bytes) -> Awaitable[None] | None:
        if self._outlet is None:
            held = self._conversation.hold(self._body, content)
            self._account()
            if not held and refuses(self._conversation.verdict):
                self.drop()
                return None
            if not self._shows_body:
                return None
        return self._pass_body(content)

    async def _pass_body(self, content: bytes) -> None:
        if self._shows_body:
            await self._show(content)
        if self._outlet is not None and not self._dropped:
            stuffer = self._stuffer
            await self._outlet.write(content if stuffer is None else stuffer.stuff(content))

    async def _show(self, content: bytes, *, last: bool = False) -> None:
        """Show the policies what has come of the body, as whole lines without dot-stuffing."""
        gathered = self._unshown
        gathered += content
        end = len(gathered) if last else gathered.rfind(b"\r\n") + 2
        if end < 2 or (end < PIECE and not last and self._outlet is None):
            return
        piece = bytes(gathered[:end])
        del gathered[:end]
        if self._conversation.wants_body:
            plain = piece if self.chunks is not None else unstuff_dots(piece)
            if refuses(await self._conversation.body(plain)):
                self.drop()

    # -- the end ---------------------------------------------------------------------------------

    async def end(self) -> None:
        """Have all of it be there: ask about what nobody was asked about yet."""
        if self.chunks is not None:
            work = self.take(self.chunks.end())
            if work is not None:
                await work
        if self._head is not None and not self._dropped:
            await self._take_head(b"")
        if self._unshown and not self._dropped:
            await self._show(b"", last=True)

    @property
    def body(self) -> Body | None:
        """The body for the policies, None where it is not held."""
        held = self._outlet is None and not self._dropped
        return self._body if held and self._conversation.interest.content == "buffer" else None

    def pieces(self) -> Iterator[bytes]:
        """Yield the message, edits applied, as it is sent after DATA: dot-stuffed."""
        yield self._new_head()
        message = self._conversation.message
        new = message.new_body if message is not None else None
        if new is not None:
            yield stuff_dots(new)
        elif self.chunks is None:
            yield from self._body.held_pieces(PIECE)
        else:
            stuffer = DotStuffer()
            for piece in self._body.pieces(PIECE):
                yield stuffer.stuff(piece)

    def _new_head(self) -> bytes:
        message = self._conversation.message
        if self._shows_content and message is not None and message.edits:
            return self._received + stuff_dots(message.head())
        head = self._raw_head if self.chunks is None else stuff_dots(self._raw_head)
        return self._received + head

    # -- what goes wrong -------------------------------------------------------------------------

    def _refuse(self, verdict: Reject, reason: str) -> None:
        self._conversation.refuse(verdict, reason)
        self.drop()

    def drop(self) -> None:
        """Keep nothing of it: it is refused, and only its end is looked for."""
        self._dropped = True
        self._unshown.clear()
        self._raw_head = b""
        self._head = None
        self._body.close()
        self._account()

    def _account(self) -> None:
        """Tell how much memory it takes now."""
        head = len(self._head.octets) if self._head is not None else len(self._raw_head)
        now = 0 if self._closed else self._body.in_memory + head
        if now != self._spent:
            spent = self._spend(now - self._spent)
            self._spent = now
            if spent:
                self._body.spool()

    def close(self) -> None:
        """Give its space back."""
        self._closed = True
        self._body.close()
        self._account()


def _hops(section: bytes | bytearray) -> int:
    """Return the number of Received fields."""
    return (b"\n" + section).lower().count(b"\nreceived:")
