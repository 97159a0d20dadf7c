"""Hostile inputs that end a process, fill its socket or its memory, in a process of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from tests.hostile.cases import Act, Case, Send, Step, Sync, Wait, load, steps
from tests.opensmtpd import everything
from tests.opensmtpd.lines import Client
from tests.opensmtpd.peer import Peer, Process, process
from tests.opensmtpd.test_hostile import ELSEWHERE, HALF, HERE, NEIGHBOUR, READY, REST

CASES = {case.id: case for case in load("opensmtpd")}
EVERYTHING = Path(everything.__file__)
MEMORY = 64 << 20  # octets that a case may cost
SESSIONS = 60_000  # of one case


def play(peer: Peer, script: Iterable[Step]) -> None:
    """Do what a case describes."""
    for step in script:
        match step:
            case Send(data):
                peer.send(data)
            case Sync():
                peer.settle(patience=10)
            case Wait(seconds):
                peer.quiet(seconds)
            case Act("close"):
                peer.half_close()
            case Act(kind):
                peer.reading = kind == "read"


def beside_a_neighbour(case: Case) -> tuple[list[Step], Iterator[Step]]:
    """Return a case's steps, up to its handshake and from there on, beside a clean session."""
    every = steps(case)
    handshake = []
    for step in every:
        handshake.append(step)
        if step == Send(READY):
            break
    return [*handshake, Send(HALF), Sync()], chain(every, [Send(b"\n" + REST), Sync()])


@pytest.mark.parametrize("name", ["OSM-075", "OSM-076"])
def test_the_end_of_input_is_the_end(name: str) -> None:
    with process(EVERYTHING) as filter:
        play(filter.peer, steps(CASES[name]))
        assert filter.end() == 0
        assert "Traceback" not in filter.stderr
        assert filter.peer.lines() == []


@pytest.mark.parametrize("name", ["OSM-042", "OSM-049", "OSM-051"])
def test_a_handshake_that_cannot_be_served(name: str) -> None:
    with process(EVERYTHING) as filter:
        play(filter.peer, steps(CASES[name]))
        status = filter.end()
        assert filter.peer.output == b""
        assert len(filter.stderr.splitlines()) <= 1
        assert "Traceback" not in filter.stderr
        # An smtpd that goes before it is ready, and one that never was any, is no fault of ours.
        assert (status == 78) is (name == "OSM-042")


def rss(filter: Process) -> int:
    """Return the resident memory of a process; 0 where the system does not tell."""
    status = Path(f"/proc/{filter.popen.pid}/status")
    if not status.exists():
        return 0
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) << 10


def shortened(case: Case) -> Case:
    """Return a case with fewer sessions: a million would take half a minute."""
    parts = [
        {**part, "template": min(part["template"], SESSIONS)} if "template" in part else part
        for part in case.parts
    ]
    return replace(case, parts=parts)


@pytest.mark.parametrize("name", ["OSM-073", "OSM-074", "OSM-078", "OSM-079", "OSM-080"])
def test_big_inputs_cost_bounded_memory(name: str) -> None:
    case = shortened(CASES[name])
    with process(EVERYTHING, "--log-level", "error") as filter:
        handshake, rest = beside_a_neighbour(case)
        play(filter.peer, handshake)
        before = rss(filter)
        play(filter.peer, rest)
        assert filter.alive()
        assert filter.peer.faults() == []
        check_verdict(case, filter.peer)
        assert rss(filter) - before < MEMORY
        assert filter.end() == 0


CLIENT = Client("7641df9771b4ed00")  # the one of the cases


def check_verdict(case: Case, peer: Peer) -> None:
    """See that the neighbour's message went through, and what the case itself asks for."""
    lines = peer.lines()
    _, _, _, _, _, session, token, _ = NEIGHBOUR.question("commit").split(b"|")
    assert b"filter-result|%b|%b|proceed" % (session, token) in lines
    if case.id == "OSM-080":
        asked = sum(
            step.data.count(b"\nfilter|") for step in steps(case) if isinstance(step, Send)
        )
        assert sum(line.endswith(b"|proceed") for line in lines) > asked
    if case.id == "OSM-073":
        # The message is over the limit: it is refused at commit, after its dot.
        peer.send(CLIENT.commit())
        peer.settle()
        assert b"|reject|451 4.3.4 " in peer.lines()[-1]


def test_every_case_is_run() -> None:
    here = {"OSM-042", "OSM-049", "OSM-051", "OSM-073", "OSM-074", "OSM-075", "OSM-076"} | {
        *("OSM-078", "OSM-079", "OSM-080")
    }
    assert here == ELSEWHERE
    assert len(HERE) + len(here) == len(CASES) == 85
