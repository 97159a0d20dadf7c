"""Ways around a login that were open once: of one that failed, was broken off, or is another's."""

from __future__ import annotations

import itertools
import ssl
from base64 import b64encode
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from mailgate import Attempt, Authenticated, Message, Policy, Session
from mailgate_smtp.options import TLS
from tests.core.asking import in_loop
from tests.hostile.cases import Act, Send, Step
from tests.smtp.client import Client
from tests.smtp.mta import OFFERS, Mta, Script
from tests.smtp.running import proxied

CERTIFICATE = Path(__file__).with_name("certificate.pem")  # of mx.example.org and 127.0.0.1
LETTER = b"Subject: x\r\n\r\nHello.\r\n"
MAIL, RCPT = b"MAIL FROM:<ann@client.example>", b"RCPT TO:<bob@example.org>"
ELSEWHERE = b"RCPT TO:<bob@elsewhere.example>"
SECRET = "correct horse"

WELCOME = Send(b"235 2.7.0 welcome\r\n")
WRONG = Send(b"535 5.7.8 wrong\r\n")
ASKS = Send(b"334 \r\n")

XFORWARD = b"XFORWARD NAME ADDR PORT PROTO HELO"
XCLIENT = b"XCLIENT NAME ADDR PORT PROTO HELO LOGIN"

unencrypted = partial(proxied, auth_without_tls=True)
passing = partial(unencrypted, auth="passthrough")


def plain(password: str = SECRET) -> bytes:
    return b"AUTH PLAIN " + b64encode(f"\0ann\0{password}".encode())


def answering(*steps: Step, also: bytes = b"ENHANCEDSTATUSCODES") -> Mta:
    """Make a server whose replies to AUTH and to responses are these, on each connection."""
    script: Script = [("AUTH", [step]) for step in steps]
    return Mta(script, keywords=[*OFFERS, b"AUTH PLAIN LOGIN", also])


class Door:
    """A policy that lets in who knows the password, and notes who sends messages."""

    def __init__(self) -> None:
        self.policy = Policy("door")
        self.users: list[str | None] = []

        @self.policy.auth(needs={"credentials", "authenticate"})
        async def auth(session: Session, attempt: Attempt) -> Authenticated | None:
            return Authenticated("ann") if attempt.password == SECRET else None

        @self.policy.mail
        async def mail(message: Message) -> None:
            self.users.append(message.session.user)


def onlooker(users: list[str | None]) -> Policy:
    """Make a policy that notes who sends messages."""
    policy = Policy("onlooker")

    @policy.mail
    async def mail(message: Message) -> None:
        users.append(message.session.user)

    return policy


async def encrypt(client: Client) -> None:
    """Say STARTTLS, and greet again."""
    assert (await client.say(b"STARTTLS")).code == 220
    await client.start_tls(ssl.create_default_context(cafile=CERTIFICATE))
    assert (await client.say(b"EHLO client.example.org")).code == 250


def logged_in(mta: Mta) -> list[list[bytes]]:
    """Return what was said on the connections on which AUTH was, but for QUIT at their end."""
    return [
        [line for line in one.commands if line != b"QUIT"]
        for one in mta.connections
        if any(line.startswith(b"AUTH") for line in one.commands)
    ]


# -- broken off -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["half_close", "reset", "bare LF"])
@in_loop
async def test_who_leaves_in_a_login_leaves_no_open_question_to_the_next(
    how: Literal["half_close", "reset", "bare LF"],
) -> None:
    """The server waits for a response: the next command on that connection would be one."""
    async with passing(onlooker([]), mta=answering(ASKS, ASKS)) as (running, mta):
        client = await running.greeted()
        assert (await client.say(b"AUTH LOGIN")).code == 334
        if how == "bare LF":
            await client.send(b"eA==\n")
        else:
            await client.play([Act(how)])
        await client.until_ended()
        await running.settle()
        assert b"421 4.3.0" not in client.said  # it is not our fault
        other = await running.greeted()
        assert (await other.deliver(LETTER)).code == 250
        (commands,) = logged_in(mta)
        assert commands[-1] == b"AUTH LOGIN"


