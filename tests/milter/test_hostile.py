"""Hostile packets on the filter's socket (tests/hostile/milter.json), beside a clean session."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mailgate import Message, Policy
from mailgate_milter import connection
from mailgate_milter.wire import Command, Response, parse_negotiated
from tests.core.asking import in_loop
from tests.hostile.cases import (
    Act,
    Case,
    Send,
    Step,
    expand,
    fits,
    load,
    milter,
    steps,
)
from tests.milter import everything
from tests.milter.mta import Mta
from tests.milter.peer import Peer, frames
from tests.milter.postfix import Postfix
from tests.milter.running import Running, serving

CASES = {case.id: case for case in load("milter")}
SMALL = 1 << 13  # octets that are fed one by one; of more than that, a thousand at a time

# Cases that are answered otherwise than their file says: the verdict we give, and why.
DEVIATIONS = {
    # A field comes as one packet, and Postfix's header_size_limit may be raised: up to 1 MiB it
    # is read, and refused by `limits.headers` at the end of the message (a test of its own).
    "MIL-009": "ok",
}

SHORTENED = {
    "MIL-057": 20_000,  # a million pieces of one octet, each with its answer, take a minute
    "MIL-098": 200_000,  # a million packets of macros take some 4 s in each of three ways
    "MIL-103": 5_000,  # a hundred thousand recipients take 12 s; limits.recipients is 1,000
}
# These take the patience for a peer that is silent, or that does not read.
ALONE = {"MIL-011", "MIL-059"}

# No more can stand behind these: an ABORT there would be one that does not wait for an answer.
LAST = {"MIL-053", "MIL-101"}


def verdict(case: Case) -> str:
    """Return what has to become of a case."""
    return DEVIATIONS.get(case.id, case.verdict)


def shortened(case: Case) -> Case:
    """Return a case with fewer repetitions."""
    most = SHORTENED.get(case.id)
    if most is None:
        return case
    parts = [
        {**part, **{key: min(part[key], most) for key in ("repeat", "template") if key in part}}
        for part in case.parts
    ]
    return replace(case, parts=parts)


# -- what each verdict asks for -------------------------------------------------------------------


def check_ok(peer: Peer) -> None:
    """Each command has one answer, and nothing was refused."""
    assert peer.socket.ended is (peer.quits or peer.cut)
    assert peer.owed() == 0
    _, *answers = peer.answers()
    assert {code for code, _ in answers} <= {Response.CONTINUE, Response.SKIP}


def check_closed(peer: Peer) -> None:
    """The connection was ended, and nothing was said about the mail but to go on."""
    assert peer.socket.ended
    assert peer.owed() >= 0
    for code, _ in peer.answers()[1:]:
        assert code in (Response.CONTINUE, Response.SKIP)


def check_bounded(peer: Peer) -> None:
    assert peer.owed() >= 0


VERDICTS: Mapping[str, Callable[[Peer], None]] = {
    "ok": check_ok,
    "close": check_closed,
    "close-or-reject": check_closed,
    "bounded": check_bounded,
}


def check(case: Case, peer: Peer) -> None:
    offered = next(
        (data for code, data in frames(bytes(peer.given)) if code == Command.OPTNEG), b""
    )
    answers = peer.answers()
    if answers:
        agreed = parse_negotiated(answers[0][1])
        version, actions, steps = struct.unpack(">III", offered[:12])
        assert agreed.version == min(version, 6)
        assert agreed.actions & ~actions == 0
        assert agreed.steps & ~steps == 0
    VERDICTS[verdict(case)](peer)


# -- beside a clean session -----------------------------------------------------------------------

MAIL = (
    b"From: Ann <ann@client.example>\r\nTo: bob@example.org\r\nSubject: clean\r\n"
    b"Date: Sat, 21 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@client.example>\r\n\r\nHello.\r\n"
)


@asynccontextmanager
async def talking(mta: Mta, pause: float) -> AsyncIterator[None]:
    """Name recipients again and again, so that the session is not idle."""

    stopped = asyncio.Event()

    async def talk() -> None:
        for number in itertools.count():
            said = await mta.say(b"RCPT TO:<bob%d@example.org>\r\n" % number)
            assert said == b"250 2.1.5 Ok\r\n"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stopped.wait()
                    return

    task = asyncio.create_task(talk())
    yield
    stopped.set()
    await task


@asynccontextmanager
async def beside_a_neighbour(idle_timeout: float = 7210.0) -> AsyncIterator[Running]:
    """Serve, with a client in the middle of a message that has to come out as it went in."""
    async with serving(everything.policy, idle_timeout=idle_timeout) as running:
        mta = Postfix(running.open)
        await mta.connect()
        assert await mta.say(b"EHLO client.example\r\n") == b"250 CHUNKING\r\n"
        assert (await mta.say(b"MAIL FROM:<ann@client.example>\r\n")).startswith(b"250")
        async with talking(mta, idle_timeout / 5):
            yield running
        assert (await mta.say(b"DATA\r\n")).startswith(b"354")
        assert (await mta.say(MAIL + b".\r\n")).startswith(b"250")
        await mta.end()
        assert mta.faults == []
        (delivered,) = mta.delivered
        assert delivered.raw.endswith(MAIL)
    assert running.errors == []


async def attack(running: Running, case: Case, script: Iterator[Step]) -> Peer:
    """Play a case, and wait for what comes of it."""
    resets = {"reset": True} in case.parts
    peer = Peer(await (running.open_tcp() if resets else running.open()))
    await peer.play(script)
    await peer.rest()
    if verdict(case).startswith("close") or peer.quits:
        peer.said += await peer.socket.until_ended()
    check(case, peer)
    if not peer.socket.ended:
        peer.socket.close()
    return peer


HERE = [shortened(case) for name, case in CASES.items() if name not in ALONE]


@pytest.mark.parametrize("case", HERE, ids=str)
@in_loop
async def test_as_described(case: Case) -> None:
    async with beside_a_neighbour() as running:
        await attack(running, case, steps(case))


@pytest.mark.parametrize("case", HERE, ids=str)
@in_loop
async def test_all_at_once_with_more_behind_it(case: Case) -> None:
    """What stands behind a fault has no answer; behind anything else it has its own."""
    data = expand(case, 1 << 24)
    acts = [step for step in steps(case) if isinstance(step, Act)]
    more = b"" if acts or case.id in LAST else milter(b"A", b"")
    if verdict(case) != "ok" or any(code == Command.CONNECT for code, _ in frames(data)):
        more += milter(b"M", b"<last@example.org>\0") if more else b""
    async with beside_a_neighbour() as running:
        await attack(running, case, iter([Send(data + more), *acts]))


@pytest.mark.parametrize("case", HERE, ids=str)
@in_loop
async def test_byte_by_byte(case: Case) -> None:
    size = 1 if fits(case, SMALL) else 1000
    data = expand(case, 1 << 24)
    script: list[Step] = [Send(data[at : at + size]) for at in range(0, len(data), size)]
    script += [step for step in steps(case) if isinstance(step, Act)]
    async with beside_a_neighbour() as running:
        await attack(running, case, iter(script))


def test_every_case_is_run() -> None:
    assert len(HERE) + len(ALONE) == len(CASES) == 89
    assert set(DEVIATIONS) | set(SHORTENED) | ALONE <= set(CASES)
    assert {case.verdict for case in CASES.values()} == set(VERDICTS)


# -- what else a case asks for ----------------------------------------------------------------------


class Seen:
    """A policy that looks on: who was logged in, per sender; macros per helo."""

    def __init__(self) -> None:
        self.policy = Policy("seen")
        self.users: dict[str, str | None] = {}
        self.subjects: list[str] = []

        @self.policy.mail
        async def mail(message: Message) -> None:
            self.users[message.sender] = message.session.user

        @self.policy.message
        async def whole(message: Message) -> None:
            self.subjects += message.headers.get_all("Subject")


async def observed(*script: bytes) -> tuple[Seen, Peer]:
    """Show packets to an onlooker."""
    seen = Seen()
    async with serving(seen.policy) as running:
        peer = Peer(await running.open())
        for data in script:
            await peer.send(data)
            await peer.rest()
        peer.socket.close()
    assert running.errors == []
    return seen, peer


@in_loop
async def test_a_login_does_not_reach_the_next_message() -> None:
    seen, _ = await observed(expand(CASES["MIL-102"]))
    assert seen.users == {"a@example.org": "alice", "b@example.org": None}


@in_loop
async def test_a_login_does_not_reach_the_next_client() -> None:
    login = milter(b"D", b"M{auth_authen}\0alice\0")
    conversation, _, next_client = expand(CASES["MIL-047"]).partition(milter(b"K", b""))
    seen, _ = await observed(
        conversation.replace(milter(b"M", b"<a@example.org>\0"), login + MAIL_A),
        milter(b"K", b"") + next_client,
    )
    assert seen.users == {"a@example.org": "alice", "e@example.org": None}


MAIL_A = milter(b"M", b"<a@example.org>\0")


@in_loop
async def test_a_field_of_a_mebibyte_is_refused_at_the_end() -> None:
    _, peer = await observed(
        expand(CASES["MIL-009"], 1 << 24) + milter(b"N", b"") + milter(b"E", b"")
    )
    code, data = peer.answers()[-1]
    assert (code, data) == (Response.REPLYCODE, b"552 5.3.4 the header section is too big\0")


@in_loop
async def test_a_line_end_in_a_field_makes_no_other_field() -> None:
    seen, peer = await observed(
        expand(CASES["MIL-074"]), milter(b"N", b"") + milter(b"B", b"x\r\n") + milter(b"E", b"")
    )
    assert seen.subjects == ["a Bcc: x"]
    assert peer.answers()[-1] == (Response.CONTINUE, b"")


@in_loop
async def test_a_peer_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED", 0.3)
    async with beside_a_neighbour(idle_timeout=1.0) as running:
        peer = Peer(await running.open())
        await peer.play(steps(CASES["MIL-059"]))
        for _ in range(2000):
            if len(running.server.connections) == 1:
                break
            await asyncio.sleep(0.01)
        assert len(running.server.connections) == 1  # the neighbour's
        peer.socket.transport.resume_reading()
        await peer.socket.until_ended()


@in_loop
async def test_half_a_packet_and_silence_is_given_up() -> None:
    case = CASES["MIL-011"]
    async with beside_a_neighbour(idle_timeout=1.0) as running:
        await attack(running, case, steps(case))
