"""The process: what big, slow and broken clients send costs bounded memory, and nobody else's time.

The mail server behind it and the clients are in the process of the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import final

import pytest

from tests.core.asking import in_loop
from tests.hostile.cases import Act
from tests.milter.running import PATIENCE
from tests.smtp import gate
from tests.smtp.client import Client
from tests.smtp.mta import Mta

MIB = 1 << 20
LETTER = b"Subject: x\r\n\r\nHello.\r\n"
ENVELOPE = (b"MAIL FROM:<ann@client.example>", b"RCPT TO:<bob@example.org>")

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@final
class Process:
    """A running ``mailgate run -p smtp``."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.port = port

    async def open(self) -> Client:
        """Connect; it may still be about to listen."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    return (await loop.create_connection(Client, "127.0.0.1", self.port))[1]
                await asyncio.sleep(0.05)

    async def greeted(self, *commands: bytes) -> Client:
        """Open a session, and say some commands that are taken."""
        client = await self.open()
        assert all(reply.code in (250, 354) for reply in await client.begin(*commands))
        return client

    async def deliver(self) -> None:
        """Send a message that is taken, in a session of its own."""
        client = await self.greeted()
        assert (await client.deliver(LETTER)).code == 250
        assert (await client.say(b"QUIT")).code == 221
        client.check()

    def memory(self, name: str = "VmRSS") -> int:
        """Return the resident memory in octets; its highest value is ``VmHWM``."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) << 10

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@asynccontextmanager
async def process(folder: Path, upstream: str, *settings: str) -> AsyncIterator[Process]:
    """Run the command on a free port; it has to end well at SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config, log = folder / "mailgate.toml", folder / "log"
    config.write_text(
        f'[smtp]\nlisten = "127.0.0.1:{port}"\nupstream = "{upstream}"\n'
        "[smtp.limits]\nconnections = 600\n[smtp.pool]\nidle = 1\n"
    )
    command = [sys.executable, "-m", "mailgate", "run", f"{gate.__file__}:gate", *settings]
    with log.open("wb") as stderr:
        popen = await asyncio.to_thread(
            partial(subprocess.Popen, [*command, "-p", "smtp", "-c", str(config)], stderr=stderr)
        )
    try:
        yield Process(popen.pid, port)
        assert popen.poll() is None
        popen.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(popen.wait, PATIENCE) == 0
    finally:
        popen.kill()
        popen.wait()
    assert "Traceback" not in log.read_text()
    assert "fault of mailgate" not in log.read_text()


@asynccontextmanager
async def beside_the_mta(folder: Path, *settings: str) -> AsyncIterator[tuple[Process, Mta]]:
    """Run the command before a mail server; what was used before is there."""
    async with Mta() as mta:
        async with process(folder, mta.url, *settings) as running:
            await running.deliver()
            await running.deliver()
            yield running, mta
            await running.deliver()
        assert mta.faults == []


@LINUX
@pytest.mark.parametrize("begin", [b"NOOP ", b"", b"AUTH LOGIN\r\n"])
@in_loop
async def test_a_command_line_without_an_end_costs_no_memory(begin: bytes, tmp_path: Path) -> None:
    async with beside_the_mta(tmp_path) as (running, _):
        before = running.memory("VmHWM")
        client = await running.greeted()
        await client.send(begin)
        for _ in range(64):
            await client.send(b"x" * MIB)
        await client.until_ended()
        assert client.check().exchanges[-1].reply.code in (421, 500)
        assert running.memory("VmHWM") - before < 8 * MIB


@LINUX
@in_loop
async def test_a_line_of_a_message_without_an_end_costs_no_memory(tmp_path: Path) -> None:
    async with beside_the_mta(tmp_path) as (running, mta):
        before = running.memory("VmHWM")
        client = await running.greeted(*ENVELOPE, b"DATA")
        for _ in range(64):
            await client.send(b"x" * MIB)
        await client.send(b"\r\n.\r\n")
        assert (await client.reply()).code in (552, 554)
        assert (await client.deliver(LETTER)).code == 250
        assert running.memory("VmHWM") - before < 8 * MIB
        assert len(mta.messages) == 3


@LINUX
@in_loop
async def test_a_header_section_without_an_end_costs_no_memory(tmp_path: Path) -> None:
    async with beside_the_mta(tmp_path) as (running, _):
        before = running.memory("VmHWM")
        client = await running.greeted(*ENVELOPE, b"DATA")
        for _ in range(64):
            await client.send(b"X-H: yyyyyyyy\r\n" * (MIB // 15))
        await client.send(b"\r\n.\r\n")
        assert (await client.reply()).code == 552
        assert running.memory("VmHWM") - before < 8 * MIB


@LINUX
@in_loop
async def test_a_big_message_lies_on_disk(tmp_path: Path) -> None:
    async with beside_the_mta(tmp_path, "--set", "whole=false") as (running, mta):
        before = running.memory("VmHWM")
        client = await running.greeted()
        content = b"Subject: big\r\n\r\n" + b"0123456789" * 7 + b"\r\n"
        content += content[-72:] * (30 * MIB // 72)
        assert (await client.deliver(content)).code == 250
        assert running.memory("VmHWM") - before < 8 * MIB
        assert mta.messages[-1].content == content


@LINUX
@in_loop
async def test_ten_thousand_pipelined_commands_cost_no_memory(tmp_path: Path) -> None:
    async with beside_the_mta(tmp_path) as (running, _):
        before = running.memory("VmHWM")
        client = await running.greeted(ENVELOPE[0])
        client.transport.pause_reading()
        sending = asyncio.create_task(client.send((ENVELOPE[1] + b"\r\n") * 10_000))
        await running.deliver()
        client.transport.resume_reading()
        await sending
        codes = [(await client.reply()).code for _ in range(10_000)]
        assert codes == [250] * 1000 + [452] * 9000
        assert running.memory("VmHWM") - before < 8 * MIB
        client.close()


@in_loop
async def test_five_hundred_slow_clients_do_not_delay_another(tmp_path: Path) -> None:
    async with beside_the_mta(tmp_path) as (running, mta):
        slow = [await running.open() for _ in range(500)]
        for number, client in enumerate(slow):
            held = number % 25 == 0  # as many as there may be connections to the server behind
            replies = await client.begin(*(*ENVELOPE, b"DATA") if held else ())
            assert all(reply.code in (250, 354) for reply in replies)

        async def drip() -> None:
            while True:
                for client in slow:
                    await client.send(b"N")
                await asyncio.sleep(0.5)

        dripping = asyncio.create_task(drip())
        for _ in range(20):
            await running.deliver()
        dripping.cancel()
        for client in slow:
            client.close()
        assert len(mta.messages) == 22


@LINUX
@in_loop
async def test_clients_that_reset_leave_nothing_behind(tmp_path: Path) -> None:
    whole = b"EHLO x\r\n" + b"\r\n".join(ENVELOPE) + b"\r\nDATA\r\n" + LETTER + b".\r\nQUIT\r\n"
    async with beside_the_mta(tmp_path) as (running, mta):
        before, opened = running.memory(), running.descriptors
        for number in range(300):
            client = await running.open()
            await client.send(whole[: len(whole) * (number % 60) // 60])
            for _ in range(number % 4):
                await asyncio.sleep(0)
            await client.play([Act("reset")])
        for _ in range(int(PATIENCE / 0.05)):
            if running.descriptors <= opened:
                break
            await asyncio.sleep(0.05)
        assert running.descriptors <= opened
        assert running.memory() - before < 8 * MIB
        assert len(mta.messages) == 2
