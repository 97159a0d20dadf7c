"""The watchdog says which line holds up the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest

from mailgate.watchdog import Watchdog
from tests.core.asking import in_loop

LAG = 0.05


class Warned(logging.Handler):
    """Keeps what the watchdog says, and says when it has."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.happened = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.happened.set()


@pytest.fixture
def warned() -> Iterator[Warned]:
    handler = Warned()
    log = logging.getLogger("mailgate.watchdog")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


def block_the_loop(warned: Warned) -> None:
    """Hold the loop until the watchdog says so, and for some of its turns more."""
    warned.happened.wait(20)
    threading.Event().wait(4 * LAG)


@in_loop
async def blocked(warned: Warned, blockages: int = 1) -> None:
    watchdog = Watchdog(LAG)
    watchdog.start()
    for _ in range(blockages):
        warned.happened.clear()
        block_the_loop(warned)
        await asyncio.sleep(LAG)  # a turn of the loop, and a beat
    watchdog.stop()


def test_a_blocked_loop_is_told_with_its_stack(warned: Warned) -> None:
    blocked(warned)
    (line,) = warned.lines
    assert line.startswith("the event loop has been blocked for ")
    assert "write `def` for what blocks" in line
    assert "in block_the_loop" in line


def test_each_blockage_is_told_once(warned: Warned) -> None:
    blocked(warned, blockages=2)
    assert len(warned.lines) == 2


def test_after_stop_it_is_quiet(warned: Warned) -> None:
    threads = set(threading.enumerate())

    @in_loop
    async def story() -> None:
        watchdog = Watchdog(LAG)
        watchdog.start()
        (thread,) = set(threading.enumerate()) - threads
        watchdog.stop()
        thread.join(20)
        assert not thread.is_alive()

    story()
    assert warned.lines == []