@pytest.mark.parametrize(
    "octets", [b"YQ\rMAIL", b"YQ==\0", b"\xff", b"YQ=====", b"MAIL\tFROM:<evil@x.example>"]
)
@in_loop
async def test_an_initial_response_that_is_not_base64_does_not_get_to_the_server(
    octets: bytes,
) -> None:
    async with passing(onlooker([]), mta=answering(ASKS)) as (running, mta):
        client = await running.greeted()
        assert (await client.say(b"AUTH LOGIN " + octets)).code in (500, 501)
        assert logged_in(mta) == []


@pytest.mark.parametrize("reply", [b"250 fine\r\n", b"220 hello\r\n", b"354 go on\r\n"])
@in_loop
async def test_an_answer_to_a_login_that_is_none_lets_nobody_in(reply: bytes) -> None:
    async with passing(onlooker([]), mta=answering(Send(reply)), auth_required=True) as (
        running,
        mta,
    ):
        client = await running.greeted()
        assert (await client.say(plain())).text.startswith(b"454 4.7.0")
        assert (await client.say(MAIL)).code == 530
        (commands,) = logged_in(mta)
        assert commands[-1] == plain()


@in_loop
async def test_who_leaves_with_the_login_is_asked_nothing() -> None:
    """Nobody will answer: the session is over now, and not when the time of a command is."""
    async with passing(onlooker([]), mta=answering(ASKS, ASKS)) as (running, mta):
        client = await running.greeted()
        client.given += b"AUTH LOGIN\r\n"
        client.transport.write(b"AUTH LOGIN\r\n")
        client.transport.write_eof()
        await client.until_ended()
        await running.settle()
        (commands,) = logged_in(mta)
        assert commands[-1] == b"AUTH LOGIN"


@in_loop
async def test_a_server_that_closes_at_a_login_has_the_proxy_close_too() -> None:
    mta = answering(Send(b"421 4.7.0 too many\r\n"))
    async with passing(onlooker([]), mta=mta) as (running, _):
        client = await running.greeted()
        assert (await client.say(plain())).text == b"421 4.7.0 too many\r\n"
        await client.until_ended()


@in_loop
async def test_failures_of_one_client_are_not_counted_against_the_next() -> None:
    """Servers hang up after some errors on a connection, as Postfix' smtpd_hard_error_limit."""
    async with passing(onlooker([]), mta=answering(WRONG)) as (running, mta):
        client = await running.greeted()
        assert (await client.say(plain("guess"))).code == 535
        assert (await client.deliver(LETTER)).code == 250
        (commands,) = logged_in(mta)
        assert MAIL not in commands


# -- forgotten ------------------------------------------------------------------------------------


@in_loop
async def test_a_login_does_not_outlive_starttls() -> None:
    """RFC 3207 4.2: what was known of the client before is to be forgotten."""
    door = Door()
    async with unencrypted(
        door.policy,
        auth="policy",
        auth_required=True,
        tls=TLS(cert=CERTIFICATE),
    ) as (running, _):
        client = await running.greeted()
        assert (await client.say(plain())).code == 235
        await encrypt(client)
        assert (await client.say(MAIL)).code == 530
        assert (await client.say(plain("guess"))).code == 535
        assert (await client.say(MAIL)).code == 530  # nor does a failure bring it back
        assert (await client.say(plain())).code == 235
        assert (await client.deliver(LETTER)).code == 250
    assert door.users == ["ann"]


@in_loop
async def test_who_is_encrypted_behind_a_login_may_not_relay_by_it() -> None:
    users: list[str | None] = []
    async with passing(
        onlooker(users),
        mta=answering(WELCOME, WRONG),
        tls=TLS(cert=CERTIFICATE),
        relay_domains=("example.org",),
    ) as (running, mta):
        client = await running.greeted()
        assert (await client.say(plain())).code == 235
        assert (await client.say(MAIL)).code == 250
        assert (await client.say(ELSEWHERE)).code == 250
        assert (await client.say(b"RSET")).code == 250
        await encrypt(client)
        assert (await client.say(MAIL)).code == 250
        assert (await client.say(ELSEWHERE)).text.startswith(b"550 5.7.1")
        assert (await client.say(RCPT)).code == 250
        assert (await client.data(LETTER)).code == 250
        assert [line.count(MAIL) for line in logged_in(mta)] == [1]
    assert users == ["ann", None]


