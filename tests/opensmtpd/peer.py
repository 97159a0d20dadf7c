"""Play smtpd at the other end of a filter's socket, and look at every line that comes back.

with process(Path("policy.py")) as filter:
    filter.peer.send(b"config|ready\\n")
    filter.peer.until_ready()
    assert filter.peer.faults() == []
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tests.oracles import OpensmtpdOracle

PATIENCE = 20.0  # seconds until a missing answer is a failure: a loaded machine is slow
PAUSE = 1.0  # seconds that a filter whose output nobody reads is given to take input
READ = 1 << 18


class Peer:
    """smtpd's end: writes without ever waiting for the filter alone, so neither side can block.

    ``kept`` octets of the filter's output stay in `output`; the oracle sees all of it.
    """

    def __init__(self, sock: socket.socket, kept: int = 1 << 24) -> None:
        self.oracle = OpensmtpdOracle()
        self.output = bytearray()
        self.ended = False  # the filter closed its end
        self.reading = True
        self._kept = kept
        self._unsent = bytearray()
        self._sock = sock
        sock.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)

    def send(self, data: bytes) -> None:
        """Write all of it, and read meanwhile what the filter writes; stop if the filter ends.

        While `reading` is off, what the filter does not take yet is left for the next call.
        """
        self.oracle.asked(data)
        self._unsent += data
        until = time.monotonic() + (PATIENCE if self.reading else PAUSE)
        while self._unsent and not self.ended and time.monotonic() < until:
            readable, writable = self._wait(0.1, write=True)
            if writable:
                self._write()
            if readable:
                self._read()
        assert not (self._unsent and self.reading) or self.ended, "the filter does not read"

    def settle(self, patience: float = PATIENCE) -> None:
        """Read until every question has its answer, or time is up."""
        self.send(b"")
        self._read_until(lambda: self.oracle.owed == 0, patience)

    def until_ready(self, patience: float = PATIENCE) -> None:
        """Read until the filter has registered."""
        self._read_until(lambda: self.oracle.ready, patience)

    def quiet(self, seconds: float) -> None:
        """Read whatever comes within some seconds."""
        self._read_until(lambda: False, seconds)

    def half_close(self) -> None:
        """End the filter's input, as smtpd does when it stops, and read the rest of its output."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._read_until(lambda: self.ended, PATIENCE)

    def faults(self) -> list[str]:
        """Return what the oracle has to say of the filter."""
        return self.oracle.ended()

    def lines(self) -> list[bytes]:
        """Return the output kept so far, without the registration."""
        lines = bytes(self.output).split(b"\n")[:-1]
        return [line for line in lines if not line.startswith(b"register|")]

    def _read_until(self, done: Callable[[], bool], patience: float) -> None:
        until = time.monotonic() + patience
        while not (done() or self.ended) and (left := until - time.monotonic()) > 0:
            if self._wait(left)[0]:
                self._read()

    def _wait(self, seconds: float, *, write: bool = False) -> tuple[bool, bool]:
        events = (selectors.EVENT_READ if self.reading else 0) | (
            selectors.EVENT_WRITE if write else 0
        )
        if not events:
            time.sleep(seconds)
            return False, False
        self._selector.modify(self._sock, events)
        ready = [found for _, found in self._selector.select(seconds)]
        found = ready[0] if ready else 0
        return bool(found & selectors.EVENT_READ), bool(found & selectors.EVENT_WRITE)

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            sent = self._sock.send(self._unsent[:READ])
            del self._unsent[:sent]

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = True
        self.oracle.wrote(data)
        self.output += data[: max(0, self._kept - len(self.output))]

    def close(self) -> None:
        """Give the socket back."""
        self._selector.close()
        self._sock.close()


class Process:
    """A filter started as smtpd starts it: one socket for input and output, stderr elsewhere."""

    def __init__(self, peer: Peer, popen: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self.peer = peer
        self.popen = popen
        self._stderr = stderr

    def peak(self) -> int:
        """Return the most memory that it has held so far, in octets."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) << 10

    def alive(self) -> bool:
        """Tell whether it still runs."""
        return self.popen.poll() is None

    def end(self) -> int:
        """End its input as smtpd does when it stops, and return the exit status."""
        self.peer.half_close()
        return self.popen.wait(PATIENCE)

    @property
    def stderr(self) -> str:
        """Return what it has written to stderr."""
        self._stderr.seek(0)
        return self._stderr.read().decode("utf-8", "replace")


@contextlib.contextmanager
def process(policy: Path, *arguments: str, kept: int = 1 << 24) -> Iterator[Process]:
    """Run ``mailgate run`` with a policy file; it is killed in the end if it lives."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "mailgate", "run", str(policy), "-p", "opensmtpd", *arguments]
    with tempfile.TemporaryFile() as stderr, contextlib.closing(Peer(ours, kept)) as peer:
        with theirs:
            popen = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=stderr,
                start_new_session=True,
            )
        try:
            yield Process(peer, popen, stderr)
        finally:
            popen.kill()
            popen.wait()
