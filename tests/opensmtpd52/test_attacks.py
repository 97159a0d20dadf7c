"""Holes that were found in the adapter, and stay closed."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable

import pytest

from mailgate import fork
from mailgate.address import Address
from mailgate.chain import Loaded
from mailgate.engine import Engine
from mailgate.errors import PeerError
from mailgate.limits import Limits
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.verdict import Reject
from mailgate_opensmtpd52 import filter as filtering
from mailgate_opensmtpd52 import pipe
from mailgate_opensmtpd52.facts import CAPABILITIES
from mailgate_opensmtpd52.filter import Filter
from mailgate_opensmtpd52.pipe import DataPipe
from mailgate_opensmtpd52.session import MOST_WAITING
from tests.core.asking import in_loop
from tests.opensmtpd52.client import ENTER, Client
from tests.opensmtpd52.frames import PIPE, Death, Response, open_descriptors
from tests.opensmtpd52.policies import endings, reads, streams
from tests.opensmtpd52.running import Running, begun, keep, serving, settled, until
from tests.opensmtpd52.smtpd import PATIENCE, Smtpd

MAIL = b"Subject: x\r\n\r\nbody\r\n"
SOON = 3.0
"""Seconds: less than handlers get in the end, or than the child of one lives."""


def looks() -> Policy:
    """Return a policy that looks at the header section of each message."""
    policy = Policy("looks")

    @policy.headers
    async def headers(message: Message) -> None: ...

    return policy


async def in_data(running: Running) -> Client:
    """Return a client that has begun to send a message."""
    client = await begun(running)
    assert (await client.rcpt())[:3] == "250"
    assert await client.data() == ENTER
    await client.send(MAIL)
    return client


async def eom(running: Running, client: Client, datalen: int) -> Response:
    return await running.smtpd.ask(client.session, "EOM", datalen=datalen)


def is_deferred(answer: Response) -> bool:
    return (answer.status, answer.code) == (1, 451)


# -- what a policy sees, and says ------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
@in_loop
async def test_done_sees_the_whole_message(ending: str) -> None:
    policy, seen = reads(), list[tuple[str, bytes, bytes]]()

    @policy.done
    async def done(message: Message) -> None:
        assert message.outcome is not None
        seen.append((message.outcome.result, message.body, message.raw))

    async with serving([policy]) as running:
        client = await in_data(running)
        assert client.way is not None
        answer = await eom(running, client, client.way.written)
        assert answer.status == 0
        running.smtpd.event(client.session, ending)
        await running.served()
        client.way.close()
        running.check()
    result, body, raw = seen[0]
    assert result == ("accepted" if ending == "COMMIT" else "aborted")
    assert body == b"body\r\n"
    assert raw.endswith(MAIL)


@in_loop
async def test_a_tab_in_a_reply_is_a_blank() -> None:
    """smtpd has one line for a reply, and no control character in it."""
    policy = Policy("tab")

    @policy.mail
    async def mail(message: Message) -> Reject | None:
        return Reject("no\tway\nat all") if message.sender.local == "eve" else None

    told = endings(policy)
    async with serving([policy]) as running:
        client = Client(running.smtpd)
        await client.connect()
        await client.greet()
        assert await client.mail("eve@client.example") == "550 5.7.1 no way; at all"
        await running.served()
        running.check()
    assert told[0] == "refused"


# -- messages that have not passed through us ------------------------------------------------------


@pytest.mark.parametrize("piped", [False, True])
@in_loop
async def test_a_message_without_a_way_is_not_taken(piped: bool) -> None:
    policy = looks()
    told = endings(policy)
    async with serving([policy]) as running:
        client, (link,) = await begun(running), running.smtpd.chain
        await client.rcpt()
        await running.smtpd.ask(client.session, "DATA")
        if piped:  # without a descriptor
            answer = running.smtpd.expect("PIPE", client.session, link, "PIPE")
            link.send(PIPE, running.smtpd.speech.pipe(client.session))
            assert await running.smtpd.in_time(answer, "PIPE") == -1
        assert is_deferred(await eom(running, client, 100))
        running.smtpd.event(client.session, "ROLLBACK")
        await running.served()
        assert running.smtpd.dead == ""
    assert told[:2] == ["refused", "accepted"]


@pytest.mark.parametrize("make", [looks, streams, reads])
@in_loop
async def test_a_message_ends_once(make: Callable[[], Policy]) -> None:
    policy, heard = make(), list[int]()

    @policy.message
    async def again(message: Message) -> None:
        heard.append(len(message.body))

    async with serving([policy]) as running:
        client = await in_data(running)
        assert client.way is not None
        assert (await eom(running, client, client.way.written)).status == 0
        assert is_deferred(await eom(running, client, 77))
        client.way.close()
        await running.served()
        assert running.smtpd.dead == ""
    assert heard[0] == len(b"body\r\n")
    assert len(heard) == 2  # the other one is of the next session


@pytest.mark.parametrize("kind", ["RCPT", "DATA", "HELO"])
@pytest.mark.parametrize("make", [looks, streams, reads])
@in_loop
async def test_what_is_asked_amid_a_message_ends_it(kind: str, make: Callable[[], Policy]) -> None:
    async with serving([make()]) as running:
        client, speech = await in_data(running), running.smtpd.speech
        arguments = {"RCPT": speech.mailaddr(b"x@example.org"), "HELO": speech.string(b"x")}
        asked = [arguments[kind]] if kind in arguments else []
        await running.smtpd.ask(client.session, kind, *asked)
        assert client.way is not None
        assert is_deferred(await eom(running, client, client.way.written))
        client.way.close()
        await running.served()
        assert running.smtpd.dead == ""


# -- events that come, and come --------------------------------------------------------------------


def slow_to_note(gate: asyncio.Event) -> tuple[Policy, list[str]]:
    """Return a policy whose `done` handler waits for a gate, and what is told to it."""
    policy, told = Policy("slow"), list[str]()

    @policy.done
    async def done(message: Message) -> None:
        await gate.wait()
        told.append("done")

    @policy.close
    async def close(session: Session) -> None:
        told.append(session.id)

    return policy, told


@in_loop
async def test_a_client_may_reset_as_often_as_it_likes() -> None:
    gate = asyncio.Event()
    policy, told = slow_to_note(gate)
    async with serving([policy]) as running:
        client = await begun(running)
        running.smtpd.event(client.session, "ROLLBACK")
        for _ in range(3 * MOST_WAITING):
            running.smtpd.event(client.session, "RESET")
        other = Client(running.smtpd)
        assert (await other.connect())[:3] == "220"
        gate.set()
        assert (await client.mail())[:3] == "250"
        running.check()
    assert told.count("done") == 2


@in_loop
async def test_sessions_end_however_much_waits_in_one() -> None:
    gate = asyncio.Event()
    policy, told = slow_to_note(gate)
    async with serving([policy]) as running:
        client, behind = await begun(running), Client(running.smtpd)
        running.smtpd.event(client.session, "ROLLBACK")
        for number in range(MOST_WAITING):
            running.smtpd.event(client.session, ("RESET", "BEGIN")[number % 2])
        assert (await behind.connect())[:3] == "220"  # all of that has been heard
        running.smtpd.stop()
        await until(lambda: bool(told))
        gate.set()
        running.check()
    assert told == [f"{behind.session:016x}", "done", f"{client.session:016x}"]


# -- waiting for what nobody waits for any more ----------------------------------------------------


@pytest.mark.parametrize("event", ["ROLLBACK", "DISCONNECT"])
@pytest.mark.parametrize(("make", "size"), [(streams, 400_000), (reads, 2_000_000)])
@in_loop
async def test_an_end_is_heard_while_a_sink_is_full(
    make: Callable[[], Policy], size: int, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "STALL", 2 * SOON)
    policy = make()
    told = endings(policy)
    async with serving([policy]) as running:
        before = open_descriptors()
        client = await in_data(running)
        way = client.way
        assert way is not None
        way.deafen()
        await client.send(b"a line of a message that nobody reads\r\n" * (size // 40))
        way.end()
        asking = asyncio.create_task(eom(running, client, way.written))
        await running.served()
        assert not asking.done()
        running.smtpd.event(client.session, event)
        async with asyncio.timeout(SOON):
            assert is_deferred(await asking)
        await until(lambda: len(told) > 2)
        assert told[2] in ("refused", "aborted")
        way.close()
        await settled(before)
        running.check()


@pytest.mark.parametrize("event", ["ROLLBACK", "DISCONNECT"])
@in_loop
async def test_an_end_is_heard_while_octets_are_missing(
    event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "STALL", 2 * SOON)
    async with serving([streams()]) as running:
        before = open_descriptors()
        client = await in_data(running)
        way = client.way
        assert way is not None
        asking = asyncio.create_task(eom(running, client, way.written + 10))
        await running.served()
        assert not asking.done()
        running.smtpd.event(client.session, event)
        async with asyncio.timeout(SOON):
            assert is_deferred(await asking)
        way.close()
        await settled(before)
        running.check()


@in_loop
async def test_a_client_that_leaves_is_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever counts refusals in the log counts what policies have said."""
    caplog.set_level(logging.INFO, "mailgate")
    policy, looking = Policy("slow"), asyncio.Event()

    @policy.headers
    async def headers(message: Message) -> None:
        looking.set()
        await asyncio.sleep(PATIENCE)

    told = endings(policy)
    async with serving([policy]) as running:
        client = await begun(running)
        await client.rcpt()
        await client.data()
        await client.send(MAIL)
        await looking.wait()
        client.vanish()
        await until(lambda: len(told) == 2)
        running.check()
    assert told == ["aborted", "closed"]
    assert [line for line in caplog.messages if "verdict=" in line] == []


