"""What an adapter is, and where adapters are found.

An adapter is a class that an installed distribution names in the entry-point group
``mailgate.adapters``; the ones that come with mailgate are found the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Protocol, TypeAlias, final

from mailgate.chain import Capabilities, Defaults, Interest, Unmet, lacking, untold
from mailgate.engine import Engine
from mailgate.errors import ConfigError

GROUP = "mailgate.adapters"


@final
@dataclass(frozen=True, slots=True)
class Site:
    """What a snippet goes by, besides the adapter's own table.

    ``defaults`` says how long mailgate may take to answer.  ``queue_directory`` is where the
    mail server keeps its queue, None for the usual place: chrooted there, it sees nothing else.
    """

    defaults: Defaults
    queue_directory: str | None = None


Snippet: TypeAlias = Callable[[Any, Site], Iterable[str]]
"""Makes the lines to add to the configuration of one mail server, comments among them.

It is given the adapter's ``Options`` and the site.  Raises ConfigError where the server could not
be told what they say.
"""


class Adapter(Protocol):
    """Speaks one protocol to an `Engine`.

    ``Options`` is a frozen dataclass: the adapter's own table of the configuration.
    ``capabilities`` of an instance may be fewer than those of its class, as its options say;
    ``remedies`` has what to set for each of them, and for ``the stage NAME``.
    ``on_stdin`` says that it speaks on the standard streams: served only when it is named, and
    alone.  ``snippets`` has what `mailgate snippet` prints, by the name of the mail server; it
    may be empty.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    on_stdin: ClassVar[bool]
    capabilities: Capabilities
    remedies: Mapping[str, str]
    Options: ClassVar[type[Any]]
    snippets: ClassVar[Mapping[str, Snippet]]

    def __init__(self, options: Any) -> None: ...

    def claim(self) -> None:
        """Take what the protocol needs, before policy code is imported."""

    def descriptors(self) -> Mapping[int, str]:
        """Return the listening sockets that were claimed, which worker processes can share.

        Each has the address by which a worker takes it over in its ``listen``: ``fd:5``, with
        what the protocol writes before it.  Empty where there can be only one process.
        """

    def release(self) -> None:
        """Give it back: the policies cannot be loaded, and nothing will be served."""

    def confine(self) -> None:
        """Give up what only the start needed, such as root.  Raises ConfigError.

        The policies are imported, and nothing of theirs runs yet.
        """

    async def serve(self, engine: Engine) -> None:
        """Serve until the peer ends it or `drain` was called.

        Raises ConfigError; and PeerError where the protocol cannot go on, such as when framing
        is lost on the one socket there is.
        """

    def accepts(self, interest: Interest) -> str | None:
        """Return why a reload with another interest is refused, or None."""

    def refresh(self) -> None:
        """Read the files anew that the options name, such as certificates: at a reload.

        ConfigError where one cannot be used; then what was read before stays.
        """

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
    return _can(n for n, each in known.items() if lacking(handler, each.capabilities) is None)


def telling(fact: str) -> str:
    """Say which protocols tell a fact that one never tells: "milter, smtp can"."""
    return _can(n for n, each in installed().items() if fact not in untold(each.capabilities))


def _can(names: Iterable[str]) -> str:
    found = ", ".join(names)
    return f"{found} can" if found else "no protocol can"
