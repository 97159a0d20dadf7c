"""A mail server in this process: strict, it records what it is told and answers by a script.

    async with Mta(script=[("RCPT TO:<nobody@", [Send(b"550 5.1.1 no\\r\\n")])]) as mta:
        ...  # a client connects to mta.url
    assert mta.faults == []
    (message,) = mta.messages

A row of a script names what comes before it: ``connect``, the beginning of a command, ``.`` for
the end of data, or ``body:N`` for N octets of content.  Rows with one name are for its first
occurrence in a connection, its second and so on; the last one stays.  Without a row the server
takes everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias, cast, final

from tests.hostile.cases import Act, Send, Step, Wait
from tests.oracles import check_smtp_content

Script: TypeAlias = Sequence[tuple[str, Sequence[Step]]]

OFFERS = (
    b"PIPELINING",
    b"SIZE 50000000",
    b"8BITMIME",
    b"SMTPUTF8",
    b"DSN",
    b"ENHANCEDSTATUSCODES",
)

LONGEST_LINE = 12_288  # octets of a command, of AUTH (RFC 4954 4); XFORWARD and XCLIENT have 512

# RFC 2920 3.1: nothing may be sent behind these before their reply.
_LAST = {*(b"EHLO", b"HELO", b"LHLO", b"DATA", b"QUIT", b"NOOP"), *(b"VRFY", b"STARTTLS", b"AUTH")}

# Which keyword allows a parameter; of all others, the parameter's own name.
_ALLOWED_BY = {
    b"BODY": b"8BITMIME",
    **dict.fromkeys((b"RET", b"ENVID", b"NOTIFY", b"ORCPT"), b"DSN"),
}

_PATH = re.compile(
    rb'(?:MAIL FROM|RCPT TO):<((?:"(?:[^"\\]|\\.)*"|[^">])*)>((?: [^ ]+)*)', re.IGNORECASE
)
_REPLY = re.compile(rb"(?m)^([2-5])[0-9][0-9](?:[ \r]|$)")
_REPLIES = {
    b"MAIL": b"250 2.1.0 Ok\r\n",
    b"RCPT": b"250 2.1.5 Ok\r\n",
    b"DATA": b"354 End data with <CR><LF>.<CR><LF>\r\n",
    b"RSET": b"250 2.0.0 Ok\r\n",
    b"NOOP": b"250 2.0.0 Ok\r\n",
    b"XFORWARD": b"250 2.0.0 Ok\r\n",
    b"XCLIENT": b"220 mx.example.org ESMTP\r\n",
    b"AUTH": b"235 2.7.0 Authentication successful\r\n",
    b"STARTTLS": b"220 2.0.0 Ready to start TLS\r\n",
    b"QUIT": b"221 2.0.0 Bye\r\n",
}


class Envelope(NamedTuple):
    """A path without angle brackets, and the parameters as they came."""

    mailbox: bytes
    words: tuple[bytes, ...] = ()


class Message(NamedTuple):
    """A message that was taken; ``octets`` is what came behind DATA, the end of data included."""

    sender: Envelope
    recipients: Sequence[Envelope]
    octets: bytes

    @property
    def content(self) -> bytes:
        """The lines, without the dots that were put before them."""
        lines = self.octets[: -len(b".\r\n")].split(b"\r\n")
        return b"\r\n".join(line.removeprefix(b".") for line in lines)


class _Gone(Exception):
    """The connection has ended, or has to."""


@final
class Connection(asyncio.Protocol):
    """One client, and everything it said."""

    def __init__(self, mta: Mta) -> None:
        self.commands: list[bytes] = []
        self.header = b""  # of the PROXY protocol
        self.encrypted = False
        self.refused = b""  # content that was not taken, as far as it came
        self._mta = mta
        self._rows: dict[str, list[Sequence[Step]]] = {}
        for name, steps in mta.next_script():
            self._rows.setdefault(name.lower(), []).append(steps)
        self._seen: Counter[str] = Counter()
        self._sent = b""  # as the last row said
        self._pipelined = False  # more came behind MAIL or RCPT, before its reply (RFC 2920)
        self._octets = bytearray()
        self._lost = False
        self._changed = asyncio.Event()
        self._greeted = b""
        self._sender: Envelope | None = None
        self._recipients: list[Envelope] = []

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._mta.connections.append(self)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self._octets += data
        self._changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._changed.set()

    async def end(self) -> None:
        """Hang up, whatever is under way."""
        self.transport.abort()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def open(self) -> bool:
        return not self._lost

    # -- what the script says --------------------------------------------------------------------

    def _row(self, event: str) -> Sequence[Step] | None:
        """Return what is to be done at an event, None where the script does not know it."""
        names = [name for name in self._rows if event.lower().startswith(name)]
        if not names:
            return None
        name = max(names, key=len)
        rows = self._rows[name]
        self._seen[name] += 1
        return rows[min(self._seen[name], len(rows)) - 1]

    async def _play(self, steps: Sequence[Step]) -> bytes:
        """Do what a row says; return what was sent."""
        self._sent = b""
        for step in steps:
            match step:
                case Send(data):
                    self._sent += data
                    self.transport.write(data)
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case Act(kind):
                    await self._act(kind)
        return self._sent

    async def _act(self, kind: str) -> None:
        if kind == "no_read":
            self.transport.pause_reading()
            await asyncio.Event().wait()
        if kind == "reset":
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        raise _Gone

    async def _say(self, event: str, reply: bytes) -> bytes:
        """Answer as the script says, or with a reply; return what was sent."""
        row = self._row(event)
        return await self._play([Send(reply)] if row is None else row)

    # -- reading ---------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            if self._mta.wants_header:
                await self._take_header()
            await self._settle()
            if self._octets:
                self._fault("it speaks before the banner")
            await self._say("connect", b"220 mx.example.org ESMTP\r\n")
            while True:
                await self._answer(await self._line())
        except _Gone:
            self.transport.close()

    async def _take_header(self) -> None:
        """Take a header of the PROXY protocol, version 1 or 2."""
        while len(self._octets) < 16:
            await self._more()
        binary = self._octets.startswith(b"\r\n\r\n\0\r\nQUIT\n")
        end = (
            16 + int.from_bytes(self._octets[14:16]) if binary else self._octets.find(b"\r\n") + 2
        )
        self.header = bytes(self._octets[:end])
        del self._octets[:end]

    async def _settle(self) -> None:
        """Let what was sent at once arrive."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def _more(self) -> None:
        """Wait for more octets."""
        if self._lost:
            raise _Gone
        self._changed.clear()
        await self._changed.wait()

    async def _line(self) -> bytes:
        """Return the next command line without its CRLF."""
        while (end := self._octets.find(b"\n") + 1) == 0:
            await self._more()
        line = bytes(self._octets[:end])
        del self._octets[:end]
        if not line.endswith(b"\r\n") or re.search(rb"[\0\r\n]", line[:-2]):
            self._fault(f"not a command line: {line[:60]!r}")
        longest = 512 if line.startswith((b"XFORWARD", b"XCLIENT")) else LONGEST_LINE
        if len(line) > longest:
            self._fault(f"a command line of {len(line)} octets")
        return line.rstrip(b"\r\n")

    def _fault(self, what: str) -> None:
        self._mta.faults.append(f"connection {self._mta.connections.index(self) + 1}: {what}")

    # -- commands --------------------------------------------------------------------------------

    async def _answer(self, line: bytes) -> None:
        verb = line.partition(b" ")[0].upper()
        self.commands.append(line)
        await self._settle()
        if self._octets and (verb in _LAST or b"PIPELINING" not in self._mta.offers):
            self._fault(f"{bytes(self._octets[:40])!r} behind {line!r}, before its reply")
        self._check_order(verb, line)
        hello = verb in (b"EHLO", b"LHLO")
        known = self._greeting() if hello else _REPLIES.get(verb, b"250 mx.example.org\r\n")
        if verb == b"RCPT" and self._sender is None:
            known = b"503 5.5.1 Need MAIL command\r\n"
        self._pipelined = bool(self._octets) and verb in (b"MAIL", b"RCPT")
        sent = await self._say(line.decode("latin-1"), known)
        await self._follow(verb, line, sent)

    def _greeting(self) -> bytes:
        lines = [b"mx.example.org", *self._mta.keywords]
        return b"".join(b"250-" + line + b"\r\n" for line in lines[:-1]) + (
            b"250 " + lines[-1] + b"\r\n"
        )

    def _check_order(self, verb: bytes, line: bytes) -> None:
        """See that a command may stand here (RFC 5321 4.1.4)."""
        if verb in (b"EHLO", b"HELO", b"LHLO"):
            if self._greeted and self._mta.greets_once:
                self._fault("it greets twice")
            if (verb == b"LHLO") is not self._mta.lmtp:
                self._fault(f"{line!r} to an {'LMTP' if self._mta.lmtp else 'SMTP'} server")
        elif not self._greeted and verb != b"QUIT":
            self._fault(f"{line!r} before a greeting")
        elif verb == b"MAIL" and self._sender is not None:
            self._fault(f"{line!r} within a message")
        elif verb == b"RCPT" and self._sender is None and not self._pipelined:
            self._fault(f"{line!r} without MAIL")
        elif verb == b"DATA" and not self._recipients:
            self._fault("DATA without a recipient")

    async def _follow(self, verb: bytes, line: bytes, sent: bytes) -> None:
        """Do what comes behind the reply to a command."""
        done = sent.startswith(b"2")
        if verb in (b"EHLO", b"HELO", b"LHLO"):
            self._greeted = verb
            self._begin()
        elif verb == b"RSET":
            self._begin()
        elif verb == b"MAIL" and done:
            self._sender = self._envelope(line)
        elif verb == b"RCPT" and done:
            self._recipients.append(self._envelope(line))
        elif verb == b"DATA" and sent.startswith(b"354"):
            await self._take()
        elif verb == b"AUTH":
            await self._go_on_with_auth(sent)
        elif verb == b"STARTTLS" and done and self._mta.tls is not None:
            await self._start_tls(self._mta.tls)
        elif verb == b"QUIT":
            raise _Gone

    async def _go_on_with_auth(self, sent: bytes) -> None:
        """Take the responses to challenges; in a script they are ``AUTH``, too."""
        while sent.startswith(b"334"):
            response = await self._line()
            self.commands.append(response)
            sent = await self._say("AUTH", _REPLIES[b"AUTH"])

    async def _start_tls(self, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(self.transport, self, context, server_side=True)
        except OSError:
            raise _Gone from None
        if transport is None:
            raise _Gone
        self.transport = transport
        self.encrypted = True
        self._greeted = b""
        self._begin()

    def _begin(self, sender: Envelope | None = None) -> None:
        self._sender = sender
        self._recipients = []

    def _envelope(self, line: bytes) -> Envelope:
        """Return what MAIL or RCPT names, checked against what was offered."""
        found = _PATH.fullmatch(line)
        if found is None:
            self._fault(f"not a path: {line!r}")
            return Envelope(line)
        words = tuple(found[2].split())
        for word in words:
            keyword = word.partition(b"=")[0].upper()
            if _ALLOWED_BY.get(keyword, keyword) not in self._mta.offers:
                self._fault(f"{word!r} was not offered")
        said = [word.upper() for word in (*words, *(self._sender.words if self._sender else ()))]
        if not line.isascii() and b"SMTPUTF8" not in said:
            self._fault(f"8 bit without SMTPUTF8: {line!r}")
        return Envelope(found[1], words)

    # -- the content -----------------------------------------------------------------------------

    async def _take(self) -> None:
        """Read the content, and keep the message where the answer to it is 2xx."""
        octets = self.refused = await self._content()
        faults = check_smtp_content(octets)
        self._mta.faults += [
            f"the content of message {len(self._mta.messages)}: {f}" for f in faults
        ]
        number = len(self._recipients) if self._mta.lmtp else 1
        try:
            await self._say(".", b"250 2.0.0 Ok: queued\r\n" * number)
        finally:  # what was said counts, even where the connection is closed then
            self._keep(octets, _REPLY.findall(self._sent))
        self._begin()

    def _keep(self, octets: bytes, codes: Sequence[bytes]) -> None:
        """Keep a message for those whose replies begin with 2."""
        if not self._mta.lmtp:
            codes = [*codes[:1]] * len(self._recipients)
        replied = zip(self._recipients, codes, strict=False)
        taken = [recipient for recipient, code in replied if code == b"2"]
        if taken and self._sender is not None:
            self._mta.messages.append(Message(self._sender, taken, octets))
            self.refused = b""

    async def _content(self) -> bytes:
        """Return what comes behind DATA, with the end of data."""
        marks = sorted(int(name[5:]) for name in self._rows if name.startswith("body:"))
        searched = end = 0
        while not end:
            await self._more_content(searched)
            size = len(self._octets)
            while marks and size >= marks[0]:
                await self._play(self._row(f"body:{marks.pop(0)}") or ())
            end = self._end_of_content(searched)
            searched = max(size - 4, 0)
        octets = bytes(self._octets[:end])
        del self._octets[:end]
        return octets

    def _end_of_content(self, searched: int) -> int:
        """Return where the content ends, 0 where its end has not come."""
        if self._octets.startswith(b".\r\n"):
            return 3
        found = self._octets.find(b"\r\n.\r\n", searched)
        return found + 5 if found >= 0 else 0

    async def _more_content(self, searched: int) -> None:
        """Wait for more than was searched."""
        try:
            while len(self._octets) <= searched + 4 * bool(searched):
                await self._more()
        except _Gone:
            self.refused = bytes(self._octets)
            raise


@final
class Mta:
    """The server; ``messages`` are those that were taken, ``faults`` what its clients did wrong.

    With several ``scripts``, each is for one connection; the last one stays.  ``greets_once``
    is how OpenSMTPD wants it.  ``wants_header`` has a PROXY header come first.  ``tls`` is for
    STARTTLS, or for everything where that is implicit.  ``path`` has it listen on a unix socket.
    """

    def __init__(
        self,
        *scripts: Script,
        keywords: Sequence[bytes] = OFFERS,
        lmtp: bool = False,
        greets_once: bool = False,
        wants_header: bool = False,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        path: Path | None = None,
    ) -> None:
        self.keywords = keywords
        self.lmtp = lmtp
        self.greets_once = greets_once
        self.wants_header = wants_header
        self.tls = tls
        self._implicit_tls = implicit_tls
        self.connections: list[Connection] = []
        self.messages: list[Message] = []
        self.faults: list[str] = []
        self._scripts = scripts or ((),)
        self._begun = 0
        self._path = path
        self._port = 0
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None

    @property
    def offers(self) -> Mapping[bytes, bytes]:
        """The keywords that it offers, and their parameters."""
        pairs = (keyword.upper().partition(b" ") for keyword in self.keywords)
        return {name: parameters for name, _, parameters in pairs}

    @property
    def url(self) -> str:
        """Where it listens, as `mailgate run --upstream` wants it."""
        if self._path is not None:
            return f"lmtp+unix:{self._path}"
        scheme = "lmtp" if self.lmtp else "smtps" if self._implicit_tls else "smtp"
        return f"{scheme}://127.0.0.1:{self._port}"

    @property
    def commands(self) -> list[bytes]:
        """All commands, one connection after the other."""
        return [line for connection in self.connections for line in connection.commands]

    def next_script(self) -> Script:
        """Return the script of the next connection."""
        script = self._scripts[min(self._begun, len(self._scripts) - 1)]
        self._begun += 1
        return script

    @property
    def _refuses(self) -> bool:
        return any(Act("refuse") in steps for _, steps in self._scripts[0])

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if self._path is not None:
            self._server = await loop.create_unix_server(partial(Connection, self), self._path)
            return self
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._port = self._socket.getsockname()[1]
        if not self._refuses:  # a port that is bound, and not listened on, refuses connections
            context = self.tls if self._implicit_tls else None
            make = partial(Connection, self)
            self._server = await loop.create_server(make, sock=self._socket, ssl=context)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Listen no longer, and hang up on everyone."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        for connection in self.connections:
            await connection.end()
