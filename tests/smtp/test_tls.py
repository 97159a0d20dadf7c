"""Encryption on both sides of the proxy, with a certificate of these tests."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from mailgate import Message, Policy
from mailgate_smtp.options import TLS, UpstreamTLS
from tests.core.asking import in_loop
from tests.hostile.cases import Send
from tests.milter.running import LOOPS, run
from tests.smtp.client import Client
from tests.smtp.mta import OFFERS, Mta, Script
from tests.smtp.running import Running, proxied

CERTIFICATE = Path(__file__).with_name("certificate.pem")  # of mx.example.org and 127.0.0.1
LETTER = b"Subject: x\r\n\r\nHello.\r\n"
MAIL, RCPT = b"MAIL FROM:<ann@client.example>", b"RCPT TO:<bob@example.org>"


def trusting() -> ssl.SSLContext:
    """Return what a client needs that trusts the certificate."""
    return ssl.create_default_context(cafile=CERTIFICATE)


def serving_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


class Seen:
    """A policy that notes what encrypts the session of each message."""

    def __init__(self) -> None:
        self.policy = Policy("seen")
        self.versions: list[str | None] = []

        @self.policy.mail
        async def mail(message: Message) -> None:
            tls = message.session.tls
            self.versions.append(tls and tls.version)


@asynccontextmanager
async def observed(
    mta: Mta | None = None, **options: Any
) -> AsyncIterator[tuple[Running, Mta, Seen]]:
    """Serve with some options, and look what encrypts messages."""
    seen = Seen()
    async with proxied(seen.policy, mta=mta, **options) as (running, upstream):
        yield running, upstream, seen


# -- clients --------------------------------------------------------------------------------------


async def encrypted(running: Running) -> Client:
    """Open a session, and encrypt it."""
    client = await running.open()
    await client.begin()
    assert b"STARTTLS" in client.said
    assert (await client.say(b"STARTTLS")).code == 220
    await client.start_tls(trusting())
    return client


@pytest.mark.parametrize("loop", LOOPS)
def test_a_session_is_encrypted_behind_starttls(loop: str) -> None:
    async def whole() -> None:
        async with observed(tls=TLS(cert=CERTIFICATE)) as (running, mta, seen):
            client = await encrypted(running)
            assert b"STARTTLS" not in (await client.say(b"EHLO c.example")).text
            assert (await client.deliver(LETTER * 100_000)).code == 250
            assert (await client.say(b"STARTTLS")).code in (502, 503)
            assert mta.messages[0].content == LETTER * 100_000
            assert seen.versions in (["TLSv1.2"], ["TLSv1.3"])

    run(whole, loop)


@in_loop
async def test_what_was_said_before_encryption_is_forgotten() -> None:
    async with observed(tls=TLS(cert=CERTIFICATE)) as (running, _, __):
        client = await encrypted(running)
        assert (await client.say(MAIL)).text.startswith(b"503 5.5.1")


@in_loop
async def test_a_transaction_is_not_encrypted_in_its_middle() -> None:
    async with observed(tls=TLS(cert=CERTIFICATE)) as (running, mta, _):
        client = await running.open()
        await client.begin(MAIL, RCPT)
        assert (await client.say(b"STARTTLS")).code == 503
        assert (await client.data(LETTER)).code == 250
        assert len(mta.messages) == 1


@in_loop
async def test_no_mail_is_taken_unencrypted_where_that_is_required() -> None:
    async with observed(tls=TLS(cert=CERTIFICATE, mode="require")) as (running, mta, _):
        client = await running.open()
        await client.begin()
        assert (await client.say(MAIL)).text.startswith(b"530 5.7.0")
        client = await encrypted(running)
        assert (await client.say(b"EHLO c.example")).code == 250
        assert (await client.deliver(LETTER)).code == 250
        assert len(mta.messages) == 1


@in_loop
async def test_without_a_certificate_nothing_is_offered() -> None:
    async with observed() as (running, _, __):
        client = await running.open()
        await client.begin()
        assert b"STARTTLS" not in client.said
        assert (await client.say(b"STARTTLS")).code == 502


@in_loop
async def test_a_handshake_that_fails_ends_its_connection_only() -> None:
    async with observed(tls=TLS(cert=CERTIFICATE)) as (running, mta, _):
        broken, other = await running.open(), await encrypted(running)
        await broken.begin()
        assert (await broken.say(b"STARTTLS")).code == 220
        broken.transport.write(b"MAIL FROM:<evil@x.example>\r\n" * 10)
        await broken.until_ended()
        broken.close()  # an alert of TLS is no reply to check
        assert (await other.say(b"EHLO c.example")).code == 250
        assert (await other.deliver(LETTER)).code == 250
        assert not any(b"evil" in command for command in mta.commands)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_session_may_be_encrypted_from_its_beginning(loop: str) -> None:
    async def whole() -> None:
        async with observed(listen="smtps:127.0.0.1:0", tls=TLS(cert=CERTIFICATE)) as (
            running,
            _,
            seen,
        ):
            client = await running.open(trusting())
            await client.begin()
            assert b"STARTTLS" not in client.said
            assert (await client.deliver(LETTER)).code == 250
            assert seen.versions in (["TLSv1.2"], ["TLSv1.3"])

    run(whole, loop)


# -- the server behind ----------------------------------------------------------------------------

Mode = Literal["off", "try", "require"]


def offering(*scripts: Script, tls: bool = True, implicit: bool = False) -> Mta:
    context = serving_tls() if tls else None
    return Mta(*scripts, keywords=[*OFFERS, b"STARTTLS"], tls=context, implicit_tls=implicit)


async def delivered(
    mta: Mta, mode: Mode, ca: Path | None = CERTIFICATE
) -> tuple[bytes, list[bool]]:
    """Send a message; return its first refusal or last reply, and which connections encrypt."""
    tls = UpstreamTLS(mode=mode, ca=ca)
    async with observed(mta, upstream_tls=tls) as (running, _, __):
        client = await running.open()
        await client.begin()
        reply = await client.deliver(LETTER)
    return reply.text, [one.encrypted for one in mta.connections]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("mode", ["try", "require"])
def test_the_way_to_the_server_is_encrypted(mode: Mode, loop: str) -> None:
    mta = offering()
    text, encrypts = run(lambda: delivered(mta, mode), loop)
    assert (text[:3], encrypts) == (b"250", [True])
    assert [line[:8] for line in mta.commands[:4]] == [
        *(b"EHLO " + mta.commands[0][5:8], b"STARTTLS", b"EHLO " + mta.commands[0][5:8]),
        b"MAIL FRO",
    ]


@in_loop
async def test_the_way_to_the_server_may_be_encrypted_from_its_beginning() -> None:
    mta = Mta(tls=serving_tls(), implicit_tls=True)
    text, _ = await delivered(mta, "require")
    assert text[:3] == b"250"
    assert len(mta.messages) == 1


@in_loop
async def test_whoever_has_the_certificate_will_do_where_encryption_is_tried() -> None:
    text, encrypts = await delivered(offering(), "try", ca=None)
    assert (text[:3], encrypts) == (b"250", [True])


@in_loop
async def test_an_unknown_certificate_is_not_enough_where_encryption_is_required() -> None:
    mta = offering()
    text, _ = await delivered(mta, "require", ca=None)
    assert text.startswith(b"451 4.7.")
    assert not any(line.startswith(b"MAIL") for line in mta.commands)


REFUSES: Script = [("STARTTLS", [Send(b"454 4.7.0 not now\r\n")])]


@pytest.mark.parametrize("script", [REFUSES, None])
@in_loop
async def test_mail_goes_unencrypted_only_where_that_is_allowed(script: Script | None) -> None:
    def make() -> Mta:
        return Mta() if script is None else offering(script)

    text, encrypts = await delivered(make(), "try")
    assert (text[:3], encrypts) == (b"250", [False])
    mta = make()
    text, _ = await delivered(mta, "require")
    assert text.startswith(b"451 4.7.")
    assert not any(line.startswith(b"MAIL") for line in mta.commands)


@in_loop
async def test_requiretls_is_carried_where_both_sides_are_verified() -> None:
    """RFC 8689: from the client to the server behind, or not at all."""
    keywords = [*OFFERS, b"STARTTLS", b"REQUIRETLS"]
    async with observed(
        Mta(keywords=keywords, tls=serving_tls()),
        tls=TLS(cert=CERTIFICATE),
        upstream_tls=UpstreamTLS(mode="require", ca=CERTIFICATE),
    ) as (running, mta, _):
        plain = await running.open()
        await plain.begin()
        assert b"REQUIRETLS" not in plain.said
        assert (await plain.say(MAIL + b" REQUIRETLS")).code == 555
        client = await encrypted(running)
        assert b"REQUIRETLS" in (await client.say(b"EHLO c.example")).text
        assert (await client.say(MAIL + b" REQUIRETLS")).code == 250
        assert MAIL + b" REQUIRETLS" in mta.commands
