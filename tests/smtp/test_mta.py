"""The server and the client of these tests: they find what they are for, and nothing else."""

from __future__ import annotations

import asyncio
import re
import smtplib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.core.asking import in_loop
from tests.hostile.cases import Act, Send
from tests.oracles import check_smtp_content, check_smtp_replies
from tests.smtp.client import Dialogue, dialogue
from tests.smtp.mta import Envelope, Mta, Script

LETTER = b"Subject: one\r\n\r\n.dot\r\n..two\r\n.\r\nlast\r\n"

# -- the server -----------------------------------------------------------------------------------


def converse(port: int) -> list[tuple[int, bytes]]:
    """Send two messages with the standard library's client; return what it was told."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.example", timeout=20) as client:
        said = [client.ehlo()]
        for recipients in (["b@example.org"], ["c@example.org", "d@example.org"]):
            said.append(client.mail("a@client.example", ["SIZE=40", "BODY=8BITMIME"]))
            said += [client.rcpt(one) for one in recipients]
            said.append(client.data(LETTER))
        said.append(client.rset())
    return said


@in_loop
async def test_a_proper_client_has_no_faults() -> None:
    async with Mta() as mta:
        said = await asyncio.to_thread(converse, int(mta.url.rpartition(":")[2]))

    assert {code for code, _ in said} == {250}
    assert mta.faults == []
    assert [message.content for message in mta.messages] == [LETTER, LETTER]
    sender = Envelope(b"a@client.example", (b"SIZE=40", b"BODY=8BITMIME"))
    assert [message.sender for message in mta.messages] == [sender, sender]
    assert list(mta.messages[1].recipients) == [
        Envelope(b"c@example.org"),
        Envelope(b"d@example.org"),
    ]
    assert [connection.refused for connection in mta.connections] == [b""]


async def said_to(mta: Mta, *octets: bytes) -> bytes:
    """Say octets to a server, each behind the reply to those before; return all replies."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(mta.url.rpartition(":")[2]))
    said = b""
    for some in octets:
        writer.write(some)
        for _ in re.findall(rb"(?m)^[A-Z.]+[ \r]", some) or [b""]:
            while (line := await reader.readline())[3:4] == b"-":
                said += line
            said += line
    writer.close()
    return said


HELLO = b"EHLO client.example\r\n"
MAIL, RCPT = b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@example.org>\r\n"


@pytest.mark.parametrize(
    ("octets", "fault"),
    [
        ([HELLO], "it speaks before the banner"),
        ([b"", b"EHLO x\n"], "not a command line: b'EHLO x\\n'"),
        ([b"", HELLO, b"NOOP a\rb\r\n"], "not a command line: b'NOOP a\\rb\\r\\n'"),
        ([b"", HELLO, b"NOOP \0\r\n"], "not a command line: b'NOOP \\x00\\r\\n'"),
        ([b"", b"NOOP\r\n"], "b'NOOP' before a greeting"),
        ([b"", b"LHLO x\r\n"], "b'LHLO x' to an SMTP server"),
        ([b"", HELLO, HELLO], "it greets twice"),
        ([b"", HELLO + MAIL], "behind b'EHLO client.example', before its reply"),
        ([b"", HELLO, MAIL + RCPT], "behind b'MAIL FROM:<a@b.example>', before its reply"),
        ([b"", HELLO, RCPT], "b'RCPT TO:<c@example.org>' without MAIL"),
        ([b"", HELLO, MAIL, MAIL], "b'MAIL FROM:<a@b.example>' within a message"),
        ([b"", HELLO, MAIL, b"DATA\r\n"], "DATA without a recipient"),
        ([b"", HELLO, b"MAIL FROM:<a@b.example> SIZE=1\r\n"], "b'SIZE=1' was not offered"),
        ([b"", HELLO, b"MAIL FROM:<a@b.example> RET=HDRS\r\n"], "b'RET=HDRS' was not offered"),
        ([b"", HELLO, b"MAIL FROM:<\xe9@b.example>\r\n"], "8 bit without SMTPUTF8"),
        ([b"", HELLO, b"MAIL FROM:a@b.example\r\n"], "not a path"),
        ([b"", HELLO, b"XFORWARD " + b"x" * 600 + b"\r\n"], "a command line of 611 octets"),
        ([b"", HELLO, MAIL, RCPT, b"DATA\r\n", b"a\nb\r\n.\r\n"], "the content of message 0: a bare LF"),
    ],
)  # fmt: skip
@in_loop
async def test_a_fault_of_a_client_is_found(octets: Sequence[bytes], fault: str) -> None:
    async with Mta(keywords=[b"8BITMIME"], greets_once=True) as mta:
        await said_to(mta, *octets)

    (found,) = mta.faults
    assert fault in found


