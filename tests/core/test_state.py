"""State has a scope, and ends with it."""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.state import PerMessage, PerSession
from mailgate.testing import Mta
from tests.core.asking import SENDER


@dataclass
class Karma:
    points: int = 0


def message(session: Session) -> Message:
    return Message(session, SENDER, "m", memory=1, limit=1)


def test_a_session_has_one_slot_for_all_its_messages() -> None:
    karma = PerSession(Karma)
    ours, theirs = Session("1", "test"), Session("2", "test")
    first, second = message(ours), message(ours)
    karma[first].points += 1
    assert karma[second].points == karma[ours].points == 1
    assert karma[theirs].points == 0


def test_a_message_has_its_own_slot() -> None:
    karma = PerMessage(Karma)
    session = Session("1", "test")
    first, second = message(session), message(session)
    karma[first].points += 1
    assert (karma[first].points, karma[second].points) == (1, 0)


def test_slots_do_not_collide() -> None:
    one, other = PerSession(list[int]), PerSession(list[int])
    session = Session("1", "test")
    one[session].append(1)
    assert other[session] == []


def test_a_slot_is_made_on_first_use_and_once() -> None:
    made: list[Karma] = []

    def factory() -> Karma:
        made.append(Karma())
        return made[-1]

    karma = PerSession(factory)
    session = Session("1", "test")
    assert not made
    assert karma[session] is karma[session]
    assert len(made) == 1


def test_false_values_are_kept() -> None:
    counts = PerMessage(int)
    mail = message(Session("1", "test"))
    assert counts[mail] == 0
    assert list(mail.state.values()) == [0]


def test_state_ends_with_its_scope_and_is_there_until_then() -> None:
    seen: list[tuple[str, int]] = []
    per_message, per_session = PerMessage(Karma), PerSession(Karma)
    policy = Policy()

    @policy.mail
    async def count(message: Message) -> None:
        per_message[message].points += 1
        per_session[message].points += 1

    @policy.done
    async def done(message: Message) -> None:
        seen.append(("message", per_message[message].points))

    @policy.close
    async def close(session: Session) -> None:
        seen.append(("session", per_session[session].points))

    with Mta(policy) as mta:
        mta.mail("a@b.example")
        first = mta.message
        mta.rset()
        mta.mail("a@b.example")
        session = mta.session
    assert seen == [("message", 1), ("message", 1), ("session", 2)]
    assert first is not None
    assert not first.state
    assert not session.state
