"""Messages a second through milters: the program milterload plays the MTA.

A filter is started once for a table, and is idle while another has its turn.  One message goes
through before anything is measured, so a filter that does not do its work is found at once.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError, Figures, Program, free_port
from bench.milter_peers import HERE, Peer
from bench.obtain import compiled

_START = 20.0  # seconds until a filter has to serve
_SETTLE = 0.5  # seconds in which a filter reads what the last connections sent
_BODY = 4096  # octets, what milterload sends unless told otherwise
_MARK = f"X-Length: {_BODY}"
"""What each message must gain from a filter that does real work."""


@dataclass(frozen=True, slots=True)
class Load:
    """How mail comes: connections at a time, messages on each, for how many seconds."""

    connections: int
    kept: int
    seconds: float


class Generator:
    """The program milterload."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "milterload"
        sources = [HERE / "milterload" / name for name in ("milterload.c", "script.c")]
        if not compiled(self._program, sources, [], []):
            raise BenchError("no C compiler for milterload (Debian: gcc, libc6-dev)")

    def run(self, work: str, address: str, load: Load) -> Figures:
        """Send messages; BenchError where a reply was wrong or missing."""
        argv = [str(self._program), "-c", str(load.connections), "-n", str(load.kept)]
        argv += ["-t", str(load.seconds), *(["-x", _MARK] if work == "real" else [])]
        ended = subprocess.run([*argv, address], check=False, capture_output=True, text=True)
        if ended.returncode != 0:
            raise BenchError(f"failed under load:\n{ended.stderr}{ended.stdout}".rstrip())
        told = json.loads(ended.stdout)
        return {"msgs/s": told["msgs_per_s"], "p50 ms": told["p50_ms"]}

    @contextmanager
    def idle(self, address: str, connections: int) -> Iterator[None]:
        """Hold connections that have got as far as CONNECT."""
        argv = [str(self._program), "-i", "-t", str(_START), "-c", str(connections), address]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            if not holder.stdout.readline():
                raise BenchError(f"did not take {connections} connections")
            time.sleep(_SETTLE)
            yield
            holder.stdin.close()


class Filter:
    """A peer's running filter."""

    def __init__(self, peer: Peer, work: str, address: str, generator: Generator) -> None:
        self._work = work
        self._address = address
        self._generator = generator
        null = subprocess.DEVNULL
        self._program = Program(peer.argv(work, address), null, null)
        self._await_first()

    def run(self, load: Load) -> Figures:
        """Return the figures of one load."""
        try:
            return self._generator.run(self._work, self._address, load)
        except BenchError as error:
            raise self._program.failure(str(error)) from error

    def memory(self, connections: int) -> Figures:
        """Return the size at rest in MiB, and what an idle connection adds to it in KiB."""
        before = self._program.resident()
        with self._generator.idle(self._address, connections):
            added = self._program.resident() - before
        return {"rest MiB": before / 1024, "KiB": added / connections}

    def end(self) -> None:
        """End it."""
        self._program.end()

    def _await_first(self) -> None:
        """Try a message until it goes through."""
        deadline = time.monotonic() + _START
        while True:
            try:
                self._generator.run(self._work, self._address, Load(1, 1, 0))
                return
            except BenchError as error:
                if time.monotonic() > deadline or not self._program.runs():
                    raise self._program.failure(str(error)) from error
            time.sleep(0.05)


@contextmanager
def serving(
    peers: Sequence[Peer], work: str, transport: str, generator: Generator
) -> Iterator[dict[str, Filter]]:
    """Run a filter of each peer; return them by the peers' names."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mailgate-bench."))
        filters = {}
        for number, peer in enumerate(peers):
            address = (
                f"unix:{folder}/{number}" if transport == "unix" else f"127.0.0.1:{free_port()}"
            )
            filters[peer.name] = Filter(peer, work, address, generator)
            stack.callback(filters[peer.name].end)
        yield filters
