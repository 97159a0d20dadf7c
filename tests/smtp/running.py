"""Run the adapter in this process, between a client and a mail server of these tests.

async with proxied(policy) as (running, mta):
    client = await running.greeted()
    ...
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from mailgate.chain import Defaults, Loaded
from mailgate.engine import Engine
from mailgate.limits import Limits
from mailgate.policy import Policy
from mailgate_smtp.adapter import SmtpAdapter
from mailgate_smtp.options import SmtpOptions
from tests.milter.running import PATIENCE, Errors
from tests.smtp.client import Client
from tests.smtp.gate import gate
from tests.smtp.mta import Mta

DESCRIPTORS = Path("/proc/self/fd")


def descriptors() -> int:
    """Return how many descriptors this process has open; 0 where the system does not tell.

    uvloop has one of /dev/null in reserve.
    """
    if not DESCRIPTORS.exists():
        return 0
    names = [os.path.join(DESCRIPTORS, name) for name in os.listdir(DESCRIPTORS)]
    return sum(os.path.lexists(name) and os.readlink(name) != os.devnull for name in names)


@final
class Running:
    """An adapter that serves, and what went wrong inside."""

    def __init__(
        self, options: SmtpOptions, adapter: SmtpAdapter, engine: Engine, errors: list[str]
    ) -> None:
        self.adapter = adapter
        self.engine = engine
        self.errors = errors
        self.clients: list[Client] = []
        self._lmtp = options.listeners[0].kind == "lmtp"

    async def serve(self) -> None:
        """Listen, and serve."""
        self.adapter.claim()
        with socket.socket(fileno=os.dup(next(iter(self.adapter.descriptors())))) as listening:
            self._address = listening.getsockname()
        self._before = asyncio.all_tasks()
        self._serving = asyncio.create_task(self.adapter.serve(self.engine))
        for _ in range(3):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """End serving."""
        await self.adapter.drain()
        await self._serving

    @property
    def port(self) -> int:
        """The TCP port on loopback."""
        port: int = self._address[1]
        return port

    async def open(self, tls: ssl.SSLContext | None = None) -> Client:
        """Connect as a client does, encrypted from the beginning or not."""
        loop = asyncio.get_running_loop()
        client = Client(lmtp=self._lmtp)
        if isinstance(self._address, str):
            await loop.create_unix_connection(lambda: client, self._address)
        else:
            name = None if tls is None else "mx.example.org"
            await loop.create_connection(
                lambda: client, "127.0.0.1", self.port, ssl=tls, server_hostname=name
            )
        self.clients.append(client)
        return client

    async def greeted(self, *commands: bytes) -> Client:
        """Open a session, and say some commands that are taken."""
        client = await self.open()
        for reply in await client.begin(*commands):
            assert reply.code in (250, 354)
        return client

    def hang_up(self) -> None:
        """Close the connections of all clients."""
        for client in self.clients:
            client.transport.close()

    async def settle(self) -> None:
        """Wait until every client's session is over, and all that was done for it."""
        for _ in range(int(PATIENCE / 0.005)):
            if not self.left():
                return
            await asyncio.sleep(0.005)
        assert self.left() == []

    def left(self) -> list[object]:
        """Return what is still there of clients: sessions of the engine, tasks at work.

        Spare tasks of `mailgate.eager` wait for the next, and servers have tasks of their own.
        """
        sessions = self.engine.sessions
        new = asyncio.all_tasks() - self._before - {self._serving}
        ours = [task for task in new if not any(name in repr(task) for name in _NOT_OURS)]
        return [*([f"{sessions} sessions"] if sessions else ()), *ours]


_NOT_OURS = ("_Carrier", "Connection._serve", "naming_recipients")


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect what is logged as an error, and what the loop complains of."""
    errors = Errors()
    logging.getLogger().addHandler(errors)
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: errors.messages.append(str(context))
    )
    try:
        yield errors.messages
    finally:
        logging.getLogger().removeHandler(errors)


@asynccontextmanager
async def serving(
    *policies: Policy | Loaded,
    upstream: Mta | str | tuple[str, ...],
    options: SmtpOptions | None = None,
    defaults: Defaults | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Running]:
    """Serve policies before a mail server; at the end every session has to be over."""
    url = upstream.url if isinstance(upstream, Mta) else upstream
    options = replace(options or SmtpOptions(listen="127.0.0.1:0"), upstream=url)
    loaded = [p if isinstance(p, Loaded) else Loaded(p, p.name or "test") for p in policies]
    adapter = SmtpAdapter(options)
    engine = Engine(loaded, adapter.capabilities, defaults=defaults, limits=limits)
    with watched() as errors:
        running = Running(options, adapter, engine, errors)
        await running.serve()
        try:
            yield running
            running.hang_up()
            await running.settle()
        finally:
            running.hang_up()  # where the test has failed
            await running.stop()
            engine.threads.stop()


@asynccontextmanager
async def proxied(
    *policies: Policy,
    mta: Mta | None = None,
    listen: str = "127.0.0.1:0",
    defaults: Defaults | None = None,
    core: Limits | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Running, Mta]]:
    """Serve policies, or `gate`, before a server that takes everything, or another one.

    ``options`` are of `SmtpOptions`, ``core`` are limits of the engine.  At the end nobody must
    have a complaint: the proxy, the server, the clients that have not hung up in the middle.
    """
    async with mta or Mta() as upstream:
        chosen = SmtpOptions(listen, upstream=upstream.url, **options)
        async with serving(
            *(policies or [gate(whole=chosen.body == "hold")]),
            upstream=upstream,
            options=chosen,
            defaults=defaults,
            limits=core,
        ) as running:
            yield running, upstream
    assert running.errors == []
    assert upstream.faults == []
    for client in running.clients:
        if not client.cut:
            client.check()
