"""mailgate as a proxy before a real Dovecot: LMTP, logins, and a maildir that Dovecot reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Proxy, folder_in
from tests.interop.credentials import Certificate
from tests.interop.dovecot import Dovecot
from tests.interop.exim import Exim
from tests.interop.mail import PLAIN, delivered, letter
from tests.interop.pairs import stamped
from tests.interop.processes import free_port
from tests.interop.swaks import LOGIN_REFUSED, SENT, Swaks

LETTER = letter(b"hello\r\n")
ALICE, BOB, CAROL = "alice@example.org", "bob@example.test", "carol@example.test"
FULL, UNKNOWN = "full@example.test", "dave@unknown.example"


def saved(reply: Reply, recipient: str) -> bool:
    """Tell whether Dovecot says that it has saved a message for this recipient."""
    return reply.code == 250 and f" <{recipient}> " in reply.text and "Saved" in reply.text


@pytest.mark.parametrize("body", ["hold", "stream"])
def test_each_recipient_has_the_reply_that_dovecot_gives(
    dovecot: Dovecot, proxy: Proxy, body: str
) -> None:
    gate = proxy(dovecot.url, "recipients", listen=f"lmtp:127.0.0.1:{free_port()}", body=body)
    recipients = (BOB, UNKNOWN, "nobody@example.test", FULL, CAROL)
    with Client(gate.port) as client:
        assert client.lhlo().code == 250
        client.mail(ALICE)
        assert [client.rcpt(name).code for name in recipients] == [250, 550, 550, 250, 250]
        replies = [client.data(PLAIN), client.reply(), client.reply()]
        assert saved(replies[0], BOB)
        full = r"5\.2\.2 <full@example\.test> .*Quota exceeded"
        assert (replies[1].code, bool(re.match(full, replies[1].text))) == (552, True)
        assert saved(replies[2], CAROL)
        assert client.quiet()
    messages = dovecot.delivered(2)
    assert {(m.sender, m.recipient) for m in messages} == {(ALICE, BOB), (ALICE, CAROL)}
    assert {m.content for m in messages} == {delivered(PLAIN)}


def test_refusals_at_rcpt_are_what_dovecot_says(dovecot: Dovecot, proxy: Proxy) -> None:
    gate = proxy(dovecot.url, "recipients", listen=f"lmtp:127.0.0.1:{free_port()}")
    with Client(gate.port) as client, Client(dovecot.port) as direct:
        for each in (client, direct):
            each.lhlo()
            each.mail(ALICE)
        assert client.rcpt(UNKNOWN) == direct.rcpt(UNKNOWN)
        assert client.command("DATA").code in (503, 554)  # RFC 2033 4.2


def test_each_recipient_has_the_reply_of_a_policy(dovecot: Dovecot, proxy: Proxy) -> None:
    gate = proxy(dovecot.url, "content:in_whole", listen=f"lmtp:127.0.0.1:{free_port()}")
    with Client(gate.port) as client:
        client.lhlo()
        for content, codes in ((letter(b"forbidden\r\n"), (550, 550)), (LETTER, (250, 250))):
            client.mail(ALICE)
            client.rcpt(BOB)
            client.rcpt(CAROL)
            assert (client.data(content).code, client.reply().code) == codes
    assert {m.recipient for m in dovecot.delivered(2)} == {BOB, CAROL}


def test_sockets_carry_lmtp_on_both_sides(scratch: Path, dovecot: Dovecot, proxy: Proxy) -> None:
    place = folder_in(scratch, "lmtp.") / "socket"
    proxy(f"lmtp+unix:{dovecot.socket}", "stamp", listen=f"lmtp:unix:{place}")
    with Client(place) as client:
        client.lhlo()
        assert saved(client.deliver(PLAIN, sender=""), BOB)
    [message] = dovecot.delivered(1)
    assert (message.sender, message.content) == ("", delivered(stamped(PLAIN)))


def test_recipients_are_changed_for_each(dovecot: Dovecot, proxy: Proxy) -> None:
    gate = proxy(dovecot.url, "routes", listen=f"lmtp:127.0.0.1:{free_port()}")
    with Client(gate.port) as client:
        client.lhlo()
        client.mail(ALICE)
        for recipient in ("change@example.test", BOB, FULL):
            client.rcpt(recipient)
        replies = [client.data(LETTER), client.reply(), client.reply()]
        assert [reply.code for reply in replies] == [250, 250, 552]
        assert client.quiet()
    assert {m.recipient for m in dovecot.delivered(2)} == {BOB, CAROL}


def test_an_smtp_client_sends_to_one_at_a_time(dovecot: Dovecot, proxy: Proxy) -> None:
    """A single reply could not tell who has the message."""
    gate = proxy(dovecot.url, "stamp")
    with Client(gate.port) as client:
        client.ehlo()
        client.mail(ALICE)
        assert client.rcpt(UNKNOWN).code == 550
        assert client.rcpt(BOB).code == 250
        later = client.rcpt(CAROL)
        assert (later.code, later.text[:6]) == (452, "4.5.3 ")
        assert saved(client.data(LETTER), BOB)
        assert saved(client.deliver(LETTER, to=CAROL), CAROL)
        assert client.deliver(LETTER, to=FULL).code == 552
    messages = dovecot.delivered(2)
    assert {m.recipient for m in messages} == {BOB, CAROL}
    assert {m.content for m in messages} == {delivered(stamped(LETTER))}


# -- logins --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_dovecot_decides_who_logs_in(
    dovecot: Dovecot,
    light: Exim,
    proxy: Proxy,
    swaks: Swaks,
    certificate: Certificate,
    mechanism: str,
) -> None:
    gate = proxy(
        light.url,
        "facts",
        auth=f"dovecot:{dovecot.auth}",
        auth_required=True,
        tls={"cert": str(certificate.certificate), "key": str(certificate.key)},
    )
    options = (
        *("--tls", "--tls-verify", "--tls-ca-path", str(certificate.certificate)),
        *("--auth", mechanism, "--auth-user", "ann"),
    )
    refused = send(gate.port, LETTER)
    assert (refused.code, refused.text[:6]) == (530, "5.7.0 ")
    right = swaks.send(gate.port, LETTER, *options, "--auth-password", "secret")
    wrong = swaks.send(gate.port, LETTER, *options, "--auth-password", "Secret")
    assert (right.status, wrong.status) == (SENT, LOGIN_REFUSED), right.transcript
    [message] = light.arrived(1)
    assert b"\r\nX-Fact-User: ann\r\n" in message.content
    assert "secret" not in gate.log().lower()


def test_no_password_is_asked_for_without_tls(
    dovecot: Dovecot, light: Exim, proxy: Proxy, certificate: Certificate
) -> None:
    gate = proxy(
        light.url,
        "recipients",
        auth=f"dovecot:{dovecot.auth}",
        tls={"cert": str(certificate.certificate), "key": str(certificate.key)},
    )
    with Client(gate.port) as client:
        assert "AUTH" not in client.ehlo().text
        assert client.command("AUTH PLAIN AGFubgBzZWNyZXQ=").code == 538  # RFC 4954 6


# -- maildir -------------------------------------------------------------------------------------


def test_dovecot_reads_the_maildir(dovecot: Dovecot, proxy: Proxy) -> None:
    gate = proxy(f"maildir:{dovecot.mail / 'eve'}", "stamp")
    assert send(gate.port, PLAIN, to="eve@example.test").code == 250
    trace, _, content = dovecot.read("eve").partition(b"Date: ")
    assert b"Date: " + content == delivered(stamped(PLAIN))
    assert trace.startswith(b"Return-Path: <alice@example.org>\nDelivered-To: eve@example.test\n")
