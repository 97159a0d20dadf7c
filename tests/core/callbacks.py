"""Run coroutines from callbacks of the loop, as protocols do, in each kind of loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from mailgate.eager import Eager

Result = TypeVar("Result")

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
try:
    import uvloop
except ImportError:
    pass
else:
    LOOPS["uvloop"] = uvloop.new_event_loop


def run_in(loop: str, test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine function in a kind of loop, and see that what it leaves behind ends."""

    async def whole() -> None:
        await test()
        await end(others())

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(whole())


def in_each_loop(test: Callable[[], Awaitable[None]]) -> Callable[[str], None]:
    """Run a coroutine function as a test, once in each kind of loop."""

    @pytest.mark.parametrize("loop", LOOPS)
    def run(loop: str) -> None:
        run_in(loop, test)

    run.__doc__ = test.__doc__
    return run


async def end(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks as `asyncio.Runner.close` does, and see that they end."""
    for task in tasks:
        task.cancel()
    _, pending = await asyncio.wait(tasks, timeout=10) if tasks else (tasks, tasks)
    for task in pending:
        task.cancel()  # or the runner waits for ever
    assert not pending


async def called(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a callback of the loop, outside of every task."""
    done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def call() -> None:
        assert asyncio.current_task() is None
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)

    asyncio.get_running_loop().call_soon(call)
    return await done


async def turns(count: int = 5) -> None:
    """Let the loop go round some times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def nothing() -> None: ...


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def ready(spare: int = 1) -> Eager:
    """Return one that has tasks to spare."""
    eager = Eager(spare)
    await turns()
    return eager


def this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def others() -> set[asyncio.Task[Any]]:
    """Return every task but this one."""
    return asyncio.all_tasks() - {this_task()}
