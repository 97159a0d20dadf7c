"""SMTP sessions of the smtpd of these tests: what clients do, and what they and the filters see.

    client = Client(smtpd)
    assert await client.connect() == "220 mx.example.org ESMTP OpenSMTPD"
    await client.greet()
    assert (await client.mail())[:3] == "250"

Every method is one thing that the client does, and returns the reply; "" is the end of the
connection without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import final

from tests.opensmtpd52.frames import Death, Response, inet
from tests.opensmtpd52.smtpd import Hang, Smtpd, reply_of

BANNER = "220 mx.example.org ESMTP OpenSMTPD"
ENTER = '354 Enter mail, end with "." on a line by itself'
TRACE = (
    b"Received: from client.example (client.example [192.0.2.1])\n"
    b"\tby mx.example.org (OpenSMTPD) with ESMTP id 98775924\n"
    b"\tfor <bob@example.org>;\n"
    b"\tSat, 21 Nov 2026 10:00:00 +0000 (UTC)\n"
)
DEFAULTS = {
    "HELO": "530 Hello rejected",
    "MAIL": "530 Sender rejected",
    "RCPT": "530 Recipient rejected",
    "DATA": "530 Message rejected",
    "EOM": "530 Message rejected",
}


@final
class Way:
    """A message's way through the filters: smtpd writes at one end, and reads at the other."""

    def __init__(self, smtpd: Smtpd) -> None:
        self._smtpd = smtpd
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(smtpd.sinks_block)
        self._reading = reading.detach()
        self.writing = writing.detach()
        self.written = 0  # octets, of what is to be written
        self.taken = 0  # by the first filter
        self.received = bytearray()
        self.ended = smtpd.loop.create_future()
        self.refused_octets = False  # the first filter has closed its end
        self.listen()

    def listen(self) -> None:
        """Read what comes out at the other end."""
        if self._reading >= 0:
            self._smtpd.loop.add_reader(self._reading, self._readable)

    def deafen(self) -> None:
        """Read no more of it for the time being."""
        self._smtpd.loop.remove_reader(self._reading)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._reading, 65536)
            self.received += data
            if not data:
                self._smtpd.loop.remove_reader(self._reading)
                self.ended.set_result(None)

    async def write(self, data: bytes, pieces: Callable[[int], int]) -> None:
        """Write all of it, in pieces of any size, as the first filter takes it."""
        left = memoryview(data)
        self.written += len(data)
        while left and self.writing >= 0 and not self.refused_octets:
            try:
                done = os.write(self.writing, left[: max(1, pieces(len(left)))])
                self.taken += done
                left = left[done:]
            except BlockingIOError:
                await self._writable()
            except OSError:
                self.refused_octets = True

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._smtpd.loop.create_future()
        fd = os.dup(self.writing)  # another task may close it meanwhile
        self._smtpd.loop.add_writer(fd, _set, ready)
        try:
            done, _ = await asyncio.wait([ready], timeout=self._smtpd.patience)
        finally:
            self._smtpd.loop.remove_writer(fd)
            os.close(fd)
        if not done:
            raise Hang("a filter does not read the message")

    def end(self) -> None:
        """Close the writing end: there is no more of the message."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        """Close both ends."""
        self.end()
        if self._reading >= 0:
            self._smtpd.loop.remove_reader(self._reading)
            os.close(self._reading)
            self._reading = -1


@final
class Client:
    """One SMTP session.

    ``eom_first`` has EOM asked before all of a message is written; ``rollback_first`` has TX_ROLLBACK
    told before it.  ``pieces`` says how the message is cut.
    """

    def __init__(self, smtpd: Smtpd, address: str = "192.0.2.1", rdns: str = "client.example"):
        self.session = smtpd.new_id()
        self.remote, self.local = inet(address, 4321), inet("192.0.2.9", 25)
        self.rdns = rdns.encode()
        self.delivered: list[bytes] = []  # messages with CRLF, smtpd's own field among them
        self.closed = False
        self.eom_first = False
        self.rollback_first = False
        self.pieces: Callable[[int], int] = lambda left: smtpd.random.randrange(1, 70_000)
        self.way: Way | None = None
        self._smtpd = smtpd
        self._identified = False
        self._transaction = False
        self._recipients = 0
        self._asking = False
        self._gone = False  # while a query was open
        self._held = b""  # the start of a line
        self._lagging: list[asyncio.Future[None]] = []

    # -- commands ------------------------------------------------------------------------------

    async def connect(self) -> str:
        self._smtpd.event(self.session, "CONNECT")
        speech = self._smtpd.speech
        answer = await self._ask(
            *("CONNECT", speech.sockaddr(self.local), speech.sockaddr(self.remote)),
            speech.string(self.rdns),
        )
        if answer.status == 1:  # its code and its line go nowhere
            return self._leave("")
        return self._refused(answer, "CONNECT") or BANNER

    async def greet(self, name: str = "client.example") -> str:
        """Say EHLO; after a FAIL the real one takes MAIL all the same, and no other name."""
        if self._identified:
            return "503 5.5.1 Invalid command: Already identified"
        self._identified = True
        answer = await self._ask("HELO", self._smtpd.speech.string(name.encode()))
        return self._refused(answer, "HELO") or f"250 mx.example.org Hello {name}"

    async def mail(self, sender: str = "ann@client.example") -> str:
        self._smtpd.event(self.session, "BEGIN")
        self._transaction, self._recipients = True, 0
        answer = await self._ask("MAIL", self._smtpd.speech.mailaddr(sender.encode()))
        return self._refused(answer, "MAIL", rolls_back=True) or "250 2.0.0: Ok"

    async def rcpt(self, recipient: str = "bob@example.org") -> str:
        answer = await self._ask("RCPT", self._smtpd.speech.mailaddr(recipient.encode()))
        self._recipients += answer.status == 0
        taken = "250 2.1.5 Destination address valid: Recipient ok"
        return self._refused(answer, "RCPT") or taken

    async def data(self) -> str:
        """Say DATA, and have the way through the filters be made."""
        if not self._recipients:
            return "503 5.5.4 Invalid command arguments: No recipient specified"
        answer = await self._ask("DATA")
        refusal = self._refused(answer, "DATA")
        if refusal or self.closed:
            return refusal
        self._held = b""
        if not await self._make_way():
            return self._leave("421 4.3.0: Internal server error")
        if self._gone:
            return self._leave("")
        assert self.way is not None
        await self.way.write(TRACE, self.pieces)
        return ENTER

    async def _make_way(self) -> bool:
        self.way = way = Way(self._smtpd)
        self._asking = True
        for link in reversed(self._smtpd.chain):
            if link.passes_data:
                way.writing = await self._smtpd.pipe(self.session, link, way.writing)
                if way.writing < 0:
                    break
                os.set_blocking(way.writing, False)
        self._asking = False
        return way.writing >= 0

    async def send(self, octets: bytes) -> None:
        """Send a part of a message; smtpd writes whole lines, without their CR."""
        assert self.way is not None
        whole, end, self._held = (self._held + octets).rpartition(b"\n")
        await self.way.write((whole + end).replace(b"\r\n", b"\n"), self.pieces)

    async def end(self) -> str:
        """Send the final dot; return what became of the message."""
        way = self.way
        assert way is not None
        if self._held:
            await self.send(b"\r\n")
        if self.eom_first:
            asking = asyncio.ensure_future(self._ask("EOM", datalen=way.written))
            await asyncio.sleep(0.02)
            await asyncio.gather(*self._lagging)
            way.end()
            answer = await asking
        else:
            way.end()
            answer = await self._ask("EOM", datalen=way.written)
        if answer.status == 0:
            await self._smtpd.in_time(way.ended, "end of the sink")
        return self._decided(answer, way)

    def _decided(self, answer: Response, way: Way) -> str:
        self.way = None
        way.close()
        if way.refused_octets:
            self._smtpd.faults.append("a filter has closed its end of a pipe that is written to")
        if answer.status:
            return self._refused(answer, "EOM", rolls_back=True)
        if len(way.received) != answer.datalen:
            self._smtpd.faults.append(f"{answer.datalen} octets told, {len(way.received)} written")
            self._roll_back()
            return "451 Internal error"
        self.delivered.append(bytes(way.received).replace(b"\n", b"\r\n"))
        self._smtpd.event(self.session, "COMMIT")
        self._transaction = False
        if self._gone:
            return self._leave("")
        return "250 2.0.0: 98775924 Message accepted for delivery"

    async def message(self, raw: bytes) -> str:
        """Send DATA and a message; return the reply that ends it.

        With ``eom_first`` smtpd still has some of the message as it asks about its end.
        """
        reply = await self.data()
        if reply != ENTER:
            return reply
        if self.eom_first:
            ended = raw if raw.endswith(b"\n") or not raw else raw + b"\r\n"
            self._lagging = [asyncio.ensure_future(self.send(ended))]
            await asyncio.sleep(0)
        else:
            await self.send(raw)
        return await self.end()

    async def rset(self) -> str:
        if self._smtpd.version > 50:
            self._roll_back()
        self._transaction = False
        self._smtpd.event(self.session, "RESET")
        return "250 2.0.0: Reset state"

    async def quit(self) -> str:
        return self._leave("221 2.0.0: Bye")

    def vanish(self) -> None:
        """Go without a word; smtpd waits for the answer to an open query first."""
        if self._asking:
            self._gone = True
        else:
            self._leave("")

    def too_big(self) -> str:
        """Have smtpd itself refuse what it has of the message: the filters see no EOM."""
        self._give_up()
        return "554 Message too big"

    # -- what follows --------------------------------------------------------------------------

    async def _ask(self, kind: str, *arguments: bytes, datalen: int | None = None) -> Response:
        self._asking = True
        try:
            return await self._smtpd.ask(self.session, kind, *arguments, datalen=datalen)
        finally:
            self._asking = False

    def _refused(self, answer: Response, kind: str, *, rolls_back: bool = False) -> str:
        """Return the reply to what was refused, "" where it was taken, and do what follows."""
        reply = ""
        if answer.status:
            default = DEFAULTS.get(kind, "")
            try:
                reply = reply_of(answer, (default, "421 Temporary failure")).decode()
            except Death as death:
                self._smtpd.die(str(death))
                raise
            if rolls_back:
                self._roll_back(always=True)
        if answer.status == 2 or self._gone:
            return self._leave(reply)
        return reply

    def _roll_back(self, *, always: bool = False) -> None:
        """Tell of the end of a transaction; version 50 does so for what was refused only."""
        if self._transaction and (always or self._smtpd.version > 50):
            self._smtpd.event(self.session, "ROLLBACK")
        self._transaction = False

    def _give_up(self) -> None:
        """End a message that is on its way, in either order."""
        if self.rollback_first:
            self._roll_back()
        if self.way is not None:
            self.way.close()
            self.way = None
        self._roll_back()

    def _leave(self, reply: str) -> str:
        if not self.closed:
            self.closed = True
            self._give_up()
            self._smtpd.event(self.session, "DISCONNECT")
        return reply


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def without_trace(delivered: bytes) -> bytes:
    """Return a delivered message without smtpd's own field, which nobody may touch."""
    trace = TRACE.replace(b"\n", b"\r\n")
    assert delivered.count(trace) == 1, delivered[:300]
    return delivered.replace(trace, b"")
