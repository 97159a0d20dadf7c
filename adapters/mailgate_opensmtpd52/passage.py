"""One message between its PIPE and its end: who reads it when, and whether all of it has come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import final

from mailgate.deadline import stay
from mailgate.eager import Eager
from mailgate.engine import FAILURE, Conversation
from mailgate_opensmtpd52.pipe import STALL, DataPipe
from mailgate_opensmtpd52.stream import Stream

log = logging.getLogger(__name__)


@final
class Passage:
    """Reads a message as it comes, while its session waits for EOM.

    What is read is taken at once; only where a handler or the sink makes it wait is there a
    coroutine, and nothing more is read before that has ended.
    """

    __slots__ = (
        "_conversation",
        "_eager",
        "_idle",
        "_loop",
        "_taking",
        "_timer",
        "pipe",
        "stream",
    )

    def __init__(
        self,
        conversation: Conversation,
        stream: Stream,
        pipe: DataPipe,
        eager: Eager,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._conversation = conversation
        self._eager = eager
        self._loop = loop
        self._taking = False
        self._timer: asyncio.TimerHandle | None = None  # of what is read to be thrown away
        self._idle: asyncio.Future[None] | None = None  # somebody waits until nothing is taken
        self.stream = stream
        self.pipe = pipe
        pipe.watch(self._readable)

    def _readable(self) -> None:
        """Take what has come; a callback of the loop."""
        data = self.pipe.read()
        if data is None:
            return
        if not data:
            self.pipe.ignore()
            if self._timer is not None:
                self.close()
            return
        work = self._take(data)
        if work is not None:
            self._taking = True
            self._eager.run(self._finish(work))
            if self._taking:  # it waits
                self.pipe.ignore()

    def _take(self, data: bytes) -> Awaitable[None] | None:
        try:
            return self.stream.take(data)
        except Exception:
            self._fail()
            return None

    async def _await(self, work: Awaitable[None]) -> None:
        """Await what octets ask for; nothing comes out of it."""
        try:
            await work
        except asyncio.CancelledError:  # the message was given up
            await stay()
            self.stream.drop()
        except Exception:
            self._fail()

    def _fail(self) -> None:
        log.exception("a fault of mailgate itself in message %s", self._conversation.id)
        self._conversation.refuse(FAILURE, "mailgate")
        self.stream.drop()

    async def _finish(self, work: Awaitable[None]) -> None:
        try:
            await self._await(work)
        finally:
            self._taking = False
            if self._idle is not None:
                if not self._idle.done():
                    self._idle.set_result(None)
            elif not self.pipe.at_end:
                self.pipe.watch(self._readable)

    async def stop(self) -> None:
        """Have the message go no further, and nobody at work with it."""
        self.pipe.break_off()
        await self._take_over()

    async def _take_over(self) -> None:
        """Have nothing more be read behind our back."""
        self.pipe.ignore()
        while self._taking:
            self._idle = self._loop.create_future()
            try:
                await asyncio.wait([self._idle])
            except asyncio.CancelledError:
                await stay()

    async def whole(self, datalen: int) -> bool:
        """Read up to the end; False where it is not there after ``datalen`` octets.

        EOM may come before the end of file, which tells nothing that EOM does not.  Nothing
        more is read of a message that is refused.
        """
        pipe, stream = self.pipe, self.stream
        await self._take_over()
        while pipe.received < datalen and not pipe.at_end and not stream.dropped:
            data = pipe.read()
            if data is None:
                if not await pipe.readable():
                    break
            elif data and (work := self._take(data)) is not None:
                await self._await(work)
        return pipe.received == datalen or stream.dropped

    def leave(self, datalen: int) -> None:
        """Close what is left, once EOM is answered.

        Of a refused message there may be more to come.  It is read and thrown away: an earlier
        filter of the chain is still writing it, and may not take it well that nobody reads.
        """
        if self.stream.dropped and self.pipe.received < datalen and not self.pipe.at_end:
            self.pipe.close_sink()
            self.pipe.watch(self._readable)
            self._timer = self._loop.call_later(STALL, self.close)
        else:
            self.close()

    def close(self) -> None:
        """Close its descriptors, and forget what is held."""
        if self._timer is not None:
            self._timer.cancel()
        self.pipe.close()
        self.stream.drop()
