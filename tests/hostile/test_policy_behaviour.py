"""Careless and broken policies of policy-output.json, in a real process that smtpd would start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.hostile.cases import Case, load
from tests.opensmtpd.lines import Client, handshake
from tests.opensmtpd.peer import Process, process

CASES = {case.id: case for case in load("policy-output") if case.policy_source is not None}

NOT_RUN = {
    "POL-129": "os._exit() ends the process: policies are not kept apart from it yet",
    "POL-130": "SIGKILL ends the process: policies are not kept apart from it yet",
    "POL-131": "a crash ends the process: policies are not kept apart from it yet",
    "POL-134": "C code that keeps the interpreter stalls the process: policies share it",
}

# Policies whose source says something that our API has no word for.
SOURCES = {
    # Closed once: what is closed twice is the policy's own error.
    "POL-124": (
        "import contextlib, os\n"
        "def on_mail(ctx):\n  with contextlib.suppress(OSError): os.close(1)"
    ),
    # The whole message is `raw`.
    "POL-137": "L = []\ndef on_eom(ctx): L.append(ctx.raw)",
    # signal.signal() works in the main thread only, and a `def` handler runs in another.
    "POL-138": (
        "import signal\nasync def on_mail(ctx): signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    ),
    # A whole minute would test patience only.
    "POL-148": "import time; time.sleep(1)\ndef on_mail(ctx): return None",
}

# §4 of the API stands over the case where both speak of it.
VERDICTS = {
    # `message.recipients` is a tuple: clear() is an error of the policy, and the envelope stays.
    "POL-142": "answer-failure",
}

STAGES = {"on_mail": "mail", "on_eom": "message"}
HOOK = re.compile(r"^(?=(?:async )?def (on_\w+)\()", re.MULTILINE)


def module(case: Case) -> str:
    """Return the policy module of a case, its hooks registered with our decorators."""
    source = SOURCES.get(case.id, case.policy_source or "")
    if case.verdict == "exit":
        return source + "\n"
    decorated = HOOK.sub(lambda found: f"@policy.{STAGES[found[1]]}\n", source)
    if decorated == source:
        decorated += "\n@policy.mail\ndef on_mail(ctx): return None"
    return f"from mailgate import Policy\n\npolicy = Policy()\n{decorated}\n"


def parameters(*verdicts: str) -> list[ParameterSet]:
    """Return the cases of these verdicts; one that cannot be run is skipped with its reason."""
    return [
        pytest.param(
            case,
            id=name,
            marks=[pytest.mark.skip(reason=NOT_RUN[name])] if name in NOT_RUN else [],
        )
        for name, case in CASES.items()
        if VERDICTS.get(name, case.verdict) in verdicts
    ]


@contextmanager
def serving(case: Case, folder: Path) -> Iterator[Process]:
    """Start a filter with the policy of a case, with deadlines short enough for a test."""
    policy, config = folder / "hostile.py", folder / "mailgate.toml"
    policy.write_text(module(case))
    config.write_text("[defaults]\ntimeout = 1\nmessage_timeout = 1\n")
    with process(policy, "-c", str(config)) as filter:
        filter.peer.send(handshake())
        yield filter


def answers(filter: Process, client: Client, phase: str) -> list[bytes]:
    """Return how questions of a client were answered."""
    _, _, _, _, _, session, token, _ = client.question(phase).split(b"|")
    start = b"filter-result|%b|%b|" % (session, token)
    return [line.removeprefix(start) for line in filter.peer.lines() if line.startswith(start)]


def serve(filter: Process, *sessions: bytes) -> None:
    """Have clients come at the same time, and see that each question is answered."""
    filter.peer.until_ready()
    filter.peer.send(b"".join(sessions))
    filter.peer.settle()
    assert filter.peer.faults() == []
    assert filter.alive()


def ends_well(filter: Process) -> None:
    """End the filter as smtpd does, and look at what it said meanwhile."""
    assert filter.end() == 0
    assert filter.peer.faults() == []
    assert "never retrieved" not in filter.stderr
    assert len(filter.stderr) < 1 << 18  # however long a policy's words are


FIRST, SECOND = Client("7641df9771b4ed00"), Client("7641df9771b4ed01")


@pytest.mark.parametrize("case", parameters("ok", "bounded"))
def test_policies_that_do_no_harm(case: Case, tmp_path: Path) -> None:
    with serving(case, tmp_path) as filter:
        serve(filter, FIRST.whole(), SECOND.whole())
        for client in (FIRST, SECOND):
            assert answers(filter, client, "mail-from") == [b"proceed"]
            assert answers(filter, client, "commit") == [b"proceed"]
        ends_well(filter)


@pytest.mark.parametrize("case", parameters("answer-failure"))
def test_policies_that_fail(case: Case, tmp_path: Path) -> None:
    at_end = "on_eom" in (case.policy_source or "")
    with serving(case, tmp_path) as filter:
        for client in (FIRST, SECOND):
            filter.peer.send(client.whole() if at_end else client.greeted() + client.mail())
        serve(filter)
        for client in (FIRST, SECOND):
            (answer,) = answers(filter, client, "commit" if at_end else "mail-from")
            assert answer.startswith(b"reject|451 4.3.0 ")
        ends_well(filter)


@pytest.mark.parametrize("case", parameters("ignore"))
def test_policies_that_answer_when_nobody_listens(case: Case, tmp_path: Path) -> None:
    with serving(case, tmp_path) as filter:
        gone = FIRST.greeted() + FIRST.mail() + FIRST.gone()
        serve(filter, gone, SECOND.greeted() + SECOND.mail())
        assert len(answers(filter, FIRST, "mail-from")) <= 1
        ends_well(filter)


@pytest.mark.parametrize("case", parameters("exit"))
def test_modules_that_cannot_serve(case: Case, tmp_path: Path) -> None:
    with serving(case, tmp_path) as filter:
        status = filter.end()
        assert status == 78
        assert filter.peer.output == b""
        (line,) = filter.stderr.splitlines()
        assert "hostile.py" in line


def test_every_behaviour_has_a_test() -> None:
    verdicts = {VERDICTS.get(name, case.verdict) for name, case in CASES.items()}
    assert verdicts == {"ok", "bounded", "answer-failure", "ignore", "exit"}
    assert NOT_RUN.keys() <= CASES.keys()
