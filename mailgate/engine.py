"""Runs policies for conversations: order, deadlines, failures, what is remembered.

An adapter makes one `Conversation` per client and calls its methods in SMTP order; each returns
the verdict to give, or None to go on.  Nothing that a policy does comes out of them: only
`asyncio.CancelledError`, after `Conversation.abandon`.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, final

from mailgate.address import Address
from mailgate.chain import Bound, Capabilities, Chain, Defaults, Interest, Loaded
from mailgate.content import Body
from mailgate.headers import Section
from mailgate.limits import Limits
from mailgate.logs import fields
from mailgate.message import Ending, Message
from mailgate.question import FAILURE, Question, Step, Terms
from mailgate.session import Attempt, Event, Session
from mailgate.stage import ANSWERING_STAGES, MESSAGE_STAGES, SILENT_STAGES, Stage
from mailgate.threads import Threads
from mailgate.verdict import (
    Accept,
    Defer,
    Discard,
    Disconnect,
    Quarantine,
    Reject,
    Verdict,
    verb,
)

__all__ = ["FAILURE", "NO_SPACE", "Conversation", "Engine"]

log = logging.getLogger(__name__)

# Read once: CPython 3.11 looks for a member of an enumeration in Python, each time.
(
    _CONNECT,
    _HELO,
    _STARTTLS,
    _AUTH,
    _MAIL,
    _RCPT,
    _DATA,
    _HEADERS,
    _BODY,
    _MESSAGE,
    _COMMAND,
    _EVENT,
    _DONE,
    _CLOSE,
) = Stage

_EVERYONE = -1  # as a set of bits
TOO_MANY_RECIPIENTS = Defer("too many recipients", 452, "4.5.3")
TOO_MANY_SESSIONS = Disconnect("too many connections, try again later", 421, "4.3.2")
TOO_BIG: Mapping[str, Verdict | None] = {
    "defer": Defer("the message is too big for the mail policy", 451, "4.3.4"),
    "reject": Reject("the message is too big", 552, "5.3.4"),
    "continue": None,
}
TOO_MUCH_HEADER = Reject("the header section is too big", 552, "5.3.4")
NO_SPACE = Defer("no space to hold the message", 452, "4.3.1")


@final
class Engine:
    """The policies of a process, for one protocol.

    ``capabilities`` is None where everything is granted.  ``strict`` raises `Misuse` out of
    the conversation, for tests.  ``trace`` is told every step.
    """

    def __init__(
        self,
        policies: Sequence[Loaded],
        capabilities: Capabilities | None,
        *,
        defaults: Defaults | None = None,
        limits: Limits | None = None,
        strict: bool = False,
        trace: Callable[[Step], None] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.chain = Chain(policies, capabilities, defaults or Defaults())
        self.threads = Threads(self.limits.threads)
        self.terms = Terms(self.threads, strict, trace)
        self.sessions = 0

    @property
    def interest(self) -> Interest:
        return self.chain.interest

    def converse(
        self,
        session: Session,
        on_wait: Callable[[], None] | None = None,
        *,
        chain: Chain | None = None,
        patience: float = math.inf,
    ) -> Conversation:
        """Begin a conversation.

        ``on_wait`` is called when a handler suspends for the first time in a question: an
        adapter that serves several clients in one task goes on with the others then.
        ``chain`` has the policies as this very peer can serve them, where that is less than
        its protocol can.  ``patience`` is how many seconds the peer waits for an answer before
        the end of the message: no question takes longer.
        """
        chain = chain or self.chain
        if chain.withheld:
            session.withhold(*chain.withheld)
        return Conversation(self, session, on_wait, chain, patience)

    def use(self, chain: Chain) -> None:
        """Have new conversations use other policies; those under way keep theirs."""
        self.chain = chain


@final
class Conversation:
    """One client's conversation with the policies.

    Methods are called one at a time.  A refusal stands for what it was about: at connect for
    the connection, at helo until the next greeting, in a message for that message; it is given
    again at MAIL and at the end of data, so one that a wire could not carry is not lost.
    """

    __slots__ = (
        "_by",
        "_closed",
        "_data_refused",
        "_engine",
        "_final",
        "_message_silent",
        "_question",
        "_refusals",
        "_serial",
        "_silent",
        "chain",
        "message",
        "on_wait",
        "patience",
        "session",
        "terms",
    )

    def __init__(
        self,
        engine: Engine,
        session: Session,
        on_wait: Callable[[], None] | None,
        chain: Chain,
        patience: float,
    ) -> None:
        self._engine = engine
        self.chain = chain
        self.patience = patience
        self.session = session
        self.message: Message | None = None
        self.on_wait = on_wait
        self.terms = engine.terms
        self._question: Question | None = None
        self._refusals: dict[Stage, tuple[Verdict, str]] = {}  # of the connection
        self._final: tuple[Verdict, str] | None = None  # of the message
        self._by = ""
        self._silent = 0  # bits of policies that accepted the connection
        self._message_silent = 0
        self._serial = 0
        self._closed = False
        self._data_refused = False
        engine.sessions += 1
        if engine.sessions > engine.limits.sessions:
            self._refusals[_CONNECT] = (TOO_MANY_SESSIONS, "limits.sessions")

    @property
    def interest(self) -> Interest:
        """What the policies of this conversation want; a reload does not change it."""
        return self.chain.interest

    # -- the connection ----------------------------------------------------------------------

    async def connect(self) -> Verdict | None:
        """Ask about a new client."""
        if _CONNECT in self._refusals:
            self._log(self._refusals[_CONNECT], _CONNECT)
            return self._refusals[_CONNECT][0]
        if not self.chain.at[_CONNECT]:
            return None
        return self._stands(_CONNECT, await self._ask(_CONNECT, None, self.session))

    async def helo(self, name: str, esmtp: bool | None = None) -> Verdict | None:
        """Ask about a greeting; read ``session.helo`` afterwards, it may have been changed."""
        self._refusals.pop(_HELO, None)
        self.session.greet(name, esmtp)
        if not self.chain.at[_HELO]:
            return None
        return self._stands(_HELO, await self._ask(_HELO, None, self.session))

    async def starttls(self) -> Verdict | None:
        """Ask about STARTTLS, before the handshake."""
        return await self._ask(_STARTTLS, None, self.session)

    async def auth(self, attempt: Attempt) -> Verdict | None:
        """Ask about a login; only handlers that declared ``credentials`` see the password."""
        return await self._ask(_AUTH, None, self.session, attempt)

    async def command(self, name: str, argument: str = "") -> Verdict | None:
        """Ask about any other SMTP command, or show one to those who observe all."""
        concerned = tuple(b for b in self.chain.at[_COMMAND] if not b.verbs or name in b.verbs)
        return await self._ask(_COMMAND, None, self.session, name, argument, only=concerned)

    async def observe(self, name: str, argument: str = "") -> None:
        """Show a command that the wire only reports; what is answered cannot be given."""
        concerned = tuple(
            b
            for b in self.chain.at[_COMMAND]
            if not b.answers and (not b.verbs or name in b.verbs)
        )
        verdict = await self._ask(_COMMAND, None, self.session, name, argument, only=concerned)
        self.remember(_COMMAND, verdict)

    async def event(self, event: Event) -> None:
        """Tell what the wire reports beyond the stages."""
        await self._ask(_EVENT, None, self.session, event)

    async def close(self) -> None:
        """End the conversation: a message under way is aborted."""
        if self._closed:
            return
        self._closed = True
        self._engine.sessions -= 1
        if self.message is not None:
            await self.finish("aborted")
        if (
            self.chain.at[_CLOSE] and self.session.direction == "in"
        ):  # outgoing sessions are events, and nothing else
            await self._ask(_CLOSE, None, self.session)
        self.session.state.clear()

    def _stands(self, stage: Stage, verdict: Verdict | None) -> Verdict | None:
        if verdict is not None:
            self._refusals[stage] = (verdict, self._by)
        return verdict

    # -- the message -------------------------------------------------------------------------

    async def mail(self, sender: Address, id: str = "", *, ask: bool = True) -> Verdict | None:
        """Ask about MAIL and begin a message; ``id`` is the queue id where it is known.

        ``ask=False`` takes the facts only: the administrator let this command pass the filter.
        """
        if self.message is not None:
            await self.finish("aborted")
        self._serial += 1
        limits = self._engine.limits
        self.message = message = Message(
            self.session,
            sender,
            id or f"{self.session.id}.{self._serial}",
            memory=limits.memory,
            limit=limits.message,
            guarded=not self.terms.strict,
        )
        self._message_silent = self._silent
        self._data_refused = False
        self._final = next(iter(self._refusals.values()), None)
        if self._final is not None:
            self._log(self._final, _MAIL)
            return self._final[0]
        if not ask or not self.chain.at[_MAIL]:
            return None
        return self._settle(await self._ask(_MAIL, message, message))

    async def rcpt(self, recipient: Address, *, ask: bool = True) -> Verdict | None:
        """Ask about one recipient; the last of ``message.recipients`` is then what to use."""
        message = self.message
        if self._data_refused:
            self._forget_data()
        if message is None:
            return self._standing()
        if self._final is not None:
            if self._standing() is not None:
                return self._standing()
            ask = False  # a message that is held or dropped is decided
        if message.recipient_count >= self._engine.limits.recipients:
            return TOO_MANY_RECIPIENTS if ask else None  # what is not asked about is not kept
        message.enter(_RCPT)
        verdict, accepted = None, None
        if ask and self.chain.at[_RCPT]:
            message.propose(recipient)
            verdict = await self._ask(_RCPT, message, message, recipient)
            accepted = message.propose(None)
        if verdict is None or type(verdict) in (Discard, Quarantine):
            message.accept_recipient(recipient, accepted or recipient)
            return self._settle(verdict)
        return verdict

    async def data(self) -> Verdict | None:
        """Ask about DATA.  A refusal ends the command, and the client may try once more."""
        if self._data_refused:
            self._forget_data()
        before = self._final
        verdict = await self._content_stage(_DATA)
        self._data_refused = before is None and self._standing() is not None
        return verdict

    def _forget_data(self) -> None:
        """Take back a refusal of DATA: another recipient or another DATA is a new question."""
        self._data_refused, self._final = False, None

    async def headers(self, section: Section, separator: bytes = b"\r\n") -> Verdict | None:
        """Ask about the header section; ``separator`` is empty where no blank line ended it."""
        message = self.message
        if message is None:
            return self._standing()
        message.set_headers(section, separator)
        limits = self._engine.limits
        if section.count > limits.fields or section.octets > limits.headers:
            return self.too_much_header()
        return await self._content_stage(_HEADERS)

    async def body(self, piece: bytes) -> Verdict | None:
        """Show a piece of the body: whole CRLF lines, not dot-stuffed."""
        return await self._content_stage(_BODY, piece)

    async def end(self, body: Body | None = None) -> Verdict | None:
        """Ask about the whole message; ``body`` is there where the policies want it.

        What was refused before and could not be answered comes out here.
        """
        message = self.message
        if message is not None and body is not None:
            message.set_body(body)
        verdict = await self._content_stage(_MESSAGE)
        return self._final[0] if self._final is not None else verdict

    async def finish(self, result: Literal["accepted", "refused", "aborted"]) -> None:
        """Say how the message ended; every policy's ``done`` hears it, once."""
        message = self.message
        if message is None:
            return
        self.message = None
        verdict, by = self._final or (None, "")
        if self._data_refused:
            result = "refused"
        if result == "aborted":
            verdict, by = None, ""
        message.outcome = Ending(result, verdict, by)
        if log.isEnabledFor(logging.DEBUG) and result == "accepted":
            log.debug(
                "%s",
                fields(
                    verdict=verb(verdict) if verdict else "accept",
                    **{"from": message.sender, "to": ",".join(message.recipients[:10])},
                    client=self.session.client or "local",
                    id=message.id,
                ),
            )
        if self.chain.at[_DONE]:
            await self._ask(_DONE, message, message)
        self._final = None
        if not self.terms.strict:  # a test looks at the message afterwards
            message.release()
        message.state.clear()

    async def _content_stage(self, stage: Stage, *more: object) -> Verdict | None:
        message = self.message
        if message is None:
            return self._standing()
        message.enter(stage)
        if self._final is not None:
            return self._standing()
        if not self.chain.at[stage]:
            return None
        return self._settle(await self._ask(stage, message, message, *more))

    def _standing(self) -> Verdict | None:
        """Return what a command in a refused message, or in none, is answered with."""
        if self.message is None:
            return FAILURE
        verdict = self._final[0] if self._final is not None else None
        return None if type(verdict) in (Discard, Quarantine) else verdict

    def _settle(self, verdict: Verdict | None) -> Verdict | None:
        if verdict is not None and self._final is None:
            self._final = (verdict, self._by)
        return verdict

    def _refuse(self, verdict: Verdict, by: str) -> Verdict:
        """Refuse the message for the engine's own reason."""
        if self._final is None:
            self._final = (verdict, by)
            self._log(self._final, _MESSAGE)
        return self._final[0]

    def refuse(self, verdict: Verdict, reason: str) -> None:
        """Refuse the message for a reason of the wire; given at the end of data."""
        if self.message is not None:
            self._refuse(verdict, reason)

    def too_much_header(self) -> Verdict:
        """Refuse a message whose header section is over a limit."""
        return self._refuse(TOO_MUCH_HEADER, "limits.headers")

    def hold(self, body: Body, piece: bytes) -> bool:
        """Add a piece to a body that is held for `end`; False where there can be no more of it.

        Then the message is refused, or it is over the size limit and passes on unseen: see
        `verdict`.
        """
        try:
            body.append(piece)
        except OSError as error:
            log.error(
                "message %s cannot be held in %s: %s; limits.memory says what is held there",
                *(self.id, tempfile.tempdir or "$TMPDIR", error.strerror or error),
            )
            self._refuse(NO_SPACE, "limits.memory")
            return False
        if body.held <= self._engine.limits.message:
            return True
        self.too_big()
        return False

    def too_big(self) -> Verdict | None:
        """Refuse a message over the size limit, or return None: it passes on unseen."""
        verdict = TOO_BIG[self._engine.limits.oversize]
        if verdict is None:
            if self._message_silent != _EVERYONE:
                log.warning("message %s is over limits.message: passed on unseen", self.id)
            self._message_silent = _EVERYONE
            return None
        return self._refuse(verdict, "limits.message")

    @property
    def id(self) -> str:
        """What logs call it: the message's id, else the session's."""
        return self.message.id if self.message is not None else self.session.id

    @property
    def verdict(self) -> Verdict | None:
        """What the message is to be answered with, as far as it is decided."""
        return self._final[0] if self._final is not None else None

    @property
    def wants_body(self) -> bool:
        """Tell whether more of the body could change anything about this message."""
        return self._wants(_BODY, _MESSAGE)

    @property
    def wants_content(self) -> bool:
        """Tell whether anybody would look at what is in the message, once it has ended included."""
        return self._wants(_HEADERS, _BODY, _MESSAGE) or (
            self.message is not None and bool(self.chain.at[_DONE])
        )

    def _wants(self, *stages: Stage) -> bool:
        if self.message is None or self._final is not None:
            return False
        readers = (bound for stage in stages for bound in self.chain.at[stage])
        return any(not bound.bit & self._message_silent for bound in readers)

    def remember(self, stage: Stage, verdict: Verdict | None) -> None:
        """Keep a verdict that could not be answered where it was given, for the next stage."""
        if verdict is None:
            return
        self._data_refused = False
        if stage in MESSAGE_STAGES and self.message is not None:
            self._settle(verdict)
        else:
            self._refusals[_HELO if stage is _HELO else _CONNECT] = (
                verdict,
                self._by,
            )

    def refuse_all(self, verdict: Verdict) -> None:
        """Have a verdict that was just given stand for the rest of the connection.

        For a `Disconnect` where the wire has no way to close it.
        """
        given = (verdict, self._by)
        self._data_refused = False
        self._refusals[_CONNECT] = given
        if self.message is not None:
            self._final = given

    def abandon(self) -> None:
        """Cancel the handler that is waiting to answer: its client is gone."""
        if self._question is not None:
            self._question.abandon(ANSWERING_STAGES)

    def abandon_message(self) -> None:
        """Cancel the handler that is waiting to answer about the message: it was given up."""
        if self._question is not None:
            self._question.abandon(MESSAGE_STAGES)

    # -- asking ------------------------------------------------------------------------------

    async def _ask(
        self,
        stage: Stage,
        message: Message | None,
        *arguments: Any,
        only: tuple[Bound, ...] | None = None,
    ) -> Verdict | None:
        """Ask the handlers of a stage in order; the first refusal is the answer."""
        bounds = self.chain.at[stage] if only is None else only
        if not bounds:
            return None
        question = Question(self, stage, message, arguments)
        self._question = question
        silent = self._silent if message is None else self._message_silent
        if stage in SILENT_STAGES:
            silent = 0  # these hear everything, whatever was accepted or refused
        for bound in bounds:
            if bound.bit & silent:
                continue
            verdict = await question.put(bound)
            if verdict is None:
                continue
            if type(verdict) is Accept:
                silent |= bound.bit
                self._message_silent |= bound.bit
                if message is None:
                    self._silent |= bound.bit
                continue
            self._by = bound.label
            self._log((verdict, bound.label), stage, question.began)
            return verdict
        return None

    def _log(self, given: tuple[Verdict, str], stage: Stage, began: float | None = None) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        verdict, by = given
        reply = getattr(verdict, "reply", None)
        message = self.message
        facts: dict[str, object] = {"verdict": verb(verdict)}
        if reply is not None:
            facts["code"] = reply.code
        facts |= {"by": by, "stage": stage}
        if isinstance(verdict, (Discard, Quarantine)):
            facts["reason"] = verdict.reason  # no mail server is sure to log it
        if message is not None:
            facts["from"] = message.sender
            facts["to"] = message.candidate or ",".join(message.recipients[:10])
        facts["client"] = self.session.client or "local"
        facts["id"] = self.id
        if began is not None:
            facts["ms"] = round((time.perf_counter() - began) * 1000, 1)
        log.info("%s", fields(**facts))
