"""A protocol of a third party: installed like one, and played by a test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from mailgate.adapter import Snippet
from mailgate.chain import Capabilities, Interest
from mailgate.engine import Engine
from mailgate.stage import MESSAGE_STAGES, Stage

ENTRY = "pigeon = tests.core.pigeon:Pigeon"

HAPPENED: list[str] = []
"""What has happened, in order; policies and resources of a test add to it."""


@dataclass(frozen=True, slots=True)
class Loft:
    """The ``[pigeon]`` table."""

    place: Literal["roof", "garden"] = "roof"


class Pigeon:
    """Serves as `script` says."""

    name = "pigeon"
    summary = "RFC 1149"
    on_stdin = False
    remedies: ClassVar[Mapping[str, str]] = {}
    capabilities: ClassVar[Capabilities] = {
        Stage.CONNECT: frozenset(),
        **dict.fromkeys(MESSAGE_STAGES, frozenset({"tls", "quarantine"})),
        Stage.DONE: frozenset(),
    }
    Options = Loft
    snippets: ClassVar[Mapping[str, Snippet]] = {}
    script: ClassVar[Callable[[Engine], Awaitable[None]]]
    reload_refused: ClassVar[str | None] = None
    sockets: ClassVar[Mapping[int, str]] = {}

    drained: ClassVar[asyncio.Event]

    def __init__(self, options: Loft) -> None:
        HAPPENED.append(f"made on the {options.place}")

    def claim(self) -> None:
        HAPPENED.append("claimed")

    def descriptors(self) -> Mapping[int, str]:
        return type(self).sockets

    def release(self) -> None:
        HAPPENED.append("released")

    def confine(self) -> None:
        HAPPENED.append("confined")

    async def serve(self, engine: Engine) -> None:
        HAPPENED.append("serves")
        type(self).drained = asyncio.Event()
        await type(self).script(engine)
        HAPPENED.append("served")

    def accepts(self, interest: Interest) -> str | None:
        return self.reload_refused

    def refresh(self) -> None:
        HAPPENED.append("refreshed")

    async def drain(self) -> None:
        """Say that it was asked to; `script` ends by itself."""
        HAPPENED.append("drains")
        self.drained.set()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str = ENTRY) -> None:
    """Install a distribution with an entry point, as far as its metadata goes."""
    metadata = folder / "mailgate_pigeon-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mailgate-pigeon\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(f"[mailgate.adapters]\n{entry}\n")
    monkeypatch.syspath_prepend(folder)
