"""AUTH through the proxy: asked of a policy, or passed on to the server behind (RFC 4954)."""

from __future__ import annotations

import logging
from base64 import b64encode
from functools import partial

import pytest

from mailgate import Attempt, Authenticated, Message, Policy, Reject, Session
from tests.core.asking import in_loop
from tests.hostile.cases import Act, Kind, Send
from tests.smtp.client import Client, Reply
from tests.smtp.gate import gate
from tests.smtp.mta import OFFERS, Mta, Script
from tests.smtp.running import proxied

LETTER = b"Subject: x\r\n\r\nHello.\r\n"
MAIL, RCPT = b"MAIL FROM:<ann@client.example>", b"RCPT TO:<bob@example.org>"
SECRET = "correct horse"

unencrypted = partial(proxied, auth_without_tls=True)
AUTH = [*OFFERS, b"AUTH PLAIN LOGIN CRAM-MD5"]


def base64(text: str) -> bytes:
    return b64encode(text.encode())


def plain(user: str, password: str = SECRET) -> bytes:
    return base64(f"\0{user}\0{password}")


def door(users: list[str | None]) -> Policy:
    """Make a policy that lets in who knows the password, and notes who sends messages."""
    policy = Policy("door")

    @policy.auth(needs={"credentials", "authenticate"})
    async def auth(session: Session, attempt: Attempt) -> Authenticated | Reject | None:
        if attempt.user == "banned":
            return Reject("not you", code=535, enhanced="5.7.1")
        return Authenticated(attempt.user or "") if attempt.password == SECRET else None

    @policy.mail
    async def mail(message: Message) -> None:
        users.append(message.session.user)

    return policy


def onlooker() -> Policy:
    """Make a policy that is asked, and leaves it to the server."""
    policy = Policy("onlooker")

    @policy.auth
    async def auth(session: Session, attempt: Attempt) -> Reject | None:
        repr(attempt)
        return None

    return policy


async def log_in(client: Client, *lines: bytes) -> Reply:
    """Say the lines of a login, each behind a challenge; return the last reply."""
    for line in lines[:-1]:
        assert (await client.say(line)).code == 334
    return await client.say(lines[-1])


# -- asked of a policy ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        [b"AUTH PLAIN " + plain("ann")],
        [b"auth plain", plain("ann")],
        [b"AUTH LOGIN", base64("ann"), base64(SECRET)],
        [b"AUTH LOGIN " + base64("ann"), base64(SECRET)],
    ],
)
@in_loop
async def test_who_knows_the_password_is_logged_in(
    lines: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    users: list[str | None] = []
    async with unencrypted(door(users), auth="policy", auth_required=True) as (running, mta):
        client = await running.greeted()
        assert b"AUTH PLAIN LOGIN\r\n" in client.said
        assert (await client.say(MAIL)).text.startswith(b"530 5.7.0")
        assert (await log_in(client, *lines)).text.startswith(b"235 2.7.0")
        assert (await client.say(lines[0])).code == 503
        assert (await client.deliver(LETTER)).code == 250
        assert len(mta.messages) == 1
    assert users == ["ann"]
    assert SECRET not in caplog.text
    assert plain("ann").decode() not in caplog.text
    assert base64(SECRET).decode() not in caplog.text


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        ([b"AUTH PLAIN " + plain("ann", "wrong")], b"535 5.7.8"),
        ([b"AUTH PLAIN " + plain("banned")], b"535 5.7.1"),
        ([b"AUTH PLAIN ====="], b"501 5.5."),
        ([b"AUTH PLAIN " + base64("ann")], b"501 5.5."),
        ([b"AUTH PLAIN", b"*"], b"501 5."),
        ([b"AUTH LOGIN", b"*"], b"501 5."),
        ([b"AUTH LOGIN", b"MAIL FROM:<evil@x.example>"], b"501 5.5."),
        ([b"AUTH LOGIN", base64("ann"), b"A" * 13_000], b"50"),
        ([b"AUTH CRAM-MD5"], b"504 5.5.4"),
        ([b"AUTH"], b"501 5.5.4"),
        ([b"AUTH PLAIN a b"], b"501 5.5.4"),
    ],
)
@in_loop
async def test_a_login_that_fails_leaves_nothing_behind(lines: list[bytes], reply: bytes) -> None:
    users: list[str | None] = []
    async with unencrypted(door(users), auth="policy") as (running, mta):
        client = await running.greeted()
        assert (await log_in(client, *lines)).text.startswith(reply)
        assert (await client.deliver(LETTER)).code == 250
        assert not any(b"evil" in command for command in mta.commands)
    assert users == [None]


