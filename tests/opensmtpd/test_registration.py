"""What smtpd is asked for: all that the policies need, and not a line of mail more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mailgate.address import Address
from mailgate.chain import Chain, Defaults, Interest, Loaded
from mailgate.errors import ConfigError
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Attempt, Event, Session
from mailgate.stage import MESSAGE_STAGES, Stage
from mailgate.verdict import Verdict
from mailgate_opensmtpd.registration import (
    CAPABILITIES,
    check_release,
    phases,
    registration,
    reports,
)
from mailgate_opensmtpd.wire import EVENTS, OUTGOING, PHASES


async def on_session(session: Session) -> Verdict | None: ...


async def sees_session(session: Session) -> None: ...


async def on_attempt(session: Session, attempt: Attempt) -> Verdict | None: ...


async def sees_attempt(session: Session, attempt: Attempt) -> None: ...


async def on_message(message: Message) -> Verdict | None: ...


async def sees_message(message: Message) -> None: ...


async def on_recipient(message: Message, recipient: Address) -> Verdict | None: ...


async def sees_recipient(message: Message, recipient: Address) -> None: ...


async def on_piece(message: Message, piece: bytes) -> Verdict | None: ...


async def on_command(session: Session, verb: str, argument: str) -> Verdict | None: ...


async def sees_command(session: Session, verb: str, argument: str) -> None: ...


async def sees_event(session: Session, event: Event) -> None: ...


ANSWERS: dict[Stage, Callable[..., Any]] = {
    **dict.fromkeys((Stage.CONNECT, Stage.HELO, Stage.STARTTLS), on_session),
    Stage.AUTH: on_attempt,
    **dict.fromkeys((Stage.MAIL, Stage.DATA, Stage.HEADERS, Stage.MESSAGE), on_message),
    Stage.RCPT: on_recipient,
    Stage.BODY: on_piece,
}
SEES: dict[Stage, Callable[..., Any]] = {
    **dict.fromkeys((Stage.CONNECT, Stage.HELO, Stage.STARTTLS), sees_session),
    Stage.AUTH: sees_attempt,
    **dict.fromkeys((Stage.MAIL, Stage.DATA), sees_message),
    Stage.RCPT: sees_recipient,
}


def interest(policy: Policy) -> Interest:
    return Chain([Loaded(policy, "p")], CAPABILITIES, Defaults()).interest


def wanting(stage: Stage, function: Callable[..., Any], **options: Any) -> Interest:
    policy = Policy()
    getattr(policy, stage)(**options)(function)
    return interest(policy)


# -- phases --------------------------------------------------------------------------------------

OWN_PHASES = {
    Stage.CONNECT: {"connect"},
    Stage.HELO: {"helo", "ehlo"},
    Stage.STARTTLS: {"starttls"},
    Stage.AUTH: {"auth"},
    Stage.MAIL: {"mail-from"},
    Stage.RCPT: {"rcpt-to"},
    Stage.DATA: {"data"},
    Stage.HEADERS: {"data-line"},
    Stage.BODY: {"data-line"},
    Stage.MESSAGE: {"data-line"},
}


@pytest.mark.parametrize("stage", OWN_PHASES)
def test_an_answer_is_given_in_its_own_phase_or_at_the_next_possible_one(stage: Stage) -> None:
    asked = set(phases(wanting(stage, ANSWERS[stage])))
    session = {Stage.CONNECT, Stage.HELO, Stage.STARTTLS, Stage.AUTH}
    later = {"mail-from", "commit"} if stage in session else {"commit"}
    assert asked == OWN_PHASES[stage] | later


@pytest.mark.parametrize("stage", SEES)
def test_an_observers_failure_is_answered_later(stage: Stage) -> None:
    asked = set(phases(wanting(stage, SEES[stage])))
    assert "commit" in asked
    assert not asked & (OWN_PHASES[stage] - {"mail-from"})
    assert phases(wanting(stage, SEES[stage], on_error="continue")) == []


def test_who_only_hears_of_the_end_asks_nothing() -> None:
    assert phases(wanting(Stage.DONE, sees_message)) == []
    assert phases(wanting(Stage.CLOSE, sees_session)) == []
    assert phases(wanting(Stage.EVENT, sees_event)) == []


@pytest.mark.parametrize("stage", [s for s in OWN_PHASES if s not in (Stage.HEADERS, Stage.BODY)])
def test_no_line_of_mail_crosses_the_pipe_unless_it_is_read(stage: Stage) -> None:
    """Older releases of smtpd damage long lines as soon as data-line is registered."""
    asked = phases(wanting(stage, ANSWERS[stage]))
    assert ("data-line" in asked) is (stage is Stage.MESSAGE)


def test_verbs_are_phases() -> None:
    policy = Policy()
    policy.command("noop", "QUIT")(on_command)
    asked = phases(interest(policy))
    assert {"noop", "quit"} <= set(asked)
    assert "rset" not in asked
    seen = Policy()
    seen.command()(sees_command)
    assert not {"noop", "quit", "rset"} & set(phases(interest(seen)))


def everything() -> Policy:
    policy = Policy()
    for stage, function in ANSWERS.items():
        getattr(policy, stage)(function)
    policy.command("NOOP", "RSET", "QUIT")(on_command)
    policy.done(sees_message)
    policy.close(sees_session)
    policy.event(sees_event)
    return policy


def test_phases_are_in_the_protocols_order() -> None:
    assert tuple(phases(interest(everything()))) == PHASES


# -- reports -------------------------------------------------------------------------------------


ENDS: dict[Stage, Callable[..., Any]] = {Stage.DONE: sees_message, Stage.CLOSE: sees_session}


@pytest.mark.parametrize(("stage", "function"), [*ANSWERS.items(), *ENDS.items()])
def test_sessions_begin_and_end_with_reports(stage: Stage, function: Callable[..., Any]) -> None:
    assert {"link-connect", "link-disconnect"} <= set(reports(wanting(stage, function)))


FACTS = {
    "helo": "link-identify",
    "tls": "link-tls",
    "auth": "link-auth",
    "params": "protocol-client",
    "id": "tx-begin",
    "sender": "tx-mail",
    "recipients": "tx-rcpt",
    "end": "tx-commit",
    "abort": "tx-rollback",
    "reset": "tx-reset",
}


@pytest.mark.parametrize("stage", sorted(MESSAGE_STAGES))
def test_facts_of_a_message_are_reported(stage: Stage) -> None:
    assert set(FACTS.values()) <= set(reports(wanting(stage, ANSWERS[stage])))
    assert set(FACTS.values()) <= set(reports(wanting(Stage.DONE, sees_message)))


def test_who_asks_at_connect_only_hears_little() -> None:
    heard = set(reports(wanting(Stage.CONNECT, on_session)))
    assert not heard & {"protocol-client", "protocol-server", "tx-data", "tx-envelope"}
    assert "protocol-client" not in reports(wanting(Stage.HELO, on_session))


def test_what_an_earlier_filter_decides_is_heard_of_where_we_answer() -> None:
    assert "filter-response" in reports(wanting(Stage.MAIL, on_message))
    assert "filter-response" not in reports(wanting(Stage.DONE, sees_message))


@pytest.mark.parametrize(
    ("stage", "report"),
    [
        (Stage.DATA, "tx-data"),
        (Stage.STARTTLS, "protocol-client"),
        (Stage.AUTH, "protocol-client"),
    ],
)
def test_observers_are_told_by_reports(stage: Stage, report: str) -> None:
    assert report in reports(wanting(stage, SEES[stage]))
    assert report not in reports(wanting(Stage.HELO, sees_session))


def test_who_observes_commands_sees_the_client() -> None:
    policy = Policy()
    policy.command()(sees_command)
    assert "protocol-client" in reports(interest(policy))


def test_who_listens_to_events_hears_everything() -> None:
    assert sorted(reports(wanting(Stage.EVENT, sees_event))) == sorted(EVENTS)


def test_no_report_is_registered_twice() -> None:
    """It would arrive twice."""
    for stage, function in ANSWERS.items():
        heard = reports(wanting(stage, function))
        assert len(heard) == len(set(heard))
    heard = reports(interest(everything()))
    assert len(heard) == len(set(heard))


# -- the lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("outgoing", [False, True])
@pytest.mark.parametrize("stage", OWN_PHASES)
def test_registrations_end_with_ready(stage: Stage, outgoing: bool) -> None:
    *lines, ready = registration(wanting(stage, ANSWERS[stage]), outgoing=outgoing)
    assert ready == b"register|ready\n"
    assert all(line.split(b"|")[:3:2] == [b"register", b"smtp-in"] for line in lines)
    assert len(lines) == len(set(lines))


def test_outgoing_sessions_are_for_those_who_listen_to_events() -> None:
    def outward(stage: Stage, function: Callable[..., Any], *, outgoing: bool) -> set[bytes]:
        lines = registration(wanting(stage, function), outgoing=outgoing)
        return {line for line in lines if b"|smtp-out|" in line}

    assert outward(Stage.EVENT, sees_event, outgoing=True) == {
        f"register|report|smtp-out|{event}\n".encode() for event in OUTGOING
    }
    assert outward(Stage.EVENT, sees_event, outgoing=False) == set()
    assert outward(Stage.MESSAGE, on_message, outgoing=True) == set()


# -- capabilities --------------------------------------------------------------------------------


def where(capability: str) -> set[Stage]:
    return {stage for stage, can in CAPABILITIES.items() if capability in can}


def test_the_capabilities_of_the_guide() -> None:
    """policy-api.md 4.7, the column of OpenSMTPD's filters."""
    assert where("change_sender") == {Stage.MAIL}
    assert where("change_recipient") == {Stage.RCPT}
    assert where("change_helo") == {Stage.HELO}
    for absent in ("add_recipient", "remove_recipient", "quarantine", "discard", "authenticate"):
        assert where(absent) == set()
    assert where("rdns") == set(CAPABILITIES) == set(Stage)
    assert Stage.CONNECT not in where("tls") | where("auth") | where("params")
    message = {Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.HEADERS, Stage.BODY, Stage.MESSAGE}
    assert message <= where("tls") & where("auth") & where("params")
    assert where("credentials") == {Stage.AUTH}
    assert {verb for verb in CAPABILITIES[Stage.COMMAND] if verb.isupper()} == {
        *("NOOP", "RSET", "QUIT")
    }


# -- the release ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"smtpd-version": ["6.6.4p1"]},
        {"smtpd-version": ["6.8.0p2"]},
        {"smtpd-version": ["7.8.0-portable"], "protocol": ["0.7"]},
        {"smtpd-version": ["9.0.0"], "protocol": ["0.12"]},
        {"smtpd-version": ["10.1"]},
        {"smtpd-version": ["a fork"]},
        {"smtpd-version": []},
    ],
)
def test_releases_that_are_served(config: dict[str, list[str]]) -> None:
    check_release(config)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"smtpd-version": ["6.5.0"]},
            "OpenSMTPD 6.5.0 is too old: its filters need 6.6 or later",
        ),
        ({"smtpd-version": ["5.9.2p1"]}, "too old"),
        (
            {"smtpd-version": ["9.0.0"], "protocol": ["1.0"]},
            "OpenSMTPD 9.0.0 speaks filter protocol 1.0; this mailgate knows 0.4 to 0.7",
        ),
    ],
)
def test_releases_that_are_refused(config: dict[str, list[str]], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_release(config)
    assert text in str(caught.value)
