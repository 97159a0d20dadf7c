"""One SMTP or LMTP session of a client: its commands become questions, verdicts its replies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol, final

from mailgate.engine import Conversation
from mailgate.syntax import text_of
from mailgate.verdict import Disconnect, Verdict, refuses
from mailgate_smtp import replies
from mailgate_smtp.auth import Login
from mailgate_smtp.client import Client, Seen
from mailgate_smtp.content import Intake, Unwanted
from mailgate_smtp.extensions import greeting, size_limit
from mailgate_smtp.hop import NOTHING, Features, HopError
from mailgate_smtp.house import House
from mailgate_smtp.identity import (
    XCLIENT_ATTRIBUTES,
    XFORWARD_ATTRIBUTES,
    Identity,
    parse_attributes,
)
from mailgate_smtp.relay import Relay
from mailgate_smtp.transaction import Transaction
from mailgate_smtp.wire import CommandError, Reply, parse_bdat, parse_command, reply

JUNK = 100
"""Commands between two messages that bring no message on."""

SMALL_CHUNK = 1024
"""Octets; smaller BDAT chunks than this are junk, but for the last."""

_MAX_NAME = 255  # octets of a HELO argument; RFC 5321 4.5.3.1.2


class Line(Seen, Protocol):
    """The client's end of a session: what its connection does for it."""

    def answer(self, answer: Reply) -> None:
        """Send a reply, in one piece with those before it."""

    def hang_up(self, *, linger: bool = True) -> None:
        """Take no further command: the connection ends behind the last reply.

        ``linger`` where the client may still be sending: it has to read that reply first.
        """

    def expect(self, content: Intake) -> None:
        """Take what comes as content, until it has ended."""

    async def challenge(self, text: bytes) -> bytes:
        """Send 334 with a text, and return the client's next line."""

    async def start_tls(self) -> None:
        """Answer STARTTLS, and go on encrypted."""