@in_loop
async def test_an_earlier_filter_may_write_a_refused_message_to_its_end() -> None:
    """smtpd rolls back at once; a filter that is not ours may not live with EPIPE."""
    policy, refusals = Policy("refuses"), [Reject("no")]

    @policy.headers
    async def headers(message: Message) -> Reject | None:
        return refusals.pop() if refusals else None

    async with serving([policy]) as running:
        before = open_descriptors()
        client = await in_data(running)
        way = client.way
        assert way is not None
        rest = b"written by a slow filter\r\n" * 100_000
        answer = await eom(running, client, way.written + len(rest))
        assert (answer.status, answer.code) == (1, 550)
        running.smtpd.event(client.session, "ROLLBACK")
        await running.served()
        await client.send(rest)
        assert not way.refused_octets
        way.close()
        await settled(before)
        running.check()


# -- memory, and too many sessions -----------------------------------------------------------------


@in_loop
async def test_a_line_without_an_end_is_shown_in_pieces() -> None:
    """Whole lines are gathered for a policy; one that does not end is not held in memory."""
    policy, sizes = Policy("body"), list[int]()

    @policy.body
    async def body(message: Message, piece: bytes) -> None:
        sizes.append(len(piece))

    raw = b"Subject: x\r\n\r\na\r\n" + b"x" * 3_000_000 + b"\r\n"
    async with serving([policy], limits=Limits(memory=200_000)) as running:
        assert (await running.served(raw)).endswith(raw)
        running.check()
    assert sum(sizes) == 3_000_005
    assert max(sizes) < 300_000


