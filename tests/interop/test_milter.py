"""What a policy decides and edits arrives at the client and at the next mail server.

Everything here goes through Postfix and through Sendmail. Edits of header and body are in
`test_same`, with the servers that cannot do more.
"""

from __future__ import annotations

import pytest

from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Run
from tests.interop.mail import difficult, letter
from tests.interop.relay import Relay
from tests.interop.sendmail import Sendmail

LETTER = letter(b"hello\r\n")

# Where the client hears what is decided at a stage.
HEARD = {
    "mail": "MAIL",
    "rcpt": "RCPT",
    "data": "DATA",
    "headers": "the end",
    "body": "the end",
    "message": "the end",
}

REFUSALS = {
    "reject": Reply(554, "5.7.0 not here, 100% sure"),
    "defer": Reply(450, "4.2.0 come back in 5 minutes"),
    "lines": Reply(550, "5.6.0 first of all\n5.6.0 and 50%s more"),
    "disconnect": Reply(421, "4.7.0 that is enough"),
    "leave": Reply(554, "5.7.0 for good"),
}


def converse(client: Client, sender: str, to: str = "bob@example.test") -> tuple[str, Reply]:
    """Send one message; return the first refusal, or the last reply, and where it came."""
    for verb, command in (
        ("MAIL", f"MAIL FROM:<{sender}>"),
        ("RCPT", f"RCPT TO:<{to}>"),
        ("DATA", "DATA"),
    ):
        reply = client.command(command)
        if reply.code not in (250, 354):
            return verb, reply
    client.content(LETTER)
    return "the end", client.command(".")


@pytest.mark.parametrize("stage", HEARD)
def test_a_refusal_is_heard_at_its_stage(relay: Relay, run: Run, stage: str) -> None:
    run("verdicts")
    with Client(relay.port) as client:
        client.ehlo()
        for word in ("reject", "defer", "lines"):
            verb, reply = converse(client, f"{word}.{stage}@example.org")
            assert (verb, reply.plain) == (HEARD[stage], REFUSALS[word])
            client.command("RSET")
        assert converse(client, "alice@example.org")[1].code == 250
    assert [m.sender for m in relay.arrived(1)] == ["alice@example.org"]


@pytest.mark.parametrize("stage", HEARD)
def test_a_disconnect_closes_at_its_stage(relay: Relay, run: Run, stage: str) -> None:
    run("verdicts")
    with Client(relay.port) as client:
        client.ehlo()
        verb, reply = converse(client, f"disconnect.{stage}@example.org")
        assert (verb, reply.plain) == (HEARD[stage], REFUSALS["disconnect"])
        assert client.hung_up()
    assert send(relay.port, LETTER).code == 250
    assert [m.sender for m in relay.arrived(1)] == ["alice@example.org"]


@pytest.mark.parametrize("stage", HEARD)
def test_a_disconnect_for_good_refuses_all_that_follows(
    relay: Relay, run: Run, stage: str
) -> None:
    run("verdicts")
    with Client(relay.port) as client:
        client.ehlo()
        verb, reply = converse(client, f"leave.{stage}@example.org")
        assert (verb, reply.plain) == (HEARD[stage], REFUSALS["leave"])
        client.command("RSET")
        assert converse(client, "alice@example.org")[1].plain == REFUSALS["leave"]
    assert send(relay.port, LETTER).code == 250
    assert len(relay.arrived(1)) == 1


@pytest.mark.parametrize("word", ["reject", "defer", "lines", "leave"])
def test_a_refused_connection_hears_so_at_mail(relay: Relay, run: Run, word: str) -> None:
    run("verdicts:at_connect", word=word)
    with Client(relay.port) as client:
        assert client.banner.code == 220
        assert client.ehlo().code == 250
        for _ in range(2):
            assert client.mail("alice@example.org").plain == REFUSALS[word]
        assert client.quit().code == 221


def test_a_disconnected_connection_is_closed_at_once(relay: Relay, run: Run) -> None:
    run("verdicts:at_connect", word="disconnect")
    with Client(relay.port) as client:
        assert client.banner.code == 421  # with a text of the server's own
        assert client.hung_up()


