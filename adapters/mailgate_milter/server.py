"""What all connections of MTAs share: what was agreed on, and how long an MTA waits."""

from __future__ import annotations

from typing import final

from mailgate import server
from mailgate.chain import Chain
from mailgate.engine import Engine
from mailgate_milter.connection import Connection, tick
from mailgate_milter.negotiate import Agreements, Plan


@final
class Server(server.Server):
    """Serves policies to the MTAs that connect."""

    def __init__(self, engine: Engine, *, patience: float, idle_timeout: float) -> None:
        """Serve ``engine``; times are in seconds.

        ``patience`` is how long an MTA waits for the answer to a command, ``idle_timeout`` how
        long it may be silent.
        """
        super().__init__(engine, tick=tick(idle_timeout))
        self.patience = patience
        self.idle_timeout = idle_timeout
        self._agreements = Agreements(engine.chain)

    def connection(self) -> Connection:
        """Make the protocol of a new connection, as asyncio's servers want it."""
        return Connection(self)

    def agree(self, offer: bytes) -> tuple[Chain, Plan]:
        """Return what to agree on with an MTA, for the data of its OPTNEG."""
        return self._agreements.agree(self.engine.chain, offer)
