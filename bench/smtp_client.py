"""An SMTP client that takes the time of each message; its commands go one by one."""

from __future__ import annotations

import asyncio
import time

from bench.measure import BenchError

_HEADER = b"From: <a@x.example>\r\nTo: <b@y.example>\r\nSubject: load\r\n\r\n"
_LINE = b"x" * 74 + b"\r\n"
_STALL = 60.0  # seconds without an answer until a server counts as stuck


def latencies(port: int, length: int, sessions: int, kept: bool, seconds: float) -> list[float]:
    """Send messages for some seconds, at least one a session; return the seconds of each.

    A message takes from MAIL to the reply to its end; from the connection on where it has one
    of its own. BenchError where a reply is none that lets it go on.
    """
    return asyncio.run(_all(port, length, sessions, kept, seconds))


async def _all(port: int, length: int, sessions: int, kept: bool, seconds: float) -> list[float]:
    """Run the sessions."""
    content = _HEADER + _LINE * ((length - len(_HEADER)) // len(_LINE)) + b".\r\n"
    times: list[float] = []
    until = time.perf_counter() + seconds
    try:
        async with asyncio.timeout(seconds + _STALL), asyncio.TaskGroup() as group:
            for _ in range(sessions):
                group.create_task(_session(port, content, kept, until, times))
    except ExceptionGroup as errors:
        raise BenchError(f"failed a client: {errors.exceptions[0]}") from errors
    except TimeoutError as error:
        raise BenchError(f"has not answered for {_STALL:.0f} s") from error
    return times


async def _session(
    port: int, content: bytes, kept: bool, until: float, times: list[float]
) -> None:
    """Send one message after another, on one connection or each on its own."""
    lasting = await _connected(port) if kept else None
    ended = 0.0
    while ended < until:
        began = time.perf_counter()
        client = lasting or await _connected(port)
        await client.send(content)
        ended = time.perf_counter()
        times.append(ended - began)
        if client is not lasting:
            client.quit()
    if lasting:
        lasting.quit()


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._received = b""
        self._reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take octets of a reply; its last line has no hyphen behind the code."""
        self._received += data
        last = self._received[self._received.rfind(b"\n", 0, -1) + 1 :]
        if last.endswith(b"\n") and last[3:4] != b"-" and not self._reply.done():
            self._reply.set_result(self._received)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever waits."""
        if not self._reply.done():
            self._reply.set_exception(exc or ConnectionResetError("the connection was closed"))
            self._reply.exception()  # nobody has to look at it

    async def expect(self, code: bytes) -> None:
        """Await a reply with a code."""
        reply = await self._reply
        self._received = b""
        self._reply = asyncio.get_running_loop().create_future()
        if not reply.startswith(code):
            raise BenchError(f"answered {reply!r}, not {code.decode()}")

    async def say(self, octets: bytes, code: bytes) -> None:
        """Write and await a reply."""
        self._transport.write(octets)
        await self.expect(code)

    async def send(self, content: bytes) -> None:
        """Send a message, dot-stuffed and with its final dot."""
        await self.say(b"MAIL FROM:<a@x.example>\r\n", b"250")
        await self.say(b"RCPT TO:<b@y.example>\r\n", b"250")
        await self.say(b"DATA\r\n", b"354")
        await self.say(content, b"250")

    def quit(self) -> None:
        """Leave; nobody waits for the answer."""
        self._transport.write(b"QUIT\r\n")
        self._transport.close()


async def _connected(port: int) -> _Client:
    """Connect and greet."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(_Client, "127.0.0.1", port)
    await client.expect(b"220")
    await client.say(b"EHLO load.example\r\n", b"250")
    return client
