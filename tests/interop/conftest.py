"""Fixtures: a scratch folder everyone may read, mailgate installed in it, mail servers on demand.

OpenSMTPD starts its filters, so a test starts it with the policies that it wants. Postfix and
Sendmail run as long as a test module and ask at one address, where each test has its own
mailgate listen.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.interop import postfix, sendmail, smtpd
from tests.interop.debian import Unavailable
from tests.interop.gate import Gate
from tests.interop.installation import Installation
from tests.interop.postfix import Postfix
from tests.interop.relay import Relay
from tests.interop.sendmail import Sendmail, Trees
from tests.interop.smtpd import OpenSMTPD

T = TypeVar("T")
Start = Callable[..., OpenSMTPD]
Run = Callable[..., Gate]


def available(make: Callable[[Path], T], folder: Path) -> T:
    """Make something in a folder, or skip what needs it and say why; in CI fail instead."""
    try:
        return make(folder)
    except Unavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))


def folder_in(scratch: Path, prefix: str) -> Path:
    """Make a new folder that everyone may read."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=scratch))
    folder.chmod(0o755)
    return folder


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
    return available(Installation, scratch)


@pytest.fixture(scope="session")
def opensmtpd(scratch: Path) -> Path:
    """Unpack OpenSMTPD, once a run."""
    return available(smtpd.unpacked, scratch)


@pytest.fixture
def start(scratch: Path, opensmtpd: Path) -> Iterator[Start]:
    """Start smtpds with filters; at the end stop them and see every filter leave."""
    started: list[OpenSMTPD] = []

    def start(*filters: str) -> OpenSMTPD:
        server = OpenSMTPD(opensmtpd, folder_in(scratch, "smtpd."), *filters)
        started.append(server)
        server.start()
        return server

    yield start
    left = [pid for server in started for pid in server.stop()]
    assert not left, "filters that stayed after the end of their input"


@pytest.fixture(scope="session")
def postfix_package(scratch: Path) -> Path:
    """Unpack Postfix, once a run."""
    return available(postfix.unpacked, scratch)


@pytest.fixture(scope="session")
def sendmail_packages(scratch: Path) -> Trees:
    """Unpack Sendmail, once a run."""
    return available(sendmail.unpacked, scratch)


@pytest.fixture(scope="module")
def address(scratch: Path) -> str:
    """Give the address where a module's milters listen, one after the other."""
    return f"unix:{folder_in(scratch, 'milter.')}/socket"


@pytest.fixture(scope="module", name="postfix")
def run_postfix(scratch: Path, postfix_package: Path, address: str) -> Iterator[Postfix]:
    """Run a Postfix for as long as the module."""
    with Postfix(postfix_package, folder_in(scratch, "postfix."), address) as server:
        yield server


@pytest.fixture(scope="module", name="sendmail")
def run_sendmail(scratch: Path, sendmail_packages: Trees, address: str) -> Iterator[Sendmail]:
    """Run a Sendmail for as long as the module."""
    with Sendmail(sendmail_packages, folder_in(scratch, "sendmail."), address) as server:
        yield server


@pytest.fixture(params=["postfix", "sendmail"])
def relay(request: pytest.FixtureRequest) -> Iterator[Relay]:
    """Give the one mail server and the other; at the end see that its queue holds nothing."""
    server: Relay = request.getfixturevalue(request.param)
    server.sink.forget()
    yield server
    assert server.idle(), server.queue()


@pytest.fixture
def run(mailgate: Installation, address: str) -> Iterator[Run]:
    """Run mailgate as a milter; at the end tell it to leave, and see that it does so well."""
    running: list[Gate] = []

    def run(*policies: str, **options: str) -> Gate:
        gate = Gate(mailgate, address, *policies, **options)
        running.append(gate)
        return gate

    yield run
    ends = {gate.stop() for gate in running if gate.alive()}
    assert ends <= {0}, "\n".join(gate.log() for gate in running)
