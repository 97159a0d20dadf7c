"""Hostile frames and descriptors (tests/hostile/opensmtpd52.json), beside a clean session."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mailgate.chain import Loaded
from mailgate.engine import Engine
from mailgate.errors import PeerError
from mailgate_opensmtpd52.facts import CAPABILITIES
from mailgate_opensmtpd52.filter import Filter
from tests.core.asking import in_loop
from tests.hostile.cases import Case, fits, load, steps
from tests.opensmtpd import everything
from tests.opensmtpd52.client import Client, without_trace
from tests.opensmtpd52.frames import (
    EVENT,
    PIPE,
    QUERY,
    REGISTER,
    RESPONSE,
    Speech,
    frame,
    open_descriptors,
)
from tests.opensmtpd52.hostility import CUTS, Cut, Hostility, cut, failed, goes_on
from tests.opensmtpd52.recorded import little_endian
from tests.opensmtpd52.running import Errors, keep, settled
from tests.opensmtpd52.smtpd import PATIENCE, Smtpd

pytestmark = little_endian


def shortened(case: Case, sessions: int) -> Case:
    """Return a case with fewer sessions; it is to have more than there may be at a time."""
    parts = [
        {**part, "template": min(part["template"], sessions)} if "template" in part else part
        for part in case.parts
    ]
    return replace(case, parts=parts)


CASES = [shortened(case, 20_000) for case in load("opensmtpd52")]
EXITS = [case for case in CASES if case.verdict == "exit"]
SERVED = [case for case in CASES if case.verdict != "exit"]
SMALL = 1 << 16
SESSIONS = (0x1122, 1)  # of the cases
MAIL = b"Subject: neighbour\r\n\r\nhello\r\n"


@asynccontextmanager
async def attacked(
    version: int = 52,
) -> AsyncIterator[tuple[Smtpd, asyncio.Task[None], Errors]]:
    """Run a filter that is asked everything, before smtpd has said a word."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with Errors() as errors:
        engine = Engine([Loaded(everything.policy, "everything")], CAPABILITIES)
        task = asyncio.create_task(keep(Filter(engine, theirs)).run())
        smtpd = Smtpd(ours, version=version)
        try:
            yield smtpd, task, errors
        finally:
            smtpd.stop()
            await asyncio.wait([task], timeout=PATIENCE)
            engine.threads.stop()


# -- what cannot be gone on with -------------------------------------------------------------------


async def end_of(case: Case, way: Cut) -> PeerError | None:
    """Return what a filter ends with; None is the end of file."""
    async with attacked() as (smtpd, task, errors):
        before = open_descriptors()
        play = Hostility(smtpd, 0.2)
        await play.play(cut(steps(case), way))
        await asyncio.wait([task], timeout=PATIENCE)
        play.close()
        assert task.done()
        assert smtpd.faults == []
        assert smtpd.dead == ("" if play.closed else 'filter "f1" closed unexpectedly')
        assert errors.messages == []
        smtpd.stop()
        assert len(before - open_descriptors()) == 2  # the two ends of the socket
        assert open_descriptors() < before
        error = task.exception()
        assert error is None or isinstance(error, PeerError)
        return error


@pytest.mark.parametrize("way", CUTS)
@pytest.mark.parametrize("case", EXITS, ids=str)
def test_what_no_smtpd_says_is_the_end(case: Case, way: Cut) -> None:
    error = asyncio.run(end_of(case, way))
    if case.id == "V52-008":  # the end of file at once
        assert error is None
    else:
        assert error is not None
        assert str(error).startswith("smtpd sent ")
        assert "\n" not in str(error)


