"""A connection to the mail server behind the proxy, over SMTP or LMTP.

N commands are awaited as N replies, in order; anything more ends the connection, since nobody
could tell any longer which reply belongs to what (RFC 5321 4.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from base64 import b64encode
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import cast, final

from mailgate.deadline import stay
from mailgate.flush import Flushes, Outgoing
from mailgate.syntax import check_host_name
from mailgate_smtp.hop import CONFUSED, LOST, NOTHING, UNREACHABLE, Features, HopError
from mailgate_smtp.identity import Identity, xclient, xforward
from mailgate_smtp.options import Target, Timeouts, UpstreamTLS
from mailgate_smtp.wire import Path, Reply, ReplyDecoder, reply

log = logging.getLogger(__name__)

NO_TLS = reply(451, "4.7.4", "The mail server behind this one does not encrypt")
NO_IDENTITY = reply(451, "4.4.1", "The mail server behind this one takes no client's identity")
NO_LOGIN = reply(451, "4.7.0", "The mail server behind this one refused the login")

_NO_COMMAND = re.compile(rb"[\r\n\0]")

TOGETHER = 32 * 1024
"""Octets of content that are gathered to be sent at a time: a small message is one write."""

TURN = 256 * 1024
"""Octets of content that are written before other connections have their turn."""

HIGH_WATER = 256 * 1024
"""Octets of a body that may wait to be sent; `Upstream.write` waits while there are more."""


@final
class _Outlasting(asyncio.Future[Reply]):
    """A reply that comes whoever cancels waiting for it: the message may be delivered already."""

    __slots__ = ()

    def cancel(self, msg: object = None) -> bool:
        return False


@final
class Upstream(Outgoing):
    """One connection, greeted and ready; `NextHop` says what its methods do.

    ``since`` is when it began to wait for a reply, in the loop's time, and 0 while it does not;
    ``patience`` is how many seconds it waits.
    """

    def __init__(
        self,
        target: Target,
        loop: asyncio.AbstractEventLoop,
        flushes: Flushes,
        timeouts: Timeouts,
    ) -> None:
        super().__init__(flushes)
        self.target = target
        self.answers_each = target.lmtp
        self.features = NOTHING
        self.logged_in = False  # as one client: not for others either
        self.messages = 0
        self.last = loop.time()  # when a message ended on it
        self.since = 0.0
        self.patience = 0.0
        self._loop = loop
        self._decoder = ReplyDecoder()
        self._banner: asyncio.Future[Reply] = loop.create_future()
        # It may come before anybody awaits it.
        self._awaited: deque[asyncio.Future[Reply]] = deque([self._banner])
        self._accepted = 0  # recipients
        self._failure: HopError | None = None
        self._gathered: list[bytes] = []  # of the content
        self._gathered_octets = 0
        self._in_turn = 0  # octets that were written since others had their turn
        self._room: asyncio.Future[None] | None = None
        self._full = False
        self._forward: Sequence[bytes] = ()  # XFORWARD commands that go before each MAIL
        self._told: Identity | None = None  # by XCLIENT or PROXY: whom it knows for good
        self._exchange = False  # it waits for what no command is: a SASL response, content
        self._timeouts = timeouts

    @property
    def usable(self) -> bool:
        """Tell whether another message may be sent."""
        quiet = not self._awaited and not self._exchange and self._decoder.empty
        return quiet and self._failure is None

    @property
    def identified(self) -> bool:
        """Tell whether it knows one client by XCLIENT or PROXY: it is not for others."""
        return self._told is not None

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        replies = self._decoder.receive(data)
        for each in replies:
            if not self._awaited:
                self._fail(HopError(f"a reply that nobody asked for: {each}", CONFUSED))
                return
            awaited = self._awaited.popleft()
            self._exchange = each.code // 100 == 3
            if not awaited.done():
                awaited.set_result(each)
        if self._decoder.error is not None:
            self._fail(HopError(str(self._decoder.error), CONFUSED))
        if replies:  # what drips does not count
            self.since = self._loop.time() if self._awaited else 0.0

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(HopError(f"the connection was lost: {error or 'end of file'}", LOST, gone=True))

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake()

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _fail(self, error: HopError) -> None:
        """Have everything that waits, and everything to come, fail."""
        if self._failure is None:
            self._failure = error
        while self._awaited:
            awaited = self._awaited.popleft()
            if not awaited.done():
                awaited.set_exception(self._failure)
                awaited.exception()  # somebody may have stopped waiting for it
        self._wake()
        self.since = 0.0
        self._gone = True
        self._transport.abort()

    def expire(self) -> None:
        """Give up waiting: the server has not answered in time."""
        self._fail(HopError(f"no answer within {self.patience:g} s", LOST))

    # -- commands --------------------------------------------------------------------------------

    def _send(
        self, octets: bytes, replies: Sequence[asyncio.Future[Reply]], patience: float
    ) -> None:
        """Send commands, to which there will be these replies."""
        if self._failure is not None:
            raise self._failure
        if not self._decoder.empty:
            raise HopError("half a reply that nobody asked for", CONFUSED)
        self._awaited.extend(replies)
        self.since, self.patience = self._loop.time(), patience
        self._say_soon(octets)

    def command(self, line: bytes, patience: float = 0.0) -> asyncio.Future[Reply]:
        """Send one command line; return its reply to come, whatever code that has.

        HopError where the connection has failed, at once or when it is awaited; ValueError for
        a line that would be more than one command.
        """
        if _NO_COMMAND.search(line):
            raise ValueError(f"not a command line: {line[:40]!r}")
        awaited: asyncio.Future[Reply] = self._loop.create_future()
        self._send(line + b"\r\n", (awaited,), patience or self._timeouts.upstream)
        return awaited

    async def _answered(self, line: bytes) -> Reply:
        """Send a command whose reply is 2xx, 4xx or 5xx; 421 ends the connection, too."""
        return self._judge(await self.command(line))

    def _judge(self, answer: Reply) -> Reply:
        if answer.code // 100 == 3:
            self._fail(HopError(f"an answer out of place: {answer}", CONFUSED))
            raise HopError(f"an answer out of place: {answer}", CONFUSED)
        if answer.code == 421:
            self._fail(HopError(f"it closes the connection: {answer}", LOST))
        return answer

    # -- the beginning ---------------------------------------------------------------------------

    async def greet(
        self, hello: str, tls: UpstreamTLS, client: tuple[Identity, bytes] | None
    ) -> None:
        """Go through everything that comes before a message.

        ``client`` has a header of the PROXY protocol, and who it tells of.  HopError where the
        server is not to be used.
        """
        self.since, self.patience = self._loop.time(), self._timeouts.upstream
        if client is not None:
            self._told, header = client
            self._transport.write(header)
        answer = await self._banner
        if answer.code != 220:
            of_client = client is not None
            raise HopError(
                f"its greeting is {answer}",
                answer if of_client else UNREACHABLE,
                said=answer,
                of_client=of_client,
            )
        await self._hello(hello)
        await self._start_tls(hello, tls)
        if self.target.user is not None:
            await self._log_in(self.target.user, self.target.password or "")

    async def _hello(self, hello: str) -> None:
        name = hello.encode("ascii", "replace")
        verb = b"LHLO " if self.target.lmtp else b"EHLO "
        answer = await self.command(verb + name)
        if answer.positive:
            self.features = Features.of(answer)
            return
        if answer.code // 100 == 5 and self.features is NOTHING and not self.target.lmtp:
            answer = await self.command(b"HELO " + name)
            if answer.positive:
                return
        elif self.features is not NOTHING:
            return  # some servers take one greeting only; what was offered stands
        raise HopError(f"its answer to the greeting is {answer}", UNREACHABLE)

    async def _start_tls(self, hello: str, tls: UpstreamTLS) -> None:
        inside = self.target.implicit_tls or self.target.path is not None
        if inside or tls.mode == "off":
            return
        refusal = "it does not offer STARTTLS"
        if b"STARTTLS" in self.features:
            answer = await self.command(b"STARTTLS")
            refusal = "" if answer.code == 220 else f"its answer to STARTTLS is {answer}"
        if not refusal:
            await self._handshake(tls)
            self.features = NOTHING  # what came unencrypted may be anybody's: RFC 3207 4.2
            await self._hello(hello)
        elif tls.mode == "require":
            raise HopError(refusal, NO_TLS)

    async def _handshake(self, tls: UpstreamTLS) -> None:
        if not self.usable:
            raise HopError("it sent something between STARTTLS and the handshake", CONFUSED)
        try:
            transport = await self._loop.start_tls(
                self._transport,
                self,
                tls.context(verify=tls.mode == "require"),
                server_hostname=self.target.host,
                ssl_handshake_timeout=self._timeouts.upstream,
            )
        except (OSError, ssl.SSLError, EOFError) as error:
            raise HopError(f"the TLS handshake failed: {error}", NO_TLS) from None
        if transport is None:
            raise HopError("the connection was lost in the TLS handshake", LOST)
        self.connection_made(transport)

    async def _log_in(self, user: str, password: str) -> None:
        response = b64encode(f"\0{user}\0{password}".encode())
        answer = await self.command(b"AUTH PLAIN " + response)
        if answer.code != 235:
            raise HopError(f"its answer to AUTH is {answer.code}", NO_LOGIN)

    def announce(self, identity: Identity, how: str) -> bool:
        """Have XFORWARD say who the client is with each MAIL from now on.

        ``how`` is one of the ways that `SmtpOptions.identity` names.  True also where it has
        nothing to be told; False where it asks for `impersonate`.
        """
        if how in ("auto", "xforward") and b"XFORWARD" in self.features:
            self._forward = xforward(identity, self.features[b"XFORWARD"])
            return True
        return how == "auto" and not self._takes_address

    async def impersonate(self, hello: str, identity: Identity, how: str) -> None:
        """Have XCLIENT say who the client is, once and for good.

        HopError where what ``how`` names is not offered, or the server refuses the client.
        """
        if how == "xforward" or not self._takes_address:
            raise HopError(f"it does not offer {how.upper()}, or not with ADDR", NO_IDENTITY)
        for line in xclient(identity, self.features[b"XCLIENT"]):
            answer = await self.command(line)
            if not answer.positive:
                raise HopError(f"its answer to XCLIENT is {answer}", answer, of_client=True)
            self._told = identity
        await self._hello(hello_of(identity, hello))

    def knows(self, identity: Identity) -> bool:
        """Tell whether it was told of this very client for good, as far as the way to tell goes."""
        told = self._told
        if told is None:
            return False
        if self._takes_address:
            return told == identity
        return (told.address, told.port) == (identity.address, identity.port)  # PROXY

    @property
    def _takes_address(self) -> bool:
        """Tell whether XCLIENT is any use: without ADDR every client would be this host."""
        return b"ADDR" in self.features[b"XCLIENT"].upper().split()

    # -- a message -------------------------------------------------------------------------------

    async def rcpt(self, path: Path) -> Reply:
        answer = self._judge(await self.command(b"RCPT TO:" + path.argument))
        self._accepted += answer.positive
        return answer

    async def envelope(self, sender: Path, recipients: Sequence[Path]) -> Sequence[Reply]:
        self._accepted = 0
        lines = [*self._forward, b"MAIL FROM:" + sender.argument]
        lines += [b"RCPT TO:" + path.argument for path in recipients]
        known = len(self._forward)  # commands that only tell something: whatever is answered
        replies: list[Reply] = []
        if len(lines) == 1 or b"PIPELINING" in self.features:
            octets = b"\r\n".join((*lines, b""))
            awaited = [self._loop.create_future() for _ in lines]
            self._send(octets, awaited, self._timeouts.upstream)
            for each in awaited:  # a comprehension that awaits would be another coroutine
                replies.append(self._judge(await each))
        else:
            for line in lines:
                replies.append(await self._answered(line))
                if len(replies) == known + 1 and not replies[-1].positive:
                    break
        replies = replies[known:]
        if replies[0].code == 421:  # where it was used before, it may only have been idle
            raise HopError(f"its answer to MAIL is {replies[0]}", replies[0], gone=True)
        if not replies[0].positive:
            if any(answer.positive for answer in replies[1:]):
                self._fail(HopError("it takes recipients of a message that it refused", CONFUSED))
            return replies[:1]
        self._accepted = sum(answer.positive for answer in replies[1:])
        return replies

    async def data(self) -> Reply:
        answer = await self.command(b"DATA")
        if answer.positive or (answer.code // 100 == 3 and answer.code != 354):
            self._fail(HopError(f"its answer to DATA is {answer}", CONFUSED))
        if self._failure is not None:
            raise self._failure
        return answer if answer.code == 354 else self._judge(answer)

    async def write(self, piece: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        self._gathered.append(piece)
        self._gathered_octets += len(piece)
        if self._gathered_octets >= TOGETHER:
            self._in_turn += self._gathered_octets
            self._say(self._take_gathered())
            self._flush()
            if self._full:
                await self._make_room()
            if self._in_turn >= TURN:
                self._in_turn = 0
                await asyncio.sleep(0)

    def _take_gathered(self) -> bytes:
        octets = b"".join(self._gathered) if len(self._gathered) > 1 else self._gathered[0]
        self._gathered.clear()
        self._gathered_octets = 0
        return octets

    async def _make_room(self) -> None:
        self.since, self.patience = self._loop.time(), self._timeouts.upstream
        while self._full and self._failure is None:
            self._room = self._loop.create_future()
            await self._room
        self.since = 0.0
        if self._failure is not None:
            raise self._failure

    async def end(self) -> Sequence[Reply]:
        number = self._accepted if self.answers_each else 1
        if self._failure is not None:
            lost = self._failure
            raise HopError(str(lost), lost.reply, gone=lost.gone, unsent=True)
        self._gathered.append(b".\r\n")
        awaited = [_Outlasting(loop=self._loop) for _ in range(number)]
        self._send(self._take_gathered(), awaited, self._timeouts.upstream_dot)
        self.messages += 1
        replies: list[Reply] = []
        try:
            for each in awaited:  # a comprehension that awaits would be another coroutine
                replies.append(await self._outlast(each))
        except HopError:
            if number == 1:
                raise
            # Some recipients have it: what is known of them is said, the others are tried again.
            replies = [_outcome(each) for each in awaited]
            log.warning(
                "the upstream hung up: %d of %d recipients have no answer",
                sum(each is LOST for each in replies),
                number,
            )
        self.last = self._loop.time()
        if any(answer.code // 100 == 3 for answer in replies):
            self._fail(HopError(f"its answer to the end of data is {replies[0]}", CONFUSED))
            raise HopError(f"its answer to the end of data is {replies[0]}", CONFUSED)
        if any(answer.code == 421 for answer in replies):
            self._fail(HopError("it closes the connection", LOST))
        return replies

    async def _outlast(self, awaited: asyncio.Future[Reply]) -> Reply:
        """Wait for a reply, whoever cancels that: the message may be delivered already."""
        while not awaited.done():
            try:
                await awaited
            except asyncio.CancelledError:
                await stay()
        return awaited.result()

    async def reset(self) -> None:
        if not (await self._answered(b"RSET")).positive:
            raise HopError("it refuses RSET", CONFUSED)

    def release(self) -> None:
        """Say QUIT, and do not wait for an answer."""
        if self._failure is None:
            self._failure = HopError("it was released", LOST)
            with contextlib.suppress(RuntimeError, OSError):
                self._say(b"QUIT\r\n")
                self._flush()
            self._transport.close()

    def abort(self) -> None:
        self._fail(HopError("it was given up", LOST))


def hello_of(identity: Identity, ours: str) -> str:
    """Return the greeting name where a server takes the connection for the client's own."""
    try:
        return check_host_name(identity.helo)
    except ValueError:
        return ours


def _outcome(awaited: asyncio.Future[Reply]) -> Reply:
    """Return a reply that has come, or what stands for one that will not."""
    if awaited.done() and awaited.exception() is None:
        return awaited.result()
    return LOST


async def connect(
    target: Target,
    loop: asyncio.AbstractEventLoop,
    flushes: Flushes,
    timeouts: Timeouts,
    tls: UpstreamTLS,
) -> Upstream:
    """Return a connection to a server, before its greeting.  HopError where there is none."""
    make = partial(Upstream, target, loop, flushes, timeouts)
    try:
        async with asyncio.timeout(timeouts.connect):
            if target.path is not None:
                _, made = await loop.create_unix_connection(make, target.path)
            else:
                context = tls.context(verify=True) if target.implicit_tls else None
                name = target.host if context is not None else None
                _, made = await loop.create_connection(
                    make, target.host, target.port, ssl=context, server_hostname=name
                )
    except TimeoutError:
        raise HopError(f"no connection within {timeouts.connect:g} s", UNREACHABLE) from None
    except (OSError, ssl.SSLError) as error:
        raise HopError(str(error.strerror or error), UNREACHABLE) from None
    return made
