"""Coroutines that are cancelled, and loops that end under them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest

from mailgate.eager import SPARE, Eager
from tests.core.callbacks import (
    LOOPS,
    called,
    end,
    for_ever,
    in_each_loop,
    nothing,
    others,
    ready,
    run_in,
    this_task,
    turns,
)

name: ContextVar[str] = ContextVar("name", default="unset")


# -- what is cancelled ---------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("waits", [0, 1])
def test_one_that_cancels_its_own_task_is_cancelled(
    loop: str, waits: int, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    async def cancels() -> None:
        for _ in range(waits):
            await asyncio.sleep(0)
        this_task().cancel()
        try:
            await for_ever()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def goes_on() -> None:
        await asyncio.sleep(0)
        seen.append(f"went on, {this_task().cancelling()}")

    async def whole() -> None:
        eager = await ready()
        await called(eager.run, cancels())
        await turns()
        await called(eager.run, goes_on())
        await turns()

    run_in(loop, whole)
    assert seen == ["cancelled", "went on, 0"]
    assert caplog.records == []


@in_each_loop
async def test_one_that_cancels_its_own_task_and_ends_harms_no_other() -> None:
    eager, seen = await ready(), list[str]()

    async def cancels() -> None:
        this_task().cancel()

    async def goes_on() -> None:
        seen.append(f"begins, {this_task().cancelling()}")
        await asyncio.sleep(0)
        seen.append("went on")

    def run() -> None:
        eager.run(cancels())
        eager.run(goes_on())

    await called(run)
    await turns()
    assert seen == ["begins, 0", "went on"]


@in_each_loop
async def test_one_that_cancels_its_own_task_as_its_last_act_harms_no_other() -> None:
    eager, seen = await ready(), list[str]()

    async def goes_on() -> None:
        await asyncio.sleep(0)
        seen.append("went on")

    async def cancels() -> None:
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(eager.run, goes_on())
        this_task().cancel()

    await called(eager.run, cancels())
    await turns(10)
    assert seen == ["went on"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("later", [False, True])
def test_a_cancellation_before_the_task_has_gone_on_arrives_once(loop: str, later: bool) -> None:
    """A client may be gone in the very turn in which its handler began to wait."""
    seen: list[str] = []

    async def job() -> None:
        task = this_task()
        try:
            await for_ever()
        except asyncio.CancelledError:
            seen.append("cancelled")
            task.uncancel()
        await asyncio.sleep(0)
        seen.append(f"cleaned up, {task.cancelling()}")

    async def whole() -> None:
        eager = await ready()
        (task,) = others()

        def run() -> None:
            if later:
                asyncio.get_running_loop().call_soon(task.cancel)
                eager.run(job())
            else:
                eager.run(job())
                task.cancel()

        await called(run)
        await turns()

    run_in(loop, whole)
    assert seen == ["cancelled", "cleaned up, 0"]


@in_each_loop
async def test_one_that_was_cancelled_may_still_wait() -> None:
    eager, seen, go_on = await ready(), list[str](), asyncio.Event()

    async def job() -> None:
        with suppress(asyncio.CancelledError):
            await for_ever()
        await go_on.wait()
        seen.append("went on")

    await called(eager.run, job())
    (task,) = others()
    await turns()
    task.cancel()
    await turns()
    assert seen == []
    go_on.set()
    await turns()
    assert seen == ["went on"]


@in_each_loop
async def test_one_that_has_not_begun_cannot_be_cancelled() -> None:
    """A policy may cancel every task there is, and a connection would wait for its job for ever."""
    eager, ran = Eager(0), list[int]()

    async def job(number: int) -> None:
        ran.append(number)
        await asyncio.sleep(0)
        ran.append(number)

    def run() -> None:
        for number in range(3):
            eager.run(job(number))
        for _ in range(2):
            for task in asyncio.all_tasks():
                if task is not whole:
                    task.cancel()

    whole = this_task()
    await called(run)
    await turns()
    assert sorted(ran) == [0, 0, 1, 1, 2, 2]
    await called(eager.run, job(3))
    await turns()
    assert ran[-2:] == [3, 3]


@in_each_loop
async def test_one_that_has_just_begun_can_be_cancelled() -> None:
    eager, seen = Eager(0), list[str]()

    async def job() -> None:
        seen.append("began")
        try:
            await for_ever()
        finally:
            seen.append("cancelled")

    await called(eager.run, job())
    await turns()
    for task in others():
        task.cancel()
    await turns()
    assert seen == ["began", "cancelled"]


# -- the end of the loop -------------------------------------------------------------------------


@in_each_loop
async def test_tasks_to_spare_end_with_the_loop() -> None:
    await ready(2 * SPARE)
    assert len(others()) == SPARE
    await end(others())


@pytest.mark.parametrize("loop", LOOPS)
def test_those_that_have_not_begun_end_with_the_loop(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    async def job() -> None:
        ran.append("ran")

    async def make() -> Eager:
        return Eager(0)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(make()).run(job())
    assert ran == []
    assert caplog.records == []


@in_each_loop
async def test_one_that_waits_ends_with_the_loop() -> None:
    eager, seen = await ready(), list[str]()

    async def job() -> None:
        try:
            await for_ever()
        finally:
            seen.append("cancelled")

    await called(eager.run, job())
    await turns()
    await end(others())
    assert seen == ["cancelled"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("job", [nothing, for_ever])
def test_the_end_of_a_loop_leaves_no_trace(
    loop: str, job: Callable[[], Coroutine[Any, Any, None]], caplog: pytest.LogCaptureFixture
) -> None:
    async def whole() -> None:
        eager = await ready(3)
        await called(eager.run, job())
        await turns()

    run_in(loop, whole)
    gc.collect()  # "Task was destroyed but it is pending!" would be logged here
    assert caplog.records == []


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_is_closed_under_one_that_waits_closes_it(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a process is left because a handler does not end."""
    seen: list[str] = []

    async def job() -> None:
        token = name.set("set")
        try:
            await for_ever()
        finally:
            name.reset(token)
            seen.append("closed")

    async def whole() -> None:
        eager = await ready()
        await called(eager.run, job())
        await turns()

    made = LOOPS[loop]()
    made.run_until_complete(whole())
    made.close()
    del made
    gc.collect()  # a coroutine that goes on after it was closed would be a warning here
    assert seen == ["closed"]
    assert [each for each in caplog.records if each.name.startswith("mailgate")] == []
