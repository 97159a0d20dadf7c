"""What a peer tells of itself: how long it waits, what it lacks, what it need not send."""

from __future__ import annotations

import asyncio
import math

import pytest

from mailgate.address import Address
from mailgate.chain import Capabilities, Chain, Defaults
from mailgate.engine import Conversation
from mailgate.headers import Section, parse_fields
from mailgate.limits import Limits
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.stage import OnError, Stage
from mailgate.verdict import Accept, Discard, Quarantine, Reject, Verdict
from tests.core.asking import (
    BODY,
    FAILED,
    RECIPIENT,
    SECTION,
    SENDER,
    content,
    converse,
    engine,
    in_loop,
    loaded,
    reply,
    to_data,
    to_headers,
    to_mail,
)

SHORT = 0.05  # seconds of a deadline that is meant to pass
NO = Reject("no")


# -- how long it waits ---------------------------------------------------------------------------


def slow() -> Policy:
    """Return a policy that answers everything, and takes its time."""
    policy = Policy("p")

    @policy.helo
    async def on_session(session: Session) -> Verdict | None:
        await asyncio.sleep(4 * SHORT)
        return NO

    @policy.rcpt
    async def on_recipient(message: Message, recipient: Address) -> Verdict | None:
        await asyncio.sleep(4 * SHORT)
        return NO

    @policy.data
    @policy.headers
    @policy.message
    async def on_message(message: Message) -> Verdict | None:
        await asyncio.sleep(4 * SHORT)
        return NO

    return policy


def impatient(
    policy: Policy, patience: float, *, timeout: float, message_timeout: float
) -> Conversation:
    serving = engine(policy, defaults=Defaults(timeout, message_timeout))
    return serving.converse(Session("s1", "test"), patience=patience)


@in_loop
async def test_no_question_takes_longer_than_its_peer_waits() -> None:
    conversation = impatient(slow(), SHORT, timeout=60, message_timeout=60)
    await conversation.mail(SENDER)
    assert reply(await conversation.rcpt(RECIPIENT)) == FAILED["defer"]
    assert reply(await conversation.data()) == FAILED["defer"]
    await conversation.mail(SENDER)
    assert reply(await conversation.headers(Section.of(parse_fields(SECTION)))) == FAILED["defer"]
    assert reply(await conversation.helo("client.example")) == FAILED["defer"]


@in_loop
async def test_at_the_end_of_a_message_a_peer_waits_longer() -> None:
    conversation = impatient(slow(), SHORT, timeout=SHORT, message_timeout=60)
    await conversation.mail(SENDER)
    assert await conversation.end(content()) == NO


@pytest.mark.parametrize("patience", [60, math.inf])
@in_loop
async def test_patience_makes_no_budget_longer(patience: float) -> None:
    conversation = impatient(slow(), patience, timeout=SHORT, message_timeout=SHORT)
    await conversation.mail(SENDER)
    assert reply(await conversation.rcpt(RECIPIENT)) == FAILED["defer"]
    assert reply(await conversation.end(content())) == FAILED["defer"]


# -- what it lacks -------------------------------------------------------------------------------

ABLE: Capabilities = {
    stage: frozenset({"change_sender", "discard"}) for stage in (Stage.MAIL, Stage.MESSAGE)
}


@in_loop
async def test_a_peer_is_served_as_it_can_be() -> None:
    """An MTA may offer less than its protocol has; the next one offers all of it."""
    asked: list[bool] = []
    policy = Policy("p")

    @policy.mail(wants={"change_sender"})
    async def mail(message: Message) -> None:
        asked.append(message.can("change_sender"))

    serving = engine(policy, capabilities=ABLE)
    less = serving.chain.without(frozenset({"change_sender"}))
    poor = serving.converse(Session("s1", "test"), chain=less)
    rich = serving.converse(Session("s2", "test"))
    serving.use(Chain(loaded(Policy()), ABLE, Defaults()))  # a reload is for later ones
    await to_mail(poor)
    await to_mail(rich)
    assert asked == [False, True]
    assert poor.interest.uses == frozenset()
    assert rich.interest.uses == {"change_sender"}


@in_loop
async def test_a_verdict_that_a_peer_lacks_is_a_failure_of_the_handler() -> None:
    policy = Policy("p")

    @policy.mail(wants={"discard"})
    async def drops(message: Message) -> Verdict | None:
        return Discard("nobody wants it")

    serving = engine(policy, capabilities=ABLE)
    less = serving.chain.without(frozenset({"discard"}))
    assert (
        reply(await serving.converse(Session("s1", "test"), chain=less).mail(SENDER))
        == (FAILED["defer"])
    )
    assert type(await serving.converse(Session("s2", "test")).mail(SENDER)) is Discard


# -- what it need not send -----------------------------------------------------------------------


def reader(stage: Stage = Stage.BODY, *, accepts: Stage | None = None) -> Policy:
    """Return a policy that reads the body, unless it accepts the message at a stage."""
    policy = Policy("p")

    async def on_message(message: Message) -> Verdict | None:
        return None

    async def on_piece(message: Message, piece: bytes) -> Verdict | None:
        return None

    async def accept(*arguments: object) -> Verdict | None:
        return Accept()

    if accepts is not None:
        getattr(policy, accepts)(accept)
    getattr(policy, stage)(on_piece if stage is Stage.BODY else on_message)
    return policy


def looks_on() -> Policy:
    """Return a policy that never sees a body."""
    policy = Policy("p")

    async def sees(*arguments: object) -> None: ...

    for stage in (Stage.MAIL, Stage.HEADERS, Stage.DONE, Stage.CLOSE):
        getattr(policy, stage)(sees)
    return policy


