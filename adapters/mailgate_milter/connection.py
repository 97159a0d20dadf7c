"""One connection of an MTA: packets in, answers out, in step with what was agreed on.

No task belongs to a connection.  What was read is worked off at once and the answers leave in
one write; only a handler that really waits goes on by itself, and packets queue up meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Iterator, Sequence
from typing import Protocol, cast, final

from mailgate.chain import Chain
from mailgate.deadline import stay
from mailgate.eager import Eager
from mailgate.engine import Conversation, Engine
from mailgate.flush import Flushes, Outgoing
from mailgate.session import Session
from mailgate_milter.negotiate import Plan
from mailgate_milter.session import SmtpSession
from mailgate_milter.wire import CONTINUE, PROGRESS, Command, Decoder, Packet, WireError

log = logging.getLogger(__name__)

NEGOTIATION = 30.0
"""Seconds that a peer has for its OPTNEG: what connects and is silent is no MTA."""

STALLED = 30.0
"""Seconds after which a peer that does not read its answers is given up."""

PROGRESS_EVERY = 5.0
"""Seconds between two signs of life; Sendmail waits 10 s for a packet by default."""

BACKLOG = 1024 * 1024
"""Octets of memory for what waits while a handler does; beyond it nothing is read."""

UNSENT = 64 * 1024
"""Octets of answers that are gathered; beyond it they are sent, and the MTA has to read them."""

TURN = 256
"""Packets that are worked off before other connections have their turn: some ten messages."""

_PACKET_COST = 100  # octets of memory, besides its data

_NOTHING: Iterator[Packet] = iter(())

_MACRO, _HEADER = int(Command.MACRO), int(Command.HEADER)


def tick(idle_timeout: float) -> float:
    """Return the seconds between two looks at which connections are overdue."""
    return max(min(idle_timeout, NEGOTIATION) / 10, 0.05)


class Host(Protocol):
    """What a connection needs of the server that it belongs to."""

    loop: asyncio.AbstractEventLoop
    engine: Engine
    eager: Eager
    flushes: Flushes
    patience: float
    idle_timeout: float

    def agree(self, offer: bytes) -> tuple[Chain, Plan]: ...
    def welcome(self, connection: Connection) -> None: ...
    def forget(self, connection: Connection) -> None: ...


@final
class Connection(Outgoing):
    """Speaks milter with one process of an MTA.  None of its methods raises."""

    __slots__ = (
        "_backlog",
        "_busy",
        "_chain",
        "_decoder",
        "_due",
        "_ended",
        "_host",
        "_looked",
        "_owes",
        "_packets",
        "_plan",
        "_progress",
        "_queued",
        "_quit",
        "_reads",
        "_room",
        "_session",
        "_stalled",
        "last",
    )

    _chain: Chain

    def __init__(self, host: Host) -> None:
        super().__init__(host.flushes)
        self._host = host
        self._decoder = Decoder(unread=_HEADER)
        self._plan: Plan | None = None  # until OPTNEG
        self._session: SmtpSession | None = None
        self._packets: Iterator[Packet] = _NOTHING
        self._looked = False  # whether `_look_ahead` has seen them
        self._queued: list[Packet] = []  # read while a handler waits
        self._backlog = 0  # what they cost
        self._reads = True
        self._busy = False  # packets are being worked off; a handler may be waiting
        self._owes = 0  # the command under way, where the MTA waits for its answer
        self._due = 0  # one behind it, where a handler of an unanswered one waits
        self._room: asyncio.Future[None] | None = None
        self._progress: asyncio.TimerHandle | None = None
        self._ended = self._quit = False
        self.last = 0.0  # when something was read, in the loop's time
        self._stalled = 0.0  # since when the MTA does not read, 0 where it does

    @property
    def idle(self) -> bool:
        """Tell whether neither a handler is at work for it nor a message under way."""
        return not self._busy and (self._session is None or self._session.idle)

    def overdue(self, now: float) -> str | None:
        """Return why the MTA has to be given up: it is silent, or does not read."""
        if self._stalled and now - self._stalled > STALLED:
            return f"its answers were not read for {STALLED:g} s"
        limit = self._host.idle_timeout
        if self._plan is None:
            limit = min(limit, NEGOTIATION)
        if not self._busy and now - self.last > limit:
            return f"nothing was said for {limit:g} s"
        return None

    def close(self, reason: str) -> None:
        """Close the connection: whoever speaks at the other end takes that for a failure."""
        log.info("milter connection of %s closed: %s", self._peer, reason)
        self._hang_up()
        self._transport.close()

    def abort(self, reason: str) -> None:
        """Close the connection without waiting for the peer to read."""
        log.warning("milter connection of %s closed: %s", self._peer, reason)
        self._hang_up()
        self._transport.abort()

    @property
    def _peer(self) -> str:
        name = self._transport.get_extra_info("peername")
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "a local socket"

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.last = self._host.loop.time()
        self._host.welcome(self)

    def data_received(self, data: bytes) -> None:
        if self._plan is not None:  # OPTNEG has its time from the beginning, however it drips
            self.last = self._host.loop.time()
        packets = self._decoder.receive_data(data)
        if self._busy:
            self._queue(packets)
        elif not self._ended:
            self._begin(packets)

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        self._go()
        if self._busy:
            if self._session is not None:
                self._session.abandon()
        elif self._session is None or self._ended:
            self._host.forget(self)
        else:
            self._busy = True
            self._host.eager.run(self._go_on(None))

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
        """Read only while the MTA reads, too, and not too much is waiting."""
        reads = not self._stalled and self._backlog <= BACKLOG
        if reads != self._reads and not self._gone:
            self._reads = reads
            if reads:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- packets ---------------------------------------------------------------------------------

    def _queue(self, packets: list[Packet]) -> None:
        """Keep packets while a handler waits."""
        self._queued += packets
        self._backlog += _cost(packets)
        self._mind_room()
        self._look_ahead(packets)

    def _look_ahead(self, packets: Sequence[Packet]) -> None:
        """See what waits behind a handler that waits.

        The MTA may have given up, or be waiting for another answer already.
        """
        plan = self._plan
        for command, _ in packets:
            if plan is not None and command in plan.answered and not self._owes | self._due:
                self._due = command
                self._show_life()
            if command in (Command.QUIT, Command.QUIT_NC):
                self._give_up()
            elif command == Command.ABORT:
                self._give_up_message()

    def _give_up(self) -> None:
        if self._session is not None:
            self._session.abandon()

    def _give_up_message(self) -> None:
        """Cancel what waits for a message that was aborted.

        An MTA that was owed an answer and did not wait for it would take it for the answer to
        its next command: then both sides are out of step for good.
        """
        if self._session is None:
            return
        if self._owes:
            self._ended = True
            self._session.abandon()
        else:
            self._session.abandon_message()

    def _begin(self, packets: list[Packet]) -> None:
        """Work off what was read: here and now, unless something has to be awaited."""
        if len(packets) > TURN:
            self._queue(packets)
            packets = []
        self._packets, self._looked = iter(packets), False
        work = self._advance()
        if work is None and not self._ended:
            self._flush_soon()
        else:
            self._busy = True
            self._host.eager.run(self._go_on(work))

    async def _go_on(self, work: Awaitable[None] | None) -> None:
        """Await what a packet asks for, and work off the others; more may come meanwhile."""
        while work is not None:
            try:
                await work
            except asyncio.CancelledError:  # nobody waits for the answer any more
                await stay()
            except Exception as error:
                self._fail(error)
            if self._progress is not None:
                self._progress.cancel()
                self._progress = None
            work = self._advance()
        if self._ended or self._gone:
            self._flush()
            await self._end()
        else:
            self._flush_soon()
        self._busy = False
        if self._gone:
            self._host.forget(self)  # not before: `close` handlers may still have been at work

    def _advance(self) -> Awaitable[None] | None:
        """Take packets until one asks for something to be awaited; None where none is left."""
        try:
            while not self._ended and not self._gone:
                if self._unsent > UNSENT:
                    return self._make_room()
                work = self._take()
                if work is not None:
                    return work
                if not self._queued:
                    break
                return self._next_turn()
            if self._decoder.error is not None and not self._ended and not self._gone:
                raise self._decoder.error
        except Exception as error:
            self._fail(error)
        return None

    async def _next_turn(self) -> None:
        """Let others have a turn, and go on with what was queued."""
        await self._make_room()
        await asyncio.sleep(0)
        packets, self._queued = self._queued[:TURN], self._queued[TURN:]
        self._packets = iter(packets)  # looked at already
        self._backlog -= _cost(packets)
        self._mind_room()

    async def _make_room(self) -> None:
        """Send what is answered, and wait where the MTA does not read it."""
        self._flush()
        while self._stalled and not self._gone:
            self._room = self._host.loop.create_future()
            try:
                await self._room
            except asyncio.CancelledError:
                await stay()

    def _take(self) -> Awaitable[None] | None:
        plan, session = self._plan, self._session
        for command, data in self._packets:
            if command == _MACRO and session is not None:
                session.macros.take(data)
            elif command in _CONTROL or plan is None or session is None:
                work = self._control(command, data)
                if work is not None or self._ended:
                    return work
                plan, session = self._plan, self._session
            elif command == _HEADER:
                session.take_header(data)
                if _HEADER in plan.answered:
                    self._out.append(CONTINUE)
            else:
                self._owes = command if command in plan.answered else 0
                work = session.take(command, data)
                if work is not None:
                    return work
                self._answer(CONTINUE)
        return None

    def _control(self, command: int, data: bytes) -> Awaitable[None] | None:
        """Take a command about the connection itself."""
        if command == Command.QUIT:
            self._ended = self._quit = True
        elif command == Command.OPTNEG:
            if self._plan is not None:
                raise WireError("OPTNEG twice")
            self._chain, self._plan = self._host.agree(data)
            self._decoder.allow_body(self._plan.chunk)
            self._out.append(self._plan.packet)
            self.last = self._host.loop.time()
            self._begin_session(self._plan)
        elif self._plan is None or self._session is None:
            raise WireError(f"{Command(command).name} before OPTNEG")
        else:  # QUIT_NC
            return self._next_client(self._plan, self._session)
        return None

    async def _next_client(self, plan: Plan, session: SmtpSession) -> None:
        """End a session at QUIT_NC; another client follows on this connection."""
        await session.close()
        self._begin_session(plan)

    def _begin_session(self, plan: Plan) -> None:
        self._session = SmtpSession(self._host.engine.limits, plan, self._converse, self._answer)

    def _converse(self, session: Session) -> Conversation:
        host = self._host
        return host.engine.converse(
            session, self._on_wait, chain=self._chain, patience=host.patience
        )

    def _fail(self, error: Exception) -> None:
        """End the connection: what the peer did wrong is said, and what we did is logged."""
        self._ended = True
        if isinstance(error, WireError):
            log.warning("milter connection of %s closed: %s", self._peer, error)
        else:
            log.error("a fault of mailgate itself", exc_info=error)

    async def _end(self) -> None:
        """End the session, and the connection."""
        self._ended = True
        if self._session is not None:
            await self._session.close()
            self._session = None  # it knows this connection: a cycle is freed late
        if not self._quit:
            self._hang_up()
        self._transport.close()

    def _hang_up(self) -> None:
        """Have the MTA see the end: a process that a policy forked may hold the socket, too."""
        self._flush()
        if not self._gone and self._transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.write_eof()

    # -- answers ---------------------------------------------------------------------------------

    def _answer(self, packet: bytes) -> None:
        """Answer the command under way, where the MTA waits for that."""
        if self._owes:
            self._owes = self._due = 0
            self._say(packet)

    def _on_wait(self) -> None:
        """A handler waits: send what is answered, and signs of life where the MTA takes them."""
        self._flush()
        if not self._looked:
            self._looked = True
            behind = list(self._packets)
            self._packets = iter(behind)
            self._look_ahead(behind)
        self._show_life()

    def _show_life(self) -> None:
        """Have PROGRESS sent from time to time, where the MTA waits and understands it."""
        awaited = self._owes or self._due
        if not awaited or self._progress is not None or self._session is None:
            return
        if awaited == Command.EOM or self._session.is_postfix:
            self._progress = self._host.loop.call_later(PROGRESS_EVERY, self._send_progress)

    def _send_progress(self) -> None:
        self._progress = None
        if (self._owes or self._due) and not self._gone:
            self._transport.write(PROGRESS)
            self._show_life()


_CONTROL = frozenset({Command.OPTNEG, Command.QUIT, Command.QUIT_NC})


def _cost(packets: Sequence[Packet]) -> int:
    """Return the octets of memory that packets take."""
    return sum(len(data) + _PACKET_COST for _, data in packets)
