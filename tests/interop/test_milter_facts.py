"""What a mail server knows of a client and a message is what a policy sees.

Everything but what only Postfix has goes through Postfix and through Sendmail, over TCP.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Run, available, folder_in
from tests.interop.credentials import Certificate, users
from tests.interop.mail import letter
from tests.interop.postfix import Postfix
from tests.interop.processes import free_port
from tests.interop.relay import HOST, Relay
from tests.interop.sendmail import Sendmail, Trees

LETTER = letter(b"hello\r\n")


@pytest.fixture(scope="module")
def address() -> str:
    """Give a TCP address: the other modules use a unix socket."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def sasl(scratch: Path) -> Path:
    """Make the one user that the mail servers know: Ann, whose password is `secret`."""
    return available(lambda folder: users(folder, HOST, "ann", "secret"), scratch)


@pytest.fixture(scope="module")
def postfix(
    scratch: Path, postfix_package: Path, address: str, certificate: Certificate, sasl: Path
) -> Iterator[Postfix]:
    """Run a Postfix with TLS and logins, which believes what a local client says with XCLIENT."""
    settings = {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_cert_file": str(certificate.certificate),
        "smtpd_tls_key_file": str(certificate.key),
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_sasl_local_domain": HOST,
        "smtpd_authorized_xclient_hosts": "127.0.0.1",
        "inet_protocols": "all",  # else it takes no IPv6 address from XCLIENT
    }
    work = folder_in(scratch, "postfix.")
    with Postfix(postfix_package, work, address, sasl=sasl, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def sendmail(
    scratch: Path, sendmail_packages: Trees, address: str, certificate: Certificate, sasl: Path
) -> Iterator[Sendmail]:
    """Run a Sendmail with TLS and logins."""
    settings = (
        f"define(`confSERVER_CERT', `{certificate.certificate}')dnl",
        f"define(`confSERVER_KEY', `{certificate.key}')dnl",
        f"define(`confCACERT', `{certificate.certificate}')dnl",
        f"define(`confCACERT_PATH', `{certificate.certificate.parent}')dnl",
        "define(`confAUTH_MECHANISMS', `PLAIN')dnl",
        f"define(`confAUTH_REALM', `{HOST}')dnl",
        "TRUST_AUTH_MECH(`PLAIN')dnl",
        f"LOCAL_CONFIG\nESASL_CONF_PATH={sasl}",
    )
    work = folder_in(scratch, "sendmail.")
    with Sendmail(sendmail_packages, work, address, *settings) as server:
        yield server


def facts(relay: Relay) -> dict[str, str]:
    """Return the facts that the policy has written into the message that has arrived."""
    [message] = relay.arrived(1)
    header = message.content.partition(b"\r\n\r\n")[0].decode()
    unfolded = re.sub(r"\r\n(?=[ \t])", "", header)
    return dict(re.findall(r"(?m)^X-Fact-([\w-]+): ?([^\r]*)", unfolded))


def queue_id(reply: Reply) -> str:
    """Return the queue id that a mail server tells with its last reply."""
    found = re.search(r"queued as (\w+)|2\.0\.0 (\w+) Message accepted", reply.text)
    assert found is not None, reply
    return found[1] or found[2]


def login(user: str, password: str) -> str:
    """Return the AUTH command of a user: RFC 4616."""
    return "AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()).decode()


def test_the_client_is_known(relay: Relay, run: Run) -> None:
    run("facts")
    with Client(relay.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        client.rcpt("bob@example.test")
        assert client.data(LETTER).code == 250
        port = client.address[1]
    told = facts(relay)
    assert told["Client"] == told["Client-Address"] == "127.0.0.1"
    assert told["Port"] == str(port)
    assert (told["Name"], told["Verified"], told["Local"]) == ("localhost", "True", "True")
    assert told["Helo"] == "client.example.org"
    assert (told["Server"], told["Server-Port"]) == ("127.0.0.1", str(relay.port))
    assert (told["TLS"], told["User"]) == ("None", "None")
    assert told["Host"] == HOST


def test_the_queue_id_is_the_one_that_the_client_hears(relay: Relay, run: Run) -> None:
    run("facts")
    reply = send(relay.port, LETTER)
    told = facts(relay)
    assert told["Id"] == told["Queue-Id"] == queue_id(reply)


def test_each_message_of_a_connection_has_its_own_facts(relay: Relay, run: Run) -> None:
    run("facts")
    ids = []
    with Client(relay.port) as client:
        client.ehlo()
        for number in (1, 2):
            client.mail(f"alice{number}@example.org")
            client.rcpt(f"bob{number}@example.test")
            reply = client.data(LETTER)
            told = facts(relay)
            assert told["Id"] == queue_id(reply)
            assert told["Sender"] == f"<alice{number}@example.org>"
            assert told["Recipients"] == f"<bob{number}@example.test>"
            assert told["Mail-Address"] == f"alice{number}@example.org"
            ids.append(told["Id"])
            relay.sink.forget()
    assert len(set(ids)) == 2


def test_esmtp_parameters_are_known(relay: Relay, run: Run) -> None:
    run("facts")
    with Client(relay.port) as client:
        client.ehlo()
        sender = "MAIL FROM:<alice@example.org> SIZE=1000 body=8BITMIME RET=HDRS ENVID=QQ314159"
        assert client.command(sender).code == 250
        recipient = "RCPT TO:<bob@example.test> NOTIFY=NEVER ORCPT=rfc822;bob@example.test"
        assert client.command(recipient).code == 250
        assert client.data(LETTER).code == 250
    told = facts(relay)
    assert told["Sender"] == (
        "<alice@example.org> BODY=8BITMIME ENVID=QQ314159 RET=HDRS SIZE=1000"
    )
    assert told["Recipients"] == ("<bob@example.test> NOTIFY=NEVER ORCPT=rfc822;bob@example.test")


def test_the_null_sender_is_empty(relay: Relay, run: Run) -> None:
    run("facts")
    assert send(relay.port, LETTER, sender="").code == 250
    assert facts(relay)["Sender"] == "<>"


def test_encryption_is_known(relay: Relay, run: Run, certificate: Certificate) -> None:
    run("facts")
    with Client(relay.port) as client:
        client.ehlo("plain.example.org")
        assert client.starttls(certificate.certificate, HOST).code == 220
        client.ehlo()
        cipher, version, bits = client.cipher
        client.mail("alice@example.org")
        client.rcpt("bob@example.test")
        assert client.data(LETTER).code == 250
    told = facts(relay)
    assert told["TLS"] == f"{version} {cipher} {bits}"
    assert told["Helo"] == "client.example.org"


def test_the_user_is_known(relay: Relay, run: Run, certificate: Certificate) -> None:
    run("facts")
    with Client(relay.port) as client:
        client.ehlo()
        client.starttls(certificate.certificate, HOST)
        client.ehlo()
        assert client.command(login("ann", "wrong")).code == 535
        assert client.command(login("ann", "secret")).code == 235
        for _ in range(2):
            client.mail("alice@example.org")
            client.rcpt("bob@example.test")
            assert client.data(LETTER).code == 250
            assert facts(relay)["User"] in ("ann", f"ann@{HOST}")
            relay.sink.forget()
    assert send(relay.port, LETTER).code == 250
    assert facts(relay)["User"] == "None"


def introduced(relay: Relay, **attributes: str) -> dict[str, str]:
    """Send a message as another client; return the facts. Only Postfix knows XCLIENT."""
    relay.sink.forget()
    with Client(relay.port) as client:
        client.ehlo("proxy.example.org")
        words = " ".join(f"{name}={value}" for name, value in attributes.items())
        assert client.command(f"XCLIENT {words}").code == 220
        client.ehlo()
        client.mail("alice@example.org")
        client.rcpt("bob@example.test")
        assert client.data(LETTER).code == 250
    return facts(relay)


def test_clients_of_every_kind_are_known(postfix: Postfix, run: Run) -> None:
    run("facts")
    told = introduced(postfix, NAME="mail.example.org", ADDR="192.0.2.1", PORT="4321")
    assert (told["Client"], told["Port"], told["Local"]) == ("192.0.2.1", "4321", "False")
    assert (told["Name"], told["Verified"]) == ("mail.example.org", "True")
    nameless = {"NAME": "[UNAVAILABLE]", "REVERSE_NAME": "[UNAVAILABLE]"}
    told = introduced(postfix, **nameless, ADDR="IPV6:2001:db8::5", LOGIN="carol")
    assert (told["Client"], told["Name"], told["User"]) == ("2001:db8::5", "None", "carol")
    forged = {"NAME": "[UNAVAILABLE]", "REVERSE_NAME": "forged.example.org"}
    told = introduced(postfix, **forged, ADDR="192.0.2.2")
    assert (told["Name"], told["Verified"]) == ("forged.example.org", "False")


def test_local_mail_looks_like_mail(postfix: Postfix, run: Run) -> None:
    run("facts")
    postfix.sink.forget()
    postfix.submit(LETTER, "alice@example.org", "bob@example.test", "carol@example.test")
    told = facts(postfix)
    assert told["Sender"] == "<alice@example.org>"
    assert told["Recipients"] == "<bob@example.test> <carol@example.test>"
    assert (told["Client"], told["Port"], told["Local"]) == ("127.0.0.1", "0", "True")
    assert (told["Name"], told["Helo"]) == ("localhost", "localhost")
    assert told["Id"] == told["Queue-Id"]


def test_local_mail_of_the_null_sender(postfix: Postfix, run: Run) -> None:
    run("facts")
    postfix.sink.forget()
    postfix.submit(LETTER, "", "bob@example.test")
    assert facts(postfix)["Sender"] == "<>"


def test_local_mail_that_is_refused_bounces(postfix: Postfix, run: Run) -> None:
    run("content:in_whole")
    postfix.sink.forget()
    postfix.submit(letter(b"forbidden\r\n"), "alice@example.org", "bob@example.test")
    [bounce] = postfix.arrived(1)
    assert (bounce.sender, set(bounce.recipients)) == ("", {"alice@example.org"})
    assert b"\r\nStatus: 5.6.0\r\nDiagnostic-Code: X-Postfix; not this body\r\n" in bounce.content
