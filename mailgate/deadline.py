"""Await a handler under a deadline, with a timer only where it really waits."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Coroutine, Generator
from typing import Any, final

from mailgate import fork
from mailgate.errors import DeadlineExceeded

GRACE = 5.0
"""Seconds that a cancelled handler has to clean up, out of everyone's way."""

_lingering: set[asyncio.Task[Any]] = set()


@final
class Wait:
    """A suspended handler: ends by its deadline, or because its client is gone."""

    __slots__ = ("_task", "ended", "gone")

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self.ended = False
        self.gone = False

    def expire(self) -> None:
        """Cancel the handler: its time is over."""
        self._cancel()

    def abandon(self) -> None:
        """Cancel the handler: nobody waits for its answer any more."""
        self.gone = True
        self._cancel()

    def over(self) -> None:
        """Say that the handler has come back: there is nothing to cancel any more."""
        self._task = None

    def _cancel(self) -> None:
        if not self.ended and self._task is not None:
            self.ended = True
            self._task.cancel()


async def resume(
    coroutine: Coroutine[Any, Any, Any], pending: Any, wait: Wait, seconds: float
) -> Any:
    """Go on with a coroutine that has yielded ``pending``, for at most ``seconds``.

    It stays in the current task, so time-outs and cancellation work in it as anywhere.  Raises
    DeadlineExceeded at the deadline and CancelledError when the wait is abandoned, at once in
    both cases: a handler that goes on regardless is moved to a task of its own.
    """
    loop = asyncio.get_running_loop()
    timer = loop.call_later(max(0.0, seconds), wait.expire)
    value: Any = None
    failure: BaseException | None = None
    try:
        value = await _finish(coroutine, pending, wait)
    except GeneratorExit:
        raise
    except BaseException as error:
        if not wait.ended:
            raise
        failure = None if isinstance(error, asyncio.CancelledError) else error
    finally:
        timer.cancel()
        wait.over()
    if not wait.ended:
        return value
    _uncancel()  # whatever it answered or raised when it was cancelled is too late
    if wait.gone:
        raise asyncio.CancelledError
    raise DeadlineExceeded(f"no answer within {seconds:.3g} s") from failure


async def stay() -> None:
    """Go on in a task that was cancelled, whoever did it: a handler may cancel its own task."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)  # where a cancellation that is still pending arrives


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


@types.coroutine
def _finish(
    coroutine: Coroutine[Any, Any, Any], pending: Any, wait: Wait
) -> Generator[Any, Any, Any]:
    """Forward a coroutine's waits to the task, and the task's wake-ups to the coroutine."""
    while True:
        try:
            sent = yield pending
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            try:
                pending = coroutine.throw(error)
            except StopIteration as done:
                return done.value
            if wait.ended:
                _linger(coroutine, pending)
                raise
        else:
            try:
                pending = coroutine.send(sent)
            except StopIteration as done:
                return done.value
        fork.leave_if_child()


def _linger(coroutine: Coroutine[Any, Any, Any], pending: Any) -> None:
    """Let a cancelled coroutine clean up in a task of its own; cancel it once more later."""

    async def rest() -> None:
        await _finish(coroutine, pending, wait)

    task = asyncio.get_running_loop().create_task(rest())
    wait = Wait()
    wait._task = task
    _lingering.add(task)
    timer = asyncio.get_running_loop().call_later(GRACE, task.cancel)

    def forget(task: asyncio.Task[Any]) -> None:
        timer.cancel()
        _lingering.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved; it has no one to go to

    task.add_done_callback(forget)
