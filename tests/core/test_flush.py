"""Writes that wait for the end of the loop's turn."""

from __future__ import annotations

import asyncio
import logging

import pytest

from mailgate.flush import Flushes
from tests.core.callbacks import called, in_each_loop, run_in, turns


def flushes() -> Flushes:
    return Flushes(asyncio.get_running_loop())


@in_each_loop
async def test_they_come_in_order_behind_what_is_at_hand() -> None:
    late, seen = flushes(), list[str]()
    loop = asyncio.get_running_loop()

    def connection(number: int) -> None:
        seen.append(f"{number} reads")
        late.soon(lambda: seen.append(f"{number} writes"))

    for number in range(3):
        loop.call_soon(connection, number)
    await turns()
    assert seen == [f"{number} {does}" for does in ("reads", "writes") for number in range(3)]


@in_each_loop
async def test_each_is_called_once() -> None:
    late, seen = flushes(), list[str]()
    await called(late.soon, lambda: seen.append("first"))
    await turns()
    await called(late.soon, lambda: seen.append("second"))
    await turns()
    assert seen == ["first", "second"]


@in_each_loop
async def test_what_is_asked_for_meanwhile_comes_in_the_next_turn() -> None:
    late, seen = flushes(), list[str]()
    late.soon(lambda: late.soon(lambda: seen.append("meanwhile")))
    late.soon(lambda: seen.append("before"))
    await turns()
    assert seen == ["before", "meanwhile"]


@pytest.mark.parametrize("error", [RuntimeError("closed"), OSError(9, "closed")])
def test_one_that_fails_leaves_the_others_alone(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    seen = list[str]()

    def fail() -> None:
        raise error

    async def test() -> None:
        late = flushes()
        late.soon(fail)
        late.soon(lambda: seen.append("the next"))
        await turns()
        late.soon(lambda: seen.append("and later"))
        await turns()

    run_in("asyncio", test)
    assert seen == ["the next", "and later"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
