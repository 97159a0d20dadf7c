"""Whatever smtpd says, in whatever order: every question is answered once, and nothing else is."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate import Address, Message, Policy, Reject, Session
from tests.opensmtpd import everything
from tests.opensmtpd.lines import Client, handshake
from tests.opensmtpd.running import converse, pieces

# Each session speaks one version, as each smtpd does.
CLIENTS = [Client("aa00", "0.7"), Client("aa01", "0.6"), Client("aa02", "0.4")]

PHASES = (
    *("connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data", "data-line"),
    *("commit", "rset", "quit", "noop", "help", "wiz", "teleport"),
)
EVENTS = (
    *("link-connect", "link-greeting", "link-identify", "link-tls", "link-auth"),
    *("link-disconnect", "tx-reset", "tx-begin", "tx-mail", "tx-rcpt", "tx-envelope", "tx-data"),
    *("tx-commit", "tx-rollback", "protocol-client", "protocol-server", "filter-report"),
    *("filter-response", "timeout", "link-teleport"),
)
PARAMETERS = (
    *("", "a@b", "x|y", "<unknown>|local", "h|pass|192.0.2.1:1|198.51.100.1:25", "|||", "EHLO|h"),
    *("3682b2ad", "3682b2ad|ok|a@b", "3682b2ad|a@b|ok", "3682b2ad|permfail|a@b", "3682b2ad|-1"),
    *("MAIL FROM:<a@b> SIZE=1", "RCPT TO:<c@d>", "mail-from|rewrite|<x@y>", "rcpt-to|junk"),
    *("connected|proceed", "PLAIN AGEAYg==", ".", "..", ".x", "Subject: x", "a\rb", "\r", "a\0b"),
)


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Return lines of several sessions; most begin as they should."""
    lines = [client.connect() for client in CLIENTS if draw(st.integers(0, 4))]
    for _ in range(draw(st.integers(1, 40))):
        client, parameter = draw(st.sampled_from(CLIENTS)), draw(st.sampled_from(PARAMETERS))
        if draw(st.booleans()):
            lines.append(client.report(draw(st.sampled_from(EVENTS)), parameter))
            continue
        phase = draw(st.sampled_from(PHASES))
        lines.append(client.question(phase, parameter.encode("latin-1")))
        if (phase, parameter) == ("data-line", "."):
            lines.append(client.question("commit"))  # smtpd never gives a second dot before it
    return handshake() + b"".join(lines)


def edits() -> Policy:
    policy = Policy("edits")

    @policy.helo(needs={"change_helo"})
    async def helo(session: Session) -> None:
        session.change_helo("mx.example.net")

    @policy.mail(needs={"change_sender"})
    async def mail(message: Message) -> None:
        message.change_sender("new@example.net")

    @policy.rcpt(needs={"change_recipient"})
    async def rcpt(message: Message, recipient: Address) -> None:
        message.change_recipient(recipient, "elsewhere@example.net")

    @policy.message
    async def whole(message: Message) -> None:
        message.headers.prepend("X-Seen", "yes")
        message.body = b".\r\nnew\r\n"

    return policy


def fails() -> Policy:
    policy = Policy("fails")

    @policy.connect
    async def connect(session: Session) -> None: ...

    @policy.mail
    async def mail(message: Message) -> None:
        raise RuntimeError("on purpose")

    @policy.headers
    async def headers(message: Message) -> Reject | None:
        return Reject("no") if "Subject" in message.headers else None

    @policy.done
    async def done(message: Message) -> None:
        raise RuntimeError("on purpose")

    return policy


def waits() -> Policy:
    policy = Policy("waits")

    @policy.mail
    async def mail(message: Message) -> Reject | None:
        await asyncio.sleep(0)
        return None

    @policy.body
    async def body(message: Message, piece: bytes) -> Reject | None:
        await asyncio.sleep(0)
        return Reject("no") if b"Subject" in piece else None

    @policy.message
    async def whole(message: Message) -> Reject | None:
        await asyncio.sleep(0.0001)
        return None

    return policy


@pytest.mark.parametrize(
    "policy", [everything.policy, edits(), fails(), waits()], ids=lambda policy: policy.name
)
@settings(deadline=None, max_examples=100)
@given(conversation=conversations(), piece=st.sampled_from([1 << 16, 61]))
def test_every_question_is_answered_once(policy: Policy, conversation: bytes, piece: int) -> None:
    outcome = converse(pieces(conversation, piece), policy)

    assert outcome.faults == []
