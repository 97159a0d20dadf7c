"""mailgate as a proxy in front of a real Exim: what each end says arrives at the other.

The light build of Exim knows nothing of proxies and is told nothing of the client; the heavy one
wants a PROXY header. What is asked of a proxy between two legs of Postfix is in
`test_smtp_postfix`, and of one before LMTP in `test_smtp_dovecot`.
"""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Proxy, Start
from tests.interop.exim import Exim
from tests.interop.mail import PLAIN, delivered, letter
from tests.interop.pairs import DOTS, stamped
from tests.interop.processes import below, free_port
from tests.interop.swaks import SENT, Swaks

LETTER = letter(b"hello\r\n")
ALICE, BOB, CAROL = "alice@example.org", "bob@example.test", "carol@example.test"
BIG = letter(b"".join(b"%d %s\r\n" % (n, b"z" * (n % 600)) for n in range(10_000)))
UNREACHABLE = Reply(451, "4.4.1 The mail server behind this one is not available")


def test_a_message_passes_with_its_edits_only(light: Exim, proxy: Proxy) -> None:
    gate = proxy(light.url, "stamp")
    assert send(gate.port, PLAIN, sender="", to=[BOB, CAROL]).code == 250
    [message] = light.arrived(1)
    assert message.content == stamped(PLAIN)
    assert (message.sender, set(message.recipients)) == ("", {BOB, CAROL})


def test_esmtp_parameters_pass_as_they_are(light: Exim, proxy: Proxy) -> None:
    gate = proxy(light.url, "recipients")
    with Client(gate.port) as client:
        assert {"DSN", "8BITMIME"} <= set(client.ehlo().text.split("\n"))
        sender = "MAIL FROM:<alice@example.org> BODY=8BITMIME ret=hdrs ENVID=QQ+2B314159"
        assert client.command(sender).code == 250
        recipient = "RCPT TO:<bob@example.test> NOTIFY=DELAY,FAILURE ORCPT=rfc822;b@example.test"
        assert client.command(recipient).code == 250
        assert client.data(LETTER).code == 250
    [message] = light.arrived(1)
    assert message.parameters["RET"] == "HDRS"
    assert message.parameters["ENVID"] == "QQ+2B314159"
    told = message.recipients[BOB]
    assert set(told["NOTIFY"].split(",")) == {"DELAY", "FAILURE"}
    assert told["ORCPT"] == "rfc822;b@example.test"


def test_addresses_in_utf_8_pass(light: Exim, proxy: Proxy) -> None:
    gate = proxy(light.url, "routes")
    with Client(gate.port) as client:
        client.ehlo()
        assert client.mail("zoë@example.org").code == 553
        assert client.command("MAIL FROM:<zoë@example.org> SMTPUTF8").code == 250
        for recipient in ("remove@example.test", "jörg@example.test"):
            assert client.rcpt(recipient).code == 250
        assert client.data(LETTER).code == 250
    [message] = light.arrived(1)
    assert (message.sender, set(message.recipients)) == ("zoë@example.org", {"jörg@example.test"})


@pytest.mark.parametrize(
    ("local", "reply"),
    [
        ("lines", Reply(550, "5.1.1 first line of three\nsecond line\nlast line")),
        ("defer", Reply(451, "4.3.0 come back later")),
        ("drop", Reply(550, "5.3.2 going away")),
    ],
)
def test_what_exim_says_to_a_recipient_is_what_the_client_hears(
    light: Exim, proxy: Proxy, local: str, reply: Reply
) -> None:
    gate = proxy(light.url, "recipients")
    with Client(gate.port) as client:
        client.ehlo()
        client.mail(ALICE)
        assert client.rcpt(f"{local}@steered.example") == reply
        assert client.rcpt(BOB).code == 250  # even where Exim has hung up
        assert client.data(LETTER).code == 250
    assert [set(m.recipients) for m in light.arrived(1)] == [{BOB}]


def test_where_exim_closes_the_client_is_told_so(light: Exim, proxy: Proxy) -> None:
    gate = proxy(light.url, "recipients")
    with Client(gate.port) as client:
        client.ehlo()
        client.mail(ALICE)
        assert client.rcpt("gone@steered.example") == (421, "4.3.2 gone")
        assert client.hung_up()


