"""mailgate as a proxy that encrypts towards clients and towards a real Exim, and logins through it.

Exim says in its Received field what a message came by: esmtps is TLS, esmtpa a login (RFC 3848).
"""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Proxy, available, folder_in
from tests.interop.credentials import Certificate, self_signed
from tests.interop.exim import Exim
from tests.interop.mail import PLAIN, letter
from tests.interop.processes import eventually, free_port
from tests.interop.relay import HOST
from tests.interop.swaks import LOGIN_REFUSED, SENT, Swaks

LETTER = letter(b"hello\r\n")


@pytest.fixture(scope="module")
def other(scratch: Path) -> Certificate:
    """Make another certificate of the same host."""
    return available(lambda folder: self_signed(folder, HOST), folder_in(scratch, "other."))


def files(certificate: Certificate) -> dict[str, str]:
    """Return the table [smtp.tls] for a certificate."""
    return {"cert": str(certificate.certificate), "key": str(certificate.key)}


def verified(certificate: Certificate, *, at_once: bool = False) -> tuple[str, ...]:
    """Return what has swaks encrypt, and see that the certificate is this one."""
    how = "--tls-on-connect" if at_once else "--tls"
    return how, "--tls-verify", "--tls-ca-path", str(certificate.certificate)


def protocol(exim: Exim) -> str:
    """Return what Exim says that the only message has come by."""
    [message] = exim.sink.wait(1, 15)
    found = re.search(rb"\r\n\twith (\w+) id ", message.content)
    assert found is not None, message.content[:600]
    return found[1].decode()


# -- clients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [False, True], ids=["STARTTLS", "smtps"])
def test_clients_encrypt(
    light: Exim, proxy: Proxy, swaks: Swaks, certificate: Certificate, at_once: bool
) -> None:
    listen = f"smtps:127.0.0.1:{free_port()}" if at_once else None
    gate = proxy(light.url, "facts", listen=listen, tls=files(certificate))
    talk = swaks.send(gate.port, PLAIN, *verified(certificate, at_once=at_once))
    assert talk.status == SENT, talk.transcript
    [message] = light.arrived(1)
    assert re.search(rb"\r\nX-Fact-TLS: TLSv1\.3 \w+ \d+\r\n", message.content)
    assert message.content.partition(b"\r\n\r\n")[2] == PLAIN.partition(b"\r\n\r\n")[2]
    assert protocol(light) == "esmtp"


def test_no_message_is_taken_unencrypted_where_tls_is_required(
    light: Exim, proxy: Proxy, certificate: Certificate
) -> None:
    gate = proxy(light.url, "recipients", tls={**files(certificate), "mode": "require"})
    with Client(gate.port) as client:
        client.ehlo()
        assert client.mail("alice@example.org").code == 530  # RFC 3207 4
        assert client.starttls(certificate.certificate, HOST).code == 220
        assert "STARTTLS" not in client.ehlo().text
        assert client.deliver(LETTER).code == 250
    light.arrived(1)


def test_sighup_reads_the_certificate_again(
    scratch: Path, light: Exim, proxy: Proxy, certificate: Certificate, other: Certificate
) -> None:
    folder = folder_in(scratch, "renewed.")
    used = Certificate(folder / "certificate.pem", folder / "key.pem")
    for file, source in zip(used, certificate, strict=True):
        shutil.copyfile(source, file)
    gate = proxy(light.url, "recipients", tls=files(used))
    with Client(gate.port) as client:
        client.ehlo()
        assert client.starttls(certificate.certificate, HOST).code == 220
        for file, source in zip(used, other, strict=True):
            shutil.copyfile(source, file)
        gate.tell(signal.SIGHUP)
        assert eventually(lambda: "reloaded" in gate.log(), 5), gate.log()
        client.ehlo()
        assert client.deliver(LETTER).code == 250  # a session goes on with what it has
    with Client(gate.port) as client:
        client.ehlo()
        assert client.starttls(other.certificate, HOST).code == 220
        client.ehlo()
        assert client.deliver(LETTER).code == 250
    light.arrived(2)


