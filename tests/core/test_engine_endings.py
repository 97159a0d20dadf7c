"""How messages and sessions end, and what happens beside them."""

from __future__ import annotations

from typing import Literal

import pytest

from mailgate.chain import Loaded
from mailgate.headers import Section, parse_fields
from mailgate.message import Ending
from mailgate.policy import Policy
from mailgate.session import Attempt, Event, Session
from mailgate.stage import Stage
from mailgate.verdict import (
    Accept,
    Authenticated,
    Defer,
    Quarantine,
    Reject,
    Verdict,
)
from tests.core.asking import (
    FAILED,
    SECTION,
    SENDER,
    content,
    converse,
    engine,
    in_loop,
    to_data,
    to_headers,
)
from tests.core.recording import Asked, Ends, deliver

NO = Reject("no")


# -- done and close ------------------------------------------------------------------------------


@pytest.mark.parametrize("result", ["accepted", "refused", "aborted"])
@in_loop
async def test_how_a_message_ended_is_told_once_to_every_policy(
    result: Literal["accepted", "refused", "aborted"],
) -> None:
    ends = Ends()
    conversation = converse(ends.policy("a"), ends.policy("b"))
    await to_data(conversation)
    await conversation.finish(result)
    await conversation.finish("aborted")
    await conversation.close()
    assert ends.messages == [("a", Ending(result)), ("b", Ending(result))]
    assert ends.sessions == ["a", "b"]


@in_loop
async def test_those_that_accepted_or_were_not_asked_hear_of_the_end_too() -> None:
    ends, asked = Ends(), Asked()
    silent = asked.policy("a", {Stage.CONNECT: Accept(), Stage.MAIL: Accept()}, ends.policy("a"))
    refusing = asked.policy("b", {Stage.MAIL: NO}, ends.policy("b"))
    conversation = converse(
        Loaded(silent, "a"), Loaded(refusing, "b"), Loaded(ends.policy("c"), "c")
    )
    await conversation.connect()
    assert await conversation.mail(SENDER) == NO
    await conversation.finish("refused")
    await conversation.close()
    ending = Ending("refused", NO, "b.on_message")
    assert ends.messages == [("a", ending), ("b", ending), ("c", ending)]
    assert ends.sessions == ["a", "b", "c"]


@in_loop
async def test_after_done_a_silent_policy_is_silent_again() -> None:
    ends, asked = Ends(), Asked()
    policy = asked.policy("a", {Stage.CONNECT: Accept(), Stage.MAIL: NO}, ends.policy("a"))
    conversation = converse(policy)
    await conversation.connect()
    await conversation.mail(SENDER)
    await conversation.finish("accepted")
    assert await conversation.mail(SENDER) is None


@in_loop
async def test_a_connection_that_ends_aborts_its_message() -> None:
    ends = Ends()
    conversation = converse(ends.policy("a"))
    await to_data(conversation)
    await conversation.close()
    await conversation.close()
    assert ends.messages == [("a", Ending("aborted"))]
    assert ends.sessions == ["a"]


@in_loop
async def test_another_mail_aborts_the_message_before() -> None:
    ends = Ends()
    conversation = converse(ends.policy("a"))
    await to_data(conversation)
    assert await conversation.mail(SENDER) is None
    assert ends.messages == [("a", Ending("aborted"))]


@in_loop
async def test_an_aborted_message_was_refused_by_nobody() -> None:
    ends = Ends()
    policy = Asked().policy("a", {Stage.HEADERS: NO}, ends.policy("a"))
    conversation = converse(policy)
    await to_data(conversation)
    assert await conversation.headers(Section.of(parse_fields(SECTION))) == NO
    await conversation.finish("aborted")
    assert ends.messages == [("a", Ending("aborted"))]


@in_loop
async def test_a_held_message_ends_accepted_and_says_why() -> None:
    ends = Ends()
    policy = Asked().policy("a", {Stage.MESSAGE: Quarantine("odd")}, ends.policy("a"))
    conversation = converse(policy)
    await deliver(conversation)
    await conversation.finish("accepted")
    ending = Ending("accepted", Quarantine("odd"), "policy.on_message")
    assert ends.messages == [("a", ending)]


