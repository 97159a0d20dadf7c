"""A policy that misbehaves as the sender says: ``STAGE-DEED@client.example``.

Stages are `helo`, `mail` and `headers` (async def), `rcpt` and `message` (def, in a thread).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from mailgate import Address, Message, Policy, Reject, Session

policy = Policy("misbehaving")

FRAME = bytes.fromhex("04000000 2400 0000 00000000 00000000") + bytes(20)
"""An answer to nothing: smtpd would end at it."""


class Odd(BaseException):
    """What `except Exception` does not catch."""


def prints() -> None:
    print("printed by a policy", flush=True)
    if sys.__stdout__ is not None:
        sys.__stdout__.write("printed past the log\n")
    print("printed as an error", file=sys.stderr, flush=True)


def writes() -> None:
    for fd in (0, 1, 2):
        try:
            os.write(fd, FRAME)
        except OSError:
            continue  # 0 cannot be written to


def reads_stdin() -> None:
    if os.read(0, 100):
        raise ValueError("something came from stdin")


def closes_streams() -> None:
    for fd in (0, 1):
        os.close(fd)


def raises() -> NoReturn:
    raise ValueError("a fault")


def odd() -> NoReturn:
    raise Odd("a fault")


def exits() -> NoReturn:
    sys.exit(3)


def interrupts() -> NoReturn:
    raise KeyboardInterrupt


def stops_the_loop() -> None:
    asyncio.get_event_loop().stop()


def cancels_everything() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


def signals() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGPIPE)


def recurses() -> None:
    recurses()


def echoes() -> None:
    subprocess.run(["/bin/echo", "echoed by a child"], check=True)


def leaves_a_program() -> None:
    subprocess.Popen(["/bin/sleep", "20"])


def forks() -> None:
    if os.fork() == 0:
        os.write(1, FRAME)
        sys.exit(0)


def forks_and_returns() -> None:
    if os.fork() == 0:
        os.write(1, FRAME)


def forks_and_stays() -> None:
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)


def answers_text() -> Any:
    return "550 no"


def answers_a_class() -> Any:
    return Reject


def answers_true() -> Any:
    return True


def answers_a_bad_verdict() -> Reject:
    return Reject("first\r250 second")


def answers_much() -> Reject:
    return Reject("long words " * 300 + "\nand more\nof them")


def answers_none_ascii() -> Reject:
    return Reject("caf\u00e9 \u2603 \U0001f600")


def leaves_a_thread() -> None:
    def fail() -> None:
        sys.exit("a thread of a policy")

    threading.Thread(target=fail).start()


DEEDS: dict[str, Callable[[], Any]] = {
    deed.__name__: deed
    for deed in (
        *(prints, writes, reads_stdin, raises, odd, exits, interrupts),
        *(stops_the_loop, cancels_everything, signals, recurses, echoes, leaves_a_program),
        *(forks, forks_and_returns, forks_and_stays, answers_text, answers_a_class),
        *(answers_true, answers_a_bad_verdict, answers_much, answers_none_ascii),
        *(leaves_a_thread, closes_streams),
    )
}


async def hangs() -> None:
    await asyncio.sleep(20)


async def hangs_on() -> None:
    """Hang, and take no cancellation."""
    until = time.monotonic() + 3
    while time.monotonic() < until:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            continue


async def blocks() -> None:
    time.sleep(0.3)  # noqa: ASYNC251


def sleeps() -> None:
    time.sleep(1.5)


WAITS: dict[str, Callable[[], Awaitable[None]]] = {
    wait.__name__: wait for wait in (hangs, hangs_on, blocks)
}


def chosen(stage: str, word: str) -> str:
    """Return the deed for a stage, "" where it is another one's."""
    where, _, deed = word.partition("-")
    return deed if where == stage else ""


def do(stage: str, word: str) -> Any:
    deed = chosen(stage, word)
    if deed == "sleeps":
        return sleeps()
    return DEEDS[deed]() if deed else None


async def do_async(stage: str, word: str) -> Any:
    deed = chosen(stage, word)
    if deed in WAITS:
        return await WAITS[deed]()
    return DEEDS[deed]() if deed else None


@policy.helo
async def helo(session: Session) -> Reject | None:
    return await do_async("helo", session.helo)  # type: ignore[no-any-return]


@policy.mail
async def mail(message: Message) -> Reject | None:
    return await do_async("mail", message.sender.local)  # type: ignore[no-any-return]


@policy.rcpt
def rcpt(message: Message, recipient: Address) -> Reject | None:
    return do("rcpt", message.sender.local)  # type: ignore[no-any-return]


@policy.headers
async def headers(message: Message) -> Reject | None:
    return await do_async("headers", message.sender.local)  # type: ignore[no-any-return]


@policy.message
def message(message: Message) -> Reject | None:
    return do("message", message.sender.local)  # type: ignore[no-any-return]
