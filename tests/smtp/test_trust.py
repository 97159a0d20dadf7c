"""Who is believed about a client, and what the server behind is told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mailgate import Message, Policy
from tests.core.asking import in_loop
from tests.smtp.client import Client
from tests.smtp.mta import OFFERS, Mta
from tests.smtp.running import Running, proxied

LETTER = b"Subject: x\r\n\r\nHello.\r\n"
MAIL, RCPT = b"MAIL FROM:<ann@client.example>", b"RCPT TO:<bob@example.org>"
LOOPBACK = ("127.0.0.1",)
PROXY = b"PROXY TCP4 192.0.2.66 127.0.0.1 5000 25\r\n"

XFORWARD = b"XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"
XCLIENT = b"XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"


class Seen:
    """A policy that looks at who sends a message."""

    def __init__(self) -> None:
        self.policy = Policy("seen")
        self.clients: list[str] = []

        @self.policy.mail
        async def mail(message: Message) -> None:
            session = message.session
            name = session.rdns or "-"
            self.clients.append(f"{session.client} {name} {session.helo} {session.user or '-'}")


@asynccontextmanager
async def observed(
    mta: Mta | None = None, **options: Any
) -> AsyncIterator[tuple[Running, Mta, Seen]]:
    """Serve with some options, and look who sends messages."""
    seen = Seen()
    async with proxied(seen.policy, mta=mta, **options) as (running, upstream):
        yield running, upstream, seen


async def behind(running: Running, header: bytes, greeting: bytes = b"EHLO c.example") -> Client:
    """Connect with a header of the PROXY protocol, and greet."""
    client = await running.open()
    client.transport.write(header)
    assert (await client.reply()).code == 220
    assert (await client.say(greeting)).code == 250
    return client


# -- who is believed ------------------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [(), ("192.0.2.0/24", "::1", "unix")])
@pytest.mark.parametrize("command", [b"XCLIENT ADDR=192.0.2.9", b"XFORWARD ADDR=192.0.2.9"])
@in_loop
async def test_a_stranger_is_not_believed(command: bytes, trusted: tuple[str, ...]) -> None:
    async with observed(trusted=trusted) as (running, _, seen):
        client = await running.open()
        await client.begin()
        assert b"XCLIENT" not in client.said
        assert b"XFORWARD" not in client.said
        assert (await client.say(command)).text.startswith(b"550 5.7.0")
        assert (await client.deliver(LETTER)).code == 250
        assert seen.clients == ["127.0.0.1 - client.example.org -"]


@in_loop
async def test_a_client_behind_a_balancer_is_not_trusted_as_that_is() -> None:
    async with observed(trusted=LOOPBACK, proxy_protocol=True, open_relay=True) as (
        running,
        _,
        seen,
    ):
        client = await behind(running, PROXY)
        for command in (b"XCLIENT ADDR=192.0.2.9 LOGIN=admin", b"XFORWARD ADDR=192.0.2.9"):
            assert (await client.say(command)).text.startswith(b"550 5.7.0")
        assert (await client.deliver(LETTER)).code == 250
        assert seen.clients == ["192.0.2.66 - c.example -"]


@in_loop
async def test_a_trusted_client_behind_a_balancer_is_believed() -> None:
    async with observed(
        trusted=(*LOOPBACK, "192.0.2.66"), proxy_protocol=True, open_relay=True
    ) as (
        running,
        _,
        seen,
    ):
        client = await behind(running, PROXY)
        assert (await client.say(b"XCLIENT ADDR=198.51.100.1 NAME=a.example")).code == 220
        assert (await client.say(b"EHLO a.example")).code == 250
        assert (await client.deliver(LETTER)).code == 250
        assert seen.clients == ["198.51.100.1 a.example a.example -"]


@in_loop
async def test_xclient_makes_another_client_of_a_session() -> None:
    async with observed(trusted=LOOPBACK) as (running, _, seen):
        client = await running.open()
        await client.begin()
        assert (await client.deliver(LETTER)).code == 250
        said = b"XCLIENT ADDR=IPV6:2001:db8::1 NAME=[UNAVAILABLE] LOGIN=a+2Bb"
        assert (await client.say(said)).code == 220
        assert (await client.say(MAIL)).code == 503  # the session begins anew
        assert (await client.say(b"EHLO other.example")).code == 250
        for _ in range(2):
            assert (await client.deliver(LETTER)).code == 250
        other = "2001:db8::1 - other.example a+b"
        assert seen.clients == ["127.0.0.1 - client.example.org -", other, other]


@in_loop
async def test_xforward_is_of_one_message() -> None:
    async with observed(trusted=LOOPBACK) as (running, _, seen):
        client = await running.open()
        await client.begin()
        said = b"XFORWARD ADDR=192.0.2.1 NAME=a.example HELO=b.example"
        assert (await client.say(said)).code == 250
        for _ in range(2):
            assert (await client.deliver(LETTER)).code == 250
        assert seen.clients == [
            "192.0.2.1 a.example b.example -",
            "127.0.0.1 - client.example.org -",
        ]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"XCLIENT", 501),
        (b"XCLIENT ADDR=999.1.1.1", 501),
        (b"XCLIENT HELO=a+0D+0ARCPT", 501),
        (b"XCLIENT HELO=a+00", 501),
        (b"XCLIENT HELO=" + b"a" * 300, 501),
        (b"XCLIENT FROB=1", 501),
        (b"XFORWARD LOGIN=a", 501),
    ],
)
@in_loop
async def test_what_a_trusted_peer_says_is_checked(command: bytes, code: int) -> None:
    async with observed(trusted=LOOPBACK) as (running, _, seen):
        client = await running.open()
        await client.begin()
        assert (await client.say(command)).code == code
        assert (await client.deliver(LETTER)).code == 250
        assert seen.clients == ["127.0.0.1 - client.example.org -"]


@pytest.mark.parametrize("command", [b"XCLIENT ADDR=192.0.2.1", b"XFORWARD ADDR=192.0.2.1"])
@in_loop
async def test_a_client_does_not_change_within_a_message(command: bytes) -> None:
    async with observed(trusted=LOOPBACK) as (running, mta, _):
        client = await running.open()
        await client.begin(MAIL, RCPT)
        assert (await client.say(command)).code == 503
        assert (await client.data(LETTER)).code == 250
        assert len(mta.messages) == 1


# -- the PROXY protocol ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"EHLO c.example\r\n",
        b"PROXY TCP4 192.0.2.66\r\n",
        b"PROXY TCP4 192.0.2.66 127.0.0.1 5000 25 " + b"x" * 100 + b"\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c" + b"\0" * 12,
        b"\0" * 300,
    ],
)
@in_loop
async def test_what_is_no_header_ends_the_connection(header: bytes) -> None:
    async with observed(trusted=LOOPBACK, proxy_protocol=True, open_relay=True) as (
        running,
        _,
        __,
    ):
        client = await running.open()
        client.transport.write(header)
        await client.until_ended()
        assert bytes(client.said).startswith(b"421 4.7.0 ")
        await behind(running, PROXY)


@in_loop
async def test_a_header_comes_once_and_from_trusted_peers_only() -> None:
    async with observed(trusted=("192.0.2.0/24",), proxy_protocol=True, open_relay=True) as (
        running,
        _,
        __,
    ):
        client = await running.open()
        client.transport.write(PROXY)
        await client.until_ended()
        assert bytes(client.said).startswith(b"421 4.7.0 ")
    async with observed(trusted=LOOPBACK, proxy_protocol=True, open_relay=True) as (
        running,
        _,
        seen,
    ):
        client = await running.open()
        client.transport.write(PROXY)
        await client.send(PROXY.replace(b".66", b".99"))
        assert [(await client.reply()).code for _ in range(2)] == [220, 500]
        assert (await client.say(b"EHLO c.example")).code == 250
        assert (await client.deliver(LETTER)).code == 250
        assert seen.clients == ["192.0.2.66 - c.example -"]


@in_loop
async def test_a_health_check_of_the_balancer_is_served() -> None:
    local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
    async with observed(trusted=LOOPBACK, proxy_protocol=True, open_relay=True) as (
        running,
        _,
        seen,
    ):
        client = await behind(running, local)
        assert (await client.deliver(LETTER)).code == 250
        assert seen.clients == ["127.0.0.1 - c.example -"]


# -- what the server behind is told -------------------------------------------------------------------


def told(mta: Mta, verb: bytes) -> list[bytes]:
    """Return the commands of a kind that a server was told, by each connection."""
    return [line for line in mta.commands if line.startswith(verb)]


@in_loop
async def test_a_client_is_forwarded_before_each_of_its_messages() -> None:
    options = {"trusted": LOOPBACK, "proxy_protocol": True, "open_relay": True}
    async with observed(Mta(keywords=[*OFFERS, XFORWARD]), **options) as (running, mta, _):
        first = await behind(running, PROXY)
        second = await behind(running, PROXY.replace(b".66", b".77"), b"HELO d.example")
        for client in (first, second, first):
            assert (await client.deliver(LETTER)).code == 250
    lines = told(mta, b"XFORWARD")
    assert [b"ADDR=192.0.2.66" in line for line in lines] == [True, False, True]
    assert b"HELO=c.example" in lines[0]
    assert b"PROTO=ESMTP" in lines[0]
    assert b"ADDR=192.0.2.77" in lines[1]
    assert b"PROTO=SMTP" in lines[1]
    assert len(mta.connections) == 1  # XFORWARD is of a message: the connection is for all


@in_loop
async def test_xclient_is_said_on_a_connection_for_one_client() -> None:
    options = {"trusted": LOOPBACK, "proxy_protocol": True, "open_relay": True}
    async with observed(Mta(keywords=[*OFFERS, XCLIENT]), **options) as (running, mta, _):
        first = await behind(running, PROXY)
        second = await behind(running, PROXY.replace(b".66", b".77"))
        for client in (first, second):
            assert (await client.deliver(LETTER)).code == 250
    identities = [
        [b"ADDR=192.0.2.66" in line for line in connection.commands if b"ADDR=" in line]
        for connection in mta.connections
    ]
    assert [each for each in identities if each] == [[True], [False]]
    for connection in mta.connections:
        verbs = [line.split()[0] for line in connection.commands if line[:4] != b"RSET"]
        assert verbs[:1] == [b"EHLO"]
        if b"XCLIENT" in verbs:
            last = len(verbs) - 1 - verbs[::-1].index(b"XCLIENT")
            assert verbs[last : last + 3] == [b"XCLIENT", b"EHLO", b"MAIL"]


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
@in_loop
async def test_a_header_goes_before_everything_else(identity: str) -> None:
    options = {"trusted": LOOPBACK, "proxy_protocol": True, "identity": identity}
    async with observed(Mta(wants_header=True), **options) as (running, mta, _):
        for number in (66, 77):
            client = await behind(running, PROXY.replace(b"66", b"%d" % number))
            assert (await client.deliver(LETTER)).code == 250
    headers = [one.header for one in mta.connections if any(b"MAIL" in c for c in one.commands)]
    if identity == "proxy-v1":
        assert [header.split()[2] for header in headers] == [b"192.0.2.66", b"192.0.2.77"]
    else:
        assert [header[16:20] for header in headers] == [b"\xc0\0\2\x42", b"\xc0\0\2\x4d"]


@in_loop
async def test_nothing_is_told_where_that_is_wished() -> None:
    mta = Mta(keywords=[*OFFERS, XFORWARD, XCLIENT])
    async with observed(mta, identity="none") as (running, _, __):
        client = await running.open()
        await client.begin()
        assert (await client.deliver(LETTER)).code == 250
    assert told(mta, b"X") == []


@pytest.mark.parametrize(
    ("identity", "offered"),
    [("xclient", ()), ("xforward", ()), ("xclient", (XFORWARD,)), ("xforward", (XCLIENT,))],
)
@in_loop
async def test_a_server_that_cannot_be_told_gets_no_mail(
    identity: str, offered: tuple[bytes, ...]
) -> None:
    mta = Mta(keywords=[*OFFERS, *offered])
    async with observed(mta, identity=identity) as (running, mta, _):
        client = await running.open()
        await client.begin()
        assert (await client.say(MAIL)).text.startswith(b"451 4.4.1")
        assert told(mta, b"MAIL") == []
