"""The readable trace of a message on its way through policies."""

from __future__ import annotations

import asyncio
import re

import pytest

from mailgate.address import Address
from mailgate.message import Message
from mailgate.outcome import printable
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.testing import Mta, send
from mailgate.verdict import Discard, Quarantine, Reject, Verdict


def rows(trace: str) -> list[list[str]]:
    """Return the columns of a trace, times left out."""
    without = re.sub(r"  \d+\.\d ms$", "", trace, flags=re.MULTILINE)
    return [re.split(r"  +", line.strip()) for line in without.splitlines()]


def outgoing() -> Policy:
    """Return the policies of the guide's trace."""
    policy = Policy("gate")

    @policy.rcpt
    async def known_domain(message: Message, recipient: Address) -> Verdict | None: ...

    @policy.rcpt
    async def greylist(message: Message, recipient: Address) -> Verdict | None: ...

    @policy.message(needs={"change_sender", "add_recipient"})
    async def rewrite(message: Message) -> None:
        message.headers["From"] = "sales@example.org"
        message.body = b"more\n"
        message.change_sender("sales@example.org")
        message.add_recipient("archive@example.org")

    return policy


def test_the_trace_of_the_guide() -> None:
    outcome = send(
        outgoing(),
        b"From: bob@example.org\n\nhello\n",
        sender="bob@example.org",
        to="ann@example.net",
        rdns="client.example",
    )
    assert rows(str(outcome)) == [
        ["connect", "192.0.2.1 (client.example)", "continue"],
        ["mail", "bob@example.org", "continue"],
        ["rcpt", "ann@example.net", "gate.known_domain", "continue"],
        ["gate.greylist", "continue"],
        ["message", "32 octets", "gate.rewrite", "continue"],
        ["~ header From: sales@example.org"],
        ["~ body 7 -> 6 octets"],
        ["~ sender sales@example.org"],
        ["+ recipient archive@example.org"],
        ["accepted", "250, 2 recipients"],
    ]


def test_columns_stand_below_each_other() -> None:
    lines = str(send(outgoing())).splitlines()
    column = lines[0].index("continue")
    assert all(line.index("continue") == column for line in lines if "continue" in line)
    assert all(line == line.rstrip() for line in lines)


def answering(stage: str, verdict: Verdict | None) -> Policy:
    policy = Policy("p")

    async def answers(*arguments: object) -> Verdict | None:
        return verdict

    getattr(policy, stage)(needs={"discard", "quarantine"})(answers)
    return policy


@pytest.mark.parametrize(
    ("policy", "last"),
    [
        (answering("mail", None), "accepted  250, 1 recipient"),
        (answering("mail", Reject("no")), "refused   550 5.7.1 no by p.answers"),
        (answering("data", Reject("a\nb")), "refused   550 5.7.1 a / 550 5.7.1 b by p.answers"),
        (answering("message", Discard("junk")), "discarded by p.answers: junk"),
        (answering("rcpt", Quarantine("odd")), "held by p.answers: odd"),
    ],
)
def test_the_last_line_says_how_it_ended(policy: Policy, last: str) -> None:
    assert str(send(policy)).splitlines()[-1] == last


def test_a_refusal_shows_its_reply() -> None:
    trace = rows(str(send(answering("rcpt", Reject("no")))))
    assert trace[2] == ["rcpt", "rcpt@example.org", "p.answers", "reject", "550 5.7.1 no"]


def test_a_failure_shows_what_was_raised() -> None:
    policy = Policy("p")

    @policy.mail
    async def fails(message: Message) -> None:
        raise ValueError("not\nthis")

    (row,) = [row for row in rows(str(send(policy))) if row[0] == "mail"]
    assert row[2:] == ["p.fails", "defer", "(ValueError: not / this)"]


def test_a_failure_that_cannot_be_shown_is_named() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    policy = Policy("p")

    @policy.mail
    async def fails(message: Message) -> None:
        raise Odd

    assert "Odd" in str(send(policy))


def test_every_stage_that_was_asked_is_shown() -> None:
    policy = Policy("p")

    @policy.connect
    @policy.helo
    async def on_session(session: Session) -> Verdict | None: ...

    @policy.mail
    @policy.data
    @policy.headers
    @policy.message
    async def on_message(message: Message) -> Verdict | None: ...

    @policy.body
    async def on_piece(message: Message, piece: bytes) -> Verdict | None: ...

    stages = [row[0] for row in rows(str(send(policy, client=None, sender="")))]
    assert stages == [
        *("connect", "helo", "mail", "data", "headers", "body", "message", "accepted")
    ]
    trace = rows(str(send(policy, client=None, sender="")))
    assert [row[1] for row in trace[:3]] == ["local", "client.example", "<>"]


def test_a_command_is_shown_where_it_came() -> None:
    policy = Policy("p")

    @policy.command("XYZZY")
    async def odd(session: Session, verb: str, argument: str) -> Verdict | None:
        return Reject("no")

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Verdict | None: ...

    with Mta(policy) as mta:
        mta.command("XYZZY")
        mta.mail("a@b.example")
        mta.rcpt("c@d.example")
        mta.command("XYZZY")
    assert rows(str(mta.outcome)) == [
        ["connect", "192.0.2.1", "continue"],
        ["command", "p.odd", "reject", "550 5.7.1 no"],
        ["mail", "a@b.example", "continue"],
        ["rcpt", "c@d.example", "p.rcpt", "continue"],
        ["command", "p.odd", "reject", "550 5.7.1 no"],
        ["accepted", "250, 1 recipient"],
    ]


def test_a_slow_handler_shows_its_time() -> None:
    policy = Policy("p")

    @policy.mail
    async def slow(message: Message) -> None:
        await asyncio.sleep(0.002)

    (line,) = [line for line in str(send(policy)).splitlines() if line.startswith("mail")]
    assert re.search(r"continue  \d+\.\d ms$", line)


def test_nothing_in_a_trace_moves_the_cursor() -> None:
    trace = str(send(answering("rcpt", None), sender="a\x1b[2J@b.example", to="c\n\x07@d.example"))
    assert all(line.isprintable() for line in trace.split("\n"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é", "plain é"), ("a\nb", "a / b"), ("\x1b[m\t", "\\x1b[m\\t"), ("\udc80", "\\udc80")],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_without_a_message_there_is_still_an_end() -> None:
    with Mta(answering("connect", Reject("no"))) as mta:
        assert rows(str(mta.outcome))[-1] == ["refused", "550 5.7.1 no by p.answers"]
