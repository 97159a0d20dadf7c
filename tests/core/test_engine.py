"""Which handlers are asked, in which order, and how far an answer reaches."""

from __future__ import annotations

import pytest

from mailgate.address import Address
from mailgate.headers import Section, parse_fields
from mailgate.message import Ending, Message
from mailgate.policy import Policy
from mailgate.session import Attempt, Session
from mailgate.stage import Stage
from mailgate.verdict import (
    Accept,
    Defer,
    Discard,
    Disconnect,
    Quarantine,
    Reject,
    Verdict,
)
from tests.core.asking import (
    BODY,
    FAILED,
    RECIPIENT,
    SECTION,
    SENDER,
    content,
    converse,
    in_loop,
    to_data,
    to_headers,
    to_mail,
)
from tests.core.recording import WHOLE, Asked, Ends, deliver, greet

NO = Reject("no")


# -- order ---------------------------------------------------------------------------------------


@in_loop
async def test_policies_are_asked_in_order_at_every_stage() -> None:
    asked = Asked()
    conversation = converse(asked.policy("a", WHOLE), asked.policy("b", WHOLE))
    await greet(conversation)
    assert await deliver(conversation) is None
    assert asked == [f"{name}.{stage}" for stage in WHOLE for name in "ab"]


@in_loop
async def test_handlers_of_a_stage_are_asked_in_source_order() -> None:
    asked, policy = Asked(), Policy()
    for name in ("one", "two", "three"):
        asked.policy(name, {Stage.MAIL: None}, policy)
    await to_mail(converse(policy))
    assert asked == ["one.mail", "two.mail", "three.mail"]


@pytest.mark.parametrize("stage", [stage for stage in WHOLE if stage is not Stage.RCPT])
@in_loop
async def test_the_first_refusal_wins(stage: Stage) -> None:
    asked = Asked()
    first = asked.policy("a", {stage: NO})
    asked.policy("a2", {stage: Reject("second")}, first)
    conversation = converse(first, asked.policy("b", WHOLE | {stage: Reject("third")}))
    await greet(conversation)
    assert await deliver(conversation) == NO
    before = [f"b.{s}" for s in list(WHOLE)[: list(WHOLE).index(stage)]]
    assert asked == [*before, f"a.{stage}"]


@pytest.mark.parametrize("verdict", [NO, Defer("later"), Disconnect("bye")])
@in_loop
async def test_a_refused_command_is_answered_at_once(verdict: Verdict) -> None:
    conversation = converse(Asked().policy("a", {Stage.DATA: verdict}))
    await to_mail(conversation)
    await conversation.rcpt(RECIPIENT)
    assert await conversation.data() == verdict


# -- accept --------------------------------------------------------------------------------------


@in_loop
async def test_accept_silences_its_own_policy_only() -> None:
    asked = Asked()
    first = asked.policy("a", {**WHOLE, Stage.RCPT: Accept()})
    asked.policy("a2", {Stage.RCPT: NO, Stage.MESSAGE: NO}, first)
    conversation = converse(first, asked.policy("b", {Stage.RCPT: None, Stage.MESSAGE: None}))
    await greet(conversation)
    assert await deliver(conversation) is None
    assert asked == ["a.connect", "a.helo", "a.mail", "a.rcpt", "b.rcpt", "b.message"]


@in_loop
async def test_accept_is_for_the_rest_of_this_message() -> None:
    asked = Asked()
    conversation = converse(asked.policy("a", {Stage.MAIL: Accept(), Stage.RCPT: None}))
    for _ in range(2):
        await deliver(conversation)
        await conversation.finish("accepted")
    assert asked == ["a.mail", "a.mail"]


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.HELO])
@in_loop
async def test_accept_before_a_message_is_for_the_connection(stage: Stage) -> None:
    asked = Asked()
    conversation = converse(asked.policy("a", {stage: Accept(), Stage.MAIL: NO}))
    await greet(conversation)
    for _ in range(2):
        assert await deliver(conversation) is None
        await conversation.finish("accepted")
    assert asked == [f"a.{stage}"]


@in_loop
async def test_an_included_policy_is_silenced_with_its_host() -> None:
    """Include: one filter of two.  A chain: two filters."""
    asked = Asked()
    whitelist = asked.policy("list", {Stage.RCPT: Accept()})
    scanner = asked.policy("scan", {Stage.MESSAGE: NO})
    assert await deliver(converse(whitelist, scanner)) == NO
    whitelist.include(scanner)
    assert await deliver(converse(whitelist)) is None
    assert asked == ["list.rcpt", "scan.message", "list.rcpt"]


