"""One connection of a client: command lines and content in, replies out, in step.

No task belongs to a connection.  What was read is worked off at once, and replies to pipelined
commands leave together (RFC 2920 3.2) at the end of the loop's turn; only what waits for a handler or for the next hop goes
on by itself, and input queues up meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Coroutine
from typing import Any, cast, final

from mailgate.deadline import stay
from mailgate.flush import Outgoing
from mailgate.session import TLS
from mailgate_smtp import replies
from mailgate_smtp.content import Intake
from mailgate_smtp.facts import is_foreign, peer_of, tls_of
from mailgate_smtp.hop import HopError
from mailgate_smtp.house import Host
from mailgate_smtp.identity import Identity
from mailgate_smtp.options import Kind
from mailgate_smtp.proxy import ProxyHeader
from mailgate_smtp.session import SmtpSession
from mailgate_smtp.wire import MAX_AUTH, TOO_LONG, BareLF, Lines, Reply, WireError

log = logging.getLogger(__name__)

BACKLOG = 256 * 1024
"""Octets of input that wait while a handler or the next hop does; beyond it nothing is read."""

LARGE_READ = 64 * 1024
"""Octets of a read after which other connections have their turn."""

UNSENT = 64 * 1024
"""Octets of replies that are gathered; beyond it they are sent, and the client has to read them."""

TURN = 64
"""Commands that are worked off before other connections have their turn."""

STALLED = 30.0
"""Seconds after which a client that does not read its replies is given up."""

WARM_UP = 60.0
"""Seconds of a message after which its rate counts."""

LINGER = 2.0
"""Seconds that a client has to read the last reply, where it may still be sending."""

ATTEMPTS = 3
"""Times that the end of a session is tried, where a policy cancels every task there is."""

HANDSHAKE = 30.0
"""Seconds for a TLS handshake."""


@final
class Connection(Outgoing):
    """Speaks SMTP or LMTP with one client.  None of its methods raises."""

    _peer: Identity

    def __init__(self, host: Host, kind: Kind) -> None:
        super().__init__(host.flushes)
        self._host = host
        self._kind = kind
        self._timeouts = host.options.timeouts
        self._lines = Lines()
        self._header = ProxyHeader() if host.options.proxy_protocol else None
        self._session: SmtpSession | None = None
        self._content: Intake | None = None  # while it comes
        self._began = 0.0  # when the content did
        self._awaited: asyncio.Future[bytes] | None = None  # a line of an AUTH exchange
        self._room: asyncio.Future[None] | None = None
        self._delay: asyncio.TimerHandle | None = None
        self._busy = False
        self._busy_since = 0.0
        self._reads = True
        self._turn = 0
        self._given_up = ""  # why we have ended it
        self._lingers = True  # at the end, for a client that may still be sending
        self._parting: Reply | None = None  # for whoever is given up while we are at work
        self._ended = self._eof = False
        self._stalled = 0.0  # since when the client does not read, 0 where it does
        self._since = 0.0  # when it was given the last reply
        self.tls: TLS | None = None
        self.last = 0.0  # when something was read, in the loop's time

    # -- Served ----------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Tell whether no message is under way."""
        return not self._busy and (self._session is None or self._session.idle)

    def overdue(self, now: float) -> str | None:
        """Return why the client has to be given up, None while all is well."""
        timeouts = self._timeouts
        if self._stalled and now - self._stalled > STALLED:
            return f"its replies were not read for {STALLED:g} s"
        if self._awaits_input and self._content is not None:
            return self._slow_content(now, self._content)
        if self._session is None and now - self._since > HANDSHAKE:
            return f"no handshake within {HANDSHAKE:g} s"
        if self._awaits_input and now - self._since > timeouts.command:
            return f"no command within {timeouts.command:g} s"
        return None

    @property
    def _awaits_input(self) -> bool:
        return not self._busy or self._awaited is not None

    def _slow_content(self, now: float, content: Intake) -> str | None:
        timeouts = self._timeouts
        if now - max(self.last, self._since) > timeouts.data:
            return f"nothing of its message within {timeouts.data:g} s"
        took = now - self._began
        if took > WARM_UP and content.octets < timeouts.rate * took:
            return f"its message comes at less than {timeouts.rate} octets a second"
        return None

    def close(self, reason: str) -> None:
        """End the connection: 421, and no message is under way."""
        log.debug("smtp connection of %s closed: %s", self._name, reason)
        self._dismiss(replies.STOPPING)

    def abort(self, reason: str) -> None:
        """Give the client up, with 421; a message under way is not taken."""
        log.info("smtp connection of %s closed: %s", self._name, reason)
        self._given_up = reason
        if self._session is None:
            self._transport.abort()
        else:
            self._dismiss(replies.STOPPING if self._host.draining else replies.TOO_SLOW)

    def _dismiss(self, answer: Reply) -> None:
        if self._ended or self._gone:
            self._transport.abort()
            return
        if not self._busy or self._awaited is not None:
            self.answer(answer)
        self._ended = True
        self._flush()
        if self._busy:
            self._parting = None if self._awaited is not None else answer
            if self._session is not None:
                self._session.abandon()
            if self._awaited is not None and not self._awaited.done():
                self._awaited.cancel()
        else:
            self._host.loop.call_soon(self._run_on)  # a task may have called

    def _run_on(self) -> None:
        if not self._busy:
            self._run(None)

    @property
    def _name(self) -> str:
        address = self._peer.address
        return f"{address}:{self._peer.port}" if address is not None else "a local socket"

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peer = peer_of(transport)
        self.last = self._since = self._host.loop.time()
        self._host.welcome(self)
        if self._ended or self._gone:
            return
        if self._kind == "smtps":
            trusted = self._host.trusts(self._peer.address)
            if self._host.admit(self, self._peer.address, trusted=trusted):
                self._run(self._start_implicit_tls())
            else:
                self._transport.abort()  # before the handshake nothing can be said
        elif self._header is None:
            self._admit(self._peer)
        elif not self._host.trusts(self._peer.address):
            self._turn_away("a PROXY header is wanted, of trusted peers", replies.NO_HEADER)

    def _admit(self, identity: Identity, *, named: bool = True) -> None:
        """Begin the session, unless there are too many."""
        if self._ended or self._gone:
            return
        # Behind a load balancer its client is, and not the balancer where it names none.
        trusted = named and self._host.trusts(identity.address)
        if self._kind != "smtps" and not self._host.admit(self, identity.address, trusted=trusted):
            self._turn_away("too many connections", replies.TOO_MANY_CONNECTIONS)
            return
        self._session = SmtpSession(
            self._host, self, identity, lmtp=self._kind == "lmtp", trusted=trusted
        )
        if self._timeouts.greeting:
            self._delay = self._host.loop.call_later(self._timeouts.greeting, self._greet)
        else:
            self._greet()

    def _greet(self) -> None:
        self._delay = None
        if self._session is not None and not self._ended and not self._gone:
            self._run(self._session.begin())

    def _turn_away(self, reason: str, answer: Reply) -> None:
        self._end_with(reason, answer)
        self._flush()
        self._run(None)

    async def _start_implicit_tls(self) -> None:
        if await self._handshake():
            self._admit_later()

    def _admit_later(self) -> None:
        """Begin behind what is being awaited: only one thing is at a time."""
        self._host.loop.call_soon(self._admit, self._peer)

    def data_received(self, data: bytes) -> None:
        self.last = self._host.loop.time()
        if self._ended:
            return
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
            self._turn_away("it spoke before it was greeted", replies.EARLY)
            return
        if self._header is not None:
            self._take_header(data)
            return
        self._lines.receive(data)
        if len(data) >= LARGE_READ and self._reads:
            # libuv goes on with this socket for megabytes, unless it is told to stop.
            self._transport.pause_reading()
            self._host.loop.call_soon(self._read_on)
        if self._awaited is not None:
            self._answer_challenge()
        elif not self._busy:
            self._run(None)
        elif self._lines.waiting > BACKLOG:
            self._mind_room()

    def _read_on(self) -> None:
        """Read again, after others had their turn."""
        if self._reads and not self._gone:
            self._transport.resume_reading()

    def _take_header(self, data: bytes) -> None:
        header = self._header
        if header is None:
            return
        try:
            source, rest = header.receive(data)
        except WireError as error:
            self._turn_away(str(error), replies.NO_HEADER)
            return
        if source is None:
            return
        self._header = None
        identity = self._peer
        if not source.local:
            identity = Identity(
                address=source.address,
                port=source.port,
                server=source.server,
                server_port=source.server_port,
            )
        self._admit(identity, named=not source.local)
        if rest and not self._ended:
            self.data_received(rest)

    def eof_received(self) -> bool:
        if self._ended:
            return False
        self._eof = True
        if not self._busy:
            self._run(None)
        elif self._awaited is not None and not self._awaited.done():
            self._awaited.cancel()
        return self.tls is None  # there is no half of a TLS connection

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        if self._delay is not None:
            self._delay.cancel()
        self._go()
        if self._awaited is not None and not self._awaited.done():
            self._awaited.cancel()
        if self._busy:
            if self._session is not None:
                self._session.abandon()
        else:
            self._run(None)

    def pause_writing(self) -> None:
        self._stalled = self._host.loop.time()
        self._mind_room()

    def resume_writing(self) -> None:
        self._stalled = 0.0
        self._mind_room()
        self._go()

    def _go(self) -> None:
        """Wake up what waits in `_make_room`."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _mind_room(self) -> None:
        """Read only while the client reads, too, and not too much is waiting."""
        reads = self._ended or (not self._stalled and self._lines.waiting <= BACKLOG)
        if reads != self._reads and not self._gone:
            self._reads = reads
            if reads:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- working off -----------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, None] | None) -> None:
        """Begin to work off what there is, unless nothing has to be awaited for it."""
        if work is None and not self._ended and not self._gone and not self._eof:
            awaitable = self._advance()
            if awaitable is None and not self._ended:
                if self._out:  # a line that is too long was answered
                    self._since = self._host.loop.time()
                self._turn = 0
                self._flush_soon()
                return
            work = self._go_on(awaitable)
        else:
            work = self._go_on(work)
        self._busy = True
        self._busy_since = self._host.loop.time()
        self._host.eager.run(work)

    async def _go_on(self, work: Awaitable[None] | None) -> None:
        """Await what the input asks for; more may come meanwhile."""
        while True:
            if work is not None:
                try:
                    await work
                except asyncio.CancelledError:
                    await stay()
                    self._fault(None)
                except Exception as error:
                    self._fault(error)
            work = self._advance()
            if work is None:
                break
        if self._eof and not self._gone:
            self._ended = True
        if self._ended or self._gone:
            self._flush()
            await self._end()
        else:
            self._flush_soon()
        self._busy = False
        self._turn = 0
        self._since = now = self._host.loop.time()
        self._began += now - self._busy_since  # a client is not slow while it waits for us
        if self._gone:
            self._host.forget(self)

    def _advance(self) -> Awaitable[None] | None:
        """Take input until something has to be awaited; None where no more of it is there."""
        try:
            while not self._ended and not self._gone and (session := self._session) is not None:
                if self._unsent > UNSENT:
                    return self._make_room()
                if self._turn > TURN:
                    return self._next_turn()
                # Most clients make none: that is a call less for each command.
                if (session.errors or session.junk) and session.too_many_errors:
                    self._end_with("too many errors", replies.TOO_MANY_ERRORS)
                    break
                if (content := self._content) is not None:
                    if not self._lines.waiting and not content.ended:
                        break
                    work = self._take_content(session, content)
                    if work is not None:
                        return work
                    continue
                line = self._lines.command()
                if line is None:
                    break
                self._turn += 1
                work = self._take_line(session, line)
                if work is not None:
                    return work
        except WireError as error:
            self._turn_bad(error)
        except Exception as error:
            self._fault(error)
        if not self._reads:
            self._mind_room()
        return None

    async def _next_turn(self) -> None:
        """Let others have a turn."""
        self._turn = 0
        await self._make_room()
        await asyncio.sleep(0)
        self._mind_room()

    async def _make_room(self) -> None:
        """Send what is answered, and wait where the client does not read it."""
        self._flush()
        while self._stalled and not self._gone and not self._ended:
            self._room = self._host.loop.create_future()
            try:
                await self._room
            except asyncio.CancelledError:  # a policy may cancel every task there is
                await stay()

    def _take_line(self, session: SmtpSession, line: bytes) -> Awaitable[None] | None:
        if line == TOO_LONG:
            session.errors += 1
            self.answer(replies.TOO_LONG)
        elif is_foreign(line):
            self.answer(replies.NOT_SMTP)
            self.hang_up()
        else:
            return session.take(line)
        return None

    def _end_with(self, reason: str, answer: Reply) -> None:
        """Have the connection end behind a reply; the reason is logged."""
        log.info("smtp connection of %s closed: %s", self._name, reason)
        self.answer(answer)
        self.hang_up()

    def _turn_bad(self, error: WireError) -> None:
        """End the connection: what the client sent can be understood in two ways."""
        bare = isinstance(error, BareLF)
        self._end_with(str(error), replies.BARE_LF if bare else replies.TOO_LONG)

    def _fault(self, error: Exception | None) -> None:
        """End the connection where we cannot tell any more what was answered."""
        if error is not None:
            log.error("a fault of mailgate itself", exc_info=error)
        if self._parting is not None:
            self.answer(self._parting)
            self._parting = None
        if not self._ended and not self._gone and not self._eof:
            self.answer(replies.STOPPING if self._host.draining else replies.FAULT)
            self.hang_up()

    # -- content ---------------------------------------------------------------------------------

    def expect(self, content: Intake) -> None:
        """Take what comes as content, until it has ended."""
        self._content = content
        self._began = self.last = self._host.loop.time()

    def _take_content(self, session: SmtpSession, content: Intake) -> Awaitable[None] | None:
        work, rest = content.receive(self._lines.take())
        if rest:
            self._lines.receive(rest)
        if content.octets > 2 * self._host.options.limits.message:
            self.answer(replies.FAR_TOO_BIG)
            self.hang_up()
        elif content.ended:
            self._content = None
            return self._end_content(session, work) if work else session.end_of_content()
        elif work is not None:
            return self._passed_on(session, work)
        return None

    async def _passed_on(self, session: SmtpSession, work: Awaitable[None]) -> None:
        try:
            await work
        except HopError as error:
            session.fail(error)
        self._mind_room()

    async def _end_content(self, session: SmtpSession, work: Awaitable[None]) -> None:
        await self._passed_on(session, work)
        await session.end_of_content()

    # -- the client's end of the session ---------------------------------------------------------

    def answer(self, answer: Reply) -> None:
        """Send a reply, in one piece with those before it."""
        self._say(answer.octets)

    def hang_up(self, *, linger: bool = True) -> None:
        """Take no further command: the connection ends behind the last reply."""
        self._ended = True
        self._lingers = linger

    def on_wait(self) -> None:
        """Hear that a handler waits: what was answered before is sent."""
        self._flush()

    async def challenge(self, text: bytes) -> bytes:
        """Send 334 with a text, and return the client's next line."""
        self.answer(Reply(334, (text,)))
        self._flush()
        self._since = self._host.loop.time()
        self._awaited = self._host.loop.create_future()
        try:
            self._answer_challenge()
            if (self._eof or self._gone) and not self._awaited.done():
                self._awaited.cancel()  # no more comes
            return await self._awaited
        finally:
            self._awaited = None

    def _answer_challenge(self) -> None:
        """Give a line to the AUTH exchange that waits for it."""
        awaited = self._awaited
        if awaited is None or awaited.done():
            return
        try:
            line = self._lines.next(MAX_AUTH)
        except WireError as error:
            self._turn_bad(error)
            self._flush()
            awaited.cancel()
            return
        if line is not None:
            awaited.set_result(b"*" if line == TOO_LONG else line)

    async def start_tls(self) -> None:
        """Answer STARTTLS, and go on encrypted."""
        if self._lines.waiting:  # it would be taken for encrypted: CVE-2011-0411
            self.answer(replies.PIPELINED_TLS)
            self.hang_up()
            return
        self.answer(replies.READY_FOR_TLS)
        self._flush()
        await self._handshake()

    async def _handshake(self) -> bool:
        context = self._host.tls
        if context is None:
            self.hang_up()
            return False
        try:
            transport = await self._host.loop.start_tls(
                self._transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE,
            )
        except (OSError, ssl.SSLError, EOFError) as error:
            log.info("TLS handshake with %s failed: %s", self._name, error or type(error).__name__)
            transport = None
        if transport is None:
            self._ended = self._gone = True
            return False
        self._transport = transport
        self.tls = tls_of(transport)
        return True

    # -- the end ---------------------------------------------------------------------------------

    async def _close(self, session: SmtpSession) -> None:
        for _ in range(ATTEMPTS):
            try:
                await session.close(self._given_up)
                return
            except asyncio.CancelledError:
                await stay()
            except Exception as error:
                log.error("a fault of mailgate itself", exc_info=error)

    async def _end(self) -> None:
        """End the session, and the connection, whoever cancels that."""
        self._ended = True
        session = self._session
        if session is not None:
            await self._close(session)
            self._session = None
        if self._gone:
            return
        self._mind_room()
        if self._lingers and not self._eof:
            # Unread input would have the kernel reset the connection, and the reply with it.
            with contextlib.suppress(OSError, RuntimeError):
                if self._transport.can_write_eof():
                    self._transport.write_eof()
            self._host.loop.call_later(LINGER, self._transport.close)
        else:
            self._transport.close()
