"""The units of contrib/systemd, before systemd's own tools."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import debian
from tests.interop.conftest import available, folder_in
from tests.interop.installation import Installation
from tests.interop.processes import eventually

UNITS = Path(__file__).parents[2] / "contrib/systemd"
PROGRAM = "/usr/local/bin/mailgate"
MAX_EXPOSURE = 1.5

# SMFIC_OPTNEG, version 6, with everything that Postfix 3.7 offers.
OFFER = b"\0\0\0\x0dO\0\0\0\x06\0\0\x01\xff\0\x1f\xff\xff"


def _with_systemd(folder: Path) -> Path:
    debian.require("apt-get")
    if shutil.which("systemd-analyze") is None or shutil.which("systemd-socket-activate") is None:
        debian.install("systemd")
    return folder


@pytest.fixture(scope="module")
def units(scratch: Path, mailgate: Installation) -> Path:
    """Give a folder with the units, with the path of this installation in them."""
    folder = available(_with_systemd, folder_in(scratch, "units."))
    for unit in UNITS.glob("mailgate.*"):
        text = unit.read_text().replace(PROGRAM, str(mailgate.program))
        (folder / unit.name).write_text(text)
    return folder


def test_systemd_understands_the_units(units: Path) -> None:
    """`verify` warns of what it does not know, and all the same ends with 0."""
    names = [str(unit) for unit in sorted(units.iterdir())]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_service_is_shut_in(units: Path) -> None:
    threshold = f"--threshold={MAX_EXPOSURE * 10:.0f}"
    unit = str(units / "mailgate.service")
    said = debian.run("systemd-analyze", "security", "--offline=yes", threshold, unit)
    found = re.search(r"Overall exposure level for mailgate\.service: ([0-9.]+)", said)
    assert found is not None
    assert float(found[1]) <= MAX_EXPOSURE


@pytest.fixture
def activated(units: Path, mailgate: Installation, scratch: Path) -> Iterator[Path]:
    """Have systemd-socket-activate listen for the service; give the path of the socket."""
    folder = folder_in(scratch, "activated.")
    path, configuration = folder / "milter.sock", folder / "mailgate.toml"
    configuration.write_text(f"[[policy]]\nuse = {mailgate.policy('stamp')!r}\n")
    line = re.search(r"^ExecStart=(.*)$", (units / "mailgate.service").read_text(), re.MULTILINE)
    assert line is not None
    command = line[1].replace("/etc/mailgate/mailgate.toml", str(configuration))
    with subprocess.Popen(
        ["systemd-socket-activate", "-l", str(path), *shlex.split(command)]
    ) as process:
        try:
            assert eventually(path.is_socket, 20)
            yield path
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_the_service_takes_systemds_socket(activated: Path) -> None:
    """The first connection starts it, as with a .socket unit, and is answered."""
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(activated))
            client.sendall(OFFER)
            assert client.recv(5)[4:] == b"O"
