"""The standard streams as a protocol takes them: in a process of its own, started by a shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TAKE = """
import os, sys
from mailgate import stdio
from mailgate.errors import ConfigError

try:
    taken = stdio.take(0, 1)
except ConfigError as error:
    sys.exit(str(error))
"""
ECHO = """
question = os.read(taken[0], 100)
os.write(taken[1], b"answer to " + question)
"""


def run(source: str, script: str = 'exec "$@"') -> subprocess.CompletedProcess[str]:
    """Run a program that takes stdin and stdout; ``script`` is how a shell starts it."""
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", sys.executable, "-c", source],
        input="question",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_they_are_the_protocols_and_nobody_elses() -> None:
    done = run(
        TAKE
        + "print('printed', flush=True)\n"
        + "os.system('cat; echo printed by a child')\n"
        + "assert sys.stdin.read() == ''\n"
        + "assert not any(os.get_inheritable(fd) for fd in taken)\n"
        + ECHO
    )
    assert (done.returncode, done.stdout) == (0, "answer to question"), done.stderr
    assert done.stderr == "printed\nprinted by a child\n"


def test_they_leave_the_numbers_that_programs_expect_to_be_free() -> None:
    """Some libraries close, or use, the lowest numbers (select(2), daemons)."""
    done = run(TAKE + "assert min(taken) >= 64, taken\n" + ECHO)
    assert (done.returncode, done.stdout) == (0, "answer to question"), done.stderr


def test_where_few_descriptors_are_allowed_they_have_low_numbers() -> None:
    done = run(TAKE + ECHO, 'ulimit -n 40; exec "$@"')
    assert (done.returncode, done.stdout) == (0, "answer to question"), done.stderr


def test_where_none_is_left_the_reason_is_told() -> None:
    """That they are closed would send whoever reads it to the wrong place."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
    done = run(TAKE.replace("\ntry:", limit + "\ntry:"))
    assert done.returncode == 1
    said = "stdin, which the mail server speaks on, cannot be used: "
    assert done.stderr.startswith(said), done.stderr


@pytest.mark.parametrize(("redirection", "name"), [("<&-", "stdin"), (">&-", "stdout")])
def test_one_that_is_closed_is_told(redirection: str, name: str) -> None:
    done = run(TAKE, f'exec "$@" {redirection}')
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{name}, which the mail server speaks on, is closed\n"


@pytest.mark.parametrize(("redirection", "name"), [("<&-", "stdin"), (">&-", "stdout")])
def test_a_filter_without_a_mail_server_is_told(
    redirection: str, name: str, tmp_path: Path
) -> None:
    """With a stream missing nobody is there to speak with."""
    policy = tmp_path / "gate.py"
    policy.write_text("from mailgate import Policy\npolicy = Policy('gate')\n")
    command = [sys.executable, "-m", "mailgate", "run", "-p", "opensmtpd", str(policy)]
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *command],
        input="",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == f"{name}, which the mail server speaks on, is closed\n"