@in_loop
async def test_a_server_pipelines_where_it_says_so() -> None:
    async with Mta(keywords=[b"PIPELINING"]) as mta:
        await said_to(mta, b"", HELLO, MAIL + RCPT + b"DATA\r\n", b".\r\n", MAIL + b"RSET\r\n")
        assert mta.faults == []
        assert [message.octets for message in mta.messages] == [b".\r\n"]
        await said_to(mta, b"", HELLO, MAIL + RCPT + b"DATA\r\nx\r\n.\r\n")
        (fault,) = mta.faults
        assert "b'x\\r\\n.\\r\\n' behind b'DATA', before its reply" in fault


@in_loop
async def test_a_script_is_played() -> None:
    first: Script = [
        ("connect", [Send(b"220-two\r\n220 lines\r\n")]),
        ("RCPT TO:<c@", [Send(b"550 5.1.1 no\r\n")]),
        ("rcpt", [Send(b"250 one\r\n")]),
        ("rcpt", [Send(b"250 two\r\n")]),
        (".", [Send(b"552 5.3.4 too big\r\n"), Act("close")]),
    ]
    other = RCPT.replace(b"c@", b"d@")
    async with Mta(first, [("MAIL", [Act("reset")])]) as mta:
        said = await said_to(
            mta, b"", HELLO, MAIL, RCPT, other, other, b"DATA\r\n", LETTER[:16] + b".\r\n", b""
        )
        assert b"".join(line + b"\r\n" for line in said.split(b"\r\n") if b"250-" not in line) == (
            b"220-two\r\n220 lines\r\n250 ENHANCEDSTATUSCODES\r\n250 2.1.0 Ok\r\n550 5.1.1 no\r\n"
            b"250 one\r\n250 two\r\n354 End data with <CR><LF>.<CR><LF>\r\n552 5.3.4 too big\r\n\r\n"
        )
        with pytest.raises(ConnectionResetError):
            await said_to(mta, b"", HELLO, MAIL)

    assert mta.messages == []
    assert [connection.refused for connection in mta.connections] == [LETTER[:16] + b".\r\n", b""]


@in_loop
async def test_a_script_can_refuse_connections_and_break_off_in_the_content() -> None:
    async with Mta([("connect", [Act("refuse")])]) as mta:
        with pytest.raises(ConnectionRefusedError):
            await said_to(mta, b"")
    async with Mta([("body:3", [Act("close")])]) as mta:
        await said_to(mta, b"", HELLO, MAIL, RCPT, b"DATA\r\n", b"abcd")


@in_loop
async def test_an_lmtp_server_takes_a_message_for_each_recipient(tmp_path: Path) -> None:
    refuses: Script = [(".", [Send(b"250 one\r\n550 two\r\n")])]
    other = RCPT.replace(b"c@", b"d@")
    async with Mta(refuses, lmtp=True, path=tmp_path / "s") as mta:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(b"")
        for some in (
            b"",
            HELLO.replace(b"EHLO", b"LHLO"),
            MAIL,
            RCPT,
            other,
            b"DATA\r\n",
            b".\r\n",
        ):
            writer.write(some)
            await reader.readline()
            await asyncio.sleep(0.01)
        writer.close()

    assert mta.url == f"lmtp+unix:{tmp_path / 's'}"
    assert mta.faults == []
    assert [message.recipients for message in mta.messages] == [[Envelope(b"c@example.org")]]


# -- the client -----------------------------------------------------------------------------------


def summary(found: Dialogue) -> tuple[list[tuple[bytes, int]], int, int]:
    pairs = [(command, reply.code) for command, reply in found.exchanges]
    return pairs, found.owed, len(found.more)


BOTH = b"220 x\r\n250-x\r\n250 y\r\n250 a\r\n250 b\r\n"


