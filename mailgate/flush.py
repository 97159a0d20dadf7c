"""Write what one turn of the event loop has to say at its end, one connection behind the other.

A write to a socket wakes up whoever reads there, and who has nothing else to read sleeps again
before the next write comes: with twenty clients of a proxy, waking them up took an eighth of its
processor time.  Where one turn's writes follow each other, most find their reader awake.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import final

log = logging.getLogger(__name__)


@final
class Flushes:
    """Flushes connections when everything that has arrived was looked at."""

    __slots__ = ("_due", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[Callable[[], None]] = []

    def soon(self, flush: Callable[[], None]) -> None:
        """Have ``flush`` called at the end of the turn.  What it raises is logged."""
        if not self._due:
            self._loop.call_soon(self._flush)
        self._due.append(flush)

    def _flush(self) -> None:
        due, self._due = self._due, []
        for flush in due:
            try:
                flush()
            except Exception as error:  # the others' connections go on
                log.error("a fault of mailgate itself", exc_info=error)


class Outgoing(asyncio.Protocol):
    """A connection that gathers what it has to say, and writes it at the end of the loop's turn.

    A protocol that inherits it sets ``_transport`` when it is connected, and ``_gone`` when the
    connection is lost.  It flushes before it does anything else to the transport.
    """

    __slots__ = ("_flushes", "_gone", "_out", "_transport", "_unsent")

    _transport: asyncio.Transport

    def __init__(self, flushes: Flushes) -> None:
        self._flushes = flushes
        self._out: list[bytes] = []
        self._unsent = 0  # octets in it
        self._gone = False

    def _say(self, octets: bytes) -> None:
        """Have octets written by the next flush, in one piece with what was said before."""
        self._out.append(octets)
        self._unsent += len(octets)

    def _flush_soon(self) -> None:
        """Flush at the end of the loop's turn."""
        if self._out:
            self._flushes.soon(self._flush)

    def _say_soon(self, octets: bytes) -> None:
        """Have octets written at the end of the loop's turn."""
        self._say(octets)
        self._flushes.soon(self._flush)

    def _flush(self) -> None:
        """Write what was said."""
        if self._out:
            octets = b"".join(self._out) if len(self._out) > 1 else self._out[0]
            self._out.clear()
            self._unsent = 0
            if not self._gone:
                self._transport.write(octets)
