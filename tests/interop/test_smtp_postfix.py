"""mailgate between two legs of a real Postfix, and in front of one that it tells of its clients.

The first leg passes SMTP on to mailgate before the message is in the queue (SMTPD_PROXY_README),
and says with XFORWARD who the client is. mailgate gives it to the second leg and says the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Proxy, folder_in
from tests.interop.gate import Gate, Value
from tests.interop.mail import PLAIN, letter
from tests.interop.pairs import stamped
from tests.interop.postfix import BeforeQueue
from tests.interop.processes import eventually, free_port
from tests.interop.relay import untraced
from tests.interop.sink import Taken

Between = Callable[..., Gate]

LETTER = letter(b"hello\r\n")
ALICE, BOB, CAROL = "alice@example.org", "bob@example.test", "carol@example.test"
FAR = "NAME=far.example.org ADDR=192.0.2.7 PORT=4321 HELO=far.example.org PROTO=ESMTP"
STRANGER = "NAME=stranger.example.com ADDR=192.0.2.200 PORT=4321 HELO=stranger PROTO=ESMTP"


@pytest.fixture(scope="module")
def address() -> str:
    """Give the address where each mailgate of this module listens, one after the other."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def running(scratch: Path, postfix_package: Path, address: str) -> Iterator[BeforeQueue]:
    """Run a Postfix for whom half of 192.0.2.0/24 is its own network."""
    settings = {
        "smtpd_authorized_xclient_hosts": "127.0.0.1",
        "mynetworks": "127.0.0.0/8, 192.0.2.0/25",
        "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
    }
    work = folder_in(scratch, "postfix.")
    with BeforeQueue(postfix_package, work, address, **settings) as server:
        yield server


@pytest.fixture
def postfix(running: BeforeQueue) -> Iterator[BeforeQueue]:
    """Give the Postfix; at the end see that its queue holds nothing."""
    running.forget()
    yield running
    assert running.idle(), running.queue()


@pytest.fixture
def between(proxy: Proxy, postfix: BeforeQueue, address: str) -> Between:
    """Run mailgate between the legs."""

    def between(*policies: str, **table: Value) -> Gate:
        back = f"smtp://127.0.0.1:{postfix.back}"
        return proxy(back, *policies, listen=address, trusted=["127.0.0.1"], **table)

    return between


def arrived(postfix: BeforeQueue, count: int) -> list[Taken]:
    """Wait for messages that have passed both legs; return them without the legs' traces."""
    return [m._replace(content=untraced(m.content)) for m in postfix.arrived(count)]


def introduce(client: Client, words: str = FAR) -> None:
    """Have a server take this client for another one."""
    client.ehlo("proxy.example.org")
    assert client.command(f"XCLIENT {words}").code == 220
    assert client.ehlo("far.example.org").code == 250


def facts(message: Taken) -> dict[str, str]:
    """Return what the policy `facts` has written into a message."""
    return dict(re.findall(r"(?m)^X-Fact-([\w-]+): ?([^\r]*)", message.content.decode()))


def forwarded(postfix: BeforeQueue, client: str) -> bool:
    """Tell whether the second leg logs that a message is this client's."""
    line = rf"postfix/back/smtpd\[\d+\]: \w+: client=.*, orig_client={re.escape(client)}\n"
    return eventually(lambda: re.search(line, postfix.log()) is not None, 5)


def test_a_message_passes_both_legs_with_its_edits_only(
    postfix: BeforeQueue, between: Between
) -> None:
    between("stamp")
    assert send(postfix.port, PLAIN, sender="", to=[BOB, CAROL]).code == 250
    [message] = arrived(postfix, 1)
    assert message.content == stamped(PLAIN)
    assert (message.sender, set(message.recipients)) == ("", {BOB, CAROL})


def test_the_client_is_known_to_policies_and_to_the_second_leg(
    postfix: BeforeQueue, between: Between
) -> None:
    between("facts")
    with Client(postfix.port) as client:
        introduce(client)
        assert client.deliver(LETTER).code == 250
    told = facts(postfix.arrived(1)[0])
    assert (told["Client"], told["Port"]) == ("192.0.2.7", "4321")
    assert (told["Name"], told["Helo"]) == ("far.example.org", "far.example.org")
    assert told["Local"] == "False"
    assert forwarded(postfix, "far.example.org[192.0.2.7]")


def test_each_message_of_one_connection_has_its_own_client(
    postfix: BeforeQueue, between: Between
) -> None:
    gate = between("facts")
    with Client(gate.port) as client:
        client.ehlo("front.example.org")
        for number in (11, 12):
            named = f"XFORWARD NAME=n{number}.example.org ADDR=192.0.2.{number} HELO=h{number}"
            assert client.command(named).code == 250
            assert client.deliver(LETTER).code == 250
        assert client.deliver(LETTER).code == 250
    told = [facts(message) for message in postfix.arrived(3)]
    clients = [each["Client"] for each in told]
    assert clients == ["192.0.2.11", "192.0.2.12", "127.0.0.1"]
    assert [each["Helo"] for each in told] == ["h11", "h12", "front.example.org"]
    for number in (11, 12):
        assert forwarded(postfix, f"n{number}.example.org[192.0.2.{number}]")