@pytest.mark.parametrize("body", ["hold", "stream"])
@pytest.mark.parametrize(
    ("word", "reply"),
    [
        ("reject", Reply(550, "5.7.1 content rejected\nsecond line of the reason")),
        ("defer", Reply(451, "4.7.1 content deferred")),
        ("drop", Reply(550, "5.3.2 going away")),
    ],
)
def test_what_exim_says_to_a_message_is_what_the_client_hears(
    light: Exim, proxy: Proxy, word: str, reply: Reply, body: str
) -> None:
    gate = proxy(light.url, "recipients", body=body)
    with Client(gate.port) as client:
        client.ehlo()
        assert client.deliver(f"X-Steer: {word}\r\n".encode() + LETTER) == reply
        assert client.deliver(LETTER).code == 250
    assert light.arrived(1)[0].content == LETTER


def test_commands_that_come_at_once_are_answered_in_order(light: Exim, proxy: Proxy) -> None:
    gate = proxy(light.url, "recipients")
    with Client(gate.port) as client:
        assert "PIPELINING" in client.ehlo().text
        for _ in range(2):
            replies = client.pipeline(
                f"MAIL FROM:<{ALICE}>",
                f"RCPT TO:<{BOB}>",
                "RCPT TO:<nobody@example.test>",
                "RCPT TO:<lines@steered.example>",
                f"RCPT TO:<{CAROL}>",
                "DATA",
            )
            assert [reply.code for reply in replies] == [250, 250, 550, 550, 250, 354]
            client.content(LETTER)
            assert client.command(".").code == 250
    assert [set(m.recipients) for m in light.arrived(2)] == [{BOB, CAROL}] * 2


@pytest.mark.parametrize("body", ["hold", "stream"])
def test_content_in_chunks_is_content(light: Exim, proxy: Proxy, body: str) -> None:
    gate = proxy(light.url, "content:in_pieces", body=body)
    content = DOTS + PLAIN.partition(b"\r\n\r\n")[2]
    cut = content.index(b"\r\n..\r\n") + 3  # a chunk may end behind a leading dot
    with Client(gate.port) as client:
        assert "CHUNKING" in client.ehlo().text
        client.mail(ALICE)
        client.rcpt(BOB)
        for last, chunk in (("", content[:cut]), (" LAST", content[cut:])):
            client.ask(f"BDAT {len(chunk)}{last}")
            client.octets(chunk)
            assert client.reply().code == 250
        assert client.deliver(LETTER).code == 250
    assert [m.content for m in light.arrived(2)] == [content, LETTER]


def test_a_large_message_streams(light: Exim, proxy: Proxy) -> None:
    gate = proxy(light.url, "content:in_headers", "content:in_pieces", body="stream")
    with Client(gate.port) as client:
        client.ehlo()
        assert client.deliver(BIG).code == 250
        assert client.deliver(BIG + b"forbidden\r\n") == (550, "5.6.0 not this body")
        unwanted = letter(b"", subject=b"forbidden")
        assert client.deliver(unwanted) == (550, "5.6.0 not this subject")
        assert client.deliver(LETTER).code == 250
    assert [m.content for m in light.arrived(2)] == [BIG, LETTER]
    assert light.idle()


RECIPIENTS = {
    "sender": {"sender@example.test", BOB},
    "add": {"add@example.test", BOB, CAROL},
    "change": {CAROL, BOB},
    "remove": {BOB},
}


@pytest.mark.parametrize("edit", RECIPIENTS)
def test_the_envelope_is_said_again_where_it_has_changed(
    light: Exim, proxy: Proxy, edit: str
) -> None:
    gate = proxy(light.url, "routes")
    assert send(gate.port, LETTER, to=[f"{edit}@example.test", BOB]).code == 250
    [message] = light.arrived(1)
    assert set(message.recipients) == RECIPIENTS[edit]
    assert message.sender == ("bounces@example.org" if edit == "sender" else ALICE)


