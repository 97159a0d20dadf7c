"""What all sessions of the proxy share."""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol

from mailgate.eager import Eager
from mailgate.engine import Engine
from mailgate.flush import Flushes
from mailgate.server import Served
from mailgate.session import IPAddress
from mailgate_smtp.dovecot import Dovecot
from mailgate_smtp.maildir import Maildir
from mailgate_smtp.options import SmtpOptions
from mailgate_smtp.route import Route


class House(Protocol):
    """What a session needs of the server that it belongs to."""

    engine: Engine
    options: SmtpOptions
    route: Route
    quarantine: Maildir | None
    tls: ssl.SSLContext | None
    dovecot: Dovecot | None
    draining: bool

    @property
    def size_limit(self) -> int:
        """Octets that a message may have."""

    @property
    def memory_is_spent(self) -> bool:
        """Tell whether messages take all the memory that they may."""

    def spend(self, octets: int) -> bool:
        """Count memory that a message takes, or gives back; tell whether all of it is spent."""


class Host(House, Protocol):
    """What a connection needs of the server that it belongs to."""

    loop: asyncio.AbstractEventLoop
    eager: Eager
    flushes: Flushes

    def welcome(self, connection: Served) -> None: ...
    def forget(self, connection: Served) -> None: ...

    def trusts(self, peer: IPAddress | None) -> bool:
        """Tell whether a peer may say who its client is; None is a local socket's."""

    def admit(self, connection: Served, client: IPAddress | None, *, trusted: bool) -> bool:
        """Count a client, and tell whether there may be one more of it."""
