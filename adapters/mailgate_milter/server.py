"""All connections of MTAs: taken, watched, drained."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import final

from mailgate.chain import Chain
from mailgate.deadline import stay
from mailgate.eager import Eager
from mailgate.engine import Engine
from mailgate_milter.connection import Connection
from mailgate_milter.negotiate import Agreements, Plan

NEGOTIATION = 30.0
"""Seconds that a peer has for its OPTNEG: what connects and is silent is no MTA."""

STALLED = 30.0
"""Seconds after which a peer that does not read its answers is given up."""

LINGER = 1.0
"""Seconds that an MTA has to end a session after its last message, when we are to stop."""

DRAIN = 30.0
"""Seconds that messages under way have when we are to stop."""

CLOSING = 5.0
"""Seconds that `done` and `close` handlers of those that had to be cut off have then."""


@final
class Server:
    """Serves policies to the MTAs that connect."""

    def __init__(self, engine: Engine, *, patience: float, idle_timeout: float) -> None:
        """Serve ``engine``; times are in seconds.

        ``patience`` is how long an MTA waits for the answer to a command, ``idle_timeout`` how
        long it may be silent.
        """
        self.engine = engine
        self.patience = patience
        self.loop = asyncio.get_running_loop()
        self.eager = Eager()
        self.connections: set[Connection] = set()
        self._idle_timeout = idle_timeout
        self._agreements = Agreements(engine.chain)
        self._listeners: list[asyncio.Server] = []
        self._stopped = asyncio.Event()

    def connection(self) -> Connection:
        """Make the protocol of a new connection, as asyncio's servers want it."""
        return Connection(self)

    def agree(self, offer: bytes) -> tuple[Chain, Plan]:
        """Return what to agree on with an MTA, for the data of its OPTNEG."""
        return self._agreements.agree(self.engine.chain, offer)

    def welcome(self, connection: Connection) -> None:
        """Take a connection; those far beyond ``limits.sessions`` are closed at once.

        Up to twice as many clients are told 421, which an MTA passes on.
        """
        self.connections.add(connection)
        if len(self.connections) > 2 * self.engine.limits.sessions:
            connection.abort("more than twice limits.sessions")

    def forget(self, connection: Connection) -> None:
        """Forget a connection that is lost."""
        self.connections.discard(connection)

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Serve listening sockets until `drain` was called."""
        for listening in sockets:
            if listening.family != socket.AF_UNIX:
                # Connections inherit it; asyncio sets it only where the protocol is named.
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            make = (
                self.loop.create_unix_server
                if listening.family == socket.AF_UNIX
                else self.loop.create_server
            )
            self._listeners.append(await make(self.connection, sock=listening))
        self._watch()
        while not self._stopped.is_set():
            try:
                await self._stopped.wait()
            except asyncio.CancelledError:
                await stay()  # a policy may cancel every task there is
        self._watching.cancel()

    def stop_listening(self) -> None:
        """Take no new connection."""
        for listener in self._listeners:
            listener.close()

    async def drain(self) -> None:
        """Take no new connection, let messages under way end, then have `serve` return."""
        self.stop_listening()
        await self._wait_for_the_last(DRAIN)
        for connection in list(self.connections):
            connection.abort("stopping")
        await self._wait_for_the_last(CLOSING)
        self._stopped.set()

    async def _wait_for_the_last(self, seconds: float) -> None:
        """Wait until every connection has ended; idle ones are ended after a moment."""
        end = self.loop.time() + seconds
        while self.connections and (now := self.loop.time()) < end:
            for connection in [c for c in self.connections if c.idle and now - c.last >= LINGER]:
                connection.close("stopping")
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                await stay()

    def _watch(self) -> None:
        """Close connections that have been silent for too long, or that do not read."""
        now = self.loop.time()
        for connection in list(self.connections):
            limit = self._idle_timeout
            if not connection.negotiated:
                limit = min(limit, NEGOTIATION)
            if connection.stalled and now - connection.stalled > STALLED:
                connection.abort(f"its answers were not read for {STALLED:g} s")
            elif not connection.busy and now - connection.last > limit:
                connection.abort(f"nothing was said for {limit:g} s")
        seconds = max(min(self._idle_timeout, NEGOTIATION) / 10, 0.05)
        self._watching = self.loop.call_later(seconds, self._watch)
