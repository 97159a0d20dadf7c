"""One SMTP session of an MTA: its commands become calls of the engine, verdicts its answers."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Literal, final

from mailgate.address import Address
from mailgate.content import Body
from mailgate.engine import Conversation
from mailgate.headers import Section
from mailgate.limits import Limits
from mailgate.message import Message
from mailgate.session import Event, Session
from mailgate.stage import Stage
from mailgate.syntax import parameters, text_of
from mailgate.verdict import Discard, Disconnect, Quarantine, Refusal, Reject, Verdict, refuses
from mailgate_milter.edits import edits
from mailgate_milter.facts import Macros, session_of, tls_of
from mailgate_milter.fields import section_of
from mailgate_milter.negotiate import Plan
from mailgate_milter.wire import (
    CONTINUE,
    DISCARD,
    SKIP,
    Command,
    WireError,
    check_header,
    parse_connect,
    parse_path,
    parse_string,
    reply_code,
)

log = logging.getLogger(__name__)

UNSENDABLE = Reject("an edit by the mail policy cannot be carried by milter", 554, "5.6.0")

_STAGE_OF: Mapping[Command, Stage] = {
    Command.UNKNOWN: Stage.COMMAND,
    Command.MAIL: Stage.MAIL,
    Command.RCPT: Stage.RCPT,
    Command.DATA: Stage.DATA,
    Command.EOH: Stage.HEADERS,
    Command.BODY: Stage.BODY,
}

_SPELLINGS = 20  # of one recipient; more are no client's

_serial = itertools.count(1)
_process = os.urandom(4).hex()


class _Phase(IntEnum):
    """How far a message is."""

    NONE = 0  # before MAIL, and after ABORT or the answer to EOM
    ENVELOPE = 1  # MAIL, RCPT
    HEADERS = 2  # DATA, HEADER
    BODY = 3  # EOH, BODY


@lru_cache(maxsize=1024)
def _refusal(verdict: Refusal) -> bytes:
    """Return the REPLYCODE packet of a verdict."""
    reply = verdict.reply
    return reply_code(reply.code, reply.enhanced, reply.lines)


@final
class SmtpSession:
    """What is known of one SMTP session.

    `take` returns None where a command only goes on, or what has to be awaited before the next
    one: that calls ``answer`` once, whether the MTA waits for it or not.  WireError for what the
    protocol does not allow.
    """

    __slots__ = (
        "_answer",
        "_body",
        "_conversation",
        "_converse",
        "_data_told",
        "_header_octets",
        "_headers",
        "_id_known",
        "_limits",
        "_line",
        "_paths",
        "_phase",
        "_plan",
        "_section",
        "macros",
    )

    def __init__(
        self,
        limits: Limits,
        plan: Plan,
        converse: Callable[[Session], Conversation],
        answer: Callable[[bytes], None],
    ) -> None:
        """Begin before CONNECT; ``converse`` begins the conversation about a client."""
        self._limits = limits
        self._plan = plan
        self._converse = converse
        self._answer = answer
        self.macros = Macros()
        self._conversation: Conversation | None = None
        self._forget_message()

    def _forget_message(self) -> None:
        self._phase = _Phase.NONE
        self._headers: list[bytes] = []  # packets
        self._section: Section | None = None
        self._header_octets = 0
        self._body: Body | None = None
        self._line = bytearray()  # what the last line of the body has so far
        self._paths: dict[str, list[bytes]] = {}  # as the client gave them, by recipient
        self._data_told = self._id_known = False

    @property
    def idle(self) -> bool:
        """Tell whether no message is under way."""
        return self._conversation is None or self._conversation.message is None

    @property
    def is_postfix(self) -> bool:
        """Tell whether the MTA is Postfix: no other has the macro ``v`` with that name in it."""
        return self.macros.find(b"v").startswith("Postfix")

    def take(self, command: int, data: bytes) -> Awaitable[None] | None:
        """Take a command; HEADER has `take_header`, since it comes so often."""
        return _HANDLERS[command](self, data)

    def abandon(self) -> None:
        """Cancel what waits: the client is gone."""
        if self._conversation is not None:
            self._conversation.abandon()

    def abandon_message(self) -> None:
        """Cancel what waits for the message: the MTA has given it up."""
        if self._conversation is not None:
            self._conversation.abandon_message()

    async def close(self) -> None:
        """Say that the session is over."""
        if self._conversation is not None:
            if self._plan.events:
                await self._tell("disconnect")
            await self._conversation.close()
            self._drop_body()

    # -- the connection --------------------------------------------------------------------------

    @property
    def _known(self) -> Conversation:
        if self._conversation is None:
            raise WireError("a command before CONNECT")
        return self._conversation

    def _on_connect(self, data: bytes) -> Awaitable[None] | None:
        if self._conversation is not None:
            raise WireError("CONNECT twice")
        session = session_of(_next_id(), parse_connect(data), self.macros)
        self._conversation = conversation = self._converse(session)
        return self._connect(conversation) if self._plan.asks_connect else None

    async def _connect(self, conversation: Conversation) -> None:
        session = conversation.session
        if self._plan.events:
            await self._tell("connect", rdns=session.rdns or "", src=str(session.client or ""))
        self._answer_client(await conversation.connect())

    def _on_helo(self, data: bytes) -> Awaitable[None] | None:
        name = text_of(parse_string(data, "HELO"))
        session = self._known.session
        tls = tls_of(self.macros.of(Command.HELO))
        if tls is not None:
            session.learn(tls=tls)
        if self._plan.asks_helo:
            return self._helo(name)
        session.greet(name, None)
        return None

    async def _helo(self, name: str) -> None:
        if self._plan.events:
            await self._tell("helo", identity=name)
        self._answer_client(await self._known.helo(name))

    def _answer_client(self, verdict: Verdict | None) -> None:
        """Answer CONNECT or HELO.

        A refusal is given at MAIL: before it both MTAs put words of their own in place of ours,
        and not the same.  Only 421 ends the session at once, in both.
        """
        if type(verdict) is Disconnect and verdict.code == 421:
            self._answer(_refusal(verdict))
        else:
            self._answer(CONTINUE)

    async def _on_unknown(self, data: bytes) -> None:
        line = text_of(parse_string(data, "UNKNOWN")).strip()
        name, _, argument = line.partition(" ")
        verdict = await self._known.command(name.upper(), argument.strip())
        self._give(Command.UNKNOWN, verdict)

    # -- the envelope ----------------------------------------------------------------------------

    async def _on_mail(self, data: bytes) -> None:
        path, arguments = parse_path(data, "MAIL")
        conversation = self._known
        values = self.macros.of(Command.MAIL)
        if self._phase != _Phase.NONE:
            self._drop_body()
            self._forget_message()
        self._phase = _Phase.ENVELOPE
        self._learn_login(conversation.session, values)
        sender = Address.from_wire(path, parameters(arguments) if arguments else None)
        id = text_of(values.get(b"i", b""))
        self._id_known = bool(id)
        if self._plan.events:
            await self._tell("mail", msgid=id, result="ok", address=sender)
        verdict = await conversation.mail(sender, id)
        if self._give(Command.MAIL, verdict):
            await self._end_message("refused")

    @staticmethod
    def _learn_login(session: Session, values: Mapping[bytes, bytes]) -> None:
        """Take who is logged in, and encryption: not every client greets again after it."""
        user = text_of(values.get(b"{auth_authen}", b"")) or None
        if user != session.user:
            session.learn(user=user)
        if session.tls is None and (tls := tls_of(values)) is not None:
            session.learn(tls=tls)

    async def _on_rcpt(self, data: bytes) -> None:
        path, arguments = parse_path(data, "RCPT")
        if self._phase != _Phase.ENVELOPE:
            raise WireError("RCPT without MAIL")
        conversation = self._known
        recipient = Address.from_wire(path, parameters(arguments) if arguments else None)
        if self._plan.events:
            told = self.macros.of(Command.RCPT)
            if told.get(b"{rcpt_mailer}") == b"error":
                await self._tell_refused(recipient, told)
                self._answer(CONTINUE)
                return
            msgid = self.macros.find(b"i")
            await self._tell("rcpt", msgid=msgid, result="ok", address=recipient)
        verdict = await conversation.rcpt(recipient)
        if not refuses(verdict) and len(self._paths) <= self._limits.recipients:
            spelled = self._paths.setdefault(recipient, [])
            if path not in spelled and len(spelled) < _SPELLINGS:
                spelled.append(path)
        self.macros.forget(Command.RCPT)
        self._give(Command.RCPT, verdict)

    async def _tell_refused(self, recipient: Address, told: Mapping[bytes, bytes]) -> None:
        """Show a recipient that the MTA itself has refused; it tells why in macros."""
        status = text_of(told.get(b"{rcpt_host}", b""))
        result = "tempfail" if status.startswith("4") else "permfail"
        text = text_of(told.get(b"{rcpt_addr}", b""))
        msgid = self.macros.find(b"i")
        self.macros.forget(Command.RCPT)
        await self._tell(
            "rcpt", msgid=msgid, result=result, address=recipient, status=status, text=text
        )

    async def _on_data(self, data: bytes) -> None:
        if self._phase != _Phase.ENVELOPE:
            raise WireError("DATA without MAIL")
        self._learn_id()
        self._data_told = True
        conversation = self._known
        if self._plan.events:
            await self._tell("data")
        verdict = await conversation.data()
        if not self._give(Command.DATA, verdict):  # else the client may try once more
            self._phase = _Phase.HEADERS

    async def _tell_data(self) -> None:
        """Ask about DATA at the end of the header section: the MTA did not show the command."""
        if self._plan.data and not self._data_told:
            self._data_told = True
            conversation = self._known
            conversation.remember(Stage.DATA, await conversation.data())

    def _learn_id(self) -> None:
        """Take the queue id; Postfix has none before the first recipient."""
        message = self._known.message
        if not self._id_known and message is not None:
            id = self.macros.find(b"i")
            if id:
                self._id_known, message.id = True, id

    # -- the content -----------------------------------------------------------------------------

    def take_header(self, data: bytes) -> None:
        """Take a HEADER packet."""
        if not _Phase.ENVELOPE <= self._phase <= _Phase.HEADERS:
            raise WireError("HEADER without MAIL, or behind the header section")
        self._phase = _Phase.HEADERS
        check_header(data)
        self._header_octets += len(data) + 1  # NUL and NUL stand for the colon and CRLF
        limits = self._limits
        if self._header_octets <= limits.headers and len(self._headers) <= limits.fields:
            self._headers.append(data)

    async def _on_eoh(self, data: bytes) -> None:
        if not _Phase.ENVELOPE <= self._phase <= _Phase.HEADERS:
            raise WireError("EOH without MAIL, or twice")
        verdict = await self._end_header() if self._plan.headers else None
        self._phase = _Phase.BODY
        if self._give(Command.EOH, verdict):
            await self._end_message("refused")

    async def _end_header(self) -> Verdict | None:
        """Ask about the header section."""
        self._learn_id()
        await self._tell_data()
        conversation = self._known
        if self._header_octets > self._limits.headers:
            return conversation.too_much_header()
        self._section = section_of(
            self._headers, self._header_octets, leading_space=self._plan.leading_space
        )
        verdict = await conversation.headers(self._section)
        if self._plan.keeps and not refuses(verdict) and conversation.wants_body:
            self._body = Body(self._limits.memory)
        return verdict

    def _on_body(self, data: bytes) -> Awaitable[None] | None:
        if self._phase != _Phase.BODY:
            if self._phase == _Phase.NONE or Command.EOH not in self._plan.left_out:
                raise WireError("BODY before the end of the header section")
            self._phase = _Phase.BODY
        held = self._hold(data)
        return None if held and not self._plan.shows else self._show_body(data)

    async def _show_body(self, data: bytes) -> None:
        conversation = self._known
        verdict = conversation.verdict
        if not refuses(verdict):
            verdict = await self._show(data) if self._plan.shows else None
        answered = Command.BODY in self._plan.answered
        if answered and self._plan.skips and verdict is None and not conversation.wants_body:
            self._answer(SKIP)
        elif self._give(Command.BODY, verdict):
            await self._end_message("refused")

    async def _show(self, data: bytes, *, last: bool = False) -> Verdict | None:
        """Show the policies what has come of the body, as whole lines."""
        line = self._line
        searched = max(len(line) - 1, 0)
        line += data
        end = len(line) if last else line.rfind(b"\r\n", searched) + 2
        if end < 2 and len(line) <= self._limits.memory:
            return None
        piece = bytes(line[: end if end >= 2 else len(line)])
        del line[: len(piece)]
        conversation = self._known
        return await conversation.body(piece) if piece and conversation.wants_body else None

    def _hold(self, data: bytes) -> bool:
        """Hold a piece of the body; False where that was one too many."""
        body = self._body
        if body is None or self._known.hold(body, data):
            return True
        self._drop_body()
        return False

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    # -- its end ---------------------------------------------------------------------------------

    async def _on_eom(self, data: bytes) -> None:
        conversation = self._known
        if self._phase == _Phase.NONE and Command.MAIL not in self._plan.left_out:
            raise WireError("the end of a message without MAIL")
        message = conversation.message
        if message is None:  # nobody wants to hear of messages
            self._answer(CONTINUE)
            return
        if self._phase != _Phase.BODY and self._plan.headers:
            await self._end_header()
        if data:
            self._hold(data)
        if self._plan.shows and (data or self._line):
            await self._show(data, last=True)
        self._learn_id()
        await self._tell_data()
        verdict = await conversation.end(self._body)
        accepted = self._finish(conversation, message, verdict)
        await self._end_message("accepted" if accepted else "refused")

    def _finish(
        self, conversation: Conversation, message: Message, verdict: Verdict | None
    ) -> bool:
        """Give the edits and the last answer; tell whether the message was taken."""
        if type(verdict) is Discard:
            self._answer(DISCARD)
            return True
        if not refuses(verdict):
            try:
                packets = self._edits(message, verdict)
            except ValueError as error:
                log.error("message %s is refused, an edit cannot be sent: %s", message.id, error)
                conversation.refuse(UNSENDABLE, "milter")
                verdict = UNSENDABLE
            else:
                self._answer(b"".join((*packets, CONTINUE)))
                return True
        self._answer(_refusal(verdict))
        self._remember_disconnect(verdict)
        return False

    def _edits(self, message: Message, verdict: Verdict | None) -> list[bytes]:
        return edits(
            message,
            self._section,
            self._paths,
            hold=verdict.reason if type(verdict) is Quarantine else None,
            leading_space=self._plan.leading_space,
            with_arguments=self._plan.with_arguments,
        )

    def _give(self, command: Command, verdict: Verdict | None) -> bool:
        """Give a verdict, and tell whether the command was refused.

        What nobody waits for is refused later: at the next command that is answered.
        """
        if not refuses(verdict):
            self._answer(CONTINUE)
            return False
        if command not in self._plan.answered:
            self._known.remember(_STAGE_OF[command], verdict)
            return False
        self._answer(_refusal(verdict))
        self._remember_disconnect(verdict)
        return True

    def _remember_disconnect(self, verdict: Verdict | None) -> None:
        """Have later commands get the same: an MTA closes the session for 421 only."""
        if type(verdict) is Disconnect:
            self._known.refuse_all(verdict)

    async def _end_message(self, result: Literal["accepted", "refused", "aborted"]) -> None:
        body = self._body
        self.macros.end_message()
        self._forget_message()
        await self._known.finish(result)
        if body is not None:
            body.close()  # not before: `done` handlers may look into it

    def _on_abort(self, data: bytes) -> Awaitable[None] | None:
        return None if self._phase == _Phase.NONE else self._abort()

    async def _abort(self) -> None:
        if self._plan.events:
            await self._tell("reset")
        await self._end_message("aborted")

    # -- events ----------------------------------------------------------------------------------

    async def _tell(self, name: str, **fields: str) -> None:
        """Show what happens to those who look on."""
        await self._known.event(Event(name, fields))


def _next_id() -> str:
    return f"{_process}{next(_serial):08x}"


_HANDLERS: Mapping[int, Callable[[SmtpSession, bytes], Awaitable[None] | None]] = {
    Command.CONNECT: SmtpSession._on_connect,
    Command.HELO: SmtpSession._on_helo,
    Command.MAIL: SmtpSession._on_mail,
    Command.RCPT: SmtpSession._on_rcpt,
    Command.DATA: SmtpSession._on_data,
    Command.EOH: SmtpSession._on_eoh,
    Command.BODY: SmtpSession._on_body,
    Command.EOM: SmtpSession._on_eom,
    Command.ABORT: SmtpSession._on_abort,
    Command.UNKNOWN: SmtpSession._on_unknown,
}
