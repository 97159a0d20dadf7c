"""One SMTP session of smtpd: its reports and questions become calls of the engine."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias, final

from mailgate.address import Address
from mailgate.engine import FAILURE, Engine
from mailgate.session import TLS, Attempt
from mailgate.stage import Stage
from mailgate.syntax import format_parameters, path_parameters, text_of
from mailgate.verdict import Defer, Disconnect, Reject, Verdict
from mailgate_opensmtpd.facts import (
    attempt_of,
    command_of,
    event_of,
    login,
    session_of,
    unvis,
)
from mailgate_opensmtpd.stream import LongLines, Stream
from mailgate_opensmtpd.wire import (
    MAX_REPLY,
    DataLines,
    Report,
    Request,
    data_end,
    data_lines,
    proceed,
    refuse,
    rewrite,
)

log = logging.getLogger(__name__)

Incoming: TypeAlias = Report | Request | DataLines

_STAGE_OF_PHASE = {
    "connected": Stage.CONNECT,  # filter-response has its own word for two phases
    "helo": Stage.HELO,
    "ehlo": Stage.HELO,
    "mail-from": Stage.MAIL,
    "rcpt-to": Stage.RCPT,
    "data": Stage.DATA,
}


@final
class SmtpSession:
    """What is known of one session.  `take` is called for its events, one at a time."""

    __slots__ = (
        "_asked",
        "_begun",
        "_conversation",
        "_data_told",
        "_engine",
        "_greeted",
        "_hidden",
        "_interest",
        "_long_lines",
        "_msgid",
        "_params",
        "_proposed",
        "_rewritten",
        "_room",
        "_streams",
        "_waits",
        "_write",
        "backlog",
        "session",
    )

    def __init__(
        self,
        engine: Engine,
        report: Report,
        long_lines: LongLines,
        write: Callable[[bytes], None],
        on_wait: Callable[[], None],
        room: Callable[[], Awaitable[None] | None],
    ) -> None:
        self._engine = engine
        self._long_lines = long_lines
        self._write = write
        self.session = session_of(report)
        # While a handler waits, the session's other events wait here; else there is None.
        self.backlog: deque[Incoming] | None = None
        self._waits = self._waiting(on_wait)
        self._room = room
        self._conversation = engine.converse(self.session, self._waits)
        self._interest = self._conversation.interest
        self._streams: dict[bytes, Stream | None] = {}  # by token; None: not the first filter
        self._params: Mapping[str, str | None] = {}  # of the MAIL or RCPT that is under way
        self._asked = ""  # the phase whose filter-response is still to come
        self._hidden = frozenset[Stage]()  # asked of an earlier filter, and kept from us
        self._greeted = False  # HELO was handled by request, its report is to come
        self._rewritten = b""  # a path, by an earlier filter
        self._proposed: bytes | None = None  # the recipient whose tx-rcpt is to come
        self._begun = False  # a message was begun by its request; its tx-mail is to come
        self._data_told = False
        self._msgid = ""

    def _waiting(self, on_wait: Callable[[], None]) -> Callable[[], None]:
        def waits() -> None:
            if self.backlog is None:
                self.backlog = deque()
            on_wait()

        return waits

    def take(self, event: Incoming) -> Awaitable[None] | None:
        """Take one event; what is returned has to be awaited before the next one is taken.

        None where nobody had to be asked: most reports only tell facts.
        """
        if type(event) is Report:
            return self._report(event)
        if type(event) is Request:
            return self._request(event)
        return self._data_lines(event) if type(event) is DataLines else None

    def abandon(self) -> None:
        """Cancel what waits: the client is gone."""
        self._conversation.abandon()

    def abandon_message(self) -> None:
        """Cancel what waits for the message: the client has given it up."""
        self._conversation.abandon_message()

    @property
    def idle(self) -> bool:
        """Tell whether nothing is under way."""
        return self.backlog is None and self._conversation.message is None

    async def close(self) -> None:
        """Say that the session is over."""
        await self._conversation.close()

    # -- requests ------------------------------------------------------------------------------

    async def _request(self, request: Request) -> None:
        """Answer a request exactly once, whatever happens."""
        answer = b""
        try:
            if request.faulty:
                log.warning("a faulty %s request: %s", request.phase, request.faulty)
                return
            self._asked = request.phase
            handler = _REQUESTS.get(request.phase)
            answer = proceed(request) if handler is None else await handler(self, request)
        finally:  # faulty, abandoned, or a fault of ours
            self._write(answer or failure(request))

    async def _on_connect(self, request: Request) -> bytes:
        verdict = await self._conversation.connect()
        return _answer(request, verdict, disconnect=True)

    async def _on_greeting(self, request: Request) -> bytes:
        name = request.parameter.decode("utf-8", "surrogateescape")
        verdict = await self._conversation.helo(name, request.phase == "ehlo")
        self._greeted = True
        if verdict is None and self.session.helo != name:
            return rewrite(request, self.session.helo.encode("ascii"))
        return _answer(request, verdict)

    async def _on_starttls(self, request: Request) -> bytes:
        return _answer(request, await self._conversation.starttls())

    async def _on_auth(self, request: Request) -> bytes:
        return _answer(request, await self._conversation.auth(attempt_of(request.parameter)))

    async def _on_mail(self, request: Request) -> bytes:
        sender = Address.from_wire(request.parameter, self._params)
        verdict = await self._mail(sender)
        message = self._conversation.message
        self._begun = verdict is None
        if verdict is not None:
            await self._conversation.finish("refused")
        elif message is not None and message.sender is not sender:
            return _rewrite_path(request, message.sender)
        return _answer(request, verdict)

    async def _on_rcpt(self, request: Request) -> bytes:
        recipient = Address.from_wire(request.parameter, self._params)
        verdict = await self._conversation.rcpt(recipient)
        message = self._conversation.message
        if verdict is None:
            self._proposed = request.parameter
            if message is not None and message.recipients[-1] is not recipient:
                return _rewrite_path(request, message.recipients[-1])
        return _answer(request, verdict)

    async def _on_data(self, request: Request) -> bytes:
        return _answer(request, await self._conversation.data())

    async def _on_commit(self, request: Request) -> bytes:
        verdict = self._conversation.verdict
        if not self._streams:  # no policy reads content, or there is no message: nobody was asked
            verdict = await self._conversation.end()
        if verdict is not None:
            await self._conversation.finish("refused")
        return _answer(request, verdict)

    async def _on_command(self, request: Request) -> bytes:
        return _answer(request, await self._conversation.command(request.phase.upper()))

    async def _mail(self, sender: Address, *, ask: bool = True) -> Verdict | None:
        self._streams.clear()
        self._begun = self._data_told = False
        self._proposed = None
        msgid, self._msgid = self._msgid, ""
        return await self._conversation.mail(sender, msgid, ask=ask)

    def _make_room(self) -> Awaitable[None] | None:
        """Return what to await before more is written; the others' events go on meanwhile."""
        waiting = self._room()
        if waiting is not None:
            self._waits()
        return waiting

    async def _data_lines(self, event: DataLines) -> None:
        if self._conversation.message is None:  # never from smtpd; refused at commit
            self._write(echo(event))
            return
        if event.token not in self._streams:
            telling = self._tell_data()
            if telling is not None:
                await telling
            # Only the first filter of a chain that this process serves twice shows a message
            # to the policies; the others pass it on.
            first = not self._streams
            write = self._write
            limits = self._engine.limits
            self._streams[event.token] = (
                Stream(self._conversation, event, limits, self._long_lines, write, self._make_room)
                if first
                else None
            )
        stream = self._streams[event.token]
        if stream is None:
            self._write(echo(event))
        else:
            await stream.receive(event.lines)

    # -- reports -------------------------------------------------------------------------------

    def _report(self, report: Report) -> Awaitable[None] | None:
        if Stage.EVENT in self._interest.asked:
            return self._tell(report)
        handler = _REPORTS.get(report.event)
        return None if handler is None else handler(self, report.parameters)

    async def _tell(self, report: Report) -> None:
        """Show a report to event handlers, then do what is to be done with it."""
        await self._conversation.event(event_of(report))
        handler = _REPORTS.get(report.event)
        if report.direction == "smtp-out" and report.event != "link-disconnect":
            return  # an outgoing session has events, and an end
        if handler is not None:
            work = handler(self, report.parameters)
            if work is not None:
                await work

    async def _remember(self, stage: Stage, question: Awaitable[Verdict | None]) -> None:
        """Put a question that nobody waits for; what is answered is given later."""
        self._conversation.remember(stage, await question)

    def _on_link_connect(self, parameters: Sequence[bytes]) -> Awaitable[None] | None:
        if Stage.CONNECT in self._interest.answers:
            return None
        return self._remember(Stage.CONNECT, self._conversation.connect())

    def _on_link_identify(self, parameters: Sequence[bytes]) -> Awaitable[None] | None:
        method, name = parameters[0], text_of(parameters[1])
        if self._greeted:
            self._greeted = False
            self.session.learn(helo=name)
            return None
        esmtp = method == b"EHLO"
        if self._keeps_from_us(Stage.HELO):
            return self._remember(Stage.HELO, self._conversation.helo(name, esmtp))
        self.session.learn(helo=name, esmtp=esmtp)
        return None

    def _on_link_tls(self, parameters: Sequence[bytes]) -> None:
        version, _, rest = text_of(parameters[0]).partition(":")
        cipher, _, bits = rest.rpartition(":")
        known = int(bits) if bits.isascii() and bits.isdigit() and len(bits) < 6 else None
        self.session.learn(tls=TLS(version, cipher or None, known))

    def _on_link_auth(self, parameters: Sequence[bytes]) -> None:
        result, user = parameters
        if result == b"pass":
            self.session.learn(user=unvis(text_of(user)))

    def _on_link_disconnect(self, parameters: Sequence[bytes]) -> Awaitable[None]:
        return self._conversation.close()

    def _on_tx_begin(self, parameters: Sequence[bytes]) -> None:
        self._msgid = text_of(parameters[0])
        message = self._conversation.message
        if message is not None and self._begun:
            message.id, self._msgid = self._msgid, ""

    def _on_tx_mail(self, parameters: Sequence[bytes]) -> Awaitable[None] | None:
        _, result, address = parameters
        path, ask = self._path(address), self._keeps_from_us(Stage.MAIL)
        if self._begun:
            self._begun = False
            return None if result == b"ok" else self._conversation.finish("refused")
        if result != b"ok":
            return None  # smtpd refused a MAIL out of order, and the message goes on
        sender = Address.from_wire(path, self._params)
        return self._remember(Stage.MAIL, self._mail(sender, ask=ask))

    def _on_tx_rcpt(self, parameters: Sequence[bytes]) -> Awaitable[None] | None:
        _, result, address = parameters
        message = self._conversation.message
        path, kept = self._path(address), self._keeps_from_us(Stage.RCPT)
        if self._proposed == address:
            self._proposed = None
            if result != b"ok" and message is not None:
                message.drop_recipient()
            return None
        if result != b"ok":
            return None
        recipient = Address.from_wire(path, self._params)
        ask = kept and Stage.RCPT in self._interest.asked
        return self._remember(Stage.RCPT, self._conversation.rcpt(recipient, ask=ask))

    def _on_tx_data(self, parameters: Sequence[bytes]) -> Awaitable[None] | None:
        return self._tell_data() if parameters[1] == b"ok" else None

    def _tell_data(self) -> Awaitable[None] | None:
        """Show DATA to those who only look on: at tx-data or the first line, what comes first."""
        observed = Stage.DATA in self._interest.asked - self._interest.answers
        if not observed or self._data_told:
            return None
        self._data_told = True
        return self._remember(Stage.DATA, self._conversation.data())

    def _on_tx_commit(self, parameters: Sequence[bytes]) -> Awaitable[None]:
        return self._conversation.finish("accepted")

    def _on_tx_rollback(self, parameters: Sequence[bytes]) -> Awaitable[None]:
        return self._conversation.finish("aborted")

    def _on_tx_reset(self, parameters: Sequence[bytes]) -> Awaitable[None] | None:
        self._streams.clear()
        self._msgid = ""
        unfinished = self._conversation.message is not None
        return self._conversation.finish("aborted") if unfinished else None

    def _on_protocol_client(self, parameters: Sequence[bytes]) -> Awaitable[None] | None:
        command = parameters[0]
        verb, argument = command_of(command)
        if verb in ("MAIL", "RCPT"):
            self._params = path_parameters(command)
        observed = self._interest.asked - self._interest.answers
        if self._interest.observes_commands or observed & {Stage.STARTTLS, Stage.AUTH}:
            return self._observe(verb, argument)
        return None

    async def _observe(self, verb: str, argument: str) -> None:
        """Show a command to those who only look on."""
        observed = self._interest.asked - self._interest.answers
        if verb == "STARTTLS" and Stage.STARTTLS in observed:
            await self._remember(Stage.STARTTLS, self._conversation.starttls())
        elif verb == "AUTH":
            argument, _ = login(argument)  # the rest may be a credential
            if Stage.AUTH in observed:
                await self._remember(Stage.AUTH, self._conversation.auth(Attempt(argument)))
        if self._interest.observes_commands and verb not in self._interest.verbs:
            await self._conversation.observe(verb, argument)

    def _on_filter_response(self, parameters: Sequence[bytes]) -> Awaitable[None] | None:
        """See whether an earlier filter of the chain decided a phase, so that we were not asked.

        Only `junk` and `rewrite` do that behind the administrator's back; a phase that was
        answered with `proceed` and not asked of us was meant to bypass us.
        """
        phase, decision = text_of(parameters[0]), parameters[1]
        parameter = parameters[2] if len(parameters) > 2 else b""
        stage, asked = _STAGE_OF_PHASE.get(phase), self._asked
        self._asked = ""
        if stage is None:
            return None
        if asked == ("connect" if phase == "connected" else phase):
            if decision == b"rewrite":
                self._adopt(stage, parameter)
            return self._refused(stage) if decision in (b"reject", b"disconnect") else None
        if decision not in (b"junk", b"rewrite"):
            self._hidden -= {stage}
            return None
        self._hidden |= {stage}
        if decision == b"rewrite":
            self._rewritten = parameter
        if stage not in self._interest.answers:
            return None
        if stage is Stage.CONNECT:
            return self._remember(stage, self._conversation.connect())
        return self._remember(stage, self._conversation.data()) if stage is Stage.DATA else None

    def _refused(self, stage: Stage) -> Awaitable[None] | None:
        """Take back what we let pass and a later filter of the chain refused."""
        message = self._conversation.message
        if stage is Stage.HELO:
            self._greeted = False
        elif stage is Stage.MAIL and self._begun:
            self._begun = False
            return self._conversation.finish("refused")
        elif stage is Stage.RCPT and self._proposed is not None and message is not None:
            self._proposed = None
            message.drop_recipient()
        return None

    def _adopt(self, stage: Stage, parameter: bytes) -> None:
        """Take over the path that a later filter of the chain made of ours."""
        message, path = self._conversation.message, re.match(rb"<([^>]*)>", parameter)
        if message is None or path is None:
            return
        if stage is Stage.MAIL:
            message.adopt_sender(Address.from_wire(path[1], message.sender.params))
        elif stage is Stage.RCPT and self._proposed is not None:
            message.adopt_recipient(Address.from_wire(path[1], self._params))

    def _keeps_from_us(self, stage: Stage) -> bool:
        """Tell whether handlers are to be asked on a report, their request never having come."""
        hidden = stage in self._hidden
        self._hidden -= {stage}
        return hidden or stage not in self._interest.answers

    def _path(self, address: bytes) -> bytes:
        """Return an address as an earlier filter rewrote it, if one did."""
        rewritten, self._rewritten = self._rewritten, b""
        found = re.match(rb"<([^>]*)>", rewritten)
        return found[1] if found else address


