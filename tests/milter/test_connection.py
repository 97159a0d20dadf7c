"""A connection over time: signs of life, patience, silence, floods, the end of serving."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections import Counter
from collections.abc import Sequence

import pytest

from mailgate import Address, Event, Message, Policy, Reject, Session, server
from mailgate.chain import Defaults
from mailgate.limits import Limits
from mailgate_milter import connection
from mailgate_milter.wire import (
    CONTINUE,
    PROGRESS,
    Command,
    Decoder,
    Packet,
    Response,
    connect,
    header,
    helo,
    macros,
    mail,
    offer,
    packet,
    parse_reply,
    rcpt,
    unknown,
)
from tests.core.asking import in_loop
from tests.milter.running import Running, Socket, serving

OFFER = offer(6, 0x1FF, 0x1FFFFF)
CLIENT = connect(b"client.example", "4", 4711, b"192.0.2.1") + helo(b"client.example")
ENVELOPE = mail(b"<ann@client.example>") + rcpt(b"<bob@example.org>")
CONTENT = header(b"Subject", b" x") + packet(Command.EOH) + packet(Command.BODY, b"body\r\n")
EOM = packet(Command.EOM)


def slow(seconds: float) -> Policy:
    """Return a policy that thinks at the end of each message."""
    policy = Policy("slow")

    @policy.message
    async def think(message: Message) -> Reject | None:
        await asyncio.sleep(seconds)
        return None

    return policy


async def said(peer: Socket, answers: int) -> list[Packet]:
    """Wait for a number of packets."""
    decoder = Decoder(Response)
    found: list[Packet] = []
    while len(found) < answers:
        data = await peer.receive()
        assert data, found
        found += decoder.receive_data(data)
    assert len(found) == answers
    return found


async def negotiated(running: Running, greeting: bytes = CLIENT) -> Socket:
    peer = await running.open()
    peer.send(OFFER)
    await said(peer, 1)
    peer.send(greeting)
    return peer


def codes(packets: Sequence[Packet]) -> list[int]:
    return [code for code, _ in packets]


# -- signs of life -------------------------------------------------------------------------------


@in_loop
async def test_signs_of_life_while_a_handler_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PROGRESS_EVERY", 0.02)
    async with serving(slow(0.2)) as running:
        peer = await negotiated(running)
        peer.send(ENVELOPE + CONTENT + EOM)
        found = b""
        while not found.endswith(CONTINUE):
            found += await peer.receive()
        assert found.count(PROGRESS) >= 2
        assert found == PROGRESS * found.count(PROGRESS) + CONTINUE
        peer.close()


POSTFIX = macros(Command.CONNECT, {"v": "Postfix 3.7.11"})


@pytest.mark.parametrize("told", [b"", POSTFIX])
@in_loop
async def test_before_the_end_of_a_message_only_postfix_takes_them(
    told: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PROGRESS_EVERY", 0.02)
    policy = Policy()

    @policy.mail
    async def think(message: Message) -> Reject | None:
        await asyncio.sleep(0.2)
        return None

    async with serving(policy) as running:
        peer = await negotiated(running, told + CLIENT)
        peer.send(mail(b"<ann@client.example>"))
        found = b""
        while not found.endswith(CONTINUE):
            found += await peer.receive()
        assert (PROGRESS in found) is bool(told)
        peer.close()


@in_loop
async def test_signs_of_life_while_one_that_is_not_answered_holds_up_one_that_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind an unanswered EOH the MTA sends all the rest, and waits."""
    monkeypatch.setattr(connection, "PROGRESS_EVERY", 0.02)
    policy = Policy()

    @policy.headers
    async def think(message: Message) -> None:
        await asyncio.sleep(0.2)

    for content in ([CONTENT + EOM], [CONTENT, EOM]):
        async with serving(policy) as running:
            peer = await negotiated(running)
            peer.send(ENVELOPE)
            for part in content:
                peer.send(part)
                await asyncio.sleep(0.02)
            found = b""
            while not found.endswith(CONTINUE):
                found += await peer.receive()
            assert found == PROGRESS * found.count(PROGRESS) + CONTINUE
            assert found.count(PROGRESS) >= 2
            peer.close()


@in_loop
async def test_none_behind_the_answer_while_done_handlers_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "PROGRESS_EVERY", 0.02)
    policy, ended = slow(0.0), asyncio.Event()

    @policy.done
    async def late(message: Message) -> None:
        await asyncio.sleep(0.15)
        ended.set()

    async with serving(policy) as running:
        peer = await negotiated(running)
        peer.send(ENVELOPE + CONTENT + EOM)
        assert codes(await said(peer, 1)) == [Response.CONTINUE]
        await ended.wait()
        assert await peer.early() == b""
        peer.close()


# -- time ----------------------------------------------------------------------------------------


@in_loop
async def test_an_mta_with_little_patience_is_answered_within_it() -> None:
    policy = Policy()

    @policy.mail
    async def think(message: Message) -> Reject | None:
        await asyncio.sleep(30)
        return None

    async with serving(policy, patience=0.05) as running:
        peer = await negotiated(running)
        peer.send(mail(b"<ann@client.example>"))
        ((code, data),) = await said(peer, 1)
        assert code == Response.REPLYCODE
        assert parse_reply(data).startswith("451 4.3.0 ")
        peer.close()