@in_loop
async def test_when_every_session_is_busy_a_new_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filtering, "MAX_SESSIONS", 3)
    policy, gate = Policy("slow"), asyncio.Event()

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> None:
        await gate.wait()

    async with serving([policy]) as running:
        clients = [await begun(running) for _ in range(3)]
        asking = [asyncio.create_task(client.rcpt()) for client in clients]
        await asyncio.sleep(0)
        late = Client(running.smtpd)
        assert (await late.connect())[:3] == "451"
        assert late.closed
        gate.set()
        assert [(await reply)[:3] for reply in asking] == ["250"] * 3
        assert [(await client.message(MAIL))[:3] for client in clients] == ["250"] * 3
        await running.served()  # one of them is idle now
        running.check()


# -- smtpd dies, and faults of ours ----------------------------------------------------------------


@in_loop
async def test_smtpd_dies_as_a_handler_answers() -> None:
    """Its answer cannot be written; that is noticed in the task of a session."""
    policy, gate = Policy("slow"), asyncio.Event()

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> None:
        await gate.wait()

    told = endings(policy)
    async with serving([policy]) as running:
        client = await begun(running)
        asking = asyncio.create_task(client.rcpt())
        for _ in range(2):
            await begun(running)
        gate.set()
        running.smtpd.stop()
        async with asyncio.timeout(SOON):
            while len(told) < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        with pytest.raises(Death):
            await asking
    assert sorted(told) == ["aborted"] * 3 + ["closed"] * 3
    running.check()


@in_loop
async def test_a_fault_of_ours_is_not_smtpds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised becomes the exit status: 1 is for a peer that does wrong, 70 for us."""

    def fail(*arguments: object) -> None:
        raise RuntimeError("of ours")

    monkeypatch.setattr(Engine, "converse", fail)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    engine = Engine([Loaded(reads(), "reads")], CAPABILITIES)
    serving = asyncio.create_task(keep(Filter(engine, theirs)).run())
    smtpd = Smtpd(ours)
    await smtpd.start()
    smtpd.event(1, "CONNECT")
    with pytest.raises(RuntimeError, match="of ours"):
        async with asyncio.timeout(PATIENCE):
            await serving
    smtpd.stop()
    engine.threads.stop()


@in_loop
async def test_a_socket_that_cannot_be_read_is_no_end_of_file() -> None:
    engine = Engine([Loaded(reads(), "reads")], CAPABILITIES)
    end = socket.socket()  # which nobody has connected
    end.setblocking(False)
    with pytest.raises(PeerError, match="smtpd's socket cannot be read: "):
        async with asyncio.timeout(PATIENCE):
            await keep(Filter(engine, end)).run()
    engine.threads.stop()


@in_loop
async def test_a_way_that_cannot_be_watched_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """epoll has a limit of its own (fs.epoll.max_user_watches)."""

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with serving([streams()]) as running:
        before, private = open_descriptors(), set(fork._private)
        client = await begun(running)
        await client.rcpt()
        with monkeypatch.context() as patched:
            patched.setattr(DataPipe, "watch", full)
            assert await client.data() == "421 4.3.0: Internal server error"
        await settled(before)
        assert fork._private == private
        await running.served()
        assert running.smtpd.dead == ""


@in_loop
async def test_a_sink_that_cannot_be_moved_is_lost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the number of a standard stream it has to be, and there may be no other."""

    def full(fd: int) -> int:
        os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with serving([streams()]) as running:
        before = open_descriptors()
        client = await begun(running)
        await client.rcpt()
        with monkeypatch.context() as patched:
            patched.setattr(fork, "adopt", full)
            assert await client.data() == "421 4.3.0: Internal server error"
        await settled(before)
        await running.served()
        assert running.smtpd.dead == ""
