"""Plays smtpd to a filter of the imsg API 52 with the smtpd of the tests: `played` of the tables.

python -m bench.opensmtpd52_played takes the options of imsgload, checks what that checks, and
prints the same JSON line. It is a process of its own, so that the filter can have another core.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import resource
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import click

from bench.measure import BenchError, Program
from tests.opensmtpd52.client import TRACE, Client
from tests.opensmtpd52.frames import Death
from tests.opensmtpd52.smtpd import PATIENCE, Hang, Smtpd

_WARM = 20  # sessions at most, before the clock starts
_HEAD = (
    b"From: Alice Example <alice@example.org>\n"
    b"To: Bob Example <bob@example.net>\n"
    b"Subject: the minutes of last Tuesday\n"
)
_LINE = b"The minutes of last Tuesday are in the table below, one line a department.\n"


class _Filter(Program):
    """A filter, started as smtpd does it."""

    def __init__(self, command: Sequence[str], theirs: socket.socket) -> None:
        theirs.setblocking(False)
        with theirs:
            super().__init__(command, theirs.fileno(), subprocess.DEVNULL)

    def cpu(self) -> float:
        """Return the processor time used so far, in seconds: see clock_getcpuclockid(3)."""
        clock = ctypes.c_int()
        if ctypes.CDLL(None).clock_getcpuclockid(self._process.pid, ctypes.byref(clock)):
            raise self.failure("has no clock")
        return time.clock_gettime(clock.value)

    def leave(self) -> None:
        """Wait for the end; BenchError where it is none, or not a good one."""
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise self.failure("does not end") from error
        if status != 0:
            raise self.failure(f"ended with the status {status}")
        self.end()


@dataclass(frozen=True, slots=True)
class _Mail:
    """What each session sends: messages of two parts, between which a filter may add octets."""

    head: bytes
    body: bytes
    added: int
    messages: int

    @property
    def octets(self) -> bytes:
        """A message as the client sends it."""
        return self.head + self.body

    def check(self, delivered: bytes) -> None:
        """See that a message is as it was sent; BenchError where it is not."""
        head = _with_crlf(TRACE) + self.head
        whole = delivered.startswith(head) and delivered.endswith(self.body)
        if not whole or len(delivered) != len(head) + len(self.body) + self.added:
            raise BenchError(f"made {len(delivered)} octets of a message, which are not right")


def _mail(size: int, gain: int, messages: int) -> _Mail:
    """Return what to send; the octets of a message, and of the line added, are those with LF."""
    lines = b"\n" + _LINE * (size // len(_LINE))
    body = lines[: size - len(_HEAD) - 1] + b"\n"
    head, body = _with_crlf(_HEAD), _with_crlf(body)
    return _Mail(head, body, gain + 1 if gain else 0, messages)


def _with_crlf(lines: bytes) -> bytes:
    """Return lines as SMTP has them."""
    return lines.replace(b"\n", b"\r\n")


async def _session(smtpd: Smtpd, mail: _Mail, until: float, times: list[float]) -> None:
    """Send the messages of a session; the time of each is taken from MAIL on."""
    client = Client(smtpd)
    client.pieces = lambda left: left  # all of it
    _all_taken([await client.connect(), await client.greet()])
    for _ in range(mail.messages):
        began = time.perf_counter()
        replies = [await client.mail(), await client.rcpt(), await client.message(mail.octets)]
        ended = time.perf_counter()
        _all_taken(replies)
        mail.check(client.delivered.pop())
        times.append(ended - began)
        if ended >= until:
            break
    await client.quit()


def _all_taken(replies: Sequence[str]) -> None:
    """See that smtpd lets the client go on; BenchError where it does not."""
    if any(not reply.startswith("2") for reply in replies):
        raise BenchError(f"has smtpd answer {replies}")


async def _sessions(smtpd: Smtpd, mail: _Mail, number: int, seconds: float) -> list[float]:
    """Have so many sessions at a time until the time is up and they have ended.

    Return the seconds of each message.
    """
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def one_after_the_other() -> None:
        await _session(smtpd, mail, until, times)
        while time.perf_counter() < until:
            await _session(smtpd, mail, until, times)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(number):
                group.create_task(one_after_the_other())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return times


async def _measured(
    command: Sequence[str], mail: _Mail, sessions: int, seconds: float
) -> dict[str, float]:
    """Run a filter, and return what imsgload tells; BenchError where it does something wrong."""
    ours, theirs = socket.socketpair()
    program = _Filter(command, theirs)
    smtpd = Smtpd(ours)
    try:
        await smtpd.start()
        await _sessions(smtpd, mail, min(sessions, _WARM), 0)
        began, used, own = time.perf_counter(), program.cpu(), time.process_time()
        times = sorted(await _sessions(smtpd, mail, sessions, seconds))
        told = {
            "messages": len(times),
            "msgs_per_s": len(times) / (time.perf_counter() - began),
            "p50_ms": 1000 * times[len(times) // 2],
            "p99_ms": 1000 * times[len(times) * 99 // 100],
            "filter_cpu_s": program.cpu() - used,
            "own_cpu_s": time.process_time() - own,
            "peak_kib": 1024 * program.peak(),
        }
        if smtpd.faults:
            raise BenchError(f"is at fault: {smtpd.faults[0]}")
    except (BenchError, Death, Hang) as error:
        raise program.failure(f"under load: {error}") from error
    smtpd.stop()
    program.leave()
    return told


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-c", "sessions", type=click.IntRange(1), default=1, help="Sessions at a time.")
@click.option("-n", "messages", type=click.IntRange(1), default=1, help="Messages of a session.")
@click.option("-s", "size", type=click.IntRange(1024), default=4096, help="Octets of a message.")
@click.option("-g", "gain", default=0, help="Octets of the line that the filter adds to it.")
@click.option("-t", "seconds", default=1.0, help="Seconds.")
@click.argument("command", nargs=-1, required=True)
def main(
    sessions: int, messages: int, size: int, gain: int, seconds: float, command: tuple[str, ...]
) -> None:
    """Play smtpd to the filter COMMAND."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        told = asyncio.run(_measured(command, _mail(size, gain, messages), sessions, seconds))
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    print(json.dumps(told))


if __name__ == "__main__":
    main()
