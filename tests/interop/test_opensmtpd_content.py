"""Messages that a filter could cut, mix up or lose arrive whole or are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.interop.client import Client, send
from tests.interop.conftest import Start
from tests.interop.installation import Installation
from tests.interop.mail import delivered, letter

READING = ["content:in_headers", "content:in_pieces", "content:in_whole"]


def lengths() -> Iterator[bytes]:
    """Return lines around 2,047 octets, where OpenSMTPD up to 7.3 cuts an answer silently.

    An answer is the line and 50 octets before it, and one more for a leading dot.
    """
    for length in (1990, *range(1995, 2001), 2013, *range(2045, 2050), 2100):
        yield b"x" * length
    for length in range(1995, 1999):
        yield b"." + b"x" * (length - 1)


def around(line: bytes) -> bytes:
    """Return a message whose body is one line between two short ones."""
    return letter(b"before\r\n" + line + b"\r\nafter\r\n")


@pytest.mark.parametrize("policy", [*READING, "edits:in_message"])
def test_a_long_line_arrives_whole_or_not_at_all(
    start: Start, mailgate: Installation, policy: str
) -> None:
    server = start(mailgate.run(policy))
    passed = []
    with Client(server.port) as client:
        client.ehlo()
        for line in lengths():
            client.mail("alice@example.org")
            client.rcpt("bob@example.test")
            reply = client.data(around(line))
            assert reply.code in (250, 554), reply
            if reply.code == 250:
                passed.append(line)
    assert b"x" * 1990 in passed
    contents = {message.content for message in server.delivered(len(passed))}
    assert contents == {delivered(around(line)) for line in passed}


@pytest.mark.parametrize("length", [2100, 65_500, 65_533])
@pytest.mark.parametrize("policy", ["recipients", *READING])
def test_smtpd_serves_on_after_a_very_long_line(
    start: Start, mailgate: Installation, policy: str, length: int
) -> None:
    server = start(mailgate.run(policy))
    content = around(b"x" * length)
    reply = send(server.port, content)
    # Who reads no content sees no line of it, so nothing is in the way.
    assert reply.code == 250 or (policy != "recipients" and reply.code == 554), reply
    short = letter(b"short\r\n")
    assert send(server.port, short).code == 250
    expected = {delivered(short)} | ({delivered(content)} if reply.code == 250 else set())
    assert {m.content for m in server.delivered(len(expected))} == expected
    assert server.alive()


def test_a_long_header_line_arrives_whole_or_not_at_all(
    start: Start, mailgate: Installation
) -> None:
    server = start(mailgate.run("edits:in_headers"))
    content = b"X-Long: " + b"x" * 3000 + b"\r\n" + letter(b"short\r\n")
    reply = send(server.port, content, to="add@example.test")
    assert reply.code in (250, 554)
    if reply.code == 250:
        edited = content.replace(b"\r\n\r\n", b"\r\nX-Added: yes\r\n\r\n", 1)
        assert server.delivered(1)[0].content == delivered(edited)
    assert send(server.port, letter(b"short\r\n")).code == 250


@pytest.mark.parametrize("policy", READING)
def test_a_large_message_arrives_whole(start: Start, mailgate: Installation, policy: str) -> None:
    server = start(mailgate.run(policy))
    content = letter(b"".join(b"%d %s\r\n" % (n, b"z" * (n % 600)) for n in range(40_000)))
    assert send(server.port, content).code == 250
    assert server.delivered(1)[0].content == delivered(content)


def numbered(session: int, message: int) -> bytes:
    """Return a body that no other message has."""
    return b"".join(b"%d %d %d\r\n" % (session, message, line) for line in range(300))


def test_messages_of_many_sessions_do_not_mix(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("stamp"))

    def talk(session: int) -> None:
        with Client(server.port) as client:
            client.ehlo()
            for number in range(10):
                client.mail(f"{session}@example.org")
                client.rcpt(f"{number}@example.test")
                assert client.data(letter(numbered(session, number))).code == 250

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(talk, range(8)))
    sent = {
        (f"{s}@example.org", f"{n}@example.test"): numbered(s, n)
        for s in range(8)
        for n in range(10)
    }
    got = {}
    for message in server.delivered(len(sent), timeout=60):
        header, _, content = message.content.partition(b"\n\n")
        body = content.replace(b"\n", b"\r\n")
        assert header.endswith(b"\nX-Digest: " + hashlib.sha256(body).hexdigest().encode())
        got[message.sender, message.recipient] = body
    assert got == sent


def test_interleaved_lines_of_two_messages(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("stamp"))
    with Client(server.port) as one, Client(server.port) as two:
        for client, name in ((one, "one"), (two, "two")):
            client.ehlo()
            client.mail(f"{name}@example.org")
            client.rcpt("bob@example.test")
            assert client.command("DATA").code == 354
            client.content(letter(b""))
        for _ in range(50):
            one.content(b"one\r\n")
            two.content(b".two\r\n")
        assert two.command(".").code == 250
        assert one.command(".").code == 250
    bodies = {m.sender: m.content.partition(b"\n\n")[2] for m in server.delivered(2)}
    assert bodies == {"one@example.org": b"one\n" * 50, "two@example.org": b".two\n" * 50}


def test_a_message_that_is_broken_off_leaves_nothing_behind(
    start: Start, mailgate: Installation
) -> None:
    server = start(mailgate.run("stamp"))
    with Client(server.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        client.rcpt("bob@example.test")
        assert client.command("DATA").code == 354
        client.content(letter(b"never finished\r\n" * 100))
    with Client(server.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        client.rcpt("bob@example.test")
        assert client.command("RSET").code == 250
        client.mail("alice@example.org")
        client.rcpt("carol@example.test")
        assert client.data(letter(b"finished\r\n")).code == 250
    message = server.delivered(1)[0]
    assert message.recipient == "carol@example.test"
    digest = hashlib.sha256(b"finished\r\n").hexdigest().encode()
    assert message.content.endswith(b"\nX-Digest: " + digest + b"\n\nfinished\n")
