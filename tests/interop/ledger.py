"""Account for every message: one sent is delivered, or was never taken, and none is made up.

A client that loses its server may have sent the final dot and cannot know what came of it
(RFC 1047): it sends again, and a message may then arrive twice. A server that passes a message
on before it answers has the same trouble with the one behind, and says 4xx.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tests.interop.client import Client, Malformed
from tests.interop.mail import letter
from tests.interop.sink import Taken

Answer: TypeAlias = Literal["taken", "later", "refused", "lost", "unknown"]
"""What came of an attempt: the connection was lost before the final dot, or after it."""

_AGAIN: frozenset[Answer] = frozenset({"later", "lost", "unknown"})

_NUMBER = re.compile(rb"(?m)^Subject: ledger (\d+)\r$")
_COMMANDS = (
    "EHLO client.example.org",
    "MAIL FROM:<alice@example.org>",
    "RCPT TO:<bob@example.test>",
    "DATA",
)
_PAUSE = 0.05  # seconds before a message is tried again
_PATIENCE = 60.0  # seconds in which it has to be taken


@dataclass(slots=True)
class Account:
    """What is wrong with the books; the numbers of the messages."""

    lost: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    made_up: list[int] = field(default_factory=list)


class Ledger:
    """The books of one mail server: what it answered to each attempt to send each message.

    ``knows`` is false of a server whose "later" to the end of data leaves open who has it.
    """

    def __init__(self, port: int, *, knows: bool = True) -> None:
        self._port = port
        self._knows = knows
        self._lock = threading.Lock()
        self._attempts: dict[int, list[Answer]] = {}

    def send_until(self, end: threading.Event) -> None:
        """Send messages of this server's own numbers, each until it is taken; for a thread."""
        while not end.is_set():
            with self._lock:
                number = len(self._attempts)
                attempts = self._attempts[number] = []
            patience = time.monotonic() + _PATIENCE
            attempts.append(self._attempt(number))
            while attempts[-1] in _AGAIN and time.monotonic() < patience:
                time.sleep(_PAUSE)
                attempts.append(self._attempt(number))

    def answers(self) -> Counter[Answer]:
        """Count the answers."""
        return Counter(answer for attempts in self._attempts.values() for answer in attempts)

    def account(self, arrived: Iterable[Taken]) -> Account:
        """Compare what was answered with what has arrived."""
        copies = Counter(number(message) for message in arrived)
        account = Account(made_up=sorted(copies.keys() - self._attempts.keys()))
        for key, attempts in self._attempts.items():
            least = attempts.count("taken")
            most = least + attempts.count("unknown")
            if copies[key] < least:
                account.lost.append(key)
            elif copies[key] > most:
                (account.doubled if most else account.made_up).append(key)
        return account

    def _attempt(self, number: int) -> Answer:
        """Send one message once."""
        sent = False
        try:
            with Client(self._port) as client:
                for command in _COMMANDS:
                    if (code := client.command(command).code) >= 400:
                        return _answer(code)
                client.content(entry(number))
                sent = True
                code = client.command(".").code
                client.quit()
        except (OSError, Malformed):
            return "unknown" if sent else "lost"
        return "unknown" if not self._knows and 400 <= code < 500 else _answer(code)


def _answer(code: int) -> Answer:
    return "taken" if code < 400 else "later" if code < 500 else "refused"


def entry(number: int) -> bytes:
    """Return the message of this number; its body is its own."""
    return letter(b"%d\r\n" % number * 200, subject=b"ledger %d" % number)


def number(message: Taken) -> int:
    """Return the number of a message."""
    found = _NUMBER.search(message.content)
    assert found is not None, message.content[:400]
    return int(found[1])