@in_loop
async def test_the_end_of_a_message_has_its_own_time() -> None:
    defaults = Defaults(timeout=5.0, message_timeout=5.0)
    async with serving(slow(0.2), patience=0.05, defaults=defaults) as running:
        peer = await negotiated(running)
        peer.send(ENVELOPE + CONTENT + EOM)
        assert codes(await said(peer, 1)) == [Response.CONTINUE]
        peer.close()


@in_loop
async def test_one_that_never_negotiates_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "NEGOTIATION", 0.1)
    async with serving(slow(0.0)) as running:
        peer, agreed = await running.open(), await negotiated(running)
        await peer.until_ended()
        assert not agreed.ended
        agreed.close()


@in_loop
async def test_one_that_negotiates_an_octet_at_a_time_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "NEGOTIATION", 0.2)
    async with serving(slow(0.0)) as running:
        peer = await running.open()
        for octet in OFFER * 10:
            peer.send(bytes((octet,)) if not peer.ended else b"")
            await asyncio.sleep(0.03)
            if peer.ended:
                break
        assert peer.ended


@in_loop
async def test_one_that_is_silent_for_too_long_is_closed() -> None:
    async with serving(slow(0.0), idle_timeout=0.2) as running:
        peer = await negotiated(running)
        assert await peer.until_ended() == b""


@in_loop
async def test_one_that_vanishes_in_a_message_is_closed_too() -> None:
    async with serving(slow(0.0), idle_timeout=0.2) as running:
        peer = await negotiated(running)
        peer.send(ENVELOPE)
        assert await peer.until_ended() == b""


@in_loop
async def test_one_that_waits_for_an_answer_is_not_idle() -> None:
    async with serving(slow(0.5), idle_timeout=0.2) as running:
        peer = await negotiated(running)
        peer.send(ENVELOPE + CONTENT + EOM)
        assert codes(await said(peer, 1)) == [Response.CONTINUE]
        peer.close()


# -- floods --------------------------------------------------------------------------------------


@in_loop
async def test_one_that_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED", 0.1)
    monkeypatch.setattr(connection, "NEGOTIATION", 1.0)
    policy = Policy()

    @policy.message
    async def fat(message: Message) -> None:
        message.body = b"x" * 8_000_000

    async with serving(policy) as running:
        peer = await negotiated(running)
        peer.transport.pause_reading()
        peer.send(ENVELOPE + CONTENT + EOM)
        await running.settle()
        peer.close()


@in_loop
async def test_what_comes_while_a_handler_waits_is_bounded() -> None:
    """Beyond `BACKLOG` octets nothing is read, and nothing is lost."""
    policy, go, pieces = Policy(), asyncio.Event(), []

    @policy.mail
    async def wait(message: Message) -> None:
        await go.wait()

    @policy.body
    async def count(message: Message, piece: bytes) -> None:
        pieces.append(len(piece))

    async with serving(policy) as running:
        peer = await negotiated(running)
        body = packet(Command.BODY, b"x" * 62 + b"\r\n") * 100_000
        peer.send(ENVELOPE + header(b"Subject", b" x") + packet(Command.EOH) + body + EOM)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert running.connection._backlog < 2 * connection.BACKLOG
        go.set()
        assert codes(await said(peer, 1)) == [Response.CONTINUE]
        assert sum(pieces) == 6_400_000
        peer.close()


@in_loop
async def test_answers_that_are_not_read_hold_up_what_is_behind_them() -> None:
    policy, made = Policy(), []

    @policy.message
    async def fat(message: Message) -> None:
        message.body = b"x" * 1_000_000
        made.append(1)

    async with serving(policy) as running:
        peer = await negotiated(running)
        peer.transport.pause_reading()
        peer.send((ENVELOPE + CONTENT + EOM) * 100)
        for _ in range(100):
            await asyncio.sleep(0.002)
        assert 0 < len(made) < 10
        peer.transport.resume_reading()
        while len(made) < 100:
            await peer.receive()
        peer.close()


# -- fairness ------------------------------------------------------------------------------------


@in_loop
async def test_a_flood_of_packets_leaves_others_their_turn() -> None:
    """Work is cut into turns of the loop, whatever came in one read."""
    policy, turns = Policy(), []

    @policy.command()
    async def count(session: Session, verb: str, argument: str) -> None:
        turns.append(turn)

    turn = 0
    async with serving(policy) as running:
        peer = await negotiated(running)
        peer.send(unknown(b"X") * 5000)
        while len(turns) < 5000:
            await asyncio.sleep(0)
            turn += 1
        assert max(Counter(turns).values()) <= connection.TURN
        peer.close()


# -- the end -------------------------------------------------------------------------------------


@in_loop
async def test_a_message_under_way_is_finished_and_an_idle_connection_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "LINGER", 0.05)
    async with serving(slow(0.2)) as running:
        idle, busy = await negotiated(running), await negotiated(running)
        busy.send(ENVELOPE + CONTENT)
        await asyncio.sleep(0.02)
        ending = asyncio.create_task(running.server.drain())
        await idle.until_ended()
        busy.send(EOM)
        assert codes(await said(busy, 1)) == [Response.CONTINUE]
        await busy.until_ended()
        await ending


