"""A coroutine that waits stays in its task, until its time is over."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from mailgate import deadline
from mailgate.deadline import Wait, resume
from mailgate.errors import DeadlineExceeded

SHORT = 0.05
Factory = Callable[[], asyncio.AbstractEventLoop]


def factories() -> list[Factory]:
    """Return the loops that mailgate may run on."""
    try:
        import uvloop
    except ImportError:
        return [asyncio.new_event_loop]
    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=factories(), ids=lambda factory: factory.__module__)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine on each kind of loop."""

    def on_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return on_loop


Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def within(
    seconds: float, coroutine: Coroutine[Any, Any, Any], wait: Wait | None = None
) -> Any:
    """Begin a coroutine that will suspend, and go on with it under a deadline."""
    pending = coroutine.send(None)
    return await resume(coroutine, pending, wait or Wait(), seconds)


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def answer(value: object, turns: int = 3) -> object:
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    return value


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


def test_an_answer_in_time(run: Run) -> None:
    assert run(within(60, answer("yes"))) == "yes"


def test_a_failure_in_time(run: Run) -> None:
    with pytest.raises(KeyError):
        run(within(60, fail(KeyError())))


def test_no_answer_in_time(run: Run) -> None:
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.05 s"):
        run(within(SHORT, for_ever()))


def test_no_time_left(run: Run) -> None:
    with pytest.raises(DeadlineExceeded):
        run(within(-1, for_ever()))


def test_the_task_is_as_before(run: Run) -> None:
    async def story() -> int:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await within(0, for_ever())
        await asyncio.sleep(0)
        assert await within(60, answer("yes")) == "yes"
        return task.cancelling()

    assert run(story()) == 0


def test_it_stays_in_its_task(run: Run) -> None:
    async def task_of() -> asyncio.Task[Any] | None:
        await asyncio.sleep(0)
        return asyncio.current_task()

    async def story() -> bool:
        return await within(60, task_of()) is asyncio.current_task()

    assert run(story())


@pytest.mark.parametrize("answers", [True, False])
def test_an_answer_to_the_cancellation_is_too_late(run: Run, answers: bool) -> None:
    async def swallows() -> str:
        with suppress(asyncio.CancelledError):
            await for_ever()
        if answers:
            return "too late"
        raise KeyError

    with pytest.raises(DeadlineExceeded) as caught:
        run(within(SHORT, swallows()))
    assert isinstance(caught.value.__cause__, KeyError) is not answers


def test_who_is_gone_cancels(run: Run) -> None:
    async def story(coroutine: Coroutine[Any, Any, Any]) -> None:
        wait: list[Wait] = []

        async def asks() -> None:
            wait.append(Wait())
            await within(60, coroutine, wait[0])

        task = asyncio.create_task(asks())
        await asyncio.sleep(0)
        wait[0].abandon()
        wait[0].abandon()
        wait[0].expire()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert wait[0].gone

    async def swallows() -> str:
        with suppress(asyncio.CancelledError):
            await for_ever()
        return "too late"

    async def fails() -> None:
        try:
            await for_ever()
        finally:
            raise KeyError

    run(story(for_ever()))
    run(story(swallows()))
    run(story(fails()))


def test_a_cancellation_from_outside_is_passed_on(run: Run) -> None:
    async def story() -> None:
        task = asyncio.create_task(within(60, for_ever()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(story())


def test_who_goes_on_is_moved_away_and_cancelled_once_more(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "GRACE", SHORT)
    seen: list[str] = []

    async def stubborn(ended: asyncio.Event) -> None:
        for _ in range(2):
            try:
                await for_ever()
            except asyncio.CancelledError:
                seen.append("cancelled")
        ended.set()

    async def story() -> None:
        ended = asyncio.Event()
        with pytest.raises(DeadlineExceeded):
            await within(0, stubborn(ended))
        assert seen == ["cancelled"]
        await ended.wait()

    run(story())
    assert seen == ["cancelled", "cancelled"]


def test_a_failure_while_cleaning_up_is_nobodys(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        cleaning = asyncio.Event()

        async def cleans_up_badly() -> None:
            try:
                await for_ever()
            finally:
                await cleaning.wait()
                raise KeyError

        with pytest.raises(DeadlineExceeded):
            await within(0, cleans_up_badly())
        cleaning.set()
        for _ in range(3):
            await asyncio.sleep(0)

    run(story())
    gc.collect()
    assert [r for r in caplog.records if "never retrieved" in r.getMessage()] == []


def test_a_loop_that_ends_closes_what_waits(run: Run) -> None:
    seen: list[str] = []

    async def waits() -> None:
        try:
            await for_ever()
        finally:
            seen.append("closed")

    async def story() -> None:
        outer = within(60, waits())
        outer.send(None)
        outer.close()

    run(story())
    assert seen == ["closed"]
