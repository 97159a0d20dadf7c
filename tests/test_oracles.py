"""The oracles catch what they are for: one that misses a known fault lets every test pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.opensmtpd.recorded import Recording, read, traces
from tests.oracles import LONGEST_LINE, OpensmtpdOracle, check_opensmtpd_stdout

READY = b"register|ready\n"
CONFIG = b"config|smtpd-version|7.8.0\nconfig|subsystem|smtp-in\nconfig|ready\n"

# Recordings of a faulty filter, and what the oracle must say of it. A fault that no look at the
# output alone can find has its reason beside it.
RECORDED_FAULTS = {
    "after-dot": "a line outside a message",
    "early-dot": "a dot before smtpd's own",
    "long-lines": "octets with its LF",
    "never-answers": "without an answer: mail-from",
    "never-answers-dot": "1 final dots without an answer",
    "own-report": "not in the grammar",
    "reject-2xx": "not in the grammar",
    "reject-dash": "not in the grammar",
    "reject-no-code": "not in the grammar",
    "reject-short": "not in the grammar",
    "rewrite-connect": "cannot use this rewrite at connect",
    "rewrite-data": "cannot use this rewrite at data",
    "rewrite-ehlo-invalid": "cannot use this rewrite at ehlo",
    "rewrite-mail-from-nobrackets": "cannot use this rewrite at mail-from",
    "rewrite-rcpt-two": "cannot use this rewrite at rcpt-to",
    "unanswered-close": "without an answer: mail-from",
    "verb-report": "not in the grammar",
}
MALFORMED_FAULTS = {
    "after-dot-late": "a line outside a message",
    "bad-session": "smtpd never used these ids",
    "bad-token": "smtpd never used these ids",
    "close-stdio": None,  # it dies with every question answered
    "dataline-bad-token": "smtpd never used these ids",
    "dataline-cr": None,  # a line that smtpd gave may end in CR, and then so must the answer
    "dataline-in-protocol": "a line outside a message",
    "dataline-long": "octets with its LF",
    "dataline-newline": "not in the grammar",
    "dataline-nul": "not in the grammar",
    "die": "without an answer: rcpt-to",
    "die-zero": "without an answer: rcpt-to",
    "double-answer": "no such question is open",
    "double-reject": "no such question is open",
    "empty-line": "not in the grammar",
    "garbage": "not in the grammar",
    "junk-commit": "junk at commit",
    "no-phase-answer-mail": "without an answer: mail-from",
    "nonhex": "smtpd never used these ids",
    "noready": "never register|ready",
    "proceed-cr": "not in the grammar",
    "proceed-param": "not in the grammar",
    "reg-case": "not in the grammar",
    "reg-filter-out": "smtpd knows no such phase",
    "reg-filter-star": "smtpd knows no such phase",
    "reg-report-out": None,  # accepted by every smtpd that names its subsystems
    "reg-twice": "registered twice",
    "reg-unknown-filter": "smtpd knows no such phase",
    "reg-unknown-report": "smtpd knows no such event",
    "register-garbage-late": "not in the grammar",
    "register-late": "after register|ready",
    "reject-emptyparam": "not in the grammar",
    "reject-inner-cr": "not in the grammar",
    "reject-long": "octets with its LF",
    "reject-newline": "not in the grammar",
    "reject-noparam": "not in the grammar",
    "reject-nul": "not in the grammar",
    "report-bad": "not in the grammar",
    "result-in-dataline": "no such question is open",
    "rewrite-cr": "not in the grammar",
    "rewrite-emptyparam": "not in the grammar",
    "short": "not in the grammar",
    "stray-print": "not in the grammar",
    "token-first": "smtpd never used these ids",
    "unasked-answer": "no such question is open",
    "unknown-decision": "not in the grammar",
    "unknown-decision-noparam": "not in the grammar",
    "upper-hex": "not in the grammar",
}


def known_fault(recording: Recording) -> str | None:
    if recording.path.parent.name == "malformed":
        return MALFORMED_FAULTS[recording.scenario]
    return RECORDED_FAULTS.get(recording.scenario)


@pytest.mark.parametrize("recording", [read(path) for path in traces()], ids=str)
def test_recorded_filters(recording: Recording) -> None:
    expected, faults = known_fault(recording), recording.faults()

    if expected is None:
        assert faults == []
    else:
        assert any(expected in fault for fault in faults), faults


# -- OpenSMTPD, by hand --------------------------------------------------------------------------


def question(phase: str, parameter: str = "", session: str = "aa", version: str = "0.7") -> bytes:
    return f"filter|{version}|1.0|smtp-in|{phase}|{session}|{phase[0]}1|{parameter}\n".encode()


def gone(session: str = "aa") -> bytes:
    return f"report|0.7|1.0|smtp-in|link-disconnect|{session}\n".encode()


def follow(*turns: tuple[bytes, bytes]) -> Sequence[str]:
    """Return the faults of a filter that wrote the second of each turn when given the first."""
    oracle = OpensmtpdOracle()
    oracle.asked(CONFIG)
    oracle.wrote(READY)
    for given, written in turns:
        oracle.asked(given)
        oracle.wrote(written)
    return oracle.ended()


GOOD = {
    "proceed": (question("noop"), b"filter-result|aa|n1|proceed\n"),
    "reject": (question("helo", "x"), b"filter-result|aa|h1|reject|550 5.7.1 no | really\n"),
    "reject in UTF-8": (question("helo", "x"), "filter-result|aa|h1|reject|550 café\n".encode()),
    "disconnect": (question("quit"), b"filter-result|aa|q1|disconnect|421 4.7.1 bye\n"),
    "rewrite the name": (question("ehlo", "x"), b"filter-result|aa|e1|rewrite|mx.example\n"),
    "rewrite a sender": (
        question("mail-from", "x"),
        b"filter-result|aa|m1|rewrite|<a@b> SIZE=1\n",
    ),
    "rewrite to nobody": (question("mail-from", "x"), b"filter-result|aa|m1|rewrite|<>\n"),
    "a quoted local part": (
        question("rcpt-to", "x"),
        rb'filter-result|aa|r1|rewrite|<"a > \" b"@c>' + b"\n",
    ),
    "before 0.5 the token is first": (
        question("noop", version="0.4"),
        b"filter-result|n1|aa|proceed\n",
    ),
    "a version of the future": (
        question("noop", version="1.0"),
        b"filter-result|aa|n1|proceed\n",
    ),
    "lines that change and move": (
        question("data-line", "a") + question("data-line", "."),
        b"filter-dataline|aa|d1|x\nfilter-dataline|aa|d1|y\rz|\r\nfilter-dataline|aa|d1|.\n",
    ),
    "no answer to one who left": (question("rcpt-to", "x") + gone(), b""),
    "a late answer to one who left": (
        question("rcpt-to", "x") + gone(),
        b"filter-result|aa|r1|proceed\n",
    ),
    "a message that broke off": (
        question("data-line", "x") + gone(),
        b"filter-dataline|aa|d1|x\n",
    ),
    "a message that broke off, unanswered": (question("data-line", "x"), b""),
    "ids too long to be true": (question("noop", session="1" * 10_000), b""),
    "the longest line": (
        question("data-line", "x"),
        b"filter-dataline|aa|d1|".ljust(LONGEST_LINE - 1, b"x") + b"\n",
    ),
}

BAD = {
    "no answer": ((question("noop"), b""), "without an answer: noop"),
    "the other order of ids": (
        (question("noop"), b"filter-result|n1|aa|proceed\n"),
        "never used these ids",
    ),
    "token last before 0.5": (
        (question("noop", version="0.4"), b"filter-result|aa|n1|proceed\n"),
        "never used these ids",
    ),
    "two answers": (
        (question("noop"), b"filter-result|aa|n1|proceed\n" * 2),
        "no such question is open",
    ),
    "an answer after the late one": (
        (question("noop") + gone(), b"filter-result|aa|n1|proceed\n" * 2),
        "never used these ids",
    ),
    "half a line": ((question("noop"), b"filter-result|aa|n1|proceed"), "in the middle of a line"),
    "ESC in a reply": ((question("noop"), b"filter-result|aa|n1|reject|550 \x1b[2J\n"), "grammar"),
    "a code of another class": (
        (question("noop"), b"filter-result|aa|n1|reject|250 ok\n"),
        "grammar",
    ),
    "a reply of several lines": (
        (question("noop"), b"filter-result|aa|n1|reject|550-a\n"),
        "grammar",
    ),
    "rewrite at commit": (
        (question("commit"), b"filter-result|aa|c1|rewrite|x\n"),
        "cannot use this rewrite at commit",
    ),
    "a bare address": (
        (question("rcpt-to", "x"), b"filter-result|aa|r1|rewrite|a@b\n"),
        "cannot use this rewrite at rcpt-to",
    ),
    "an address that breaks out": (
        (question("mail-from", "x"), b"filter-result|aa|m1|rewrite|<a> <b>@c>\n"),
        "cannot use this rewrite at mail-from",
    ),
    "two names": (
        (question("helo", "x"), b"filter-result|aa|h1|rewrite|a b\n"),
        "cannot use this rewrite at helo",
    ),
    "a dot too many": (
        (question("data-line", "."), b"filter-dataline|aa|d1|.\n" * 2),
        "a dot before smtpd's own",
    ),
    "a line after the dot": (
        (question("data-line", "."), b"filter-dataline|aa|d1|.\nfilter-dataline|aa|d1|x\n"),
        "a line outside a message",
    ),
    "the dot kept": ((question("data-line", "."), b""), "1 final dots without an answer"),
    "NUL in a line": ((question("data-line", "x"), b"filter-dataline|aa|d1|a\0b\n"), "grammar"),
    "a decision for a data-line": (
        (question("data-line", "x"), b"filter-result|aa|d1|proceed\n"),
        "no such question is open",
    ),
    "an octet too many": (
        (question("data-line", "x"), b"filter-dataline|aa|d1|".ljust(LONGEST_LINE, b"x") + b"\n"),
        "octets with its LF",
    ),
    "what 6.8 would cut": (
        (
            question("data-line", "x", version="0.6"),
            b"filter-dataline|aa|d1|".ljust(2048, b"x") + b"\n",
        ),
        "octets with its LF",
    ),
    "a print()": ((b"", b"hello\n"), "not in the grammar"),
    "an empty line": ((b"", b"\n"), "not in the grammar"),
    "CRLF": ((question("noop"), b"filter-result|aa|n1|proceed\r\n"), "not in the grammar"),
}


@pytest.mark.parametrize("turn", GOOD.values(), ids=GOOD.keys())
def test_what_smtpd_takes(turn: tuple[bytes, bytes]) -> None:
    assert follow(turn) == []


@pytest.mark.parametrize(("turn", "fault"), BAD.values(), ids=BAD.keys())
def test_what_harms_smtpd(turn: tuple[bytes, bytes], fault: str) -> None:
    (found,) = follow(turn)[:1]
    assert fault in found


def test_an_answer_before_its_question() -> None:
    noop = question("noop")
    assert follow((b"", b"filter-result|aa|n1|proceed\n"), (noop, b"")) != []


def test_a_message_after_a_message() -> None:
    given = question("data-line", "a") + question("data-line", ".")
    written = b"filter-dataline|aa|d1|a\nfilter-dataline|aa|d1|.\n"
    assert follow((given, written), (given, written)) == []
    assert "outside a message" in follow((given, written + written), (given, b""))[0]


def test_answers_count() -> None:
    oracle = OpensmtpdOracle()
    oracle.wrote(READY)
    oracle.asked(question("noop") + question("data-line", "a") + question("data-line", "."))
    oracle.wrote(
        b"filter-dataline|aa|d1|a\nfilter-dataline|aa|d1|.\nfilter-result|aa|n1|proceed\n"
    )
    assert oracle.answers == 2
    assert oracle.owed == 0
    assert oracle.faults == []


def test_what_is_owed() -> None:
    oracle = OpensmtpdOracle()
    oracle.wrote(READY)
    oracle.asked(question("noop") + question("noop", session="bb") + question("data-line", "."))
    assert oracle.owed == 3
    oracle.wrote(b"filter-result|bb|n1|proceed\n")
    oracle.asked(gone("bb"))
    assert oracle.owed == 2
    oracle.asked(gone())
    assert oracle.owed == 0
    oracle.asked(question("noop"))
    assert oracle.owed == 2  # the same session again: what it asked before is still open


def test_lines_come_in_pieces() -> None:
    oracle = OpensmtpdOracle()
    for octet in READY:
        oracle.wrote(bytes([octet]))
    for octet in question("noop"):
        oracle.asked(bytes([octet]))
    for octet in b"filter-result|aa|n1|proceed\n":
        oracle.wrote(bytes([octet]))
    assert oracle.ended() == []


REGISTERED = {
    b"register|report|smtp-in|*": None,
    b"register|report|smtp-out|tx-begin": None,
    b"register|filter|smtp-in|data-line": None,
    b"register|filter|smtp-in|*": "no such phase",
    b"register|filter|smtp-out|connect": "no such phase",
    b"register|filter|smtp-in|link-connect": "no such phase",
    b"register|report|smtp-in|connect": "no such event",
    b"register|report|lmtp|tx-begin": "grammar",
    b"REGISTER|report|smtp-in|tx-begin": "grammar",
}


@pytest.mark.parametrize(("line", "fault"), REGISTERED.items())
def test_registering(line: bytes, fault: str | None) -> None:
    faults = check_opensmtpd_stdout(line + b"\n" + READY, CONFIG)
    if fault is None:
        assert faults == []
    else:
        assert fault in faults[0]


def test_registering_twice_late_or_never() -> None:
    line = b"register|filter|smtp-in|noop\n"
    assert "twice" in check_opensmtpd_stdout(line + line + READY, CONFIG)[0]
    assert "after register|ready" in check_opensmtpd_stdout(READY + line, CONFIG)[0]
    assert "never register|ready" in check_opensmtpd_stdout(line, CONFIG)[0]
    assert check_opensmtpd_stdout(line, b"config|smtpd-version|7.8.0\n") == []


def test_answering_before_ready() -> None:
    written = b"filter-result|aa|n1|proceed\n" + READY
    assert "before register|ready" in check_opensmtpd_stdout(written, question("noop"))[0]


def test_outgoing_reports_of_an_smtpd_that_has_none() -> None:
    line = b"register|report|smtp-out|tx-begin\n"
    config = b"config|smtpd-version|6.6.4p1\nconfig|ready\n"
    assert "no smtp-out" in check_opensmtpd_stdout(line + READY, config)[0]
