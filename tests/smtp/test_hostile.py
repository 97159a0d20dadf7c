"""Hostile clients (tests/hostile/smtp-in.json), each beside one that sends a clean message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mailgate_smtp import connection, options
from mailgate_smtp.options import Limits, SmtpOptions, Timeouts
from tests.core.asking import in_loop
from tests.hostile.cases import Act, Case, Send, Step, expand, fits, load, steps
from tests.milter.running import run
from tests.smtp.client import END, Client, Exchange
from tests.smtp.gate import gate
from tests.smtp.mta import Message, Mta
from tests.smtp.running import Running, descriptors, serving

CASES = {case.id: case for case in load("smtp-in")}
SMALL = 1 << 13  # octets that are fed one by one; of more than that, a thousand at a time

SHORTENED = {
    "SMTP-145": 1 << 17,  # 64 MiB of a header section that never ends take 2 s in each way
}

# These are given up for being slow, or silent: the times are shortened for them.
SLOW = {"SMTP-054", "SMTP-145", "SMTP-157", "SMTP-158", "SMTP-159"}
# These ask for encryption, or speak before they are greeted: the proxy is set up for it.
TLS = {case.id for case in CASES.values() if case.expect.get("needs") == "tls"}
EARLY = {"SMTP-059"}

# Where the refusal that a case wants is not the last reply: the beginning of its command.
REFUSED_AT = {
    "SMTP-046": b"HELO aaa",
    "SMTP-055": b"PROXY ",
    "SMTP-065": b"AUTH ",
    "SMTP-138": b"BDAT x",
    "SMTP-143": END,
}

CERTIFICATE = Path(__file__).with_name("certificate.pem")
BASE = SmtpOptions(listen="127.0.0.1:0", auth="policy", auth_without_tls=True)
IMPATIENT = replace(BASE, timeouts=Timeouts(command=0.5, data=0.5))


def options_of(case: Case) -> SmtpOptions:
    """Return how the proxy has to be set up for a case."""
    if case.id in SLOW:
        return IMPATIENT
    if case.id in TLS:
        return replace(BASE, tls=options.TLS(cert=CERTIFICATE))
    if case.id in EARLY:
        return replace(BASE, timeouts=Timeouts(greeting=0.2))
    if "limits_override" in case.expect:
        most = case.expect["limits_override"]["message_bytes"]
        return replace(BASE, limits=Limits(message=most))
    return BASE


def shortened(case: Case) -> Case:
    """Return a case with fewer repetitions."""
    most = SHORTENED.get(case.id)
    if most is None:
        return case
    parts = [
        {**part, "repeat": min(part["repeat"], most)} if "repeat" in part else part
        for part in case.parts
    ]
    return replace(case, parts=parts)


# -- what each verdict asks for -------------------------------------------------------------------


def refusal(case: Case, said: Sequence[Exchange]) -> int:
    """Return the reply code that matters to a case."""
    begin = REFUSED_AT.get(case.id)
    codes = [
        reply.code
        for command, reply in said
        if (
            not command.upper().startswith(b"QUIT") if begin is None else command.startswith(begin)
        )
    ]
    return codes[-1]


def check_ok(case: Case, client: Client, said: Sequence[Exchange]) -> None:
    assert all(reply.code < 400 for _, reply in said)


def check_rejected(case: Case, client: Client, said: Sequence[Exchange]) -> None:
    assert 500 <= refusal(case, said) <= 599


def check_closed(case: Case, client: Client, said: Sequence[Exchange]) -> None:
    assert client.ended or client.cut
    assert said[-1].reply.code >= 421 or any(isinstance(step, Act) for step in steps(case))


def check_closed_or_rejected(case: Case, client: Client, said: Sequence[Exchange]) -> None:
    assert client.ended or 500 <= refusal(case, said) <= 599


def check_anything(case: Case, client: Client, said: Sequence[Exchange]) -> None:
    pass


VERDICTS: Mapping[str, Callable[[Case, Client, Sequence[Exchange]], None]] = {
    "ok": check_ok,
    "reject": check_rejected,
    "close": check_closed,
    "close-or-reject": check_closed_or_rejected,
    "reject-or-normalise": check_anything,  # what is passed on has to be clean, as ever
}


def check(case: Case, client: Client, messages: Sequence[Message]) -> None:
    """See that a case ended as it has to, and that what was acknowledged has arrived."""
    said = client.check().exchanges
    VERDICTS[case.verdict](case, client, said)
    acknowledged = [reply for what, reply in said if what == END and reply.code == 250]
    assert len(acknowledged) == len(messages)
    expect = case.expect
    most = expect.get("upstream_messages_max", 2)
    assert expect.get("upstream_messages_min", 0) <= len(messages) <= most
    for message in messages:
        for address in expect.get("upstream_envelope_forbid", ()):
            assert message.sender.mailbox != address.encode()
        for line in expect.get("upstream_content_lines", ()):
            assert line.encode() in message.content.split(b"\r\n")


# -- beside a clean session -----------------------------------------------------------------------

SENDER = b"neighbour@client.example"
LETTER = b"Subject: clean\r\n\r\nHello.\r\n..\r\n"


@asynccontextmanager
async def naming_recipients(client: Client) -> AsyncIterator[None]:
    """Name one after the other, so that the session is not idle."""
    stopped = asyncio.Event()

    async def go_on() -> None:
        while not stopped.is_set():
            assert (await client.say(b"RCPT TO:<bob@example.org>")).code == 250
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stopped.wait()

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        stopped.set()
        await task


@asynccontextmanager
async def beside_a_neighbour(
    options: SmtpOptions = BASE, *, whole: bool = True
) -> AsyncIterator[tuple[Running, Mta]]:
    """Serve, with a client in the middle of a message that has to arrive as it was sent.

    Its message is taken away from those of the server.  At the end everything is given back.
    """
    before = descriptors()
    async with Mta() as mta:
        async with serving(gate(whole=whole), upstream=mta, options=options) as running:
            neighbour = await running.open()
            await neighbour.begin(b"MAIL FROM:<%b>" % SENDER)
            async with naming_recipients(neighbour):
                yield running, mta
            assert (await neighbour.data(LETTER)).code == 250
            assert (await neighbour.say(b"QUIT")).code == 221
            neighbour.check()
            (arrived,) = (one for one in mta.messages if one.sender.mailbox == SENDER)
            assert arrived.content == LETTER.replace(b"..", b".")
        assert running.errors == []
        assert mta.faults == []
    for _ in range(200):
        if descriptors() <= before:
            break
        await asyncio.sleep(0.01)
    assert descriptors() <= before


async def attack(running: Running, mta: Mta, case: Case, script: Iterator[Step]) -> None:
    """Play a case, and wait for what comes of it."""
    client = await running.open()
    await client.play(script)
    await client.sync()
    said = client.dialogue().exchanges
    closes = case.verdict == "close" or case.id in SLOW or said[-1].reply.code == 421
    if closes and not client.cut:
        await client.until_ended()
    check(case, client, [one for one in mta.messages if one.sender.mailbox != SENDER])
    client.close()


HERE = [shortened(case) for case in CASES.values()]


@pytest.fixture(autouse=True)
def _soon_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the rate of a message count after half a second, not after a minute."""
    monkeypatch.setattr(connection, "WARM_UP", 0.5)


