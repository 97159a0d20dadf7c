"""A client in this process: it sends the octets it is given, and counts the replies.

Every reply has to be well-formed, and to answer something that was said.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, cast, final

from tests.hostile.cases import Act, Send, Step, Sync, Wait
from tests.milter.running import PATIENCE
from tests.oracles import check_smtp_replies

_BDAT = re.compile(rb"BDAT +([0-9]{1,10})(?: +(LAST))?", re.IGNORECASE)
_LINE = re.compile(rb"([2-5][0-9][0-9])([ -]?)([^\r\n]*)\r\n")

BANNER, END = b"<banner>", b"<end of data>"


class Reply(NamedTuple):
    """A reply: its code, and its lines as they came, line ends included."""

    code: int
    text: bytes


class Exchange(NamedTuple):
    """Something a client said, and the reply to it."""

    command: bytes
    reply: Reply


class Dialogue(NamedTuple):
    """What was said so far; ``owed`` are the replies that are to come at the least.

    ``more`` are replies that answer nothing.
    """

    exchanges: Sequence[Exchange]
    owed: int
    more: Sequence[Reply]


@final
class Client(asyncio.Protocol):
    """One connection to the proxy."""

    def __init__(self, *, lmtp: bool = False) -> None:
        self.lmtp = lmtp
        self.given = bytearray()
        self.said = bytearray()
        self.ended = False  # the proxy closed it
        self.cut = False  # this side did
        self._changed = asyncio.Event()
        self._read = 0  # octets of `said` that `reply` has returned
        self._room = asyncio.Event()
        self._room.set()

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.said += data
        self._changed.set()

    def eof_received(self) -> bool:
        self.ended = True
        self._changed.set()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self._changed.set()
        self._room.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    # -- talking ---------------------------------------------------------------------------------

    async def send(self, octets: bytes, size: int | None = None) -> None:
        """Send octets as they are, ``size`` of them in a write; the other side may read slowly."""
        for at in range(0, len(octets), size or len(octets) or 1):
            if self.ended or self.cut:
                return
            piece = octets[at : at + (size or len(octets))]
            self.given += piece
            self.transport.write(piece)
            await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE):
                await self._room.wait()

    async def say(self, line: bytes) -> Reply:
        """Send a command line, and return its reply."""
        await self.send(line + b"\r\n")
        return await self.reply()

    async def reply(self) -> Reply:
        """Return the next reply."""
        async with asyncio.timeout(PATIENCE):
            while (found := next(replies(self.said, self._read), None)) is None:
                assert not self.ended, f"hung up after {bytes(self.said[-200:])!r}"
                await self._more()
        self._read += len(found.text)
        return found

    async def begin(self, *commands: bytes) -> list[Reply]:
        """Wait for the banner, greet, and say some commands; return the replies to them."""
        assert (await self.reply()).code == 220
        hello = b"LHLO" if self.lmtp else b"EHLO"
        assert (await self.say(hello + b" client.example.org")).code == 250
        return [await self.say(command) for command in commands]

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Go on encrypted, behind 220 to STARTTLS; what was said before is forgotten."""
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(
            self.transport, self, context, server_hostname="mx.example.org"
        )
        assert transport is not None
        self.transport = transport
        self.given.clear()
        self.said[:] = b"220 encrypted\r\n"  # in the place of a banner
        self._read = len(self.said)

    async def data(self, content: bytes) -> Reply:
        """Send DATA, dot-stuffed lines, and the end of data; return the last reply."""
        asked = await self.say(b"DATA")
        if asked.code != 354:
            return asked
        await self.send(content + b".\r\n")
        return await self.reply()

    async def deliver(self, content: bytes, *recipients: bytes) -> Reply:
        """Send one message behind the greeting; return its last reply, or the first refusal."""
        commands = [b"MAIL FROM:<ann@client.example>"]
        commands += [b"RCPT TO:<%b>" % one for one in recipients or (b"bob@example.org",)]
        for command in commands:
            if (reply := await self.say(command)).code != 250:
                return reply
        return await self.data(content)

    async def until_ended(self) -> None:
        """Wait until the proxy closes the connection."""
        async with asyncio.timeout(PATIENCE):
            while not self.ended:
                await self._more()

    async def _more(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # -- a case ----------------------------------------------------------------------------------

    async def play(self, script: Iterable[Step], most: float = 0.1) -> None:
        """Do what a case describes; wait ``most`` seconds where it waits for longer."""
        for step in script:
            if self.ended:
                return
            match step:
                case Send(data):
                    await self.send(data)
                case Sync():
                    await self.sync()
                case Wait(seconds):
                    await asyncio.sleep(min(seconds, most))
                case Act(kind):
                    self._act(kind)

    def _act(self, kind: str) -> None:
        if kind == "no_read":
            self.transport.pause_reading()
        elif kind == "half_close":
            self.transport.write_eof()
        else:
            self.cut = True
            if kind == "reset":
                raw = self.transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.transport.abort()
            self.transport.close()

    async def sync(self, seconds: float = 1.0) -> None:
        """Wait for the replies to what was said; go on where none comes."""
        try:
            async with asyncio.timeout(seconds):
                while self.dialogue().owed and not self.ended:
                    await self._more()
        except TimeoutError:
            pass

    def close(self) -> None:
        """Hang up."""
        self.cut = True
        self.transport.close()

    # -- what was said ---------------------------------------------------------------------------

    def dialogue(self) -> Dialogue:
        """Return what was said and answered."""
        return dialogue(bytes(self.given), bytes(self.said), lmtp=self.lmtp)

    def check(self) -> Dialogue:
        """Return it, where every reply is well-formed and answers something."""
        assert check_smtp_replies(bytes(self.said)) == []
        found = self.dialogue()
        assert [reply.text for reply in found.more] == []
        return found


def replies(said: bytes | bytearray, at: int = 0) -> Iterator[Reply]:
    """Yield the whole replies in what a server has said."""
    begun = at
    while (line := _LINE.match(said, at)) is not None:
        at = line.end()
        if line[2] != b"-":
            yield Reply(int(line[1]), bytes(said[begun:at]))
            begun = at


def dialogue(given: bytes, said: bytes, *, lmtp: bool = False) -> Dialogue:
    """Return which reply is for what: one for each command (RFC 5321 4.2).

    A server may say 421 at any time (RFC 5321 3.8), or 500 of a line that it does not await the
    end of (RFC 5321 4.5.3.1.10); nothing more then.
    """
    walk = _Walk(given, deque(replies(said)), lmtp)
    walk.go()
    more = walk.replies
    if more and (more[0].code == 421 or (more[0].code == 500 and walk.rest)):
        walk.exchanges.append(Exchange(walk.rest, more.popleft()))
        walk.owed = 0
    return Dialogue(walk.exchanges, walk.owed, list(more))


class _Walk:
    """Goes through what was given, with the replies to it."""

    def __init__(self, given: bytes, replies: deque[Reply], lmtp: bool) -> None:
        self.exchanges: list[Exchange] = []
        self.owed = 0
        self.replies = replies
        self._given = given
        self._at = 0
        self._lmtp = lmtp
        self._recipients = 0

    @property
    def rest(self) -> bytes:
        """What was given of another line."""
        return self._given[self._at :]

    def go(self) -> None:
        going = self._answered(BANNER) is not None
        while going and (line := self._line()) is not None:
            going = line.endswith(b"\r\n") and self._command(line[:-2])
            if not line.endswith(b"\r\n"):
                self._answered(line)

    def _line(self) -> bytes | None:
        end = self._given.find(b"\n", self._at) + 1
        if not end:
            return None
        line, self._at = self._given[self._at : end], end
        return line

    def _answered(self, what: bytes) -> Reply | None:
        """Return the next reply; None where it has not come, or nothing may come behind it."""
        if not self.replies:
            self.owed += 1
            return None
        reply = self.replies.popleft()
        self.exchanges.append(Exchange(what, reply))
        return None if reply.code == 421 else reply

    def _command(self, line: bytes) -> bool:
        """Go through a command, and what belongs to it; tell whether more may follow."""
        verb = line[:4].upper()
        if chunk := _BDAT.fullmatch(line.strip()):
            return self._chunk(line, int(chunk[1]), chunk[2] is not None)
        reply = self._answered(line)
        if reply is None:
            return False
        done = 200 <= reply.code <= 299
        if verb == b"RCPT":
            self._recipients += done
        elif verb in (b"MAIL", b"RSET", b"EHLO", b"LHLO", b"HELO") and done:
            self._recipients = 0
        elif verb == b"DATA" and reply.code == 354:
            return self._content()
        elif verb == b"AUTH" and reply.code == 334:
            answer = self._line()
            return answer is not None and self._command(b"AUTH " + answer.strip())
        return not (done and (verb == b"QUIT" or line.upper() == b"STARTTLS"))

    def _content(self) -> bool:
        end = (b"\r\n" + self._given[self._at :]).find(b"\r\n.\r\n")
        if end < 0:
            return False
        self._at += end + 3
        return self._ended()

    def _chunk(self, line: bytes, size: int, last: bool) -> bool:
        if len(self._given) < self._at + size:
            return False
        self._at += size
        if last and self._recipients:
            return self._ended()
        return self._answered(line) is not None

    def _ended(self) -> bool:
        """Take the reply to the end of data; in LMTP, that of each recipient (RFC 2033 4.2)."""
        number = self._recipients if self._lmtp else 1
        self._recipients = 0
        return all(self._answered(END) is not None for _ in range(number))