# -- how far a refusal reaches -------------------------------------------------------------------


@in_loop
async def test_a_refusal_at_connect_stands_for_the_connection() -> None:
    asked = Asked()
    conversation = converse(asked.policy("a", {Stage.CONNECT: NO, Stage.MAIL: None}))
    assert await conversation.connect() == NO
    for _ in range(2):
        await conversation.helo("client.example")
        assert await conversation.mail(SENDER) == NO
        assert await conversation.rcpt(RECIPIENT) == NO
        assert await conversation.data() == NO
        assert await conversation.end() == NO
        await conversation.finish("refused")
    assert asked == ["a.connect"]


@in_loop
async def test_a_refusal_at_helo_stands_until_the_next_one() -> None:
    answers: list[Verdict | None] = [NO, None]
    policy = Policy()

    @policy.helo
    async def helo(session: Session) -> Verdict | None:
        return answers.pop(0)

    conversation = converse(policy)
    assert await conversation.helo("bad.example") == NO
    assert await conversation.mail(SENDER) == NO
    await conversation.finish("refused")
    assert await conversation.helo("good.example", True) is None
    assert await conversation.mail(SENDER) is None
    assert conversation.session.helo == "good.example"
    assert conversation.session.esmtp is True


@pytest.mark.parametrize("stage", [Stage.STARTTLS, Stage.AUTH, Stage.COMMAND])
@in_loop
async def test_a_refused_command_of_the_session_is_over_with_it(stage: Stage) -> None:
    policy = Policy()

    @policy.starttls
    async def starttls(session: Session) -> Verdict | None:
        return NO

    @policy.auth
    async def auth(session: Session, attempt: Attempt) -> Verdict | None:
        return NO

    @policy.command("NOOP")
    async def noop(session: Session, verb: str, argument: str) -> Verdict | None:
        return NO

    conversation = converse(policy)
    match stage:
        case Stage.STARTTLS:
            assert await conversation.starttls() == NO
        case Stage.AUTH:
            assert await conversation.auth(Attempt("PLAIN")) == NO
        case _:
            assert await conversation.command("NOOP") == NO
    await to_mail(conversation)


@in_loop
async def test_a_refused_recipient_is_that_recipient_only() -> None:
    policy = Policy()

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Verdict | None:
        return NO if recipient.local == "bad" else None

    conversation = converse(policy)
    message = await to_mail(conversation)
    good, bad = Address("good@example.org"), Address("bad@example.org")
    replies = [await conversation.rcpt(r) for r in (bad, good, bad)]
    assert replies == [NO, None, NO]
    assert message.recipients == message.original_recipients == (good,)
    assert await conversation.data() is None
    assert await conversation.end(content()) is None


@in_loop
async def test_a_refused_message_is_refused_to_its_end() -> None:
    asked = Asked()
    conversation = converse(asked.policy("a", {**WHOLE, Stage.HEADERS: NO}))
    await to_data(conversation)
    assert await conversation.headers(Section.of(parse_fields(SECTION))) == NO
    assert await conversation.body(BODY) == NO
    assert await conversation.end(content()) == NO
    assert conversation.verdict == NO
    assert asked[-1] == "a.headers"


@in_loop
async def test_the_next_message_begins_anew() -> None:
    asked = Asked()
    conversation = converse(asked.policy("a", {Stage.MAIL: NO}))
    for _ in range(2):
        assert await conversation.mail(SENDER) == NO
        await conversation.finish("refused")
    assert asked == ["a.mail", "a.mail"]
    assert conversation.verdict is None


@in_loop
async def test_a_refused_data_command_can_be_tried_again() -> None:
    """The transaction goes on: a client may add a recipient (RFC 5321 4.1.1.4)."""
    answers: list[Verdict | None] = [NO, Reject("again"), None]
    policy = Policy()

    @policy.data
    async def data(message: Message) -> Verdict | None:
        return answers.pop(0)

    conversation = converse(policy)
    message = await to_mail(conversation)
    await conversation.rcpt(RECIPIENT)
    assert await conversation.data() == NO
    assert await conversation.data() == Reject("again")
    assert await conversation.rcpt(Address("more@example.org")) is None
    assert await conversation.data() is None
    assert len(message.recipients) == 2
    assert await conversation.end(content()) is None


@in_loop
async def test_a_message_that_ends_with_a_refused_data_was_refused() -> None:
    ends = Ends()
    policy = Asked().policy("a", {Stage.DATA: NO}, ends.policy("a"))
    conversation = converse(policy)
    await deliver(conversation)
    await conversation.finish("aborted")
    assert ends.messages == [("a", Ending("refused", NO, "policy.on_message"))]