@pytest.mark.parametrize("stage", [Stage.BODY, Stage.MESSAGE])
@in_loop
async def test_a_body_is_wanted_while_there_is_a_message_and_a_reader(stage: Stage) -> None:
    conversation = converse(looks_on(), reader(stage))
    wanted = [conversation.wants_body]
    await to_headers(conversation)
    wanted.append(conversation.wants_body)
    await conversation.body(BODY)
    wanted.append(conversation.wants_body)
    await conversation.end(content())
    await conversation.finish("accepted")
    wanted.append(conversation.wants_body)
    assert wanted == [False, True, True, False]


@in_loop
async def test_without_a_reader_no_body_is_wanted() -> None:
    conversation = converse(looks_on())
    await to_headers(conversation)
    assert not conversation.wants_body


@pytest.mark.parametrize("accepts", [Stage.MAIL, Stage.DATA, Stage.HEADERS])
@in_loop
async def test_a_policy_that_has_accepted_wants_no_body(accepts: Stage) -> None:
    conversation = converse(reader(accepts=accepts))
    for _ in range(2):
        await conversation.mail(SENDER)
        assert conversation.wants_body is (accepts is not Stage.MAIL)
        await conversation.data()
        await conversation.headers(Section.of(parse_fields(SECTION)))
        assert not conversation.wants_body
        await conversation.finish("accepted")


@in_loop
async def test_a_policy_may_accept_while_the_body_streams() -> None:
    policy, seen = Policy("p"), list[bytes]()

    @policy.body
    async def piece(message: Message, piece: bytes) -> Verdict | None:
        seen.append(piece)
        return Accept() if len(seen) == 2 else None

    conversation = converse(policy)
    await to_headers(conversation)
    wanted = []
    for _ in range(3):
        await conversation.body(BODY)
        wanted.append(conversation.wants_body)
    assert wanted == [True, False, False]
    assert len(seen) == 2


@in_loop
async def test_an_accepted_connection_wants_no_body() -> None:
    conversation = converse(reader(accepts=Stage.CONNECT))
    await to_mail(conversation)
    assert not conversation.wants_body


@in_loop
async def test_one_reader_that_has_not_accepted_is_enough() -> None:
    conversation = converse(
        reader(accepts=Stage.MAIL), reader(Stage.MESSAGE, accepts=Stage.HEADERS), looks_on()
    )
    await to_data(conversation)
    wanted = [conversation.wants_body]
    await conversation.headers(Section.of(parse_fields(SECTION)))
    wanted.append(conversation.wants_body)
    assert wanted == [True, False]


@pytest.mark.parametrize("verdict", [NO, Discard("a"), Quarantine("a")])
@in_loop
async def test_a_message_that_is_decided_needs_no_body(verdict: Verdict) -> None:
    policy = Policy("p")

    @policy.headers(needs={"discard", "quarantine"})
    async def decides(message: Message) -> Verdict | None:
        return verdict

    conversation = converse(reader(), policy)
    await to_data(conversation)
    wanted = [conversation.wants_body]
    assert await conversation.headers(Section.of(parse_fields(SECTION))) == verdict
    wanted.append(conversation.wants_body)
    await conversation.finish("accepted")
    await conversation.mail(SENDER)
    wanted.append(conversation.wants_body)
    assert wanted == [True, False, True]


@in_loop
async def test_what_is_remembered_decides_too() -> None:
    conversation = converse(reader())
    await to_headers(conversation)
    conversation.remember(Stage.HEADERS, NO)
    assert not conversation.wants_body


@pytest.mark.parametrize("oversize", ["defer", "reject", "continue"])
@in_loop
async def test_a_message_that_is_too_big_needs_no_more_of_it(oversize: OnError) -> None:
    limits = Limits(oversize=oversize)
    conversation = converse(reader(), reader(Stage.MESSAGE), limits=limits)
    await to_headers(conversation)
    conversation.too_big()
    assert not conversation.wants_body


# -- what it never tells -------------------------------------------------------------------------


@in_loop
async def test_what_a_protocol_never_tells_fails_the_handler_that_reads_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """None would pass for a client that has not logged in."""
    policy = Policy("p")

    @policy.mail(on_error="reject")
    async def trusted_only(message: Message) -> Verdict | None:
        return None if message.session.user == "ann" else Reject("log in")

    told: Capabilities = {Stage.MAIL: frozenset({"auth"})}
    assert reply(await mailed(policy, told)) == "550 5.7.1 log in"
    assert reply(await mailed(policy, None)) == "550 5.7.1 log in"
    for chain in (None, Chain(loaded(policy), {Stage.MAIL: frozenset()}, Defaults())):
        verdict = await mailed(policy, {Stage.MAIL: frozenset()}, chain)
        assert reply(verdict) == FAILED["reject"]
        assert "Unsupported: session.user: this protocol does not tell it" in caplog.text
        caplog.clear()


async def mailed(
    policy: Policy, capabilities: Capabilities | None, chain: Chain | None = None
) -> Verdict | None:
    """Return what MAIL is answered with, of an adapter that says no more than it knows."""
    session = Session("s1", "test")
    conversation = engine(policy, capabilities=capabilities).converse(session, chain=chain)
    verdict = await conversation.mail(SENDER)
    await conversation.close()
    return verdict


@in_loop
async def test_what_a_protocol_tells_late_is_none_before() -> None:
    seen: list[object] = []
    policy = Policy("p")

    @policy.connect
    async def connected(session: Session) -> None:
        seen.append(session.tls)

    conversation = converse(
        policy, capabilities={Stage.CONNECT: frozenset(), Stage.MAIL: frozenset({"tls"})}
    )
    assert await conversation.connect() is None
    assert seen == [None]
