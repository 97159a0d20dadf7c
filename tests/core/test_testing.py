"""What a policy author tests with behaves as a mail server does."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage

import pytest

from mailgate.address import Address
from mailgate.chain import Defaults, Loaded
from mailgate.errors import TooEarly
from mailgate.limits import Limits
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Attempt, Event, Session
from mailgate.stage import Stage
from mailgate.testing import MESSAGE, Mta, send
from mailgate.verdict import (
    Accept,
    Defer,
    Discard,
    Disconnect,
    Quarantine,
    Reject,
    Verdict,
)


def gate(domains: set[str]) -> Policy:
    """Return the policy of the guide's example."""
    policy = Policy("gate")

    @policy.rcpt
    async def known_domain(message: Message, recipient: Address) -> Reject | None:
        if recipient.domain not in domains:
            return Reject("no such domain here", enhanced="5.1.2")
        return None

    return policy


def answering(stage: str, verdict: Verdict | None) -> Policy:
    policy = Policy("p")

    async def answers(*arguments: object) -> Verdict | None:
        return verdict

    register = getattr(policy, stage)
    register(needs={"discard", "quarantine"})(answers)
    return policy


# -- send ----------------------------------------------------------------------------------------


def test_a_refused_recipient() -> None:
    outcome = send(gate({"example.org"}), to="x@elsewhere.test")
    assert outcome.reply == "550 5.1.2 no such domain here"
    assert not outcome.accepted
    assert outcome.verdict == Reject("no such domain here", 550, "5.1.2")
    assert (outcome.stage, outcome.by) == (Stage.RCPT, "gate.known_domain")
    assert outcome.replies == {"x@elsewhere.test": "550 5.1.2 no such domain here"}
    assert outcome.raw == b""


@pytest.mark.parametrize("first", [True, False])
def test_a_message_goes_on_for_the_other_recipients(first: bool) -> None:
    recipients = ["x@elsewhere.test", "ann@example.org"]
    outcome = send(gate({"example.org"}), to=recipients if first else recipients[::-1])
    assert outcome.accepted
    assert outcome.reply.code == 250
    assert (outcome.verdict, outcome.by) == (None, "")
    assert {str(to): reply.code for to, reply in outcome.replies.items()} == {
        "x@elsewhere.test": 550,
        "ann@example.org": 250,
    }
    assert outcome.message is not None
    assert [*outcome.message.recipients] == ["ann@example.org"]


def test_an_accepted_message() -> None:
    outcome = send(gate({"example.org"}))
    assert outcome.accepted
    assert outcome.reply == "250 2.0.0 Ok"
    assert outcome.raw == MESSAGE
    assert outcome.body == b"Hello.\r\n"
    assert outcome.headers["Subject"] == "a test"
    assert not outcome.changes


@pytest.mark.parametrize("stage", ["connect", "helo", "mail", "data", "headers", "message"])
@pytest.mark.parametrize("verdict", [Reject("no"), Defer("later"), Disconnect("bye", 554)])
def test_a_refusal_names_its_stage_and_handler(stage: str, verdict: Reject | Defer) -> None:
    outcome = send(answering(stage, verdict))
    assert not outcome.accepted
    assert outcome.reply == verdict.reply
    assert outcome.verdict == verdict
    assert (outcome.stage, outcome.by) == (stage, "p.answers")


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "headers", "body", "message"])
@pytest.mark.parametrize("verdict", [Discard("junk"), Quarantine("odd")])
def test_what_is_dropped_or_held_is_accepted_and_says_so(
    stage: str, verdict: Discard | Quarantine
) -> None:
    outcome = send(answering(stage, verdict))
    assert outcome.accepted
    assert outcome.reply.code == 250
    assert outcome.verdict == verdict
    assert (outcome.stage, outcome.by) == (stage, "p.answers")
    assert outcome.message is not None
    assert len(outcome.message.recipients) == 1


def test_several_policies_are_asked_in_order() -> None:
    outcome = send([answering("mail", Accept()), gate(set())])
    assert outcome.by == "gate.known_domain"
    assert outcome.reply.code == 550


def test_facts_are_given() -> None:
    seen: list[Session] = []
    params: list[object] = []
    policy = Policy()

    @policy.mail
    async def mail(message: Message) -> None:
        seen.append(message.session)
        params.append(dict(message.sender.params))

    send(
        policy,
        client="2001:db8::1",
        rdns="mx.client.example",
        helo="hello.example",
        tls=True,
        user="ann",
        params={"SIZE": "10"},
    )
    send(policy, client=None)
    first, second = seen
    assert (str(first.client), first.rdns, first.rdns_verified) == (
        *("2001:db8::1", "mx.client.example", True),
    )
    assert (first.helo, first.esmtp, first.user) == ("hello.example", True, "ann")
    assert first.tls is not None
    assert not first.local
    assert (second.client, second.local, second.tls, second.user) == (None, True, None, None)
    assert params == [{"SIZE": "10"}, {}]


