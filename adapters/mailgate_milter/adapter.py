"""The milter adapter: sockets that MTAs connect to."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import ClassVar, final

from mailgate import listen
from mailgate.chain import Interest
from mailgate.engine import Engine
from mailgate_milter.negotiate import CAPABILITIES
from mailgate_milter.options import PATIENCE, MilterOptions
from mailgate_milter.server import Server
from mailgate_milter.snippets import SNIPPETS

log = logging.getLogger(__name__)

__all__ = ["MilterAdapter", "MilterOptions"]


@final
class MilterAdapter:
    """Speaks the milter protocol, versions 2 to 6, on TCP and unix sockets."""

    name = "milter"
    summary = "Postfix, Sendmail and others, the milter protocol on a socket"
    on_stdin = False
    capabilities = CAPABILITIES
    remedies: ClassVar[Mapping[str, str]] = {}
    Options = MilterOptions
    snippets = SNIPPETS

    def __init__(self, options: MilterOptions | None = None) -> None:
        self._options = options or MilterOptions()
        self._sockets: list[socket.socket] = []
        self._server: Server | None = None

    def claim(self) -> None:
        """Listen, before any policy code is there: an address in use is told at once."""
        options = self._options
        access = listen.Access(int(options.mode, 8), options.owner, options.group)
        self._sockets = listen.bind(options.addresses, access)

    def descriptors(self) -> Mapping[int, str]:
        """Return the listening sockets, and how a worker takes each of them over."""
        return {each.fileno(): f"fd:{each.fileno()}" for each in self._sockets}

    def release(self) -> None:
        """Stop listening, and take the socket files away."""
        listen.release(self._sockets)
        self._sockets.clear()

    def confine(self) -> None:
        """Do nothing: the service manager says who we are."""

    async def serve(self, engine: Engine) -> None:
        """Serve until `drain`."""
        options = self._options
        self._server = Server(
            engine, patience=PATIENCE[options.mta], idle_timeout=options.idle_timeout
        )
        log.info("milter on %s", ", ".join(map(listen.name_of, self._sockets)))
        try:
            await self._server.serve([(each, self._server.connection) for each in self._sockets])
        finally:
            self.release()

    def accepts(self, interest: Interest) -> str | None:
        """Take any other policies: a new connection is a new negotiation."""
        return None

    def refresh(self) -> None:
        """Do nothing: the options name no file."""

    async def drain(self) -> None:
        """Take no new connections, let messages under way end, then end."""
        if self._server is not None:
            self._server.stop_listening()
            self.release()
            await self._server.drain()
