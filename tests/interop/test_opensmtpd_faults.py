"""smtpd outlives whatever a policy does: one stray octet, or one exit, would end it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Start
from tests.interop.installation import Installation
from tests.interop.mail import letter
from tests.interop.processes import eventually, running
from tests.interop.smtpd import OpenSMTPD

LETTER = letter(b"hello\r\n")

FAULTS = {
    "prints": 250,
    "writes": 250,
    "echoes": 250,
    "raises": 451,
    "odd": 451,
    "interrupts": 451,
    "exits": 451,
    "answers-text": 451,
    "forks-and-leaves": 250,
    "forks-and-exits": 250,
    "forks-and-returns": 250,
}


def transaction(client: Client, recipient: str) -> Reply:
    """Send one message in an open session; return the first refusal or the last reply."""
    client.mail("alice@example.org")
    reply = client.rcpt(recipient)
    if reply.code == 250:
        return client.data(LETTER)
    client.command("RSET")
    return reply


def assert_serving(server: OpenSMTPD) -> None:
    """Check that smtpd has one more message pass, in a session of its own."""
    before = len(list((server.maildir / "new").glob("*")))
    assert send(server.port, LETTER).code == 250, server.log()
    server.delivered(before + 1)
    assert server.alive(), server.log()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("policy", ["at_rcpt", "at_message", "in_thread"])
def test_a_fault_costs_one_answer(
    start: Start, mailgate: Installation, policy: str, fault: str
) -> None:
    server = start(mailgate.run(f"faults:{policy}"))
    with Client(server.port) as client, Client(server.port) as witness:
        client.ehlo()
        assert transaction(client, f"{fault}@example.test").code == FAULTS[fault]
        assert client.quiet()
        assert transaction(client, "bob@example.test").code == 250
        witness.ehlo()
        assert transaction(witness, "bob@example.test").code == 250
        assert client.quit().code == 221
    server.delivered(2 + (FAULTS[fault] == 250))
    assert_serving(server)


@pytest.mark.parametrize(
    "stage",
    ["connect", "helo", "mail", "rcpt", "data", "headers", "body", "message", "done", "close"],
)
def test_a_fault_at_any_stage_is_an_answer(
    start: Start, mailgate: Installation, stage: str
) -> None:
    server = start(mailgate.run("everywhere", stage=stage))
    late = stage in ("done", "close")  # nothing is left to refuse there
    for _ in range(3):
        reply = send(server.port, LETTER)
        assert reply.code == (250 if late else 451) or (stage, reply.code) == ("connect", 421)
    assert eventually(lambda: server.log().count("SystemExit") >= 3, 5), server.log()
    assert server.alive()
    server.delivered(3 if late else 0)


def test_noise_while_a_policy_is_loaded(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("noise"))
    assert_serving(server)


def test_what_a_policy_prints_is_logged(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("faults:at_rcpt"))
    assert send(server.port, LETTER, to="prints@example.test").code == 250
    assert eventually(lambda: "250 2.0.0 not for you" in server.log(), 5), server.log()


@pytest.mark.parametrize("recipient", ["hangs", "hangs-later"])
def test_a_handler_that_hangs_is_answered_for(
    start: Start, mailgate: Installation, recipient: str
) -> None:
    server = start(mailgate.run("slow:waits"))
    with Client(server.port) as client:
        client.ehlo()
        began = time.monotonic()
        assert transaction(client, f"{recipient}@example.test").code == 451
        assert 0.9 < time.monotonic() - began < 10
        assert transaction(client, "bob@example.test").code == 250
    assert_serving(server)


def test_a_handler_that_blocks_stalls_no_other_session(
    start: Start, mailgate: Installation
) -> None:
    server = start(mailgate.run("slow:blocks"))
    with Client(server.port) as slow, Client(server.port) as quick:
        for client in (slow, quick):
            client.ehlo()
            client.mail("alice@example.org")
        began = time.monotonic()
        slow.ask("RCPT TO:<blocks@example.test>")
        assert quick.rcpt("bob@example.test").code == 250
        assert quick.data(LETTER).code == 250
        assert time.monotonic() - began < 3
        assert slow.reply().code == 250
        assert time.monotonic() - began > 4.5
    assert_serving(server)


def test_a_client_that_leaves_a_slow_handler(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("slow:waits"))
    for _ in range(3):
        with Client(server.port) as client:
            client.ehlo()
            client.mail("alice@example.org")
            client.ask("RCPT TO:<hangs@example.test>")
    time.sleep(1.5)  # the late answers are for sessions that have ended
    assert_serving(server)


def test_sigterm_is_ignored(start: Start, mailgate: Installation) -> None:
    server = start(mailgate.run("recipients"))
    assert_serving(server)
    filters = server.filters()
    assert filters
    for pid in filters:
        os.kill(pid, signal.SIGTERM)
    assert eventually(lambda: "SIGTERM" in server.log(), 5), server.log()
    assert_serving(server)
    assert server.filters() == filters


@pytest.mark.parametrize("busy", [None, "hangs", "data"])
def test_mailgate_leaves_at_the_end_of_its_input(
    start: Start, mailgate: Installation, busy: str | None
) -> None:
    server = start(mailgate.run("slow:waits"))
    with Client(server.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        if busy == "hangs":
            client.ask("RCPT TO:<hangs@example.test>")
        elif busy == "data":
            client.rcpt("bob@example.test")
            client.command("DATA")
            client.content(LETTER)
        filters = server.filters()
        assert filters
        assert server.stop() == []
    assert not any(map(running, filters))
    assert "Traceback" not in server.log()
