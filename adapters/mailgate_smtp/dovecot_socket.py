"""A connection to Dovecot's authentication socket: requests, and answers in any order.

Dovecot's authentication protocol, version 1 (doc/auth-protocol.txt; src/auth): a command is a
line, its words are divided by tabs.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from typing import NamedTuple, cast, final

from mailgate.syntax import text_of
from mailgate_smtp.wire import CommandError, reply

TIMEOUT = 30.0
"""Seconds that Dovecot may take for one answer; it lets a wrong password wait up to 17."""

MAX_LINE = 64 * 1024
"""Octets of a line that Dovecot may send."""

MAX_REQUEST = 16_384
"""Octets of a line that Dovecot takes; for a longer one it would hang up on everybody."""

RESPONSE_TOO_LONG = reply(500, "5.5.6", "Authentication exchange line is too long")

_HANDSHAKE = b"VERSION\t1\t2\nCPID\t%d\n"
_ANSWERS = frozenset({b"OK", b"FAIL", b"CONT"})
_NUMBER = re.compile(rb"[0-9]{1,10}")
_MECHANISM = re.compile(rb"[A-Z0-9_-]{1,20}")
_NOT_FOR_CLIENTS = frozenset({b"private", b"anonymous"})
_ESCAPED = re.compile(rb"\x01(.)", re.DOTALL)
_ESCAPES = {b"0": b"\0", b"1": b"\x01", b"t": b"\t", b"r": b"\r", b"n": b"\n"}


class Failure(Exception):
    """Dovecot cannot be asked; ``str()`` is for the log."""


@final
class Answer(NamedTuple):
    """OK, FAIL or CONT, and what stands behind the number of the request."""

    command: bytes
    words: tuple[bytes, ...] = ()

    @property
    def user(self) -> str:
        """Who is logged in."""
        for word in self.words:
            if word.startswith(b"user=") and len(word) > 5:
                user = _ESCAPED.sub(lambda found: _ESCAPES.get(found[1], found[1]), word[5:])
                return text_of(user)
        raise Failure("it does not say who is logged in")


async def connect(path: str) -> Connection:
    """Return a connection whose handshake is done."""
    connection = Connection()
    try:
        async with asyncio.timeout(TIMEOUT):
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: connection, path)
            await connection.ready
    except TimeoutError:
        connection.fail(f"no handshake in {TIMEOUT:.0f} s")
    except OSError as error:
        connection.fail(error.strerror or str(error))
    except BaseException:
        connection.fail("nobody waits for it any longer")
        raise
    if connection.failure:
        raise Failure(connection.failure)
    return connection


@final
class Connection(asyncio.Protocol):
    """Requests and their answers, which come in any order.

    ``failure`` says why it is not to be used any longer, and is empty before.
    """

    def __init__(self) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.mechanisms: tuple[str, ...] = ()
        self.failure = ""
        self._version = False
        self._transport: asyncio.WriteTransport | None = None
        self._octets = b""
        self._numbers = itertools.count(1)
        self._requests: dict[int, Request] = {}

    def begin(self) -> Request:
        """Return a new request."""
        request = Request(self, next(self._numbers) % 2**32)
        self._requests[request.number] = request
        return request

    def forget(self, request: Request) -> None:
        """Take no more answers to a request."""
        self._requests.pop(request.number, None)

    def send(self, line: bytes) -> None:
        """Send a command, unless it is too late."""
        if self._transport is not None and not self.failure:
            self._transport.write(line)

    def fail(self, failure: str) -> None:
        """Hang up; every request under way fails."""
        if self.failure:
            return
        self.failure = failure
        if self._transport is not None:
            self._transport.abort()
        if not self.ready.done():
            self.ready.set_result(None)
        for request in self._requests.values():
            request.fail()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        # Unique among Dovecot's clients, as process ids are not between containers.
        self._transport.write(_HANDSHAKE % (1 + secrets.randbelow(2**31 - 1)))
        if self.failure:
            self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self.fail("it has hung up")

    def data_received(self, data: bytes) -> None:
        *lines, self._octets = (self._octets + data).split(b"\n")
        try:
            for line in lines:
                self._check(line)
                self._line(*line.split(b"\t"))
            self._check(self._octets)
        except Failure as failure:
            self.fail(str(failure))

    def _check(self, line: bytes) -> None:
        if len(line) > MAX_LINE:
            raise Failure(f"a line over {MAX_LINE} octets")

    def _line(self, command: bytes, *words: bytes) -> None:
        if not self.ready.done():
            self._handshake(command, words)
        elif command in _ANSWERS:
            if not words or not _NUMBER.fullmatch(words[0]):
                raise Failure("an answer without the number of a request")
            request = self._requests.get(int(words[0]))
            if request is not None:  # else it was cancelled
                request.receive(Answer(command, words[1:]))

    def _handshake(self, command: bytes, words: tuple[bytes, ...]) -> None:
        match command, words:
            case b"VERSION", (b"1", *_):
                self._version = True
            case b"MECH", (name, *traits):
                if _MECHANISM.fullmatch(name) and _NOT_FOR_CLIENTS.isdisjoint(traits):
                    self.mechanisms += (name.decode("ascii"),)
            case b"DONE", _ if self._version:
                self.ready.set_result(None)
            case ((b"VERSION" | b"DONE"), _):
                raise Failure("it does not speak version 1 of the protocol")


@final
class Request:
    """One login."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.number = number
        self._connection = connection
        self._under_way = False
        self._answer = _future()

    async def say(self, command: bytes, *words: bytes) -> Answer:
        """Send a command for this request, and return the answer."""
        line = b"\t".join((command, b"%d" % self.number, *words)) + b"\n"
        if len(line) > MAX_REQUEST:
            raise CommandError(RESPONSE_TOO_LONG)
        if self._connection.failure:
            raise Failure(self._connection.failure)
        self._connection.send(line)
        self._under_way = True
        try:
            async with asyncio.timeout(TIMEOUT):
                answer = await self._answer
        except TimeoutError:
            raise Failure(f"no answer in {TIMEOUT:.0f} s") from None
        if answer is None:
            raise Failure(self._connection.failure)
        self._answer = _future()
        self._under_way = answer.command == b"CONT"
        return answer

    def receive(self, answer: Answer) -> None:
        """Take an answer."""
        if not self._answer.done():
            self._answer.set_result(answer)
        elif not self._answer.cancelled():
            raise Failure("two answers to one command")

    def fail(self) -> None:
        """Wait no longer: the connection is lost."""
        if not self._answer.done():
            self._answer.set_result(None)

    def end(self) -> None:
        """Take no more answers, and tell Dovecot so if it waits for the client."""
        self._connection.forget(self)
        if self._under_way:
            self._connection.send(b"CANCEL\t%d\n" % self.number)


def _future() -> asyncio.Future[Answer | None]:
    return asyncio.get_running_loop().create_future()
