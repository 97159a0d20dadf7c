"""Every message has one end where mailgate is killed or told to end, or the server behind it is.

A server that loses the one behind it after the final dot cannot know whether that has the
message (RFC 1047): it is sent again, and may arrive twice. How often that was is printed.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.client import Client
from tests.interop.conftest import Proxy, folder_in
from tests.interop.exim import Exim
from tests.interop.gate import Gate, Table
from tests.interop.installation import Installation
from tests.interop.ledger import Account, Ledger, entry, number
from tests.interop.pairs import stamped
from tests.interop.postfix import BeforeQueue
from tests.interop.processes import below, eventually, free_port
from tests.interop.relay import untraced

KILLS = 30
CLIENTS = 6
SLOW = 1_000_000  # the number of a message that is not in the books


def show(capsys: pytest.CaptureFixture[str], ledger: Ledger, arrived: int) -> None:
    """Print how many messages nobody could know of, and how many of them arrived."""
    answers = ledger.answers()
    with capsys.disabled():
        print(
            f"\n{answers['taken']} messages taken and {KILLS} kills: {answers['unknown']} attempts"
            f" without an answer, {arrived - answers['taken']} of them arrived all the same"
        )


def test_a_killed_mailgate_loses_nothing_and_lets_nothing_pass(
    scratch: Path,
    mailgate: Installation,
    postfix_package: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = f"127.0.0.1:{free_port()}"
    work = folder_in(scratch, "postfix.")
    with BeforeQueue(postfix_package, work, address, notify_classes="") as postfix:
        table: Table = {"upstream": f"smtp://127.0.0.1:{postfix.back}", "trusted": ["127.0.0.1"]}
        ledger = Ledger(postfix.port, knows=False)
        end = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as clients:
            try:
                senders = [clients.submit(ledger.send_until, end) for _ in range(CLIENTS)]
                for _ in range(KILLS):
                    gate = Gate(mailgate, address, "stamp", protocol="smtp", table=table)
                    time.sleep(random.uniform(0.1, 0.6))
                    gate.kill()
            finally:
                end.set()  # each client still has one message to deliver
                last = Gate(mailgate, address, "stamp", protocol="smtp", table=table)
            for sender in senders:
                sender.result()
        assert last.stop() == 0
        answers = ledger.answers()
        assert answers.keys() <= {"taken", "later", "unknown"}  # the first leg never hangs up
        assert answers["later"] > KILLS  # kills were noticed
        assert answers["taken"] > KILLS
        assert postfix.idle(30)
        arrived = postfix.sink.wait(answers["taken"], 15)
        assert ledger.account(arrived) == Account()
        for message in arrived:
            assert untraced(untraced(message.content)) == stamped(entry(number(message)))
        assert postfix.queue() == []
    show(capsys, ledger, len(arrived))


def test_a_killed_upstream_loses_nothing(
    light: Exim, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = proxy(light.url, "stamp")
    ledger = Ledger(gate.port, knows=False)
    end = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as clients:
        try:
            senders = [clients.submit(ledger.send_until, end) for _ in range(CLIENTS)]
            for _ in range(KILLS):
                time.sleep(random.uniform(0.02, 0.2))
                # The others deliver what was taken: that is Exim's.
                taking = [each.pid for each in below(light.pid) if each.parent == light.pid]
                for pid in random.sample(taking, len(taking) // 2):
                    os.kill(pid, signal.SIGKILL)
        finally:
            end.set()
        for sender in senders:
            sender.result()
    answers = ledger.answers()
    assert answers.keys() <= {"taken", "later", "unknown"}
    assert answers["taken"] > KILLS
    light.deliver()
    assert light.idle(30)
    arrived = light.sink.wait(answers["taken"], 15)
    assert ledger.account(arrived) == Account()
    assert all(untraced(m.content) == stamped(entry(number(m))) for m in arrived)
    show(capsys, ledger, len(arrived))


def test_a_restart_finishes_what_is_under_way(light: Exim, proxy: Proxy) -> None:
    address = f"127.0.0.1:{free_port()}"
    gate = proxy(light.url, "stamp", listen=address)
    ledger = Ledger(gate.port)
    end = threading.Event()
    with ExitStack() as stack:
        slow, idle = (stack.enter_context(Client(gate.port)) for _ in range(2))
        clients = stack.enter_context(ThreadPoolExecutor(CLIENTS))
        stack.callback(end.set)
        for client in (slow, idle):
            client.ehlo()
        slow.mail("slow@example.org")
        slow.rcpt("bob@example.test")
        assert slow.command("DATA").code == 354
        slow.content(entry(SLOW))
        senders = [clients.submit(ledger.send_until, end) for _ in range(CLIENTS)]
        time.sleep(0.5)
        gate.tell(signal.SIGTERM)
        assert eventually(lambda: not gate.listens(), 5)
        assert idle.reply().code == 421  # RFC 5321 3.8
        proxy(light.url, "stamp", listen=address)
        assert slow.command(".").code == 250
        assert gate.wait(15) == 0
        end.set()
        for sender in senders:
            sender.result()
    answers = ledger.answers()
    assert answers.keys() <= {"taken", "later", "lost"}
    assert answers["taken"] > CLIENTS
    arrived = [m for m in light.arrived(answers["taken"] + 1) if m.sender != "slow@example.org"]
    assert ledger.account(arrived) == Account()
    assert all(m.content == stamped(entry(number(m))) for m in arrived)
    assert light.idle()
