"""Connections are taken, watched and drained: a protocol of lines on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast, final

import pytest

from mailgate import server
from mailgate.limits import Limits
from mailgate.server import Listener, Server
from tests.core.asking import engine
from tests.core.callbacks import LOOPS, others, run_in, turns

PATIENCE = 20.0  # seconds until a missing answer is a failure: a loaded machine is slow
TICK = 0.02
FLOOD = 16 * 1024 * 1024  # octets, more than a socket's buffers hold


@final
class Line(asyncio.Protocol):
    """Busy from ``begin`` to ``end``, overdue after ``hang``, and says how it was ended."""

    def __init__(self, host: Server, ended: list[str], greeting: bytes = b"hello\n") -> None:
        self._host = host
        self._ended = ended
        self._greeting = greeting
        self._hangs = self._keeps = False
        self.idle = True
        self.last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._greeting)
        self._host.welcome(self)

    def data_received(self, data: bytes) -> None:
        self.last = self._host.loop.time()
        self.idle = b"begin" not in data
        self._hangs = b"hang" in data
        self._keeps = b"keep" in data
        self.transport.write(bytes(FLOOD) if b"flood" in data else data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._keeps:
            self._host.forget(self)

    def overdue(self, now: float) -> str | None:
        return "it hangs" if self._hangs and now >= self.last else None

    def close(self, reason: str) -> None:
        self._ended.append(f"closed: {reason}")
        self.transport.write(b"bye\n")
        self.transport.close()

    def abort(self, reason: str) -> None:
        self._ended.append(f"aborted: {reason}")
        self.transport.abort()


@final
class Peer:
    """The other end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def says(self, line: bytes) -> None:
        """Send a line; the answer is the same one, after the greeting."""
        self._writer.write(line)
        async with asyncio.timeout(PATIENCE):
            await self._reader.readuntil(line)

    async def floods(self) -> None:
        """Ask for more than the socket holds, and read the beginning of it only."""
        self._writer.write(b"flood\n")
        async with asyncio.timeout(PATIENCE):
            await self._reader.readuntil(b"\0")

    async def until_ended(self) -> bytes:
        """Return what is said until the other end closes; a reset is an end, too."""
        said = bytearray()
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                while piece := await self._reader.read(65536):
                    said += piece
        return bytes(said)

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@final
class Running:
    """A server, its peers, and how their connections were ended."""

    def __init__(self, host: Server, listening: socket.socket) -> None:
        self.host = host
        self.ended: list[str] = []
        self.serving: asyncio.Task[None]
        self._listening = listening
        self._address = listening.getsockname()
        self._peers: list[Peer] = []

    def listener(self, listening: socket.socket, greeting: bytes) -> Listener:
        return listening, partial(Line, self.host, self.ended, greeting)

    async def serve(self, *more: Listener) -> None:
        first = self.listener(self._listening, b"hello\n")
        self.serving = asyncio.create_task(self.host.serve([first, *more]))
        await turns()

    async def connect(self, address: str | tuple[str, int] | None = None) -> Peer:
        """Connect to the first listener, or to the TCP address of another one."""
        address = address or self._address
        if isinstance(address, str):
            streams = await asyncio.open_unix_connection(address)
        else:
            streams = await asyncio.open_connection(*address)
        self._peers.append(Peer(*streams))
        return self._peers[-1]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110 - what happens next is the server's
                await asyncio.sleep(0.01)

    def drain(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.host.drain())

    async def until_stopped(self, *draining: asyncio.Task[None]) -> None:
        """Wait for the end of drains, and of serving."""
        # No time-out that cancels: neither can be cancelled.
        done, pending = await asyncio.wait({self.serving, *draining}, timeout=PATIENCE)
        assert not pending
        for task in done:
            task.result()

    async def stop(self) -> None:
        for peer in self._peers:
            await peer.close()
        await self.until_stopped(self.drain())


@asynccontextmanager
async def running(
    listening: socket.socket, drain_timeout: float = PATIENCE / 2, sessions: int = 100
) -> AsyncIterator[Running]:
    host = Server(engine(limits=Limits(sessions=sessions)), tick=TICK, drain_timeout=drain_timeout)
    whole = Running(host, listening)
    try:
        yield whole
    finally:
        await whole.stop()
        host.engine.threads.stop()


def in_each_loop(
    test: Callable[[socket.socket], Awaitable[None]],
) -> Callable[[str, socket.socket], None]:
    """Run a coroutine function as a test, in each kind of loop and on each kind of socket."""

    @pytest.mark.parametrize("loop", LOOPS)
    def run(loop: str, listening: socket.socket) -> None:
        run_in(loop, lambda: test(listening))

    run.__doc__ = test.__doc__
    return run


