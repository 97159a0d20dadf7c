"""Nothing is lost and nothing passes unseen where mailgate is killed again and again."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tests.interop.gate import Gate
from tests.interop.installation import Installation
from tests.interop.ledger import Account, Ledger, entry, number
from tests.interop.postfix import Postfix
from tests.interop.sendmail import Sendmail
from tests.interop.sink import Taken

KILLS = 40
CLIENTS = 3  # of each mail server


def stamped(message: Taken) -> bytes:
    """Return the message with the field that the policy adds to it."""
    body = entry(number(message)).partition(b"\r\n\r\n")[2]
    field = b"\r\nX-Digest: " + hashlib.sha256(body).hexdigest().encode()
    return entry(number(message)).replace(b"\r\n\r\n", field + b"\r\n\r\n", 1)


def test_a_killed_mailgate_loses_nothing_and_lets_nothing_pass(
    mailgate: Installation, address: str, postfix: Postfix, sendmail: Sendmail
) -> None:
    servers = (postfix, sendmail)
    ledgers = [Ledger(server.port) for server in servers]
    end = threading.Event()
    with ThreadPoolExecutor(CLIENTS * len(ledgers)) as clients:
        try:
            senders = [clients.submit(ledger.send_until, end) for ledger in ledgers * CLIENTS]
            for _ in range(KILLS):
                gate = Gate(mailgate, address, "stamp")
                time.sleep(random.uniform(0.1, 0.8))
                gate.kill()
        finally:
            end.set()  # each client still has one message to deliver
            last = Gate(mailgate, address, "stamp")
        for sender in senders:
            sender.result()
    assert last.stop() == 0
    for server, ledger in zip(servers, ledgers, strict=True):
        answers = ledger.answers()
        assert answers.keys() == {"taken", "later"}  # the second: kills were noticed
        assert answers["taken"] > KILLS
        assert server.idle(30)
        arrived = server.arrived(answers["taken"])
        assert ledger.account(arrived) == Account()
        assert all(message.content == stamped(message) for message in arrived)
        assert server.queue() == []
