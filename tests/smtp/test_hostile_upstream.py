"""Hostile and failing servers behind the proxy (tests/hostile/smtp-upstream.json).

Whatever they do, a client hears 2xx only of a message that the server has taken.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import pytest

from mailgate_smtp.options import SmtpOptions, Timeouts, UpstreamTLS
from tests.core.asking import in_loop
from tests.hostile.cases import Case, load, script
from tests.smtp.client import END, Client
from tests.smtp.gate import gate
from tests.smtp.mta import Mta
from tests.smtp.running import serving

CASES = {case.id: case for case in load("smtp-upstream")}
LETTER = b"Subject: x\r\n\r\n" + b"0123456789\r\n" * 200
BIG = LETTER * (10 * (1 << 20) // len(LETTER))  # more than sockets hold

Body: TypeAlias = Literal["hold", "stream"]
BODIES: tuple[Body, ...] = ("hold", "stream")

# With an LMTP server, a client that speaks SMTP may name one recipient at a time: then what
# becomes of each of them can be told.  The others are refused with 452 before the message is sent.
FOR_ONE = {"UP-042": "ok", "UP-045": "ok"}
# These are no faults of one connection, but what the server wants.
FOR_GOOD = {"UP-004", "UP-041"} | {f"UP-{number:03}" for number in (15, 16, 19, 20, 33, 38)}
# A client that speaks LMTP is told of each recipient.
FOR_EACH = {"UP-042": [250, 451], "UP-043": [250], "UP-045": [250, 550]}


def options_of(case: Case, body: Body, listen: str = "127.0.0.1:0") -> SmtpOptions:
    """Return how the proxy is set up: it is soon impatient with the server."""
    tls = UpstreamTLS(mode="require" if case.id == "UP-041" else "off")
    timeouts = Timeouts(connect=2.0, upstream=0.4, upstream_dot=0.4)
    return SmtpOptions(listen=listen, body=body, timeouts=timeouts, upstream_tls=tls)


def recipients_of(case: Case) -> list[bytes]:
    rows = [name for name, _ in script(case) if name == "RCPT"]
    return [b"RCPT TO:<b%d@example.org>" % number for number in range(max(len(rows), 1))]


async def send(client: Client, case: Case) -> str:
    """Send a message as far as it is wanted; return the verdict on it."""
    mail = case.expect.get("client_mail", "MAIL FROM:<a@example.org>\r\n").encode()
    reply = await client.say(mail.removesuffix(b"\r\n"))
    if reply.code == 250:
        named = [await client.say(recipient) for recipient in recipients_of(case)]
        reply = max(named, key=lambda each: each.code == 250)
    if reply.code == 250:
        reply = await client.data(BIG if case.id == "UP-029" else LETTER)
    await client.sync()
    return {2: "ok", 4: "tempfail", 5: "reject"}[reply.code // 100]


def acknowledged(*clients: Client) -> list[int]:
    """Return the replies to the end of data."""
    said = [exchange for client in clients for exchange in client.check().exchanges]
    return [reply.code for command, reply in said if command == END]


def taken(mta: Mta) -> int:
    """Return how many recipients' messages a server took; with SMTP it is one for all."""
    return sum(len(message.recipients) if mta.lmtp else 1 for message in mta.messages)


def check(mta: Mta, *clients: Client) -> None:
    """See that nothing was acknowledged that was not taken, and that the server was treated well."""
    assert acknowledged(*clients).count(250) == taken(mta)
    assert mta.faults == []


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("case", CASES.values(), ids=str)
@in_loop
async def test_a_client_is_told_what_became_of_its_message(case: Case, body: Body) -> None:
    lmtp = "lmtp" in case.expect
    async with (
        Mta(script(case), lmtp=lmtp) as mta,
        serving(
            gate(whole=body == "hold"), upstream=mta, options=options_of(case, body)
        ) as running,
    ):
        client = await running.open()
        await client.begin()
        assert await send(client, case) == FOR_ONE.get(case.id, case.verdict)
        client.close()
    assert running.errors == []
    check(mta, client)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "case", [one for one in CASES.values() if one.id not in FOR_GOOD], ids=str
)
@in_loop
async def test_a_server_that_mends_its_ways_is_used_again(case: Case, body: Body) -> None:
    """One connection is bad; a message may be sent again by another, as long as it was not sent."""
    lmtp = "lmtp" in case.expect
    async with (
        Mta(script(case), (), lmtp=lmtp) as mta,
        serving(
            gate(whole=body == "hold"), upstream=mta, options=options_of(case, body)
        ) as running,
    ):
        first, second = await running.open(), await running.open()
        await first.begin()
        assert await send(first, case) in (case.verdict, "ok")
        await second.begin()
        assert (await second.deliver(LETTER)).code == 250
        first.close()
        second.close()
    assert running.errors == []
    check(mta, first, second)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", FOR_EACH)
@in_loop
async def test_an_lmtp_client_is_told_of_each_recipient(name: str, body: Body) -> None:
    case = CASES[name]
    options = options_of(case, body, "lmtp:127.0.0.1:0")
    async with (
        Mta(script(case), lmtp=True) as mta,
        serving(gate(whole=body == "hold"), upstream=mta, options=options) as running,
    ):
        client = await running.open()
        await client.begin()
        await send(client, case)
        client.close()
    assert running.errors == []
    assert acknowledged(client) == FOR_EACH[name]
    check(mta, client)


def test_every_case_is_run() -> None:
    assert len(CASES) == 35
    assert set(FOR_ONE) | set(FOR_EACH) | FOR_GOOD <= set(CASES)
