"""The way to the next hop: upstreams in order, each with a bounded pool of connections."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, final

from mailgate.flush import Flushes
from mailgate_smtp.hop import LOST, NOTHING, UNREACHABLE, Features, HopError, NextHop
from mailgate_smtp.identity import Identity
from mailgate_smtp.maildir import Maildir, Trace
from mailgate_smtp.options import SmtpOptions, Target
from mailgate_smtp.proxy import proxy_v1, proxy_v2
from mailgate_smtp.upstream import Upstream, connect, hello_of
from mailgate_smtp.wire import reply

log = logging.getLogger(__name__)

BUSY = reply(451, "4.3.2", "The mail server behind this one is busy")

DOWN = 30.0
"""Seconds for which an upstream that failed is tried last."""

IDLE = 1.0
"""Seconds after which a client that sends nothing may lose its connection to one that does."""

PATIENCE = 5.0
"""Seconds that a greeting waits for what the upstream offers; then less is offered."""

LONG = 3.0
"""Seconds of waiting after which any client that is not at work may lose its connection."""

TICK = 0.5
"""Seconds between two looks at what is overdue."""

_HEADERS = {"proxy-v1": proxy_v1, "proxy-v2": proxy_v2}


class Borrower(Protocol):
    """Who uses a connection, for one client."""

    @property
    def identity(self) -> Identity:
        """Who the client is."""

    @property
    def trace(self) -> Trace:
        """What is said of it in a Received field."""

    @property
    def idle_since(self) -> float:
        """When it used the connection last, in the loop's time; infinite where it needs it."""

    def interrupt(self) -> None:
        """Give the connection up; it is got again when it is needed."""


@final
@dataclass(eq=False, slots=True)
class _Waiting:
    """A client that waits for a connection, since when, and what wakes it up."""

    borrower: Borrower
    since: float
    woken: asyncio.Future[None]


