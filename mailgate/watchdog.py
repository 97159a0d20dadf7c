"""Says which handler holds up everyone: an ``async def`` that blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from typing import final

log = logging.getLogger(__name__)

LAG = 1.0
"""Seconds without a turn of the loop after which its stack is logged, once a blockage."""


@final
class Watchdog:
    """A thread that watches the loop's heartbeat."""

    def __init__(self, lag: float = LAG) -> None:
        self._lag = lag
        self._beat = time.monotonic()
        self._stop = threading.Event()
        self._loop_thread = threading.get_ident()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch the running loop."""
        self._tick(asyncio.get_running_loop())
        threading.Thread(target=self._watch, name="mailgate-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat = time.monotonic()
        self._timer = loop.call_later(self._lag / 4, self._tick, loop)

    def _watch(self) -> None:
        warned = 0.0
        while not self._stop.wait(self._lag / 2):
            beat = self._beat
            if time.monotonic() - beat < self._lag or beat == warned:
                continue
            warned = beat
            frame = sys._current_frames().get(self._loop_thread)
            stack = "".join(traceback.format_stack(frame)[-6:]) if frame else ""
            log.error(
                "the event loop has been blocked for %.1f s; write `def` for what blocks\n%s",
                time.monotonic() - beat,
                stack,
            )
