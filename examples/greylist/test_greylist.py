"""Run with: pytest examples/greylist"""

from __future__ import annotations

import pytest

from examples.greylist.greylist import policy
from mailgate.adapter import load
from mailgate.stage import Stage
from mailgate.testing import Mta, send


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_stranger_waits_and_then_passes(adapter: str, clock: Clock) -> None:
    greylist = policy(delay=300, clock=clock)
    first = send(greylist, adapter=adapter)
    assert first.reply == "450 4.2.0 greylisted, please try again in 300 seconds"
    assert first.by == "greylist.greylist"
    clock.now += 299
    assert send(greylist, adapter=adapter).reply.code == 450
    clock.now += 1
    assert send(greylist, adapter=adapter).accepted
    clock.now += 24 * 3600
    assert send(greylist, adapter=adapter).accepted


def test_each_recipient_has_its_own_answer(adapter: str, clock: Clock) -> None:
    greylist = policy(recipients={"Example.ORG", "info@example.net"}, clock=clock)
    with Mta(greylist, adapter=adapter) as mta:
        mta.mail("sender@client.example")
        assert mta.rcpt("ann@example.org").code == 450
        assert mta.rcpt("info@example.net").code == 450
        assert mta.rcpt("ann@example.net").code == 250
        assert mta.data().code == 250
    assert mta.outcome.accepted


@pytest.mark.parametrize(
    ("again", "code"),
    [
        ({"client": "192.0.2.200"}, 250),
        ({"client": "198.51.100.1"}, 450),
        ({"sender": "other@client.example"}, 450),
        ({"to": "other@example.org"}, 450),
    ],
)
def test_what_makes_a_stranger(again: dict[str, str], code: int, clock: Clock) -> None:
    greylist = policy(delay=300, clock=clock)
    send(greylist, client="192.0.2.1")
    clock.now += 300
    values = {"client": "192.0.2.1", "sender": "sender@client.example", **again}
    outcome = send(greylist, **values)  # type: ignore[arg-type]
    assert outcome.reply.code == code


def test_an_ipv6_client_is_known_by_its_64(clock: Clock) -> None:
    greylist = policy(delay=300, clock=clock)
    send(greylist, client="2001:db8::1")
    clock.now += 300
    assert send(greylist, client="2001:db8::ffff:1").accepted
    assert not send(greylist, client="2001:db8:0:1::1").accepted


def test_a_retry_that_comes_too_late_is_a_new_one(clock: Clock) -> None:
    greylist = policy(delay=300, retry=3600, clock=clock)
    send(greylist)
    clock.now += 300 + 3600
    assert send(greylist).reply.code == 450


def test_a_triplet_that_passed_is_forgotten_when_it_is_not_used(clock: Clock) -> None:
    greylist = policy(delay=300, keep=7200, clock=clock)
    send(greylist)
    for seconds, accepted in ((300, True), (7199, True), (7200, False)):
        clock.now += seconds
        assert send(greylist).accepted is accepted


def test_memory_is_bounded(clock: Clock) -> None:
    greylist = policy(delay=300, entries=2, clock=clock)
    for recipient in ("a@example.org", "b@example.org", "c@example.org"):
        send(greylist, to=recipient)
    clock.now += 300
    assert send(greylist, to="c@example.org").accepted
    assert not send(greylist, to="a@example.org").accepted


@pytest.mark.parametrize("client", [None, "127.0.0.1", "::1"])
def test_local_clients_pass(client: str | None, clock: Clock) -> None:
    assert send(policy(clock=clock), client=client).accepted


def test_logged_in_users_pass_where_a_protocol_tells_of_them(adapter: str, clock: Clock) -> None:
    told = "auth" in load(adapter).capabilities[Stage.RCPT]
    assert send(policy(clock=clock), user="ann", adapter=adapter).accepted is told
