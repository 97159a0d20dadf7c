"""Several protocols of a third party, each with a table of its own, and one on stdin."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from mailgate.adapter import Snippet
from mailgate.chain import Capabilities, Interest
from mailgate.deadline import stay
from mailgate.engine import Engine
from mailgate.errors import ConfigError
from mailgate.stage import Stage
from tests.core.pigeon import HAPPENED

ENTRIES = "\n".join(
    f"{name} = tests.core.flock:{name.title()}" for name in ("dove", "owl", "mole")
)


@dataclass(frozen=True, slots=True)
class Perch:
    """A table such as ``[dove]``."""

    taken: bool = False


async def nothing(bird: Dove) -> None: ...


class Dove:
    """Does as `script` says, then serves until it is told to end."""

    name = "dove"
    summary = "a letter at the leg"
    on_stdin = False
    snippets: ClassVar[Mapping[str, Snippet]] = {}
    capabilities: ClassVar[Capabilities] = {Stage.MAIL: frozenset()}
    remedies: ClassVar[Mapping[str, str]] = {}
    Options = Perch
    script: ClassVar[Callable[[Dove], Awaitable[None]]] = staticmethod(nothing)
    engine: ClassVar[Engine]
    reload_refused: ClassVar[str | None] = None

    def __init__(self, options: Perch) -> None:
        self._taken = options.taken
        self._drained = asyncio.Event()

    def claim(self) -> None:
        if self._taken:
            raise ConfigError(f"{self.name}: the perch is taken")
        HAPPENED.append(f"{self.name} claimed")

    def descriptors(self) -> Mapping[int, str]:
        return {}

    def release(self) -> None:
        HAPPENED.append(f"{self.name} released")

    def confine(self) -> None:
        HAPPENED.append(f"{self.name} confined")

    async def serve(self, engine: Engine) -> None:
        """Serve until `drain`, as an adapter does: whoever cancels it is a policy."""
        type(self).engine = engine
        HAPPENED.append(f"{self.name} serves")
        await type(self).script(self)
        while not self._drained.is_set():
            try:
                await self._drained.wait()
            except asyncio.CancelledError:
                await stay()
        HAPPENED.append(f"{self.name} served")

    def accepts(self, interest: Interest) -> str | None:
        return type(self).reload_refused

    def refresh(self) -> None:
        HAPPENED.append(f"{self.name} refreshed")

    async def drain(self) -> None:
        HAPPENED.append(f"{self.name} drains")
        self._drained.set()


class Owl(Dove):
    """Flies by night, and can do more."""

    name = "owl"
    capabilities: ClassVar[Capabilities] = {
        Stage.MAIL: frozenset({"tls"}),
        Stage.RCPT: frozenset(),
    }


class Mole(Dove):
    """Lives in a pipe."""

    name = "mole"
    on_stdin = True