@pytest.mark.parametrize("verdict", [Discard("junk"), Quarantine("odd")])
@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.HEADERS, Stage.BODY])
@in_loop
async def test_what_is_dropped_or_held_is_decided_and_still_taken(
    stage: Stage, verdict: Verdict
) -> None:
    """Other handlers are not asked any more; the client hears of nothing until the end."""
    asked = Asked()
    conversation = converse(asked.policy("a", {**WHOLE, stage: verdict}))
    await greet(conversation)
    assert await conversation.mail(SENDER) in (None, verdict)
    message = conversation.message
    assert message is not None
    for recipient in (RECIPIENT, Address("more@example.org")):
        assert await conversation.rcpt(recipient) in (None, verdict)
    assert await conversation.data() in (None, verdict)
    await conversation.headers(Section.of(parse_fields(SECTION)))
    await conversation.body(BODY)
    assert await conversation.end(content()) == verdict
    assert message.recipients == (RECIPIENT, "more@example.org")
    assert asked[-1] == f"a.{stage}"
    assert asked.count(f"a.{stage}") == 1


# -- what a wire could not carry -----------------------------------------------------------------


@pytest.mark.parametrize(
    "stage", [Stage.CONNECT, Stage.STARTTLS, Stage.AUTH, Stage.COMMAND, Stage.HELO]
)
@in_loop
async def test_a_verdict_of_the_session_is_remembered_for_mail(stage: Stage) -> None:
    conversation = converse(Asked().policy("a", {Stage.MAIL: None}))
    conversation.remember(stage, None)
    assert await conversation.mail(SENDER) is None
    conversation.remember(stage, NO)
    assert await conversation.mail(SENDER) == NO
    await conversation.finish("refused")
    await conversation.helo("other.example")
    assert await conversation.mail(SENDER) == (None if stage is Stage.HELO else NO)


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.HEADERS])
@in_loop
async def test_a_verdict_of_the_message_is_remembered_for_its_end(stage: Stage) -> None:
    asked = Asked()
    conversation = converse(asked.policy("a", {Stage.MESSAGE: None}))
    await to_headers(conversation)
    conversation.remember(stage, NO)
    conversation.remember(stage, Reject("later"))
    assert await conversation.end(content()) == NO
    assert asked == []
    await conversation.finish("refused")
    assert await deliver(conversation) is None


@in_loop
async def test_a_reason_of_the_wire_refuses_the_message() -> None:
    ends = Ends()
    conversation = converse(ends.policy("a"))
    conversation.refuse(NO, "too early, there is no message")
    await to_headers(conversation)
    conversation.refuse(NO, "limits.memory")
    conversation.refuse(Reject("other"), "other")
    assert await conversation.end(content()) == NO
    await conversation.finish("refused")
    assert ends.messages == [("a", Ending("refused", NO, "limits.memory"))]


# -- facts without a question --------------------------------------------------------------------


@in_loop
async def test_a_command_may_pass_unasked() -> None:
    asked = Asked()
    conversation = converse(asked.policy("a", {Stage.MAIL: NO, Stage.RCPT: NO}))
    assert await conversation.mail(SENDER, ask=False) is None
    assert await conversation.rcpt(RECIPIENT, ask=False) is None
    assert conversation.message is not None
    assert conversation.message.recipients == (RECIPIENT,)
    assert asked == []


@pytest.mark.parametrize("step", ["rcpt", "data", "headers", "body", "end"])
@in_loop
async def test_without_a_message_nothing_is_accepted(step: str) -> None:
    """A server that asks out of order must not get mail past the policy."""
    conversation = converse(Asked().policy("a", WHOLE))
    arguments: dict[str, list[object]] = {"rcpt": [RECIPIENT], "headers": [[]], "body": [b""]}
    verdict = await getattr(conversation, step)(*arguments.get(step, []))
    assert verdict.reply == FAILED["defer"]
    await conversation.finish("accepted")


@in_loop
async def test_a_message_has_the_servers_id_or_one_of_its_own() -> None:
    conversation = converse(Policy())
    await conversation.mail(SENDER, "4F2A")
    assert conversation.message is not None
    assert conversation.message.id == "4F2A"
    ids = set()
    for _ in range(3):
        await conversation.mail(SENDER)
        ids.add(conversation.message.id)
    assert len(ids) == 3
    assert all(id.startswith("s1.") for id in ids)
