"""miltertest, which knows the protocol from elsewhere, finds what it should."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.interop import debian
from tests.interop.conftest import Run, available
from tests.interop.processes import free_port

SCRIPTS = Path(__file__).with_name("miltertest")

POLICIES = {
    "negotiation": "recipients",
    "recipient": "recipients",
    "edits": "together",
    "two_messages": "edits:in_message",
    "refusal": "content:in_whole",
    "abort": "edits:in_message",
    "quarantine": "verdicts",
    "old_version": "edits:in_message",
    "rude_end": "edits:in_message",
}
"""The policy that each script is about."""


def installed(_: Path) -> None:
    """Install miltertest."""
    debian.require("apt-get")
    if shutil.which("miltertest") is None:
        debian.install("miltertest")


@pytest.fixture(scope="module", autouse=True)
def miltertest(scratch: Path) -> None:
    """Have miltertest."""
    available(installed, scratch)


@pytest.fixture(scope="module")
def address() -> str:
    """Give a TCP address."""
    return f"127.0.0.1:{free_port()}"


def test_every_script_has_its_policy() -> None:
    assert POLICIES.keys() | {"steps"} == {script.stem for script in SCRIPTS.glob("*.lua")}


@pytest.mark.parametrize("script", POLICIES)
def test_a_script_holds(run: Run, address: str, script: str) -> None:
    gate = run(POLICIES[script])
    host, _, port = address.rpartition(":")
    done = subprocess.run(
        [
            *("miltertest", "-D", f"socket=inet:{port}@{host}"),
            *("-D", f"steps={SCRIPTS / 'steps.lua'}", "-s", f"{SCRIPTS / script}.lua"),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr + gate.log()
    assert "warning" not in gate.log() or script == "rude_end"