def test_a_message_without_recipients_is_taken_and_gone(light: Exim, proxy: Proxy) -> None:
    gate = proxy(light.url, "routes")
    with Client(gate.port) as client:
        client.ehlo()
        assert client.deliver(LETTER, to=["remove-all@example.test", BOB]).code == 250
        assert client.deliver(PLAIN).code == 250
    assert [m.content for m in light.arrived(1)] == [PLAIN]


def test_a_changed_envelope_that_exim_refuses_is_refused(light: Exim, proxy: Proxy) -> None:
    gate = proxy(light.url, "lines")
    with Client(gate.port) as client:
        client.ehlo()
        assert client.deliver(LETTER) == (451, "4.3.0 Not all recipients were accepted")
        assert client.deliver(LETTER, sender="").code == 250
    assert [m.sender for m in light.arrived(1)] == [""]


# -- when the upstream is connected to -----------------------------------------------------------


def test_recipients_that_are_said_late_are_refused_together(light: Exim, proxy: Proxy) -> None:
    gate = proxy(light.url, "recipients", connect="data")
    with Client(gate.port) as client:
        client.ehlo()
        refused = Reply(550, "5.1.1 first line of three\nsecond line\nlast line")
        assert client.deliver(LETTER, to="lines@steered.example") == refused
        assert client.deliver(LETTER, to=[BOB, "lines@steered.example"]).code == 451
        assert client.deliver(LETTER, to=[BOB, CAROL]).code == 250
    assert [set(m.recipients) for m in light.arrived(1)] == [{BOB, CAROL}]


@pytest.mark.parametrize("connect", ["connect", "mail", "data"])
def test_messages_pass_whenever_the_upstream_is_connected_to(
    light: Exim, proxy: Proxy, connect: str
) -> None:
    gate = proxy(light.url, "stamp", connect=connect)
    with Client(gate.port) as client:
        client.ehlo()
        for _ in range(2):
            assert client.deliver(LETTER).code == 250
    assert [m.content for m in light.arrived(2)] == [stamped(LETTER)] * 2


def test_a_client_is_not_greeted_where_the_upstream_is_gone(proxy: Proxy) -> None:
    gate = proxy(f"smtp://127.0.0.1:{free_port()}", "recipients", connect="connect")
    with Client(gate.port) as client:
        assert client.banner.code in (421, 554)  # RFC 5321 4.3.2
        assert client.hung_up()


@pytest.mark.parametrize("connect", ["mail", "data"])
def test_a_message_is_put_off_where_the_upstream_is_gone(proxy: Proxy, connect: str) -> None:
    gate = proxy(f"smtp://127.0.0.1:{free_port()}", "recipients", connect=connect)
    with Client(gate.port) as client:
        assert client.ehlo().code == 250
        for _ in range(2):
            assert client.deliver(LETTER) == UNREACHABLE
            client.command("RSET")


def test_the_next_upstream_takes_over(light: Exim, proxy: Proxy) -> None:
    down = f"smtp://127.0.0.1:{free_port()}"
    gate = proxy([down, light.url], "stamp")
    for _ in range(2):
        assert send(gate.port, LETTER).code == 250
    assert [m.content for m in light.arrived(2)] == [stamped(LETTER)] * 2
    assert gate.log().count(f"upstream {down}: ") == 1


def hang_up_on(exim: Exim) -> None:
    """Kill the processes that have connections: they end without a word."""
    for process in below(exim.pid):
        os.kill(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "."])
def test_a_connection_that_was_lost_is_replaced(light: Exim, proxy: Proxy, command: str) -> None:
    """What Exim has not acknowledged, or was not told the end of, is said again."""
    gate = proxy(light.url, "stamp")
    lines = (f"MAIL FROM:<{ALICE}>", f"RCPT TO:<{BOB}>", "DATA", ".")
    with Client(gate.port) as client:
        client.ehlo()
        for line in lines:
            if line.startswith(command):
                hang_up_on(light)
            if line == ".":
                client.content(LETTER)
            assert client.command(line).code in (250, 354)
    assert [m.content for m in light.arrived(1)] == [stamped(LETTER)]


