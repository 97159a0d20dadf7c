"""One SMTP session of smtpd: its events and queries become calls of the engine."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol, TypeAlias, final

from mailgate import fork
from mailgate.address import UNTOLD, Address
from mailgate.deadline import stay
from mailgate.eager import Eager
from mailgate.engine import FAILURE, Engine
from mailgate.errors import PeerError
from mailgate.session import Session
from mailgate.stage import Stage
from mailgate.syntax import text_of
from mailgate.verdict import Defer, Disconnect, Reject, Verdict
from mailgate_opensmtpd52.facts import client_facts, event_of
from mailgate_opensmtpd52.passage import Passage
from mailgate_opensmtpd52.pipe import DataPipe, takes_mail
from mailgate_opensmtpd52.stream import Stream
from mailgate_opensmtpd52.wire import MAX_LINE, Happening, Kind, Query, Status

log = logging.getLogger(__name__)

_NOT_WHOLE = Defer("the message did not come as a whole", 451, "4.3.0")
_NOT_TAKEN = Defer("the message could not be passed on", 451, "4.3.0")

MOST_WAITING = 100
"""What may come for a session while one of its queries is open: smtpd sends an event or two."""

_CLOSING = (Kind.CONNECT, Kind.HELO)
"""Asked about a client that a refusal has to send away.

With FAIL smtpd closes at CONNECT without a word, and at HELO takes the client's MAIL next.
"""


class Host(Protocol):
    """What runs the sessions."""

    engine: Engine
    eager: Eager
    loop: asyncio.AbstractEventLoop
    has_pipes: bool
    """Whether messages pass through us, as was registered for."""

    def respond(self, payload: bytes) -> None:
        """Send the answer to a query."""

    def respond_pipe(self, session: int, fd: int | None) -> None:
        """Send the answer to PIPE, with a descriptor that is the host's then."""

    def left(self, session: SmtpSession) -> None:
        """Hear that a session is over, and nothing is done for it any more."""


class Passed(NamedTuple):
    """The descriptor of a PIPE, -1 where there is none."""

    fd: int


Item: TypeAlias = Query | Happening | Passed


