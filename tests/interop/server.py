"""A private mail server of Debian: a process in a work folder of its own, with those that it starts.

It is told to end, and then has to have told its own processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.interop.processes import eventually, working_in

_START = 30.0  # seconds until it must listen
_STOP = 15.0  # seconds until all processes must be gone


class Server(ABC):
    """A mail server that runs as long as a ``with`` statement."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        left = self.stop()
        assert not left, f"processes that outlived their mail server: {left}"

    @abstractmethod
    def log(self) -> str:
        """Return what the server has logged so far."""

    @abstractmethod
    def listens(self) -> bool:
        """Tell whether it listens everywhere, without connecting to it."""

    @abstractmethod
    def _prepare(self) -> None:
        """Fill the work folder."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Return the command that runs the server in the foreground."""

    @abstractmethod
    def _environment(self) -> Mapping[str, str]:
        """Return the environment of that command."""

    def start(self) -> None:
        """Start the server and wait until it listens."""
        self._work.chmod(0o755)
        self._prepare()
        with open(self._work / "output", "wb") as output:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self._work,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **self._environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=0o022,
            )
        up = eventually(lambda: self.listens() or not self.alive(), _START)
        if not up or not self.alive():
            self.stop()
            said = (self._work / "output").read_text(errors="replace")
            raise AssertionError(f"{self._command()[0]} did not start:\n{said}{self.log()}")

    def stop(self) -> list[int]:
        """End the server; return the processes that outlived it and had to be killed."""
        assert self._process is not None
        self._process.terminate()
        eventually(lambda: not working_in(self._work), _STOP)
        left = working_in(self._work)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        return left

    @property
    def pid(self) -> int:
        """The id of the first process."""
        assert self._process is not None
        return self._process.pid

    def alive(self) -> bool:
        """Tell whether the server runs."""
        return self._process is not None and self._process.poll() is None
