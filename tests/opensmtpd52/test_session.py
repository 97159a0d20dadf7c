"""Whole sessions with the smtpd of these tests: many at a time, aborted, in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from mailgate.address import Address
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.verdict import Accept, Defer, Disconnect, Refusal, Reject
from tests.core.asking import in_loop
from tests.opensmtpd52.client import ENTER, Client, without_trace
from tests.opensmtpd52.frames import open_descriptors
from tests.opensmtpd52.policies import endings, reads, streams
from tests.opensmtpd52.running import Running, begun, serving, settled, until
from tests.opensmtpd52.smtpd import PATIENCE

VERSIONS = pytest.mark.parametrize("version", [52, 51, 50])
MAIL = b"Subject: x\r\n\r\nbody\r\n"


# -- many at a time ------------------------------------------------------------------------------


@VERSIONS
@in_loop
async def test_a_session_that_waits_delays_no_other(version: int) -> None:
    policy, gate = Policy("slow"), asyncio.Event()

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Reject | None:
        if message.sender.local == "slow":
            await gate.wait()
            return Reject("too slow")
        return None

    async with serving([policy], version=version) as running:
        slow = await begun(running, "slow@client.example")
        waiting = asyncio.create_task(slow.rcpt())
        for _ in range(3):
            await running.served()
        assert not waiting.done()
        gate.set()
        assert await waiting == "550 5.7.1 too slow"
        running.check()


@VERSIONS
@in_loop
async def test_answers_are_given_to_those_who_asked(version: int) -> None:
    """Fifty sessions at a time, answered in another order than they ask in."""
    policy = Policy("various")

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Reject | None:
        number = int(recipient.local)
        await asyncio.sleep(number * 7 % 50 / 1000)
        return Reject(f"number {number}") if number % 2 else None

    @policy.message
    async def message(message: Message) -> None:
        message.body += f"for {message.recipients[0]}\r\n".encode()

    async def talk(running: Running, number: int) -> None:
        client = await begun(running)
        reply = await client.rcpt(f"{number}@example.org")
        if number % 2:
            assert reply == f"550 5.7.1 number {number}"
        else:
            assert (await client.message(MAIL))[:3] == "250"
            text = b"for %d@example.org\r\n" % number
            assert [without_trace(one) for one in client.delivered] == [MAIL + text]
        await client.quit()

    async with serving([policy], version=version) as running:
        await asyncio.gather(*(talk(running, number) for number in range(50)))
        running.check()


@in_loop
async def test_messages_of_several_sessions_do_not_mix() -> None:
    async def talk(running: Running, number: int) -> None:
        client = await begun(running)
        client.eom_first = number % 2 == 0
        await client.rcpt()
        lines = b"%d says so\r\n" % number * 20_000
        assert (await client.message(b"Subject: x\r\n\r\n" + lines))[:3] == "250"
        assert without_trace(client.delivered[0]) == b"Subject: x\r\n\r\n" + lines
        await client.quit()

    for policy in (reads(), streams()):
        async with serving([policy]) as running:
            await asyncio.gather(*(talk(running, number) for number in range(10)))
            running.check()


@VERSIONS
@in_loop
async def test_several_messages_in_one_session(version: int) -> None:
    policy = reads()
    told = endings(policy)
    async with serving([policy], version=version) as running:
        client = await begun(running)
        await client.rcpt()
        assert (await client.message(MAIL))[:3] == "250"
        assert await client.mail("") == "250 2.0.0: Ok"
        await client.rcpt()
        await client.rset()
        await until(lambda: len(told) >= 2)
        assert told == ["accepted", "aborted"]  # as it happens, and not with the next message
        await client.mail("b@client.example")
        await client.rcpt()
        assert (await client.message(MAIL * 2))[:3] == "250"
        await client.quit()
        assert [without_trace(one) for one in client.delivered] == [MAIL, MAIL * 2]
        running.check()
    assert told == ["accepted", "aborted", "accepted", "closed"]


# -- chains of two -------------------------------------------------------------------------------


def adds(name: str) -> Policy:
    policy = Policy(name)

    @policy.headers
    async def headers(message: Message) -> None:
        message.headers.add(f"X-{name}", "yes")

    return policy


@VERSIONS
@in_loop
async def test_two_filters_see_what_the_one_before_made(version: int) -> None:
    async with serving([adds("One")], [adds("Two")], version=version) as running:
        delivered = without_trace(await running.served())
        assert delivered == b"Subject: x\r\nX-One: yes\r\nX-Two: yes\r\n\r\nbody\r\n"
        running.check()


@pytest.mark.parametrize("eom_first", [False, True])
@pytest.mark.parametrize("chain", [(reads, streams), (streams, reads), (reads, reads)])
@in_loop
async def test_big_messages_pass_two_filters(
    eom_first: bool, chain: tuple[Callable[[], Policy], Callable[[], Policy]]
) -> None:
    raw = b"Subject: big\r\n\r\n" + b"0123456789" * 9 + b"\r\n" * 2 + b"x" * 70 + b"\r\n"
    raw += (b"line %d\r\n" * 10 % (*range(10),)) * 15_000
    async with serving(*([make()] for make in chain)) as running:
        client = await begun(running)
        client.eom_first = eom_first
        await client.rcpt()
        assert (await client.message(raw))[:3] == "250"
        assert without_trace(client.delivered[0]) == raw
        running.check()


@in_loop
async def test_a_filter_that_reads_nothing_is_passed_by() -> None:
    """smtpd has no pipe made for it; EOM goes to both, with the length that left the other."""
    quiet = Policy("quiet")
    told = endings(quiet)
    for chain in ([[quiet], [adds("Two")]], [[adds("One")], [quiet]], [[quiet], [quiet]]):
        told.clear()
        async with serving(*chain) as running:
            await running.served()
            running.check()
        assert set(told) == {"accepted", "closed"}


@in_loop
async def test_what_the_first_refuses_the_second_never_hears_of() -> None:
    first, second, heard = Policy("first"), Policy("second"), list[str]()

    @first.rcpt
    async def refuse(message: Message, recipient: Address) -> Reject | None:
        return Reject("not him", enhanced="5.1.1") if recipient.local == "no" else None

    @second.rcpt
    async def hear(message: Message, recipient: Address) -> Reject | None:
        heard.append(recipient.local)
        return Reject("nor her") if recipient.local == "her" else None

    async with serving([first], [second]) as running:
        client = await begun(running)
        assert await client.rcpt("no@example.org") == "550 5.1.1 not him"
        assert await client.rcpt("her@example.org") == "550 5.7.1 nor her"
        assert (await client.rcpt("yes@example.org"))[:3] == "250"
        running.check()
    assert heard == ["her", "yes"]


@in_loop
async def test_what_a_later_filter_refuses_is_no_message_that_was_taken() -> None:
    first, second = reads(), Policy("second")
    told = endings(first)

    @second.message
    async def refuse(message: Message) -> Reject:
        return Reject("spam")

    async with serving([first], [second]) as running:
        client = await begun(running)
        await client.rcpt()
        assert await client.message(MAIL) == "550 5.7.1 spam"
        running.check()
    assert told == ["aborted", "closed"]


# -- past us -------------------------------------------------------------------------------------


@in_loop
async def test_a_message_that_nobody_looks_at_does_not_pass_through_us() -> None:
    policy = reads()

    @policy.mail
    async def friend(message: Message) -> Accept | None:
        return Accept() if message.sender.local == "friend" else None

    @policy.message
    async def never(message: Message) -> Reject:
        return Reject("read after all")

    async with serving([policy]) as running:
        client = await begun(running, "friend@client.example")
        await client.rcpt()
        assert await client.data() == ENTER
        await client.send(MAIL)
        way = client.way
        assert way is not None
        await until(lambda: way.received.endswith(b"body\n"))
        assert way.received.endswith(b"body\n")  # before EOM: nobody has held it
        assert (await client.end())[:3] == "250"
        assert without_trace(client.delivered[0]) == MAIL
        await client.mail("stranger@client.example")
        await client.rcpt()
        assert await client.message(MAIL) == "550 5.7.1 read after all"
        running.check()


# -- clients that go ------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("rollback_first", [False, True])
@pytest.mark.parametrize("make", [reads, streams])
@in_loop
async def test_a_client_that_goes_in_its_data(
    version: int, rollback_first: bool, make: Callable[[], Policy]
) -> None:
    policy = make()
    told = endings(policy)
    async with serving([policy], version=version) as running:
        for text in (
            b"",
            b"Sub",
            b"Subject: x\r\n\r\nhal",
            b"Subject: x\r\n\r\n" + b"y\r\n" * 300_000,
        ):
            client = await begun(running)
            client.rollback_first = rollback_first
            await client.rcpt()
            await client.data()
            await client.send(text)
            client.vanish()
        await running.served()
        running.check()
    assert sorted(told) == sorted(["aborted", "closed"] * 4 + ["accepted", "closed"])


@VERSIONS
@in_loop
async def test_a_message_that_smtpd_refuses_itself(version: int) -> None:
    policy = reads()
    told = endings(policy)
    async with serving([policy], version=version) as running:
        client, before = await begun(running), open_descriptors()
        client.rollback_first = True
        await client.rcpt()
        await client.data()
        await client.send(MAIL)
        assert client.too_big() == "554 Message too big"
        await client.mail()
        await settled(before)  # version 50 has not told of the end
        await client.rcpt()
        assert (await client.message(MAIL))[:3] == "250"
        await client.quit()
        running.check()
    assert told == ["aborted", "accepted", "closed"]


Step = Callable[[Client], Coroutine[object, object, str]]
STEPS: dict[str, Step] = {
    "connect": lambda client: client.connect(),
    "helo": lambda client: client.greet(),
    "mail": lambda client: client.mail(),
    "rcpt": lambda client: client.rcpt(),
    "data": lambda client: client.data(),
    "end": lambda client: client.end(),
}


def slow_at(stage: str, gate: asyncio.Event, *, refuses: bool) -> Policy:
    """Return a policy that answers a stage when a gate opens, and may refuse the first time."""
    policy = Policy("slow")
    refusals = [Defer("too late")] if refuses else []

    async def wait() -> Defer | None:
        await gate.wait()
        return refusals.pop() if refusals else None

    @policy.connect
    async def connect(session: Session) -> Defer | None:
        return await wait() if stage == "connect" else None

    @policy.helo
    async def helo(session: Session) -> Defer | None:
        return await wait() if stage == "helo" else None

    @policy.mail
    async def mail(message: Message) -> Defer | None:
        return await wait() if stage == "mail" else None

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Defer | None:
        return await wait() if stage == "rcpt" else None

    @policy.data
    async def data(message: Message) -> Defer | None:
        return await wait() if stage == "data" else None

    @policy.message
    async def end(message: Message) -> Defer | None:
        return await wait() if stage == "end" else None

    return policy


@VERSIONS
@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("stage", STEPS)
@in_loop
async def test_a_client_that_goes_while_a_query_is_open(
    stage: str, refuses: bool, version: int
) -> None:
    """smtpd keeps the session until it has the answer."""
    gate = asyncio.Event()
    policy = slow_at(stage, gate, refuses=refuses)
    told = endings(policy)
    async with serving([policy], version=version) as running:
        client = Client(running.smtpd)
        for name, step in STEPS.items():
            if name == "end":
                await client.send(MAIL)
            if name == stage:
                asking = asyncio.create_task(step(client))
                await asyncio.sleep(0.01)
                client.vanish()
                gate.set()
                await asking
                break
            await step(client)
        assert client.closed
        await running.served()
        running.check()
    first = []
    if stage not in ("connect", "helo"):
        ends_it = refuses and stage in ("mail", "data", "end")
        first = ["refused" if ends_it else "aborted"]
    if (stage, refuses) == ("end", False):
        first = ["accepted"]  # smtpd has it
    assert told == [*first, "closed", "accepted", "closed"] or told == [
        *(*first, "accepted", "closed", "closed"),
    ]


@pytest.mark.parametrize("event", ["DISCONNECT", "ROLLBACK", "RESET"])
@pytest.mark.parametrize("stage", STEPS)
@in_loop
async def test_an_event_while_a_query_is_open(stage: str, event: str) -> None:
    """smtpd does not do that; the query is answered all the same, once, and soon."""
    gate = asyncio.Event()
    policy = slow_at(stage, gate, refuses=False)
    async with serving([policy]) as running:
        client = Client(running.smtpd)
        for name, step in STEPS.items():
            if name == "end":
                await client.send(MAIL)
            if name == stage:
                asking = asyncio.create_task(step(client))
                await asyncio.sleep(0.01)
                running.smtpd.event(client.session, event)
                if stage in ("connect", "helo") and event != "DISCONNECT":
                    gate.set()  # that is about no message
                async with asyncio.timeout(PATIENCE):
                    reply = await asking
                assert reply[:1] == ("2" if gate.is_set() else "4")
                break
            await step(client)
        if event == "DISCONNECT":
            client.closed = True
        gate.set()
        await running.served()
        running.check()


@VERSIONS
@in_loop
async def test_refusals_are_heard_where_they_belong(version: int) -> None:
    refuse: dict[str, Refusal] = {
        "reject": Reject("no\nnever"),
        "defer": Defer("later"),
        "leave": Disconnect("go"),
    }
    policy = Policy("refuses")

    @policy.connect
    async def connect(session: Session) -> Refusal | None:
        return refuse.get(session.rdns or "")

    @policy.helo
    async def helo(session: Session) -> Refusal | None:
        return refuse.get(session.helo)

    @policy.mail
    async def mail(message: Message) -> Refusal | None:
        return refuse.get(message.sender.local)

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Refusal | None:
        return refuse.get(recipient.local)

    replies = {
        "reject": "550 5.7.1 no; never",
        "defer": "451 4.7.1 later",
        "leave": "421 4.7.1 go",
    }
    async with serving([policy], version=version) as running:
        for word, reply in replies.items():
            client = Client(running.smtpd, rdns=word)
            assert (await client.connect(), client.closed) == (reply, True)
            client = Client(running.smtpd)
            await client.connect()
            assert (await client.greet(word), client.closed) == (reply, True)
            client = Client(running.smtpd)
            await client.connect()
            await client.greet()
            assert await client.mail(f"{word}@client.example") == reply
            assert client.closed is (word == "leave")
            client = await begun(running)
            assert await client.rcpt(f"{word}@example.org") == reply
            assert client.closed is (word == "leave")
        running.check()


@in_loop
async def test_a_session_that_begins_twice_is_another_one() -> None:
    policy = reads()
    told = endings(policy)
    async with serving([policy]) as running:
        client = await begun(running)
        again = Client(running.smtpd)
        again.session = client.session
        await again.connect()
        await again.greet()
        assert (await again.mail())[:3] == "250"
        await again.rcpt()
        assert (await again.message(MAIL))[:3] == "250"
        await again.quit()
        running.check()
    assert told == ["aborted", "closed", "accepted", "closed"]
