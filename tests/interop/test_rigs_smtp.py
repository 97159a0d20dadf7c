"""The servers and the client around the SMTP proxy do by themselves what its tests count on.

No mailgate runs here: what fails here is not its fault.
"""

from __future__ import annotations

import base64
import os
import smtplib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.client import Client, Malformed, Reply, send
from tests.interop.conftest import Start, folder_in
from tests.interop.credentials import Certificate
from tests.interop.dovecot import Dovecot
from tests.interop.exim import Exim
from tests.interop.mail import PLAIN, delivered, letter
from tests.interop.postfix import BeforeQueue
from tests.interop.processes import eventually
from tests.interop.sink import Sink
from tests.interop.swaks import LOGIN_REFUSED, SENT, Swaks

LETTER = letter(b"hello\r\n")
ALICE, BOB, CAROL = "alice@example.org", "bob@example.test", "carol@example.test"
PROXY = (
    *("--proxy-version", "1", "--proxy-family", "TCP4"),
    *("--proxy-source", "192.0.2.7", "--proxy-source-port", "4321"),
    *("--proxy-dest", "192.0.2.1", "--proxy-dest-port", "25"),
)


@pytest.fixture(scope="module")
def deaf() -> Iterator[Sink]:
    """Run a filter that gives nothing back."""
    sink = Sink()
    sink.start()
    yield sink
    sink.stop()


@pytest.fixture(scope="module", name="postfix")
def run_postfix(scratch: Path, postfix_package: Path, deaf: Sink) -> Iterator[BeforeQueue]:
    """Run a Postfix before that filter."""
    address = f"127.0.0.1:{deaf.port}"
    with BeforeQueue(postfix_package, folder_in(scratch, "postfix."), address) as server:
        yield server


@pytest.fixture(autouse=True)
def _forgotten(postfix: BeforeQueue, deaf: Sink) -> None:
    """Forget what an earlier test has sent."""
    postfix.forget()
    deaf.forget()


def test_exim_delivers_what_it_takes(light: Exim) -> None:
    assert send(light.port, PLAIN, sender="", to=[BOB, CAROL]).code == 250
    [message] = light.arrived(1)
    assert message.content == PLAIN
    assert (message.sender, set(message.recipients)) == ("", {BOB, CAROL})
    assert light.idle()


@pytest.mark.parametrize(
    ("local", "reply", "closes"),
    [
        ("lines", Reply(550, "5.1.1 first line of three\nsecond line\nlast line"), False),
        ("defer", Reply(451, "4.3.0 come back later"), False),
        ("gone", Reply(421, "4.3.2 gone"), False),
        ("drop", Reply(550, "5.3.2 going away"), True),
    ],
)
def test_exim_refuses_recipients(light: Exim, local: str, reply: Reply, closes: bool) -> None:
    with Client(light.port) as client:
        client.ehlo()
        client.mail(ALICE)
        assert client.rcpt(f"{local}@steered.example") == reply
        assert client.quiet() is not closes


@pytest.mark.parametrize(
    ("word", "reply", "closes"),
    [
        ("reject", Reply(550, "5.7.1 content rejected\nsecond line of the reason"), False),
        ("defer", Reply(451, "4.7.1 content deferred"), False),
        ("drop", Reply(550, "5.3.2 going away"), True),
    ],
)
def test_exim_refuses_messages(light: Exim, word: str, reply: Reply, closes: bool) -> None:
    with Client(light.port) as client:
        client.ehlo()
        assert client.deliver(f"X-Steer: {word}\r\n".encode() + LETTER) == reply
        assert client.quiet() is not closes


def test_exim_takes_the_address_from_a_proxy_header(heavy: Exim, swaks: Swaks) -> None:
    assert swaks.send(heavy.port, LETTER, *PROXY).status == SENT
    [message] = heavy.sink.wait(1, 15)
    received = message.content.removesuffix(LETTER)
    assert received.startswith(b"Received: from client.example.org ([192.0.2.7]:4321)\r\n")


def test_exim_refuses_a_client_without_a_proxy_header(heavy: Exim) -> None:
    refusal = "Command refused, required Proxy negotiation failed"
    assert send(heavy.port, LETTER) == (503, refusal)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks_logs_in_at_exim_over_tls(
    light: Exim, swaks: Swaks, certificate: Certificate, mechanism: str
) -> None:
    options = (
        *("--tls", "--tls-verify", "--tls-ca-path", str(certificate.certificate)),
        *("--auth", mechanism, "--auth-user", "ann"),
    )
    right = swaks.send(light.port, PLAIN, *options, "--auth-password", "secret")
    wrong = swaks.send(light.port, PLAIN, *options, "--auth-password", "Secret")
    assert (right.status, wrong.status) == (SENT, LOGIN_REFUSED), right.transcript
    [message] = light.sink.wait(1, 15)
    assert b"\r\n\twith esmtpsa id " in message.content
    assert message.content.endswith(PLAIN)


