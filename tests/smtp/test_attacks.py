"""What was open to attack once: messages, envelopes and connections that got mixed up."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from mailgate import Address, Event, Message, Policy, Quarantine, Session
from mailgate.chain import Loaded, unmet
from mailgate.errors import ConfigError
from mailgate.limits import Limits as CoreLimits
from mailgate_smtp import route
from mailgate_smtp.adapter import SmtpAdapter
from mailgate_smtp.options import Limits, SmtpOptions, Timeouts, UpstreamTLS
from tests.core.asking import in_loop
from tests.hostile.cases import Act, Send, Wait
from tests.smtp.gate import gate
from tests.smtp.mta import OFFERS, Connection, Envelope, Mta, Script
from tests.smtp.running import proxied, serving

LETTER = b"Subject: x\r\n\r\nHello.\r\n"
BIG = LETTER * 500_000  # more than sockets hold: its end is not sent when the server is gone
MAIL, RCPT = b"MAIL FROM:<ann@client.example>", b"RCPT TO:<bob@example.org>"
LOOPBACK = ("127.0.0.1",)

XFORWARD = b"XFORWARD NAME ADDR PORT PROTO HELO"
XCLIENT = b"XCLIENT NAME ADDR PORT PROTO HELO LOGIN"


def mails(mta: Mta) -> list[int]:
    """Return how many messages were begun on each connection."""
    return [sum(line.startswith(b"MAIL") for line in one.commands) for one in mta.connections]


def identities(connection: Connection) -> list[bytes]:
    """Return what the server was told last before each message of a connection."""
    found, told = [], b""
    for line in connection.commands:
        if line.startswith((b"XFORWARD", b"XCLIENT")):
            told = line
        elif line == b"RSET":
            told = b"" if told.startswith(b"XFORWARD") else told  # as Postfix does
        elif line.startswith(b"MAIL"):
            found.append(told)
    return found


# -- whose envelope -------------------------------------------------------------------------------


@pytest.mark.parametrize("to_rcpt", [b"503 5.5.1 need MAIL\r\n", b"250 2.1.5 ok\r\n"])
@in_loop
async def test_a_sender_that_is_deferred_defers_the_message_whatever_is_said_of_recipients(
    to_rcpt: bytes,
) -> None:
    rows: Script = [("MAIL", [Send(b"451 4.7.1 later\r\n")]), ("RCPT", [Send(to_rcpt)])]
    async with proxied(mta=Mta(rows), connect="data") as (running, mta):
        client = await running.greeted(MAIL, RCPT)
        assert (await client.data(LETTER)).code == 451
        assert b"DATA" not in mta.commands


@in_loop
async def test_a_recipient_in_the_place_of_another_is_taken() -> None:
    policy = Policy("replaces")

    @policy.rcpt(needs={"remove_recipient"})
    async def rcpt(message: Message, recipient: Address) -> None:
        if recipient == "bob@example.org":
            message.remove_recipient("first@example.org")

    async with proxied(policy) as (running, mta):
        client = await running.greeted(MAIL, b"RCPT TO:<first@example.org>")
        assert (await client.say(RCPT)).code == 250
        assert (await client.data(LETTER)).code == 250
        assert [one.recipients for one in mta.messages] == [[Envelope(b"bob@example.org")]]


@in_loop
async def test_parameters_of_a_sender_that_is_replaced_are_as_the_server_takes_them() -> None:
    policy = Policy("replaces")

    @policy.mail(needs={"change_sender"})
    async def mail(message: Message) -> None:
        message.change_sender("new@example.org")

    async with proxied(policy, mta=Mta(keywords=[b"PIPELINING"])) as (running, mta):
        client = await running.greeted(MAIL + b" SIZE=100", RCPT)
        assert (await client.data(LETTER)).code == 250
        assert [one.sender for one in mta.messages] == [Envelope(b"new@example.org")]


@in_loop
async def test_parameters_that_the_next_server_does_not_take_defer_the_message() -> None:
    async with Mta() as first, Mta(keywords=[b"PIPELINING"]) as second:
        async with serving(gate(), upstream=(first.url, second.url)) as running:
            client = await running.greeted()
            await first.stop()
            assert (await client.say(MAIL + b" BODY=8BITMIME")).code == 451
            assert (await client.deliver(LETTER)).code == 250
        assert second.faults == []
        assert len(second.messages) == 1


@pytest.mark.parametrize(
    "routed",
    [
        b"bob%elsewhere.example@example.org",
        b'"bob@elsewhere.example"@example.org',
        b'"bob\\@elsewhere.example"@example.org',
        b"elsewhere.example!bob@example.org",
        b"bob@elsewhere.example",
    ],
)
@in_loop
async def test_a_local_part_does_not_route_a_message_elsewhere(routed: bytes) -> None:
    """RFC 5321 F.2; Postfix' reject_unauth_destination refuses them, too."""
    async with proxied(relay_domains=("example.org",)) as (running, _):
        client = await running.greeted(MAIL, RCPT)
        assert (await client.say(b"RCPT TO:<%b>" % routed)).text.startswith(b"550 5.7.1")


