"""Microseconds of one event through engine and policy: `python -m bench.dispatch`.

No wire and no adapter take part: a conversation's methods are awaited in a loop, as an
adapter awaits them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import click
from rich.console import Console

from bench.measure import Contestant, Figures, medians
from bench.table import Column, plain, show
from mailgate import Address, Message, Policy, Reject, Session
from mailgate.chain import Loaded
from mailgate.engine import Conversation, Engine

SENDER = Address("alice@example.org")
RECIPIENT = Address("bob@example.test")
PIECE = b"one line of a body\r\n" * 800
RECIPIENTS = 100  # of one message: engines have a limit

COLUMNS = [Column(stage, plain(stage, 2)) for stage in ("helo", "rcpt", "data", "body")]


def silent() -> Policy:
    """Return a policy with no handler that is asked."""
    return Policy("silent")


def looking() -> Policy:
    """Return a policy with an `async def` handler at each stage, which does not wait."""
    policy = Policy("looking")

    @policy.helo
    async def helo(session: Session) -> Reject | None:
        return None

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Reject | None:
        return None

    @policy.data
    async def data(message: Message) -> Reject | None:
        return None

    @policy.body
    async def body(message: Message, piece: bytes) -> Reject | None:
        return None

    return policy


async def repeated(event: Callable[[], Awaitable[object]], times: int) -> float:
    """Await an event again and again; return the microseconds of one."""
    began = time.perf_counter()
    for _ in range(times):
        await event()
    return (time.perf_counter() - began) / times * 1e6


async def recipients(conversation: Conversation, times: int) -> float:
    """Name recipients, in messages of their own every so often; return those of one."""
    taken = []
    for _ in range(max(1, times // RECIPIENTS)):
        await conversation.mail(SENDER)
        taken.append(await repeated(lambda: conversation.rcpt(RECIPIENT), RECIPIENTS))
        await conversation.finish("aborted")
    return sum(taken) / len(taken)


async def conversed(policy: Policy, times: int) -> Figures:
    """Put every event to one policy; return the microseconds of each."""
    engine = Engine([Loaded(policy, policy.name)], None)
    conversation = engine.converse(Session("1", "bench"))
    await conversation.connect()
    figures = {"helo": await repeated(lambda: conversation.helo("client.example.org"), times)}
    figures["rcpt"] = await recipients(conversation, times)
    await conversation.mail(SENDER)
    await conversation.rcpt(RECIPIENT)
    figures["data"] = await repeated(conversation.data, times)
    figures["body"] = await repeated(lambda: conversation.body(PIECE), times)
    await conversation.finish("aborted")
    await conversation.close()
    return figures


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--events",
    type=click.IntRange(RECIPIENTS),
    default=100_000,
    show_default=True,
    help="Events of each kind in a run.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=7,
    show_default=True,
    help="Runs of each, for the median.",
)
def main(events: int, rounds: int) -> None:
    """Measure what one event costs, in microseconds."""
    contestants = [
        Contestant("no handler", lambda: asyncio.run(conversed(silent(), events))),
        Contestant("async def", lambda: asyncio.run(conversed(looking(), events))),
    ]
    rows = medians(contestants, rounds, lambda name: None)
    title = (
        f"microseconds an event, {events} of each, medians of {rounds}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    show(title, rows, COLUMNS, None, Console())


if __name__ == "__main__":
    main()
