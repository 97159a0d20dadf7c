"""Serve in several processes: one that listens and watches, and workers that it starts again.

A worker is an ordinary ``mailgate run`` that is handed the listening sockets: it loads the
policies, reloads and drains as any other.  The kernel gives each new connection to one of them.
What ends a worker (a crash in C code, `os._exit`) costs the connections that it had, and their
servers take that for a failure of the filter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import final

log = logging.getLogger(__name__)

LIFELINE = "MAILGATE_LIFELINE"
"""The environment variable that names a worker's end of a pipe: its end says that the parent
is gone, however it went.
"""

_FINAL = frozenset({2, 78})  # usage, configuration: another start would say the same
_SOON = 10.0  # seconds: one that has ended earlier is put off, longer each time
_FIRST = 0.5
_LONGEST = 30.0
_PATIENCE = 40.0  # seconds to drain: more than messages under way have, less than systemd waits


@final
class Workers:
    """Worker processes, kept running until a signal ends them."""

    def __init__(
        self,
        argv: Sequence[str],
        descriptors: Sequence[int],
        number: int,
        stopping: Callable[[], None] = lambda: None,
    ) -> None:
        """Run ``number`` processes of a command line, which inherit the descriptors.

        ``stopping`` is called when they are told to end: nobody listens any more then.
        """
        self._when_stopping = stopping
        self._argv = argv
        self._descriptors = descriptors
        self._number = number
        self._running: set[asyncio.subprocess.Process] = set()
        self._stopping = asyncio.Event()
        self._status = 0

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; return 0, or a worker's status where none can start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number.name)
        loop.add_signal_handler(signal.SIGHUP, self._send, signal.SIGHUP)
        read, write = os.pipe()
        environment = {**os.environ, LIFELINE: str(read)}
        try:
            kept = [self._keep(read, environment) for _ in range(self._number)]
            await asyncio.gather(*kept)
        finally:
            os.close(read)
            os.close(write)
        return self._status

    async def _keep(self, lifeline: int, environment: Mapping[str, str]) -> None:
        """Have one worker, again and again."""
        loop = asyncio.get_running_loop()
        final, delay = _FINAL, 0.0
        while not self._stopping.is_set():
            began = loop.time()
            try:
                said = await self._run_one(lifeline, environment, final)
            except OSError as error:  # no memory, or the interpreter is just being replaced
                said = f"a worker cannot be started: {error}"
            if self._stopping.is_set():
                return
            final = frozenset()  # a file that is wrong by now does not end those that serve
            soon = loop.time() - began < _SOON
            delay = min(max(2 * delay, _FIRST), _LONGEST) if soon else 0.0
            log.error("%s; another start in %g s", said, delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _run_one(
        self, lifeline: int, environment: Mapping[str, str], final: frozenset[int]
    ) -> str:
        """Run a worker to its end, and say how it ended; a status in ``final`` ends all."""
        began = asyncio.get_running_loop().time()
        with _held(signal.SIGHUP):
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(*self._descriptors, lifeline),
                env=environment,
            )
        self._running.add(process)
        if self._stopping.is_set():  # a signal came while it was being started
            _tell(process, signal.SIGTERM)
        status = await process.wait()
        self._running.discard(process)
        said = f"worker {process.pid} ended with {_how(status)}"
        soon = asyncio.get_running_loop().time() - began < _SOON  # later it is a policy's doing
        if status in final and soon and not self._stopping.is_set():
            self._status = status
            self._stop(said)
        return said

    def _stop(self, why: str) -> None:
        """End the workers: they drain, and are killed where that takes too long."""
        log.warning("%s", why)
        if not self._stopping.is_set():
            asyncio.get_running_loop().call_later(_PATIENCE, self._kill)
            self._when_stopping()
        self._stopping.set()
        self._send(signal.SIGTERM)

    def _kill(self) -> None:
        for process in self._running:
            log.error("worker %d does not end, and is killed", process.pid)
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for process in self._running:
            _tell(process, number)


@contextlib.contextmanager
def _held(number: signal.Signals) -> Iterator[None]:
    """Have a signal wait; a process started meanwhile inherits that.

    A handler or SIG_IGN of ours would not be there in its first moments, and the signal end it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def _tell(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a process that may just have gone.

    `Process.send_signal` raises there, or takes the exit status from whoever waits for it.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
