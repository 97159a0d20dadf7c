"""What proxies do wrong: smuggling, lost mail, changed words.  Each case has one safe outcome.

A message is *refused*, or arrives *clean*: one message, its lines ended by CRLF, no NUL.  What the
server says, and the envelope, are passed on verbatim.  The cases are those that other proxies and
before-queue filters were tried with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import pytest

from tests.core.asking import in_loop
from tests.hostile.cases import Act, Send
from tests.smtp.client import Client, Reply
from tests.smtp.mta import Envelope, Mta, Script
from tests.smtp.running import proxied

Body: TypeAlias = Literal["hold", "stream"]


class Way(NamedTuple):
    """How the proxy is set up."""

    lmtp: bool
    body: Body

    def __str__(self) -> str:
        return f"{'lmtp' if self.lmtp else 'smtp'}-{self.body}"


WAYS = [Way(lmtp, body) for lmtp in (False, True) for body in ("hold", "stream")]
in_every_way = pytest.mark.parametrize("way", WAYS, ids=str)

HEAD = (
    b"From: a@x.example\r\nTo: b@y.example\r\nDate: Fri, 20 Nov 2026 00:00:00 +0000\r\n"
    b"Message-ID: <1@x.example>\r\nSubject: t\r\n\r\n"
)
TAIL = (
    b"MAIL FROM:<evil@x.example>\r\nRCPT TO:<victim@y.example>\r\nDATA\r\n"
    b"Subject: evil\r\n\r\nsmuggled\r\n"
)


@asynccontextmanager
async def set_up(way: Way, *scripts: Script, **options: Any) -> AsyncIterator[tuple[Client, Mta]]:
    """Serve, with a client that has greeted."""
    async with proxied(mta=Mta(*scripts, lmtp=way.lmtp), body=way.body, **options) as (
        running,
        mta,
    ):
        yield await running.greeted(), mta


# -- contents -------------------------------------------------------------------------------------

MARKERS = {
    "LF . LF": b"\n.\n",
    "LF . CRLF": b"\n.\r\n",
    "CRLF . LF": b"\r\n.\n",
    "CR . CR": b"\r.\r",
    "CR . CRLF": b"\r.\r\n",
    "CRLF . CR": b"\r\n.\r",
    "CRLF . CR CRLF": b"\r\n.\r\r\n",
    "CRLF NUL . CRLF": b"\r\n\0.\r\n",
    "CRLF . NUL CRLF": b"\r\n.\0\r\n",
}
"""What a careless server takes for the end of data, each with more commands behind it."""

CONTENTS = {
    "plain message": (HEAD + b"x\r\n", "clean"),
    "dot-stuffed lines": (HEAD + b"..\r\n..x\r\n...\r\n", "clean"),
    "line end CR CRLF": (HEAD + b"a\r\r\nb\r\n", "refused"),
    "bare LF": (HEAD + b"a\nb\r\n", "refused"),
    "bare CR": (HEAD + b"a\rb\r\n", "refused"),
    "NUL": (HEAD + b"a\0b\r\n", "refused"),
    "line of 998": (HEAD + b"x" * 998 + b"\r\n", "clean"),
    "line of 5000": (HEAD + b"x" * 5000 + b"\r\n", "clean"),
    "line of 1 MB": (HEAD + b"x" * (1 << 20) + b"\r\n", "refused"),
    "bare LF in header": (b"From: a@x.example\nBcc: v@y.example\r\n" + HEAD + b"x\r\n", "refused"),
}

ENVELOPE = (b"MAIL FROM:<a@x.example>", b"RCPT TO:<b@y.example>", b"DATA")


def chunkings(content: bytes, marker: bytes) -> Iterator[list[bytes]]:
    """Yield a content whole, octet by octet, and cut at each octet around a marker."""
    yield [content]
    yield [content[at : at + 1] for at in range(len(content))]
    begin = content.find(marker)
    for at in range(begin - 1, begin + len(marker) + 2):
        yield [content[:at], content[at:]]


async def say_content(client: Client, pieces: Sequence[bytes]) -> Reply:
    """Send a message in these pieces, each read by itself; return the reply to its end."""
    for command in ENVELOPE:
        assert (await client.say(command)).code in (250, 354)
    for piece in (*pieces, b".\r\n"):
        await client.send(piece)
        await asyncio.sleep(0)
    return await client.reply()


def outcome(reply: Reply, mta: Mta, content: bytes) -> str:
    """Return what became of a message: *refused*, or *clean*."""
    messages = list(mta.messages)
    mta.messages.clear()
    if not messages:
        assert (reply.code, reply.text[4:9]) == (554, b"5.6.0")
        return "refused"
    ((_, _, octets),) = messages
    assert reply.code == 250
    assert octets == content + b".\r\n"
    return "clean"


@in_every_way
@pytest.mark.parametrize("name", MARKERS)
@in_loop
async def test_no_message_is_smuggled_within_another(name: str, way: Way) -> None:
    content = HEAD + b"first" + MARKERS[name] + TAIL
    async with set_up(way) as (client, mta):
        for pieces in chunkings(content, MARKERS[name]):
            reply = await say_content(client, pieces)
            assert outcome(reply, mta, content) == "refused"
        assert not any(b"evil" in command for command in mta.commands)


@pytest.mark.parametrize("name", MARKERS)
@in_loop
async def test_line_ends_are_made_normal_before_dots_are_looked_at(name: str) -> None:
    content = HEAD + b"first" + MARKERS[name] + TAIL
    async with set_up(WAYS[0], line_ends="normalise") as (client, mta):
        for pieces in chunkings(content, MARKERS[name]):
            reply = await say_content(client, pieces)
            if b"\0" in content:
                assert outcome(reply, mta, content) == "refused"
                continue
            assert reply.code == 250
            (message,) = mta.messages
            assert message.content.endswith(b"\r\n" + TAIL)
            mta.messages.clear()


@in_every_way
@pytest.mark.parametrize("name", CONTENTS)
@in_loop
async def test_a_content_arrives_clean_or_is_refused(name: str, way: Way) -> None:
    content, expected = CONTENTS[name]
    async with set_up(way) as (client, mta):
        reply = await say_content(client, [content])
        assert outcome(reply, mta, content) == expected


@in_every_way
@in_loop
async def test_dots_of_chunks_are_stuffed(way: Way) -> None:
    """BDAT carries lines as they are; what is passed on by DATA must not end in their middle."""
    lines = b"Subject: t\r\n\r\n.\r\nMAIL FROM:<evil@x.example>\r\n.\r\n..\r\n.x\r\nlast"
    async with set_up(way) as (client, mta):
        for size in (len(lines), *range(1, 20)):
            for command in ENVELOPE[:2]:
                assert (await client.say(command)).code == 250
            chunks = [lines[at : at + size] for at in range(0, len(lines), size)]
            for chunk in chunks[:-1]:
                await client.send(b"BDAT %d\r\n%b" % (len(chunk), chunk))
                assert (await client.reply()).code == 250
            await client.send(b"BDAT %d LAST\r\n%b" % (len(chunks[-1]), chunks[-1]))
            assert (await client.reply()).code == 250
            assert [message.content for message in mta.messages] == [lines + b"\r\n"]
            mta.messages.clear()
        assert not any(b"evil" in command for command in mta.commands)


# -- commands -------------------------------------------------------------------------------------


@in_every_way
@in_loop
async def test_commands_that_end_in_lf_are_refused(way: Way) -> None:
    async with set_up(way) as (client, mta):
        await client.send(b"MAIL FROM:<a@x.example>\nRCPT TO:<b@y.example>\n")
        assert (await client.reply()).code == 500
        await client.until_ended()
        assert not any(command.startswith(b"MAIL") for command in mta.commands)


@in_every_way
@pytest.mark.parametrize("inside", [b"\rRSET", b"\0", b"\r", b"\x7f", b"\x1b[2J"])
@in_loop
async def test_control_characters_in_a_path_are_refused(inside: bytes, way: Way) -> None:
    async with set_up(way) as (client, mta):
        assert (await client.say(ENVELOPE[0])).code == 250
        reply = await client.say(b"RCPT TO:<b" + inside + b"@y.example>")
        assert reply.text.startswith(b"501 5.1.3")
        assert not any(command.startswith(b"RCPT") for command in mta.commands)


@in_every_way
@pytest.mark.parametrize(
    "command",
    [
        b"MAIL FROM:<" + b"a" * 3000 + b"@x.example>",
        b"XCLIENT ADDR=192.0.2.99 NAME=spoof.example",
        b"XFORWARD ADDR=192.0.2.99 NAME=spoof.example",
        b"PROXY TCP4 192.0.2.99 127.0.0.1 1 25",
    ],
)
@in_loop
async def test_what_a_stranger_may_not_say_is_refused(command: bytes, way: Way) -> None:
    async with set_up(way) as (client, mta):
        assert 500 <= (await client.say(command)).code <= 550
        assert (await client.deliver(HEAD + b"x\r\n")).code == 250
        assert not any(b"192.0.2.99" in line for line in mta.commands)


# -- what is passed on verbatim -------------------------------------------------------------------


@in_every_way
@pytest.mark.parametrize(
    ("mail", "rcpt"),
    [
        (b"MAIL FROM:<>", b"RCPT TO:<b@y.example>"),
        (b"MAIL FROM:<a@x.example>", b'RCPT TO:<"a b"@y.example>'),
        (
            b"MAIL FROM:<a@x.example> RET=HDRS ENVID=QqXx1",
            b"RCPT TO:<b@y.example> NOTIFY=FAILURE,DELAY ORCPT=rfc822;B@y.example",
        ),
        (b"MAIL FROM:<a@x.example> BODY=8BITMIME", b"RCPT TO:<b@y.example>"),
        (
            "MAIL FROM:<\u00fc@x.example> SMTPUTF8".encode(),
            "RCPT TO:<\u00fc@b\u00fccher.example>".encode(),
        ),
        (b"MAIL FROM:<A@X.Example> SIZE=200", b"RCPT TO:<Postmaster>"),
    ],
)
@in_loop
async def test_an_envelope_is_passed_on_verbatim(mail: bytes, rcpt: bytes, way: Way) -> None:
    async with set_up(way) as (client, mta):
        for command in (mail, rcpt):
            assert (await client.say(command)).code == 250
        assert (await client.data(HEAD + b"x\r\n")).code == 250
        assert [line for line in mta.commands if line[:4] in (b"MAIL", b"RCPT")] == [mail, rcpt]


REFUSAL = b"550-5.1.1 first line of two\r\n550 5.1.1 second line\r\n"
LATER = b"451 4.3.0 come back\r\n"


@in_every_way
@pytest.mark.parametrize("text", [REFUSAL, LATER])
@in_loop
async def test_a_refused_recipient_is_told_so_verbatim(text: bytes, way: Way) -> None:
    async with set_up(way, [("RCPT", [Send(text)])]) as (client, mta):
        assert (await client.say(ENVELOPE[0])).code == 250
        assert (await client.say(ENVELOPE[1])).text == text
        assert (await client.say(b"DATA")).text.startswith(b"554 5.5.1")
        assert mta.messages == []


@in_every_way
@in_loop
async def test_one_recipient_of_two_is_refused(way: Way) -> None:
    async with set_up(way, [("RCPT TO:<reject@", [Send(REFUSAL)])]) as (client, mta):
        assert (await client.say(ENVELOPE[0])).code == 250
        assert (await client.say(b"RCPT TO:<reject@y.example>")).text == REFUSAL
        assert (await client.say(ENVELOPE[1])).code == 250
        assert (await client.data(HEAD + b"x\r\n")).code == 250
        assert [list(message.recipients) for message in mta.messages] == [
            [Envelope(b"b@y.example")]
        ]


@in_every_way
@pytest.mark.parametrize(
    "text",
    [
        b"554-5.7.1 refused after the dot\r\n554 5.7.1 second line\r\n",
        b"452 4.3.1 no space\r\n",
        b"250 2.0.0 Ok: queued as UPSTREAM1\r\n",
    ],
)
@in_loop
async def test_the_answer_to_a_message_is_passed_on_verbatim(text: bytes, way: Way) -> None:
    async with set_up(way, [(".", [Send(text)])]) as (client, mta):
        reply = await say_content(client, [HEAD + b"x\r\n" * 200_000])
        assert reply.text == text
        assert len(mta.messages) == text.startswith(b"250")


# -- a server that fails --------------------------------------------------------------------------


@in_every_way
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "body:1", "."])
@in_loop
async def test_nothing_is_acknowledged_when_the_server_hangs_up(stage: str, way: Way) -> None:
    async with set_up(way, [(stage, [Act("close")])]) as (client, mta):
        reply = await client.deliver(HEAD + b"x\r\n" * 200_000)
        assert (reply.code, reply.text[4:9]) == (451, b"4.4.2")
        assert mta.messages == []
        assert (await client.say(b"NOOP")).code == 250


@in_every_way
@in_loop
async def test_pipelined_commands_have_a_reply_each(way: Way) -> None:
    async with set_up(way, [("RCPT TO:<reject@", [Send(REFUSAL)])]) as (client, mta):
        await client.send(
            b"MAIL FROM:<a@x.example>\r\nRCPT TO:<reject@y.example>\r\n"
            b"RCPT TO:<b@y.example>\r\nDATA\r\n"
        )
        assert [(await client.reply()).code for _ in range(4)] == [250, 550, 250, 354]
        await client.send(HEAD + b"x\r\n.\r\nQUIT\r\n")
        assert [(await client.reply()).code for _ in range(2)] == [250, 221]
        assert len(mta.messages) == 1


@in_every_way
@in_loop
async def test_a_message_follows_one_that_was_refused(way: Way) -> None:
    rows: Script = [(".", [Send(b"554 5.7.1 no\r\n")]), (".", [Send(b"250 2.0.0 yes\r\n")])]
    async with set_up(way, rows) as (client, mta):
        assert (await client.deliver(HEAD + b"one\r\n")).code == 554
        assert (await client.deliver(HEAD + b"two\r\n")).code == 250
        assert [message.content for message in mta.messages] == [HEAD + b"two\r\n"]
