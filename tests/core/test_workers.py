"""Worker processes: they share sockets, are started again, and end with the one that keeps them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mailgate.workers import LIFELINE, Workers

PATIENT = 60.0
"""Seconds after which a test fails: nothing here takes long, but the machine may be loaded."""

SAYS = """
import os, signal, socket, sys, time

def say(*words):
    line = " ".join(map(str, (*words, os.getpid())))
    os.write(int(sys.argv[1]), line.encode() + b"\\n")
"""
"""What a worker begins with.  It says a line, with its number, on a pipe that it inherits."""

SERVES = """
listening = socket.socket(fileno=int(sys.argv[2]))
while True:
    client, _ = listening.accept()
    client.sendall(b"%d\\n" % os.getpid())
    told = client.recv(10)  # nothing, when the client goes
    if told:
        os._exit(int(told))
"""
SLEEPS = "say('up'); time.sleep(600)"


class Log(logging.Handler):
    """What is logged about workers."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._more = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._more.set()

    async def until(self, text: str, times: int = 1) -> None:
        """Wait until a text was logged so many times."""
        while sum(text in line for line in self.lines) < times:
            self._more.clear()
            await self._more.wait()


@pytest.fixture
def log() -> Iterator[Log]:
    log, logger = Log(), logging.getLogger("mailgate.workers")
    logger.addHandler(log)
    yield log
    logger.removeHandler(log)


class Client:
    """A connection to a worker, which takes no other one as long as this one is open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def pid(self) -> int:
        """Return who answers."""
        return int(await self._reader.readline())

    async def go(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def end(self, status: int) -> None:
        """Have the worker end."""
        self._writer.write(b"%d" % status)
        assert await self._reader.read() == b""
        await self.go()


class Running:
    """Workers that run, seen from outside."""

    def __init__(
        self, task: asyncio.Task[int], lines: asyncio.StreamReader, listening: socket.socket
    ) -> None:
        self.task = task
        self._lines = lines
        self._listening = listening

    async def said(self) -> list[str]:
        """Return what a worker says next: its words, and its number."""
        return (await self._lines.readline()).decode().split()

    async def pids(self, word: str, number: int = 2) -> set[int]:
        """Return which workers say a word next, each once."""
        heard = [await self.said() for _ in range(number)]
        assert [words for words, _ in heard] == [word] * number
        return {int(pid) for _, pid in heard}

    async def ask(self) -> Client:
        """Connect to the socket that the workers share."""
        return Client(*await asyncio.open_connection(*self._listening.getsockname()))


Script = Callable[[Running], Awaitable[None]]


def keep(
    program: str,
    script: Script,
    number: int = 2,
    python: str = sys.executable,
    stopping: Callable[[], None] = lambda: None,
) -> int:
    """Keep workers that run a program, while a script runs; return the status at their end.

    SIGTERM ends them where the script does not.
    """

    async def kept() -> int:
        lines = asyncio.StreamReader()
        source, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), ours
        )
        argv = [python, "-c", SAYS + program, *map(str, descriptors)]
        task = asyncio.create_task(Workers(argv, descriptors, number, stopping).run())
        await asyncio.sleep(0)  # from here on it has the signals
        try:
            async with asyncio.timeout(PATIENT):
                await script(Running(task, lines, listening))
        finally:
            if not task.done():
                os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(PATIENT):
                await asyncio.wait({task})
            source.close()
        return task.result()

    read, write = os.pipe()
    with (
        os.fdopen(read, "rb") as ours,
        os.fdopen(write, "wb"),
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        descriptors = [write, listening.fileno()]
        return asyncio.run(kept())


def is_there(pid: int) -> bool:
    """Tell whether there is a process, or its zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def nothing(running: Running) -> None: ...


# -- work ----------------------------------------------------------------------------------------


def test_all_share_the_work() -> None:
    pids: set[int] = set()

    async def script(running: Running) -> None:
        clients = [await running.ask() for _ in range(3)]
        pids.update([await client.pid() for client in clients])
        for client in clients:
            await client.go()

    assert keep(SERVES, script, number=3) == 0
    assert len(pids) == 3
    assert os.getpid() not in pids
    assert [pid for pid in pids if is_there(pid)] == []


def test_nothing_is_inherited_but_what_is_shared() -> None:
    """The standard streams, the sockets, and the lifeline."""
    program = f"""
def is_open(fd):
    try:
        return bool(os.fstat(fd))
    except OSError:
        return False

say(*sys.argv[1:], os.environ["{LIFELINE}"], "of", *filter(is_open, range(256)))
time.sleep(600)
"""
    heard: list[str] = []

    async def script(running: Running) -> None:
        heard.extend(await running.said())

    stray = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(stray, True)
    try:
        assert keep(program, script, number=1) == 0
    finally:
        os.close(stray)
    at = heard.index("of")
    assert {"0", "1", "2", *heard[:at]} == set(heard[at + 1 : -1])


