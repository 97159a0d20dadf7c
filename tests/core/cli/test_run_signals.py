"""`mailgate run` that is told to end before it serves: it ends as one that serves does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PATIENT = 60.0
"""Seconds after which a test fails: nothing here takes long, but the machine may be loaded."""

GATE = """
import asyncio, os, time
from contextlib import asynccontextmanager
from mailgate import Message, Policy

def say(word):
    os.write(1, f"{word}\\n".encode())

policy = Policy()

@policy.mail
async def check(message: Message) -> None: ...
"""

WAITS = """
say("waits")
time.sleep(600)
"""
STUBBORN = """
try:
    say("waits")
    time.sleep(600)
except BaseException:
    say("goes on")
"""
FACTORY = """
def policy():
    say("waits")
    time.sleep(600)
"""
FIRST = """
@asynccontextmanager
async def first():
    try:
        yield
    finally:
        say("left")

policy.resource(first())
"""
ENTERS = """
@asynccontextmanager
async def second():
    say("waits")
    await asyncio.sleep(600)
    yield

policy.resource(second())
"""
ENTERS_ALL_THE_SAME = """
@asynccontextmanager
async def second():
    say("waits")
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        say("goes on")
    try:
        yield
    finally:
        say("left, too")

policy.resource(second())
"""


def told(here: Path, source: str, *options: str, number: signal.Signals, times: int = 1) -> str:
    """Have a policy wait as it is loaded, send a signal; return what was said until the end.

    The status is 0, and the socket is gone: neither was so where the kernel ended it.
    """
    (here / "gate.py").write_text(GATE + source)
    command = ["run", "-p", "milter", "-l", f"unix:{here}/s", *options, "gate.py"]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "mailgate", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = [process.stdout.readline()]
            while said.count("waits\n") < times:
                said.append(process.stdout.readline())
                assert said[-1], said
            assert (here / "s").is_socket()
            process.send_signal(number)
            rest, _ = process.communicate(timeout=PATIENT)
            assert process.returncode == 0, rest
        finally:
            process.kill()
    assert not (here / "s").exists()
    return "".join([*said, rest])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        (WAITS, []),
        (STUBBORN, ["goes on"]),
        (FACTORY, []),
        (FIRST + ENTERS, ["left"]),
        (FIRST + ENTERS_ALL_THE_SAME, ["goes on", "left, too", "left"]),
    ],
    ids=["import", "stubborn import", "factory", "resource", "stubborn resource"],
)
def test_a_signal_ends_what_does_not_serve_yet(
    here: Path, source: str, said: list[str], number: signal.Signals
) -> None:
    lines = told(here, source, number=number).splitlines()
    lines.remove(f"warning: {number.name}")
    assert lines == ["waits", *said]


def test_a_signal_ends_the_one_that_would_keep_workers(here: Path) -> None:
    said = told(here, WAITS, "--workers", "2", number=signal.SIGTERM)
    assert said == "waits\nwarning: SIGTERM\n"


def test_workers_that_do_not_serve_yet_are_ended(here: Path) -> None:
    source = 'if os.path.exists("loaded"):\n    say("waits")\n    time.sleep(600)\n'
    source += 'open("loaded", "w").close()\n'
    said = told(here, source, "--workers", "2", number=signal.SIGTERM, times=2)
    assert sorted(said.splitlines()) == [
        *("info: 2 workers", "waits", "waits"),
        *["warning: SIGTERM"] * 3,
    ]
