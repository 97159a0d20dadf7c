"""Limits, reloads, and the lines that are logged of decisions."""

from __future__ import annotations

import logging

import pytest

from mailgate.address import Address
from mailgate.chain import Chain, Defaults
from mailgate.content import Body
from mailgate.headers import Section, parse_fields
from mailgate.limits import Limits
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.stage import OnError, Stage
from mailgate.verdict import (
    Defer,
    Disconnect,
    Reject,
)
from tests.core.asking import (
    RECIPIENT,
    SENDER,
    content,
    converse,
    engine,
    in_loop,
    loaded,
    to_data,
    to_headers,
    to_mail,
)
from tests.core.recording import WHOLE, Asked, deliver

NO = Reject("no")


# -- limits --------------------------------------------------------------------------------------


@in_loop
async def test_sessions_have_a_limit() -> None:
    asked = Asked()
    busy = engine(asked.policy("a", {Stage.CONNECT: None}), limits=Limits(sessions=1))
    first, second = (busy.converse(Session(name, "test")) for name in "12")
    assert await first.connect() is None
    verdict = await second.connect()
    assert isinstance(verdict, Disconnect)
    assert verdict.reply.startswith("421 4.3.2 ")
    assert await second.mail(SENDER) == verdict
    assert asked == ["a.connect"]
    await second.close()
    await first.close()
    await first.close()
    assert busy.sessions == 0
    assert await busy.converse(Session("3", "test")).connect() is None


@in_loop
async def test_recipients_have_a_limit() -> None:
    conversation = converse(Policy(), limits=Limits(recipients=2))
    message = await to_mail(conversation)
    replies = [await conversation.rcpt(Address(f"{n}@example.org")) for n in range(3)]
    assert replies[:2] == [None, None]
    assert isinstance(replies[2], Defer)
    assert replies[2].reply.startswith("452 4.5.3 ")
    assert len(message.recipients) == 2
    assert await conversation.data() is None


@pytest.mark.parametrize(
    ("limits", "section", "fits"),
    [
        (Limits(fields=3), b"A: b\r\n" * 3, True),
        (Limits(fields=3), b"A: b\r\n" * 4, False),
        (Limits(headers=12), b"A: b\r\n" * 2, True),
        (Limits(headers=12), b"A: b\r\n" * 2 + b" \r\n", False),
    ],
)
@in_loop
async def test_a_header_section_has_limits(limits: Limits, section: bytes, fits: bool) -> None:
    asked = Asked()
    conversation = converse(asked.policy("a", {Stage.HEADERS: None}), limits=limits)
    await to_data(conversation)
    verdict = await conversation.headers(Section.of(parse_fields(section)))
    if fits:
        assert verdict is None
        assert asked == ["a.headers"]
        return
    assert isinstance(verdict, Reject)
    assert verdict.reply.startswith("552 5.3.4 ")
    assert await conversation.end(content()) == verdict
    assert asked == []


@pytest.mark.parametrize(
    ("word", "reply"), [("defer", "451 4.3.4 "), ("reject", "552 5.3.4 "), ("continue", None)]
)
@in_loop
async def test_a_message_that_is_too_big_is_what_the_administrator_says(
    word: OnError, reply: str | None
) -> None:
    asked = Asked()
    conversation = converse(
        asked.policy("a", {Stage.BODY: None, Stage.MESSAGE: NO}), limits=Limits(oversize=word)
    )
    await to_headers(conversation)
    verdict = conversation.too_big()
    assert (await conversation.end(content())) == verdict
    assert asked == []
    if reply is None:
        assert verdict is None
        await conversation.finish("accepted")
        assert await deliver(conversation) == NO
    else:
        assert isinstance(verdict, (Defer, Reject))
        assert verdict.reply.startswith(reply)


@pytest.mark.parametrize(("octets", "fits"), [(b"..a\r\n", True), (b"..ab\r\n", False)])
@in_loop
async def test_a_held_message_is_counted_as_it_came(octets: bytes, fits: bool) -> None:
    """The dots that SMTP adds take space, too."""
    conversation = converse(Asked().policy("a", WHOLE), limits=Limits(message=5))
    await to_headers(conversation)
    assert conversation.hold(Body(1 << 20, form="stuffed"), octets) == fits


# -- reload and logs -----------------------------------------------------------------------------


@in_loop
async def test_a_reload_is_for_new_conversations() -> None:
    asked = Asked()
    serving = engine(asked.policy("old", {Stage.MAIL: None}))
    before = serving.converse(Session("1", "test"))
    chain = Chain(loaded(asked.policy("new", WHOLE)), None, Defaults())
    serving.use(chain)
    after = serving.converse(Session("2", "test"))
    await before.mail(SENDER)
    await after.mail(SENDER)
    assert asked == ["old.mail", "new.mail"]
    assert before.interest.content == "none"
    assert after.interest.content == serving.interest.content == "buffer"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "mailgate.engine"]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "mailgate.engine")
    return caplog


def test_a_refusal_is_one_line(logged: pytest.LogCaptureFixture) -> None:
    @in_loop
    async def story() -> None:
        policy = Asked().policy("gate", {Stage.RCPT: Reject("no such user", 550, "5.1.1")})
        conversation = converse(policy)
        await to_mail(conversation)
        await conversation.rcpt(RECIPIENT)

    story()
    (line,) = lines(logged)
    words = dict(word.split("=", 1) for word in line.split())
    assert float(words.pop("ms")) >= 0
    assert words == {
        "verdict": "reject",
        "code": "550",
        "by": "gate.on_recipient",
        "stage": "rcpt",
        "from": "sender@client.example",
        "to": "rcpt@example.org",
        "client": "local",
        "id": "s1.1",
    }


def test_an_accepted_message_is_one_line_without_its_content(
    logged: pytest.LogCaptureFixture,
) -> None:
    @in_loop
    async def story() -> None:
        conversation = converse(Policy())
        await deliver(conversation)
        await conversation.finish("accepted")

    story()
    (line,) = lines(logged)
    assert line == (
        "verdict=accept from=sender@client.example to=rcpt@example.org client=local id=s1.1"
    )


def test_what_a_client_chose_stays_in_its_word(logged: pytest.LogCaptureFixture) -> None:
    @in_loop
    async def story() -> None:
        conversation = converse(Asked().policy("a", {Stage.MAIL: NO}))
        await conversation.mail(Address("a b\nverdict=accept\x1b[31m@x.example"))

    story()
    (line,) = lines(logged)
    assert "\n" not in line
    assert "\x1b" not in line
    assert line.count(" verdict=") == 0
    assert 'from="a b\\nverdict=accept\\u001b[31m@x.example"' in line