@in_loop
async def test_what_remains_is_released() -> None:
    conversation = converse(Policy())
    message = await to_headers(conversation)
    await conversation.end(content())
    message.state["key"] = conversation.session.state["key"] = "value"
    await conversation.finish("accepted")
    assert not message.state
    assert conversation.session.state
    with pytest.raises(Exception, match="body is known"):
        _ = message.body
    await conversation.close()
    assert not conversation.session.state


@in_loop
async def test_outgoing_sessions_are_not_closed_like_a_clients() -> None:
    ends = Ends()
    conversation = engine(ends.policy("a")).converse(Session("s1", "test", direction="out"))
    await conversation.close()
    assert ends.sessions == []


# -- the other stages ----------------------------------------------------------------------------


@in_loop
async def test_a_greeting_name_is_changed_or_left_by_a_failure() -> None:
    policy = Policy()

    @policy.helo(needs={"change_helo"}, on_error="continue")
    async def helo(session: Session) -> None:
        session.change_helo("new.example")
        if session.esmtp:
            raise RuntimeError

    conversation = converse(policy)
    assert await conversation.helo("old.example", False) is None
    assert conversation.session.helo == "new.example"
    assert await conversation.helo("old.example", True) is None
    assert conversation.session.helo == "old.example"


@in_loop
async def test_a_password_is_shown_to_those_who_declared_it() -> None:
    seen: list[tuple[str, str | None, str | None]] = []
    policy = Policy()

    @policy.auth
    async def without(session: Session, attempt: Attempt) -> None:
        seen.append(("without", attempt.user, attempt.password))

    @policy.auth(needs={"credentials", "authenticate"})
    async def declared(session: Session, attempt: Attempt) -> Authenticated | None:
        seen.append(("declared", attempt.user, attempt.password))
        return Authenticated("ann")

    @policy.auth(needs={"credentials"})
    async def after(session: Session, attempt: Attempt) -> None:
        seen.append(("after", None, None))

    conversation = converse(policy)
    attempt = Attempt("PLAIN", "ann", "s3cret")
    assert await conversation.auth(attempt) == Authenticated("ann")
    assert seen == [("without", "ann", None), ("declared", "ann", "s3cret")]


@in_loop
async def test_a_password_is_not_shown_where_the_protocol_does_not_tell() -> None:
    seen: list[str | None] = []
    policy = Policy()

    @policy.auth(wants={"credentials"})
    async def auth(session: Session, attempt: Attempt) -> None:
        seen.append(attempt.password)

    conversation = converse(policy, capabilities={Stage.AUTH: frozenset()})
    await conversation.auth(Attempt("PLAIN", "ann", "s3cret"))
    assert seen == [None]


@in_loop
async def test_commands_are_asked_by_verb_and_observed_by_all() -> None:
    seen: list[tuple[str, str, str]] = []
    policy = Policy()

    @policy.command("NOOP", "VRFY")
    async def some(session: Session, verb: str, argument: str) -> Verdict | None:
        seen.append(("some", verb, argument))
        return NO if verb == "VRFY" else None

    @policy.command()
    async def every(session: Session, verb: str, argument: str) -> None:
        seen.append(("every", verb, argument))

    conversation = converse(policy)
    assert await conversation.command("NOOP", "x") is None
    assert await conversation.command("VRFY", "ann") == NO
    assert await conversation.command("RSET") is None
    await conversation.observe("NOOP", "y")
    assert seen == [
        *(("some", "NOOP", "x"), ("every", "NOOP", "x"), ("some", "VRFY", "ann")),
        *(("every", "RSET", ""), ("every", "NOOP", "y")),
    ]


@in_loop
async def test_a_fault_while_observing_a_command_is_given_at_mail() -> None:
    policy = Policy()

    @policy.command()
    async def every(session: Session, verb: str, argument: str) -> None:
        raise RuntimeError

    conversation = converse(policy)
    await conversation.observe("NOOP")
    verdict = await conversation.mail(SENDER)
    assert isinstance(verdict, Defer)
    assert verdict.reply == FAILED["defer"]


@in_loop
async def test_events_are_told_to_all_who_listen() -> None:
    seen: list[tuple[str, str]] = []
    policies = []
    for name in "ab":
        policy = Policy(name)

        async def told(session: Session, event: Event, name: str = name) -> None:
            seen.append((name, event.name))
            raise RuntimeError

        policy.event(told)
        policies.append(policy)
    await converse(*policies).event(Event("greeting", {"hostname": "mx"}))
    assert seen == [("a", "greeting"), ("b", "greeting")]
