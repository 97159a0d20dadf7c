"""Data-lines a second through OpenSMTPD filters: a feeder plays smtpd over a socketpair.

The feeder starts a filter as smtpd does (stdin and stdout are one and the same AF_UNIX stream
socket), sends the events of many sessions as fast as the filter reads them, reads every
answer meanwhile, and stops the clock at the last one. As smtpd, it sends only what the filter
has registered; unlike smtpd, it does not wait for an answer before the session's next event,
so that the filter is the only one to be waited for.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench.measure import BenchError, Contestant, Figures, Program
from bench.obtain import MAILGATE, compiled
from bench.table import Column, plain, ratio

HERE = Path(__file__).parent
C_LIBRARY = "C, libopensmtpd"

COLUMNS = (
    Column("lines/s", plain("lines/s")),
    Column("to C", ratio("lines/s")),
    Column("CPU s", plain("cpu s", 2)),
    Column("peak MiB", plain("peak MiB", 1)),
)

VERSIONS = {"0.6": "6.8.0p2", "0.7": "7.8.0-portable"}
"""The protocols to play, and a release that speaks each."""

_BODY = (
    b"Received: from client.example.org (client.example.org [192.0.2.7])",
    b"From: Alice Example <alice@example.org>",
    b"To: Bob Example <bob@example.test>",
    b"Subject: the quarterly figures",
    b"Message-ID: <20240101.1@example.org>",
    b"",
    b"Dear Bob,",
    b"the figures you asked for are in the table below, one line for each",
    b"of the departments; a|pipe and a line with two dots follow.",
    b"..",
    b"",
)

_STALL = 60.0  # seconds without an answer until a filter counts as stuck
_BATCH = b"@BATCH"  # stands for the batch's number, as long as its six hex digits
_TOKENS = {
    phase: b"76e8a048%08x" % number
    for number, phase in enumerate(
        (b"connect", b"ehlo", b"mail-from", b"rcpt-to", b"data", b"data-line", b"commit", b"quit")
    )
}  # smtpd has one for each phase, the same in all sessions


@dataclass(frozen=True, slots=True)
class Load:
    """How much mail a filter gets, in how many sessions at a time, by which protocol."""

    messages: int
    lines: int
    sessions: int
    protocol: str

    def handshake(self) -> bytes:
        """Return what smtpd says before it waits for a filter's registrations."""
        lines = [f"config|smtpd-version|{VERSIONS[self.protocol]}"]
        if self.protocol != "0.6":
            lines.append(f"config|protocol|{self.protocol}")  # told since 7.6
        lines += [
            "config|smtp-session-timeout|300",
            "config|subsystem|smtp-in",
            "config|admd|mx.test",
            "config|ready",
        ]
        return "\n".join((*lines, "")).encode()