@in_loop
async def test_nobody_is_let_in_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER", 0.05)
    async with serving(slow(0.2)) as running:
        busy = await negotiated(running)
        busy.send(ENVELOPE)
        ending = asyncio.create_task(running.server.drain())
        await asyncio.sleep(0.02)
        with pytest.raises(OSError, match=r"."):
            await running.open_tcp()
        busy.close()
        await ending


@in_loop
async def test_a_message_that_does_not_end_is_given_up() -> None:
    async with serving(slow(0.0)) as running:
        busy = await negotiated(running)
        busy.send(ENVELOPE)
        await asyncio.sleep(0.02)
        running.server.drain_timeout = 0.1
        await running.server.drain()
        await busy.until_ended()


@in_loop
async def test_a_policy_that_cancels_every_task_does_not_end_it() -> None:
    policy = Policy()

    @policy.mail
    async def cancel(message: Message) -> Reject | None:
        for task in asyncio.all_tasks():
            if task is not test_task:
                task.cancel()
        return None

    test_task = asyncio.current_task()
    async with serving(policy) as running:
        for _ in range(3):
            peer = await negotiated(running)
            peer.send(mail(b"<ann@client.example>"))
            (answer,) = await said(peer, 1)
            assert answer[0] in (Response.CONTINUE, Response.REPLYCODE)
            peer.close()


# -- the socket ----------------------------------------------------------------------------------


@in_loop
async def test_an_answer_is_not_held_back_on_tcp() -> None:
    """TCP_NODELAY: else an edit and its answer would wait 40 ms for an acknowledgement."""
    async with serving(slow(0.0)) as running:
        peer = await running.open_tcp()
        peer.send(OFFER)
        await said(peer, 1)
        sock = running.connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        peer.close()


@in_loop
async def test_edits_and_answer_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, writes = Policy(), []

    @policy.message
    async def edit(message: Message) -> None:
        message.headers.add("X-One", "1")
        message.body = b"new\r\n" * 40_000

    async with serving(policy) as running:
        peer = await negotiated(running)
        ours = running.connection

        class Watched:
            def write(self, data: bytes) -> None:
                writes.append(data)
                transport.write(data)

            def __getattr__(self, name: str) -> object:
                return getattr(transport, name)

        transport = ours._transport
        monkeypatch.setattr(ours, "_transport", Watched())
        peer.send(ENVELOPE + CONTENT + EOM)
        assert Response.CONTINUE in codes(await said(peer, 6))
        assert len(writes) == 1
        peer.close()


@in_loop
async def test_sessions_over_the_limit_are_told_to_come_back() -> None:

    policy = Policy()

    @policy.connect
    async def look(session: Session) -> Reject | None:
        return None

    async with serving(policy, limits=Limits(sessions=1)) as running:
        first = await negotiated(running)
        await said(first, 1)
        second = await negotiated(running)
        ((code, data),) = await said(second, 1)
        assert code == Response.REPLYCODE
        assert parse_reply(data).startswith("421 4.3.2 ")
        third = await running.open()
        await third.until_ended()  # more than twice as many are not even let in
        first.close()
        second.close()


# -- recipients that the MTA refused ---------------------------------------------------------------


@in_loop
async def test_one_that_was_refused_says_nothing_about_the_next() -> None:
    """The next one may come without macros of its own."""
    policy, asked, told = Policy(), [], []

    @policy.rcpt
    async def ask(message: Message, recipient: Address) -> Reject | None:
        asked.append(str(recipient))
        return None

    @policy.event
    async def tell(session: Session, event: Event) -> None:
        if event.name == "rcpt":
            told.append((event.fields["address"], event.fields["result"]))

    refused = macros(
        Command.RCPT, {"rcpt_mailer": "error", "rcpt_host": "5.7.1", "rcpt_addr": "no"}
    )
    async with serving(policy) as running:
        peer = await negotiated(running)
        peer.send(mail(b"<ann@client.example>") + refused + rcpt(b"<no@example.org>"))
        peer.send(rcpt(b"<yes@example.org>"))
        await said(peer, 2)
        assert asked == ["yes@example.org"]
        assert told == [("no@example.org", "permfail"), ("yes@example.org", "ok")]
        peer.close()


# -- what is held ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [b"", mail(b"<next@client.example>"), packet(Command.ABORT)])
@in_loop
async def test_a_body_on_disk_is_closed_where_its_message_is_broken_off(ending: bytes) -> None:
    """Else a collector finds it, and complains: warnings are errors here."""
    async with serving(slow(0.0), limits=Limits(memory=10)) as running:
        peer = await negotiated(running)
        peer.send(ENVELOPE + header(b"Subject", b" x") + packet(Command.EOH))
        peer.send(packet(Command.BODY, b"x" * 62 + b"\r\n") + ending)
        await asyncio.sleep(0.02)
        peer.close()
        await running.settle()
    gc.collect()