@in_loop
async def test_one_recipient_twice_has_the_two_replies_in_order() -> None:
    ends = b"250 2.0.0 saved one\r\n550 5.2.0 not two\r\n"
    mta = Mta([(".", [Send(ends)])], lmtp=True)
    async with proxied(mta=mta, listen="lmtp:127.0.0.1:0") as (running, _):
        client = await running.greeted(MAIL, RCPT, RCPT)
        first, second = await client.data(LETTER), await client.reply()
        assert first.text + second.text == ends


@in_loop
async def test_every_recipient_is_answered_before_anybody_is_told_of_it() -> None:
    """Who waits for too long sends the message again, to those who have it, too."""
    told: list[str] = []
    answered = asyncio.Event()
    policy = Policy("told")

    @policy.event
    async def event(session: Session, event: Event) -> None:
        if event.name == "queued":
            told.append(event.fields["text"])
            await answered.wait()

    ends = b"250 2.0.0 one\r\n550 5.2.0 two\r\n250 2.0.0 three\r\n"
    mta = Mta([(".", [Send(ends)])], lmtp=True)
    async with proxied(policy, mta=mta, listen="lmtp:127.0.0.1:0") as (running, _):
        client = await running.greeted(MAIL, RCPT, RCPT, RCPT)
        try:
            replies = [await client.data(LETTER), await client.reply(), await client.reply()]
        finally:
            answered.set()
        assert [reply.code for reply in replies] == [250, 550, 250]
    assert told == ["250 2.0.0 one", "250 2.0.0 three"]


# -- who is told of -------------------------------------------------------------------------------


@in_loop
async def test_an_envelope_that_is_said_again_is_forwarded_again() -> None:
    policy = Policy("adds")

    @policy.message(needs={"add_recipient"})
    async def message(message: Message) -> None:
        message.add_recipient("archive@example.org")

    async with proxied(policy, mta=Mta(keywords=[*OFFERS, XFORWARD])) as (running, mta):
        client = await running.greeted()
        assert (await client.deliver(LETTER)).code == 250
        (connection,) = mta.connections
        assert [b" ADDR=127.0.0.1" in told for told in identities(connection)] == [True, True]


@pytest.mark.parametrize("keyword", [XFORWARD, XCLIENT])
@pytest.mark.parametrize("connect", ["connect", "mail", "data"])
@in_loop
async def test_the_server_is_told_of_the_client_that_is_forwarded(
    connect: str, keyword: bytes
) -> None:
    mta = Mta(keywords=[*OFFERS, keyword])
    async with proxied(mta=mta, connect=connect, trusted=LOOPBACK) as (running, _):
        client = await running.greeted(b"XFORWARD ADDR=203.0.113.9 HELO=other.example")
        for _ in range(2):
            assert (await client.deliver(LETTER)).code == 250
    told = [each for connection in mta.connections for each in identities(connection)]
    assert [b" ADDR=203.0.113.9" in each for each in told] == [True, False]
    assert [b" HELO=other.example" in each for each in told] == [True, False]