class Stream:
    """The events of a run, for a filter with these registrations.

    Only one batch of sessions is made; the others differ in their ids alone.
    """

    def __init__(self, hooks: frozenset[bytes], load: Load) -> None:
        self.answers = self.lines = 0
        self._hooks = hooks
        self._load = load
        self._clock = 0
        whole, rest = divmod(load.messages, load.sessions)
        self._batches = [self._batch(load.sessions)] * whole
        self.answers *= whole
        self.lines *= whole
        if rest:
            self._batches.append(self._batch(rest))

    def __iter__(self) -> Iterator[bytes]:
        """Return what smtpd sends, a batch at a time."""
        for number, batch in enumerate(self._batches):
            yield batch.replace(_BATCH, b"%06x" % number)

    def _batch(self, sessions: int) -> bytes:
        """Return the events of some sessions with one message each, their lines interleaved."""
        out: list[bytes] = []
        for n in range(sessions):
            self._open(out, n)
        for number in range(self._load.lines):
            for n in range(sessions):
                self._ask(out, n, b"data-line", _BODY[number % len(_BODY)])
        for n in range(sessions):
            self._ask(out, n, b"data-line", b".")
            self._close(out, n)
        self.lines += sessions * (self._load.lines + 1)
        return b"".join(out)

    def _open(self, out: list[bytes], n: int) -> None:
        """Say what happens from the connection to the data."""
        message = self._message(n)
        here = b"client.example.org|pass|192.0.2.7:4321|192.0.2.1:25"
        self._report(out, n, b"link-connect", here)
        self._ask(out, n, b"connect", b"client.example.org|192.0.2.7")
        self._report(out, n, b"filter-response", b"connected|proceed")
        self._report(out, n, b"protocol-server", b"220 mx.test ESMTP OpenSMTPD")
        self._report(out, n, b"link-greeting", b"mx.test")
        self._command(out, n, b"ehlo", b"client.example.org", b"EHLO client.example.org")
        self._report(out, n, b"link-identify", b"EHLO|client.example.org")
        self._report(out, n, b"protocol-server", b"250 HELP")
        sender, recipient = b"alice@example.org", b"bob@example.test"
        self._command(out, n, b"mail-from", sender, b"MAIL FROM:<" + sender + b">")
        self._report(out, n, b"protocol-server", b"250 2.0.0 Ok")
        self._report(out, n, b"tx-begin", message)
        self._report(out, n, b"tx-mail", message + b"|ok|" + sender)
        self._command(out, n, b"rcpt-to", recipient, b"RCPT TO:<" + recipient + b">")
        self._report(out, n, b"tx-envelope", message + b"|" + message + b"00000001")
        self._report(out, n, b"protocol-server", b"250 2.1.5 Recipient ok")
        self._report(out, n, b"tx-rcpt", message + b"|ok|" + recipient)
        self._command(out, n, b"data", b"", b"DATA")
        self._report(out, n, b"protocol-server", b"354 Enter mail")
        self._report(out, n, b"tx-data", message + b"|ok")

    def _close(self, out: list[bytes], n: int) -> None:
        """Say what happens after the final dot."""
        self._command(out, n, b"commit", b"", b".")
        self._report(out, n, b"protocol-server", b"250 2.0.0 Message accepted for delivery")
        self._report(out, n, b"tx-commit", self._message(n) + b"|4711")
        self._report(out, n, b"tx-reset", self._message(n))
        self._command(out, n, b"quit", b"", b"QUIT")
        self._report(out, n, b"protocol-server", b"221 2.0.0 Bye")
        self._report(out, n, b"link-disconnect", b"")

    def _message(self, n: int) -> bytes:
        """Return the message id of a batch's session: eight digits."""
        return _BATCH + b"%02x" % n

    def _command(self, out: list[bytes], n: int, phase: bytes, value: bytes, line: bytes) -> None:
        """Report a client's command, ask for it, and report the decision."""
        self._report(out, n, b"protocol-client", line)
        self._ask(out, n, phase, value)
        self._report(out, n, b"filter-response", phase + b"|proceed")

    def _report(self, out: list[bytes], n: int, event: bytes, value: bytes) -> None:
        """Add a report, if registered."""
        if b"report|smtp-in|" + event in self._hooks:
            out.append(self._line(b"report", event, n, *([value] if value else [])))

    def _ask(self, out: list[bytes], n: int, phase: bytes, value: bytes) -> None:
        """Add a request, if registered, and count the answer it wants."""
        if b"filter|smtp-in|" + phase in self._hooks:
            out.append(self._line(b"filter", phase, n, _TOKENS[phase], value))
            self.answers += 1

    def _line(self, kind: bytes, name: bytes, n: int, *values: bytes) -> bytes:
        """Return one line of the protocol."""
        self._clock += 7
        stamp = b"1700000000.%06d" % (self._clock % 1_000_000)
        start = (kind, self._load.protocol.encode(), stamp, b"smtp-in", name)
        return b"|".join((*start, _BATCH + b"%010x" % n, *values)) + b"\n"


