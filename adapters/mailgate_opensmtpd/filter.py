"""One pipe, many sessions: which event is whose, and who waits for whom."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import final

from mailgate.deadline import stay
from mailgate.engine import Engine
from mailgate.errors import ConfigError
from mailgate_opensmtpd.registration import check_release, registration
from mailgate_opensmtpd.session import Incoming, SmtpSession, echo, failure
from mailgate_opensmtpd.stream import LongLines
from mailgate_opensmtpd.wire import (
    NEWEST,
    Config,
    DataLines,
    Decoder,
    Event,
    Ignored,
    Report,
    Request,
)

log = logging.getLogger(__name__)

MAX_SESSIONS = 15_000
"""Sessions that are remembered; an smtpd that never says link-disconnect costs no more."""
DRAIN = 5.0
"""Seconds that handlers have to end after end of file."""


@final
class Filter:
    """The protocol between two byte streams: what the adapter runs on its pipe.

    One task drives: it reads, and handles events until a handler makes it wait.  Then it is
    that session's task, and another one drives.  So an event costs no task, and a handler
    that waits delays its own session only.
    """

    def __init__(
        self,
        engine: Engine,
        long_lines: LongLines,
        read: Callable[[], Awaitable[bytes]],
        write: Callable[[bytes], None],
        drained: Callable[[], Awaitable[None] | None] = lambda: None,
    ) -> None:
        """Filter what ``read`` returns, until it returns nothing.

        ``drained`` returns what to await while too much that was written still waits, or None.
        """
        self._engine = engine
        self._long_lines = long_lines
        self._read = read
        self._write_out = write
        self._drained = drained
        self._decoder = Decoder()
        self._events: deque[Event] = deque()
        self._out: list[bytes] = []
        self._sessions: OrderedDict[bytes, SmtpSession] = OrderedDict()
        self._config: dict[str, list[str]] = {}
        self._ready = False
        self._at_end = False
        self._warned: set[str] = set()
        self._driver: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = contextvars.copy_context()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Run until the input ends and what waits has ended, too."""
        self._drive_in_new_task()
        while not self._ended.done():
            try:
                await asyncio.wait([self._ended])
            except asyncio.CancelledError:  # a handler cancelled every task there is
                await stay()
        self._ended.result()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN)

    def _drive_in_new_task(self) -> None:
        loop = asyncio.get_running_loop()
        self._driver = task = loop.create_task(self._drive(), context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if task is not self._driver or self._ended.done():
            return
        if self._at_end:
            self._ended.set_result(None)
        elif isinstance(error, ConfigError):
            self._ended.set_exception(error)
        else:  # smtpd would end with us
            log.critical("the filter's task ended and is started again", exc_info=error)
            self._drive_in_new_task()

    def _hand_over(self) -> None:
        """Have another task drive: a handler is waiting in this one."""
        if asyncio.current_task() is self._driver:
            self._drive_in_new_task()

    async def _drive(self) -> None:
        task = asyncio.current_task()
        while True:
            while self._events:
                work = self._take(self._events.popleft())
                if work is not None:
                    await work
                    if self._driver is not task:
                        return
            self._flush()
            try:
                data = await self._read()
            except asyncio.CancelledError:
                if self._ended.done():
                    raise
                await stay()
                continue
            if not data:
                self._at_end = True
                break
            self._events.extend(self._decoder.receive_data(data))
        await self._end()

    def _flush(self) -> None:
        if self._out:
            self._write_out(b"".join(self._out))
            self._out.clear()

    def _room(self) -> Awaitable[None] | None:
        """Write what there is; return what to await before more may be made."""
        self._flush()
        return self._drained()

    # -- events --------------------------------------------------------------------------------

    def _take(self, event: Event) -> Awaitable[None] | None:
        """Take one event; what is returned has to be awaited."""
        if type(event) is Ignored:
            log.debug("%s: %r", event.reason, event.line)
        elif type(event) is Config:
            self._configure(event)
        elif self._ready:
            try:
                return self._dispatch(event)
            except Exception:
                log.exception("a fault of mailgate itself")
        return None

    def _configure(self, event: Config) -> None:
        if self._ready:
            return
        if event.key != "ready":
            if len(self._config) < 100:
                self._config.setdefault(event.key, []).append(event.value)
            return
        check_release(self._config)
        outgoing = "smtp-out" in self._config.get("subsystem", ())
        self._out += registration(self._engine.interest, outgoing=outgoing)
        self._ready = True

    def _dispatch(self, event: Incoming) -> Awaitable[None] | None:
        if event.version > NEWEST:
            self._warn_once(f"protocol {event.version[0]}.{event.version[1]} is read as 0.7")
        if type(event) is Report and event.event == "link-connect":
            return self._begin(event)
        session = self._sessions.get(event.session)
        if session is None:
            self._unknown(event)
            return None
        if type(event) is Report and event.event == "link-disconnect":
            del self._sessions[event.session]
        if session.backlog is not None:
            session.backlog.append(event)
            if type(event) is Report and event.event == "link-disconnect":
                session.abandon()
            elif type(event) is Report and event.event == "tx-rollback":
                session.abandon_message()
            return None
        work = session.take(event)
        return None if work is None else self._finish(session, work)

    async def _begin(self, report: Report) -> None:
        old = self._sessions.pop(report.session, None)
        if old is not None:
            log.warning("session %r began twice", report.session)
            await self._close(old)
        if len(self._sessions) >= MAX_SESSIONS:
            await self._forget_one()
        session = SmtpSession(
            self._engine,
            report,
            self._long_lines,
            self._out.append,
            self._hand_over,
            self._room,
        )
        self._sessions[report.session] = session
        work = session.take(report)
        if work is not None:
            await self._finish(session, work)

    async def _forget_one(self) -> None:
        """Forget the oldest session, one with nothing under way if there is any."""
        self._warn_once(f"more than {MAX_SESSIONS} sessions: the oldest idle ones are forgotten")
        for _ in range(len(self._sessions)):
            name, session = self._sessions.popitem(last=False)
            if session.idle:
                break
            self._sessions[name] = session  # at the end now, so it is not looked at each time
        else:
            _, session = self._sessions.popitem(last=False)
        await self._close(session)

    async def _finish(self, session: SmtpSession, work: Awaitable[None]) -> None:
        """Finish an event and, if it waited, all that came for the session meanwhile."""
        await self._guard(session, work)
        backlog = session.backlog
        if backlog is None:
            return
        while backlog:
            await self._guard(session, _take_late(session, backlog.popleft()))
        session.backlog = None
        self._flush()

    async def _guard(self, session: SmtpSession, work: Awaitable[None]) -> None:
        """Await what an event asks for; nothing comes out of it."""
        try:
            await work
        except asyncio.CancelledError:  # abandoned: only the handler was to be cancelled
            await stay()
        except Exception:
            log.exception("a fault of mailgate itself in session %s", session.session.id)

    async def _close(self, session: SmtpSession) -> None:
        session.abandon()
        await session.close()

    def _unknown(self, event: Incoming) -> None:
        """Answer for a session that the policy has not seen begin: fail, but answer."""
        if type(event) is Request:
            self._out.append(failure(event))
        elif type(event) is DataLines:
            self._out.append(echo(event))

    def _warn_once(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < 100:
            self._warned.add(text)
            log.warning("%s", text)

    async def _end(self) -> None:
        """End every session: smtpd is gone."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            session.abandon()
        waiting = self._tasks - {asyncio.current_task()}
        if waiting:
            await asyncio.wait(waiting, timeout=DRAIN)
        ends = [asyncio.ensure_future(session.close()) for session in sessions]
        if ends:
            await asyncio.wait(ends, timeout=DRAIN)


async def _take_late(session: SmtpSession, event: Incoming) -> None:
    work = session.take(event)
    if work is not None:
        await work