@final
class _Pool:
    """Connections to one server."""

    def __init__(self, target: Target, options: SmtpOptions, flushes: Flushes) -> None:
        self.target = target
        self._options = options
        self._flushes = flushes
        self._loop = asyncio.get_running_loop()
        self._open: set[Upstream] = set()
        self._opening = 0  # and not yet in it
        self._idle: list[Upstream] = []
        self._lent: dict[Upstream, Borrower] = {}
        self._waiting: deque[_Waiting] = deque()

    def at_hand(self, borrower: Borrower) -> Upstream | None:
        """Return a connection that is idle, None where one has to be waited for."""
        upstream = self._pooled() if not self._waiting else None
        if upstream is not None:
            self._lent[upstream] = borrower
        return upstream

    async def take(self, borrower: Borrower, *, fresh: bool) -> Upstream:
        """Return a connection.  HopError."""
        if self._waiting or not self._has_room:
            await self._queue(borrower)
        upstream = None if fresh else self._pooled()
        if upstream is None:
            if self._idle and len(self._open) + self._opening >= self._options.pool.max:
                self._drop(self._idle.pop(0))
            upstream = await self._connect(borrower)
        self._lent[upstream] = borrower
        return upstream

    @property
    def _has_room(self) -> bool:
        return bool(self._idle) or len(self._open) + self._opening < self._options.pool.max

    def _pooled(self) -> Upstream | None:
        """Return the connection that was used last: the others may become superfluous."""
        while self._idle:
            upstream = self._idle.pop()
            if upstream.usable:
                return upstream
            self._drop(upstream)
        return None

    async def _connect(self, borrower: Borrower) -> Upstream:
        options = self._options
        self._opening += 1
        try:
            upstream = await connect(
                self.target, self._loop, self._flushes, options.timeouts, options.upstream_tls
            )
        except BaseException:
            self._opening -= 1
            self._wake()
            raise
        self._opening -= 1
        self._open.add(upstream)
        header, identity = _HEADERS.get(options.identity), borrower.identity
        client = (identity, header(identity)) if header is not None else None
        name = hello_of(identity, options.name) if client is not None else options.name
        try:
            await upstream.greet(name, options.upstream_tls, client)
        except BaseException:
            self._drop(upstream)
            raise
        return upstream

    async def _queue(self, borrower: Borrower) -> None:
        """Wait until it is this client's turn, and a connection may be had."""
        entry = _Waiting(borrower, self._loop.time(), self._loop.create_future())
        self._waiting.append(entry)
        self._interrupt_idle()
        try:
            async with asyncio.timeout(self._options.timeouts.upstream):
                while not self._has_room or self._waiting[0] is not entry:
                    await entry.woken
                    entry.woken = self._loop.create_future()
        except TimeoutError:
            raise HopError(f"all {self._options.pool.max} connections are in use", BUSY) from None
        finally:
            self._waiting.remove(entry)
            self._wake()

    def dismiss(self, borrower: Borrower) -> None:
        """Have a client wait no longer: it is gone."""
        for entry in self._waiting:
            if entry.borrower is borrower and not entry.woken.done():
                entry.woken.set_exception(HopError("its client is gone", LOST, of_client=True))

    def _wake(self) -> None:
        """Have the first that waits look whether there is room."""
        if self._waiting and not self._waiting[0].woken.done():
            self._waiting[0].woken.set_result(None)

    def _interrupt_idle(self) -> None:
        """Take connections from those who have not used them for the longest time.

        Who has waited for long gets one from a client that only just keeps busy, too.
        """
        now = self._loop.time()
        borrowers = sorted(self._lent.values(), key=lambda each: each.idle_since)
        for entry, borrower in zip(list(self._waiting), borrowers, strict=False):
            if borrower.idle_since < now - (IDLE if now - entry.since < LONG else 0.0):
                borrower.interrupt()

    def give_back(self, upstream: Upstream, *, hang_up: bool = False) -> None:
        """Take a connection back, for others if they may use it."""
        self._lent.pop(upstream, None)
        spent = upstream.messages >= self._options.pool.messages
        if hang_up:
            upstream.abort()
            self._drop(upstream)
        elif upstream.identified or upstream.logged_in or spent or not upstream.usable:
            self._drop(upstream)
        else:
            self._idle.append(upstream)
            self._wake()

    def _drop(self, upstream: Upstream) -> None:
        self._open.discard(upstream)
        upstream.release()
        self._wake()

    def sweep(self, now: float) -> None:
        """Give up what the server does not answer, and what nobody needs."""
        for upstream in self._open:
            if upstream.since and now - upstream.since > upstream.patience:
                upstream.expire()
        for upstream in list(self._idle):
            if not upstream.usable or now - upstream.last > self._options.pool.idle:
                self._idle.remove(upstream)
                self._drop(upstream)
        if self._waiting:
            self._interrupt_idle()

    def close(self) -> None:
        """Close every connection."""
        for upstream in list(self._open):
            if upstream in self._lent:
                upstream.abort()
            self._drop(upstream)
        self._idle.clear()


