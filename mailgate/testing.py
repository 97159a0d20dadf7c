"""Test a policy without a mail server: `send` a message through it, or play the server's part.

    from mailgate.testing import send
    from gate import gate

    def test_unknown_domain_is_refused():
        outcome = send(gate({"example.org"}), to="x@elsewhere.test")
        assert outcome.reply == "550 5.1.2 no such domain here"

What a policy does wrongly (`mailgate.errors.Misuse`) is raised here; in service it follows the
handler's ``on_error``, as every other exception does in both.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from email.message import EmailMessage
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self

from mailgate import adapter as adapters
from mailgate.address import UNTOLD, Address
from mailgate.chain import (
    KNOWN_VERBS,
    Capabilities,
    Defaults,
    Loaded,
    answerable,
    shows_all,
    unmet,
)
from mailgate.content import PIECE, Body
from mailgate.engine import Engine
from mailgate.errors import Unsupported
from mailgate.headers import Section, continues_section, parse_fields
from mailgate.limits import Limits
from mailgate.lint import blind
from mailgate.message import Message
from mailgate.outcome import Outcome
from mailgate.policy import Policy
from mailgate.question import Step
from mailgate.session import TLS, Attempt, Event, Session
from mailgate.stage import Stage
from mailgate.syntax import normal_line_ends
from mailgate.verdict import Discard, Disconnect, Quarantine, Reply, Verdict

__all__ = ["MESSAGE", "Mta", "Outcome", "converse", "send"]

MESSAGE = (
    b"From: Sender <sender@client.example>\r\n"
    b"To: Recipient <rcpt@example.org>\r\n"
    b"Subject: a test\r\n"
    b"Date: Sat, 21 Nov 2026 10:00:00 +0000\r\n"
    b"Message-ID: <test@client.example>\r\n"
    b"\r\n"
    b"Hello.\r\n"
)
"""What is sent where a test names no message."""

OK = Reply(250, "2.0.0", ("Ok",))
UNRECOGNIZED = Reply(500, "5.5.1", ("command unrecognized",))
GREETING = Reply(220, "", ("ready",))
CLOSED = Reply(421, "4.7.0", ("the connection is closed",))


def send(
    policy: Policy | Sequence[Policy],
    raw: bytes | EmailMessage = MESSAGE,
    *,
    sender: str = "sender@client.example",
    to: str | Iterable[str] = "rcpt@example.org",
    client: str | None = "192.0.2.1",
    rdns: str | None = None,
    helo: str = "client.example",
    tls: bool = False,
    user: str | None = None,
    params: Mapping[str, str | None] | None = None,
    adapter: str | None = None,
) -> Outcome:
    """Send a message through a policy, or several in order, and return what became of it.

    ``adapter`` asks and grants only what that protocol can do; None does everything.
    ``client`` None is a local socket.  Line ends of ``raw`` become CRLF.
    """
    recipients = [to] if isinstance(to, str) else list(to)
    mta = Mta(policy, client=client, rdns=rdns, helo=helo, tls=tls, user=user, adapter=adapter)
    return converse(mta, raw, sender, recipients, params)


def converse(
    mta: Mta,
    raw: bytes | EmailMessage,
    sender: str,
    recipients: Iterable[str],
    params: Mapping[str, str | None] | None = None,
) -> Outcome:
    """Send one message through a server that has not begun yet, and return what became of it."""
    with mta:
        reply = mta.mail(sender, params)
        if reply.code < 300:
            for recipient in recipients:
                mta.rcpt(recipient)
            if any(reply.code < 300 for reply in mta.replies.values()):
                mta.data(raw)
        return mta.outcome


class Mta:
    """A mail server that asks a policy, step by step; each step returns the `Reply`.

    >>> with Mta(policy) as mta:
    ...     mta.mail("a@b.example")
    ...     assert mta.rcpt("c@d.example").code == 250
    """

    def __init__(
        self,
        policy: Policy | Sequence[Policy] | Sequence[Loaded],
        *,
        client: str | None = "192.0.2.1",
        rdns: str | None = None,
        helo: str = "client.example",
        tls: bool = False,
        user: str | None = None,
        adapter: str | None = None,
        defaults: Defaults | None = None,
        limits: Limits | None = None,
        strict: bool = True,
    ) -> None:
        loaded = _loaded(policy)
        limits = limits or Limits()
        self._capabilities = capabilities = _capabilities(loaded, adapter)
        self.steps: list[Step] = []
        self.replies: dict[Address, Reply] = {}
        self.message: Message | None = None
        self._raw = b""
        self._received = 0
        self._refused: tuple[Reply, Verdict, Step | None] | None = None
        self._last = GREETING
        self._helo = helo
        self._greeted = False
        self._closed = False
        self._engine = Engine(
            loaded,
            capabilities,
            defaults=defaults,
            limits=replace(limits, memory=sys.maxsize),  # a test looks at it afterwards
            strict=strict,
            trace=self.steps.append,
        )
        self._runner = asyncio.Runner()
        self._resources = AsyncExitStack()
        self._policies = loaded
        self.session = Session(
            id="test",
            adapter=adapter or "test",
            client=ip_address(client) if client is not None else None,
            client_port=40000 if client is not None else 0,
            local_socket=client is None,
            rdns=rdns,
            rdns_verified=None if rdns is None else True,
            tls=TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256) if tls else None,
            user=user,
        )
        self._conversation = self._engine.converse(self.session)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        self._runner.run(self._enter())
        self._last = self._reply(
            Stage.CONNECT, self._runner.run(self._conversation.connect()), GREETING
        )
        if self._refused is not None:
            self._closed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._runner.run(self._leave())
        finally:
            self._runner.__exit__(kind, error, trace)
            self._engine.threads.stop()

    async def _enter(self) -> None:
        for loaded in self._policies:
            for resource in loaded.policy.resources:
                await self._resources.enter_async_context(resource)

    async def _leave(self) -> None:
        await self._conversation.close()
        await self._resources.aclose()

    # -- the conversation ----------------------------------------------------------------------

    def helo(self, name: str | None = None, *, esmtp: bool = True) -> Reply:
        """Send EHLO, or HELO; `mail` does it where a test does not."""
        self._greeted = True
        return self._ask(
            Stage.HELO, self._conversation.helo(self._helo if name is None else name, esmtp)
        )

    def starttls(self) -> Reply:
        """Send STARTTLS; the session is encrypted afterwards unless that was refused."""
        reply = self._ask(Stage.STARTTLS, self._conversation.starttls())
        if reply.code < 300:
            self._learn(tls=TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256))
        return reply

    def auth(self, user: str, password: str = "", method: str = "PLAIN") -> Reply:
        """Log in; the server itself takes every password."""
        attempt = Attempt(method, user, password)
        reply = self._ask(Stage.AUTH, self._conversation.auth(attempt))
        if reply.code < 300:
            self._learn(user=user)
        return reply

    def command(self, name: str, argument: str = "") -> Reply:
        """Send any other command; the server itself takes the verbs that it knows."""
        verb = name.upper()
        good = OK if verb in KNOWN_VERBS else UNRECOGNIZED
        return self._ask(Stage.COMMAND, self._command(verb, argument), good)

    def event(self, name: str, **fields: str) -> None:
        """Tell the policy an event."""
        self._runner.run(self._conversation.event(Event(name, fields)))

    def mail(self, sender: str, params: Mapping[str, str | None] | None = None) -> Reply:
        """Send MAIL; a message under way is aborted."""
        if not self._greeted and not self._closed:
            self.helo()
        self._refused = None if not self._closed else self._refused
        self.replies.clear()
        self._raw = b""
        reply = self._ask(Stage.MAIL, self._conversation.mail(self._address(sender, params)))
        self.message = self._conversation.message
        return reply

    def rcpt(self, recipient: str, params: Mapping[str, str | None] | None = None) -> Reply:
        """Send RCPT."""
        address = self._address(recipient, params)
        reply = self._ask(Stage.RCPT, self._conversation.rcpt(address))
        self.replies[address] = reply
        if any(reply.code < 300 for reply in self.replies.values()) and not self._closed:
            self._refused = None  # the message goes on for the others
        return reply

    def data(self, raw: bytes | EmailMessage = MESSAGE) -> Reply:
        """Send DATA and the message; the reply is the one to the final dot, or to DATA."""
        self._last = self._ask(Stage.DATA, self._conversation.data())
        if self._last.code < 300:
            self._last = self._ask(Stage.MESSAGE, self._content(_octets(raw)))
        self._runner.run(
            self._conversation.finish("accepted" if self._last.code < 300 else "refused")
        )
        return self._last

    def rset(self) -> Reply:
        """Send RSET: the message under way is aborted."""
        self._runner.run(self._conversation.finish("aborted"))
        return self.command("RSET")

    @property
    def outcome(self) -> Outcome:
        """What has become of the last message so far."""
        reply, verdict, step = self._refused or (self._last, None, None)
        ending = self.message.outcome if self.message is not None else None
        if verdict is None and ending is not None:
            verdict, by = ending.verdict, ending.by
            step = next((s for s in self.steps if s.by == by and s.verdict == verdict), None)
        return Outcome(
            reply=reply,
            verdict=verdict,
            stage=step.stage if step is not None else None,
            by=step.by if step is not None else "",
            replies=dict(self.replies),
            message=self.message,
            raw=self._raw,
            received=self._received,
            steps=tuple(self.steps),
        )

    def _learn(self, **facts: object) -> None:
        """Tell the session facts, as far as the protocol does."""
        withheld = self._engine.chain.withheld
        self.session.learn(**{n: fact for n, fact in facts.items() if n not in withheld})

    def _address(self, text: str, params: Mapping[str, str | None] | None) -> Address:
        return Address(text, UNTOLD if "params" in self._engine.chain.untold else params)

    async def _content(self, raw: bytes) -> Verdict | None:
        """Show the message as adapters do: fields, pieces of the body, the end."""
        conversation, interest = self._conversation, self._engine.interest
        self._received = len(raw)
        section, separator, rest = _divide(raw)
        await conversation.headers(Section.of(parse_fields(section)), separator)
        body = Body(self._engine.limits.memory)
        for at in range(0, len(rest), PIECE):
            piece = rest[at : at + PIECE]
            if Stage.BODY in interest.asked:
                await conversation.body(piece)
            body.append(piece)
        if body.size > self._engine.limits.message:
            conversation.too_big()
        verdict = await conversation.end(body)
        if self.message is not None:
            self.message.enter(Stage.MESSAGE)
            self._raw = self.message.raw
        return verdict

    async def _command(self, verb: str, argument: str) -> Verdict | None:
        """Ask about a command as the protocol does: of all, of those who look on, of nobody."""
        if self._capabilities is None:
            return await self._conversation.command(verb, argument)
        here = self._capabilities.get(Stage.COMMAND, frozenset())
        if answerable(frozenset({verb}), here):
            return await self._conversation.command(verb, argument)
        if shows_all(here):
            await self._conversation.observe(verb, argument)
        return None

    def _ask(self, stage: Stage, question: Any, good: Reply = OK) -> Reply:
        if self._closed:
            question.close()
            self._last = CLOSED
            return CLOSED
        reply = self._reply(stage, self._runner.run(question), good)
        if stage is not Stage.COMMAND or self.message is None:
            self._last = reply
        return reply

    def _reply(self, stage: Stage, verdict: Verdict | None, good: Reply) -> Reply:
        if verdict is None or isinstance(verdict, (Discard, Quarantine)):
            return good
        reply: Reply = getattr(verdict, "reply", good)
        step = next((s for s in reversed(self.steps) if s.verdict == verdict), None)
        refused = reply is not good
        closes = isinstance(verdict, Disconnect) or (stage is Stage.CONNECT and refused)
        if refused and self._ends_message(stage, closes):
            self._refused = (reply, verdict, step)
        if closes:
            self._closed = True
        return reply

    def _ends_message(self, stage: Stage, closes: bool) -> bool:
        """Tell whether a refusal is what becomes of the last message: NOOP in passing is not."""
        if stage is not Stage.COMMAND or self.message is None:
            return True
        return closes and self._conversation.message is not None


def _loaded(policy: Policy | Sequence[Policy] | Sequence[Loaded]) -> list[Loaded]:
    several: list[Policy | Loaded] = [policy] if isinstance(policy, Policy) else [*policy]
    return [p if isinstance(p, Loaded) else Loaded(p, p.name or "policy") for p in several]


def _capabilities(policies: Sequence[Loaded], adapter: str | None) -> Capabilities | None:
    """Return what a protocol can do; Unsupported where a policy would not start on it."""
    if adapter is None:
        return None
    capabilities = adapters.load(adapter).capabilities
    for missing in unmet(policies, capabilities):
        raise Unsupported(f"{missing}; {adapter} cannot")
    for handler in (handler for each in policies for handler in each.policy.handlers):
        for use in blind(handler, capabilities):
            raise Unsupported(f"{handler.name} reads {use.said}; {adapter} cannot tell it")
    return capabilities


def _octets(raw: bytes | EmailMessage) -> bytes:
    if isinstance(raw, EmailMessage):
        from email.policy import SMTP

        raw = raw.as_bytes(policy=SMTP)
    raw = normal_line_ends(raw)
    return raw if not raw or raw.endswith(b"\r\n") else raw + b"\r\n"


def _divide(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Return header section, separator and body of a message."""
    at = 0
    while at < len(raw):
        end = raw.index(b"\r\n", at)
        if not continues_section(raw[at:end], first=at == 0):
            blank = end == at
            return raw[:at], raw[at : end + 2] if blank else b"", raw[end + 2 if blank else at :]
        at = end + 2
    return raw, b"", b""
