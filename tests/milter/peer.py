"""Say packets to the adapter as they are, good or bad, and count the answers."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from typing import final

from mailgate_milter.wire import Command, Negotiated, Response, parse_negotiated
from tests.hostile.cases import Act, Send, Step, Sync, Wait
from tests.milter.mta import NO_REPLY
from tests.milter.running import Socket

UNANSWERED = {Command.MACRO, Command.ABORT, Command.QUIT, Command.QUIT_NC}


@final
class Peer:
    """The other end of a connection, and what was said on it."""

    def __init__(self, sock: Socket) -> None:
        self.socket = sock
        self.given = bytearray()
        self.said = bytearray()
        self.cut = False  # by this side

    async def play(self, script: Iterator[Step]) -> None:
        """Do what a case describes."""
        for step in script:
            match step:
                case Send(data):
                    await self.send(data)
                case Sync():
                    await self.sync()
                case Wait(seconds):
                    await asyncio.sleep(min(seconds, 0.1))
                case Act("close"):
                    self.socket.close()
                    self.cut = True
                case Act("reset"):
                    self.reset()
                case Act("no_read"):
                    self.socket.transport.pause_reading()

    async def send(self, data: bytes) -> None:
        self.given += data
        self.socket.send(data)
        await asyncio.sleep(0)

    async def sync(self) -> None:
        """Wait for the answers to what was sent; go on where none comes."""
        try:
            async with asyncio.timeout(1.0):
                while self.owed() > 0 and not self.socket.ended:
                    self.said += await self.socket.receive()
        except TimeoutError:
            pass

    async def rest(self) -> None:
        """Read until all is answered or the connection has ended, and what comes then."""
        await self.sync()
        self.said += await self.socket.early()

    def reset(self) -> None:
        """Close with RST."""
        raw = self.socket.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.transport.abort()
        self.cut = True

    @property
    def quits(self) -> bool:
        """Tell whether QUIT was said."""
        return any(code == Command.QUIT for code, _ in frames(bytes(self.given)))

    def answers(self) -> list[tuple[int, bytes]]:
        """Return the packets that came back; the last one has to be whole."""
        rest, packets = bytes(self.said), []
        while rest:
            size = int.from_bytes(rest[:4])
            assert 0 < size <= len(rest) - 4, f"no packet: {rest[:40]!r}"
            packets.append((rest[4], rest[5 : 4 + size]))
            rest = rest[4 + size :]
        return packets

    def owed(self) -> int:
        """Return how many answers are still to come, in an ordinary course of things."""
        return due(bytes(self.given), self._agreed()) - len(self.answers())

    def _agreed(self) -> Negotiated | None:
        first = next(iter(self.answers()), None)
        return parse_negotiated(first[1]) if first and first[0] == Response.OPTNEG else None


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the whole packets at the start of what an MTA has written."""
    at = 0
    while len(data) - at >= 5:
        size = int.from_bytes(data[at : at + 4])
        if not 0 < size <= len(data) - at - 4:
            return
        yield data[at + 4], data[at + 5 : at + 4 + size]
        at += 4 + size


def due(data: bytes, agreed: Negotiated | None) -> int:
    """Return how many answers an MTA waits for that has written this."""
    steps = agreed.steps if agreed is not None else 0
    codes = {command.value for command in Command} - UNANSWERED
    count = 0
    for code, _ in frames(data):
        if code == Command.QUIT:
            break
        count += code in codes and not steps & NO_REPLY.get(Command(code), 0)
    return count
