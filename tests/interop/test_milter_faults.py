"""Mail goes on whatever a policy does, and whatever is done to mailgate."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Run, folder_in
from tests.interop.gate import Gate
from tests.interop.installation import Installation
from tests.interop.mail import letter
from tests.interop.postfix import Postfix
from tests.interop.processes import eventually, running
from tests.interop.relay import Relay
from tests.interop.sendmail import Sendmail, Trees

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
FAILED = Reply(451, "4.3.0 the mail policy failed, try again later")

PATIENCE = 60  # seconds that the handler at the end of a message takes
BEFORE = 18  # seconds that the one at the header takes
IMPATIENCE = 15  # seconds that Postfix waits for a word of its milter; Sendmail waits for 10


@pytest.fixture(scope="module", autouse=True)
def slow_letters(
    scratch: Path, mailgate: Installation, postfix_package: Path, sendmail_packages: Trees
) -> Iterator[list[tuple[Relay, Future[Reply]]]]:
    """Send each server a message whose handlers take a minute, while the other tests run."""
    address = f"unix:{folder_in(scratch, 'milter.')}/socket"
    postfix = Postfix(
        postfix_package,
        folder_in(scratch, "postfix."),
        address,
        milter_content_timeout=f"{IMPATIENCE}s",
    )
    sendmail = Sendmail(sendmail_packages, folder_in(scratch, "sendmail."), address)
    with ExitStack() as stack:
        settings = {"seconds": str(PATIENCE), "before": str(BEFORE)}
        stack.enter_context(Gate(mailgate, address, "patient", settings=settings))
        servers = [stack.enter_context(server) for server in (postfix, sendmail)]
        clients = stack.enter_context(ThreadPoolExecutor(len(servers)))
        yield [
            (server, clients.submit(send, server.port, LETTER, timeout=2 * PATIENCE))
            for server in servers
        ]


def transaction(client: Client, recipient: str) -> Reply:
    """Send one message in an open session; return the first refusal or the last reply."""
    reply = client.deliver(LETTER, to=recipient)
    if reply.code != 250:
        client.command("RSET")
    return reply


@pytest.mark.parametrize("policy", ["at_rcpt", "at_message", "in_thread"])
def test_a_fault_costs_one_answer(relay: Relay, run: Run, policy: str) -> None:
    gate = run(f"faults:{policy}")
    pid = gate.pid
    for fault, code in FAULTS.items():
        with Client(relay.port) as client, Client(relay.port) as witness:
            client.ehlo()
            reply = transaction(client, f"{fault}@example.test")
            assert (fault, reply.code) == (fault, code)
            assert code == 250 or reply.plain == FAILED
            assert client.quiet(0.05)
            assert transaction(client, "bob@example.test").code == 250
            witness.ehlo()
            assert transaction(witness, "bob@example.test").code == 250
        relay.arrived(2 + (code == 250))
        relay.sink.forget()
    assert gate.alive()
    assert running(pid)


@pytest.mark.parametrize(
    "stage",
    ["connect", "helo", "mail", "rcpt", "data", "headers", "body", "message", "done", "close"],
)
def test_a_fault_at_any_stage_is_an_answer(relay: Relay, run: Run, stage: str) -> None:
    gate = run("everywhere", stage=stage)
    late = stage in ("done", "close")  # nothing is left to refuse there
    for _ in range(2):
        reply = send(relay.port, LETTER)
        assert reply.code == 250 if late else reply.plain == FAILED
    relay.arrived(2 if late else 0)
    assert eventually(lambda: gate.log().count("SystemExit") >= 2, 5), gate.log()
    assert gate.alive()


def test_what_a_policy_prints_is_logged(relay: Relay, run: Run) -> None:
    gate = run("faults:at_rcpt")
    assert send(relay.port, LETTER, to="prints@example.test").code == 250
    assert eventually(lambda: "250 2.0.0 not for you" in gate.log(), 5), gate.log()
    relay.arrived(1)


@pytest.mark.parametrize("recipient", ["hangs", "hangs-later"])
def test_a_handler_that_hangs_is_answered_for(relay: Relay, run: Run, recipient: str) -> None:
    run("slow:waits")
    with Client(relay.port) as client:
        client.ehlo()
        began = time.monotonic()
        assert transaction(client, f"{recipient}@example.test").plain == FAILED
        assert 0.9 < time.monotonic() - began < 10
        assert transaction(client, "bob@example.test").code == 250
    relay.arrived(1)


def test_the_budget_of_a_message_is_kept(relay: Relay, run: Run) -> None:
    run("patient", configuration="[defaults]\nmessage_timeout = 2\n", seconds="600")
    began = time.monotonic()
    assert send(relay.port, LETTER) == FAILED
    assert 1.9 < time.monotonic() - began < 10
    relay.arrived(0)


def test_a_handler_that_blocks_stalls_no_other_session(relay: Relay, run: Run) -> None:
    run("slow:blocks")
    with Client(relay.port) as slow, Client(relay.port) as quick:
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
    relay.arrived(1)


@pytest.mark.parametrize("recipient", ["hangs", "hangs-later"])
def test_a_client_that_leaves_a_slow_handler(relay: Relay, run: Run, recipient: str) -> None:
    run("slow:waits")
    for _ in range(2):
        with Client(relay.port) as client:
            client.ehlo()
            client.mail("alice@example.org")
            client.ask(f"RCPT TO:<{recipient}@example.test>")
            if recipient == "hangs-later":
                client.reply()
                client.command("DATA")
                client.content(LETTER)
                client.ask(".")
    assert send(relay.port, LETTER).code == 250
    relay.arrived(1)


def test_without_mailgate_mail_waits(relay: Relay, run: Run) -> None:
    assert 400 <= send(relay.port, LETTER).code < 500
    run("recipients")
    assert send(relay.port, LETTER).code == 250
    relay.arrived(1)


def test_a_stale_socket_is_replaced(relay: Relay, run: Run, address: str) -> None:
    killed = run("recipients")
    assert send(relay.port, LETTER).code == 250
    killed.kill()
    assert Path(address.removeprefix("unix:")).is_socket()
    assert 400 <= send(relay.port, LETTER).code < 500
    run("recipients")
    assert send(relay.port, LETTER).code == 250
    relay.arrived(2)


def test_a_session_whose_mailgate_has_gone_is_put_off(relay: Relay, run: Run) -> None:
    first = run("recipients")
    with Client(relay.port) as client:
        client.ehlo()
        assert transaction(client, "bob@example.test").code == 250
        first.kill()
        run("recipients")
        assert transaction(client, "bob@example.test").code == 451
        assert send(relay.port, LETTER).code == 250
    relay.arrived(2)


def test_a_message_under_way_is_finished_before_the_end(relay: Relay, run: Run) -> None:
    gate = run("patient", seconds="3")
    with Client(relay.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        client.rcpt("bob@example.test")
        client.command("DATA")
        client.content(LETTER)
        client.ask(".")
        assert client.quiet(1)
        gate.tell(signal.SIGTERM)
        assert eventually(lambda: not gate.listens(), 5)
        assert 400 <= send(relay.port, LETTER).code < 500
        assert client.reply().code == 250
    assert gate.wait(10) == 0
    assert b"\r\nX-Waited: 3\r\n" in relay.arrived(1)[0].content


def test_an_idle_session_does_not_hold_up_the_end(relay: Relay, run: Run) -> None:
    gate = run("recipients")
    with Client(relay.port) as client:
        client.ehlo()
        assert transaction(client, "bob@example.test").code == 250
        gate.tell(signal.SIGTERM)
        assert gate.wait(10) == 0
        assert transaction(client, "bob@example.test").code == 451
    relay.arrived(1)


def test_a_handler_may_take_longer_than_the_server_waits(
    slow_letters: list[tuple[Relay, Future[Reply]]],
) -> None:
    for relay, reply in slow_letters:
        assert reply.result().code == 250
        [message] = relay.arrived(1)
        assert b"\r\nX-Waited: %d\r\n" % PATIENCE in message.content