_REQUESTS: Mapping[str, Callable[[SmtpSession, Request], Awaitable[bytes]]] = {
    "connect": SmtpSession._on_connect,
    "helo": SmtpSession._on_greeting,
    "ehlo": SmtpSession._on_greeting,
    "starttls": SmtpSession._on_starttls,
    "auth": SmtpSession._on_auth,
    "mail-from": SmtpSession._on_mail,
    "rcpt-to": SmtpSession._on_rcpt,
    "data": SmtpSession._on_data,
    "commit": SmtpSession._on_commit,
    "rset": SmtpSession._on_command,
    "quit": SmtpSession._on_command,
    "noop": SmtpSession._on_command,
}

_REPORTS: Mapping[str, Callable[[SmtpSession, Sequence[bytes]], Awaitable[None] | None]] = {
    "link-connect": SmtpSession._on_link_connect,
    "link-identify": SmtpSession._on_link_identify,
    "link-tls": SmtpSession._on_link_tls,
    "link-auth": SmtpSession._on_link_auth,
    "link-disconnect": SmtpSession._on_link_disconnect,
    "tx-begin": SmtpSession._on_tx_begin,
    "tx-mail": SmtpSession._on_tx_mail,
    "tx-rcpt": SmtpSession._on_tx_rcpt,
    "tx-data": SmtpSession._on_tx_data,
    "tx-commit": SmtpSession._on_tx_commit,
    "tx-rollback": SmtpSession._on_tx_rollback,
    "tx-reset": SmtpSession._on_tx_reset,
    "protocol-client": SmtpSession._on_protocol_client,
    "filter-response": SmtpSession._on_filter_response,
}


