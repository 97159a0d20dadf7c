"""What an adapter is, and where adapters are found.

An adapter is a class that an installed distribution names in the entry-point group
``mailgate.adapters``; the ones that come with mailgate are found the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Protocol

from mailgate.chain import Capabilities, Interest, Unmet, lacking
from mailgate.engine import Engine
from mailgate.errors import ConfigError

GROUP = "mailgate.adapters"

FORTHCOMING: Mapping[str, frozenset[str]] = {
    "milter": frozenset(
        {
            *("change_sender", "change_recipient", "add_recipient", "remove_recipient"),
            *("quarantine", "discard", "rdns", "tls", "auth", "params"),
        }
    ),
    "smtp": frozenset(
        {
            *("change_sender", "change_recipient", "add_recipient", "remove_recipient"),
            *("quarantine", "discard", "change_helo", "authenticate", "credentials"),
            *("rdns", "tls", "auth", "params"),
        }
    ),
}
"""Protocols of the design that this version has no adapter for yet, to name in a refusal.

An entry goes when its adapter comes.
"""


class Adapter(Protocol):
    """Speaks one protocol to an `Engine`.

    ``Options`` is a frozen dataclass: the adapter's own table of the configuration.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    Options: ClassVar[type[Any]]

    def __init__(self, options: Any) -> None: ...

    def claim(self) -> None:
        """Take what the protocol needs, before policy code is imported."""

    async def serve(self, engine: Engine) -> None:
        """Serve until the peer ends it or `drain` was called.  Raises ConfigError only."""

    def accepts(self, interest: Interest) -> str | None:
        """Return why a reload with another interest is refused, or None."""

    async def drain(self) -> None:
        """Take nothing new, finish what is under way, and have `serve` return: at SIGTERM.

        A protocol whose peer would end with us may say so and go on.
        """


def names() -> list[str]:
    """Return the names of the installed adapters, without importing one."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load(name: str) -> type[Adapter]:
    """Return an adapter's class.  ConfigError where there is none of that name."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if not points:
        raise ConfigError("no adapters are installed; is mailgate itself? (pip install mailgate)")
    if name not in points:
        raise ConfigError(f"unknown protocol {name!r}; installed: {', '.join(sorted(points))}")
    return _load(points[name])


def _load(point: EntryPoint) -> type[Adapter]:
    try:
        found: type[Adapter] = point.load()
    except Exception as error:
        raise ConfigError(f"protocol {point.name!r} cannot be loaded: {error}") from error
    return found


def installed() -> dict[str, type[Adapter]]:
    """Return every installed adapter by name."""
    return {name: load(name) for name in names()}


def able(missing: Unmet) -> str:
    """Say which protocols can serve a handler that one cannot: "milter, smtp can"."""
    known = installed()
    handler = missing.handler
    now = [n for n, adapter in known.items() if lacking(handler, adapter.capabilities) is None]
    needs = set(missing.needs)
    later = [name for name, can in FORTHCOMING.items() if name not in known and needs <= can]
    said = [f"{', '.join(now)} can"] if now else []
    if later:
        said.append(f"{', '.join(later)} will, they are not in this version")
    return "; ".join(said) or "no protocol can"
