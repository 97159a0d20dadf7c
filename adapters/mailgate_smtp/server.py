"""All clients of the proxy, and what they share."""

from __future__ import annotations

import ssl
from collections import Counter
from functools import partial
from typing import final

from mailgate.engine import Engine
from mailgate.server import Served, Server
from mailgate.session import IPAddress
from mailgate_smtp.connection import Connection
from mailgate_smtp.dovecot import Dovecot
from mailgate_smtp.maildir import Maildir
from mailgate_smtp.options import Kind, SmtpOptions
from mailgate_smtp.route import Route

MAX_TICK = 5.0
"""Seconds between two looks at who is overdue, at most."""


@final
class SmtpServer(Server):
    """Serves policies to SMTP and LMTP clients."""

    def __init__(
        self,
        engine: Engine,
        options: SmtpOptions,
        *,
        tls: ssl.SSLContext | None,
        quarantine: Maildir | None,
    ) -> None:
        timeouts = options.timeouts
        tick = max(min(timeouts.command / 4, timeouts.data / 4, MAX_TICK), 0.05)
        super().__init__(engine, tick=tick, drain_timeout=timeouts.drain)
        self.options = options
        self.route = Route(options, self.flushes)
        self.tls = tls
        self.quarantine = quarantine
        path = options.dovecot
        self.dovecot = Dovecot(path) if path is not None else None
        self._networks = options.networks
        self._memory = 0
        self._clients: dict[Served, IPAddress | None] = {}
        self._of: Counter[IPAddress] = Counter()

    def factory(self, kind: Kind) -> partial[Connection]:
        """Return what makes the connections of a listener."""
        return partial(Connection, self, kind)

    # -- what sessions share ---------------------------------------------------------------------

    @property
    def size_limit(self) -> int:
        """Octets that a message may have: what policies see whole is in ``[limits]``."""
        ours, limits = self.options.limits.message, self.engine.limits
        return ours if limits.oversize == "continue" else min(ours, limits.message)

    @property
    def memory_is_spent(self) -> bool:
        """Tell whether messages take all the memory that they may."""
        return self._memory >= self.options.limits.memory

    def spend(self, octets: int) -> bool:
        """Count memory that a message takes, or gives back; tell whether all of it is spent."""
        self._memory += octets
        return self.memory_is_spent

    def trusts(self, peer: IPAddress | None) -> bool:
        """Tell whether a peer may say who its client is; None is a local socket's."""
        if peer is None:
            return "unix" in self.options.trusted
        return any(peer in network for network in self._networks)

    def admit(self, connection: Served, client: IPAddress | None, *, trusted: bool) -> bool:
        """Count a client, and tell whether there may be one more of it.

        Clients of this host and trusted ones are many behind one address.
        """
        limits = self.options.limits
        free = client is None or client.is_loopback or trusted
        if len(self._clients) >= limits.connections:
            return False
        if not free and client is not None:
            if self._of[client] >= limits.per_client:
                return False
            self._of[client] += 1
        self._clients[connection] = None if free else client
        return True

    def forget(self, connection: Served) -> None:
        """Forget a connection that is lost."""
        super().forget(connection)
        client = self._clients.pop(connection, None)
        if client is not None:
            self._of[client] -= 1
            if not self._of[client]:
                del self._of[client]

    async def drain(self) -> None:
        """Take no new connection and no new message, let those under way end."""
        await super().drain()
        self.route.close()
        if self.quarantine is not None:
            self.quarantine.close()
        if self.dovecot is not None:
            self.dovecot.close()