@final
class SmtpSession:
    """What is known of one session.  `take` is called for its commands, one at a time."""

    def __init__(
        self, house: House, line: Line, identity: Identity, *, lmtp: bool, trusted: bool
    ) -> None:
        """Begin before the greeting.

        ``trusted`` is a peer that may say who its client is: nobody is asked about the client
        before the first message, when it has.
        """
        self._house = house
        self._options = house.options
        self._line = line
        self._lmtp = lmtp
        self._client = Client(house.engine, line, identity, lmtp=lmtp, trusted=trusted)
        self._relay = Relay(house.route, self._client)
        self._transaction: Transaction | None = None
        self._login = Login(house, line, self._relay)
        self._esmtp: bool | None = None  # None before a greeting
        self._offered = NOTHING  # to its greeting
        self._refused: Reply | None = None  # the connection
        self._chunk, self._last, self._by_chunk = 0, False, False
        self._chunk_refusal: Reply | None = None  # chunks behind it are refused, too
        self._most_errors = self._options.limits.errors
        self.errors = 0
        self.junk = 0

    @property
    def idle(self) -> bool:
        """Tell whether no message is under way."""
        return self._transaction is None

    @property
    def too_many_errors(self) -> bool:
        """Tell whether the client makes too many, or says too much that means nothing."""
        return self.errors > self._most_errors or self.junk > JUNK

    # -- the connection --------------------------------------------------------------------------

    async def begin(self) -> None:
        """Greet the client."""
        banner = Reply(220, (self._options.greeting.encode("ascii"),))
        if self._options.connects_at_once:
            try:
                await self._relay.open()
            except HopError as error:
                said = error.said
                known = said is not None and said.code in (421, 554)  # RFC 5321 4.3.2
                self._line.answer(said if said is not None and known else replies.NO_UPSTREAM)
                self._line.hang_up()
                return
        verdict = None if self._client.trusted else await self._client.meet()
        if refuses(verdict):
            self._refused = replies.refusal(verdict)
            self._refuse(verdict)
        else:
            self._line.answer(banner)

    async def close(self, given_up: str = "") -> None:
        """Say that the session is over; ``given_up`` is why we have ended it.

        It may be called again where it was cancelled.
        """
        try:
            await self._end_transaction()
        finally:
            self._relay.close()
        await self._client.close(given_up)

    def abandon(self) -> None:
        """Cancel what waits: the client is gone.  A message that was sent is sent for good."""
        if self._client.conversation is not None:
            self._client.conversation.abandon()
        self._relay.abandon()

    # -- commands --------------------------------------------------------------------------------

    async def take(self, line: bytes) -> None:
        """Answer a command."""
        verb, argument = parse_command(line)
        handler = _COMMANDS.get(verb)
        if self._refused is not None and verb != b"QUIT":
            self._error(self._refused)
            return
        conversation = self._client.conversation
        if conversation is not None:
            interest = conversation.interest
            is_asked = interest.verbs or interest.observes_commands
            if is_asked and await self._ask(conversation, verb, argument):
                return
        if handler is None:
            self._error(replies.UNKNOWN)
            return
        try:
            await handler(self, argument)
        except CommandError as error:
            self._error(error.reply)

    async def _ask(self, conversation: Conversation, verb: bytes, argument: bytes) -> bool:
        """Ask about a command or show it, and tell whether it was answered by that."""
        name, shown = text_of(verb), text_of(argument)
        if verb.startswith(b"AUTH"):  # whatever stands behind it may be a password
            name, shown = "AUTH", text_of(argument.partition(b" ")[0]) if verb == b"AUTH" else ""
        if verb in _COMMANDS and verb not in _ANSWERED:
            await conversation.observe(name, shown)
            return False
        verdict = await conversation.command(name, shown)
        if not refuses(verdict):
            return False
        self._refuse(verdict)
        return True

    def _refuse(self, verdict: Verdict) -> None:
        if refuses(verdict):
            self._line.answer(replies.refusal(verdict))
            if type(verdict) is Disconnect:
                self._line.hang_up()

    def _error(self, answer: Reply) -> None:
        """Refuse a command that the client should not have sent."""
        self.errors += 1
        self._line.answer(answer)

    async def _on_helo(self, argument: bytes) -> None:
        await self._greet(argument, b"HELO")

    async def _on_ehlo(self, argument: bytes) -> None:
        await self._greet(argument, b"EHLO")

    async def _on_lhlo(self, argument: bytes) -> None:
        await self._greet(argument, b"LHLO")

    async def _greet(self, argument: bytes, verb: bytes) -> None:
        if (verb == b"LHLO") is not self._lmtp:
            self._error(replies.UNKNOWN)
            return
        name = argument.partition(b" ")[0]
        if not name or len(name) > _MAX_NAME or not text_of(argument).isprintable():
            self._error(replies.BAD_NAME)
            return
        await self._end_transaction()
        esmtp = verb != b"HELO"
        self._client.greets(text_of(name), esmtp=esmtp)
        if not self._client.trusted:
            verdict = await self._client.hello(text_of(name), esmtp=esmtp)
            if refuses(verdict):
                self._esmtp = None
                self._refuse(verdict)
                return
        self._esmtp = esmtp
        self._offered = NOTHING
        self.junk += 1
        if not esmtp:
            self._line.answer(Reply(250, (self._options.name.encode("ascii", "replace"),)))
            return
        await self._house.route.learn(self._relay)
        answer = await self._offer()
        self._offered = Features.of(answer)
        self._line.answer(answer)

    async def _offer(self) -> Reply:
        features = self._house.route.known
        more: dict[bytes, bytes] = {b"CHUNKING": b""}
        if self._line.tls is None and self._house.tls is not None:
            more[b"STARTTLS"] = b""
        if self._login.allowed:
            with suppress(CommandError):
                more[b"AUTH"] = await self._login.mechanisms()
            if not more.get(b"AUTH"):
                more.pop(b"AUTH", None)
        if self._carries_requiretls:
            more[b"REQUIRETLS"] = b""
        if self._client.trusted:
            if "xclient" in self._options.accept:
                more[b"XCLIENT"] = b" ".join(sorted(XCLIENT_ATTRIBUTES))
            if "xforward" in self._options.accept:
                more[b"XFORWARD"] = b" ".join(sorted(XFORWARD_ATTRIBUTES))
        size = size_limit(self._house.size_limit, features.size)
        return greeting(self._options.name, features, size=size, more=more)

    @property
    def _carries_requiretls(self) -> bool:
        """Tell whether the next hop is reached by a certificate that was verified (RFC 8689)."""
        options = self._options
        return (
            self._line.tls is not None
            and b"REQUIRETLS" in self._house.route.known
            and all(
                target.implicit_tls or options.upstream_tls.mode == "require"
                for target in options.targets
            )
        )

    async def _on_starttls(self, argument: bytes) -> None:
        if self._house.tls is None or self._line.tls is not None:
            self._error(replies.NOT_IMPLEMENTED)
        elif argument:
            self._error(replies.NO_ARGUMENT)
        elif self._transaction is not None:
            self._error(replies.IN_TRANSACTION)
        else:
            conversation = self._client.conversation
            verdict = await conversation.starttls() if conversation is not None else None
            if refuses(verdict):
                self._refuse(verdict)
                return
            await self._line.start_tls()
            self._forget_login()
            self._esmtp = None
            self._client.starts_tls()

    async def _on_auth(self, argument: bytes) -> None:
        if self._esmtp is None:
            self._error(replies.NO_HELLO)
        elif self._transaction is not None:
            self._error(replies.IN_TRANSACTION)
        elif self._client.user is not None:
            self._error(replies.LOGGED_IN)
        else:
            outcome = await self._login.attempt(await self._client.known(), argument)
            if outcome.user is not None:
                self._client.logs_in(outcome.user)
            elif outcome.reply.code // 100 == 5:
                self.errors += 1
            self._line.answer(outcome.reply)
            if outcome.closes:
                self._line.hang_up()

    def _forget_login(self) -> None:
        """Have no later message go over a connection that somebody logged in on."""
        self._relay.pin(False)
        self._relay.abort()

    # -- a message -------------------------------------------------------------------------------

    async def _on_mail(self, argument: bytes) -> None:
        if self._esmtp is None:
            self._error(replies.NO_HELLO)
        elif self._transaction is not None:
            self._error(replies.NESTED)
        elif self._house.draining:
            self._line.answer(replies.STOPPING)
            self._line.hang_up()
        elif self._options.tls.mode == "require" and self._line.tls is None:
            self._error(replies.NEED_TLS)
        elif self._options.auth_required and self._client.user is None:
            self._error(replies.NEED_AUTH)
        else:
            self._chunk_refusal = None
            conversation = await self._client.known()
            if self._client.watched:
                await self._client.tell("mail", address=text_of(argument))
            transaction = Transaction(
                self._house,
                conversation,
                self._relay,
                lmtp=self._lmtp,
                offered=self._offered,
                user=self._client.user,
            )
            self._transaction = transaction
            answer = await transaction.mail(argument)
            if not transaction.begun:
                self._transaction = None
            self._give(transaction, answer)

    async def _on_rcpt(self, argument: bytes) -> None:
        transaction = self._transaction
        if transaction is None or self._in_chunks:
            self._error(replies.NEED_MAIL)
            return
        self._give(transaction, await transaction.rcpt(argument))

    def _give(self, transaction: Transaction, answer: Reply) -> None:
        if answer.code in (500, 501, 503, 555):
            self.errors += 1
        self._line.answer(answer)
        if transaction.closes:
            self._line.hang_up()

    @property
    def _in_chunks(self) -> bool:
        """Tell whether a message is being sent by BDAT, or was refused there."""
        content = self._transaction.content if self._transaction is not None else None
        return content is not None or self._chunk_refusal is not None

    async def _on_data(self, argument: bytes) -> None:
        transaction = self._transaction
        if transaction is None or self._in_chunks:
            self._error(replies.NEED_MAIL)
        elif argument:
            self._error(replies.NO_ARGUMENT)
        else:
            answer = await transaction.data()
            self._give(transaction, answer)
            if transaction.content is not None:
                self._line.expect(transaction.content)

    async def _end_of_message(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            return
        self.junk = self.errors = 0
        answers = await transaction.end()
        for answer in answers:
            self._line.answer(answer)
        if transaction.closes:
            self._line.hang_up()
        self._client.ends_message()
        if self._client.watched:
            for answer in answers:
                if answer.positive:
                    await self._client.tell("queued", text=str(answer))

    def fail(self, error: HopError) -> None:
        """Hear that the next hop failed while content came."""
        if self._transaction is not None:
            self._transaction.fail(error)

    async def _on_bdat(self, argument: bytes) -> None:
        transaction = self._transaction
        try:
            self._chunk, self._last = parse_bdat(argument)
        except CommandError:
            self._chunk_refusal = replies.NO_CHUNK
            raise
        self._by_chunk = True
        self.junk += self._chunk < SMALL_CHUNK and not self._last
        if transaction is not None and transaction.content is None and not self._chunk_refusal:
            answer = await transaction.data(chunks=True)
            if transaction.content is None:
                self._chunk_refusal = answer
        content = transaction.content if transaction is not None else None
        if content is None or self._chunk_refusal is not None:
            self._line.expect(Unwanted(self._chunk))
        else:
            content.begin_chunk(self._chunk)
            self._line.expect(content)

    def end_of_content(self) -> Awaitable[None]:
        """Answer the end of data, or of a chunk."""
        by_chunk, self._by_chunk = self._by_chunk, False
        return self._end_of_chunk() if by_chunk else self._end_of_message()

    async def _end_of_chunk(self) -> None:
        transaction = self._transaction
        if transaction is None:
            self._error(replies.NEED_MAIL)
        elif self._chunk_refusal is not None:
            answer, self._chunk_refusal = self._chunk_refusal, replies.NO_CHUNK
            for _ in range(transaction.replies if self._last else 1):
                self._give(transaction, answer)
            if self._last:  # whatever it was answered with, it was the end
                await self._end_transaction()
        elif self._last:
            await self._end_of_message()
        else:
            self._line.answer(reply(250, "2.0.0", f"{self._chunk} octets received"))

    async def _on_rset(self, argument: bytes) -> None:
        self.junk += 1
        await self._end_transaction()
        self._line.answer(replies.OK)

    async def _end_transaction(self) -> None:
        transaction, self._transaction = self._transaction, None
        self._chunk_refusal = None
        if transaction is not None:
            await self._client.tell("reset")
            await transaction.abort()
        self._client.ends_message()

    # -- whose client it is ----------------------------------------------------------------------

    async def _on_xclient(self, argument: bytes) -> None:
        if not self._may("xclient"):
            return
        self._client.becomes(parse_attributes(argument, XCLIENT_ATTRIBUTES))
        self._forget_login()
        self._esmtp = None
        self._line.answer(Reply(220, (self._options.greeting.encode("ascii"),)))

    async def _on_xforward(self, argument: bytes) -> None:
        if not self._may("xforward"):
            return
        self._client.forwards(parse_attributes(argument, XFORWARD_ATTRIBUTES))
        self._line.answer(replies.OK)

    def _may(self, command: str) -> bool:
        if not self._client.trusted or command not in self._options.accept:
            self._error(replies.NOT_PERMITTED)
        elif self._transaction is not None:
            self._error(replies.IN_TRANSACTION)
        else:
            return True
        return False

    # -- the others ------------------------------------------------------------------------------

    async def _on_noop(self, argument: bytes) -> None:
        self.junk += 1
        self._line.answer(replies.OK)

    async def _on_quit(self, argument: bytes) -> None:
        self._line.answer(replies.BYE)
        self._line.hang_up(linger=False)

    async def _on_vrfy(self, argument: bytes) -> None:
        self.junk += 1
        self._line.answer(replies.CANNOT_VRFY)

    async def _on_other(self, argument: bytes) -> None:
        self._error(replies.NOT_IMPLEMENTED)


_COMMANDS: Mapping[bytes, Callable[[SmtpSession, bytes], Awaitable[None]]] = {
    b"HELO": SmtpSession._on_helo,
    b"EHLO": SmtpSession._on_ehlo,
    b"LHLO": SmtpSession._on_lhlo,
    b"STARTTLS": SmtpSession._on_starttls,
    b"AUTH": SmtpSession._on_auth,
    b"MAIL": SmtpSession._on_mail,
    b"RCPT": SmtpSession._on_rcpt,
    b"DATA": SmtpSession._on_data,
    b"BDAT": SmtpSession._on_bdat,
    b"RSET": SmtpSession._on_rset,
    b"NOOP": SmtpSession._on_noop,
    b"QUIT": SmtpSession._on_quit,
    b"VRFY": SmtpSession._on_vrfy,
    b"EXPN": SmtpSession._on_other,
    b"HELP": SmtpSession._on_other,
    b"ETRN": SmtpSession._on_other,
    b"XCLIENT": SmtpSession._on_xclient,
    b"XFORWARD": SmtpSession._on_xforward,
}

_ANSWERED = frozenset({b"NOOP", b"RSET", b"QUIT", b"VRFY", b"EXPN", b"HELP", b"ETRN"})
"""Commands that a policy may answer, besides those that the proxy does not know."""
