"""What a policy author tests with grants and asks what each protocol does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mailgate.address import Address
from mailgate.errors import Unsupported
from mailgate.message import Message
from mailgate.outcome import lines
from mailgate.policy import Policy
from mailgate.session import Attempt, Session
from mailgate.stage import Capability
from mailgate.testing import Mta, send
from mailgate.verdict import Quarantine, Reject, Verdict
from tests.core.pigeon import install

FACTS: tuple[Capability, ...] = ("rdns", "tls", "auth", "params")
ENVELOPE: tuple[Capability, ...] = (
    *("change_sender", "change_recipient", "add_recipient", "remove_recipient"),
)


# -- what is granted -----------------------------------------------------------------------------


def test_a_protocol_grants_what_it_can_only() -> None:
    seen: list[tuple[str, bool]] = []
    policy = Policy()

    @policy.mail(wants={"change_sender", "discard"})
    async def mail(message: Message) -> None:
        seen.append((message.session.adapter, message.can("change_sender")))
        seen.append((message.session.adapter, message.can("discard")))

    assert send(policy, adapter="opensmtpd").accepted
    assert seen == [("opensmtpd", True), ("opensmtpd", False)]


@pytest.mark.parametrize(
    ("adapter", "granted"),
    [
        ("milter", ["discard", "quarantine", *ENVELOPE, *FACTS]),
        ("opensmtpd", [*FACTS]),
        (None, ["discard", "quarantine", *ENVELOPE, *FACTS]),
    ],
)
def test_what_each_protocol_grants_at_the_end(adapter: str | None, granted: list[str]) -> None:
    """A milter may ask for any edit there; a filter of smtpd changes paths in their own phases."""
    seen: list[str] = []
    policy = Policy()
    wanted: tuple[Capability, ...] = ("discard", "quarantine", *ENVELOPE, *FACTS)

    @policy.message(wants=wanted)
    async def message(message: Message) -> None:
        seen.extend(name for name in wanted if message.can(name))

    assert send(policy, adapter=adapter).accepted
    assert seen == granted


def test_what_milter_can_is_done() -> None:
    policy = Policy()

    @policy.rcpt(needs={"add_recipient", "remove_recipient", "quarantine"})
    async def rcpt(message: Message, recipient: Address) -> Verdict | None:
        message.add_recipient("archive@example.org")
        return None

    @policy.message(needs={"change_sender", "change_recipient", "remove_recipient", "quarantine"})
    async def whole(message: Message) -> Verdict | None:
        message.change_sender("")
        message.change_recipient(Address("bob@example.org"), "ann@example.net")
        message.remove_recipient("archive@example.org")
        return Quarantine("odd")

    outcome = send(policy, to="bob@example.org", adapter="milter")
    assert outcome.accepted
    assert outcome.verdict == Quarantine("odd")
    assert outcome.message is not None
    assert outcome.message.sender == ""
    assert [*outcome.message.recipients] == ["ann@example.net"]
    assert outcome.message.session.adapter == "milter"


def test_a_policy_that_would_not_start_is_not_tested() -> None:
    policy = Policy()

    @policy.message(needs={"add_recipient"})
    async def copies(message: Message) -> None: ...

    with pytest.raises(Unsupported, match=r"^copies needs add_recipient; opensmtpd cannot$"):
        send(policy, adapter="opensmtpd")
    assert send(policy, adapter="milter").accepted


# -- what is asked -------------------------------------------------------------------------------


def test_a_stage_that_a_protocol_lacks_is_not_asked() -> None:
    """A milter hears of neither STARTTLS nor AUTH; what they lead to is told later."""
    policy = Policy()

    @policy.starttls(optional=True)
    async def starttls(session: Session) -> Verdict | None:
        return Reject("no")

    @policy.auth(optional=True)
    async def auth(session: Session, attempt: Attempt) -> Verdict | None:
        return Reject("no")

    @policy.mail
    async def mail(message: Message) -> Verdict | None:
        tls = "tls" if message.session.tls else "clear"
        return Reject(f"{message.session.user} {tls}")

    for adapter, replies in (
        ("milter", [250, 250, "550 5.7.1 ann tls"]),
        ("opensmtpd", [550, 550, "550 5.7.1 None clear"]),
        (None, [550, 550, "550 5.7.1 None clear"]),
    ):
        with Mta(policy, adapter=adapter) as mta:
            seen = [mta.starttls().code, mta.auth("ann", "secret").code, mta.mail("a@b.example")]
        assert seen == replies


def commands() -> tuple[Policy, list[str]]:
    """Return a policy that refuses two verbs and looks at all, and what it has seen."""
    seen: list[str] = []
    policy = Policy("p")

    @policy.command("NOOP", "XYZZY", optional=True)
    async def refuses(session: Session, verb: str, argument: str) -> Verdict | None:
        return Reject(f"no {verb} {argument}".rstrip())

    @policy.command()
    async def sees(session: Session, verb: str, argument: str) -> None:
        seen.append(verb)

    return policy, seen


NO_NOOP, NO_XYZZY, UNKNOWN = "550 5.7.1 no NOOP", "550 5.7.1 no XYZZY a b", "500 5.5.1 "


@pytest.mark.parametrize(
    ("adapter", "noop", "xyzzy", "shown"),
    [
        (None, NO_NOOP, NO_XYZZY, ["VRFY", "PLUGH"]),
        ("milter", "250 2.0.0 Ok", NO_XYZZY, ["PLUGH"]),
        ("opensmtpd", NO_NOOP, UNKNOWN, ["XYZZY", "VRFY", "PLUGH"]),
        ("pigeon", "250 2.0.0 Ok", UNKNOWN, []),
    ],
)
def test_verbs_are_answered_where_the_protocol_asks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    adapter: str | None,
    noop: str,
    xyzzy: str,
    shown: list[str],
) -> None:
    """A milter is asked about unknown verbs only; OpenSMTPD asks about three, and reports all."""
    install(tmp_path, monkeypatch)
    policy, seen = commands()
    with Mta(policy, adapter=adapter) as mta:
        assert mta.command("noop") == noop
        assert mta.command("xyzzy", "a b").startswith(xyzzy)
        assert mta.command("VRFY").code == 250
        assert mta.command("PLUGH").code == 500
    assert seen == shown


@pytest.mark.parametrize(("verb", "code"), [("RSET", 250), ("help", 250), ("XYZZY", 500)])
def test_a_verb_that_no_policy_answers_is_the_servers(verb: str, code: int) -> None:
    """RFC 5321 4.2.4: an unrecognized command gets 500."""
    with Mta(Policy()) as mta:
        assert mta.command(verb).code == code


@pytest.mark.parametrize(("adapter", "verb"), [("milter", "xyzzy"), ("opensmtpd", "noop")])
def test_a_handler_of_a_verb_that_is_not_asked_would_not_start(adapter: str, verb: str) -> None:
    policy = Policy()

    @policy.command(verb)
    async def refuses(session: Session, verb: str, argument: str) -> Verdict | None:
        return Reject("no")

    other = "opensmtpd" if adapter == "milter" else "milter"
    with Mta(policy, adapter=adapter) as mta:
        assert mta.command(verb).code == 550
    with pytest.raises(Unsupported, match=f"refuses needs {verb.upper()}; {other} cannot"):
        Mta(policy, adapter=other)


# -- what is told --------------------------------------------------------------------------------


@pytest.fixture
def pigeon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a protocol that tells of encryption, and no other fact at any stage."""
    install(tmp_path, monkeypatch)
    return "pigeon"


