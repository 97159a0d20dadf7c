"""Threads for `def` handlers, of which some may never come back."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailgate.errors import ThreadsExhausted
from mailgate.threads import Threads
from tests.core.asking import in_loop


class Held:
    """A function that runs until it is let go."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.running = asyncio.Event()
        self.thread = threading.current_thread()
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> str:
        self.thread = threading.current_thread()
        self._loop.call_soon_threadsafe(self.running.set)
        self.release.wait()
        return "came back"


@contextmanager
def held() -> Iterator[Held]:
    function = Held()
    try:
        yield function
    finally:
        function.release.set()


async def given_up(threads: Threads, function: Held) -> None:
    """Run a function in a thread and stop waiting for it."""
    task = asyncio.create_task(threads.run(function))
    await function.running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def ends(thread: threading.Thread) -> bool:
    """Wait for a thread to end; False where it does not."""
    thread.join(20)
    return not thread.is_alive()


@in_loop
async def test_a_function_runs_elsewhere_and_its_result_comes_back() -> None:
    def double(number: int) -> tuple[int, str]:
        return number * 2, threading.current_thread().name

    assert await Threads(1).run(double, 21) == (42, "mailgate-handler")


@pytest.mark.parametrize(
    "error", [ValueError(), SystemExit(1), KeyboardInterrupt(), StopIteration(5), GeneratorExit()]
)
@in_loop
async def test_whatever_it_raises_comes_back(error: BaseException) -> None:
    def fail() -> None:
        raise error

    threads = Threads(1)
    try:
        await threads.run(fail)
    except BaseException as raised:
        found: BaseException | None = raised
        if isinstance(raised, RuntimeError):  # what Python makes of StopIteration in a coroutine
            found = raised.__cause__
        assert found is error
    assert await threads.run(lambda: "next") == "next"
    assert threads.lost == 0


@in_loop
async def test_it_runs_in_a_copy_of_the_context() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="unset")

    def read_and_set() -> str:
        before = name.get()
        name.set("by the thread")
        return before

    name.set("by the loop")
    assert await Threads(1).run(read_and_set) == "by the loop"
    assert name.get() == "by the loop"


@in_loop
async def test_threads_are_used_again() -> None:
    threads = Threads(2)
    pool = {await threads.run(threading.current_thread) for _ in range(20)}
    assert len(pool) <= 2


@in_loop
async def test_no_more_run_at_a_time_than_the_size() -> None:
    threads, lock = Threads(2), threading.Lock()
    at_once, most = 0, 0
    barrier = threading.Barrier(2)

    def run() -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        barrier.wait(20)  # so that two do run at a time
        with lock:
            at_once -= 1

    await asyncio.gather(*(threads.run(run) for _ in range(6)))
    assert most == 2


@in_loop
async def test_threads_are_daemons() -> None:
    """A process that wants to end waits for none of them."""
    assert await Threads(1).run(lambda: threading.current_thread().daemon)


@in_loop
async def test_a_thread_that_never_returns_is_replaced() -> None:
    threads = Threads(1)
    with held() as function:
        await given_up(threads, function)
        assert threads.lost == 1
        assert await threads.run(lambda: "another") == "another"
    assert ends(function.thread)  # its place was taken: else there would be more and more
    assert threads.lost == 0
    assert await threads.run(lambda: "still") == "still"


@in_loop
async def test_a_queued_job_that_is_given_up_never_runs() -> None:
    threads, ran = Threads(1), list[str]()
    with held() as function:
        first = asyncio.create_task(threads.run(function))
        await function.running.wait()
        queued = asyncio.create_task(threads.run(ran.append, "queued"))
        await asyncio.sleep(0)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        assert threads.lost == 0
        function.release.set()
        assert await first == "came back"
    assert await threads.run(lambda: "next") == "next"
    assert ran == []


def test_the_last_thread_is_missed(caplog: pytest.LogCaptureFixture) -> None:
    @in_loop
    async def story() -> None:
        threads = Threads(1, spare=1)
        with held() as first, held() as second:
            for function in (first, second):
                await given_up(threads, function)
            assert threads.lost == 2
            with pytest.raises(ThreadsExhausted, match="2 threads never came back; none is left"):
                await threads.run(lambda: None)
            first.release.set()
            assert ends(first.thread)
            assert await threads.run(lambda: "again") == "again"

    story()
    critical = [r for r in caplog.records if r.levelno == logging.CRITICAL]
    assert [r.getMessage() for r in critical] == [
        "every handler thread is lost: `def` handlers fail from now on"
    ]


@in_loop
async def test_beyond_the_spare_there_are_fewer() -> None:
    threads = Threads(2, spare=0)
    with held() as lost:
        await given_up(threads, lost)
        names = await asyncio.gather(*(threads.run(threading.get_ident) for _ in range(5)))
        assert len(set(names)) == 1


def test_a_loop_that_is_closed_is_not_told() -> None:
    """The process is ending; the thread must not print a traceback about it."""
    errors: list[object] = []
    left: list[Held] = []

    async def story() -> None:
        left.append(Held())
        await given_up(Threads(1), left[0])

    before, threading.excepthook = threading.excepthook, errors.append
    try:
        asyncio.run(story())
        left[0].release.set()
        assert ends(left[0].thread)
    finally:
        threading.excepthook = before
    assert errors == []


@in_loop
async def test_stop_ends_the_threads_that_have_nothing_to_do() -> None:
    threads, barrier = Threads(3), threading.Barrier(3)

    def meet() -> threading.Thread:
        barrier.wait(20)
        return threading.current_thread()

    pool = set(await asyncio.gather(*(threads.run(meet) for _ in range(3))))
    assert len(pool) == 3
    threads.stop()
    assert all(ends(thread) for thread in pool)
