"""Run coroutines without a task of their own: the first step at once, the rest in a spare task.

Most handlers end in their first step.  That step is made here and now, in the name of a task
that is at hand, so `asyncio.timeout` and `asyncio.current_task` work in it as anywhere; only a
coroutine that really waits goes on in that task.  It is what `asyncio.eager_task_factory` does
from Python 3.12 on, without a new task each time.

A policy may cancel every task there is.  What has not begun by then is ours, and begins.
"""

from __future__ import annotations

import asyncio
import logging
import types
from asyncio import CancelledError, Future, Task, get_running_loop
from asyncio.tasks import _enter_task, _leave_task  # for task implementations: asyncio-extending
from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, TypeAlias, cast, final

log = logging.getLogger(__name__)

SPARE = 16
"""Tasks that are kept for the next coroutine that waits."""

Job: TypeAlias = Coroutine[Any, Any, None]


@final
class ShieldedStart(Task[None]):
    """A task that cannot be cancelled before its first step, which would be its last.

    It can while the loop stands still: at the end of the loop nothing may begin.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel what has begun; False where nothing is cancelled."""
        begun = getcoroutinestate(cast("Job", self.get_coro())) != CORO_CREATED
        return (begun or not self.get_loop().is_running()) and super().cancel(msg)


@final
class Eager:
    """Runs coroutines whose exceptions nobody awaits: they are logged."""

    __slots__ = ("_loop", "_spare", "_tasks")

    def __init__(self, spare: int = SPARE) -> None:
        """Make tasks to spare; they are ready in the loop's next turn."""
        self._loop = get_running_loop()
        self._spare: list[_Carrier] = []
        self._tasks: set[Task[None]] = set()  # the loop itself holds them weakly
        for _ in range(spare):
            self._keep(_Carrier(self._spare).start(self._loop))

    def run(self, job: Job) -> None:
        """Run a coroutine up to its first wait; what is left of it goes on by itself.

        Called from callbacks of the loop only, never in a task.  Where no spare task is left
        the coroutine gets one of its own, and begins in the loop's next turn.
        """
        carrier = self._spare.pop() if self._spare else None
        if carrier is None or carrier.woken.done():  # somebody may have cancelled it
            task = self._keep(ShieldedStart(_logged(job), loop=self._loop))
            task.add_done_callback(lambda _: job.close())  # it may end without having begun
            if not self._spare:
                self._keep(_Carrier(self._spare).start(self._loop))
            return
        context = copy_context()  # its own, as a task's
        _enter_task(self._loop, carrier.task)
        try:
            pending = context.run(job.send, None)
        except StopIteration:
            self._spare.append(carrier)
        except BaseException as error:
            self._spare.append(carrier)
            _log(error)
        else:
            carrier.take_over(job, context, pending)
        finally:
            _leave_task(self._loop, carrier.task)

    def _keep(self, task: Task[None]) -> Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@final
class _Carrier:
    """A task that waits for a coroutine to go on with, again and again.

    It is in ``spare`` only while it waits: a task that has not begun yet would lose its
    coroutine when it is cancelled.
    """

    __slots__ = ("_job", "_spare", "task", "woken")

    task: Task[None]
    woken: Future[None]

    def __init__(self, spare: list[_Carrier]) -> None:
        self._spare = spare
        self._job: tuple[Job, Context, Any] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> Task[None]:
        self.task = loop.create_task(self._carry(loop))
        return self.task

    def take_over(self, job: Job, context: Context, pending: Any) -> None:
        """Go on with a coroutine that has yielded ``pending``."""
        _set_blocking(pending, False)
        self._job = job, context, pending
        if not self.woken.done():
            self.woken.set_result(None)

    async def _carry(self, loop: asyncio.AbstractEventLoop) -> None:
        while len(self._spare) < SPARE:
            self.woken = loop.create_future()
            self._spare.append(self)
            cancelled: CancelledError | None = None
            try:
                await self.woken
            except CancelledError as error:
                cancelled = error  # meant for the coroutine, if there is one by now
            if self._job is None:
                if self in self._spare:
                    self._spare.remove(self)
                return
            job, self._job = self._job, None
            try:
                disturbed = await _rest(*job, cancelled)
            except GeneratorExit:
                raise
            except BaseException as error:
                disturbed = True
                _log(error)
            if disturbed or self.task.cancelling():
                # The next coroutine must not be ended by what was meant for this one; and at the
                # end of the loop there must be no next one.
                return


def _set_blocking(pending: Any, blocking: bool) -> None:
    """Say of a future that its yield was seen, as a task does at once, or that it is to be.

    Another coroutine may wait for the same one before the spare task wakes up.
    """
    if getattr(pending, "_asyncio_future_blocking", None) is not None:
        pending._asyncio_future_blocking = blocking


@types.coroutine
def _rest(
    job: Job, context: Context, pending: Any, error: BaseException | None
) -> Generator[Any, Any, bool]:
    """Forward a coroutine's waits to the task, and the task's wake-ups to the coroutine.

    Tell whether it was cancelled meanwhile, whatever it made of that.
    """
    disturbed = error is not None
    try:
        if error is not None:
            pending = context.run(job.throw, error)
        else:
            _set_blocking(pending, True)
        while True:
            try:
                sent = yield pending
            except GeneratorExit:
                context.run(job.close)
                raise
            except BaseException as raised:
                disturbed = disturbed or isinstance(raised, CancelledError)
                pending = context.run(job.throw, raised)
            else:
                pending = context.run(job.send, sent)
    except StopIteration:
        return disturbed


async def _logged(job: Job) -> None:
    try:
        await job
    except GeneratorExit:
        raise
    except BaseException as error:
        _log(error)


def _log(error: BaseException) -> None:
    if not isinstance(error, CancelledError):
        log.error("a fault of mailgate itself", exc_info=error)
