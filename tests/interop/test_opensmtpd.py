"""What a policy decides and edits arrives at the client and in the maildir."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Start
from tests.interop.installation import Installation
from tests.interop.mail import DIFFICULT, FIELDS, delivered, difficult, letter

LETTER = letter(b"hello\r\n")


def test_a_refused_recipient_is_refused_alone(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("recipients"))
    with Client(server.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        assert client.rcpt("bob@example.test").code == 250
        assert client.rcpt("nobody@example.test") == (550, "5.1.1 no such user here")
        assert client.rcpt("carol@example.test").code == 250
        assert client.data(LETTER).code == 250
    messages = server.delivered(2)
    assert {m.recipient for m in messages} == {"bob@example.test", "carol@example.test"}
    assert {m.content for m in messages} == {delivered(LETTER)}


@pytest.mark.parametrize("policy", ["in_headers", "in_pieces", "in_whole"])
def test_a_message_is_refused_at_its_end(
    start: Start, mailgate: Installation, policy: str
) -> None:
    server = start(mailgate.run(f"content:{policy}"))
    refused = letter(b"line\r\n" * 9000 + b"forbidden\r\n" * 9000, subject=b"forbidden")
    with Client(server.port) as client:
        client.ehlo()
        for content, code in ((refused, 550), (LETTER, 250), (refused, 550)):
            client.mail("alice@example.org")
            client.rcpt("bob@example.test")
            reply = client.data(content)
            assert reply.code == code
            assert code == 250 or reply.text.startswith("5.6.0 not this ")
    assert [m.content for m in server.delivered(1)] == [delivered(LETTER)]


def without_twice(fields: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the fields without those that the policy removes."""
    return tuple(field for field in fields if not field.lower().startswith(b"x-twice"))


def changed(fields: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the fields with the one that the policy changes."""
    return tuple(b"Subject: changed" if f.startswith(b"Subject") else f for f in fields)


EDITS = {
    "nothing": DIFFICULT,
    "add": difficult(*FIELDS, b"X-Added: yes"),
    "prepend": difficult(b"X-Prepended: yes", *FIELDS),
    "change": difficult(*changed(FIELDS)),
    "remove": difficult(*without_twice(FIELDS)),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("policy", ["in_headers", "in_message"])
def test_an_edit_touches_only_what_it_names(
    start: Start, mailgate: Installation, policy: str, edit: str
) -> None:
    server = start(mailgate.run(f"edits:{policy}"))
    assert send(server.port, DIFFICULT, to=f"{edit}@example.test").code == 250
    assert server.delivered(1)[0].content == delivered(EDITS[edit])


def test_a_body_is_replaced(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("edits:in_message"))
    assert send(server.port, DIFFICULT, to="body@example.test").code == 250
    body = b"another body\r\n.\r\n..and its dots\r\n"
    assert server.delivered(1)[0].content == delivered(difficult(*FIELDS, body=body))


@pytest.mark.parametrize(
    "policy", ["recipients", "content:in_headers", "content:in_pieces", "content:in_whole"]
)
def test_an_unedited_message_arrives_as_it_was_sent(
    start: Start, mailgate: Installation, policy: str
) -> None:
    server = start(mailgate.run(policy))
    assert send(server.port, DIFFICULT).code == 250
    assert server.delivered(1)[0].content == delivered(DIFFICULT)


def test_sender_and_recipient_change(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("envelope"))
    to = ["postmaster@example.test", "bob@example.test"]
    assert send(server.port, LETTER, to=to).code == 250
    messages = server.delivered(2)
    assert {m.sender for m in messages} == {"bounces@example.org"}
    assert {m.recipient for m in messages} == {"carol@example.test", "bob@example.test"}


def test_a_client_is_put_off_at_once(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("deferral:at_connect"))
    for _ in range(2):
        with Client(server.port) as client:
            assert 400 <= client.banner.code < 500
            assert client.banner.text.endswith("4.3.2 come back later")
            assert client.hung_up()
    assert server.alive()


def test_a_client_is_put_off_at_its_greeting(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("deferral:at_helo"))
    with Client(server.port) as client:
        refusal = client.ehlo("later.example.org")
        assert refusal == (451, "4.3.2 come back later")
        assert 400 <= client.mail("alice@example.org").code < 600
        assert client.ehlo().code == 250
        assert client.mail("alice@example.org").code == 250
    assert send(server.port, LETTER).code == 250


def test_a_fault_of_an_observer_is_answered_later(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("observer"))
    assert send(server.port, LETTER, sender="faulty@example.org").code == 451
    assert send(server.port, LETTER).code == 250
    assert server.delivered(1)[0].sender == "alice@example.org"


def test_what_the_protocol_cannot_do_is_refused_at_start(mailgate: Installation) -> None:
    archive = mailgate.policy("archive")
    done = subprocess.run(
        [mailgate.program, "run", "-p", "opensmtpd", archive],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    said = re.fullmatch(r"(.*):(\d+): (.*)\n", done.stderr)
    assert said is not None, done.stderr
    assert said[1].endswith("archive.py")
    lines = Path(archive).read_text().splitlines()
    assert lines[int(said[2]) - 1].startswith("@policy.message")
    for word in ("copy", "add_recipient", "opensmtpd cannot", "milter"):
        assert word in said[3]


def test_two_filters_in_a_chain(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("edits:in_headers"), mailgate.run("stamp"))
    assert send(server.port, LETTER, to="add@example.test").code == 250
    header = server.delivered(1)[0].content.partition(b"\n\n")[0]
    assert re.search(rb"\nX-Added: yes\nX-Digest: [0-9a-f]{64}\Z", header)


@pytest.mark.parametrize(
    "order", [("recipients", "content:in_whole"), ("content:in_whole", "recipients")]
)
def test_either_filter_of_a_chain_refuses(
    start: Start, mailgate: Installation, order: tuple[str, str]
) -> None:
    server = start(*map(mailgate.run, order))
    refused: list[Reply] = [
        send(server.port, LETTER, to="nobody@example.test"),
        send(server.port, letter(b"forbidden\r\n")),
    ]
    assert refused == [(550, "5.1.1 no such user here"), (550, "5.6.0 not this body")]
    assert send(server.port, DIFFICULT).code == 250
    assert server.delivered(1)[0].content == delivered(DIFFICULT)


def test_several_policies_in_one_process(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("recipients", "edits:in_message", "envelope"))
    assert len(server.filters()) <= 1
    assert send(server.port, LETTER, to="nobody@example.test").code == 550
    assert send(server.port, LETTER, to="add@example.test").code == 250
    message = server.delivered(1)[0]
    assert message.sender == "bounces@example.org"
    assert b"\nX-Added: yes\n" in message.content
