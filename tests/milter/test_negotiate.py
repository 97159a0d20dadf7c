"""What is asked of an MTA: from the policy's handlers to the bits of OPTNEG."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate import Address, Message, Policy, Reject, Session
from mailgate.chain import Chain, Defaults, Loaded
from mailgate_milter.negotiate import CAPABILITIES, SYMBOLS, Unsuitable, agree
from mailgate_milter.wire import (
    Action,
    Command,
    Decoder,
    MacroStage,
    Negotiated,
    Offer,
    Response,
    Step,
    WireError,
    parse_negotiated,
)

POSTFIX = Offer(6, 0x1FF, 0x1FFFFF)
SENDMAIL = POSTFIX  # Debian's of both offer the same
WITH_CHUNKS = Offer(6, 0x1FF, 0x301FFFFF)

EVENTS = (
    Step.NOHELO | Step.NOMAIL | Step.NORCPT | Step.NODATA | Step.NOHDRS | Step.NOEOH | Step.NOBODY
) | Step.NOUNKNOWN
UNANSWERED = (
    Step.NR_CONN | Step.NR_HELO | Step.NR_MAIL | Step.NR_RCPT | Step.NR_DATA | Step.NR_HDR
) | (Step.NR_EOH | Step.NR_BODY | Step.NR_UNKN)
HEADER_EDITS = Action.ADDHDRS | Action.CHGHDRS


def chain(*policies: Policy) -> Chain:
    loaded = [Loaded(policy, f"policy{at}") for at, policy in enumerate(policies)]
    return Chain(loaded, CAPABILITIES, Defaults())


def answered(policy: Policy, offered: Offer = POSTFIX) -> Negotiated:
    """Return what a filter with this policy answers to an offer."""
    _, plan = agree(chain(policy), offered)
    ((code, data),) = Decoder(Response).receive_data(plan.packet)
    assert code == Response.OPTNEG
    return parse_negotiated(data)


# -- policies ------------------------------------------------------------------------------------


def at_connect() -> Policy:
    policy = Policy()

    @policy.connect
    async def look(session: Session) -> Reject | None:
        return None

    return policy


def at_mail() -> Policy:
    policy = Policy()

    @policy.mail
    async def look(message: Message) -> Reject | None:
        return None

    return policy


def sees_mail() -> Policy:
    policy = Policy()

    @policy.mail
    async def look(message: Message) -> None: ...

    return policy


def fails_open_at_mail() -> Policy:
    policy = Policy()

    @policy.mail(on_error="continue")
    async def look(message: Message) -> None: ...

    return policy


def at_rcpt() -> Policy:
    policy = Policy()

    @policy.rcpt
    async def look(message: Message, recipient: Address) -> Reject | None:
        return None

    return policy


def at_data() -> Policy:
    policy = Policy()

    @policy.data
    async def look(message: Message) -> Reject | None:
        return None

    return policy


def at_headers() -> Policy:
    policy = Policy()

    @policy.headers
    async def look(message: Message) -> Reject | None:
        return None

    return policy


def at_body() -> Policy:
    policy = Policy()

    @policy.body
    async def look(message: Message, piece: bytes) -> Reject | None:
        return None

    return policy


def sees_body() -> Policy:
    policy = Policy()

    @policy.body
    async def look(message: Message, piece: bytes) -> None: ...

    return policy


def at_message() -> Policy:
    policy = Policy()

    @policy.message
    async def look(message: Message) -> Reject | None:
        return None

    return policy


def rewrites() -> Policy:
    policy = Policy()

    @policy.message(needs={"change_sender", "add_recipient"}, wants={"quarantine"})
    async def rewrite(message: Message) -> None: ...

    return policy


def answers_unknown() -> Policy:
    policy = Policy()

    @policy.command("XFOO")
    async def refuse(session: Session, verb: str, argument: str) -> Reject | None:
        return None

    return policy


def looks_on() -> Policy:
    policy = Policy()

    @policy.event
    async def event(session: Session, event: object) -> None: ...

    return policy


# -- events and answers --------------------------------------------------------------------------

LEFT_OUT: list[tuple[Callable[[], Policy], Step, Step]] = [
    (at_connect, EVENTS & ~(Step.NOMAIL), UNANSWERED & ~(Step.NR_CONN | Step.NR_MAIL)),
    (at_mail, EVENTS & ~(Step.NOHELO | Step.NOMAIL), UNANSWERED & ~Step.NR_MAIL),
    (sees_mail, EVENTS & ~(Step.NOHELO | Step.NOMAIL), UNANSWERED),
    (fails_open_at_mail, EVENTS & ~(Step.NOHELO | Step.NOMAIL), UNANSWERED),
    (
        at_rcpt,
        EVENTS & ~(Step.NOHELO | Step.NOMAIL | Step.NORCPT),
        UNANSWERED & ~Step.NR_RCPT,
    ),
    (
        at_data,
        EVENTS & ~(Step.NOHELO | Step.NOMAIL | Step.NORCPT | Step.NODATA),
        UNANSWERED & ~Step.NR_DATA,
    ),
    (at_headers, Step.NODATA | Step.NOBODY | Step.NOUNKNOWN, UNANSWERED & ~Step.NR_EOH),
    (at_body, Step.NODATA | Step.NOUNKNOWN, UNANSWERED & ~Step.NR_BODY),
    (sees_body, Step.NODATA | Step.NOUNKNOWN, UNANSWERED),
    (at_message, Step.NODATA | Step.NOUNKNOWN, UNANSWERED),
    (
        answers_unknown,
        EVENTS & ~(Step.NOHELO | Step.NOMAIL | Step.NOUNKNOWN),
        UNANSWERED & ~(Step.NR_UNKN | Step.NR_MAIL),
    ),
]


@pytest.mark.parametrize(("policy", "no", "unanswered"), LEFT_OUT)
def test_what_nobody_looks_at_is_left_out_and_what_nobody_refuses_is_not_answered(
    policy: Callable[[], Policy], no: Step, unanswered: Step
) -> None:
    steps = Step(answered(policy()).steps)
    assert steps & EVENTS == no
    assert steps & UNANSWERED == unanswered


def test_the_client_is_always_told_and_the_end_of_a_message_always_asked() -> None:
    for policy, _, _ in LEFT_OUT:
        assert not answered(policy()).steps & Step.NOCONNECT
        _, plan = agree(chain(policy()), POSTFIX)
        assert Command.EOM in plan.answered


def test_the_rest_of_a_body_is_skipped_only_where_it_is_answered() -> None:
    assert answered(at_body()).steps & Step.SKIP
    assert not answered(at_message()).steps & Step.SKIP
    assert not answered(sees_body()).steps & Step.SKIP


def test_rejected_recipients_are_wanted_by_those_who_look_on() -> None:
    assert answered(looks_on()).steps & Step.RCPT_REJ
    assert not answered(at_rcpt()).steps & Step.RCPT_REJ


def test_spaces_before_values_are_wanted_where_fields_are() -> None:
    assert answered(at_headers()).steps & Step.HDR_LEADSPC
    assert not answered(at_rcpt()).steps & Step.HDR_LEADSPC


def test_bigger_pieces_are_taken_where_they_are_offered_and_the_body_is_wanted() -> None:
    steps = Step(answered(at_message(), WITH_CHUNKS).steps)
    assert steps & (Step.MDS_1M | Step.MDS_256K) == Step.MDS_1M
    assert not answered(at_headers(), WITH_CHUNKS).steps & Step.MDS_1M
    assert not answered(at_message()).steps & Step.MDS_1M
    _, plan = agree(chain(at_message()), WITH_CHUNKS)
    assert plan.chunk == 1_048_575


# -- actions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (at_rcpt, Action(0)),
        (at_headers, HEADER_EDITS),
        (at_message, HEADER_EDITS | Action.CHGBODY),
        (
            rewrites,
            (HEADER_EDITS | Action.CHGBODY | Action.CHGFROM | Action.ADDRCPT)
            | (Action.ADDRCPT_PAR | Action.QUARANTINE),
        ),
    ],
)
def test_only_the_actions_of_the_policies(policy: Callable[[], Policy], wanted: Action) -> None:
    assert Action(answered(policy()).actions) & ~Action.SETSYMLIST == wanted


def test_what_a_policy_needs_and_is_not_offered_is_refused_by_name() -> None:
    with pytest.raises(Unsuitable, match="need: add_recipient, change_sender; with wants="):
        agree(chain(rewrites()), Offer(6, HEADER_EDITS | Action.CHGBODY, 0x1FFFFF))


def test_what_a_policy_wants_and_is_not_offered_it_does_without() -> None:
    here, _ = agree(chain(rewrites()), POSTFIX)
    less, plan = agree(chain(rewrites()), Offer(6, 0x1FF & ~Action.QUARANTINE, 0x1FFFFF))
    assert here.interest.uses - less.interest.uses == {"quarantine"}
    assert plan.with_arguments


@pytest.mark.parametrize("policy", [at_headers, at_message])
def test_content_that_could_not_be_edited_is_refused(policy: Callable[[], Policy]) -> None:
    with pytest.raises(Unsuitable, match="ADDHDRS"):
        agree(chain(policy()), Offer(6, 0, 0x1FFFFF))


# -- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offered", "wanted"), [(2, 2), (3, 3), (4, 4), (6, 6), (7, 6), (99, 6)])
def test_the_lower_version_is_answered(offered: int, wanted: int) -> None:
    assert answered(at_message(), Offer(offered, 0x1FF, 0x1FFFFF)).version == wanted


@pytest.mark.parametrize("version", [0, 1])
def test_older_ones_are_refused(version: int) -> None:
    with pytest.raises(WireError, match=f"version {version} "):
        agree(chain(at_rcpt()), Offer(version, 0x0F, 0))


def test_an_old_mta_gets_every_event_answered() -> None:
    _, plan = agree(chain(at_message()), Offer(2, 0x3F, 0x7F))
    events = {Command.CONNECT, Command.HELO, Command.MAIL, Command.RCPT, Command.HEADER}
    assert events | {Command.EOH, Command.BODY, Command.EOM} <= plan.answered
    assert not plan.leading_space


@given(
    version=st.integers(2, 6),
    actions=st.integers(0, 0x1FF).map(lambda bits: bits | 0x13),
    steps=st.integers(0, 0xFFFFFFFF),
    policy=st.sampled_from([policy for policy, _, _ in LEFT_OUT]),
)
def test_never_what_was_not_offered(
    version: int, actions: int, steps: int, policy: Callable[[], Policy]
) -> None:
    """Sendmail takes it for a fault of the filter."""
    agreed = answered(policy(), Offer(version, actions, steps))
    assert agreed.version <= version
    assert agreed.actions & ~actions == 0
    assert agreed.steps & ~steps == 0
    assert not agreed.symbols or actions & Action.SETSYMLIST


# -- macros --------------------------------------------------------------------------------------


def test_macros_are_asked_for_where_their_event_is_sent() -> None:
    assert set(answered(at_message()).symbols) == set(MacroStage) - {MacroStage.DATA}
    assert set(answered(at_connect()).symbols) == {
        MacroStage.CONNECT,
        MacroStage.MAIL,
        MacroStage.EOM,
    }


def test_every_list_of_macros_is_asked_for_whole() -> None:
    found = answered(looks_on()).symbols
    wanted = {int(stage): list(names) for stage, names in SYMBOLS.items()}
    assert found == {stage: names for stage, names in wanted.items() if stage in found}
    assert "{client_addr}" in found[MacroStage.CONNECT]


def test_no_list_of_macros_where_none_may_be_set() -> None:
    assert answered(at_message(), Offer(6, 0xFF, 0x1FFFFF)).symbols == {}
