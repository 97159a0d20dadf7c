"""Sessions of every shape: each message has its own answers, edits and end.

Everything but what only Postfix has goes through Postfix and through Sendmail.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Run
from tests.interop.gate import Gate
from tests.interop.mail import letter
from tests.interop.postfix import Postfix
from tests.interop.processes import eventually
from tests.interop.relay import Relay
from tests.interop.sendmail import Sendmail

LETTER = letter(b"hello\r\n")
STAMPED = letter(b"hello\r\n").replace(
    b"\r\n\r\n",
    b"\r\nX-Digest: " + hashlib.sha256(b"hello\r\n").hexdigest().encode() + b"\r\n\r\n",
)


def numbered(session: int, message: int) -> bytes:
    """Return a body that no other message has."""
    return b"".join(b"%d %d %d\r\n" % (session, message, line) for line in range(300))


def test_messages_of_many_sessions_do_not_mix(relay: Relay, run: Run) -> None:
    run("stamp")

    def talk(session: int) -> None:
        with Client(relay.port) as client:
            client.ehlo()
            for number in range(10):
                content = letter(numbered(session, number))
                sender, to = f"{session}@example.org", f"{number}@example.test"
                assert client.deliver(content, sender=sender, to=to).code == 250

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(talk, range(8)))
    got = {}
    for message in relay.arrived(80, timeout=60):
        header, _, body = message.content.partition(b"\r\n\r\n")
        assert header.endswith(b"\r\nX-Digest: " + hashlib.sha256(body).hexdigest().encode())
        [recipient] = message.recipients
        got[message.sender, recipient] = body
    assert got == {
        (f"{s}@example.org", f"{n}@example.test"): numbered(s, n)
        for s in range(8)
        for n in range(10)
    }


def test_interleaved_lines_of_two_messages(relay: Relay, run: Run) -> None:
    run("stamp")
    with Client(relay.port) as one, Client(relay.port) as two:
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
    bodies = {m.sender: m.content.partition(b"\r\n\r\n")[2] for m in relay.arrived(2)}
    assert bodies == {"one@example.org": b"one\r\n" * 50, "two@example.org": b".two\r\n" * 50}


def test_a_message_that_is_broken_off_leaves_nothing_behind(relay: Relay, run: Run) -> None:
    run("stamp")
    with Client(relay.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        client.rcpt("carol@example.test")
        assert client.command("DATA").code == 354
        client.content(letter(b"never finished\r\n" * 100))
    with Client(relay.port) as client:
        client.ehlo()
        for command in ("RSET", "EHLO client.example.org"):
            client.mail("alice@example.org")
            client.rcpt("carol@example.test")
            assert client.command(command).code == 250
        assert client.deliver(LETTER).code == 250
    [message] = relay.arrived(1)
    assert set(message.recipients) == {"bob@example.test"}
    assert message.content == STAMPED


def test_commands_that_come_at_once_are_answered_in_order(relay: Relay, run: Run) -> None:
    run("recipients")
    with Client(relay.port) as client:
        client.ehlo()
        for _ in range(2):
            replies = client.pipeline(
                "MAIL FROM:<alice@example.org>",
                "RCPT TO:<bob@example.test>",
                "RCPT TO:<nobody@example.test>",
                "RCPT TO:<carol@example.test>",
                "DATA",
            )
            assert [reply.code for reply in replies] == [250, 250, 550, 250, 354]
            client.content(LETTER)
            assert client.command(".").code == 250
    for message in relay.arrived(2):
        assert set(message.recipients) == {"bob@example.test", "carol@example.test"}


def test_content_in_chunks_is_content(postfix: Postfix, run: Run) -> None:
    run("stamp")
    postfix.sink.forget()
    half = len(LETTER) // 2
    with Client(postfix.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        client.rcpt("bob@example.test")
        for command, chunk in (
            (f"BDAT {half}", LETTER[:half]),
            (f"BDAT {len(LETTER) - half} LAST", LETTER[half:]),
        ):
            client.ask(command)
            client.octets(chunk)
            assert client.reply().code == 250
    assert postfix.arrived(1)[0].content == STAMPED


def test_addresses_in_utf_8(postfix: Postfix, run: Run) -> None:
    run("routes")
    postfix.sink.forget()
    with Client(postfix.port) as client:
        client.ehlo()
        client.command("MAIL FROM:<zoë@example.org> SMTPUTF8")
        for recipient in ("remove@example.test", "jörg@example.test"):
            assert client.rcpt(recipient).code == 250
        assert client.data(LETTER).code == 250
    [message] = postfix.arrived(1)
    assert message.sender == "zoë@example.org"
    assert set(message.recipients) == {"jörg@example.test"}


SPELLINGS = ["remove@EXAMPLE.Test", '"remove"@example.test', "remove@example.test"]


@pytest.mark.parametrize("recipient", SPELLINGS)
def test_a_recipient_is_removed_however_it_is_spelled(
    relay: Relay, run: Run, recipient: str
) -> None:
    run("removal")
    assert send(relay.port, LETTER, to=[recipient, "bob@example.test"]).code == 250
    assert set(relay.arrived(1)[0].recipients) == {"bob@example.test"}


def test_a_command_that_the_server_does_not_know_is_answered(relay: Relay, run: Run) -> None:
    run("commands")
    with Client(relay.port) as client:
        client.ehlo()
        assert client.command("XYZZY plugh") == (502, "5.5.1 nothing happens")
        assert client.command("PLUGH").text != "5.5.1 nothing happens"
        assert client.deliver(LETTER).code == 250
    relay.arrived(1)


def told(gate: Gate) -> list[str]:
    """Return what the policy has logged of the ends of messages, in order."""
    return re.findall(r"outcome of (\S+: \w+)", gate.log())


def test_each_message_ends_once(relay: Relay, run: Run) -> None:
    gate = run("content:in_headers", "outcomes", configuration='[log]\nlevel = "info"\n')
    with Client(relay.port) as client:
        client.ehlo()
        client.deliver(LETTER, sender="first@example.org")
        client.deliver(letter(b"", subject=b"forbidden"), sender="second@example.org")
        client.mail("third@example.org")
        client.command("RSET")
        client.mail("fourth@example.org")
        client.rcpt("bob@example.test")
        client.command("RSET")
        client.deliver(LETTER, sender="fifth@example.org")
        client.quit()
    assert eventually(lambda: "closed: client.example.org" in gate.log(), 5), gate.log()
    assert told(gate) == [
        "first: accepted",
        "second: refused",
        "third: aborted",
        "fourth: aborted",
        "fifth: accepted",
    ]
    assert gate.log().count("closed: client.example.org") == 1
    relay.arrived(2)


def test_a_client_that_vanishes_ends_its_message(relay: Relay, run: Run) -> None:
    gate = run("outcomes", configuration='[log]\nlevel = "info"\n')
    with Client(relay.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        client.rcpt("bob@example.test")
        client.command("DATA")
        client.content(LETTER)
    assert eventually(lambda: "closed: client.example.org" in gate.log(), 5), gate.log()
    assert told(gate) == ["alice: aborted"]


def test_sessions_above_the_limit_are_put_off(relay: Relay, run: Run) -> None:
    run("recipients", configuration="[limits]\nsessions = 1\n")
    with Client(relay.port) as first:
        first.ehlo()
        first.mail("alice@example.org")
        first.rcpt("bob@example.test")  # Postfix tells of a client when it wants an answer
        refusal = Reply(421, "4.3.2 too many connections, try again later")
        assert send(relay.port, LETTER).plain == refusal
        assert first.data(LETTER).code == 250
        first.quit()
    assert eventually(lambda: send(relay.port, LETTER).code == 250, 5)
    relay.arrived(2)


def test_messages_above_the_limit_are_refused(relay: Relay, run: Run) -> None:
    limits = '[limits]\nmessage = "64K"\noversize = "reject"\n'
    run("content:in_whole", configuration=limits)
    with Client(relay.port) as client:
        client.ehlo()
        assert client.deliver(letter(b"0123456789\r\n" * 10_000)).code == 552
        assert client.deliver(LETTER).code == 250
    relay.arrived(1)


def test_an_answer_comes_before_sendmail_stops_waiting(sendmail: Sendmail, run: Run) -> None:
    run("hesitant", table={"mta": "sendmail"})
    sendmail.sink.forget()
    with Client(sendmail.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        reply = client.rcpt("bob@example.test").plain
        assert reply == (451, "4.3.0 the mail policy failed, try again later")
