"""Messages a second through SMTP proxies: smtp-source sends, smtp-sink receives.

A proxy is started once for all rates, and is idle while another has its turn.  smtp-sink counts
what arrives: a proxy that says 250 to what it has not handed on is found out.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.family import Family
from bench.measure import BenchError, Figures, Program, free_port
from bench.obtain import unpacked
from bench.smtp_client import latencies
from bench.smtp_peers import Peer

_START = 20.0  # seconds until a proxy has to serve
_STALL = 120.0  # seconds after which a run counts as stuck
_SETTLE = 0.5  # seconds in which large messages get under way
_TIMED = 20  # sessions, above which the client that takes times would time itself
_WATCH = 3  # times as long, small mail is sent beside large
_SMALL, _LARGE, _HUGE = 4 << 10, 25 << 20, 30 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """How mail comes: octets of a message, sessions at a time, kept or new connections."""

    length: int
    sessions: int
    kept: bool


class Tools:
    """Postfix's smtp-source and smtp-sink; ``tree`` is its unpacked Debian package."""

    def __init__(self, folder: Path) -> None:
        libraries = "usr/lib/postfix"
        tree = unpacked(folder / "postfix", "postfix", f"{libraries}/sbin/smtpd", libraries)
        if tree is None:
            raise BenchError("no smtp-source and smtp-sink (Debian: postfix)")
        self.tree = tree

    def argv(self, program: str) -> list[str]:
        """Return the command of one of them."""
        libraries = self.tree / "usr/lib/postfix"
        return ["env", f"LD_LIBRARY_PATH={libraries}", str(self.tree / "usr/sbin" / program)]

    def send(self, port: int, load: Load, messages: int) -> float:
        """Send messages; return the seconds it took, BenchError where one was not taken."""
        argv = self._source(port, load, messages)
        began = time.perf_counter()
        try:
            subprocess.run(argv, check=True, capture_output=True, timeout=_STALL)
        except subprocess.CalledProcessError as error:
            raise BenchError(f"failed under load:\n{error.stderr.decode()}".rstrip()) from error
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"had not taken {messages} messages in {_STALL:.0f} s") from error
        return time.perf_counter() - began

    @contextmanager
    def sending(self, port: int, load: Load) -> Iterator[None]:
        """Send messages without end."""
        argv = self._source(port, load, 1_000_000)
        with tempfile.TemporaryFile() as told:
            source = subprocess.Popen(argv, stdout=told, stderr=told)
            try:
                time.sleep(_SETTLE)
                yield
                if source.poll() is not None:
                    told.seek(0)
                    raise BenchError(f"failed under load:\n{told.read().decode()}".rstrip())
            finally:
                source.kill()
                source.wait()

    def _source(self, port: int, load: Load, messages: int) -> list[str]:
        """Return the command that sends messages: see smtp-source(1)."""
        argv = [*self.argv("smtp-source"), "-f", "a@x.example", "-t", "b@y.example"]
        argv += ["-s", str(load.sessions), "-l", str(load.length), "-m", str(messages)]
        return [*argv, *(["-d"] if load.kept else []), f"127.0.0.1:{port}"]


class Sink:
    """A running smtp-sink: the server behind all proxies."""

    def __init__(self, tools: Tools) -> None:
        self.port = free_port()
        self._counters = tempfile.TemporaryFile()
        # By default it takes 256 sessions, fewer than the proxies keep between them.
        argv = [*tools.argv("smtp-sink"), "-c", "-m", "5000"]
        argv += ["-u", "nobody"] if os.geteuid() == 0 else []
        argv += [f"127.0.0.1:{self.port}", "1024"]
        self._program = Program(argv, subprocess.DEVNULL, self._counters.fileno())

    def messages(self) -> int:
        """Return how many messages have arrived."""
        file = self._counters.fileno()
        last = os.pread(file, 100, max(0, os.fstat(file).st_size - 100))
        return int((re.findall(rb"mesg=(\d+)\r", last) or [0])[-1])

    def end(self) -> None:
        """End it."""
        self._program.end()
        self._counters.close()