@final
class Route:
    """Finds a next hop for each message."""

    def __init__(self, options: SmtpOptions, flushes: Flushes) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._answers_each = any(target.lmtp for target in options.targets)
        self._ways: list[_Pool | Maildir] = [
            Maildir(target.path or "", options.name, options.limits.message)
            if target.kind == "maildir"
            else _Pool(target, options, flushes)
            for target in options.targets
        ]
        self._down: dict[_Pool | Maildir, float] = {}  # until when it is tried last
        first = self._ways[0]
        self._features = first.features if isinstance(first, Maildir) else None
        self._learning: asyncio.Task[None] | None = None
        self._sweeping = self._loop.call_later(TICK, self._sweep)

    @property
    def known(self) -> Features:
        """What the next hop offers, as far as it is known."""
        return self._features or NOTHING

    @property
    def answers_each(self) -> bool:
        """Tell whether a next hop may have one reply for each recipient (LMTP)."""
        return self._answers_each

    def at_hand(self, borrower: Borrower) -> NextHop | None:
        """Return a next hop that knows the client, None where `take` and `identify` have to wait.

        There is one where the first upstream is up and has an idle connection: the rule.
        """
        way = self._ways[0]
        if isinstance(way, Maildir) or way in self._down:
            return None
        upstream = way.at_hand(borrower)
        if upstream is None:
            return None
        self._features = upstream.features
        if self._introduce(borrower, upstream):
            return upstream
        way.give_back(upstream)
        return None

    async def take(self, borrower: Borrower, *, fresh: bool = False) -> NextHop:
        """Return a next hop that is ready for a message; `identify` goes before it.

        ``fresh`` wants another connection than those that were used before.  HopError where
        none of the upstreams is to be had.
        """
        if len(self._ways) == 1 and self._ways[0] not in self._down:
            ways = self._ways
        else:
            now = self._loop.time()
            ways = sorted(self._ways, key=lambda way: self._down.get(way, 0.0) > now)
        failed: HopError | None = None
        for way in ways:
            if isinstance(way, Maildir):
                return way.open(borrower.trace)
            try:
                upstream = await way.take(borrower, fresh=fresh)
            except HopError as error:
                if error.of_client:
                    raise
                failed = error
                log.warning("upstream %s: %s", way.target, error)
                if error.reply is not BUSY:
                    self._down[way] = self._loop.time() + DOWN
            else:
                self._down.pop(way, None)
                self._features = upstream.features
                return upstream
        raise failed or HopError("there is no upstream", UNREACHABLE)

    async def identify(self, borrower: Borrower, hop: NextHop) -> bool:
        """Have the next hop know the client; False where it knows another one for good."""
        if not isinstance(hop, Upstream) or self._introduce(borrower, hop):
            return True
        if hop.identified:
            return False
        options = self._options
        await hop.impersonate(options.name, borrower.identity, options.identity)
        return True

    def _introduce(self, borrower: Borrower, upstream: Upstream) -> bool:
        """Tell a connection who the client is, where that is said with MAIL.

        False where something has to be awaited for it, or the connection knows another client.
        """
        how, identity = self._options.identity, borrower.identity
        if how == "none" or upstream.knows(identity):
            return True
        return not upstream.identified and upstream.announce(identity, how)

    def give_back(self, hop: NextHop, *, hang_up: bool = False) -> None:
        """Take a next hop back; ``hang_up`` where a message is under way on it."""
        if not isinstance(hop, Upstream):
            hop.abort() if hang_up else hop.release()
            return
        for way in self._ways:
            if isinstance(way, _Pool) and way.target is hop.target:
                way.give_back(hop, hang_up=hang_up)

    async def learn(self, borrower: Borrower) -> None:
        """Learn what the next hop offers: the first clients wait for that, but not for long."""
        if self._features is not None:
            return
        if self._learning is None or self._learning.done():
            self._learning = self._loop.create_task(self._learn(borrower))
        await asyncio.wait({self._learning}, timeout=PATIENCE)

    async def _learn(self, borrower: Borrower) -> None:
        if self._down.get(self._ways[0], 0.0) <= self._loop.time():
            with suppress(HopError):
                self.give_back(await self.take(borrower))

    def dismiss(self, borrower: Borrower) -> None:
        """Have a client wait no longer for a next hop: it is gone."""
        for way in self._ways:
            if isinstance(way, _Pool):
                way.dismiss(borrower)

    def _sweep(self) -> None:
        self._sweeping = self._loop.call_later(TICK, self._sweep)
        now = self._loop.time()
        for way in self._ways:
            if isinstance(way, _Pool):
                way.sweep(now)

    def close(self) -> None:
        """Close every connection."""
        self._sweeping.cancel()
        for way in self._ways:
            way.close()
