"""A client connection as policies see it: facts, and one thing to change."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from mailgate.errors import TooLate, Undeclared, Unsupported
from mailgate.message import Change, Ending
from mailgate.policy import Policy
from mailgate.session import TLS, Attempt, Event, Session, address_of
from mailgate.stage import Stage
from mailgate.testing import Mta
from tests.core.asking import converse, in_loop


def session(**facts: object) -> Session:
    made = Session("s1", "test")
    made.learn(**facts)
    return made


@pytest.mark.parametrize(
    ("client", "socket", "local"),
    [
        (None, True, True),
        (None, False, False),
        ("127.0.0.1", False, True),
        ("127.99.0.1", False, True),
        ("::1", False, True),
        ("192.0.2.1", False, False),
        ("2001:db8::1", False, False),
    ],
)
def test_who_is_local(client: str | None, socket: bool, local: bool) -> None:
    address = ip_address(client) if client else None
    assert session(client=address, local_socket=socket).local is local


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", IPv4Address("192.0.2.1")),
        ("2001:db8::1", IPv6Address("2001:db8::1")),
        ("2001:DB8:0:0:0:0:0:1", IPv6Address("2001:db8::1")),
        *((text, None) for text in ("", "unknown", "192.0.2", "192.0.2.1 ", "192.0.2.256")),
        *((text, None) for text in ("192.0.2.01", "[192.0.2.1]", "IPv6:2001:db8::1", "1")),
        *((text, None) for text in ("mx.example", "\udcff", "1" * 10_000)),
    ],
)
def test_an_address_that_a_wire_tells(text: str, address: object) -> None:
    for _ in range(2):  # it is kept for the next time
        assert address_of(text) == address


def test_a_session_is_read_only_for_policies() -> None:
    with pytest.raises(AttributeError):
        session().user = "ann"  # type: ignore[misc]
    assert session(user="ann").user == "ann"


def test_a_password_is_never_printed() -> None:
    attempt = Attempt("PLAIN", "ann", "s3cret")
    assert attempt.password == "s3cret"
    assert "s3cret" not in repr(attempt) + str(attempt)


@pytest.mark.parametrize("name", ["new.example", "[192.0.2.1]"])
def test_a_greeting_can_be_changed(name: str) -> None:
    ours = session(helo="old")
    ours.change_helo(name)
    assert ours.helo == name


def test_a_greeting_is_a_host_name() -> None:
    ours = session(helo="old")
    with pytest.raises(ValueError, match="not a host name"):
        ours.change_helo("a b")
    assert ours.helo == "old"


def test_facts_are_values() -> None:
    assert TLS("TLSv1.3") == TLS("TLSv1.3", None, None, None)
    assert Ending("refused") == Ending("refused", None, "")
    assert str(Change("+", "recipient a@b")) == "+ recipient a@b"


def test_a_greeting_is_changed_in_helo_where_it_is_declared() -> None:
    policy = Policy()

    @policy.helo
    async def undeclared(session: Session) -> None:
        session.change_helo("new.example")

    with pytest.raises(Undeclared), Mta(policy) as mta:
        mta.helo()


def test_outside_handlers_everything_is_allowed() -> None:
    assert session().can("change_helo")


@in_loop
async def test_a_greeting_that_a_protocol_cannot_change_is_asked_about() -> None:
    asked: list[bool] = []
    policy = Policy()

    @policy.helo(wants={"change_helo"})
    async def helo(session: Session) -> None:
        asked.append(session.can("change_helo"))
        session.change_helo("new.example")

    conversation = converse(policy, capabilities={Stage.HELO: frozenset()}, strict=True)
    with pytest.raises(Unsupported, match=r"not possible in helo"):
        await conversation.helo("old.example")
    assert asked == [False]
    assert conversation.session.helo == "old.example"


@in_loop
async def test_after_its_handler_a_greeting_is_not_changed() -> None:
    sessions: list[Session] = []
    policy = Policy()

    @policy.helo(needs={"change_helo"})
    async def helo(session: Session) -> None:
        sessions.append(session)
        sessions[0].change_helo("new.example")

    assert await converse(policy).helo("first.example") is None
    second = converse(policy, strict=True)
    with pytest.raises(TooLate):
        await second.helo("second.example")
    assert [sessions[0].helo, second.session.helo] == ["new.example", "second.example"]


def test_an_event_has_a_name_and_fields() -> None:
    event = Event("greeting", {"hostname": "mx.example"})
    assert (event.name, event.fields["hostname"]) == ("greeting", "mx.example")


# -- what a protocol does not tell ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fact"),
    [("user", "auth"), ("tls", "tls"), ("rdns", "rdns"), ("rdns_verified", "rdns")],
)
def test_what_is_withheld_is_not_none(name: str, fact: str) -> None:
    ours = session(user="ann", tls=TLS("TLSv1.3"), rdns="mx.example", rdns_verified=True)
    ours.withhold(name)
    ours.withhold(name)
    for look in (getattr, hasattr):
        with pytest.raises(Unsupported) as caught:
            look(ours, name)
        assert str(caught.value) == (
            f"session.{name}: this protocol does not tell it; declare wants={{{fact!r}}} and ask "
            f"session.can({fact!r}) first"
        )
    assert not ours.tells(name)
    ours.learn(**{name: None})
    assert ours.tells(name)
    assert getattr(ours, name) is None


def test_what_no_session_has_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'Session' object has no attribute 'usr'"):
        session().usr  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(session(), "usr")


def test_a_session_shows_what_is_told() -> None:
    ours = session(helo="mx.example", user="ann")
    assert repr(ours).startswith("Session(id='s1', adapter='test', client=None, client_port=0, ")
    assert "user='ann', macros=mappingproxy({})" in repr(ours)
    assert "state" not in repr(ours)
    ours.withhold("user", "rdns")
    assert "user" not in repr(ours)
    assert "rdns=" not in repr(ours)
    assert "rdns_verified=None, helo='mx.example'" in repr(ours)