@pytest.mark.parametrize(
    ("given", "said", "last", "owed", "more"),
    [
        (b"", b"", None, 1, 0),
        (b"", b"220 x\r\n", (b"<banner>", 220), 0, 0),
        (b"", b"421 x\r\n", (b"<banner>", 421), 0, 0),
        (b"EHLO x\r\n", b"220 x\r\n250-x\r\n", (b"<banner>", 220), 1, 0),
        (b"EHLO x\r\n", b"220 x\r\n250-x\r\n250 y\r\n250 z\r\n", (b"EHLO x", 250), 0, 1),
        (b"EHLO x\r\nQUIT\r\nNOOP\r\n", b"220 x\r\n250 x\r\n221 x\r\n", (b"QUIT", 221), 0, 0),
        (b"NOOP\nQUIT\r\n", b"220 x\r\n500 x\r\n", (b"NOOP\n", 500), 0, 0),
        (b"NOOP\r\nNO", b"220 x\r\n250 x\r\n421 x\r\n", (b"NO", 421), 0, 0),
        (b"NOOP\r\nNO", b"220 x\r\n250 x\r\n500 x\r\n", (b"NO", 500), 0, 0),
        (b"NOOP\r\n", b"220 x\r\n250 x\r\n500 x\r\n", (b"NOOP", 250), 0, 1),
        (b"NOOP\r\nNO", b"220 x\r\n250 x\r\n250 x\r\n", (b"NOOP", 250), 0, 1),
        (HELLO + MAIL + RCPT + b"DATA\r\n", BOTH + b"554 x\r\n", (b"DATA", 554), 0, 0),
        (HELLO + MAIL + RCPT + b"DATA\r\nx\r\n.", BOTH + b"354 x\r\n", (b"DATA", 354), 0, 0),
        (HELLO + MAIL + RCPT + b"DATA\r\n.\r\nNO", BOTH + b"354 x\r\n", (b"DATA", 354), 1, 0),
        (
            HELLO + MAIL + RCPT + b"DATA\r\nx\r\n.\r\nNOOP\r\n",
            BOTH + b"354 x\r\n250 x\r\n250 y\r\n",
            (b"NOOP", 250),
            0,
            0,
        ),
        (HELLO + MAIL + RCPT + b"BDAT 9\r\nMAIL\r\n123", BOTH + b"250 x\r\n", (b"BDAT 9", 250), 0, 0),
        (HELLO + MAIL + RCPT + b"BDAT 9\r\nMAIL", BOTH, (RCPT[:-2], 250), 0, 0),
        (HELLO + MAIL + RCPT + b"BDAT 0 LAST\r\n", BOTH + b"250 x\r\n", (b"<end of data>", 250), 0, 0),
        (b"AUTH LOGIN\r\nMAIL\r\n", b"220 x\r\n334 x\r\n501 x\r\n", (b"AUTH MAIL", 501), 0, 0),
        (b"STARTTLS\r\n\x16\n", b"220 x\r\n220 x\r\n", (b"STARTTLS", 220), 0, 0),
    ],
)  # fmt: skip
def test_replies_are_counted(
    given: bytes, said: bytes, last: tuple[bytes, int] | None, owed: int, more: int
) -> None:
    pairs, *rest = summary(dialogue(given, said))
    assert (pairs[-1] if pairs else None) == last
    assert rest == [owed, more]


def test_lmtp_has_a_reply_for_each_recipient() -> None:
    given = HELLO.replace(b"EHLO", b"LHLO") + MAIL + RCPT * 2 + b"DATA\r\n.\r\n"
    said = BOTH + b"250 b\r\n354 x\r\n250 x\r\n"
    assert summary(dialogue(given, said, lmtp=True))[1:] == (1, 0)
    assert summary(dialogue(given, said + b"550 x\r\n", lmtp=True))[1:] == (0, 0)
    assert summary(dialogue(given, said + b"550 x\r\n"))[1:] == (0, 1)


# -- the oracles ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (b"", None),
        (b"220 x\r\n250-a\r\n250\r\n550 caf\xc3\xa9\r\n", None),
        (b"250 " + b"x" * 506 + b"\r\n", None),
        (b"250 " + b"x" * 507 + b"\r\n", "line 1: 513 octets with its CRLF"),
        (b"250-a\r\n", "the last reply has no end"),
        (b"250 a", "the last line has no CRLF: b'250 a'"),
        (b"250-a\r\n550 b\r\n", "line 2: another code within a reply"),
        (b"250 a\nb\r\n", "line 1: not a reply line"),
        (b"250 a\rb\r\n", "line 1: not a reply line"),
        (b"250 \0\r\n", "line 1: not a reply line"),
        (b"250 \x1b[2J\r\n", "line 1: not a reply line"),
        (b"150 a\r\n", "line 1: not a reply line"),
        (b"250a\r\n", "line 1: not a reply line"),
        (b"\r\n", "line 1: not a reply line"),
        (b"250 \xe9\r\n", "line 1: not UTF-8"),
    ],
)
def test_faults_of_replies_are_found(said: bytes, fault: str | None) -> None:
    found = check_smtp_replies(said)
    assert (len(found), found[:1] == []) == ((0, True) if fault is None else (1, False))
    assert fault is None or found[0].startswith(fault)


@pytest.mark.parametrize(
    ("octets", "faults"),
    [
        (b".\r\n", []),
        (b"a\r\n..\r\n.\r\n", []),
        (b"a\nb\r\n.\r\n", ["a bare LF"]),
        (b"a\rb\r\n.\r\n", ["a bare CR"]),
        (b"a\0b\r\n.\r\n", ["a NUL"]),
        (b"a\r\n", ["the end of data is not at the end, and there only"]),
        (b"a.\r\n", ["the end of data is not at the end, and there only"]),
        (b"a\r\n.\r\nb\r\n.\r\n", ["the end of data is not at the end, and there only"]),
    ],
)
def test_faults_of_a_content_are_found(octets: bytes, faults: list[str]) -> None:
    assert check_smtp_content(octets) == faults
