"""Sockets that go at the end of a test, and a place for them."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mailgate import fork, listen
from mailgate.listen import Access
from tests.core.listen.connecting import OURS, Bind


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process forget which sockets its children may not keep."""
    monkeypatch.setattr(fork, "_private", set[int]())


@pytest.fixture
def bind() -> Iterator[Bind]:
    """Bind addresses; what is left of them goes at the end."""
    bound: list[socket.socket] = []

    def bind(*texts: str, access: Access = OURS) -> Sequence[socket.socket]:
        made = listen.bind(texts, access)
        bound.extend(made)
        return made

    yield bind
    listen.release(bound)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a path for a socket in an empty folder; it fits whatever TMPDIR is."""
    folder = tmp_path / "run"
    folder.mkdir()
    assert len(str(folder)) < 90
    return folder / "milter.sock"
