"""The filter process of OpenSMTPD before 6.0.3."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from mailgate import stdio
from mailgate.adapter import Snippet
from mailgate.chain import Interest
from mailgate.engine import Engine
from mailgate.errors import ConfigError
from mailgate_opensmtpd52.facts import CAPABILITIES, hooks
from mailgate_opensmtpd52.filter import Filter
from mailgate_opensmtpd52.privileges import USER, drop

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """The ``[opensmtpd52]`` table.

    smtpd starts its filters as root.  ``user`` is who the policies run as, ``"root"`` to stay
    it; ``chroot`` is the folder that they see as ``/``, empty for none.
    """

    user: str = USER
    chroot: str = ""


@final
class OpenSMTPD52Adapter:
    """Speaks the imsg filter API 50, 51 and 52 on the socket that is stdin."""

    name = "opensmtpd52"
    summary = "OpenSMTPD 5.4 to 6.0.2, the imsg filter API on stdin"
    on_stdin = True
    capabilities = CAPABILITIES
    remedies: ClassVar[Mapping[str, str]] = {}
    Options = FilterOptions
    snippets: ClassVar[Mapping[str, Snippet]] = {}

    def __init__(self, options: FilterOptions | None = None) -> None:
        self._options = options or FilterOptions()
        self._input = -1
        self._interest: Interest | None = None

    def claim(self) -> None:
        """Take smtpd's socket before any policy code is there."""
        (self._input,) = stdio.take(0)
        if not _is_connected(self._input):
            raise ConfigError(
                "opensmtpd52 speaks on a socket as stdin: smtpd starts this command "
                "(filter NAME mailgate ... in its smtpd.conf); to try a policy: "
                "mailgate test -p opensmtpd52 POLICY"
            )

    def descriptors(self) -> Mapping[int, str]:
        """Return nothing: smtpd has one socket for a filter."""
        return {}

    def release(self) -> None:
        """Keep what there is: the process ends."""

    def confine(self) -> None:
        """Be root no more."""
        drop(self._options.user, self._options.chroot)

    async def serve(self, engine: Engine) -> None:
        """Filter until smtpd closes the socket.  PeerError for what no smtpd sends."""
        self._interest = engine.interest
        end = socket.socket(fileno=self._input)
        end.setblocking(False)
        await Filter(engine, end).run()

    def accepts(self, interest: Interest) -> str | None:
        """Return why other policies cannot be served without a restart, or None."""
        if self._interest is None or not hooks(interest) & ~hooks(self._interest):
            return None
        return "the content was not registered for when smtpd started: restart smtpd"

    def refresh(self) -> None:
        """Do nothing: the options name no file."""

    async def drain(self) -> None:
        """Do nothing: the end is end of file, and smtpd would end with us before it."""
        log.warning("told to end, and going on: smtpd would end with its filter; stop smtpd")


def _is_connected(fd: int) -> bool:
    """Tell whether a descriptor is one end of a stream."""
    try:
        end = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        end.getpeername()
        return end.type == socket.SOCK_STREAM
    except OSError:
        return False
    finally:
        end.detach()