class Feeder:
    """Runs filters under one load; streams for the same registrations are made once."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._streams: dict[frozenset[bytes], Stream] = {}

    def contest(self, argv: Sequence[str], added_lines: int = 0) -> Callable[[], Figures]:
        """Return what runs a filter once.

        ``added_lines`` is by how many lines the filter makes a message longer.
        """
        return lambda: self._run(argv, added_lines)

    def _run(self, argv: Sequence[str], added_lines: int) -> Figures:
        """Start the filter, feed it, end it; return its figures."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                program = Program(argv, theirs.fileno(), theirs.fileno())
            try:
                return self._measured(program, ours, added_lines)
            except (BenchError, OSError) as error:
                raise program.failure(str(error)) from error

    def _measured(self, program: Program, ours: socket.socket, added_lines: int) -> Figures:
        """Shake hands, run the clock while the answers come, and see the filter leave."""
        ours.settimeout(_STALL)
        ours.sendall(self._load.handshake())
        hooks = _registered(ours)
        if hooks not in self._streams:
            self._streams[hooks] = Stream(hooks, self._load)
        stream = self._streams[hooks]
        seconds = _pump(ours, stream, stream.answers + self._load.messages * added_lines)
        peak = program.peak()
        _expect_end(ours)
        lines = stream.lines / seconds
        return {"lines/s": lines, "cpu s": program.finish(), "peak MiB": peak}


def _registered(ours: socket.socket) -> frozenset[bytes]:
    """Read up to register|ready; return the hooks, as b"report|smtp-in|tx-mail"."""
    text = b""
    while not text.endswith(b"register|ready\n"):
        piece = ours.recv(65536)
        if not piece:
            raise BenchError("ended before it had registered")
        text += piece
    return frozenset(line.partition(b"|")[2] for line in text.splitlines())


def _pump(ours: socket.socket, stream: Stream, expected: int) -> float:
    """Send the stream and read all answers, both as they go; return the seconds it took."""
    ours.setblocking(False)
    fd = ours.fileno()
    both = selectors.EVENT_READ | selectors.EVENT_WRITE
    with selectors.DefaultSelector() as selector:
        selector.register(fd, both)
        batches = iter(stream)
        left = memoryview(b"")
        answers = 0
        began = time.perf_counter()
        while answers < expected:
            ready = selector.select(_STALL)
            if not ready:
                raise BenchError(f"stalled after {answers} of {expected} answers")
            mask = ready[0][1]
            if mask & selectors.EVENT_READ:
                if not (piece := os.read(fd, 1 << 20)):
                    raise BenchError(f"ended after {answers} of {expected} answers")
                answers += piece.count(b"\n")
            if mask & selectors.EVENT_WRITE:
                left = left or memoryview(next(batches, b""))
                if left:
                    left = left[os.write(fd, left[: 1 << 18]) :]
                else:
                    selector.modify(fd, selectors.EVENT_READ)
        return time.perf_counter() - began


def _expect_end(ours: socket.socket) -> None:
    """Close our direction; the filter must leave, and must not have answered too much."""
    ours.settimeout(_STALL)
    ours.shutdown(socket.SHUT_WR)
    surplus = b""
    while piece := ours.recv(65536):
        surplus += piece
    if surplus:
        raise BenchError(f"answered too much: {surplus[:200]!r}")


def contestants(load: Load, folder: Path) -> Iterator[Contestant]:
    """Return the peers that this machine can run, then mailgate with its policies."""
    feeder = Feeder(load)
    null_filter = folder / "null_filter"
    source = HERE / "peers" / "null_filter.c"
    if compiled(null_filter, [source], ["opensmtpd"], ["libopensmtpd-dev"]):
        yield Contestant(C_LIBRARY, feeder.contest([str(null_filter)]))
    else:
        click.echo("no libopensmtpd to compare with (Debian: gcc, libopensmtpd-dev)", err=True)
    for name, file in (("Python, naive loop", "naive"), ("Python, least", "batch")):
        peer = HERE / "peers" / f"{file}_filter.py"
        yield Contestant(name, feeder.contest([sys.executable, str(peer)]))
    for name, file, added_lines in (
        ("mailgate, headers only", "pass_through", 0),
        ("mailgate, body in pieces", "streamed", 0),
        ("mailgate, whole message", "whole", 0),
        ("mailgate, whole, one header", "edited", 1),
    ):
        policy = HERE / "policies" / f"{file}.py"
        argv = [MAILGATE, "run", "--protocol", "opensmtpd", str(policy)]
        yield Contestant(name, feeder.contest(argv, added_lines))
