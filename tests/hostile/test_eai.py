"""Addresses and headers outside ASCII (eai.json): read without an exception, made with a check.

What a mail server hands on is the server's to judge: `Address` takes every octet and keeps the
local part as it is. What a policy makes is ours: `change_sender` refuses what is no address.
"""

from __future__ import annotations

import pytest

from mailgate import Address, Message, Policy
from mailgate.testing import Mta, Outcome
from tests.hostile.cases import Case, load
from tests.opensmtpd.lines import Client, handshake
from tests.opensmtpd.running import converse

CASES = load("eai")
ADDRESSES = [case for case in CASES if case.address is not None]
HEADERS = [case for case in CASES if case.headers is not None]

# What IDNA makes of these domains (RFC 5890): a list of domains has to match the real ones only.
DOMAINS = {
    "EAI-002": "xn--9ca.example",
    "EAI-009": "xn--strae-oqa.example",  # IDNA 2003 made strasse.example of it: another domain
    "EAI-010": "xn--as-rbc.example",
    "EAI-023": "\N{KELVIN SIGN}.example",  # lower() makes k.example of it: an allow-list by-pass
    "EAI-026": "\N{LATIN SMALL LETTER LONG S}pam.example",  # casefold() makes spam.example of it
}


@pytest.mark.parametrize("case", ADDRESSES, ids=str)
def test_every_address_can_be_read(case: Case) -> None:
    raw = case.address or b""
    address = Address.from_wire(raw)

    local, at, domain = raw.rpartition(b"@") if b"@" in raw else (raw, b"", b"")
    assert address.local.encode("utf-8", "surrogateescape") == local
    assert str(address).encode("utf-8", "surrogateescape").startswith(local + at)
    if domain.isascii():
        assert address.domain == domain.decode().lower()
    if case.id in DOMAINS:
        assert address.domain == DOMAINS[case.id]
    assert hash(address) == hash(str(address))


def change_sender(case: Case) -> tuple[Outcome, list[ValueError]]:
    """Have a policy set the address of a case as the sender."""
    raised: list[ValueError] = []
    policy = Policy("sender")

    @policy.mail(needs={"change_sender"})
    async def change(message: Message) -> None:
        try:
            message.change_sender((case.address or b"").decode("utf-8", "surrogateescape"))
        except ValueError as error:
            raised.append(error)
            raise

    with Mta(policy, strict=False) as mta:
        mta.mail("a@example.org", {"SMTPUTF8": None} if case.smtputf8 else {})
        return mta.outcome, raised


@pytest.mark.parametrize("case", ADDRESSES, ids=str)
def test_a_policy_makes_good_addresses_only(case: Case) -> None:
    outcome, raised = change_sender(case)

    assert outcome.reply.code == (451 if raised else 250)
    if case.verdict == "reject":
        assert raised
    elif case.verdict == "ok":
        assert not raised
        assert outcome.message is not None
        assert outcome.message.sender == Address.from_wire(case.address or b"")


CLIENT = Client("7641df9771b4ed00")


@pytest.mark.parametrize("case", ADDRESSES, ids=str)
def test_addresses_pass_opensmtpd_unchanged(case: Case) -> None:
    """smtpd has judged the address, so a policy that says nothing lets it pass."""
    seen: list[str] = []
    policy = Policy("look")

    @policy.mail
    async def look(message: Message):  # type: ignore[no-untyped-def]  # it may answer
        seen.append(str(message.sender))

    raw = case.address or b""
    outcome = converse([handshake(), CLIENT.greeted(), CLIENT.question("mail-from", raw)], policy)

    assert outcome.errors == []
    assert outcome.faults == []
    if b"\0" in raw:  # smtpd never sends one
        assert outcome.lines()[-1].split(b"|")[3] == b"reject"
    else:
        assert outcome.lines()[-1].endswith(b"|proceed")
        assert seen == [str(Address.from_wire(raw))]


@pytest.mark.parametrize("case", HEADERS, ids=str)
def test_headers_pass_unchanged_and_can_be_read(case: Case) -> None:
    raw = b"To: b@example.org\r\n" + (case.headers or b"") + b"\r\nhello\r\n"
    read: list[tuple[str, str]] = []
    policy = Policy("read")

    @policy.message
    async def look(message: Message) -> None:
        read.extend(message.headers)
        read.extend((name, str(field)) for name, field in message.parse().items())

    with Mta(policy) as mta:
        mta.mail("a@example.org", {"SMTPUTF8": None} if case.smtputf8 else {})
        mta.rcpt("b@example.org")
        mta.data(raw)
        assert mta.outcome.accepted
        assert mta.outcome.raw == raw
    assert all("\n" not in content and "\0" not in content for _, content in read)
    assert read.count(("To", "b@example.org")) == 2


def test_every_case_is_run() -> None:
    assert len(ADDRESSES) + len(HEADERS) == len(CASES) == 59
    assert DOMAINS.keys() <= {case.id for case in ADDRESSES}