IMPOSSIBLE: dict[str, Callable[[Speech], bytes]] = {
    "a second REGISTER": lambda speech: frame(REGISTER, speech.register()),
    "an event with too much": lambda speech: frame(EVENT, speech.event(1, "RESET") + b"\0"),
    "an event with too little": lambda speech: frame(EVENT, speech.event(1, "RESET")[:-1]),
    "an event of no meaning": lambda speech: frame(EVENT, speech.id(1) + speech.s32(6)),
    "a query without its kind": lambda speech: frame(QUERY, speech.id(1) + speech.id(2)),
    "a pipe with too much": lambda speech: frame(PIPE, speech.pipe(1) + b"\0"),
    "a pipe of nobody": lambda speech: frame(PIPE),
    "an answer": lambda speech: frame(RESPONSE, speech.id(1)),
    "an unknown type": lambda speech: frame(5),
    "a frame too short": lambda speech: frame(EVENT, speech.event(1, "RESET"), length=15),
    "a frame too long": lambda speech: frame(EVENT, bytes(16369), length=16385),
}


@pytest.mark.parametrize("version", [52, 51, 50])
@pytest.mark.parametrize("what", IMPOSSIBLE)
@in_loop
async def test_there_is_no_going_on_in_any_version(what: str, version: int) -> None:
    async with attacked(version) as (smtpd, task, errors):
        await smtpd.start()
        client = Client(smtpd)
        await client.connect()
        await smtpd.chain[0].raw(IMPOSSIBLE[what](smtpd.speech))
        await asyncio.wait([task], timeout=PATIENCE)
        assert str(task.exception()).startswith("smtpd sent ")
        assert errors.messages == []


# -- what is answered, or passed over --------------------------------------------------------------


async def answers_to(case: Case, way: Cut) -> list[object]:
    """Play a case beside a neighbour; return what was answered to the case itself.

    The first step of each is a good REGISTER.
    """
    async with attacked() as (smtpd, task, errors):
        before = open_descriptors()
        play = Hostility(smtpd, 0.3 if case.verdict == "ignore" else PATIENCE)
        neighbour, rest = Client(smtpd), steps(case)
        await play.play(cut([next(rest)], way))
        await smtpd.in_time(smtpd.chain[0].registered, "REGISTER")
        told = [await neighbour.connect(), await neighbour.greet(), await neighbour.mail()]
        await play.play(cut(rest, way))
        told += [await neighbour.rcpt(), await neighbour.message(MAIL), await neighbour.quit()]

        assert [reply[:1] for reply in told] == ["2"] * 6
        assert [without_trace(one) for one in neighbour.delivered] == [MAIL]
        answers, unanswered = play.answers, play.unanswered
        assert unanswered == (1 if case.id == "V52-048" else 0)
        play.close()
        for session in SESSIONS:
            smtpd.event(session, "DISCONNECT")
        await settled(before)
        assert smtpd.dead == ""
        assert smtpd.faults == []
        assert [e for e in errors.messages if "fault of mailgate" in e] == []
        smtpd.stop()
        await asyncio.wait_for(task, PATIENCE)
        return answers


def check_ok(case: Case, answers: list[object]) -> None:
    assert [answer for answer in answers if not goes_on(answer)] == []


def check_failed(case: Case, answers: list[object]) -> None:
    *earlier, last = answers
    assert failed(last), last
    assert [answer for answer in earlier if not goes_on(answer)] == []


VERDICTS: dict[str, Callable[[Case, list[object]], None]] = {
    "ok": check_ok,
    "ignore": check_ok,
    "answer-failure": check_failed,
    "bounded": check_ok,
}


@pytest.mark.parametrize("way", CUTS)
@pytest.mark.parametrize("case", SERVED, ids=str)
def test_what_can_be_answered_is(case: Case, way: Cut) -> None:
    if way == "byte by byte" and not fits(case, SMALL):
        pytest.skip("too many octets to be sent one by one")
    answers = asyncio.run(answers_to(case, way))
    VERDICTS[case.verdict](case, answers)
    if case.verdict == "ignore":
        assert len(answers) <= 1  # to the query that its session began with


def test_every_case_is_run() -> None:
    assert len(EXITS) + len(SERVED) == len(CASES) == 49
