"""What takes connections, watches them and drains them: the same for every protocol on sockets.

An adapter gives it listening sockets, each with what makes the protocol object of a connection
there.  That object says `Server.welcome` when it is connected, and `Server.forget` when it is
lost and nothing is done for it any more.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from mailgate.deadline import stay
from mailgate.eager import Eager
from mailgate.engine import Engine
from mailgate.flush import Flushes
from mailgate.listen import BACKLOG

DRAIN = 30.0
"""Seconds that messages under way have when we are to stop."""

LINGER = 1.0
"""Seconds that a peer has to end a session after its last message, when we are to stop."""

CLOSING = 5.0
"""Seconds that `done` and `close` handlers of those that had to be cut off have then."""


class Served(Protocol):
    """A connection, as its server sees it.  None of its methods raises."""

    @property
    def idle(self) -> bool:
        """Tell whether nothing is under way: it may be ended when we are to stop."""

    @property
    def last(self) -> float:
        """Return when something was read, in the loop's time."""

    def overdue(self, now: float) -> str | None:
        """Return why it has to be given up, None while all is well.

        ``now`` is in the loop's time.  The peer has been silent for too long, or does not read.
        """

    def close(self, reason: str) -> None:
        """End it in the way of its protocol; the peer may take its time to read that."""

    def abort(self, reason: str) -> None:
        """End it without waiting for the peer."""


Listener: TypeAlias = tuple[socket.socket, Callable[[], asyncio.BaseProtocol]]
"""A listening socket, and what makes the protocol object of a connection there."""


class Server:
    """Serves an engine to the peers that connect."""

    def __init__(self, engine: Engine, *, tick: float, drain_timeout: float = DRAIN) -> None:
        """Serve ``engine``; times are in seconds.

        ``tick`` is the time between two looks at who is overdue, ``drain_timeout`` what messages
        under way have when we are to stop.
        """
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.eager = Eager()
        self.flushes = Flushes(self.loop)
        self.connections: set[Served] = set()
        self.drain_timeout = drain_timeout
        self._tick = tick
        self._closed: set[Served] = set()  # at the end, and not lost yet
        self._listeners: list[asyncio.Server] = []
        self._stopped = asyncio.Event()
        self._watching: asyncio.TimerHandle | None = None
        self.draining = False  # no new message is taken

    def welcome(self, connection: Served) -> None:
        """Take a connection; those far beyond ``limits.sessions`` are ended at once.

        Up to twice as many clients are told 421, which a mail server passes on.
        """
        self.connections.add(connection)
        if len(self.connections) > 2 * self.engine.limits.sessions:
            connection.abort("more than twice limits.sessions")

    def forget(self, connection: Served) -> None:
        """Forget a connection that is lost."""
        self.connections.discard(connection)
        self._closed.discard(connection)

    async def serve(self, listeners: Sequence[Listener]) -> None:
        """Serve until `drain` was called."""
        for listening, make in listeners:
            if not self.draining:
                self._listeners.append(await self._listen(listening, make))
        self._watch()
        while not self._stopped.is_set():
            try:
                await self._stopped.wait()
            except asyncio.CancelledError:
                await stay()  # a policy may cancel every task there is
        if self._watching is not None:
            self._watching.cancel()

    def stop_listening(self) -> None:
        """Take no new connection."""
        self.draining = True
        for listener in self._listeners:
            listener.close()

    async def drain(self) -> None:
        """Take no new connection, let messages under way end, then have `serve` return."""
        self.stop_listening()
        await self._wait_for_the_last(self.drain_timeout)
        for connection in list(self.connections):
            connection.abort("stopping")
        await self._wait_for_the_last(CLOSING)
        self._stopped.set()

    async def _listen(
        self, listening: socket.socket, make: Callable[[], asyncio.BaseProtocol]
    ) -> asyncio.Server:
        if listening.family == socket.AF_UNIX:
            return await self.loop.create_unix_server(make, sock=listening, backlog=BACKLOG)
        # Connections inherit it; asyncio sets it only where the protocol is named.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await self.loop.create_server(make, sock=listening, backlog=BACKLOG)

    async def _wait_for_the_last(self, seconds: float) -> None:
        """Wait until every connection has ended; idle ones are ended after a moment, once."""
        end = self.loop.time() + seconds
        while self.connections and (now := self.loop.time()) < end:
            for connection in self.connections - self._closed:
                if connection.idle and now - connection.last >= LINGER:
                    self._closed.add(connection)
                    connection.close("stopping")
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                await stay()

    def _watch(self) -> None:
        """Give up the connections that are overdue, now and from time to time."""
        self._watching = self.loop.call_later(self._tick, self._watch)
        now = self.loop.time()
        for connection in list(self.connections):
            reason = connection.overdue(now)
            if reason is not None:
                connection.abort(reason)
