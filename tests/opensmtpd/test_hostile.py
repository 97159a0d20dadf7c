"""Hostile lines on the filter's input (tests/hostile/opensmtpd.json), beside a clean session."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.hostile.cases import Case, Send, Sync, expand, fits, load, steps
from tests.opensmtpd import everything
from tests.opensmtpd.lines import MAIL, Client
from tests.opensmtpd.running import Outcome, Pause, converse, pieces

CASES = {case.id: case for case in load("opensmtpd")}
SMALL = 1 << 16

# These end a process, fill its socket or its memory: test_hostile_process.py.
ELSEWHERE = {name for name, case in CASES.items() if case.verdict == "exit"} | {
    *("OSM-073", "OSM-074", "OSM-078", "OSM-079", "OSM-080")
}

NEIGHBOUR = Client("aaaabbbbccccdddd")
HALF = NEIGHBOUR.greeted() + NEIGHBOUR.mail() + NEIGHBOUR.began() + NEIGHBOUR.rcpt()
REST = NEIGHBOUR.data() + NEIGHBOUR.content() + NEIGHBOUR.commit()
READY = b"config|ready\n"


# Cases that are answered otherwise than their file says: the verdict we give, and why.
DEVIATIONS = {
    # A recipient of no message: smtpd cannot ask that, and no policy has seen a sender. It is
    # refused for now, as a question of an unknown session is (OSM-055).
    "OSM-030": "answer-failure",
}


def beside_a_neighbour(case: Case) -> bytes:
    """Return the input of a case within the session of a client that has nothing to do with it."""
    before, ready, after = expand(case).partition(READY)
    assert ready
    return before + ready + HALF + after + b"\n" + REST


def as_described(case: Case) -> Iterator[bytes | Pause]:
    for step in steps(case):
        if isinstance(step, Send):
            yield step.data
        elif isinstance(step, Sync):
            yield Pause.SETTLED


def run(case: Case, chunks: Iterable[bytes | Pause]) -> Outcome:
    outcome = converse(chunks, everything.policy)
    assert outcome.errors == []
    assert outcome.faults == []
    return outcome


def lines_of(outcome: Outcome, *, neighbour: bool = False) -> list[bytes]:
    """Return the answers to the neighbour, or those to everyone else."""
    theirs = f"|{NEIGHBOUR.session}|".encode()
    return [line for line in outcome.lines() if (theirs in line) is neighbour]


def check_neighbour(outcome: Outcome) -> None:
    lines = lines_of(outcome, neighbour=True)
    content = [line.split(b"|", 3)[3] for line in lines if line.startswith(b"filter-dataline|")]
    assert content == [*MAIL.removesuffix(b"\r\n").split(b"\r\n"), b"."]
    results = [line.split(b"|", 3)[3] for line in lines if line.startswith(b"filter-result|")]
    assert results == [b"proceed"] * 6  # connect, ehlo, mail-from, rcpt-to, data, commit


# -- what each verdict asks for -------------------------------------------------------------------

FAILURE = re.compile(rb"(?:reject|disconnect)\|4[0-9][0-9] .+")


def decisions(case: Case, outcome: Outcome) -> list[bytes]:
    """Return how the case's own questions were answered, without the one that ends it."""
    results = [
        line.split(b"|", 3)[3] for line in lines_of(outcome) if line.startswith(b"filter-result|")
    ]
    if {"use": "after"} in case.parts:
        assert results.pop() == b"proceed"
    return results


def check_ok(case: Case, outcome: Outcome) -> None:
    if case.id == "OSM-059":  # the client is gone: an answer may come once, whatever it says
        assert len(decisions(case, outcome)) <= 1
    else:
        assert set(decisions(case, outcome)) <= {b"proceed"}
    check_content(case, outcome)


def check_ignored(case: Case, outcome: Outcome) -> None:
    assert decisions(case, outcome) == []
    check_content(case, outcome)


def check_failed(case: Case, outcome: Outcome) -> None:
    (decision,) = decisions(case, outcome)
    assert FAILURE.fullmatch(decision)


def check_proceeded(case: Case, outcome: Outcome) -> None:
    assert decisions(case, outcome) == [b"proceed"]


VERDICTS: dict[str, Callable[[Case, Outcome], None]] = {
    "ok": check_ok,
    "ignore": check_ignored,
    "answer-failure": check_failed,
    "answer-proceed": check_proceeded,
    "bounded": lambda case, outcome: None,
}


def check(case: Case, outcome: Outcome) -> None:
    VERDICTS[DEVIATIONS.get(case.id, case.verdict)](case, outcome)


def check_content(case: Case, outcome: Outcome) -> None:
    """See that message lines come back unchanged, in their own session, up to the dot."""
    for pair, given in streams(expand(case), b"filter|", 5).items():
        back = streams(outcome.output, b"filter-dataline|", 1).get(pair, [])
        if b"." in given:
            assert back == given[: given.index(b".") + 1]
        else:
            assert back in ([], given)  # held for a dot that does not come


def streams(data: bytes, start: bytes, ids: int) -> dict[tuple[bytes, bytes], list[bytes]]:
    """Return the message lines by session and token, which are the fields at `ids`."""
    found: dict[tuple[bytes, bytes], list[bytes]] = {}
    for line in data.split(b"\n"):
        fields = line.split(b"|", ids + 2)
        if not line.startswith(start) or len(fields) < ids + 3:
            continue
        if start == b"filter|" and fields[4] != b"data-line":
            continue
        found.setdefault((fields[ids], fields[ids + 1]), []).append(fields[ids + 2])
    return found


# -- the cases, cut in three ways -----------------------------------------------------------------

HERE = [case for name, case in CASES.items() if name not in ELSEWHERE]


@pytest.mark.parametrize("case", HERE, ids=str)
def test_all_at_once(case: Case) -> None:
    outcome = run(case, [beside_a_neighbour(case)])

    check_neighbour(outcome)
    check(case, outcome)


@pytest.mark.parametrize("case", HERE, ids=str)
def test_as_described(case: Case) -> None:
    check(case, run(case, as_described(case)))


@pytest.mark.parametrize("case", [case for case in HERE if fits(case, SMALL)], ids=str)
def test_byte_by_byte(case: Case) -> None:
    data = beside_a_neighbour(case)
    outcome = run(case, pieces(data, 1))

    check_neighbour(outcome)
    check(case, outcome)
    assert sorted(outcome.lines()) == sorted(run(case, [data]).lines())
