"""Misbehave as the recipient's local part says, at any stage and off the event loop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

from mailgate import Address, Message, Policy, Reject

at_rcpt = Policy("at-rcpt")
at_message = Policy("at-message")
in_thread = Policy("in-thread")

LINES = b"250 2.0.0 not for you\nfilter-result|0|0|proceed\n"


class Odd(BaseException):
    """What `except Exception` does not catch."""


def prints() -> None:
    """Print what smtpd would end at."""
    print(LINES.decode(), end="", flush=True)
    sys.__stdout__ and sys.__stdout__.write("report|odd\n")


def writes() -> None:
    """Write to file descriptor 1, past Python's own streams."""
    os.write(1, LINES)


def echoes() -> None:
    """Let a child process print."""
    subprocess.run(["/bin/echo", LINES.decode()], check=True)


def raises() -> NoReturn:
    """Fail as most faults do."""
    raise ValueError("a fault")


def odd() -> NoReturn:
    """Fail past `except Exception`."""
    raise Odd("a fault")


def interrupts() -> NoReturn:
    """Fail as Ctrl-C does."""
    raise KeyboardInterrupt


def exits() -> NoReturn:
    """Ask Python to end the process."""
    sys.exit(3)


def answers_text() -> Reject:
    """Answer with something that is no verdict."""
    return "550 no"  # type: ignore[return-value]


def forks_and_leaves() -> None:
    """Fork a child that writes and ends at once."""
    if (child := os.fork()) == 0:
        os.write(1, LINES)
        os._exit(0)
    os.waitpid(child, 0)


def forks_and_exits() -> None:
    """Fork a child that writes and ends as a script does."""
    if os.fork() == 0:
        os.write(1, LINES)
        sys.exit(0)


def forks_and_returns() -> None:
    """Fork a child that writes and goes on as if it were the parent."""
    if os.fork() == 0:
        os.write(1, LINES)


FAULTS: dict[str, Callable[[], Reject | None]] = {
    "prints": prints,
    "writes": writes,
    "echoes": echoes,
    "raises": raises,
    "odd": odd,
    "interrupts": interrupts,
    "exits": exits,
    "answers-text": answers_text,
    "forks-and-leaves": forks_and_leaves,
    "forks-and-exits": forks_and_exits,
    "forks-and-returns": forks_and_returns,
}


@at_rcpt.rcpt
async def rcpt(message: Message, recipient: Address) -> Reject | None:
    """Misbehave on the event loop."""
    return fault() if (fault := FAULTS.get(recipient.local)) else None


@at_message.message
async def content(message: Message) -> Reject | None:
    """Misbehave at the end of the message."""
    return fault() if (fault := FAULTS.get(message.recipients[0].local)) else None


@in_thread.rcpt
def threaded(message: Message, recipient: Address) -> Reject | None:
    """Misbehave in a worker thread."""
    return fault() if (fault := FAULTS.get(recipient.local)) else None
