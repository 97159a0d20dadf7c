"""A program under test with everything that it starts: what all of them use, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from bench.measure import Program

_TICKS = os.sysconf("SC_CLK_TCK")  # units of processor time a second


class Family(Program):
    """A running program and its descendants; the name is for its error message."""

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        super().__init__(argv, subprocess.DEVNULL, subprocess.DEVNULL)
        self._name = name

    def cpu(self) -> float:
        """Return the processor time used so far, in seconds; it is counted in hundredths.

        That of descendants which have ended is their parents'.
        """
        return sum(sum(map(int, _stat(pid)[11:15])) for pid in self._pids()) / _TICKS

    def peak(self) -> float:
        """Return the sum of the peak resident sizes, in MiB; a shared page counts in each."""
        return sum(map(_peak, self._pids())) / 1024

    def forget_peak(self) -> None:
        """Let the peaks begin anew, at the present sizes: see proc(5), clear_refs."""
        for pid in self._pids():
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def _pids(self) -> Iterator[int]:
        """Return the processes that run, the first one first."""
        if not self.runs():
            return
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            if fields := _stat(int(entry.name)):
                children.setdefault(int(fields[1]), []).append(int(entry.name))
        ahead = [self._process.pid]
        while ahead:
            pid = ahead.pop()
            yield pid
            ahead += children.get(pid, ())

    def _kill(self) -> None:
        """Have no process left: those that are stopped start no others."""
        found: set[int] = set()
        while new := set(self._pids()) - found:
            for pid in new:
                _signal(pid, signal.SIGSTOP)
            found |= new
        for pid in found - {self._process.pid}:
            _signal(pid, signal.SIGKILL)
        super()._kill()


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name: none where the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _peak(pid: int) -> int:
    """Return the peak resident size of a process in KiB: 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