# -- answers -----------------------------------------------------------------------------------


def failure(request: Request) -> bytes:
    """Return the answer for what cannot be decided; nothing where none is possible."""
    if request.phase == "data-line":
        return b""
    return _answer(request, FAILURE, disconnect=request.phase == "connect")


def echo(event: DataLines) -> bytes:
    """Return message lines as they came: for a message that no policy sees."""
    lines = event.lines
    ended = b"." in lines
    if ended:
        lines = lines[: lines.index(b".")]
    out = b""
    try:
        out = data_lines(event.version, event.session, event.token, lines)
    except ValueError as error:
        log.warning("a message that no policy sees cannot be passed on whole: %s", error)
    return out + (data_end(event.version, event.session, event.token) if ended else b"")


def _answer(request: Request, verdict: Verdict | None, *, disconnect: bool = False) -> bytes:
    """Return the line for a verdict: a reply has one line only here."""
    if not isinstance(verdict, (Reject, Defer, Disconnect)):
        return proceed(request)
    code = b"%d " % verdict.reply.code
    text = code + verdict.reply.in_one_line(MAX_REPLY - len(code))
    return refuse(request, text, disconnect=disconnect or isinstance(verdict, Disconnect))


def _rewrite_path(request: Request, address: Address) -> bytes:
    """Return the rewrite of MAIL or RCPT; smtpd drops the parameters unless they are in it."""
    parameters = format_parameters(address.params)
    return rewrite(request, f"<{address}>{parameters}".encode("utf-8", "surrogateescape"))
