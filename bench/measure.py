"""The measuring loop: rounds interleaved over all contestants, and medians of them.

A machine's load changes from minute to minute. Interleaved rounds (A B C A B C) let every
contestant have its share of the bad ones; that makes ratios repeatable where rates are not.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

Figures = Mapping[str, float]


class BenchError(Exception):
    """A contestant did not do its work, so its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A name for the table, and what runs once and returns the figures of that run."""

    name: str
    run: Callable[[], Figures]


def medians(
    contestants: Sequence[Contestant], rounds: int, began: Callable[[str], None]
) -> dict[str, Figures]:
    """Run everybody in turn; return the median of each figure by contestant.

    ``began`` is told the name of each run as it starts.
    """
    runs: dict[str, list[Figures]] = {contestant.name: [] for contestant in contestants}
    for number in range(1, rounds + 1):
        for contestant in contestants:
            began(f"round {number} of {rounds}: {contestant.name}")
            runs[contestant.name].append(contestant.run())
    return {
        name: {key: statistics.median(run[key] for run in figures) for key in figures[0]}
        for name, figures in runs.items()
    }


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A running program under test; what it used is known when it has ended.

    Its stderr is kept for the error message. It starts in an empty folder, so that it finds
    no configuration by chance.
    """

    def __init__(self, argv: Sequence[str], stdin: int, stdout: int) -> None:
        self._name = Path(argv[0]).name
        self._folder = tempfile.TemporaryDirectory(prefix="mailgate-bench.")
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            argv, stdin=stdin, stdout=stdout, stderr=self._stderr, cwd=self._folder.name
        )

    def runs(self) -> bool:
        """Tell whether it has not ended."""
        return self._process.poll() is None

    def peak(self) -> float:
        """Return the peak resident size so far, in MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024

    def resident(self) -> float:
        """Return the present resident size in KiB; of a shared page, its share."""
        rollup = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
        return float(line.split()[1])

    def finish(self) -> float:
        """Wait for the end and return the processor time used, in seconds."""
        _, status, usage = os.wait4(self._process.pid, 0)
        # Popen has not seen the end that wait4() took, and would wait for it.
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._clean()
        return usage.ru_utime + usage.ru_stime

    def failure(self, reason: str) -> BenchError:
        """End the program; return an error with the reason and its last words."""
        self._kill()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip()
        self._clean()
        return BenchError(f"{self._name} {reason}" + (f":\n{words[-2000:]}" if words else ""))

    def end(self) -> None:
        """End the program at once: some of them stay at SIGTERM."""
        self._kill()
        self._clean()

    def _kill(self) -> None:
        """Have no process left."""
        self._process.kill()
        self._process.wait()

    def _clean(self) -> None:
        """Leave nothing behind."""
        self._stderr.close()
        self._folder.cleanup()