@pytest.mark.parametrize("case", HERE, ids=str)
@in_loop
async def test_as_described(case: Case) -> None:
    async with beside_a_neighbour(options_of(case)) as (running, mta):
        await attack(running, mta, case, steps(case))


@pytest.mark.parametrize("case", HERE, ids=str)
@in_loop
async def test_all_at_once(case: Case) -> None:
    acts = [step for step in steps(case) if isinstance(step, Act)]
    script: list[Step] = [Send(expand(case, 1 << 25)), *acts]
    async with beside_a_neighbour(options_of(case)) as (running, mta):
        await attack(running, mta, case, iter(script))


@pytest.mark.parametrize("case", HERE, ids=str)
@in_loop
async def test_all_at_once_and_streamed(case: Case) -> None:
    acts = [step for step in steps(case) if isinstance(step, Act)]
    script: list[Step] = [Send(expand(case, 1 << 25)), *acts]
    options = replace(options_of(case), body="stream")
    async with beside_a_neighbour(options, whole=False) as (running, mta):
        await attack(running, mta, case, iter(script))


@pytest.mark.parametrize("case", [case for case in HERE if case.id != "SMTP-060"], ids=str)
def test_octet_by_octet(case: Case) -> None:
    """And in the loop that a process of its own has, where it is installed."""
    size = 1 if fits(case, SMALL) else 1000
    data = expand(case, 1 << 25)
    script: list[Step] = [Send(data[at : at + size]) for at in range(0, len(data), size)]
    script += [step for step in steps(case) if isinstance(step, Act)]

    async def whole() -> None:
        async with beside_a_neighbour(options_of(case)) as (running, mta):
            await attack(running, mta, case, iter(script))

    run(whole, "uvloop")


def test_every_case_is_run() -> None:
    assert len(HERE) == len(CASES) == 133
    assert set(SHORTENED) | SLOW | EARLY | set(REFUSED_AT) <= set(CASES)
    assert {case.verdict for case in CASES.values()} == set(VERDICTS)


# -- what else a case asks for --------------------------------------------------------------------


@in_loop
async def test_commands_behind_starttls_are_no_commands() -> None:
    """Octet by octet, the handshake has begun when they come: no reply is a line then."""
    case = CASES["SMTP-060"]
    async with beside_a_neighbour(options_of(case)) as (running, mta):
        client = await running.open()
        await client.begin()
        assert (await client.say(b"STARTTLS")).code == 220
        await client.send(expand(case).partition(b"STARTTLS\r\n")[2])
        await client.until_ended()
        assert not any(b"evil" in command for command in mta.commands)