@pytest.mark.parametrize("word", ["reject", "defer", "lines"])
def test_a_refused_greeting_hears_so_at_mail(relay: Relay, run: Run, word: str) -> None:
    run("verdicts:at_helo")
    with Client(relay.port) as client:
        assert client.ehlo(f"{word}.example.org").code == 250
        assert client.mail("alice@example.org").plain == REFUSALS[word]
        assert client.ehlo().code == 250
        assert converse(client, "alice@example.org")[1].code == 250
    relay.arrived(1)


def test_a_disconnected_greeting_is_closed_at_once(relay: Relay, run: Run) -> None:
    run("verdicts:at_helo")
    with Client(relay.port) as client:
        assert client.ehlo("disconnect.example.org") == REFUSALS["disconnect"]
        assert client.hung_up()


def test_a_refused_recipient_is_refused_alone(relay: Relay, run: Run) -> None:
    run("recipients")
    with Client(relay.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        assert client.rcpt("bob@example.test").code == 250
        assert client.rcpt("nobody@example.test").plain == (550, "5.1.1 no such user here")
        assert client.rcpt("carol@example.test").code == 250
        assert client.data(LETTER).code == 250
    [message] = relay.arrived(1)
    assert set(message.recipients) == {"bob@example.test", "carol@example.test"}
    assert message.content == LETTER


@pytest.mark.parametrize("stage", HEARD)
def test_a_discarded_message_is_taken_and_gone(relay: Relay, run: Run, stage: str) -> None:
    run("verdicts")
    with Client(relay.port) as client:
        client.ehlo()
        verb, reply = converse(client, f"discard.{stage}@example.org")
        assert (verb, reply.code) == ("the end", 250)
        assert converse(client, "alice@example.org")[1].code == 250
    assert relay.idle()
    assert [m.sender for m in relay.arrived(1)] == ["alice@example.org"]


@pytest.mark.parametrize("stage", HEARD)
def test_a_quarantined_message_is_taken_and_held(relay: Relay, run: Run, stage: str) -> None:
    run("verdicts")
    with Client(relay.port) as client:
        client.ehlo()
        verb, reply = converse(client, f"quarantine.{stage}@example.org")
        assert (verb, reply.code) == ("the end", 250)
        assert converse(client, "alice@example.org")[1].code == 250
    [held] = [message for message in relay.queue() if message.id in reply.text]
    assert held.held
    if isinstance(relay, Sendmail):  # Postfix keeps no reason
        assert relay.reason(held) == "look at this"
    assert [m.sender for m in relay.arrived(1)] == ["alice@example.org"]


@pytest.mark.parametrize("stage", ["connect", "helo", "mail", "rcpt", "data", "headers", "body"])
def test_an_accepted_message_is_not_refused_later(relay: Relay, run: Run, stage: str) -> None:
    run("verdicts:accepting_at", stage=stage)
    assert send(relay.port, LETTER).code == 250
    assert relay.arrived(1)[0].content == LETTER


SENDERS = {"sender": "bounces@example.org", "parameters": "bounces@example.org", "null": ""}


@pytest.mark.parametrize("edit", SENDERS)
def test_the_sender_is_changed(relay: Relay, run: Run, edit: str) -> None:
    run("routes")
    assert send(relay.port, LETTER, to=f"{edit}@example.test").code == 250
    [message] = relay.arrived(1)
    assert message.sender == SENDERS[edit]
    told = {name: message.parameters.get(name) for name in ("ENVID", "RET")}
    wanted = ("QQ314159", "HDRS") if edit == "parameters" else (None, None)
    assert told == dict(zip(("ENVID", "RET"), wanted, strict=True))
    assert message.content == LETTER


RECIPIENTS = {
    "add": {"add", "bob", "carol"},
    "add-silent": {"add-silent", "bob", "carol"},
    "change": {"carol", "bob"},
    "again": {"again", "bob"},
    "remove": {"bob"},
}


@pytest.mark.parametrize("edit", RECIPIENTS)
def test_recipients_are_changed(relay: Relay, run: Run, edit: str) -> None:
    run("routes")
    to = [f"{edit}@example.test", "bob@example.test"]
    assert send(relay.port, LETTER, to=to).code == 250
    [message] = relay.arrived(1)
    assert set(message.recipients) == {f"{name}@example.test" for name in RECIPIENTS[edit]}
    assert message.content == LETTER
    if edit == "add-silent":
        assert message.recipients["carol@example.test"]["NOTIFY"] == "NEVER"


def test_esmtp_parameters_stay_with_changed_addresses(relay: Relay, run: Run) -> None:
    run("envelope")
    with Client(relay.port) as client:
        client.ehlo()
        client.command("MAIL FROM:<alice@example.org> RET=HDRS ENVID=QQ314159")
        client.command("RCPT TO:<postmaster@example.test> NOTIFY=NEVER")
        assert client.data(LETTER).code == 250
    [message] = relay.arrived(1)
    assert message.sender == "bounces@example.org"
    assert (message.parameters["RET"], message.parameters["ENVID"]) == ("HDRS", "QQ314159")
    assert set(message.recipients) == {"carol@example.test"}
    assert message.recipients["carol@example.test"]["NOTIFY"] == "NEVER"


def test_a_recipient_given_twice_is_changed_for_good(relay: Relay, run: Run) -> None:
    run("envelope")
    to = ["postmaster@example.test", "Postmaster@Example.test", "postmaster@example.test"]
    assert send(relay.port, LETTER, to=[*to, "bob@example.test"]).code == 250
    [message] = relay.arrived(1)
    assert "postmaster@example.test" not in message.recipients
    assert {"carol@example.test", "bob@example.test"} <= set(message.recipients)


def test_a_message_without_recipients_is_taken_and_gone(relay: Relay, run: Run) -> None:
    run("routes")
    to = ["remove-all@example.test", "bob@example.test"]
    assert send(relay.port, LETTER, to=to).code == 250
    assert relay.idle()
    relay.arrived(0)


def test_a_null_sender_passes_and_is_changed(relay: Relay, run: Run) -> None:
    run("routes")
    assert send(relay.port, LETTER, sender="").code == 250
    assert send(relay.port, LETTER, sender="", to="sender@example.test").code == 250
    assert {m.sender for m in relay.arrived(2)} == {"", "bounces@example.org"}


def test_the_envelope_changes_at_mail_and_rcpt(relay: Relay, run: Run) -> None:
    run("envelope")
    to = ["postmaster@example.test", "bob@example.test"]
    assert send(relay.port, LETTER, to=to).code == 250
    [message] = relay.arrived(1)
    assert message.sender == "bounces@example.org"
    assert set(message.recipients) == {"carol@example.test", "bob@example.test"}


def test_many_edits_of_one_message_end_in_the_same_message(relay: Relay, run: Run) -> None:
    run("together")
    sent = difficult(
        b"Date: Fri, 02 Jan 2026 10:00:00 +0000",
        b"X-Gate: the first",
        b"Message-ID: <together@client.example.org>",
        b"x-gate: the second",
        b"From: Alice <alice@example.org>",
        b"X-GATE: the third,\r\n\tfolded",
        b"To: Bob <bob@example.test>",
        body=b"the body\r\n",
    )
    to = ["bob@example.test", "carol@example.test"]
    assert send(relay.port, sent, to=to).code == 250
    [message] = relay.arrived(1)
    assert message.content == difficult(
        b"X-Gate: at the very top",
        b"X-Gate: below the very top",
        b"Date: Sat, 03 Jan 2026 10:00:00 +0000",
        b"X-Gate: the first, changed",
        b"Message-ID: <together@client.example.org>",
        b"From: Alice <alice@example.org>",
        b"To: Bob <bob@example.test>",
        b"X-Gate: below",
        b"X-Gate: below that",
        b"X-Gate: at the very end",
        body=b"another body\r\n.\r\n..\r\n",
    )
    assert message.sender == "bounces@example.org"
    assert message.parameters["ENVID"] == "QQ314159"
    assert set(message.recipients) == {"bob@example.test", "dave@example.test"}
