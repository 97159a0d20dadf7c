"""Hostile frames that end a process, or fill its memory, in a process of their own."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.hostile.cases import Case, load, steps
from tests.opensmtpd import everything
from tests.opensmtpd52.client import Client, without_trace
from tests.opensmtpd52.hostility import Hostility
from tests.opensmtpd52.recorded import little_endian
from tests.opensmtpd52.running import CONFIG, Program, kill, start
from tests.opensmtpd52.smtpd import PATIENCE, Smtpd
from tests.opensmtpd52.test_hostile import shortened

pytestmark = little_endian

CASES = {case.id: shortened(case, 40_000) for case in load("opensmtpd52")}
EVERYTHING = Path(everything.__file__)
MEMORY = 64 << 20  # octets that a case may cost
BIG = ("V52-058", "V52-059", "V52-060")
MAIL = b"Subject: neighbour\r\n\r\nhello\r\n"


@asynccontextmanager
async def attacked() -> AsyncIterator[Program]:
    """Start a filter to which smtpd has said nothing yet."""
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        config = Path(folder) / "mailgate.toml"
        config.write_text(CONFIG)
        process = start(theirs, EVERYTHING, config, log)
        try:
            running = Program(Smtpd(ours), [process], [log])
            yield running
            running.smtpd.stop()
        finally:
            kill(process)


@pytest.mark.parametrize(
    "case", [case for case in CASES.values() if case.verdict == "exit"], ids=str
)
def test_what_no_smtpd_says_ends_the_process_with_a_word(case: Case) -> None:
    async def attack() -> tuple[int, list[str]]:
        async with attacked() as running:
            play = Hostility(running.smtpd, 0.2)
            await play.play(steps(case))
            (process,) = running.processes
            status = await asyncio.to_thread(process.wait, PATIENCE)
            assert running.smtpd.faults == []
            play.close()
            return status, running.stderr().splitlines()

    status, lines = asyncio.run(attack())
    said = [line for line in lines if not line.startswith("info: filter ")]
    if case.id == "V52-008":  # the end of file at once
        assert (status, said) == (0, [])
    else:
        assert status == 1
        (line,) = said
        assert "smtpd sent " in line


@pytest.mark.parametrize("name", BIG)
def test_big_inputs_cost_bounded_memory(name: str) -> None:
    async def attack() -> None:
        async with attacked() as running:
            play, rest = Hostility(running.smtpd, PATIENCE), steps(CASES[name])
            await play.play([next(rest)])
            await running.smtpd.in_time(running.smtpd.chain[0].registered, "REGISTER")
            neighbour = Client(running.smtpd)
            told = [await neighbour.connect(), await neighbour.greet(), await neighbour.mail()]
            before = rss(running)
            await play.play(rest)
            told += [await neighbour.rcpt(), await neighbour.message(MAIL)]
            assert [reply[:1] for reply in told] == ["2"] * 5
            assert [without_trace(one) for one in neighbour.delivered] == [MAIL]
            assert rss(running) - before < MEMORY
            play.close()
            assert await running.end() == [0]
            running.check()

    asyncio.run(attack())


def rss(running: Program) -> int:
    """Return the resident memory of a filter."""
    status = Path(f"/proc/{running.processes[0].pid}/status")
    if not status.exists():
        pytest.skip("the memory of a process is told in /proc")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) << 10