@pytest.fixture(params=["tcp", "unix"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    if request.param == "tcp":
        made = socket.create_server(("127.0.0.1", 0))
    else:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(tmp_path / "socket"))
        made.listen()
    made.setblocking(False)
    with made:
        yield made


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER", 0.05)
    monkeypatch.setattr(server, "CLOSING", 0.2)


async def cancel_all() -> None:
    """Cancel every other task, again and again."""
    for _ in range(3):
        for task in others():
            task.cancel()
        await asyncio.sleep(0.01)


# -- serving -------------------------------------------------------------------------------------


@in_each_loop
async def test_each_listener_makes_connections_of_its_own(listening: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second:
        async with running(listening) as whole:
            await whole.serve(whole.listener(second, b"second\n"))
            await (await whole.connect()).says(b"hello\n")
            await (await whole.connect(second.getsockname())).says(b"second\n")
            assert len(whole.host.connections) == 2


@in_each_loop
async def test_one_that_is_lost_is_forgotten(listening: socket.socket) -> None:
    async with running(listening) as whole:
        await whole.serve()
        peer = await whole.connect()
        await peer.says(b"begin\n")
        await peer.close()
        await whole.until(lambda: not whole.host.connections)
        assert whole.ended == []


@in_each_loop
async def test_small_answers_are_not_held_back_on_tcp(listening: socket.socket) -> None:
    async with running(listening) as whole:
        await whole.serve()
        await (await whole.connect()).says(b"hello\n")
        (ours,) = whole.host.connections
        assert isinstance(ours, Line)
        if listening.family != socket.AF_UNIX:
            sock = ours.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@in_each_loop
async def test_those_far_beyond_the_limit_are_ended_at_once(listening: socket.socket) -> None:
    async with running(listening, sessions=1) as whole:
        await whole.serve()
        first, second = await whole.connect(), await whole.connect()
        await first.says(b"hello\n")
        await second.says(b"hello\n")
        assert whole.ended == []
        third = await whole.connect()
        await third.until_ended()
        assert whole.ended == ["aborted: more than twice limits.sessions"]
        await first.says(b"still there\n")


# -- watching ------------------------------------------------------------------------------------


@in_each_loop
async def test_an_overdue_one_is_aborted_with_the_reason(listening: socket.socket) -> None:
    async with running(listening) as whole:
        await whole.serve()
        well, overdue = await whole.connect(), await whole.connect()
        await well.says(b"hello\n")
        await overdue.says(b"hang\n")
        await overdue.until_ended()
        assert whole.ended == ["aborted: it hangs"]
        await well.says(b"still there\n")


# -- the end -------------------------------------------------------------------------------------


@in_each_loop
async def test_a_busy_one_may_finish_and_idle_ones_are_ended(listening: socket.socket) -> None:
    async with running(listening) as whole:
        await whole.serve()
        idle, busy = await whole.connect(), await whole.connect()
        await idle.says(b"hello\n")
        await busy.says(b"begin\n")
        draining = whole.drain()
        assert (await idle.until_ended()).endswith(b"bye\n")
        await busy.says(b"end\n")
        assert await busy.until_ended() == b"bye\n"
        await whole.until_stopped(draining)
        assert whole.ended == ["closed: stopping"] * 2


@in_each_loop
async def test_who_has_just_spoken_may_end_it_by_itself(listening: socket.socket) -> None:
    async with running(listening) as whole:
        await whole.serve()
        peer = await whole.connect()
        await peer.says(b"hello\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server, "LINGER", 2 * PATIENCE)
            draining = whole.drain()
            await asyncio.sleep(0.2)
            await peer.close()
            await whole.until_stopped(draining)
        assert whole.ended == []


@in_each_loop
async def test_nobody_is_let_in_at_the_end(listening: socket.socket) -> None:
    async with running(listening) as whole:
        await whole.serve()
        busy = await whole.connect()
        await busy.says(b"begin\n")
        draining = whole.drain()
        await asyncio.sleep(0.02)
        with pytest.raises(ConnectionRefusedError):
            await whole.connect()
        await busy.says(b"end\n")
        await whole.until_stopped(draining)


@in_each_loop
async def test_what_does_not_end_in_time_is_aborted(listening: socket.socket) -> None:
    async with running(listening, drain_timeout=0.2) as whole:
        await whole.serve()
        busy = await whole.connect()
        await busy.says(b"begin\n")
        await whole.until_stopped(whole.drain())
        await busy.until_ended()
        assert whole.ended == ["aborted: stopping"]


@in_each_loop
async def test_an_idle_one_is_told_once_though_it_does_not_read(listening: socket.socket) -> None:
    async with running(listening, drain_timeout=0.5) as whole:
        await whole.serve()
        await (await whole.connect()).floods()
        await whole.until_stopped(whole.drain())
        assert whole.ended == ["closed: stopping", "aborted: stopping"]


@in_each_loop
async def test_work_that_outlives_its_connection_does_not_hold_up_the_end(
    listening: socket.socket,
) -> None:
    async with running(listening, drain_timeout=0.1) as whole:
        await whole.serve()
        await (await whole.connect()).says(b"keep begin\n")
        await whole.until_stopped(whole.drain())
        assert len(whole.host.connections) == 1


@in_each_loop
async def test_drain_twice_is_harmless(listening: socket.socket) -> None:
    async with running(listening) as whole:
        await whole.serve()
        busy, idle = await whole.connect(), await whole.connect()
        await busy.says(b"begin\n")
        await idle.floods()
        draining = [whole.drain() for _ in range(2)]
        await whole.until(lambda: bool(whole.ended))
        await asyncio.sleep(0.2)
        assert whole.ended == ["closed: stopping"]
        await idle.until_ended()
        await busy.says(b"end\n")
        await whole.until_stopped(*draining)
        await whole.until_stopped(whole.drain())
        assert whole.ended == ["closed: stopping"] * 2


@in_each_loop
async def test_a_drain_before_anybody_came_ends_it(listening: socket.socket) -> None:
    async with running(listening) as whole:
        await whole.serve()
        await whole.until_stopped(whole.drain())


@in_each_loop
async def test_a_policy_that_cancels_every_task_does_not_end_it(listening: socket.socket) -> None:
    async with running(listening) as whole:
        await whole.serve()
        busy = await whole.connect()
        await busy.says(b"begin\n")
        await cancel_all()
        await busy.says(b"still there\n")
        await busy.says(b"begin\n")
        draining = whole.drain()
        await asyncio.sleep(0.1)
        await cancel_all()
        assert whole.ended == []
        await busy.says(b"end\n")
        assert await busy.until_ended() == b"bye\n"
        await whole.until_stopped(draining)