@in_loop
async def test_a_login_stands_before_a_message_and_behind_a_greeting() -> None:
    async with unencrypted(door([]), auth="policy") as (running, _):
        client = await running.open()
        await client.reply()
        assert (await client.say(b"AUTH PLAIN " + plain("ann"))).code == 503
        client = await running.greeted()
        assert (await client.say(MAIL)).code == 250
        assert (await client.say(b"AUTH PLAIN " + plain("ann"))).code == 503


@in_loop
async def test_a_password_is_not_asked_for_unencrypted() -> None:
    async with proxied(door([]), auth="policy") as (running, _):
        client = await running.greeted()
        assert b"AUTH" not in client.said
        assert (await client.say(b"AUTH PLAIN " + plain("ann"))).text.startswith(b"538 5.7.11")


@in_loop
async def test_passwords_cannot_be_guessed_for_ever() -> None:
    async with unencrypted(door([]), auth="policy") as (running, _):
        client = await running.greeted()
        for _ in range(10):
            assert (await client.say(b"AUTH PLAIN " + plain("ann", "guess"))).code == 535
        assert (await client.say(b"AUTH PLAIN " + plain("ann", "guess"))).code == 535
        await client.until_ended()
        assert client.check().exchanges[-1].reply.code == 421


# -- passed on ------------------------------------------------------------------------------------


def passing(*rows: tuple[str, bytes]) -> Mta:
    """Make a server whose replies to AUTH, and to the responses behind it, are these."""
    script: Script = [(name, [Send(reply)]) for name, reply in rows]
    return Mta(script, keywords=AUTH)


@in_loop
async def test_a_login_is_passed_on_line_by_line() -> None:
    mta = passing(
        ("AUTH", b"334 VXNlcm5hbWU6\r\n"),
        ("AUTH", b"334 UGFzc3dvcmQ6\r\n"),
        ("AUTH", b"235 2.7.0 welcome\r\n"),
    )
    async with unencrypted(onlooker(), mta=mta, auth="passthrough") as (running, _):
        client = await running.greeted()
        assert b"AUTH PLAIN LOGIN CRAM-MD5\r\n" in client.said
        lines = [b"AUTH LOGIN", base64("ann"), base64(SECRET)]
        for line, reply in zip(lines, (b"334 VXNlcm5hbWU6", b"334 UGFzc3dvcmQ6"), strict=False):
            assert (await client.say(line)).text == reply + b"\r\n"
        assert (await client.say(lines[-1])).text == b"235 2.7.0 welcome\r\n"
        assert (await client.deliver(LETTER)).code == 250
        (used,) = (one for one in mta.connections if MAIL in one.commands)
        begin = used.commands.index(b"AUTH LOGIN")
        assert used.commands[begin : begin + 5] == [*lines, MAIL, RCPT]


@in_loop
async def test_a_login_that_is_lost_with_its_connection_is_not_replaced_by_an_idle_one() -> None:
    mta = passing(("AUTH", b"235 2.7.0 welcome\r\n"))
    async with unencrypted(onlooker(), mta=mta, auth="passthrough") as (running, _):
        ann, stranger = await running.greeted(), await running.greeted()
        assert (await ann.say(b"AUTH PLAIN " + plain("ann"))).code == 235
        assert (await stranger.deliver(LETTER)).code == 250
        (used,) = (one for one in mta.connections if any(b"AUTH" in line for line in one.commands))
        await used.end()
        codes = [(await ann.say(MAIL)).code, (await ann.say(MAIL)).code]
        assert codes == [451, 421]
        assert len(mta.messages) == 1


