"""`mailgate run` as a mail server starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.cli.running import Command

HANDSHAKE = (
    b"config|smtpd-version|7.8.0\nconfig|protocol|0.7\nconfig|subsystem|smtp-in\nconfig|ready\n"
)
NOISY = """
import os, sys
print("to stdout")
os.system("echo from a child")
sys.stderr.write("to stderr\\n")
from mailgate import Message, Policy
policy = Policy()

@policy.mail
async def check(message: Message): ...
"""


def test_it_serves_until_the_pipe_is_closed(program: Command, gate: Path) -> None:
    done = program("run", "-p", "opensmtpd", "gate.py", input=HANDSHAKE)
    assert (done.status, done.err) == (0, "")
    assert done.lines[-1] == "register|ready"
    assert "register|filter|smtp-in|rcpt-to" in done.lines
    assert all(line.startswith("register|") for line in done.lines)


def test_what_a_policy_prints_does_not_reach_the_protocol(program: Command, here: Path) -> None:
    (here / "noisy.py").write_text(NOISY)
    done = program("run", "-p", "opensmtpd", "noisy.py", input=HANDSHAKE)
    assert done.status == 0
    assert all(line.startswith("register|") for line in done.lines)
    for text in ("to stdout", "from a child", "to stderr"):
        assert text in done.err


def test_a_policy_that_cannot_be_loaded_is_one_line(program: Command, here: Path) -> None:
    (here / "bad.py").write_text("import sys\nsys.exit('no')\n")
    done = program("run", "-p", "opensmtpd", "bad.py", input=HANDSHAKE)
    assert (done.status, done.out) == (78, "")
    assert done.err == "bad.py:2: cannot be imported: SystemExit: no\n"
    done = program("-v", "run", "-p", "opensmtpd", "bad.py", input=HANDSHAKE)
    assert done.err.startswith("Traceback")


def test_a_policy_that_needs_more_is_one_line(program: Command, here: Path) -> None:
    (here / "copies.py").write_text(
        "from mailgate import Policy\npolicy = Policy()\n\n"
        "@policy.message(needs={'add_recipient'})\nasync def copies(message): ...\n"
    )
    done = program("run", "-p", "opensmtpd", "copies.py", input=HANDSHAKE)
    assert (done.status, done.out) == (78, "")
    assert done.err.startswith("copies.py:4: copies needs add_recipient; opensmtpd cannot (")
    assert len(done.err.splitlines()) == 1


def test_the_protocol_is_named(shell: Command, gate: Path) -> None:
    done = shell("run", "gate.py")
    assert done.status == 2
    assert "say which protocol to speak: -p NAME" in done.err


@pytest.mark.parametrize(
    ("option", "value", "table"),
    [
        ("--log-level", "error", "level = 'info'"),
        ("--log-format", "json", "format = 'text'"),
    ],
)
def test_the_command_line_stands_over_the_configuration(
    program: Command, here: Path, option: str, value: str, table: str
) -> None:
    (here / "mailgate.toml").write_text(
        f"[[policy]]\nuse = 'logs.py'\n[log]\nlevel = 'warning'\n{table}\n"
        if "level" not in table
        else f"[[policy]]\nuse = 'logs.py'\n[log]\n{table}\n"
    )
    (here / "logs.py").write_text(
        "import logging\nlogging.warning('said')\n"
        "from mailgate import Policy\npolicy = Policy()\n\n"
        "@policy.done\nasync def done(message): ...\n"
    )
    done = program("run", "-p", "opensmtpd", option, value, input=HANDSHAKE)
    assert done.status == 0
    if option == "--log-level":
        assert done.err == ""
    else:
        assert done.err.startswith("{")
    done = program("run", "-p", "opensmtpd", input=HANDSHAKE)
    assert done.err == "warning: said\n"


def test_a_wrong_level_names_the_right_ones(shell: Command, gate: Path) -> None:
    done = shell("run", "-p", "opensmtpd", "gate.py", "--log-level", "loud")
    assert done.status == 2
    for level in ("debug", "info", "warning", "error"):
        assert level in done.err


def test_a_thread_of_a_policy_keeps_no_error(program: Command, here: Path, gate: Path) -> None:
    """The interpreter would wait for it, and systemd would see no failure."""
    (here / "keeps.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
        + gate.read_text()
    )
    (here / "bad.py").write_text("policy = (\n")
    done = program("run", "-p", "milter", "-l", f"unix:{here}/s", "keeps.py", "bad.py")
    assert done.status == 78
    assert done.err.startswith("bad.py:1: ")
