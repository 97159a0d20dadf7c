"""Descriptors: each message has up to three of them here, and none may be left behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.verdict import Accept, Reject
from tests.core.asking import in_loop
from tests.opensmtpd52.client import ENTER, Client
from tests.opensmtpd52.frames import open_descriptors
from tests.opensmtpd52.running import Running, serving, settled

ROUND = 500  # after which they are counted
MAIL = b"Subject: x\r\n\r\nbody\r\n"

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/fd"), reason="they are counted there"
)


def mixed() -> Policy:
    """Return a policy with which messages end as their recipients say."""
    policy = Policy("mixed")

    @policy.mail
    async def past(message: Message) -> Accept | None:
        return Accept() if message.sender.local == "past" else None

    @policy.headers
    async def early(message: Message) -> Reject | None:
        return Reject("early") if message.sender.local == "early" else None

    @policy.message
    async def late(message: Message) -> Reject | None:
        if message.sender.local == "raises":
            raise ValueError("a fault")
        return Reject("late") if message.sender.local == "late" else None

    return policy


async def taken(client: Client) -> None:
    assert (await client.message(MAIL))[:3] == "250"
    client.delivered.clear()


async def refused(client: Client) -> None:
    assert (await client.message(MAIL))[:1] in ("4", "5")


async def rolled_back(client: Client) -> None:
    assert await client.data() == ENTER
    await client.send(MAIL)
    client.too_big()


async def left(client: Client) -> None:
    assert await client.data() == ENTER
    await client.send(b"half")
    client.vanish()


async def left_at_once(client: Client) -> None:
    assert await client.data() == ENTER
    client.vanish()


async def left_at_the_pipe(client: Client) -> None:
    """Go while the way through the filters is made."""
    asking = asyncio.ensure_future(client.data())
    await asyncio.sleep(0)
    client.vanish()
    await asking


WAYS: tuple[tuple[str, Callable[[Client], Awaitable[None]]], ...] = (
    *(("ann", taken), ("past", taken), ("early", refused), ("late", refused)),
    *(("raises", refused), ("ann", rolled_back), ("past", rolled_back), ("ann", left)),
    *(("past", left), ("ann", left_at_once), ("past", left_at_once), ("ann", left_at_the_pipe)),
)


async def cycle(running: Running, client: Client, number: int) -> Client:
    """Have one message begin, and end in one of the ways; return a session for the next."""
    word, way = WAYS[number % len(WAYS)]
    if client.closed:
        client = Client(running.smtpd)
        await client.connect()
        await client.greet()
    await client.mail(f"{word}@client.example")
    await client.rcpt()
    await way(client)
    return client


@pytest.mark.parametrize(("filters", "cycles"), [(1, 10_000), (2, 2000)])
@in_loop
async def test_none_is_left_however_messages_end(filters: int, cycles: int) -> None:
    chain = [[mixed()] for _ in range(filters)]
    asyncio.get_running_loop().set_debug(False)  # it takes four times as long
    async with serving(*chain) as running:
        before = open_descriptors()
        client = Client(running.smtpd)
        client.closed = True  # the first one is to be made
        for number in range(cycles):
            client = await cycle(running, client, number)
            if number % ROUND == ROUND - 1:
                await client.rset()
                await settled(before)
        await running.served()
        assert running.smtpd.dead == ""
        assert running.smtpd.faults == []


@in_loop
async def test_sessions_at_a_time_have_their_own() -> None:
    asyncio.get_running_loop().set_debug(False)
    async with serving([mixed()]) as running:
        before = open_descriptors()

        async def several(start: int) -> None:
            client = Client(running.smtpd)
            client.closed = True
            for number in range(start, start + 30):
                client = await cycle(running, client, number)
            client.vanish()

        for _ in range(3):
            await asyncio.gather(*(several(start) for start in range(20)))
            await settled(before)
        running.check()


@in_loop
async def test_a_spooled_message_is_no_exception() -> None:
    big = b"Subject: x\r\n\r\n" + b"a line of a big message\r\n" * 100_000
    async with serving([mixed()]) as running:
        before = open_descriptors()
        for word in ("ann", "late", "early", "raises", "past"):
            client = Client(running.smtpd)
            await client.connect()
            await client.greet()
            await client.mail(f"{word}@client.example")
            await client.rcpt()
            await client.message(big)
            await client.quit()
        client = Client(running.smtpd)
        await client.connect()
        await client.greet()
        await client.mail()
        await client.rcpt()
        await client.data()
        await client.send(big)
        client.vanish()
        await settled(before)
        running.check()


@in_loop
async def test_when_smtpd_stops_all_are_closed() -> None:
    before = open_descriptors()
    async with serving([mixed()], [mixed()]) as running:
        for number in range(10):
            client = Client(running.smtpd)
            await client.connect()
            await client.greet()
            await client.mail()
            await client.rcpt(f"{number}@example.org")
            await client.data()
            await client.send(MAIL)
            assert client.way is not None
            client.way.close()
    await settled(before)
