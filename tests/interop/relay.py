"""A mail server that asks a milter and relays what it takes: what Postfix and Sendmail share.

Each runs in a work folder of its own, on a port of its own, and delivers to a `Sink` of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.interop.processes import eventually, free_port, listening, working_in
from tests.interop.sink import Sink, Taken

HOST = "mta.example.org"

_START = 30.0  # seconds until the port must listen
_STOP = 15.0  # seconds until all processes must be gone

# The field that the relay itself puts on top; a milter may put its own above that one.
_RECEIVED = re.compile(
    rb"(?m)^Received: (?:[^\r\n]|\r\n[ \t])*?\bby mta\.example\.org \("
    rb"(?:[^\r\n]|\r\n[ \t])*\r\n"
)


class Queued(NamedTuple):
    """A message in the queue of a relay.

    ``held`` is true of one that waits for an administrator: on hold, or quarantined.
    """

    id: str
    held: bool


class Relay(ABC):
    """A running mail server in front of a sink, with a milter behind it.

    ``milter`` is an address as mailgate takes it: ``unix:/path`` or ``127.0.0.1:port``. The
    milter need not be there: without it every message is answered "try again later".
    """

    def __init__(self, work: Path, milter: str) -> None:
        self.milter = milter
        self.port = free_port()
        self.sink = Sink()
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
    def queue(self) -> list[Queued]:
        """Return the messages that are in the queue."""

    @abstractmethod
    def log(self) -> str:
        """Return what the server has logged so far."""

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
        self.sink.start()
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
        up = eventually(lambda: listening(self.port) or not self.alive(), _START)
        if not up or not self.alive():
            self.stop()
            said = (self._work / "output").read_text(errors="replace")
            raise AssertionError(f"{self._command()[0]} did not start:\n{said}{self.log()}")

    def stop(self) -> list[int]:
        """End the server; return the processes that outlived it and had to be killed.

        The first one is told, and has to tell the others.
        """
        assert self._process is not None
        self._process.terminate()
        eventually(lambda: not working_in(self._work), _STOP)
        left = working_in(self._work)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self.sink.stop()
        return left

    def alive(self) -> bool:
        """Tell whether the server runs."""
        return self._process is not None and self._process.poll() is None

    def arrived(self, count: int, timeout: float = 15) -> list[Taken]:
        """Wait until the sink has this many messages; return them without the relay's trace.

        More than the count are an error, as far as they have come.
        """
        taken = self.sink.wait(count, timeout)
        assert len(taken) == count, f"{len(taken)} messages, not {count}:\n{self.log()[-4000:]}"
        return [m._replace(content=_untraced(m.content)) for m in taken]

    def idle(self, timeout: float = 15) -> bool:
        """Wait until the queue holds nothing but held messages; return whether it came to."""
        return eventually(lambda: all(message.held for message in self.queue()), timeout)


def _untraced(content: bytes) -> bytes:
    """Return a message without the field that the relay has put into it."""
    rest, fields = _RECEIVED.subn(b"", content, count=1)
    assert fields == 1, content[:600]
    return rest
