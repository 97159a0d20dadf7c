"""What policies want to be asked, and what a protocol cannot do of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest

from mailgate.address import Address
from mailgate.chain import (
    UNKNOWN_VERBS,
    Capabilities,
    Chain,
    Defaults,
    Interest,
    Loaded,
    unmet,
    untold,
)
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Attempt, Session
from mailgate.stage import Stage
from mailgate.verdict import Verdict
from tests.core.asking import loaded

RDNS = ("rdns", "rdns_verified")
WITHHELD = ("user", "tls", *RDNS)


async def on_message(message: Message) -> Verdict | None: ...


async def sees_message(message: Message) -> None: ...


async def on_recipient(message: Message, recipient: Address) -> Verdict | None: ...


async def on_piece(message: Message, piece: bytes) -> Verdict | None: ...


async def on_session(session: Session) -> Verdict | None: ...


async def on_attempt(session: Session, attempt: Attempt) -> Verdict | None: ...


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
        verdicts=frozenset(),
        asked=frozenset(),
        refusing=frozenset(),
        content="none",
        verbs=frozenset(),
        observes_commands=False,
        needs=frozenset(),
        uses=frozenset(),
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


def test_what_is_needed_and_what_is_used() -> None:
    """A capability that is wanted is used where the protocol has it at that very stage."""
    made, other = Policy(), Policy()
    made.mail(needs={"tls"}, wants={"change_sender", "discard"})(on_message)
    made.rcpt(wants={"change_sender"})(on_recipient)
    other.message(needs={"auth"}, wants={"quarantine"})(on_message)
    able: Capabilities = {
        Stage.MAIL: frozenset({"tls", "change_sender", "params"}),
        Stage.RCPT: frozenset({"discard"}),
        Stage.MESSAGE: frozenset({"auth", "quarantine", "add_recipient"}),
    }
    wanted = Chain(loaded(made, other), able, Defaults()).interest
    assert wanted.needs == {"tls", "auth"}
    assert wanted.uses == {"tls", "auth", "change_sender", "quarantine"}
    everything = Chain(loaded(made, other), None, Defaults()).interest
    assert everything.needs == {"tls", "auth"}
    assert everything.uses == {"tls", "auth", "change_sender", "discard", "quarantine"}


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
    (bound,) = Chain(loaded(made), {Stage.MAIL: frozenset()}, Defaults()).at[Stage.MAIL]
    assert bound.granted == frozenset()


# -- what a protocol never asks ------------------------------------------------------------------


def test_a_handler_of_a_stage_that_is_not_there_is_left_out() -> None:
    made = policy(auth=on_attempt, helo=sees_session, mail=on_message, close=sees_session)
    chain = Chain(loaded(made), {Stage.MAIL: frozenset()}, Defaults())
    assert [stage for stage in Stage if chain.at[stage]] == [Stage.MAIL]
    assert chain.interest.asked == chain.interest.refusing == {Stage.MAIL}
    assert set(Chain(loaded(made), None, Defaults()).interest.asked) == {
        *(Stage.AUTH, Stage.HELO, Stage.MAIL, Stage.CLOSE)
    }


def commanded(here: Collection[str], *verbs: str) -> Interest:
    """Return what is wanted of a protocol that has the stage of commands."""
    made = Policy("p")
    made.command(*verbs, optional=True)(on_command)
    return Chain(loaded(made), {Stage.COMMAND: frozenset(here)}, Defaults()).interest


def test_verbs_that_cannot_be_answered_are_not_asked_for() -> None:
    assert commanded({"NOOP"}, "NOOP", "VRFY").verbs == {"NOOP"}
    assert commanded({UNKNOWN_VERBS}, "NOOP", "XYZZY").verbs == {"XYZZY"}
    assert commanded({UNKNOWN_VERBS, "NOOP"}, "NOOP", "XYZZY").verbs == {"NOOP", "XYZZY"}
    for here in ({UNKNOWN_VERBS}, {"NOOP"}, set[str]()):
        none = commanded(here, "VRFY")
        assert none.verbs == none.asked == none.answers == none.refusing == frozenset()


def test_those_that_look_on_are_asked_whatever_can_be_answered() -> None:
    made = Policy("p")
    made.command("VRFY")(sees_command)
    for here in ({UNKNOWN_VERBS}, {"NOOP"}, set[str]()):
        chain = Chain(loaded(made), {Stage.COMMAND: frozenset(here)}, Defaults())
        assert chain.interest.observes_commands
        assert chain.interest.answers == chain.interest.verbs == frozenset()


# -- a peer that can do less ---------------------------------------------------------------------


def less(*missing: str) -> Chain:
    """Return a chain for a peer that lacks what its protocol has."""
    made = Policy("p")
    made.mail(wants={"change_sender", "tls"}, timeout=3)(on_message)
    made.message(wants={"change_sender", "quarantine"}, on_error="reject")(on_message)
    able: Capabilities = dict.fromkeys(
        (Stage.MAIL, Stage.MESSAGE), frozenset({"change_sender", "quarantine", "tls"})
    )
    whole = Chain([Loaded(made, "name", timeout=7)], able, Defaults(timeout=2, on_error="defer"))
    chain = whole.without(frozenset(missing))
    assert whole.interest.uses == {"change_sender", "quarantine", "tls"}, "it was left alone"
    assert chain.policies == whole.policies
    assert chain.defaults == whole.defaults
    return chain


def test_what_a_peer_lacks_is_not_granted_at_any_stage() -> None:
    chain = less("change_sender")
    (mail,), (message,) = chain.at[Stage.MAIL], chain.at[Stage.MESSAGE]
    assert mail.granted == {"tls"}
    assert message.granted == {"quarantine"}
    assert chain.interest.uses == {"tls", "quarantine"}
    assert mail.declared == {"change_sender", "tls"}
    assert (mail.label, mail.timeout, message.on_error) == ("name.on_message", 3, "reject")


def test_a_peer_that_lacks_more_can_be_told_so_again() -> None:
    assert less("change_sender").without(frozenset({"tls"})).interest.uses == {"quarantine"}


def test_what_nobody_uses_is_not_missed() -> None:
    assert less("discard").interest.uses == {"change_sender", "quarantine", "tls"}


# -- what cannot be met --------------------------------------------------------------------------

ABLE: Capabilities = {
    Stage.CONNECT: frozenset(),
    Stage.MAIL: frozenset({"change_sender", "tls"}),
    Stage.RCPT: frozenset({"tls"}),
    Stage.MESSAGE: frozenset({"tls"}),
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


def test_what_only_looks_on_needs_the_stage_where_it_says_that_it_needs_something() -> None:
    """Never asked, it would go without what it was promised."""
    said = ["sees_session needs the stage helo"]
    assert missing(sees_session, "helo", needs={"tls"}) == said
    assert missing(sees_session, "helo", wants={"tls"}) == []
    assert missing(sees_session, "helo", needs={"tls"}, optional=True) == []


def test_an_optional_handler_still_needs_what_it_needs() -> None:
    """Where the stage is, it runs: then without what it was promised."""
    assert missing(on_message, "message", needs={"discard"}, optional=True)


def test_an_observer_needs_its_facts() -> None:
    assert missing(sees_message, "mail", needs={"auth"}) == ["sees_message needs auth"]


def commands(
    function: Callable[..., Any], *verbs: str, here: Collection[str] = ("NOOP",), **options: Any
) -> list[str]:
    made = Policy("p")
    made.command(*verbs, **options)(function)
    return [str(each) for each in unmet(loaded(made), {Stage.COMMAND: frozenset(here)})]


def test_verbs_are_capabilities() -> None:
    assert commands(on_command, "NOOP") == []
    assert commands(on_command, "NOOP", "VRFY") == ["on_command needs VRFY"]
    assert commands(on_command, "VRFY", optional=True) == []
    assert commands(sees_command) == []
    assert commands(sees_command, "VRFY") == []


def test_where_unknown_verbs_can_be_answered_a_known_one_is_named_to_be() -> None:
    """A milter is told of commands that the MTA does not know (SMFIC_UNKNOWN)."""
    here = {UNKNOWN_VERBS, "NOOP"}
    assert commands(on_command, "XYZZY", "ATRN", here=here) == []
    assert commands(on_command, "NOOP", "XYZZY", here=here) == []
    assert commands(on_command, "NOOP", "VRFY", "XYZZY", here=here) == ["on_command needs VRFY"]
    assert commands(on_command, "VRFY", "QUIT", here=here) == ["on_command needs QUIT, VRFY"]
    assert commands(on_command, "VRFY", optional=True, here=here) == []
    assert commands(sees_command, "VRFY", here=here) == []
    assert commands(on_command, "XYZZY", here=()) == ["on_command needs XYZZY"]


@pytest.mark.parametrize(
    "verb",
    [  # RFC 5321 4.1.1, 2033, 1985, 3030, 4954, 3207
        *("EHLO", "HELO", "MAIL", "RCPT", "DATA", "RSET", "VRFY", "EXPN", "HELP", "NOOP", "QUIT"),
        *("LHLO", "ETRN", "BDAT", "AUTH", "STARTTLS"),
        *("XCLIENT", "XFORWARD"),  # of Postfix: XCLIENT_README, XFORWARD_README
    ],
)
def test_what_a_server_knows(verb: str) -> None:
    needs = {"needs": {"tls"}}
    assert commands(on_command, verb, here={UNKNOWN_VERBS}) == [f"on_command needs {verb}"]
    assert commands(on_command, verb, here={UNKNOWN_VERBS}, **needs) == [
        f"on_command needs tls, {verb}"
    ]


def test_everything_that_is_missing_is_named_in_order() -> None:
    made = Policy("p")
    made.helo(on_session)
    made.message(needs={"discard"})(on_message)
    found = unmet([*loaded(made), *loaded(made)], ABLE)
    assert [each.handler.name for each in found] == ["on_session", "on_message"] * 2
    assert [each.needs for each in found[:2]] == [("the stage helo",), ("discard",)]


# -- what is told nowhere ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "facts", "fields"),
    [
        (None, set(), ()),
        ({}, {"credentials", "rdns", "tls", "auth", "params"}, WITHHELD),
        (
            {Stage.CONNECT: {"rdns"}, Stage.MAIL: {"tls", "discard"}, Stage.CLOSE: {"params"}},
            {"credentials", "auth"},
            ("user",),
        ),
        ({Stage.AUTH: {"credentials"}, Stage.DONE: {"auth", "tls", "params"}}, {"rdns"}, RDNS),
    ],
)
def test_what_a_protocol_never_tells(
    capabilities: dict[Stage, set[str]] | None, facts: set[str], fields: tuple[str, ...]
) -> None:
    """A fact that is told at any stage is known, or known to be none."""
    here = None if capabilities is None else {s: frozenset(c) for s, c in capabilities.items()}
    chain = Chain([], here, Defaults())
    assert untold(here) == chain.untold == facts
    assert chain.withheld == fields
    assert chain.without(frozenset({"discard"})).withheld == fields
