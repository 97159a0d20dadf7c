"""One socket, many sessions: which frame is whose."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from typing import final

from mailgate import fork
from mailgate.deadline import stay
from mailgate.eager import Eager
from mailgate.engine import FAILURE, Engine
from mailgate.errors import PeerError
from mailgate_opensmtpd52.facts import hooks
from mailgate_opensmtpd52.imsg import Channel, Frame, FramingError
from mailgate_opensmtpd52.session import Passed, SmtpSession, answer
from mailgate_opensmtpd52.wire import (
    DATALINE,
    EVENT,
    PIPE,
    QUERY,
    REGISTER,
    RESPONSE,
    Codec,
    Event,
    Happening,
    Query,
    WireError,
    parse_registration,
)

log = logging.getLogger(__name__)

MAX_SESSIONS = 15_000
"""Sessions that are remembered; an smtpd that never says DISCONNECT costs no more."""
LOOKS = 100  # for an idle one, each time
HIGH_WATER = 4 * 1024 * 1024
"""Octets of answers that may wait; above it nothing more is read."""
DRAIN = 5.0
"""Seconds that handlers have to end after end of file."""


@final
class Filter:
    """The protocol on one end of smtpd's socket.

    What comes is taken in callbacks of the loop: a session whose handler waits goes on in a
    task, and delays no other.
    """

    def __init__(self, engine: Engine, end: socket.socket) -> None:
        """Filter what comes at ``end``, which does not block and is closed at the end."""
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.eager = Eager()
        self.has_pipes = False
        self._channel = Channel(end)
        self._codec: Codec | None = None
        self._sessions: OrderedDict[int, SmtpSession] = OrderedDict()
        self._open: set[SmtpSession] = set()
        self._all_left: asyncio.Future[None] | None = None  # awaited at the end
        self._warned = False
        self._reading = False  # answers are gathered until all that was read is taken
        self._blocked = False  # smtpd does not read
        self._full = False  # and too much waits for that
        self._ended: asyncio.Future[Exception | None] = self.loop.create_future()

    async def run(self) -> None:
        """Run until smtpd closes the socket.  PeerError for what no smtpd sends."""
        self.loop.add_reader(self._channel.fileno(), self._readable)
        while not self._ended.done():
            try:
                await asyncio.wait([self._ended])
            except asyncio.CancelledError:  # a handler cancelled every task there is
                await stay()
        error = self._ended.result()
        await self._drain()
        self._channel.close()
        if error is not None:
            raise error

    # -- what comes ----------------------------------------------------------------------------

    def _readable(self) -> None:
        self._reading = True
        try:
            frames = self._channel.receive()
            if frames is None:
                self._finish(None)
            else:
                for frame in frames:
                    self._take(frame)
        except (FramingError, WireError) as error:
            self._finish(PeerError(f"smtpd sent {error}{self._remedy()}"))
        except OSError as error:
            self._finish(PeerError(f"smtpd's socket cannot be read: {error.strerror}"))
        except Exception as error:  # PeerError, or a fault of mailgate itself
            self._finish(error)
        finally:
            self._reading = False
        self._flush()

    def _remedy(self) -> str:
        if self._codec is not None:
            return ""
        return "; OpenSMTPD 6.6 and later want mailgate run -p opensmtpd"

    def _take(self, frame: Frame) -> None:
        """Take one frame; the descriptor that it has is closed here, but for that of PIPE."""
        codec, fd = self._codec, frame.fd
        try:
            if frame.type == REGISTER:
                self._register(frame.payload)
            elif codec is None:
                raise WireError(f"a frame of type {frame.type} before REGISTER")
            elif frame.type == QUERY:
                self._query(codec.parse_query(frame.payload))
            elif frame.type == EVENT:
                self._event(codec.parse_event(frame.payload))
            elif frame.type == PIPE:
                session = self._sessions.get(codec.parse_pipe(frame.payload).session)
                if session is not None:  # else it has ended: nobody waits for an answer
                    fd = None
                    session.take(Passed(-1 if frame.fd is None else frame.fd))
            else:
                raise WireError(f"a frame of type {frame.type}")
        finally:
            if fd is not None and fd >= 0:
                fork.close(fd)

    def _register(self, payload: bytes) -> None:
        if self._codec is not None:
            raise WireError("REGISTER twice")
        self._codec, name = parse_registration(payload)
        wanted = hooks(self.engine.interest)
        self.has_pipes = bool(wanted & DATALINE)
        self._channel.send(REGISTER, self._codec.register(wanted))
        log.info("filter %r, API version %d", name.decode("utf-8", "replace"), self._codec.version)

    def _query(self, query: Query) -> None:
        session = self._sessions.get(query.session)
        if session is not None:
            session.take(query)
        else:  # the policies have not seen it begin: fail, but answer
            self.respond(answer(query, FAILURE))

    def _event(self, event: Event) -> None:
        if event.happening is Happening.CONNECT:
            self._begin(event.session)
            return
        session = self._sessions.get(event.session)
        if session is None:
            log.debug("%s of an unknown session", event.happening.name)
            return
        if event.happening is Happening.DISCONNECT:
            del self._sessions[event.session]
        session.take(event.happening)

    def _begin(self, id: int) -> None:
        old = self._sessions.pop(id, None)
        if old is not None:
            log.warning("session %s began twice", old.session.id)
            old.take(Happening.DISCONNECT)
        if len(self._sessions) >= MAX_SESSIONS and not self._forget_one():
            return  # its queries are refused
        self._sessions[id] = session = SmtpSession(self, id)
        self._open.add(session)

    def _forget_one(self) -> bool:
        """Forget the oldest session with nothing under way; False where there is none."""
        if not self._warned:
            self._warned = True
            log.warning("more than %d sessions: the oldest idle ones are forgotten", MAX_SESSIONS)
        for _ in range(min(LOOKS, len(self._sessions))):
            id, session = self._sessions.popitem(last=False)
            if session.idle:
                session.take(Happening.DISCONNECT)
                return True
            self._sessions[id] = session  # at the end now, so it is not looked at each time
        return False

    # -- what leaves ---------------------------------------------------------------------------

    def respond(self, payload: bytes) -> None:
        """Send the answer to a query."""
        self._channel.send(RESPONSE, payload)
        self._flush()

    def respond_pipe(self, session: int, fd: int | None) -> None:
        """Send the answer to PIPE; without a descriptor the client gets 421."""
        if self._codec is not None:
            self._channel.send(PIPE, self._codec.pipe(session), fd)
            self._flush()

    def _flush(self) -> None:
        if self._reading or self._ended.done():
            return
        done = self._channel.flush()
        if self._channel.lost:
            self.loop.call_soon(self._finish, None)  # this may be the task of a session
            return
        fd = self._channel.fileno()
        if done is self._blocked:
            self._blocked = not done
            if done:
                self.loop.remove_writer(fd)
            else:
                self.loop.add_writer(fd, self._flush)
        full = self._channel.unsent > HIGH_WATER
        if full is not self._full:
            self._full = full
            if full:
                self.loop.remove_reader(fd)
            else:
                self.loop.add_reader(fd, self._readable)

    # -- the end -------------------------------------------------------------------------------

    def _finish(self, error: Exception | None) -> None:
        """End every session: smtpd is gone, or we are about to be.  A callback of the loop."""
        if self._ended.done():
            return
        fd = self._channel.fileno()
        self.loop.remove_reader(fd)
        self.loop.remove_writer(fd)
        self._ended.set_result(error)
        for session in self._sessions.values():
            session.take(Happening.DISCONNECT)
        self._sessions.clear()

    def left(self, session: SmtpSession) -> None:
        """Hear that a session is over, and nothing is done for it any more."""
        self._open.discard(session)
        if not self._open and self._all_left is not None and not self._all_left.done():
            self._all_left.set_result(None)

    async def _drain(self) -> None:
        """Give the handlers of the last sessions some time."""
        end = self.loop.time() + DRAIN
        while self._open and self.loop.time() < end:
            self._all_left = self.loop.create_future()
            try:
                await asyncio.wait([self._all_left], timeout=DRAIN)
            except asyncio.CancelledError:
                await stay()