def test_dovecot_answers_for_each_recipient(dovecot: Dovecot) -> None:
    with Client(dovecot.port) as client:
        assert client.lhlo().code == 250
        client.mail(ALICE)
        recipients = (BOB, "nobody@unknown.example", "full@example.test", CAROL)
        assert [client.rcpt(name).code for name in recipients] == [250, 550, 250, 250]
        replies = [client.data(PLAIN), client.reply(), client.reply()]
    assert [reply.code for reply in replies] == [250, 552, 250]
    messages = dovecot.delivered(2)
    assert {(m.sender, m.recipient) for m in messages} == {(ALICE, BOB), (ALICE, CAROL)}
    assert {m.content for m in messages} == {delivered(PLAIN)}


def test_dovecot_takes_mail_at_a_unix_socket(dovecot: Dovecot) -> None:
    with smtplib.LMTP(str(dovecot.socket)) as client:
        assert client.sendmail("", BOB, LETTER) == {}
    [message] = dovecot.delivered(1)
    assert (message.sender, message.recipient) == ("", BOB)
    assert message.content == delivered(LETTER)


@pytest.mark.parametrize(("password", "verdict"), [(b"secret", b"OK"), (b"Secret", b"FAIL")])
def test_dovecot_checks_a_login(dovecot: Dovecot, password: bytes, verdict: bytes) -> None:
    response = base64.b64encode(b"\0ann\0" + password)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(15)
        connection.connect(str(dovecot.auth))
        stream = connection.makefile("rwb")
        offers = list(iter(stream.readline, b"DONE\n"))
        assert b"MECH\tPLAIN\tplaintext\n" in offers
        stream.write(b"VERSION\t1\t2\nCPID\t%d\n" % os.getpid())
        stream.write(b"AUTH\t1\tPLAIN\tservice=smtp\tsecured\tresp=%b\n" % response)
        stream.flush()
        assert stream.readline().split()[:3] == [verdict, b"1", b"user=ann"]


def test_postfix_passes_mail_to_its_filter(postfix: BeforeQueue, deaf: Sink) -> None:
    assert send(postfix.port, PLAIN).code == 250
    [message] = deaf.wait(1, 15)
    assert message.content.startswith(b"Received: from client.example.org (")
    assert message.content.endswith(PLAIN)
    assert postfix.queue() == []


def test_postfix_logs_the_client_that_xforward_names(postfix: BeforeQueue) -> None:
    with Client(postfix.back) as client:
        assert "XFORWARD" in client.ehlo().text
        named = "XFORWARD NAME=far.example.org ADDR=192.0.2.7 PORT=4321 HELO=far PROTO=ESMTP"
        assert client.command(named).code == 250
        assert client.deliver(PLAIN).code == 250
    assert postfix.arrived(1)[0].content == PLAIN
    assert eventually(lambda: ", orig_client=far.example.org[192.0.2.7]" in postfix.log(), 5)


def test_postfix_takes_the_client_that_xclient_names(postfix: BeforeQueue) -> None:
    with Client(postfix.back) as client:
        assert "XCLIENT" in client.ehlo().text
        assert client.command("XCLIENT NAME=far.example.org ADDR=192.0.2.8").code == 220
        assert client.ehlo("far").code == 250
        assert client.deliver(PLAIN).code == 250
    [message] = postfix.sink.wait(1, 15)
    assert message.content.startswith(b"Received: from far (far.example.org [192.0.2.8])\r\n")


def test_opensmtpd_delivers_what_it_takes(start: Start) -> None:
    server = start()
    assert send(server.port, PLAIN).code == 250
    [message] = server.delivered(1)
    assert message.content == delivered(PLAIN)


def test_opensmtpd_knows_one_greeting_and_no_pipelining(start: Start) -> None:
    server = start()
    with Client(server.port) as client:
        assert "PIPELINING" not in client.ehlo().text
        assert client.ehlo() == (503, "5.5.1 Invalid command: Already identified")
        with pytest.raises(Malformed, match="hung up"):
            client.pipeline(f"MAIL FROM:<{ALICE}>", f"RCPT TO:<{BOB}>")