class Proxy:
    """A peer's running proxy; without one, mail goes to the sink."""

    def __init__(self, peer: Peer, sink: Sink, tools: Tools) -> None:
        self._sink = sink
        self._tools = tools
        self._rates: dict[Load, float] = {}
        self._port = sink.port
        self._family: Family | None = None
        if peer.argv is not None:
            self._port = free_port()
            self._family = Family(peer.name, peer.argv(self._port, sink.port))

    def await_first(self) -> None:
        """Try a message until it goes through."""
        deadline = time.monotonic() + _START
        while True:
            try:
                self._tools.send(self._port, Load(_SMALL, 1, True), 1)
                return
            except BenchError:
                ended = self._family is not None and not self._family.runs()
                if time.monotonic() > deadline or ended:
                    with self._blaming():
                        raise
            time.sleep(0.05)

    def run(self, load: Load, seconds: float) -> Figures:
        """Return the figures of one load, from runs of about so many seconds."""
        if load not in self._rates:  # a short run alone says little of how many that takes
            self._send(load, 2 * load.sessions)
            self._send(load, self._messages(load, seconds / 4))
        return self._measured(load, self._messages(load, seconds)) | self._timed(load, seconds)

    def large(self, seconds: float) -> Figures:
        """Return the size at rest in MiB, what a 30 MB message adds to its peak, and times.

        These are of 4 KB messages in one session, while two others send messages of 25 MB.
        """
        self._send(Load(_SMALL, 1, True), 20)
        figures = self._grown()
        with self._blaming(), self._tools.sending(self._port, Load(_LARGE, 2, True)):
            arrived = self._sink.messages()
            times = latencies(self._port, _SMALL, 1, True, _WATCH * seconds)
            arrived = self._sink.messages() - arrived - len(times)
        return figures | _percentiles(times) | {"large/s": arrived / sum(times)}

    def end(self) -> None:
        """End it."""
        if self._family is not None:
            self._family.end()

    def _messages(self, load: Load, seconds: float) -> int:
        """Return how many messages take so long at the last rate, at least two a session."""
        return max(2 * load.sessions, round(self._rates[load] * seconds))

    def _measured(self, load: Load, messages: int) -> dict[str, float]:
        """Send messages; return rate, processor time of a message and peak of memory."""
        if self._family is None:
            return {"msgs/s": self._send(load, messages)}
        self._family.forget_peak()
        before = self._family.cpu()
        rate = self._send(load, messages)
        used = self._family.cpu() - before
        peak = self._family.peak()
        return {"msgs/s": rate, "cpu ms": 1000 * used / messages, "peak MiB": peak}

    def _timed(self, load: Load, seconds: float) -> dict[str, float]:
        """Return the times of messages under the same load."""
        if load.sessions > _TIMED:
            return {}
        with self._blaming():
            times = latencies(self._port, load.length, load.sessions, load.kept, seconds)
        return _percentiles(times)

    def _grown(self) -> dict[str, float]:
        """Return the size at rest, and what one message of 30 MB adds to its peak."""
        if self._family is None:
            return {}
        self._family.forget_peak()
        rest = self._family.peak()
        self._send(Load(_HUGE, 1, True), 1)
        return {"rest MiB": rest, "rise MiB": self._family.peak() - rest}

    def _send(self, load: Load, messages: int) -> float:
        """Send messages and see that they arrive; return how many went in a second."""
        with self._blaming():
            before = self._sink.messages()
            rate = messages / self._tools.send(self._port, load, messages)
            if (arrived := self._sink.messages() - before) != messages:
                raise BenchError(f"took {messages} messages and handed on {arrived}")
        self._rates[load] = rate
        return rate

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        """Add a proxy's last words to an error."""
        try:
            yield
        except BenchError as error:
            raise error if self._family is None else self._family.failure(str(error)) from error


@contextmanager
def serving(peers: Sequence[Peer], tools: Tools) -> Iterator[dict[str, Proxy]]:
    """Run a sink and a proxy of each peer before it; return them by the peers' names."""
    with ExitStack() as stack:
        sink = Sink(tools)
        stack.callback(sink.end)
        proxies = {}
        for peer in peers:
            proxies[peer.name] = Proxy(peer, sink, tools)
            stack.callback(proxies[peer.name].end)
            proxies[peer.name].await_first()
        yield proxies


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and longest, in ms."""
    cuts = statistics.quantiles(times, n=100, method="inclusive") if times[1:] else [*times] * 99
    return {"p50 ms": cuts[49] * 1000, "p99 ms": cuts[98] * 1000, "worst ms": max(times) * 1000}
