"""What was lost or kept once when clients leave, policies cancel all tasks, or time runs out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from mailgate import Event, Message, Policy, Reject, Session
from mailgate_smtp import route
from mailgate_smtp.options import TLS, Limits, Pool, Timeouts
from tests.core.asking import in_loop
from tests.hostile.cases import Act, Send, Wait
from tests.milter.running import PATIENCE
from tests.smtp.client import Client
from tests.smtp.mta import Mta, Script
from tests.smtp.running import proxied

CERTIFICATE = Path(__file__).with_name("certificate.pem")  # of mx.example.org and 127.0.0.1
LETTER = b"Subject: x\r\n\r\nHello.\r\n"
MAIL, RCPT = b"MAIL FROM:<ann@client.example>", b"RCPT TO:<bob@example.org>"


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    for _ in range(int(PATIENCE / 0.01)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not")


async def leave(client: Client) -> None:
    """Reset the connection."""
    await client.play([Act("reset")])


def killer() -> Policy:
    """Make a policy that cancels every task of the proxy that waits, where VRFY is said."""
    policy = Policy("killer")

    @policy.command("VRFY")
    async def command(session: Session, verb: str, argument: str) -> Reject | None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if "_Carrier" in repr(task):
                task.cancel()
        return None

    return policy


# -- all tasks are cancelled ----------------------------------------------------------------------


@in_loop
async def test_a_message_that_was_sent_to_its_end_is_acknowledged_whoever_cancels_that() -> None:
    slow: Script = [(".", [Wait(0.3), Send(b"250 2.0.0 queued\r\n")])]
    async with proxied(killer(), mta=Mta(slow)) as (running, mta):
        cancels, client = await running.greeted(), await running.greeted(MAIL, RCPT, b"DATA")
        await client.send(LETTER + b".\r\n")
        await until(lambda: any(one.refused for one in mta.connections))
        assert (await cancels.say(b"VRFY x")).code == 252
        assert (await client.reply()).text == b"250 2.0.0 queued\r\n"
        assert len(mta.messages) == 1


@in_loop
async def test_a_connection_is_free_again_whoever_cancels_its_end() -> None:
    slow: Script = [("RSET", [Wait(0.3), Send(b"250 2.0.0 ok\r\n")])]
    async with proxied(
        killer(),
        mta=Mta(slow),
        limits=Limits(connections=2),
        pool=Pool(max=1),
        timeouts=Timeouts(drain=1.0),
    ) as (running, mta):
        cancels, client = await running.greeted(), await running.greeted(MAIL, RCPT)
        await leave(client)
        await until(lambda: b"RSET" in mta.commands)
        assert (await cancels.say(b"VRFY x")).code == 252
        await until(lambda: running.engine.sessions == 1)
        other = await running.greeted()
        assert (await other.deliver(LETTER)).code == 250


@in_loop
async def test_a_connection_on_which_mail_was_not_answered_is_for_nobody_else() -> None:
    slow: Script = [("MAIL", [Wait(0.2), Send(b"250 2.1.0 ok\r\n")])]
    policy = killer()

    @policy.event
    async def event(session: Session, event: Event) -> None:
        if event.name == "reset":
            await asyncio.sleep(0.4)  # the reply comes meanwhile

    async with proxied(policy, mta=Mta(slow)) as (running, mta):
        cancels, client = await running.greeted(), await running.greeted()
        await client.send(MAIL + b"\r\n")
        await until(lambda: MAIL in mta.commands)
        assert (await cancels.say(b"VRFY x")).code == 252
        await client.until_ended()
        assert (await cancels.deliver(LETTER)).code == 250
        assert len(mta.messages) == 1


# -- clients that are gone ------------------------------------------------------------------------


@in_loop
async def test_messages_whose_clients_are_gone_take_no_memory_with_them() -> None:
    waits: list[Session] = []
    policy = Policy("waits")

    @policy.message
    async def message(message: Message) -> None:
        if message.headers.get("Subject") == "wait":
            waits.append(message.session)
            await asyncio.Event().wait()

    async with proxied(policy, limits=Limits(memory=100_000)) as (running, mta):
        for _ in range(3):
            waits.clear()
            client = await running.greeted(MAIL, RCPT, b"DATA")
            await client.send(b"Subject: wait\r\n\r\n" + b"0123456789\r\n" * 5_000 + b".\r\n")
            await until(lambda: len(waits) == 1)
            await leave(client)
            await running.settle()
        other = await running.greeted()
        assert (await other.deliver(LETTER)).code == 250
        assert len(mta.messages) == 1


@in_loop
async def test_who_is_gone_does_not_wait_for_a_connection_any_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seconds in ("IDLE", "LONG"):  # for which nobody loses a connection to who waits
        monkeypatch.setattr(route, seconds, 1000.0)
    async with proxied(pool=Pool(max=1)) as (running, mta):
        client = await running.greeted(MAIL, RCPT, b"DATA")
        gone = [await running.greeted() for _ in range(3)]
        for each in gone:
            await each.send(MAIL.replace(b"ann", b"gone") + b"\r\n")
        waiting = await running.greeted()
        await waiting.send(MAIL + b"\r\n")
        await asyncio.sleep(0.05)
        for each in gone:
            await leave(each)
        await until(lambda: running.engine.sessions == 2)  # at once, not when it is their turn
        await client.send(LETTER + b".\r\n")
        assert (await client.reply()).code == 250
        assert (await waiting.reply()).code == 250
        assert not any(b"gone" in line for line in mta.commands)


@in_loop
async def test_who_is_in_a_handshake_counts_as_a_client() -> None:
    async with proxied(
        listen="smtps:127.0.0.1:0", tls=TLS(cert=CERTIFICATE), limits=Limits(connections=2)
    ) as (running, _):
        silent = [await running.open() for _ in range(2)]
        for each in silent:
            each.transport.write(b"\x16")
        one_more = await running.open()
        await one_more.until_ended()
        assert not any(each.ended for each in silent)
        for each in (*silent, one_more):
            await leave(each)


# -- given up -------------------------------------------------------------------------------------


@in_loop
async def test_who_is_given_up_while_a_policy_works_is_told() -> None:
    policy = Policy("works")

    @policy.message
    async def message(message: Message) -> None:
        await asyncio.Event().wait()

    async with proxied(policy, timeouts=Timeouts(drain=0.3)) as (running, mta):
        client = await running.greeted(MAIL, RCPT, b"DATA")
        await client.send(LETTER + b".\r\n")
        await until(lambda: client.transport.get_write_buffer_size() == 0)
        await running.stop()
        await client.until_ended()
        assert client.check().exchanges[-1].reply.text.startswith(b"421 4.3.2")
        assert mta.messages == []
