"""What stray clients and broken MTAs send over TCP: none of it ends the server or a neighbour.

The probes are those that other milter libraries were tried with; most of them lose the whole
process to at least one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import final

import pytest

from mailgate_milter.wire import Response
from tests.core.asking import in_loop
from tests.milter import everything
from tests.milter.peer import Peer
from tests.milter.postfix import Postfix
from tests.milter.running import PATIENCE, Socket, run, serving
from tests.milter.samples import frame

OFFER = frame("O", bytes.fromhex("00000006000001ff001fffff"))
CONNECT = frame("C", b"mx.example\x004\x13\x88192.0.2.1\0")
GREETED = OFFER + CONNECT + frame("H", b"client.example\0")
MAIL = GREETED + frame("M", b"<ann@client.example>\0")
DATA = MAIL + frame("R", b"<bob@example.org>\0") + frame("T", b"")
HEADERS = DATA + frame("L", b"Subject\0 one\0") + frame("N", b"")
WHOLE = HEADERS + frame("B", b"body\r\n") + frame("E", b"")

# What is sent, and whether the connection is closed for it.
PROBES: dict[str, tuple[bytes, bool]] = {
    "length-0x7fffffff": (OFFER + b"\x7f\xff\xff\xffC", True),
    "body-of-1.5-MB": (HEADERS + frame("B", b"x" * 1_500_000), True),
    "length-0": (OFFER + b"\0\0\0\0", True),
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", True),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", True),
    "unknown-command": (OFFER + frame("Z", b"x"), True),
    "header-without-nul": (DATA + frame("L", b"Subject"), True),
    "mail-without-nul": (GREETED + frame("M", b"<ann@client.example>"), True),
    "unknown-family": (OFFER + frame("C", b"h\0X\0\x19x\0"), True),
    "optneg-of-4-octets": (frame("O", b"\0\0\0\6"), True),
    "optneg-version-1": (frame("O", bytes.fromhex("000000010000000f0000003f")), True),
    "optneg-version-7": (frame("O", bytes.fromhex("00000007000001ff001fffff")) + CONNECT, False),
    "second-optneg": (OFFER + OFFER, True),
    "connect-before-optneg": (CONNECT, True),
    "macros-with-an-odd-count": (OFFER + frame("D", b"Ci\0one\0j\0") + CONNECT, False),
    "addresses-that-are-not-utf-8": (
        GREETED + frame("M", b"<\xff\xfe@client.example>\0") + frame("R", b"<\xe9@example.org>\0"),
        False,
    ),
    "nothing": (b"", False),
}
RESETS = 60


async def probe(peer: Peer, name: str) -> None:
    """Send a probe; it is closed, or each of its commands is answered."""
    data, closes = PROBES[name]
    await peer.send(data)
    await peer.rest()
    if closes:
        peer.said += await peer.socket.until_ended()
    assert peer.socket.ended is closes
    assert {code for code, _ in peer.answers()} <= {Response.OPTNEG, Response.CONTINUE}
    if not closes:
        assert peer.owed() == 0
        peer.socket.close()


async def reset_while_replying(open_peer: Callable[[], Awaitable[Socket]]) -> None:
    """Connect again and again, and reset in the middle of the answers."""
    for number in range(RESETS):
        peer = Peer(await open_peer())
        await peer.send(WHOLE[: len(WHOLE) * (number + 1) // RESETS])
        for _ in range(number % 4):
            await asyncio.sleep(0)
        peer.reset()


@asynccontextmanager
async def neighbour(open_peer: Callable[[], Awaitable[Socket]]) -> AsyncIterator[None]:
    """Hold a session in the middle of a message, and see that it ends well."""
    mta = Postfix(open_peer)
    assert (await mta.connect()).startswith(b"220")
    said = await mta.say(
        b"EHLO client.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
    )
    assert said == b"250 CHUNKING\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n"
    yield
    assert (await mta.say(b"DATA\r\n")).startswith(b"354")
    assert (await mta.say(b"Subject: x\r\n\r\nHello.\r\n.\r\n")).startswith(b"250")
    await mta.end()
    assert mta.faults == []
    (delivered,) = mta.delivered
    assert delivered.raw.endswith(b"Subject: x\r\n\r\nHello.\r\n")


@pytest.mark.parametrize("name", PROBES)
@in_loop
async def test_a_probe_leaves_nothing_behind(name: str) -> None:
    async with serving(everything.policy) as running, neighbour(running.open_tcp):
        await probe(Peer(await running.open_tcp()), name)
    assert running.errors == []


@in_loop
async def test_resets_while_replying_leave_nothing_behind() -> None:
    async with serving(everything.policy) as running, neighbour(running.open_tcp):
        await reset_while_replying(running.open_tcp)
    assert running.errors == []


# -- the process ----------------------------------------------------------------------------------


@final
class Process:
    """A running ``mailgate run -p milter``."""

    def __init__(self, popen: subprocess.Popen[bytes], port: int) -> None:
        self.popen = popen
        self.port = port

    async def open(self) -> Socket:
        """Connect; it may still be about to listen."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    return (await loop.create_connection(Socket, "127.0.0.1", self.port))[1]
                await asyncio.sleep(0.05)


@contextlib.contextmanager
def process(log: Path) -> Iterator[Process]:
    """Run the command on a free port; it has to end well at SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{(port := free.getsockname()[1])}"
    policy = str(Path(everything.__file__))
    command = [sys.executable, "-m", "mailgate", "run", policy, "-p", "milter", "-l", address]
    with log.open("wb") as stderr:
        popen = subprocess.Popen(command, stderr=stderr, start_new_session=True)
    try:
        yield Process(popen, port)
        assert popen.poll() is None
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(PATIENCE) == 0
    finally:
        popen.kill()
        popen.wait()
    assert "Traceback" not in log.read_text()


def resident(pid: int) -> int:
    """Return the resident memory of a process in octets; 0 where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) << 10


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open; 0 where the system does not tell."""
    folder = Path(f"/proc/{pid}/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


async def outlive(running: Process) -> None:
    async with neighbour(running.open):
        pass
    pid = running.popen.pid
    before, opened = resident(pid), descriptors(pid)
    async with neighbour(running.open):
        for name in PROBES:
            await probe(Peer(await running.open()), name)
        await reset_while_replying(running.open)
    async with neighbour(running.open):
        pass
    for _ in range(int(PATIENCE / 0.05)):
        if descriptors(pid) <= opened:
            break
        await asyncio.sleep(0.05)
    assert descriptors(pid) <= opened
    assert resident(pid) - before < 64 << 20


def test_the_process_outlives_them_all(tmp_path: Path) -> None:
    with process(tmp_path / "log") as running:
        run(partial(outlive, running))