# -- towards Exim --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["try", "require"])
def test_the_upstream_is_spoken_to_over_tls(
    light: Exim, proxy: Proxy, certificate: Certificate, mode: str
) -> None:
    ca = {"ca": str(certificate.certificate)} if mode == "require" else {}
    gate = proxy(light.url, "recipients", upstream_tls={"mode": mode, **ca})
    with Client(gate.port) as client:
        client.ehlo()
        for _ in range(2):
            assert client.deliver(PLAIN).code == 250
            assert protocol(light) == "esmtps"
            assert light.arrived(1)[0].content == PLAIN
            light.forget()


def test_the_upstream_is_spoken_to_over_tls_from_the_start(
    light: Exim, proxy: Proxy, certificate: Certificate
) -> None:
    ca = {"ca": str(certificate.certificate)}
    gate = proxy(f"smtps://127.0.0.1:{light.tls_port}", "recipients", upstream_tls=ca)
    assert send(gate.port, PLAIN).code == 250
    assert protocol(light) == "esmtps"


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_an_upstream_with_another_certificate_gets_nothing(
    light: Exim, proxy: Proxy, other: Certificate, scheme: str
) -> None:
    port = light.port if scheme == "smtp" else light.tls_port
    trust = {"mode": "require", "ca": str(other.certificate)}
    gate = proxy(f"{scheme}://127.0.0.1:{port}", "recipients", upstream_tls=trust)
    reply = send(gate.port, LETTER)
    assert (reply.code, reply.text[:4]) == (451, "4.7." if scheme == "smtp" else "4.4.")
    assert "certificate" in gate.log()
    assert light.arrived(0) == []


# -- logins --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_exim_decides_who_logs_in(
    light: Exim, proxy: Proxy, swaks: Swaks, certificate: Certificate, mechanism: str
) -> None:
    gate = proxy(
        light.url,
        "facts",
        auth="passthrough",
        tls=files(certificate),
        upstream_tls={"mode": "require", "ca": str(certificate.certificate)},
    )
    options = (*verified(certificate), "--auth", mechanism, "--auth-user", "ann")
    wrong = swaks.send(gate.port, LETTER, *options, "--auth-password", "Secret")
    assert wrong.status == LOGIN_REFUSED, wrong.transcript
    assert wrong.replies(535) == ["Incorrect authentication data"]  # as Exim says it
    right = swaks.send(gate.port, LETTER, *options, "--auth-password", "secret")
    assert right.status == SENT, right.transcript
    assert protocol(light) == "esmtpsa"
    [message] = light.arrived(1)
    assert b"\r\nX-Fact-User: ann\r\n" in message.content
    assert "secret" not in gate.log().lower()


def test_a_login_belongs_to_one_client(
    light: Exim, proxy: Proxy, certificate: Certificate
) -> None:
    gate = proxy(light.url, "recipients", auth="passthrough", tls=files(certificate))
    with Client(gate.port) as client:
        client.ehlo()
        client.starttls(certificate.certificate, HOST)
        assert "AUTH PLAIN LOGIN" in client.ehlo().text.split("\n")
        assert client.command("AUTH PLAIN AGFubgBzZWNyZXQ=").code == 235
        assert client.deliver(LETTER).code == 250
        assert protocol(light) == "esmtpa"
        light.forget()
        assert send(gate.port, LETTER).code == 250
        assert protocol(light) == "esmtp"
        light.forget()
        assert client.deliver(LETTER).code == 250
        assert protocol(light) == "esmtpa"


def test_mailgate_logs_in(light: Exim, proxy: Proxy) -> None:
    place = f"127.0.0.1:{light.port}"
    gate = proxy(f"smtp://ann:secret@{place}", "recipients")
    assert send(gate.port, LETTER).code == 250
    assert protocol(light) == "esmtpa"
    assert "secret" not in gate.log()
    stranger = proxy(f"smtp://ann:Secret@{place}", "recipients")
    assert send(stranger.port, LETTER) == Reply(
        451, "4.7.0 The mail server behind this one refused the login"
    )
    assert "Secret" not in stranger.log()
    assert len(light.arrived(1)) == 1