@pytest.mark.parametrize("identity", ["xclient", "proxy-v1"])
@in_loop
async def test_a_client_that_a_server_refuses_is_no_reason_to_leave_that_server(
    identity: Literal["xclient", "proxy-v1"],
) -> None:
    event = "XCLIENT" if identity == "xclient" else "connect"
    refuses: Script = [(event, [Send(b"554 5.7.1 not you\r\n"), Act("close")])]
    scripts = [refuses] if identity == "xclient" else [refuses, refuses]  # EHLO asks, too
    offers, header = [*OFFERS, XCLIENT], identity == "proxy-v1"
    options = SmtpOptions(listen="127.0.0.1:0", identity=identity)
    async with (
        Mta(*scripts, (), keywords=offers, wants_header=header) as first,
        Mta(keywords=offers, wants_header=header) as second,
        serving(gate(), upstream=(first.url, second.url), options=options) as running,
    ):
        unwanted = await running.greeted()
        assert (await unwanted.say(MAIL)).text == b"554 5.7.1 not you\r\n"
        client = await running.greeted()
        assert (await client.deliver(LETTER)).code == 250
        assert len(first.messages) == 1
        assert second.connections == []


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
@pytest.mark.parametrize("header", [b"", b"PROXY TCP6 ::ffff:127.0.0.1 ::1 5000 25\r\n"])
@in_loop
async def test_a_client_of_ipv4_is_known_as_such_where_ipv6_is_spoken(header: bytes) -> None:
    """A socket that systemd passes is for both, unless it is told otherwise."""
    clients: list[str] = []
    policy = Policy("looks")

    @policy.mail
    async def mail(message: Message) -> None:
        clients.append(str(message.session.client))

    listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    async with proxied(
        policy,
        listen=f"fd:{listening.detach()}",
        open_relay=True,
        trusted=LOOPBACK,
        proxy_protocol=bool(header),
    ) as (running, _):
        client = await running.open()
        client.transport.write(header)
        await client.begin()
        assert b"XCLIENT" in client.said
        assert (await client.deliver(LETTER)).code == 250
    assert clients == ["127.0.0.1"]


@in_loop
async def test_a_header_that_names_nobody_makes_nobody_trusted() -> None:
    """The balancer is trusted, and its clients are not."""
    async with proxied(trusted=LOOPBACK, proxy_protocol=True, open_relay=True) as (running, _):
        client = await running.open()
        client.transport.write(b"PROXY UNKNOWN\r\n")
        await client.begin()
        assert b"XCLIENT" not in client.said
        assert (await client.say(b"XCLIENT ADDR=192.0.2.1")).text.startswith(b"550 5.7.0")


def test_a_balancer_on_this_host_brings_clients_of_others() -> None:
    options = SmtpOptions(
        listen="127.0.0.1:0",
        upstream="smtp://127.0.0.1:25",
        trusted=LOOPBACK,
        proxy_protocol=True,
    )
    with pytest.raises(ConfigError, match="open relay"):
        SmtpAdapter(options).claim()


@pytest.mark.parametrize("name", ["a\r\n250 b", "b\u00fc.example", "a b", "a\0b"])
def test_a_host_name_that_would_break_replies_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="'hostname' must be a host name"):
        SmtpOptions(hostname=name)


# -- a connection that is lost --------------------------------------------------------------------


@pytest.mark.parametrize("connect", ["connect", "data"])
@in_loop
async def test_a_connection_that_was_idle_for_too_long_is_replaced(connect: str) -> None:
    async with proxied(connect=connect) as (running, mta):
        client = await running.greeted()
        await mta.connections[0].end()
        assert (await client.deliver(LETTER)).code == 250
        assert mails(mta) == [0, 1]


@in_loop
async def test_a_server_that_takes_its_leave_of_an_idle_connection_is_asked_anew() -> None:
    leaves: Script = [
        ("MAIL", [Send(b"250 2.1.0 ok\r\n")]),
        ("MAIL", [Send(b"421 4.4.2 idle for too long\r\n"), Act("close")]),
    ]
    async with proxied(mta=Mta(leaves, ())) as (running, mta):
        client = await running.greeted()
        for _ in range(2):
            assert (await client.deliver(LETTER)).code == 250
        assert mails(mta) == [2, 1]


@in_loop
async def test_what_became_of_one_message_does_not_count_for_the_next() -> None:
    scripts: Sequence[Script] = [[(".", [Act("close")])], [("body:1", [Act("close")])], []]
    async with proxied(mta=Mta(*scripts)) as (running, mta):
        client = await running.greeted()
        assert (await client.deliver(LETTER)).text.startswith(b"451 4.4.2")
        assert (await client.deliver(BIG)).code == 250  # it is sent once more
        assert mails(mta) == [1, 1, 1]


