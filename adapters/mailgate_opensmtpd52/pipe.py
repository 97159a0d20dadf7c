"""The way of one message through the filter: two descriptors that never block."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import stat
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice
from typing import final

from mailgate import fork
from mailgate.deadline import stay

log = logging.getLogger(__name__)

READ_SIZE = 64 * 1024
HIGH_WATER = 256 * 1024
"""Octets that may wait for the sink; above it nothing more is made."""
MOST_PIECES = 64  # of one writev(2)
STALL = 300.0
"""Seconds without an octet after which a message is given up: smtpd's own for idle clients."""


def takes_mail(fd: int) -> bool:
    """Tell whether a descriptor leads to somebody who reads."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISSOCK(mode) and not stat.S_ISFIFO(mode):
        return False
    poll = select.poll()
    poll.register(fd, 0)
    return not poll.poll(0)  # POLLERR and POLLHUP are told unasked


@final
class DataPipe:
    """What smtpd writes, and the sink that takes what leaves us.

    ``received`` and ``written`` count octets.  A sink that takes nothing more is ``lost``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sink: int) -> None:
        """Begin a way that leads to ``sink``, which is ours from now on."""
        self._loop = loop
        self._sink = sink
        self._theirs = self._source = -1
        self._waiting: deque[memoryview | bytes] = deque()
        self._unsent = 0
        self._came: asyncio.Future[None] | None = None  # awaited: something to read
        self._left: asyncio.Future[None] | None = None  # awaited: something has left
        self._blocked = False  # the loop tells when the sink takes more
        self._watched = False
        self.received = self.written = 0
        self.at_end = self.lost = False

    def open(self) -> None:
        """Open it; OSError where there are too many descriptors already."""
        os.set_blocking(self._sink, False)
        theirs, ours = socket.socketpair(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with theirs, ours:
            self._theirs = fork.adopt(theirs.detach())
            self._source = fork.adopt(ours.detach())

    def hand_over(self) -> int:
        """Return the end that smtpd writes to; it is the caller's."""
        theirs, self._theirs = self._theirs, -1
        return theirs

    # -- what comes ----------------------------------------------------------------------------

    def read(self) -> bytes | None:
        """Return what has come, at most 64 KiB: nothing at the end, None where it goes on."""
        try:
            data = os.read(self._source, READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            log.error("the data pipe cannot be read: %s", error.strerror)
            data = b""
        self.received += len(data)
        self.at_end = not data
        return data

    def watch(self, readable: Callable[[], None]) -> None:
        """Have a callback called, again and again, while there is something to read."""
        if not self._watched and self._source >= 0:
            self._watched = True
            self._loop.add_reader(self._source, readable)

    def ignore(self) -> None:
        """Call it no more."""
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._source)

    async def readable(self) -> bool:
        """Wait for something to read; False where nothing comes for too long."""
        self._came = came = self._loop.create_future()
        self.watch(partial(_set, came))
        try:
            return await _in_time(came)
        finally:
            self.ignore()
            self._came = None

    # -- what leaves ---------------------------------------------------------------------------

    def write(self, *pieces: bytes) -> None:
        """Write now what the sink takes, the rest as it takes it."""
        size = sum(map(len, pieces))
        self.written += size
        if size and not self.lost:
            idle = not self._waiting
            self._waiting.extend(pieces)
            self._unsent += size
            if idle:
                self._flush()

    def room(self) -> Awaitable[None] | None:
        """Return what to await before more is written, or None."""
        return self._drained(HIGH_WATER) if self._unsent > HIGH_WATER else None

    def _flush(self) -> None:
        waiting = self._waiting
        while waiting:
            try:
                done = os.writev(self._sink, tuple(islice(waiting, MOST_PIECES)))
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._lose(error.strerror)
                break
            self._unsent -= done
            while waiting and done >= len(waiting[0]):
                done -= len(waiting.popleft())
            if done:
                waiting[0] = memoryview(waiting[0])[done:]
        self._mind_sink()

    def _mind_sink(self) -> None:
        """Have the loop tell when the sink takes more, where more waits for it."""
        blocked = bool(self._waiting)
        if blocked is not self._blocked:
            self._blocked = blocked
            if blocked:
                self._loop.add_writer(self._sink, self._flush)
            else:
                self._loop.remove_writer(self._sink)
        if self._left is not None:
            _set(self._left)

    def _lose(self, reason: str | None) -> None:
        log.warning("the sink of a message takes nothing more: %s", reason)
        self._forget()

    def _forget(self) -> None:
        self.lost = True
        self._waiting.clear()
        self._unsent = 0

    async def _drained(self, most: int) -> None:
        """Wait until no more than ``most`` octets wait; a sink that stalls is lost."""
        while self._unsent > most:
            self._left = self._loop.create_future()
            if not await _in_time(self._left):
                self._lose(f"nothing was read for {STALL:.0f} s")
                self._mind_sink()
        self._left = None

    async def finish(self) -> bool:
        """Close the sink behind all that was written; False where some of it is lost."""
        if self._unsent:
            await self._drained(0)
        self.close_sink()
        return not self.lost

    def close_sink(self) -> None:
        """Close the sink; what waits for it is lost."""
        if self._sink < 0:
            return
        if self._waiting:
            self._forget()
        self._mind_sink()
        fork.close(self._sink)
        self._sink = -1

    def break_off(self) -> None:
        """Have nobody wait for it any more: the message goes no further."""
        self.at_end = self.lost = True
        self.close_sink()
        if self._came is not None:
            _set(self._came)

    def close(self) -> None:
        """Close both ends."""
        self.ignore()
        self.break_off()
        for fd in (self._source, self._theirs):
            if fd >= 0:
                fork.close(fd)
        self._source = self._theirs = -1


def _set(change: asyncio.Future[None]) -> None:
    if not change.done():
        change.set_result(None)


async def _in_time(change: asyncio.Future[None]) -> bool:
    """Wait for a future that is ours alone; False where it is not done in time."""
    end = change.get_loop().time() + STALL
    while not change.done():
        left = end - change.get_loop().time()
        if left <= 0:
            return False
        try:
            await asyncio.wait([change], timeout=left)
        except asyncio.CancelledError:  # by a policy, or because the client is gone
            await stay()
    return True
