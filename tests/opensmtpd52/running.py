"""Filters of ours behind the smtpd of these tests: in this process, or started as smtpd does it.

async with serving([policy]) as running:  # a chain has one list for each filter
    client = Client(running.smtpd)

async with program(Path("policy.py")) as running:
    assert await running.end() == [0]
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, final
from weakref import WeakKeyDictionary

from mailgate.chain import Defaults, Loaded
from mailgate.engine import Engine
from mailgate.limits import Limits
from mailgate.policy import Policy
from mailgate_opensmtpd52.facts import CAPABILITIES
from mailgate_opensmtpd52.filter import Filter
from tests.opensmtpd52.client import Client
from tests.opensmtpd52.frames import open_descriptors
from tests.opensmtpd52.smtpd import PATIENCE, Smtpd

CONFIG = '[opensmtpd52]\nuser = "root"\n'
"""The tests may run as root, and on a host without the user _smtpd."""

_KEPT: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Filter]] = WeakKeyDictionary()


def keep(filter: Filter) -> Filter:
    """Keep a filter up to the end of its loop: the tasks that it has to spare end only there."""
    _KEPT.setdefault(asyncio.get_running_loop(), []).append(filter)
    return filter


@final
class Errors(logging.Handler):
    """Keeps what mailgate logs as an error, but for what policies do wrong."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "mailgate.question":
            self.messages.append(logging.Formatter("%(name)s: %(message)s").format(record))

    def __enter__(self) -> Errors:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger().removeHandler(self)


class Running:
    """An smtpd with its filters, each of which has one connection to it."""

    def __init__(self, smtpd: Smtpd, errors: Callable[[], list[str]]) -> None:
        self.smtpd = smtpd
        self.errors = errors
        self.delivered: list[bytes] = []  # of the last message, without smtpd's own field

    async def served(self, raw: bytes = b"Subject: x\r\n\r\nbody\r\n", **client: str) -> bytes:
        """Send a clean message, and return what is delivered of it."""
        session = Client(self.smtpd, **client)
        replies = [await session.connect(), await session.greet(), await session.mail()]
        replies += [await session.rcpt(), await session.message(raw), await session.quit()]
        assert [reply[:1] for reply in replies] == ["2"] * 6, replies
        (delivered,) = session.delivered
        return delivered

    def check(self) -> None:
        """See that neither side has anything to say against the other."""
        assert self.smtpd.dead == ""
        assert self.smtpd.faults == []
        assert self.errors() == []


async def begun(running: Running, sender: str = "ann@client.example") -> Client:
    """Return a client in the middle of a transaction."""
    client = Client(running.smtpd)
    await client.connect()
    await client.greet()
    assert await client.mail(sender) == "250 2.0.0: Ok"
    return client


@asynccontextmanager
async def serving(
    *chain: Sequence[Policy | Loaded],
    version: int = 52,
    defaults: Defaults | None = None,
    limits: Limits | None = None,
    seed: int = 0,
) -> AsyncIterator[Running]:
    """Serve filters in this process; in the end each has heard the end of file, and ended."""
    engines = [
        Engine(
            [p if isinstance(p, Loaded) else Loaded(p, p.name or "test") for p in policies],
            CAPABILITIES,
            defaults=defaults,
            limits=limits,
        )
        for policies in chain
    ]
    pairs = [socket.socketpair() for _ in engines]
    tasks = []
    with Errors() as errors:
        for engine, (_, theirs) in zip(engines, pairs, strict=True):
            theirs.setblocking(False)
            tasks.append(asyncio.create_task(keep(Filter(engine, theirs)).run()))
        smtpd = Smtpd(*(ours for ours, _ in pairs), version=version, seed=seed)
        try:
            await smtpd.start()
            yield Running(smtpd, lambda: errors.messages)
        finally:
            smtpd.stop()
            for task in tasks:
                async with asyncio.timeout(PATIENCE):
                    await task
            for engine in engines:
                engine.threads.stop()


@final
class Program(Running):
    """Filters that are processes of their own, started as smtpd does it."""

    def __init__(
        self,
        smtpd: Smtpd,
        processes: Sequence[subprocess.Popen[bytes]],
        logs: Sequence[IO[bytes]],
    ) -> None:
        super().__init__(smtpd, self._logged)
        self.processes = processes
        self.logs = logs

    async def end(self) -> list[int]:
        """End as smtpd does, and return the exit statuses."""
        self.smtpd.stop()
        return [await asyncio.to_thread(p.wait, PATIENCE) for p in self.processes]

    def stderr(self, number: int = 0) -> str:
        """Return what a filter has written to stderr so far."""
        self.logs[number].seek(0)
        return self.logs[number].read().decode("utf-8", "replace")

    def _logged(self) -> list[str]:
        lines = [line for n in range(len(self.logs)) for line in self.stderr(n).splitlines()]
        return [line for line in lines if line.startswith(("error:", "critical:", "Traceback"))]


@asynccontextmanager
async def program(
    *policies: Path, version: int = 52, config: str = "", seed: int = 0
) -> AsyncIterator[Program]:
    """Run ``mailgate run -p opensmtpd52`` once for each policy file.

    What lives in the end is killed.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "mailgate.toml"
        file.write_text(CONFIG + config)
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in policies]
        pairs = [socket.socketpair() for _ in policies]
        processes = []
        for policy, (_, theirs), log in zip(policies, pairs, logs, strict=True):
            processes.append(start(theirs, policy, file, log))
            stack.callback(kill, processes[-1])
        smtpd = Smtpd(*(ours for ours, _ in pairs), version=version, seed=seed)
        stack.callback(smtpd.stop)
        await smtpd.start()
        yield Program(smtpd, processes, logs)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, or for as long as it might take."""
    for _ in range(round(PATIENCE / 0.01)):
        if holds():
            break
        await asyncio.sleep(0.01)


async def settled(wanted: set[int]) -> None:
    """Wait until no descriptors are open but these."""
    await until(lambda: open_descriptors() <= wanted)
    assert open_descriptors() == wanted


def start(
    theirs: socket.socket, policy: Path, config: Path, stderr: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a filter as smtpd does: a socket that does not block as stdin."""
    theirs.setblocking(False)
    with theirs:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "mailgate", "run", "-p", "opensmtpd52"),
                *("--config", str(config), str(policy)),
            ],
            stdin=theirs.fileno(),
            stdout=stderr,
            stderr=stderr,
            env=os.environ | {"PYTHONWARNINGS": "always"},
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a filter, and what its policies have left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