@pytest.mark.parametrize(
    ("raw", "leaves"),
    [
        (b"Subject: x\n\nbody", b"Subject: x\r\n\r\nbody\r\n"),
        (b"Subject: x\r\n\r\n", b"Subject: x\r\n\r\n"),
        (b"Subject: x\r\n", b"Subject: x\r\n"),
        (b"no header at all\n", b"no header at all\r\n"),
        (b"\nbody\n", b"\r\nbody\r\n"),
        (b"", b""),
        (b"A: b\nnonsense\n\nC: d\n", b"A: b\r\nnonsense\r\n\r\nC: d\r\n"),
    ],
)
def test_a_message_leaves_as_it_came(raw: bytes, leaves: bytes) -> None:
    seen: list[bytes] = []
    policy = Policy()

    @policy.message
    async def whole(message: Message) -> None:
        seen.append(message.raw)

    assert send(policy, raw).raw == leaves
    assert seen == [leaves]


def test_a_message_object_is_sent_too() -> None:
    mail = EmailMessage()
    mail["Subject"] = "Grüße"
    mail.set_content("text\n")
    outcome = send(answering("mail", None), mail)
    assert outcome.headers["Subject"] == "Grüße"
    assert outcome.body == b"text\r\n"


def test_edits_show() -> None:
    policy = Policy()

    @policy.message(needs={"change_sender"})
    async def edits(message: Message) -> None:
        message.headers["Subject"] = "other"
        message.body = b"new\n"
        message.change_sender("n@b.example")

    outcome = send(policy)
    assert outcome.headers["Subject"] == "other"
    assert outcome.body == b"new\r\n"
    assert outcome.message is not None
    assert outcome.message.sender == "n@b.example"
    assert len(outcome.changes) == 3


def test_before_any_message_there_are_no_headers() -> None:
    with Mta(Policy()) as mta, pytest.raises(LookupError):
        _ = mta.outcome.headers


def test_misuse_is_raised_unless_it_is_to_be_as_in_service() -> None:
    policy = Policy()

    @policy.mail
    async def early(message: Message) -> None:
        _ = message.body

    with pytest.raises(TooEarly):
        send(policy)
    with Mta(policy, strict=False) as mta:
        assert mta.mail("a@b.example").code == 451


# -- step by step --------------------------------------------------------------------------------


def test_the_steps_of_the_guide() -> None:
    with Mta(gate({"d.example"})) as mta:
        mta.mail("a@b.example")
        assert mta.rcpt("c@d.example").code == 250
        assert mta.rcpt("c@e.example").code == 550
        assert mta.data() == "250 2.0.0 Ok"
        assert mta.outcome.accepted


def test_several_messages_in_one_session() -> None:
    with Mta(gate({"d.example"})) as mta:
        mta.mail("a@b.example")
        assert mta.rcpt("x@e.example").code == 550
        mta.rset()
        mta.mail("a@b.example")
        mta.rcpt("c@d.example")
        mta.data(b"Subject: second\n")
        assert mta.outcome.accepted
        assert [*mta.outcome.replies] == ["c@d.example"]
        assert mta.outcome.headers["Subject"] == "second"


def test_how_each_message_ended_is_told() -> None:
    endings: list[str] = []
    policy = answering("data", None)

    @policy.done
    async def done(message: Message) -> None:
        assert message.outcome is not None
        endings.append(message.outcome.result)

    with Mta([policy, gate({"d.example"})]) as mta:
        for recipient in ("c@d.example", "x@e.example"):
            mta.mail("a@b.example")
            mta.rcpt(recipient)
            if recipient == "c@d.example":
                mta.data()
        mta.rset()
        mta.mail("a@b.example")
    assert endings == ["accepted", "aborted", "aborted"]


def refusing(verdict: Verdict) -> Policy:
    policy = Policy("p")

    @policy.command("NOOP")
    async def noop(session: Session, verb: str, argument: str) -> Verdict | None:
        return verdict

    return policy