@pytest.mark.parametrize("edit", ["sender", "add", "again"])
def test_a_message_whose_envelope_is_said_again_keeps_its_client(
    postfix: BeforeQueue, between: Between, edit: str
) -> None:
    between("routes")
    with Client(postfix.port) as client:
        introduce(client, FAR.replace("far.", f"{edit}."))
        assert client.deliver(LETTER, to=[f"{edit}@example.test", BOB]).code == 250
    assert arrived(postfix, 1)[0].content == LETTER
    assert forwarded(postfix, f"{edit}.example.org[192.0.2.7]")


def test_parameters_pass_both_legs(postfix: BeforeQueue, between: Between) -> None:
    between("envelope")
    with Client(postfix.port) as client:
        client.ehlo()
        client.command("MAIL FROM:<alice@example.org> RET=HDRS ENVID=QQ314159")
        client.command("RCPT TO:<postmaster@example.test> NOTIFY=NEVER")
        assert client.data(LETTER).code == 250
    [message] = arrived(postfix, 1)
    assert message.sender == "bounces@example.org"
    assert (message.parameters["RET"], message.parameters["ENVID"]) == ("HDRS", "QQ314159")
    assert set(message.recipients) == {CAROL}
    assert message.recipients[CAROL]["NOTIFY"] == "NEVER"


def test_a_refused_recipient_is_refused_alone(postfix: BeforeQueue, between: Between) -> None:
    between("recipients")
    with Client(postfix.port) as client:
        client.ehlo()
        client.mail(ALICE)
        assert client.rcpt(BOB).code == 250
        assert client.rcpt("nobody@example.test") == (550, "5.1.1 no such user here")
        assert client.rcpt(CAROL).code == 250
        assert client.data(LETTER).code == 250
    [message] = arrived(postfix, 1)
    assert set(message.recipients) == {BOB, CAROL}


@pytest.mark.parametrize("body", ["hold", "stream"])
def test_a_refused_message_stays_out(postfix: BeforeQueue, between: Between, body: str) -> None:
    between("content:in_pieces", body=body)
    unwanted = letter(b"line\r\n" * 20_000 + b"forbidden\r\n")
    with Client(postfix.port) as client:
        client.ehlo()
        assert client.deliver(unwanted) == (550, "5.6.0 not this body")
        assert client.deliver(LETTER).code == 250
    assert arrived(postfix, 1)[0].content == LETTER


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "message"])
def test_each_verdict_reaches_the_client(
    postfix: BeforeQueue, between: Between, stage: str
) -> None:
    between("verdicts")
    refusals = {
        "reject": Reply(554, "5.7.0 not here, 100% sure"),
        "defer": Reply(450, "4.2.0 come back in 5 minutes"),
        "lines": Reply(550, "5.6.0 first of all\n5.6.0 and 50%s more"),
    }
    with Client(postfix.port) as client:
        client.ehlo()
        for word, reply in refusals.items():
            assert client.deliver(LETTER, sender=f"{word}.{stage}@example.org") == reply
            client.command("RSET")
        assert client.deliver(LETTER, sender=f"discard.{stage}@example.org").code == 250
        assert client.deliver(LETTER).code == 250
    assert [m.sender for m in arrived(postfix, 1)] == [ALICE]


def test_what_the_second_leg_refuses_the_client_hears(
    postfix: BeforeQueue, between: Between
) -> None:
    between("recipients")
    with Client(postfix.port) as client, Client(postfix.back) as direct:
        for each in (client, direct):
            each.ehlo()
            each.mail(ALICE)
        refused = client.rcpt("unknown@example.test")
        assert refused == direct.rcpt("unknown@example.test")
        assert (refused.code, refused.text[-10:]) == (550, "not behind")


def test_nothing_passes_without_mailgate(postfix: BeforeQueue) -> None:
    assert send(postfix.port, LETTER).code == 451
    assert postfix.arrived(0) == []


# -- XCLIENT -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "reply"),
    [
        ("xclient", Reply(554, f"5.7.1 <{BOB}>: Relay access denied")),
        ("xforward", Reply(250, "2.1.5 Ok")),  # which is for the log only
    ],
)
def test_postfix_relays_for_its_own_clients_only(
    postfix: BeforeQueue, between: Between, identity: str, reply: Reply
) -> None:
    gate = between("recipients", identity=identity)
    with Client(gate.port) as client:
        introduce(client, STRANGER)
        client.mail(ALICE)
        assert client.rcpt(BOB) == reply


def test_postfix_takes_the_client_for_its_own(postfix: BeforeQueue, between: Between) -> None:
    gate = between("facts", identity="xclient")
    with Client(gate.port) as client:
        introduce(client)
        for _ in range(2):
            assert client.deliver(LETTER).code == 250
    for message in postfix.arrived(2):
        told = facts(message)
        assert (told["Client"], told["Name"]) == ("192.0.2.7", "far.example.org")
    received = b"Received: from far.example.org (far.example.org [192.0.2.7])\r\n"
    assert [m.content[: len(received)] for m in postfix.sink.wait(2, 5)] == [received] * 2


def test_clients_of_one_mailgate_are_not_mixed_up(postfix: BeforeQueue, between: Between) -> None:
    """XCLIENT holds for a connection: the next client needs another one."""
    gate = between("recipients", identity="xclient")
    with Client(gate.port) as own:
        introduce(own)
        assert own.deliver(LETTER).code == 250
        own.quit()
    with Client(gate.port) as stranger:
        introduce(stranger, STRANGER)
        stranger.mail(ALICE)
        assert stranger.rcpt(BOB).code == 554
    postfix.arrived(1)