@in_loop
async def test_a_login_is_of_the_client_before_xclient() -> None:
    users: list[str | None] = []
    async with passing(
        onlooker(users), mta=answering(WELCOME), trusted=("127.0.0.1",), auth_required=True
    ) as (running, mta):
        client = await running.greeted()
        assert (await client.say(plain())).code == 235
        assert (await client.deliver(LETTER)).code == 250
        assert (await client.say(b"XCLIENT ADDR=203.0.113.5")).code == 220
        assert (await client.say(b"EHLO other.example")).code == 250
        assert (await client.say(MAIL)).code == 530
        assert (await client.say(b"XCLIENT LOGIN=carol")).code == 220
        assert (await client.say(b"EHLO other.example")).code == 250
        assert (await client.deliver(LETTER)).code == 250
        assert [commands.count(MAIL) for commands in logged_in(mta)] == [1]
    assert users == ["ann", "carol"]


# -- who logs in ----------------------------------------------------------------------------------


@in_loop
async def test_the_server_knows_whose_login_fails() -> None:
    """It may count failures by address, and would count all the world's against the proxy."""
    mta = answering(WRONG, also=XCLIENT)
    async with passing(onlooker([]), mta=mta, trusted=("127.0.0.1",)) as (running, _):
        client = await running.greeted()
        assert (await client.say(b"XCLIENT ADDR=203.0.113.5")).code == 220
        assert (await client.say(b"EHLO other.example")).code == 250
        assert (await client.say(plain("guess"))).code == 535
        (commands,) = logged_in(mta)
        assert [line.split()[0] for line in commands[-3:]] == [b"XCLIENT", b"EHLO", b"AUTH"]
        assert b" ADDR=203.0.113.5" in commands[-3]


@in_loop
async def test_messages_behind_a_login_are_forwarded_as_well() -> None:
    mta = answering(WELCOME, also=XFORWARD)
    async with passing(onlooker([]), mta=mta, trusted=("127.0.0.1",)) as (running, _):
        client = await running.greeted()
        assert (await client.say(plain())).code == 235
        for address in (b"192.0.2.1", b"192.0.2.2"):
            assert (await client.say(b"XFORWARD ADDR=" + address)).code == 250
            assert (await client.deliver(LETTER)).code == 250
        (commands,) = logged_in(mta)
    before = [line for line, next_one in itertools.pairwise(commands) if next_one == MAIL]
    assert [b" ADDR=192.0.2.1 " in line + b" " for line in before] == [True, False]
    assert [b" ADDR=192.0.2.2 " in line + b" " for line in before] == [False, True]


# -- shown and told -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [plain(), plain().replace(b" ", b"\t", 1), plain().replace(b" ", b"\t"), b"AUTH"]
)
@in_loop
async def test_a_policy_that_watches_commands_sees_no_password(line: bytes) -> None:
    shown: list[str] = []
    policy = Policy("watching")

    @policy.command()
    async def command(session: Session, verb: str, argument: str) -> None:
        shown.append(f"{verb} {argument}")

    async with passing(policy, mta=answering(WRONG)) as (running, _):
        client = await running.greeted()
        assert (await client.say(line)).code >= 500
    (said,) = (each for each in shown if each.startswith("AUTH"))
    assert said.split() in (["AUTH"], ["AUTH", "PLAIN"])


@in_loop
async def test_a_login_that_nobody_can_check_now_is_tried_again(tmp_path: Path) -> None:
    async with unencrypted(onlooker([]), auth=f"dovecot:{tmp_path / 'gone'}") as (running, _):
        client = await running.greeted()
        assert (await client.say(plain())).text.startswith(b"454 4.7.0")