@final
class SmtpSession:
    """What is known of one session.  `take` is called for all that comes for it, in order."""

    __slots__ = (
        "_busy",
        "_conversation",
        "_host",
        "_passage",
        "_unseen",
        "_waiting",
        "number",
        "session",
    )

    def __init__(self, host: Host, number: int) -> None:
        self._host = host
        self.number = number
        self.session = Session(id=f"{number:016x}", adapter="opensmtpd52")
        self._conversation = host.engine.converse(self.session)
        self._passage: Passage | None = None  # of the message that is coming
        self._unseen = False  # EOM comes without anything having passed through us
        self._busy = False
        self._waiting: deque[Item] = deque()  # for what is under way

    @property
    def idle(self) -> bool:
        """Tell whether nothing is under way."""
        return not self._busy and self._conversation.message is None

    def take(self, item: Item) -> None:
        """Take what has come; a query is answered exactly once, maybe later.

        PeerError where smtpd goes on and on while it waits for an answer.
        """
        if not self._busy:
            self._busy = True  # not in `_work`, which may begin in the loop's next turn
            self._host.eager.run(self._work(item))
            return
        if type(item) is Happening:
            if self._waiting and self._waiting[-1] is item:
                return  # a client may say RSET again and again
            self._hurry(item)
        self._waiting.append(item)
        if len(self._waiting) > MOST_WAITING and item is not Happening.DISCONNECT:
            raise PeerError(f"smtpd does not wait for answers in session {self.session.id}")

    def _hurry(self, happening: Happening) -> None:
        """End waits whose answer means nothing any more."""
        if happening not in _ENDINGS:
            return
        if happening is Happening.DISCONNECT:
            self._conversation.abandon()
        else:
            self._conversation.abandon_message()
        if self._passage is not None:
            self._passage.pipe.break_off()

    async def _work(self, item: Item) -> None:
        """Do what an item asks for, and then what has come meanwhile."""
        while True:
            try:
                if type(item) is Query:
                    await self._on_query(item)
                elif type(item) is Passed:
                    await self._on_pipe(item.fd)
                elif type(item) is Happening:
                    await self._on_event(item)
            except asyncio.CancelledError:  # abandoned: only the handler was to be cancelled
                await stay()
            except Exception:
                log.exception("a fault of mailgate itself in session %s", self.session.id)
            finally:
                if type(item) is Query and not item.answered:
                    self._respond(item, FAILURE)
            if not self._waiting:
                break
            item = self._waiting.popleft()
        self._busy = False

    # -- queries -------------------------------------------------------------------------------

    async def _on_query(self, query: Query) -> None:
        if query.fault:
            log.warning("session %s: a faulty query: %s", self.session.id, query.fault)
            return
        if self._passage is not None and query.kind != Kind.EOM:
            await self._stop()
        await _QUERIES[query.kind](self, query)

    def _respond(self, query: Query, verdict: Verdict | None, datalen: int = 0) -> None:
        self._host.respond(answer(query, verdict, datalen))

    async def _on_connect(self, query: Query) -> None:
        self.session.learn(**client_facts(query))
        if Stage.EVENT in self._conversation.interest.asked:
            await self._conversation.event(event_of(Happening.CONNECT))  # now that it is known
        self._respond(query, await self._conversation.connect())

    async def _on_helo(self, query: Query) -> None:
        self._respond(query, await self._conversation.helo(text_of(query.name)))

    async def _on_mail(self, query: Query) -> None:
        self._unseen = not self._host.has_pipes
        sender = Address.from_wire(query.mailbox, UNTOLD)
        verdict = await self._conversation.mail(sender)
        self._respond(query, verdict)
        if verdict is not None:
            await self._conversation.finish("refused")

    async def _on_rcpt(self, query: Query) -> None:
        recipient = Address.from_wire(query.mailbox, UNTOLD)
        self._respond(query, await self._conversation.rcpt(recipient))

    async def _on_data(self, query: Query) -> None:
        self._respond(query, await self._conversation.data())

    async def _on_eom(self, query: Query) -> None:
        verdict, written = await self._end(query.datalen)
        self._respond(query, verdict, written)
        if self._passage is not None:
            self._passage.leave(query.datalen)
            self._passage = None
        if verdict is not None:
            await self._conversation.finish("refused")

    async def _end(self, datalen: int) -> tuple[Verdict | None, int]:
        """Have the message end; return what to answer, and the octets that have left us."""
        passage, conversation = self._passage, self._conversation
        if passage is None:
            if not self._unseen:
                log.error("message %s: EOM without a PIPE", conversation.id)
                conversation.refuse(_NOT_WHOLE, "opensmtpd52")
            self._unseen = False
            return await conversation.end(), datalen
        pipe = passage.pipe
        if not await passage.whole(datalen):
            if not pipe.lost:
                log.error(
                    "message %s: smtpd tells of %d octets, and %d have come",
                    *(conversation.id, datalen, pipe.received),
                )
            conversation.refuse(_NOT_WHOLE, "opensmtpd52")
        verdict = await passage.stream.end()
        if verdict is None and not await pipe.finish():
            conversation.refuse(_NOT_TAKEN, "opensmtpd52")
            verdict = _NOT_TAKEN
        return verdict, pipe.written

    # -- the content ---------------------------------------------------------------------------

    async def _on_pipe(self, sink: int) -> None:
        """Have the message pass through us, or past us where nobody looks at it."""
        if self._passage is not None:
            log.warning("session %s: PIPE twice", self.session.id)
            await self._stop()
        theirs: int | None = None
        try:
            theirs = self._open(sink)
        except OSError as error:
            log.error("message %s cannot pass: %s", self._conversation.id, error.strerror)
        finally:
            self._host.respond_pipe(self.number, theirs)

    def _open(self, sink: int) -> int | None:
        """Return the descriptor for smtpd to write to; None where the sink leads nowhere.

        The sink is the message's then, or it is closed.
        """
        conversation, host = self._conversation, self._host
        if sink < 0 or conversation.message is None or not takes_mail(sink):
            log.error("session %s: a PIPE that leads nowhere", self.session.id)
            if sink >= 0:
                fork.close(sink)
            return None
        if not conversation.wants_content:
            self._unseen = True
            return sink
        pipe = DataPipe(host.loop, sink)
        try:
            pipe.open()
            stream = Stream(conversation, host.engine.limits, pipe)
            self._passage = Passage(conversation, stream, pipe, host.eager, host.loop)
        except BaseException:
            pipe.close()
            raise
        return pipe.hand_over()

    async def _stop(self) -> None:
        """Have a message that is on its way go no further."""
        if self._passage is not None:
            self._conversation.abandon_message()
            await self._passage.stop()
            self._passage.close()
            self._passage = None

    # -- events --------------------------------------------------------------------------------

    async def _on_event(self, happening: Happening) -> None:
        conversation = self._conversation
        ends = happening in _ENDINGS
        if ends:
            await self._stop()
        if Stage.EVENT in conversation.interest.asked:
            await conversation.event(event_of(happening))
        if happening is Happening.COMMIT:
            await conversation.finish("accepted")
        elif ends and conversation.message is not None:
            await conversation.finish("aborted")
        if happening is Happening.DISCONNECT:
            await conversation.close()
            self._host.left(self)


_ENDINGS = frozenset({Happening.RESET, Happening.ROLLBACK, Happening.DISCONNECT})

_QUERIES: Mapping[int, Callable[[SmtpSession, Query], Awaitable[None]]] = {
    Kind.CONNECT: SmtpSession._on_connect,
    Kind.HELO: SmtpSession._on_helo,
    Kind.MAIL: SmtpSession._on_mail,
    Kind.RCPT: SmtpSession._on_rcpt,
    Kind.DATA: SmtpSession._on_data,
    Kind.EOM: SmtpSession._on_eom,
}


def answer(query: Query, verdict: Verdict | None, datalen: int = 0) -> bytes:
    """Return the payload of the answer; ``datalen`` is for EOM.  A reply has one line here."""
    length = datalen if query.kind == Kind.EOM else None
    if not isinstance(verdict, (Reject, Defer, Disconnect)):
        return query.answer(Status.OK, datalen=length)
    closes = isinstance(verdict, Disconnect) or query.kind in _CLOSING
    status, reply = Status.CLOSE if closes else Status.FAIL, verdict.reply
    return query.answer(status, reply.code, reply.in_one_line(MAX_LINE), length)
