"""Messages a second through filters of the imsg API 52: two programs play smtpd to them.

The peers in C were written for this comparison, and hand each message on as it is.  A filter is
started anew for each run, as smtpd does it; it is warm when the clock starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from bench.measure import BenchError, Contestant, Figures, medians
from bench.obtain import MAILGATE, compiled
from bench.table import Column, plain, ratio, show

HERE = Path(__file__).parent
C_LINES = "c-lines"

PEERS = {
    C_LINES: "C, shaped as the null filter of the C API: by lines",
    "c-pieces": "C, the least: what has come is written at once",
    "rcpt": "mailgate, answers at RCPT, no content",
    "headers": "mailgate, headers only",
    "whole": "mailgate, whole message",
    "edited": "mailgate, whole, one header",
    "pieces": "mailgate, body in pieces",
}
"""Who can take part."""

SMTPDS = {
    "imsgload": "smtpd is imsgload, in C",
    "played": "smtpd is that of the tests, in Python",
}
"""Who can play smtpd, with some words for the title."""

SIZES = {"4k": 4 << 10, "1m": 1 << 20}
SESSIONS = (1, 20, 200)

_POLICIES = {
    "rcpt": "milter_null",
    "headers": "pass_through",
    "whole": "whole",
    "edited": "edited",
    "pieces": "streamed",
}
_SOURCES = HERE / "peers" / "imsg"

_COLUMNS = (
    Column("msgs/s", plain("msgs/s")),
    Column("to C", ratio("msgs/s")),
    Column("CPU ms/msg", plain("cpu ms", 3)),
    Column("to C", ratio("cpu ms")),
    Column("smtpd CPU", plain("smtpd ms", 3)),
    Column("peak MiB", plain("peak MiB", 1)),
    Column("p50 ms", plain("p50 ms", 2)),
    Column("p99 ms", plain("p99 ms", 2)),
)

Told = Callable[[str], None]
"""Is told what is being measured."""


@dataclass(frozen=True, slots=True)
class Load:
    """How mail comes: octets of a message, sessions at a time, messages in each."""

    size: str
    sessions: int
    messages: int


@dataclass(frozen=True, slots=True)
class Scope:
    """What to measure: who plays smtpd, the loads, runs of each, seconds of a run."""

    smtpds: Collection[str]
    loads: Sequence[Load]
    rounds: int
    seconds: float


class Generator:
    """The programs that play smtpd, and the commands of the filters that they start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        imsgload = self._compiled("imsgload", "imsgload.c", "smtpd.c", "imsg.c")
        self._smtpds = {
            "imsgload": [str(imsgload)],
            "played": [sys.executable, "-m", "bench.opensmtpd52_played"],
        }
        self._echo = self._compiled("echo_filter", "echo_filter.c", "imsg.c")
        self._configuration = folder / "mailgate.toml"
        # By default it would be a user that only hosts with an OpenSMTPD have.
        self._configuration.write_text('[opensmtpd52]\nuser = "root"\n')

    def run(self, smtpd: str, peer: str, load: Load, seconds: float) -> Figures:
        """Send messages through a filter; BenchError where an answer was wrong or missing."""
        argv = [*self._smtpds[smtpd], "-c", str(load.sessions), "-n", str(load.messages)]
        argv += ["-s", str(SIZES[load.size]), "-t", str(seconds), "-g", str(_gain(peer, load))]
        with tempfile.TemporaryDirectory(prefix="mailgate-bench.") as empty:
            ended = subprocess.run(
                [*argv, *self._filter(peer)],
                check=False,
                capture_output=True,
                text=True,
                cwd=empty,
                env=os.environ | {"PYTHONPATH": str(HERE.parent)},
            )
        if ended.returncode != 0:
            raise BenchError(f"{peer} failed under load:\n{ended.stderr}".rstrip())
        told = json.loads(ended.stdout)
        return {
            "msgs/s": told["msgs_per_s"],
            "cpu ms": 1000 * told["filter_cpu_s"] / told["messages"],
            "smtpd ms": 1000 * told["own_cpu_s"] / told["messages"],
            "peak MiB": told["peak_kib"] / 1024,
            "p50 ms": told["p50_ms"],
            "p99 ms": told["p99_ms"],
        }

    def _filter(self, peer: str) -> list[str]:
        """Return the command of a filter."""
        if peer not in _POLICIES:
            return [str(self._echo), peer.removeprefix("c-")]
        policy = HERE / "policies" / f"{_POLICIES[peer]}.py"
        command = [MAILGATE, "run", "--protocol", "opensmtpd52"]
        return [*command, "--config", str(self._configuration), str(policy)]

    def _compiled(self, name: str, *sources: str) -> Path:
        """Compile a program."""
        program = self._folder / name
        if not compiled(program, [_SOURCES / source for source in sources], [], []):
            raise BenchError(f"no C compiler for {name} (Debian: gcc, libc6-dev)")
        return program


def rates(
    peers: Collection[str], scope: Scope, generator: Generator, console: Console, told: Told
) -> None:
    """Print a table for each load, of one smtpd after the other."""
    names = [name for name in PEERS if name in peers]
    for smtpd in (name for name in SMTPDS if name in scope.smtpds):
        for load in scope.loads:
            contestants = [
                Contestant(
                    f"{name}, {smtpd}, {_text(load)}",
                    partial(generator.run, smtpd, name, load, scope.seconds),
                )
                for name in names
            ]
            measured = medians(contestants, scope.rounds, told).values()
            rows = dict(zip((PEERS[name] for name in names), measured, strict=True))
            title = (
                f"imsg filter API 52, {SMTPDS[smtpd]}, {_text(load)}: "
                f"medians of {scope.rounds}, load {os.getloadavg()[0]:.1f}"
            )
            show(title, rows, _COLUMNS, rows.get(PEERS[C_LINES]), console)
            console.print()


def _gain(peer: str, load: Load) -> int:
    """Return the octets that a filter adds: a field with the length of the body.

    That has as many digits as the length of the message.
    """
    return len(f"X-Length: {SIZES[load.size]}\n") if peer == "edited" else 0


def _text(load: Load) -> str:
    """Name a load."""
    messages = "a message" if load.messages == 1 else f"{load.messages} messages"
    size = f"{load.size[:-1]} {load.size[-1].upper()}B"
    return f"{size}, {load.sessions} at a time, {messages} a session"
