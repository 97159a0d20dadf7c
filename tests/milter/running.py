"""Run the adapter in this process, with an MTA of these tests at the other end of a socket.

async with serving(policy) as running:
    mta = Postfix(running.open)
    ...
assert running.errors == []
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast, final

import uvloop

from mailgate.chain import Defaults, Loaded
from mailgate.engine import Engine
from mailgate.limits import Limits
from mailgate.policy import Policy
from mailgate_milter.connection import Connection
from mailgate_milter.negotiate import CAPABILITIES
from mailgate_milter.server import Server

PATIENCE = 20.0  # seconds until a missing answer is a failure: a loaded machine is slow

T = TypeVar("T")

LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def run(main: Callable[[], Awaitable[T]], loop: str = "asyncio") -> T:
    """Run a coroutine function in a loop of its own."""

    async def whole() -> T:
        return await main()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(whole())


@final
class Socket(asyncio.Protocol):
    """The MTA's end of a connection."""

    def __init__(self) -> None:
        self.ended = False  # the filter closed it
        self._said = bytearray()
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._said += data
        self._changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self._changed.set()

    def send(self, data: bytes) -> None:
        if not self.ended:
            self.transport.write(data)

    async def receive(self) -> bytes:
        """Return what has come, none where the connection has ended; wait for one of them."""
        async with asyncio.timeout(PATIENCE):
            while not self._said and not self.ended:
                self._changed.clear()
                await self._changed.wait()
        return self._take()

    async def early(self) -> bytes:
        """Return what has come by now; the filter had the time to say something."""
        for _ in range(3):
            await asyncio.sleep(0)
        return self._take()

    async def until_ended(self) -> bytes:
        """Wait until the filter closes the connection; return what it said meanwhile."""
        async with asyncio.timeout(PATIENCE):
            while not self.ended:
                self._changed.clear()
                await self._changed.wait()
        return self._take()

    def close(self) -> None:
        self.transport.close()

    def _take(self) -> bytes:
        said = bytes(self._said)
        self._said.clear()
        return said


class Errors(logging.Handler):
    """Keeps what mailgate logs as an error, but for what handlers raise."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.addFilter(lambda record: record.name != "mailgate.question")
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(logging.Formatter("%(name)s: %(message)s").format(record))


@final
class Running:
    """A server, and what went wrong inside."""

    def __init__(self, server: Server, errors: list[str]) -> None:
        self.server = server
        self.errors = errors
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._before: set[asyncio.Task[Any]] = set()

    @property
    def port(self) -> int:
        """The TCP port on loopback."""
        port: int = self._listening.getsockname()[1]
        return port

    @property
    def connection(self) -> Connection:
        """The connection, where there is one only."""
        (ours,) = self.server.connections
        assert isinstance(ours, Connection)
        return ours

    async def serve(self) -> None:
        """Listen, and watch the connections."""
        listeners = [(self._listening, self.server.connection)]
        serving = asyncio.create_task(self.server.serve(listeners))
        for _ in range(3):
            await asyncio.sleep(0)
        self._before = asyncio.all_tasks()
        self._serving = serving

    async def stop(self) -> None:
        """End serving."""
        await self.server.drain()
        await self._serving

    async def open_tcp(self) -> Socket:
        """Connect by TCP."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(Socket, "127.0.0.1", self.port)
        return protocol

    async def open(self) -> Socket:
        """Connect as an MTA does."""
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(self.server.connection, ours)
        _, protocol = await loop.connect_accepted_socket(Socket, theirs)
        return protocol

    async def settle(self) -> None:
        """Wait until every connection is gone, and all that was done for them."""
        for _ in range(int(PATIENCE / 0.005)):
            if not self.left():
                return
            await asyncio.sleep(0.005)
        assert self.left() == []

    def left(self) -> list[object]:
        """Return what is still there: connections, sessions of the engine, tasks at work."""
        sessions = self.server.engine.sessions
        return [
            *self.server.connections,
            *([f"{sessions} sessions"] if sessions else ()),
            *self._tasks(),
        ]

    def _tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks at work; spare ones of `mailgate.eager` wait for the next."""
        new = asyncio.all_tasks() - self._before
        return [task for task in new if "_Carrier" not in repr(task)]


@asynccontextmanager
async def serving(
    *policies: Policy | Loaded,
    defaults: Defaults | None = None,
    limits: Limits | None = None,
    patience: float = float("inf"),
    idle_timeout: float = 7210.0,
) -> AsyncIterator[Running]:
    """Serve policies; at the end every connection has to be gone."""
    loaded = [p if isinstance(p, Loaded) else Loaded(p, p.name or "test") for p in policies]
    engine = Engine(loaded, CAPABILITIES, defaults=defaults, limits=limits)
    errors = Errors()
    logging.getLogger().addHandler(errors)
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: errors.messages.append(str(context))
    )
    server = Server(engine, patience=patience, idle_timeout=idle_timeout)
    running = Running(server, errors.messages)
    await running.serve()
    try:
        yield running
        await running.settle()
    finally:
        for connection in list(server.connections):  # of a test that has failed
            connection.abort("the test is over")
        await running.stop()
        logging.getLogger().removeHandler(errors)
        engine.threads.stop()