def test_what_a_command_in_passing_is_answered_with_is_not_the_messages() -> None:
    with Mta(refusing(Reject("no"))) as mta:
        assert mta.command("NOOP").code == 550
        assert (mta.outcome.reply, mta.outcome.by) == ("550 5.7.1 no", "p.noop")
        mta.mail("a@b.example")
        mta.rcpt("c@d.example")
        assert mta.command("NOOP").code == 550
        assert (mta.outcome.reply, mta.outcome.by) == ("250 2.0.0 Ok", "")
        assert mta.data().code == 250
        assert mta.command("NOOP").code == 550
        assert mta.command("XYZZY").code == 500
        assert mta.outcome.accepted
        assert mta.outcome.verdict is None


def test_a_command_that_closes_the_connection_ends_its_message() -> None:
    with Mta(refusing(Disconnect("bored"))) as mta:
        mta.mail("a@b.example")
        mta.rcpt("c@d.example")
        assert mta.command("NOOP").code == 421
        assert mta.data().code == 421
        assert (mta.outcome.reply, mta.outcome.by) == ("421 4.7.1 bored", "p.noop")


def test_a_command_that_closes_the_connection_leaves_what_was_accepted() -> None:
    with Mta(refusing(Disconnect("bored"))) as mta:
        mta.mail("a@b.example")
        mta.rcpt("c@d.example")
        mta.data()
        assert mta.command("NOOP").code == 421
        assert mta.outcome.accepted
        assert mta.mail("a@b.example").code == 421
        assert not mta.outcome.accepted


@pytest.mark.parametrize(
    ("stage", "verdict"), [("connect", Reject("no")), ("mail", Disconnect("bye"))]
)
def test_a_closed_connection_answers_nothing_more(stage: str, verdict: Reject) -> None:
    with Mta(answering(stage, verdict)) as mta:
        mta.mail("a@b.example")
        assert mta.rcpt("c@d.example").code == 421
        assert mta.data().code == 421
        assert mta.outcome.reply == verdict.reply


def test_the_other_commands() -> None:
    seen: list[str] = []
    policy = Policy()

    @policy.helo
    async def helo(session: Session) -> None:
        seen.append(f"{session.helo} {session.esmtp}")

    @policy.starttls
    async def starttls(session: Session) -> Verdict | None:
        return Reject("no") if session.tls else None

    @policy.auth(needs={"credentials"})
    async def auth(session: Session, attempt: Attempt) -> Verdict | None:
        return None if attempt.password == "right" else Reject("wrong", 535, "5.7.8")

    @policy.command("NOOP")
    async def noop(session: Session, verb: str, argument: str) -> Verdict | None:
        return Reject(f"no {verb} {argument}")

    @policy.event
    async def event(session: Session, event: Event) -> None:
        seen.append(f"{event.name} {event.fields['hostname']}")

    with Mta(policy) as mta:
        assert mta.helo("one.example", esmtp=False).code == 250
        assert mta.starttls().code == 250
        assert mta.starttls().code == 550
        assert mta.auth("ann", "wrong").code == 535
        users = [mta.session.user]
        assert mta.auth("ann", "right").code == 250
        assert [*users, mta.session.user] == [None, "ann"]
        assert mta.command("noop", "x") == "550 5.7.1 no NOOP x"
        mta.event("greeting", hostname="mx")
        assert mta.mail("a@b.example").code == 250
    assert seen == ["one.example False", "greeting mx"]


def test_resources_are_entered_and_left() -> None:
    happened: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        happened.append("entered")
        yield
        happened.append("left")

    policy = answering("mail", None)
    policy.resource(opened())
    with Mta(policy):
        assert happened == ["entered"]
    assert happened == ["entered", "left"]


def test_a_body_comes_in_pieces() -> None:
    pieces: list[bytes] = []
    policy = Policy()

    @policy.body
    async def piece(message: Message, piece: bytes) -> None:
        pieces.append(piece)

    raw = b"Subject: x\r\n\r\n" + b"0123456789 123456789 123456\r\n" * 10_000
    assert send(policy, raw).raw == raw
    assert len(pieces) > 1
    assert b"".join(pieces) == raw.partition(b"\r\n\r\n")[2]


def test_limits_are_the_servers() -> None:
    with Mta(answering("message", None), limits=Limits(message=100, oversize="reject")) as mta:
        mta.mail("a@b.example")
        mta.rcpt("c@d.example")
        assert mta.data(b"Subject: x\n\n" + b"line\n" * 100).code == 552
    del mta
    gc.collect()  # a spool file that was left open would be a warning here


def test_defaults_are_the_servers() -> None:
    policy = Policy()

    @policy.mail
    async def fails(message: Message) -> None:
        raise ValueError

    with Mta(policy, defaults=Defaults(on_error="reject")) as mta:
        assert mta.mail("a@b.example").code == 550
    with Mta([Loaded(policy, "p", on_error="continue")]) as mta:
        assert mta.mail("a@b.example").code == 250