def test_there_is_nothing_to_read() -> None:
    """What is typed or piped is not divided among them."""
    heard: list[str] = []

    async def script(running: Running) -> None:
        heard.extend(await running.said())

    before = os.dup(0)
    read, write = os.pipe()
    try:
        os.write(write, b"typed\n")
        os.dup2(read, 0)
        keep("say('read', os.read(0, 10)); time.sleep(600)", script, number=1)
    finally:
        os.dup2(before, 0)
        for fd in (before, read, write):
            os.close(fd)
    assert heard[:2] == ["read", "b''"]


def test_our_own_environment_is_left_alone() -> None:
    assert keep(SLEEPS, nothing) == 0
    assert LIFELINE not in os.environ


# -- ends of workers -----------------------------------------------------------------------------


def test_a_killed_one_is_started_again(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr("mailgate.workers._SOON", 0.0)

    async def script(running: Running) -> None:
        clients = [await running.ask() for _ in range(2)]
        killed, stays = [await client.pid() for client in clients]
        os.kill(killed, signal.SIGKILL)
        await log.until(f"worker {killed} ended with signal 9; another start in 0 s")
        assert not is_there(killed)
        clients.append(await running.ask())
        assert await clients[2].pid() not in (killed, stays)
        for client in clients:
            await client.go()

    assert keep(SERVES, script) == 0


@pytest.mark.parametrize("status", [0, 1, 70])
def test_so_is_one_that_ends(status: int, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr("mailgate.workers._SOON", 0.0)

    async def script(running: Running) -> None:
        first = await running.ask()
        pid = await first.pid()
        await first.end(status)
        await log.until(f"worker {pid} ended with status {status}; another start in 0 s")
        second = await running.ask()
        assert await second.pid() != pid
        await second.go()

    assert keep(SERVES, script, number=1) == 0


@pytest.mark.parametrize("status", [2, 78])
def test_one_that_cannot_start_ends_all(status: int, log: Log) -> None:
    """Another start would say the same: usage, configuration."""
    pids: list[int] = []

    async def script(running: Running) -> None:
        clients = [await running.ask() for _ in range(2)]
        pids.extend([await client.pid() for client in clients])
        await clients[0].end(status)
        await asyncio.wait({running.task})
        await clients[1].go()

    assert keep(SERVES, script) == status
    assert log.lines == [f"worker {pids[0]} ended with status {status}"]
    assert [pid for pid in pids if is_there(pid)] == []


def test_one_that_cannot_start_again_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """A policy may be half written when another worker dies: what serves goes on, and it heals."""
    monkeypatch.setattr("mailgate.workers._FIRST", 0.01)
    monkeypatch.setattr("mailgate.workers._LONGEST", 0.01)
    broken = tmp_path / "broken"
    program = f"if os.path.exists({str(broken)!r}): sys.exit(78)\n"

    async def script(running: Running) -> None:
        first, second = await running.ask(), await running.ask()
        pids = {await first.pid(), await second.pid()}
        broken.touch()
        await first.end(1)
        await log.until("ended with status 78; another start in 0.01 s", times=2)
        broken.unlink()
        third = await running.ask()
        assert await third.pid() not in pids
        await second.go()
        await third.go()

    assert keep(program + SERVES, script) == 0


def test_those_that_end_soon_are_put_off_longer_each_time(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr("mailgate.workers._FIRST", 0.01)
    monkeypatch.setattr("mailgate.workers._LONGEST", 0.05)

    async def script(running: Running) -> None:
        await log.until("another start", times=5)

    assert keep("sys.exit(1)", script, number=1) == 0
    waits = [line.rpartition("; ")[2] for line in log.lines[:5]]
    assert waits == [f"another start in {wait} s" for wait in (0.01, 0.02, 0.04, 0.05, 0.05)]


def test_one_that_is_put_off_is_no_others_business(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr("mailgate.workers._FIRST", PATIENT)
    monkeypatch.setattr("mailgate.workers._LONGEST", PATIENT)

    async def script(running: Running) -> None:
        ends, serves = [await running.ask() for _ in range(2)]
        await ends.pid()
        pid = await serves.pid()
        await ends.end(1)
        await serves.go()
        await log.until("another start")
        again = await running.ask()
        assert await again.pid() == pid
        await again.go()

    assert keep(SERVES, script) == 0


def test_one_that_cannot_be_started_is_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """The interpreter may be missing for as long as it is being upgraded."""
    monkeypatch.setattr("mailgate.workers._FIRST", 0.01)
    monkeypatch.setattr("mailgate.workers._LONGEST", 0.01)
    python = tmp_path / "python"

    async def script(running: Running) -> None:
        await log.until("a worker cannot be started: [Errno 2] No such file", times=4)
        python.symlink_to(sys.executable)
        await running.pids("up")

    assert keep(SLEEPS, script, python=str(python)) == 0


# -- signals -------------------------------------------------------------------------------------

DRAINS = """
def drain(number, frame):
    say("drains")
    listening = socket.socket(fileno=int(sys.argv[2]))
    client, _ = listening.accept()  # a message under way ends
    say("drained")
    sys.exit(0)

signal.signal(signal.SIGTERM, drain)
say("up")
time.sleep(600)
"""
HEARS = """
signal.signal(signal.SIGHUP, lambda number, frame: say("reloads"))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
say("up")
while True:
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_them_and_their_end_is_waited_for(number: signal.Signals, log: Log) -> None:
    async def script(running: Running) -> None:
        pids = await running.pids("up")
        assert stopped == []
        os.kill(os.getpid(), number)
        assert await running.pids("drains") == pids
        assert stopped == ["nobody listens"]
        clients = [await running.ask()]
        (first,) = await running.pids("drained", 1)
        assert not running.task.done()
        clients.append(await running.ask())
        assert await running.pids("drained", 1) == pids - {first}
        await asyncio.wait({running.task})
        assert [pid for pid in pids if is_there(pid)] == []
        for client in clients:
            await client.go()

    stopped: list[str] = []
    assert keep(DRAINS, script, stopping=lambda: stopped.append("nobody listens")) == 0
    assert log.lines == [number.name]


def test_they_are_told_to_reload(log: Log) -> None:
    async def script(running: Running) -> None:
        pids = await running.pids("up")
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            assert await running.pids("reloads") == pids

    assert keep(HEARS, script) == 0
    assert log.lines == ["SIGTERM"]


def test_one_that_has_not_begun_reloads_later(log: Log) -> None:
    """It has no handler yet: the kernel would end it, were the signal not held."""

    async def script(running: Running) -> None:
        (pid,) = await running.pids("begins", 1)
        os.kill(pid, signal.SIGHUP)
        client = await running.ask()
        assert await running.pids("reloads", 1) == {pid}
        await client.go()

    begins = "say('begins'); socket.socket(fileno=int(sys.argv[2])).accept()\n"
    assert keep(begins + HEARS, script, number=1) == 0
    assert log.lines == ["SIGTERM"]


def test_one_that_has_not_begun_is_ended() -> None:
    """It has no handler yet: the kernel ends it."""
    assert keep("time.sleep(600)", nothing) == 0


def test_one_that_is_just_being_started_is_ended(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    start = asyncio.create_subprocess_exec

    async def interrupted(*argv: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*argv, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        await log.until("SIGTERM")
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", interrupted)

    async def script(running: Running) -> None:
        await asyncio.wait({running.task})

    assert keep("time.sleep(600)", script) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_that_has_just_gone_keeps_no_signal_from_the_others(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_subprocess_exec
    started: list[asyncio.subprocess.Process] = []

    async def watched(*argv: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*argv, **options)
        started.append(process)
        wait = process.wait

        async def and_then() -> int:
            status = await wait()
            if len(gone) == 1:
                gone.append(process.pid)
                os.kill(os.getpid(), number)
                await told.wait()
            return status

        process.wait = and_then  # type: ignore[method-assign]
        return process

    gone: list[int] = []
    told = asyncio.Event()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)

    async def script(running: Running) -> None:
        pids = await running.pids("up", 3)
        gone.append(0)
        os.kill(started[1].pid, signal.SIGKILL)
        word = "reloads" if number == signal.SIGHUP else "drains"
        assert await running.pids(word, 2) == pids - {started[1].pid}
        told.set()

    program = HEARS.replace('say("up")', 'signal.signal(signal.SIGTERM, drain); say("up")')
    drain = "def drain(number, frame): say('drains'); sys.exit(0)\n"
    assert keep(drain + program, script, number=3) == 0


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr("mailgate.workers._PATIENCE", 0.1)
    pids: set[int] = set()

    async def script(running: Running) -> None:
        pids.update(await running.pids("up"))

    assert keep("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPS, script) == 0
    said = {f"worker {pid} does not end, and is killed" for pid in pids}
    assert (log.lines[0], {*log.lines[1:]}) == ("SIGTERM", said)
    assert [pid for pid in pids if is_there(pid)] == []


def test_signals_come_while_one_is_put_off(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr("mailgate.workers._FIRST", 10 * PATIENT)
    monkeypatch.setattr("mailgate.workers._LONGEST", 10 * PATIENT)

    async def script(running: Running) -> None:
        await log.until("another start")
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait({running.task})

    assert keep("sys.exit(1)", script, number=1) == 0


# -- the lifeline --------------------------------------------------------------------------------


def test_they_know_when_the_one_that_keeps_them_is_gone() -> None:
    """However it went: it cannot say so itself when it is killed."""
    keeper = """
import asyncio, sys
from mailgate.workers import Workers

asyncio.run(Workers([sys.executable, "-c", *sys.argv[1:]], [int(sys.argv[2])], 2).run())
"""
    waits = f"""
signal.alarm({PATIENT:.0f})
say("up")
assert os.read(int(os.environ["{LIFELINE}"]), 1) == b""
say("alone")
"""
    read, write = os.pipe()
    with os.fdopen(read) as lines, os.fdopen(write, "w") as theirs:
        argv = [sys.executable, "-c", keeper, SAYS + waits, str(write)]
        with subprocess.Popen(argv, pass_fds=[write]) as process:
            theirs.close()
            pids = {lines.readline().split()[1] for _ in range(2)}
            process.kill()
            assert sorted(lines) == sorted(f"alone {pid}\n" for pid in pids)
