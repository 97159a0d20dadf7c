"""Fixtures: a scratch folder everyone may read, mailgate installed in it, mail servers on demand.

OpenSMTPD starts its filters, so a test starts it with the policies that it wants. Postfix and
Sendmail run as long as a test module and ask at one address, where each test has its own
mailgate listen. The servers behind the proxy run as long as a module, too, and each test has its
own mailgate before them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from tests.interop import dovecot, exim, postfix, sendmail, smtpd
from tests.interop.credentials import Certificate, self_signed
from tests.interop.debian import Unavailable
from tests.interop.dovecot import Dovecot
from tests.interop.exim import Exim
from tests.interop.gate import Gate, Table, Value
from tests.interop.installation import Installation
from tests.interop.postfix import Postfix
from tests.interop.processes import free_port
from tests.interop.relay import HOST, Relay
from tests.interop.sendmail import Sendmail, Trees
from tests.interop.smtpd import OpenSMTPD
from tests.interop.swaks import Swaks

T = TypeVar("T")
Start = Callable[..., OpenSMTPD]
Run = Callable[..., Gate]
Proxy = Callable[..., Gate]


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

    def start(*filters: str, options: Sequence[str] = ()) -> OpenSMTPD:
        work = folder_in(scratch, "smtpd.")
        server = OpenSMTPD(opensmtpd, work, *filters, options=options)
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

    def run(
        *policies: str, configuration: str = "", table: Table | None = None, **settings: str
    ) -> Gate:
        gate = Gate(
            mailgate,
            address,
            *policies,
            configuration=configuration,
            table=table,
            settings=settings,
        )
        running.append(gate)
        return gate

    yield run
    ends = {gate.stop() for gate in running if gate.alive()}
    assert ends <= {0}, "\n".join(gate.log() for gate in running)


@pytest.fixture(scope="session")
def swaks(scratch: Path) -> Swaks:
    """Unpack swaks, once a run."""
    return available(Swaks, scratch)


@pytest.fixture(scope="session")
def certificate(scratch: Path) -> Certificate:
    """Make a certificate of the mail servers, once a run."""
    return available(lambda folder: self_signed(folder, HOST), folder_in(scratch, "certificate."))


@pytest.fixture(scope="session")
def light_exim(scratch: Path) -> Path:
    """Unpack the light build of Exim, once a run."""
    return available(lambda folder: exim.unpacked(folder, "light"), scratch)


@pytest.fixture(scope="session")
def heavy_exim(scratch: Path) -> Path:
    """Unpack the heavy build of Exim, once a run."""
    return available(lambda folder: exim.unpacked(folder, "heavy"), scratch)


@pytest.fixture(scope="session")
def dovecot_packages(scratch: Path) -> dovecot.Trees:
    """Unpack Dovecot, once a run."""
    return available(dovecot.unpacked, scratch)


@pytest.fixture(scope="module")
def light(scratch: Path, light_exim: Path, certificate: Certificate) -> Iterator[Exim]:
    """Run the light build of Exim with TLS."""
    with Exim(light_exim, folder_in(scratch, "exim."), certificate=certificate) as server:
        yield server


@pytest.fixture(scope="module")
def heavy(scratch: Path, heavy_exim: Path) -> Iterator[Exim]:
    """Run the heavy build of Exim, which wants a PROXY header of every client."""
    with Exim(heavy_exim, folder_in(scratch, "exim."), hosts_proxy="127.0.0.1") as server:
        yield server


@pytest.fixture(scope="module", name="dovecot")
def run_dovecot(scratch: Path, dovecot_packages: dovecot.Trees) -> Iterator[Dovecot]:
    """Run a Dovecot."""
    with Dovecot(dovecot_packages, folder_in(scratch, "dovecot.")) as server:
        yield server


@pytest.fixture(autouse=True)
def _forgetful(request: pytest.FixtureRequest) -> None:
    """Have the servers behind the proxy forget what an earlier test has sent."""
    for name in {"light", "heavy", "dovecot"}.intersection(request.fixturenames):
        request.getfixturevalue(name).forget()


@pytest.fixture
def proxy(mailgate: Installation) -> Iterator[Proxy]:
    """Run mailgate as a proxy; at the end tell it to leave, and see that it does so well."""
    running: list[Gate] = []

    def proxy(
        upstream: str | list[str],
        *policies: str,
        listen: str | None = None,
        settings: Mapping[str, str] | None = None,
        **table: Value,
    ) -> Gate:
        gate = Gate(
            mailgate,
            listen or f"127.0.0.1:{free_port()}",
            *policies,
            protocol="smtp",
            table={"upstream": upstream, **table},
            settings=settings,
        )
        running.append(gate)
        return gate

    yield proxy
    ends = {gate.stop() for gate in running if gate.alive()}
    logs = "\n".join(gate.log() for gate in running)
    assert ends <= {0}, logs
    assert "a fault of mailgate itself" not in logs
