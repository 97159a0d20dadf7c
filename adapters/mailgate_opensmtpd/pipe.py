"""smtpd's end of the filter: one socket that is both standard streams."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable
from typing import final

log = logging.getLogger(__name__)

READ_SIZE = 256 * 1024
HIGH_WATER = 4 * 1024 * 1024
"""Octets of answers that may wait; above it nothing more is read."""


@final
class Pipe:
    """smtpd's socket: non-blocking, with a bounded amount of output that waits."""

    def __init__(self, input_fd: int, output_fd: int) -> None:
        self._input, self._output = input_fd, output_fd
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes | memoryview] = deque()
        self._size = 0
        self._lost = False
        self._low = asyncio.Event()
        self._low.set()
        for fd in (input_fd, output_fd):
            os.set_blocking(fd, False)

    async def read(self) -> bytes:
        """Return what has come, at most 256 KiB; nothing at the end."""
        await self._low.wait()
        while not self._lost:
            try:
                return os.read(self._input, READ_SIZE)
            except BlockingIOError:
                await self._readable()
            except OSError as error:
                log.error("smtpd's pipe cannot be read: %s", error)
                break
        return b""

    async def _readable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_reader(self._input, _wake, ready)
        try:
            await ready
        finally:
            self._loop.remove_reader(self._input)

    def write(self, data: bytes) -> None:
        """Write now what the socket takes, the rest as it takes it."""
        if data and not self._lost:
            self._waiting.append(data)
            self._size += len(data)
            if len(self._waiting) == 1:
                self._flush()
            elif self._size > HIGH_WATER:
                self._low.clear()

    def drained(self) -> Awaitable[None] | None:
        """Return what to await while too much waits to be written, or None."""
        return None if self._low.is_set() else self._until_low()

    async def _until_low(self) -> None:
        await self._low.wait()

    def _flush(self) -> None:
        while self._waiting:
            data = self._waiting[0]
            try:
                done = os.write(self._output, data)
            except BlockingIOError:
                self._loop.add_writer(self._output, self._flush)
                break
            except OSError as error:
                log.error("smtpd's pipe cannot be written: %s", error)
                self._lost = True
                self._waiting.clear()
                self._size = 0
                break
            self._size -= done
            if done == len(data):
                self._waiting.popleft()
            else:
                self._waiting[0] = memoryview(data)[done:]
        if not self._waiting:
            self._loop.remove_writer(self._output)
        if self._size > HIGH_WATER:
            self._low.clear()
        else:
            self._low.set()

    def close(self) -> None:
        self._loop.remove_writer(self._output)
        os.close(self._input)
        os.close(self._output)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