def test_a_message_that_streams_is_put_off_where_the_connection_is_lost(
    light: Exim, proxy: Proxy
) -> None:
    gate = proxy(light.url, "recipients", body="stream")
    with Client(gate.port) as client:
        client.ehlo()
        client.mail(ALICE)
        client.rcpt(BOB)
        assert client.command("DATA").code == 354
        hang_up_on(light)
        client.content(LETTER)
        lost = Reply(451, "4.4.2 The connection to the mail server behind this one was lost")
        assert client.command(".") == lost
        assert client.deliver(PLAIN).code == 250
    assert [m.content for m in light.arrived(1)] == [PLAIN]


def test_many_clients_share_few_connections(light: Exim, proxy: Proxy) -> None:
    gate = proxy(light.url, "stamp", pool={"max": 2})

    def talk(session: int) -> None:
        with Client(gate.port) as client:
            client.ehlo()
            for number in range(5):
                sender, to = f"{session}@example.org", f"{number}@example.test"
                assert client.deliver(LETTER, sender=sender, to=to).code == 250

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(talk, range(12)))
    arrived = [(m.sender, *m.recipients) for m in light.arrived(60, timeout=60)]
    sent = [(f"{s}@example.org", f"{n}@example.test") for s in range(12) for n in range(5)]
    assert sorted(arrived) == sorted(sent)


# -- whose client it is --------------------------------------------------------------------------

HEADERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "1": ("TCP4", ()),
    "2": ("AF_INET", ("--proxy-command", "PROXY", "--proxy-protocol", "STREAM")),
}
"""The family of an address and what else swaks needs for a PROXY header, by its version."""


@pytest.mark.parametrize(("version", "identity"), [("1", "proxy-v2"), ("2", "proxy-v1")])
def test_a_proxy_header_is_taken_and_given(
    heavy: Exim, proxy: Proxy, swaks: Swaks, version: str, identity: str
) -> None:
    gate = proxy(heavy.url, "facts", identity=identity, proxy_protocol=True, trusted=["127.0.0.1"])
    family, more = HEADERS[version]
    header = (
        *("--proxy-version", version, "--proxy-family", family, *more),
        *("--proxy-source", "192.0.2.7", "--proxy-source-port", "4321"),
        *("--proxy-dest", "192.0.2.1", "--proxy-dest-port", "25"),
    )
    talk = swaks.send(gate.port, LETTER, *header)
    assert talk.status == SENT, talk.transcript
    [message] = heavy.sink.wait(1, 15)
    received = b"Received: from client.example.org ([192.0.2.7]:4321)\r\n"
    assert message.content.startswith(received)
    told = dict(re.findall(rb"(?m)^X-Fact-([\w-]+): ?([^\r]*)", message.content))
    assert (told[b"Client"], told[b"Port"]) == (b"192.0.2.7", b"4321")
    assert (told[b"Server"], told[b"Server-Port"]) == (b"192.0.2.1", b"25")


def test_exim_that_hears_of_no_client_takes_nothing(heavy: Exim, proxy: Proxy) -> None:
    gate = proxy(heavy.url, "recipients", identity="none")
    with Client(gate.port) as client:
        assert client.command("HELO client.example.org").code == 250
        assert client.deliver(LETTER) == UNREACHABLE


# -- OpenSMTPD -----------------------------------------------------------------------------------


def test_opensmtpd_takes_what_passes(start: Start, proxy: Proxy) -> None:
    """It hangs up where commands are pipelined, and where it is greeted twice."""
    server = start()
    gate = proxy(f"smtp://127.0.0.1:{server.port}", "recipients", "routes")
    with Client(gate.port) as client:
        client.ehlo()
        assert client.ehlo("again.example.org").code == 250
        pipelined = client.pipeline(
            f"MAIL FROM:<{ALICE}>", "RCPT TO:<nobody@example.test>", f"RCPT TO:<{BOB}>"
        )
        assert [reply.code for reply in pipelined] == [250, 550, 250]
        assert client.data(PLAIN).code == 250
        assert client.deliver(PLAIN, to=["add@example.test", BOB]).code == 250
    messages = server.delivered(4)
    assert sorted(m.recipient for m in messages) == ["add@example.test", BOB, BOB, CAROL]
    assert {m.content for m in messages} == {delivered(PLAIN)}
    assert "upstream" not in gate.log().partition("mail goes to")[2]