@in_loop
async def test_a_message_whose_end_was_not_sent_is_not_said_to_be_at_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with proxied(gate(whole=False), body="stream") as (running, mta):
        client = await running.greeted(MAIL, RCPT)
        await client.send(b"BDAT %d\r\n%b" % (len(LETTER), LETTER))
        assert (await client.reply()).code == 250
        await mta.connections[-1].end()
        await asyncio.sleep(0.05)
        assert (await client.say(b"BDAT 0 LAST")).text.startswith(b"451 4.4.2")
    assert "may have it" not in caplog.text


@in_loop
async def test_a_server_that_drips_its_reply_has_not_answered() -> None:
    drips = [step for octet in b"250 2.1.0 " for step in (Send(bytes([octet])), Wait(0.3))]
    mta = Mta([("MAIL", [*drips, Send(b"ok\r\n")])])
    async with proxied(mta=mta, timeouts=Timeouts(upstream=0.4)) as (running, _):
        client = await running.greeted()
        assert (await client.say(MAIL)).text.startswith(b"451 4.4.2")


@in_loop
async def test_clients_do_not_each_ask_a_server_that_does_not_greet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(route, "PATIENCE", 0.1)
    late: Script = [("connect", [Wait(0.6), Send(b"220 mx.example.org ESMTP\r\n")])]
    async with proxied(mta=Mta(late)) as (running, mta):
        await asyncio.gather(*(running.greeted() for _ in range(10)))
        assert len(mta.connections) == 1


@pytest.mark.parametrize("mode", ["try", "require"])
@in_loop
async def test_a_unix_socket_is_not_encrypted(
    mode: Literal["try", "require"], tmp_path: Path
) -> None:
    """Dovecot's LMTP offers it there; no certificate has the name of a socket."""
    mta = Mta(lmtp=True, path=tmp_path / "lmtp", keywords=[*OFFERS, b"STARTTLS"])
    async with proxied(mta=mta, upstream_tls=UpstreamTLS(mode=mode)) as (running, _):
        client = await running.greeted()
        assert (await client.deliver(LETTER)).code == 250
        assert b"STARTTLS" not in mta.commands


# -- messages that are kept, or are too big -------------------------------------------------------


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "headers", "body"])
@pytest.mark.parametrize("need", ["quarantine", "add_recipient"])
def test_a_streamed_message_cannot_be_kept_nor_its_envelope_edited_late(
    need: Literal["quarantine", "add_recipient"], stage: str
) -> None:
    """What a quarantine would have is its header section; the envelope is at the server by then."""
    policy = Policy("late")

    async def handler(*arguments: object) -> None: ...

    getattr(policy, stage)(needs={need})(handler)
    refused = {
        body: unmet(
            [Loaded(policy, "late")],
            SmtpAdapter(SmtpOptions(body=body, quarantine="maildir:/q")).capabilities,
        )
        for body in ("hold", "stream")
    }
    assert refused["hold"] == []
    assert bool(refused["stream"]) is (need == "quarantine" or stage in ("headers", "body"))


@in_loop
async def test_a_quarantine_that_fails_takes_no_other_message_with_it(tmp_path: Path) -> None:
    policy = Policy("keeps")

    @policy.message(needs={"quarantine"})
    async def message(message: Message) -> Quarantine | None:
        return Quarantine("odd") if message.headers.get("Subject") == "odd" else None

    kept = tmp_path / "kept"
    options = SmtpOptions(listen="127.0.0.1:0", quarantine=f"maildir:{kept}")
    async with Mta() as mta, serving(policy, upstream=mta, options=options) as running:
        client = await running.greeted()
        (kept / "tmp").rmdir()
        assert (await client.deliver(LETTER.replace(b"x", b"odd"))).code == 451
        assert (await client.deliver(LETTER)).code == 250
    assert mta.faults == []
    assert len(mta.messages) == 1


@pytest.mark.parametrize(("oversize", "size"), [("defer", 1000), ("continue", 2000)])
@in_loop
async def test_the_size_that_is_offered_is_one_that_is_taken(
    oversize: Literal["defer", "continue"], size: int
) -> None:
    limits = CoreLimits(message=1000, oversize=oversize)
    async with proxied(core=limits, limits=Limits(message=2000)) as (running, _):
        client = await running.greeted()
        assert b"SIZE %d\r\n" % size in client.said
        assert (await client.say(MAIL + b" SIZE=%d" % (size + 1))).code == 552
        assert (await client.deliver(LETTER + b"%b\r\n" % (b"x" * 70) * 10)).code == 250
