"""Frames and descriptors pass between the genuine smtpd and us, both ways.

Debian's smtpd has no filters of old any more, but asks its queue with the same frames.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.client import Client, send
from tests.interop.conftest import Start, folder_in
from tests.interop.mail import DIFFICULT, delivered, letter
from tests.interop.processes import eventually, process
from tests.interop.smtpd import OpenSMTPD
from tests.interop.spool import Request, Spool

LETTER = letter(b"hello\r\n")


@pytest.fixture
def spool(scratch: Path, opensmtpd: Path) -> Spool:
    """Give a queue of our own to smtpds that are started with its options."""
    return Spool(opensmtpd, folder_in(scratch, "queue."))


@pytest.fixture
def server(start: Start, spool: Spool) -> OpenSMTPD:
    """Run an smtpd with that queue."""
    return start(options=spool.options)


def assert_idle(server: OpenSMTPD, spool: Spool) -> None:
    """Check that smtpd runs, and has delivered what it took."""
    assert eventually(lambda: not spool.messages(), 15)
    assert server.alive(), server.log()


def asked(spool: Spool) -> Counter[Request]:
    """Return how often smtpd has asked for what."""
    return Counter(seen.request for seen in spool.seen())


def descriptors(server: OpenSMTPD) -> dict[int, int]:
    """Return how many descriptors each process of the queue has open."""
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in server.filters()}


def test_a_message_passes_through_our_frames(server: OpenSMTPD, spool: Spool) -> None:
    assert send(server.port, DIFFICULT, to=["bob@example.test", "carol@example.test"]).code == 250
    messages = server.delivered(2)
    assert {m.recipient for m in messages} == {"bob@example.test", "carol@example.test"}
    assert {m.content for m in messages} == {delivered(DIFFICULT)}
    assert_idle(server, spool)


def test_headers_are_read_as_smtpd_writes_them(server: OpenSMTPD, spool: Spool) -> None:
    assert send(server.port, LETTER).code == 250
    server.delivered(1)
    assert_idle(server, spool)
    seen = spool.seen()
    for frame in seen:
        flags = 0 if frame.fd is None else 1
        assert frame.header[:4] == (frame.request, 16 + frame.size, flags, 0)
    [pid] = {frame.header.pid for frame in seen}
    sender = process(pid)
    assert sender is not None
    assert sender.name == "smtpd"


def test_descriptors_pass_both_ways(server: OpenSMTPD, spool: Spool) -> None:
    for _ in range(3):
        assert send(server.port, LETTER).code == 250
    server.delivered(3)  # smtpd reads a message from the descriptor that it is given
    assert_idle(server, spool)
    passed = Counter(s.request for s in spool.seen() if s.fd is not None and s.fd >= 0)
    assert passed == {Request.MESSAGE_COMMIT: 3}
    assert asked(spool)[Request.MESSAGE_FD_R] == 3


def test_messages_at_once_get_descriptors_of_their_own(server: OpenSMTPD, spool: Spool) -> None:
    contents = [letter(b"%d\r\n" % n * 300 * n) for n in range(1, 13)]
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server.port)) for _ in contents]
        for client, content in zip(clients, contents, strict=True):
            client.ehlo()
            client.mail("alice@example.org")
            client.rcpt("bob@example.test")
            assert client.command("DATA").code == 354
            client.content(content)
        for client in clients:
            client.ask(".")
        assert {client.reply().code for client in clients} == {250}
    messages = {message.content for message in server.delivered(len(contents))}
    assert messages == {delivered(content) for content in contents}
    assert_idle(server, spool)


def test_a_message_of_a_megabyte(server: OpenSMTPD, spool: Spool) -> None:
    content = letter(b"%060d\r\n" * 17_000 % tuple(range(17_000)))
    assert send(server.port, content).code == 250
    assert server.delivered(1)[0].content == delivered(content)
    assert_idle(server, spool)


def test_a_message_waits_for_the_next_smtpd(start: Start, spool: Spool) -> None:
    paused = start(options=(*spool.options, "-P", "mda"))
    assert send(paused.port, DIFFICULT).code == 250
    assert paused.stop() == []
    assert (len(spool.messages()), spool.status()) == (1, 0)
    server = start(options=spool.options)
    assert server.delivered(1)[0].content == delivered(DIFFICULT)
    assert_idle(server, spool)


def test_a_message_that_is_given_up_leaves_nothing(server: OpenSMTPD, spool: Spool) -> None:
    with Client(server.port) as client:
        client.ehlo()
        client.mail("alice@example.org")
        client.rcpt("bob@example.test")
        assert client.command("RSET").code == 250
        assert eventually(lambda: Request.MESSAGE_DELETE in asked(spool), 15)
        assert client.deliver(LETTER).code == 250
    assert server.delivered(1)[0].content == delivered(LETTER)
    assert_idle(server, spool)


def test_no_descriptor_stays_open(server: OpenSMTPD, spool: Spool) -> None:
    before = descriptors(server)
    assert before
    for count in range(1, 21):
        assert send(server.port, LETTER).code == 250
        server.delivered(count)
    assert_idle(server, spool)
    assert eventually(lambda: descriptors(server) == before, 15), descriptors(server)


def test_the_end_of_file_ends_it(server: OpenSMTPD, spool: Spool) -> None:
    assert send(server.port, LETTER).code == 250
    server.delivered(1)
    assert spool.status() is None
    assert server.stop() == []
    assert spool.status() == 0, server.log()
    assert spool.seen()[-1].request == Request.CLOSE


def test_the_end_of_file_ends_it_without_a_goodbye(server: OpenSMTPD, spool: Spool) -> None:
    os.kill(spool.seen()[-1].header.pid, signal.SIGKILL)
    assert eventually(lambda: spool.status() is not None, 15)
    assert spool.status() == 0, server.log()
    assert Request.CLOSE not in asked(spool)
