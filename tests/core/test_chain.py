"""What policies want to be asked, and what a protocol cannot do of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mailgate.address import Address
from mailgate.chain import Capabilities, Chain, Defaults, Interest, Loaded, unmet
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.stage import Stage
from mailgate.verdict import Verdict
from tests.core.asking import loaded


async def on_message(message: Message) -> Verdict | None: ...


async def sees_message(message: Message) -> None: ...


async def on_recipient(message: Message, recipient: Address) -> Verdict | None: ...


async def on_piece(message: Message, piece: bytes) -> Verdict | None: ...


async def on_session(session: Session) -> Verdict | None: ...


async def on_command(session: Session, verb: str, argument: str) -> Verdict | None: ...


async def sees_command(session: Session, verb: str, argument: str) -> None: ...


async def sees_session(session: Session) -> None: ...


def policy(**handlers: Callable[..., Any]) -> Policy:
    """Return a policy with a handler for each named stage."""
    made = Policy("p")
    for stage, function in handlers.items():
        getattr(made, stage)(function)
    return made


def interest(*policies: Policy | Loaded, defaults: Defaults | None = None) -> Interest:
    return Chain(loaded(*policies), None, defaults or Defaults()).interest


# -- interest ------------------------------------------------------------------------------------


def test_without_handlers_nothing_is_wanted() -> None:
    assert interest(Policy()) == Interest(
        answers=frozenset(),
        asked=frozenset(),
        refusing=frozenset(),
        content="none",
        verbs=frozenset(),
        observes_commands=False,
    )


@pytest.mark.parametrize(
    ("stages", "content"),
    [
        ({"mail": on_message, "data": on_message, "done": sees_message}, "none"),
        ({"headers": on_message}, "headers"),
        ({"body": on_piece}, "stream"),
        ({"message": on_message}, "buffer"),
        ({"message": on_message, "headers": on_message}, "buffer"),
        ({"headers": on_message, "body": on_piece}, "stream"),
        ({"message": sees_message}, "buffer"),
    ],
)
def test_content_is_taken_as_far_as_someone_reads_it(
    stages: dict[str, Callable[..., Any]], content: str
) -> None:
    assert interest(policy(**stages)).content == content


def test_interest_is_that_of_all_policies() -> None:
    both = interest(policy(mail=on_message), policy(headers=on_message, rcpt=on_recipient))
    assert both.answers == both.asked == {Stage.MAIL, Stage.HEADERS, Stage.RCPT}
    assert both.content == "headers"


def test_observers_are_asked_and_do_not_answer() -> None:
    seen = interest(policy(mail=sees_message, rcpt=on_recipient, close=sees_session))
    assert seen.asked == {Stage.MAIL, Stage.RCPT, Stage.CLOSE}
    assert seen.answers == {Stage.RCPT}


def test_an_observers_failure_is_to_be_answered_unless_it_fails_open() -> None:
    assert interest(policy(mail=sees_message)).refusing == {Stage.MAIL}
    defaults = Defaults(on_error="continue")
    assert interest(policy(mail=sees_message), defaults=defaults).refusing == frozenset()
    assert interest(policy(mail=on_message), defaults=defaults).refusing == {Stage.MAIL}
    made = Policy()
    made.mail(on_error="continue")(sees_message)
    assert interest(made).refusing == frozenset()
    own = Loaded(policy(mail=sees_message), "p", on_error="continue")
    assert interest(own).refusing == frozenset()


def test_what_only_looks_on_refuses_nothing() -> None:
    assert interest(policy(done=sees_message, close=sees_session)).refusing == frozenset()


def test_commands() -> None:
    made = Policy()
    made.command("NOOP", "vrfy")(on_command)
    made.command("RSET")(sees_command)
    wanted = interest(made)
    assert wanted.verbs == {"NOOP", "VRFY"}
    assert wanted.observes_commands
    only = Policy()
    only.command("NOOP")(on_command)
    assert not interest(only).observes_commands


# -- order and defaults --------------------------------------------------------------------------


def test_a_chain_keeps_the_order_of_its_policies() -> None:
    first, second = policy(mail=on_message, rcpt=on_recipient), policy(mail=sees_message)
    chain = Chain(loaded(first, second), None, Defaults())
    assert [bound.name for bound in chain.at[Stage.MAIL]] == ["on_message", "sees_message"]
    assert [bound.label for bound in chain.at[Stage.RCPT]] == ["p.on_recipient"]
    assert chain.at[Stage.DATA] == ()
    bits = [bound.bit for bound in chain.at[Stage.MAIL]]
    assert bits[0] != bits[1]


@pytest.mark.parametrize(
    ("own", "of_policy", "general", "word"),
    [
        ("reject", "continue", "defer", "reject"),
        (None, "continue", "defer", "continue"),
        (None, None, "reject", "reject"),
    ],
)
def test_the_nearest_on_error_wins(own: Any, of_policy: Any, general: Any, word: str) -> None:
    made = Policy()
    made.mail(**({"on_error": own} if own else {}))(on_message)
    chain = Chain([Loaded(made, "p", on_error=of_policy)], None, Defaults(on_error=general))
    assert chain.at[Stage.MAIL][0].on_error == word


@pytest.mark.parametrize(
    ("own", "of_policy", "seconds"), [(5, 7, 5), (None, 7, 7), (None, None, float("inf"))]
)
def test_the_nearest_timeout_wins(own: Any, of_policy: Any, seconds: float) -> None:
    made = Policy()
    made.mail(**({"timeout": own} if own else {}))(on_message)
    chain = Chain([Loaded(made, "p", timeout=of_policy)], None, Defaults())
    assert chain.at[Stage.MAIL][0].timeout == seconds


def test_granted_is_what_is_declared_and_possible_at_the_stage() -> None:
    made = Policy()
    made.mail(needs={"tls"}, wants={"change_sender", "discard"})(on_message)
    capabilities: Capabilities = {Stage.MAIL: frozenset({"tls", "change_sender", "auth"})}
    (bound,) = Chain(loaded(made), capabilities, Defaults()).at[Stage.MAIL]
    assert bound.granted == {"tls", "change_sender"}
    assert bound.declared == {"tls", "change_sender", "discard"}
    (bound,) = Chain(loaded(made), None, Defaults()).at[Stage.MAIL]
    assert bound.granted == bound.declared
    (bound,) = Chain(loaded(made), {}, Defaults()).at[Stage.MAIL]
    assert bound.granted == frozenset()


# -- what cannot be met --------------------------------------------------------------------------

ABLE: Capabilities = {
    Stage.CONNECT: frozenset(),
    Stage.MAIL: frozenset({"change_sender", "tls"}),
    Stage.RCPT: frozenset({"tls"}),
    Stage.MESSAGE: frozenset({"tls"}),
    Stage.COMMAND: frozenset({"NOOP"}),
}


def missing(function: Callable[..., Any], stage: str, **options: Any) -> list[str]:
    made = Policy("p")
    getattr(made, stage)(**options)(function)
    return [str(each) for each in unmet(loaded(made), ABLE)]


def test_what_can_be_met() -> None:
    assert missing(on_message, "mail", needs={"change_sender", "tls"}) == []
    assert missing(on_message, "message", wants={"change_sender", "discard"}) == []


def test_what_a_protocol_cannot_do_at_all() -> None:
    needs = {"quarantine", "discard"}
    assert missing(on_message, "message", needs=needs) == ["on_message needs discard, quarantine"]


def test_what_a_protocol_can_do_elsewhere() -> None:
    assert missing(on_message, "message", needs={"change_sender"}) == [
        "on_message needs change_sender (in mail only)"
    ]


def test_a_stage_that_a_protocol_lacks() -> None:
    assert missing(on_session, "helo") == ["on_session needs the stage helo"]
    assert missing(on_session, "helo", optional=True) == []
    assert missing(sees_session, "helo") == []


def test_an_optional_handler_still_needs_what_it_needs() -> None:
    """Where the stage is, it runs: then without what it was promised."""
    assert missing(on_message, "message", needs={"discard"}, optional=True)


def test_an_observer_needs_its_facts() -> None:
    assert missing(sees_message, "mail", needs={"auth"}) == ["sees_message needs auth"]


def commands(function: Callable[..., Any], *verbs: str, **options: Any) -> list[str]:
    made = Policy("p")
    made.command(*verbs, **options)(function)
    return [str(each) for each in unmet(loaded(made), ABLE)]


def test_verbs_are_capabilities() -> None:
    assert commands(on_command, "NOOP") == []
    assert commands(on_command, "NOOP", "VRFY") == ["on_command needs VRFY"]
    assert commands(on_command, "VRFY", optional=True) == []
    assert commands(sees_command) == []
    assert commands(sees_command, "VRFY") == []


def test_everything_that_is_missing_is_named_in_order() -> None:
    made = Policy("p")
    made.helo(on_session)
    made.message(needs={"discard"})(on_message)
    found = unmet([*loaded(made), *loaded(made)], ABLE)
    assert [each.handler.name for each in found] == ["on_session", "on_message"] * 2
    assert [each.needs for each in found[:2]] == [("the stage helo",), ("discard",)]
