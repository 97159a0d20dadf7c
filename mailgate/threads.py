"""Worker threads for ``def`` handlers, of which some may never come back."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from mailgate import fork
from mailgate.errors import ThreadsExhausted

log = logging.getLogger(__name__)

SPARE = 64
"""Threads that are replaced while they hang; after that there are fewer and fewer."""


@dataclass(eq=False, slots=True)
class _Job:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    started: bool = False
    given_up: bool = False

    def run(self) -> None:
        """Run the function and hand its result, or whatever it raised, to the loop."""
        value: Any = None
        error: BaseException | None = None
        try:
            value = self.context.run(self.function, *self.arguments)
        except BaseException as raised:
            error = raised
        fork.leave_if_child()
        try:
            self.loop.call_soon_threadsafe(self._deliver, value, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _deliver(self, value: Any, error: BaseException | None) -> None:
        if not self.future.done():
            # A pair, since a future takes neither StopIteration nor a bare BaseException well.
            self.future.set_result((value, error))


@final
class Threads:
    """A bounded pool of daemon threads: a process that wants to end waits for none of them."""

    def __init__(self, size: int, spare: int = SPARE) -> None:
        self._size = size
        self._spare = spare
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._alive = 0
        self._free = 0  # threads waiting for a job, less the jobs waiting for them
        self._lost = 0

    @property
    def lost(self) -> int:
        """How many threads are held by handlers that were given up."""
        return self._lost

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a thread, in a copy of this context, and return what it returns.

        A cancelled call is given up: it cannot be ended, its thread counts as lost until it
        comes back, and another one takes its place.  Raises what the function raises, and
        ThreadsExhausted where no thread is left.
        """
        loop = asyncio.get_running_loop()
        job = _Job(loop, loop.create_future(), function, arguments)
        self._submit(job)
        try:
            value, error = await job.future
        except asyncio.CancelledError:
            self._give_up(job)
            raise
        if error is not None:
            raise error
        return value

    def stop(self) -> None:
        """Let the threads end that have nothing to do."""
        with self._lock:
            for _ in range(self._alive):
                self._jobs.put(None)

    def _submit(self, job: _Job) -> None:
        with self._lock:
            if self._lost >= self._spare + self._size:
                raise ThreadsExhausted(f"{self._lost} threads never came back; none is left")
            self._free -= 1
            self._grow()
        self._jobs.put(job)

    def _grow(self) -> None:
        """Start a thread if a job waits for one.  The lock is held."""
        size = self._size - max(0, self._lost - self._spare)
        if self._free < 0 and self._alive < size:
            self._alive += 1
            self._free += 1
            thread = threading.Thread(target=self._work, name="mailgate-handler", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has none to give now; the next job tries again
                self._alive -= 1
                self._free -= 1
                log.error("a handler thread cannot be started")

    def _give_up(self, job: _Job) -> None:
        with self._lock:
            job.given_up = True
            if not job.started:
                return
            self._alive -= 1
            self._lost += 1
            if self._lost == self._spare + self._size:
                log.critical("every handler thread is lost: `def` handlers fail from now on")
            self._grow()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                skip = job.given_up
                job.started = True
            if not skip:
                job.run()
            with self._lock:
                if job.given_up and not skip:
                    self._lost -= 1
                    return  # its place is taken
                self._free += 1