Look = Callable[[Message], object]
UNTOLD: dict[str, Look] = {
    "user": lambda message: message.session.user,
    "rdns": lambda message: message.session.rdns,
    "rdns_verified": lambda message: message.session.rdns_verified,
    "sender": lambda message: message.sender.params.get("SIZE"),
    "recipient": lambda message: "NOTIFY" in message.recipients[0].params,
}


@pytest.mark.parametrize("look", UNTOLD.values(), ids=UNTOLD)
def test_what_a_protocol_never_tells_is_not_none_in_a_test(pigeon: str, look: Look) -> None:
    """Even where the test itself says it: that protocol would not."""
    policy = Policy()

    @policy.data
    async def data(message: Message) -> None:
        look(message)

    facts = {"user": "ann", "rdns": "mx.example", "tls": True, "params": {"SIZE": "10"}}
    assert send(policy, **facts, adapter="milter").accepted  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="this protocol does not tell"):
        send(policy, **facts, adapter=pigeon)  # type: ignore[arg-type]


def test_a_handler_that_shows_what_it_reads_is_not_tested_at_all(pigeon: str) -> None:
    """It would not start there."""
    policy = Policy()

    @policy.done
    async def done(message: Message) -> None:
        print(message.session.user)

    assert Mta(policy, adapter="milter")
    with pytest.raises(Unsupported, match=r"^done reads session\.user; pigeon cannot tell it$"):
        Mta(policy, adapter=pigeon)


def test_what_a_protocol_does_tell_is_there(pigeon: str) -> None:
    seen: list[bool] = []
    policy = Policy()

    @policy.mail(wants={"auth"})
    async def mail(message: Message) -> None:
        seen.append(message.session.tls is not None)
        if message.can("auth"):
            seen.append(message.session.user == "ann")

    for adapter in (pigeon, "milter"):
        assert send(policy, tls=True, user="ann", adapter=adapter).accepted
    assert seen == [True, True, True]


def test_a_login_teaches_a_protocol_nothing_that_it_does_not_tell(pigeon: str) -> None:
    with Mta(Policy(), adapter=pigeon) as mta:
        assert mta.auth("ann").code == mta.starttls().code == 250
        assert mta.session.tls is not None
        assert not mta.session.tells("user")


def test_a_trace_shows_what_is_told(pigeon: str) -> None:
    policy = Policy("gate")

    @policy.connect
    async def greet(session: Session) -> None: ...

    for adapter, client in ((pigeon, "192.0.2.1"), ("milter", "192.0.2.1 (mx.example)")):
        outcome = send(policy, rdns="mx.example", adapter=adapter)
        (line,) = (each for each in lines(outcome) if each.startswith("connect"))
        assert line.split("  ")[0].rstrip() == "connect"
        assert f" {client}  " in line
