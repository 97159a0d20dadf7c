"""Run the adapter in this process, between an input made up by a test and an oracle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from mailgate.chain import Defaults, Loaded
from mailgate.engine import Engine
from mailgate.limits import Limits
from mailgate.policy import Policy
from mailgate_opensmtpd.filter import Filter
from mailgate_opensmtpd.registration import CAPABILITIES
from mailgate_opensmtpd.stream import LongLines
from tests.oracles import OpensmtpdOracle

PATIENCE = 20.0  # seconds until a missing answer is a failure: a loaded machine is slow


@dataclass
class Outcome:
    """What a filter wrote, what the oracle says of it, and what went wrong inside."""

    output: bytes
    faults: list[str]
    answers: int
    errors: list[str] = field(default_factory=list)

    def lines(self) -> list[bytes]:
        """Return the output without the registration."""
        lines = self.output.split(b"\n")[:-1]
        return [line for line in lines if not line.startswith(b"register|")]


class Pause(Enum):
    """Stands between pieces of an input where smtpd waits for the answers to all before it."""

    SETTLED = auto()


class Feed:
    """The two byte streams of a filter: what smtpd writes, and what it reads."""

    def __init__(self, chunks: Iterable[bytes | Pause], kept: int) -> None:
        self.oracle = OpensmtpdOracle()
        self.output = bytearray()
        self._chunks = iter(chunks)
        self._kept = kept
        self._answered = asyncio.Event()

    async def read(self) -> bytes:
        """Return the next piece, or nothing at the end, when all is answered."""
        for chunk in self._chunks:
            if isinstance(chunk, bytes):
                self.oracle.asked(chunk)
                await asyncio.sleep(0)  # as a read would: whoever waits may go on
                return chunk
            await self._settled()
        await self._settled()
        return b""

    async def _settled(self) -> None:
        """Wait until every question has its answer, or patience ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self.oracle.owed:
                    self._answered.clear()
                    await self._answered.wait()

    def write(self, data: bytes) -> None:
        self.oracle.wrote(data)
        self.output += data[: max(0, self._kept - len(self.output))]
        self._answered.set()


class Errors(logging.Handler):
    """Keeps what mailgate logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(logging.Formatter("%(name)s: %(message)s").format(record))


def converse(
    chunks: Iterable[bytes | Pause],
    *policies: Policy,
    long_lines: LongLines = "reject",
    limits: Limits | None = None,
    defaults: Defaults | None = None,
    kept: int = 1 << 24,
) -> Outcome:
    """Feed a filter with these policies piece by piece, to the end of its input."""
    feed = Feed(chunks, kept)
    loaded = [Loaded(policy, policy.name or "test") for policy in policies]

    async def run() -> None:
        engine = Engine(loaded, CAPABILITIES, defaults=defaults, limits=limits)
        await Filter(engine, long_lines, feed.read, feed.write).run()

    errors = Errors()
    logging.getLogger().addHandler(errors)
    try:
        asyncio.run(run())
    finally:
        logging.getLogger().removeHandler(errors)
    return Outcome(bytes(feed.output), feed.oracle.ended(), feed.oracle.answers, errors.messages)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Cut an input."""
    for at in range(0, len(data), size):
        yield data[at : at + size]


def in_step(data: bytes) -> Iterator[bytes | Pause]:
    """Cut an input into lines, each written only when all before it is answered."""
    for line in data.split(b"\n")[:-1]:
        yield line + b"\n"
        yield Pause.SETTLED
