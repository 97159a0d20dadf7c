"""Coroutines that run at once, and go on in a task where they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest

from mailgate.eager import SPARE, Eager
from tests.core.callbacks import (
    LOOPS,
    called,
    for_ever,
    in_each_loop,
    nothing,
    others,
    ready,
    run_in,
    this_task,
    turns,
)

SHORT = 0.02  # seconds of a deadline that is meant to pass
LONG = 10  # seconds of one that is not

name: ContextVar[str] = ContextVar("name", default="unset")


# -- what does not wait --------------------------------------------------------------------------


@in_each_loop
async def test_what_does_not_wait_has_run_when_run_returns() -> None:
    eager, ran = await ready(), list[int]()

    async def job(number: int) -> None:
        ran.append(number)

    def run() -> list[int]:
        for number in range(3):
            eager.run(job(number))
        return [*ran]

    assert await called(run) == [0, 1, 2]


@in_each_loop
async def test_without_a_task_to_spare_it_runs_soon() -> None:
    eager, ran = Eager(0), list[str]()

    async def job() -> None:
        ran.append("ran")
        await asyncio.sleep(0)
        ran.append("went on")

    await called(eager.run, job())
    await turns()
    assert ran == ["ran", "went on"]


@in_each_loop
async def test_there_are_tasks_to_spare_from_the_start() -> None:
    eager, ran = Eager(), list[int]()

    async def job(number: int) -> None:
        ran.append(number)
        await for_ever()

    def run() -> list[int]:
        for number in range(SPARE):
            eager.run(job(number))
        return [*ran]

    assert await called(run) == [*range(SPARE)]


@in_each_loop
async def test_no_task_is_made_for_what_does_not_wait() -> None:
    eager, tasks = await ready(), set[asyncio.Task[Any]]()
    before = others()

    async def job() -> None:
        tasks.add(this_task())

    for _ in range(2 * SPARE):
        await called(eager.run, job())
    assert others() == before
    assert len(tasks) == 1
    assert this_task() not in tasks


@in_each_loop
async def test_after_a_first_step_no_task_is_current() -> None:
    eager = await ready(3)

    async def fails() -> None:
        raise SystemExit

    def run(job: Coroutine[Any, Any, None]) -> asyncio.Task[Any] | None:
        eager.run(job)
        return asyncio.current_task()

    for job in (nothing(), fails(), for_ever()):
        assert await called(run, job) is None


# -- what waits ----------------------------------------------------------------------------------


@in_each_loop
async def test_what_waits_goes_on_in_the_task_of_its_first_step() -> None:
    eager, tasks, got = await ready(), list[asyncio.Task[Any]](), list[object]()
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    value, failure = loop.create_future(), loop.create_future()

    async def job() -> None:
        tasks.append(this_task())
        got.append(await value)
        tasks.append(this_task())
        try:
            await failure
        except ValueError as error:
            got.append(str(error))
        await asyncio.sleep(0)
        tasks.append(this_task())
        got.append(await asyncio.to_thread(str, "thread"))
        over.set()

    await called(eager.run, job())
    assert (got, len(tasks)) == ([], 1)
    value.set_result("value")
    failure.set_exception(ValueError("failure"))
    async with asyncio.timeout(LONG):
        await over.wait()
    assert got == ["value", "failure", "thread"]
    assert len(set(tasks)) == 1


@in_each_loop
async def test_what_has_waited_makes_place_for_the_next() -> None:
    eager, ran = await ready(), list[int]()

    async def job(number: int) -> None:
        await asyncio.sleep(0)
        ran.append(number)

    for number in range(3 * SPARE):
        await called(eager.run, job(number))
        await turns()
    assert ran == [*range(3 * SPARE)]
    assert len(others()) == 1


@in_each_loop
async def test_many_wait_at_once() -> None:
    count, ended = 5 * SPARE, list[int]()
    eager, go_on = await ready(3), asyncio.Event()

    async def job(number: int) -> None:
        await go_on.wait()
        await asyncio.sleep(0)
        ended.append(number)

    def run() -> None:
        for number in range(count):
            eager.run(job(number))

    for _ in range(2):
        go_on.clear()
        await called(run)
        await turns()
        assert ended == []
        assert len(others()) >= count
        go_on.set()
        await turns(10)
        assert sorted(ended) == [*range(count)]
        assert len(others()) == SPARE
        ended.clear()


@in_each_loop
async def test_several_wait_for_the_same_future() -> None:
    """As policies do that ask for something once, whoever wants to know it."""
    eager, got = await ready(3), list[tuple[int, str]]()
    shared: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def job(number: int) -> None:
        got.append((number, await shared))

    def run() -> asyncio.Task[None]:
        for number in range(3):
            eager.run(job(number))
        return asyncio.get_running_loop().create_task(job(3))

    last = await called(run)
    await turns()
    shared.set_result("known")
    await last
    await turns()
    assert sorted(got) == [(number, "known") for number in range(4)]


@in_each_loop
async def test_a_future_may_be_done_before_the_task_goes_on() -> None:
    eager, got = await ready(), list[str]()
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def job() -> None:
        got.append(await future)

    def run() -> None:
        eager.run(job())
        future.set_result("done")

    await called(run)
    await turns()
    assert got == ["done"]


# -- as in any task ------------------------------------------------------------------------------


@in_each_loop
async def test_time_outs_and_tasks_work_from_the_first_step_on() -> None:
    eager, seen, over = await ready(), list[str](), asyncio.Event()

    async def gives(word: str) -> None:
        await asyncio.sleep(0)
        seen.append(word)

    async def job() -> None:
        async with asyncio.timeout(LONG):
            await nothing()
        with suppress(TimeoutError):
            async with asyncio.timeout(SHORT):
                await for_ever()
        seen.append("timeout")
        with suppress(TimeoutError):
            await asyncio.wait_for(for_ever(), SHORT)
        seen.append("wait_for")
        async with asyncio.TaskGroup() as group:
            group.create_task(gives("group"))
        await asyncio.gather(gives("gather"))
        assert this_task().cancelling() == 0
        over.set()

    await called(eager.run, job())
    async with asyncio.timeout(LONG):
        await over.wait()
    assert seen == ["timeout", "wait_for", "group", "gather"]


@in_each_loop
async def test_a_context_variable_that_was_set_survives_a_wait() -> None:
    eager, seen = await ready(2), list[tuple[str, str]]()

    async def job(word: str) -> None:
        name.set(word)
        for _ in range(2):
            await asyncio.sleep(0)
            seen.append((word, name.get()))

    def run() -> None:
        eager.run(job("one"))
        eager.run(job("two"))

    await called(run)
    await turns()
    assert sorted(seen) == [("one", "one")] * 2 + [("two", "two")] * 2


@in_each_loop
async def test_a_context_variable_is_set_for_nobody_else() -> None:
    """The next coroutine of the same task serves another client."""
    eager, seen = await ready(), list[str]()

    async def job(waits: int) -> None:
        seen.append(name.get())
        name.set("set")
        for _ in range(waits):
            await asyncio.sleep(0)
            seen.append(name.get())

    for waits in (0, 1, 0):
        await called(eager.run, job(waits))
        await turns()
    assert seen == ["unset", "unset", "set", "unset"]
    assert name.get() == "unset"


@in_each_loop
async def test_a_context_variable_can_be_set_back_after_a_wait() -> None:
    eager, seen = await ready(), list[str]()

    async def job() -> None:
        token = name.set("set")
        try:
            await asyncio.sleep(0)
        finally:
            name.reset(token)
        seen.append(name.get())

    await called(eager.run, job())
    await turns()
    assert seen == ["unset"]


# -- what fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), MemoryError()], ids=repr
)
def test_what_is_raised_is_logged_and_ends_nothing_else(
    loop: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    async def fails(waits: int) -> None:
        for _ in range(waits):
            await asyncio.sleep(0)
        raise error

    async def goes_on() -> None:
        await asyncio.sleep(0)
        ran.append("went on")

    async def whole() -> None:
        for eager, waits in ((Eager(0), 0), (await ready(), 0), (await ready(), 1)):
            await called(eager.run, fails(waits))
            await turns()
            await called(eager.run, goes_on())
            await turns()

    run_in(loop, whole)
    ours = [record for record in caplog.records if record.name == "mailgate.eager"]
    assert [record.message for record in ours] == ["a fault of mailgate itself"] * 3
    assert all(record.exc_info and record.exc_info[1] is error for record in ours)
    assert ran == ["went on"] * 3
