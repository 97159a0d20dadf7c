"""Fixtures: a scratch folder everyone may read, mailgate installed in it, smtpds on demand."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.interop.debian import Unavailable
from tests.interop.installation import Installation
from tests.interop.smtpd import OpenSMTPD, unpacked

T = TypeVar("T")
Start = Callable[..., OpenSMTPD]


def _available(make: Callable[[Path], T], folder: Path) -> T:
    """Make something in a folder, or skip what needs it and say why; in CI fail instead."""
    try:
        return make(folder)
    except Unavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """Give a folder that everyone may read, away from the overlaid ones.

    pytest's own temporary folders are closed to others, and TMPDIR may be below /var.
    """
    with tempfile.TemporaryDirectory(prefix="mailgate-interop.", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
def mailgate(scratch: Path) -> Installation:
    """Install the checkout, once a run."""
    return _available(Installation, scratch)


@pytest.fixture(scope="session")
def opensmtpd(scratch: Path) -> Path:
    """Unpack OpenSMTPD, once a run."""
    return _available(unpacked, scratch)


@pytest.fixture
def start(scratch: Path, opensmtpd: Path) -> Iterator[Start]:
    """Start smtpds with filters; at the end stop them and see every filter leave."""
    started: list[OpenSMTPD] = []

    def start(*filters: str) -> OpenSMTPD:
        work = Path(tempfile.mkdtemp(prefix="smtpd.", dir=scratch))
        server = OpenSMTPD(opensmtpd, work, *filters)
        started.append(server)
        server.start()
        return server

    yield start
    left = [pid for server in started for pid in server.stop()]
    assert not left, "filters that stayed after the end of their input"