@in_loop
async def test_a_logged_in_connection_is_for_nobody_else() -> None:
    mta = passing(("AUTH", b"235 2.7.0 welcome\r\n"))
    async with unencrypted(onlooker(), mta=mta, auth="passthrough") as (running, _):
        ann, stranger = await running.greeted(), await running.greeted()
        assert (await ann.say(b"AUTH PLAIN " + plain("ann"))).code == 235
        for client in (ann, stranger, ann, stranger):
            assert (await client.deliver(LETTER)).code == 250
        await ann.say(b"QUIT")
        assert (await stranger.deliver(LETTER)).code == 250
    logged_in = [any(b"AUTH" in line for line in one.commands) for one in mta.connections]
    mails = [sum(line == MAIL for line in one.commands) for one in mta.connections]
    assert sum(n for n, by_ann in zip(mails, logged_in, strict=True) if by_ann) == 2
    assert sum(n for n, by_ann in zip(mails, logged_in, strict=True) if not by_ann) == 3


@pytest.mark.parametrize(
    "reply",
    [b"535 5.7.8 wrong\r\n", b"454 4.7.0 later\r\n", b"535-5.7.8 two\r\n535 5.7.8 lines\r\n"],
)
@in_loop
async def test_a_refused_login_is_told_verbatim_and_the_connection_is_for_all(
    reply: bytes,
) -> None:
    mta = passing(("AUTH", reply))
    async with unencrypted(onlooker(), mta=mta, auth="passthrough", auth_required=True) as (
        running,
        _,
    ):
        client = await running.greeted()
        assert (await client.say(b"AUTH PLAIN " + plain("ann", "wrong"))).text == reply
        assert (await client.say(MAIL)).code == 530


@in_loop
async def test_a_login_that_the_client_gives_up_is_given_up_at_the_server() -> None:
    mta = passing(("AUTH", b"334 \r\n"), ("AUTH", b"501 5.0.0 as you like\r\n"))
    async with unencrypted(onlooker(), mta=mta, auth="passthrough") as (running, _):
        client = await running.greeted()
        assert (await client.say(b"AUTH PLAIN")).text == b"334 \r\n"
        assert (await client.say(b"*")).text == b"501 5.0.0 as you like\r\n"
        assert (await client.deliver(LETTER)).code == 250


@pytest.mark.parametrize("response", [b"=====", b"MAIL FROM:<evil@x.example>"])
@in_loop
async def test_a_login_that_is_broken_off_reaches_nobody_else(response: bytes) -> None:
    """The server still waits for a response: the next command on that connection would be one."""
    mta = passing(("AUTH", b"334 \r\n"), ("AUTH", b"235 2.7.0 welcome\r\n"))
    async with unencrypted(onlooker(), mta=mta, auth="passthrough") as (running, _):
        client, other = await running.greeted(), await running.greeted()
        assert (await client.say(b"AUTH PLAIN")).code == 334
        assert (await client.say(response)).code == 501
        for each in (client, other):
            assert (await each.deliver(LETTER)).code == 250
    assert not any(b"evil" in command for command in mta.commands)
    (asked,) = (one for one in mta.connections if b"AUTH PLAIN" in one.commands)
    assert MAIL not in asked.commands


@pytest.mark.parametrize("kind", ["close", "reset"])
@in_loop
async def test_a_server_that_is_gone_is_no_login(kind: Kind) -> None:
    mta = Mta([("AUTH", [Act(kind)])], keywords=AUTH)
    async with unencrypted(onlooker(), mta=mta, auth="passthrough", auth_required=True) as (
        running,
        _,
    ):
        client = await running.greeted()
        assert (await client.say(b"AUTH PLAIN " + plain("ann"))).text.startswith(b"454 4.7.0")
        assert (await client.say(MAIL)).code == 530


@in_loop
async def test_a_policy_may_refuse_what_would_be_passed_on() -> None:
    async with unencrypted(gate(), mta=Mta(keywords=AUTH), auth="passthrough") as (running, mta):
        client = await running.greeted()
        assert (await client.say(b"AUTH PLAIN " + plain("ann"))).code == 535
        assert not any(b"AUTH" in command for command in mta.commands)
