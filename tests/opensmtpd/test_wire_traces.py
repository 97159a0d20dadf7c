"""The codec against recorded conversations: it reads every line, and writes only good ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mailgate_opensmtpd import wire
from tests.opensmtpd.recorded import TRACES, Answer, Question, Recording, Stream, read, traces

RECORDINGS = [read(path) for path in traces()]
GOOD = [recording for recording in RECORDINGS if not recording.faults()]


def decoded(data: bytes, piece: int) -> list[wire.Event]:
    decoder = wire.Decoder()
    events: list[wire.Event] = []
    for at in range(0, len(data), piece):
        events += decoder.receive_data(data[at : at + piece])
    return events


def requests(events: list[wire.Event]) -> list[wire.Request]:
    return [event for event in events if isinstance(event, wire.Request)]


def lines(events: list[wire.Event]) -> dict[tuple[bytes, bytes], list[bytes]]:
    """Return the message lines of each session and token."""
    found: dict[tuple[bytes, bytes], list[bytes]] = {}
    for event in events:
        if isinstance(event, wire.DataLines):
            found.setdefault((event.session, event.token), []).extend(event.lines)
    return found


def others(events: list[wire.Event]) -> list[wire.Event]:
    return [event for event in events if not isinstance(event, wire.DataLines)]


@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_every_question_and_line_is_read(recording: Recording) -> None:
    events = decoded(recording.given, 1 << 16)

    assert not [event for event in events if isinstance(event, wire.Ignored)]
    assert not [request for request in requests(events) if request.faulty]
    assert [(r.phase, r.session, r.token, r.parameter) for r in requests(events)] == [
        (q.phase, q.session, q.token, q.parameter) for q in recording.questions
    ]
    given: dict[tuple[bytes, bytes], list[bytes]] = {}
    for stream in recording.streams:
        of_token = given.setdefault((stream.session, stream.token), [])
        of_token += [*stream.given, b"."] if stream.ended else stream.given
    assert lines(events) == given


@pytest.mark.parametrize("piece", [1, 7, 4096])
@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_pieces_do_not_matter(recording: Recording, piece: int) -> None:
    whole, pieces = decoded(recording.given, 1 << 30), decoded(recording.given, piece)

    assert others(pieces) == others(whole)
    assert lines(pieces) == lines(whole)


def encode(request: wire.Request, answer: Answer) -> bytes:
    """Write a recorded answer; `ValueError` where our encoder cannot or will not."""
    match answer.decision:
        case "proceed" if not answer.parameter:
            return wire.proceed(request)
        case "reject" | "disconnect":
            return wire.refuse(
                request, answer.parameter, disconnect=answer.decision == "disconnect"
            )
        case "rewrite":
            return wire.rewrite(request, answer.parameter)
    raise ValueError(f"there is no {answer.decision}")  # junk and report among them


def line_of(question: Question, answer: Answer) -> bytes:
    first, second = question.session, question.token
    if question.version == b"0.4":
        first, second = second, first
    parameter = b"|" + answer.parameter if answer.parameter else b""
    return b"filter-result|%b|%b|" % (first, second) + answer.decision.encode() + parameter + b"\n"


def asked(recording: Recording) -> dict[Question, wire.Request]:
    events = requests(decoded(recording.given, 1 << 16))
    return dict(zip(recording.questions, events, strict=True))


@pytest.mark.parametrize("recording", GOOD, ids=str)
def test_answers_are_written_as_recorded(recording: Recording) -> None:
    request_of = asked(recording)
    for question, answer in recording.answers.items():
        if answer.decision == "junk":  # one protocol's own: mailgate has no such verdict
            with pytest.raises(ValueError, match="no junk"):
                encode(request_of[question], answer)
        else:
            assert encode(request_of[question], answer) == line_of(question, answer)


def written(version: wire.Version, stream: Stream) -> bytes:
    end = wire.data_end(version, stream.session, stream.token) if stream.closed else b""
    return wire.data_lines(version, stream.session, stream.token, stream.answered) + end


@pytest.mark.parametrize("recording", GOOD, ids=str)
def test_message_lines_are_written_as_recorded(recording: Recording) -> None:
    versions = {event.version for event in requests(decoded(recording.given, 1 << 16))}
    for version in versions:
        ours = b"".join(written(version, stream) for stream in recording.streams)
        # Lines of several sessions are interleaved in a recording: only the whole is the same.
        assert sorted(ours.split(b"\n")[:-1]) == sorted(
            line
            for side, line in recording.lines
            if side == "F" and line.startswith(b"filter-dataline|")
        )


# -- what must not be written ---------------------------------------------------------------------

# What is faulty about these is no line by itself but when it comes, or that it never does: the
# adapter is tested for it (test_traces.py).
FAULTS_OF_ORDER = {
    *("after-dot", "after-dot-late", "double-answer", "double-reject", "early-dot"),
    *("never-answers", "never-answers-dot", "no-phase-answer-mail", "unanswered-close"),
    *("unasked-answer", "dataline-in-protocol", "die", "die-zero", "close-stdio"),
    *("noready", "reg-twice", "register-late"),
}
# An answer with ids of no question is made by no function: ids are a request's own.
FAULTS_OF_IDS = {"bad-session", "bad-token", "dataline-bad-token", "nonhex", "token-first"}
BAD = [
    recording
    for recording in RECORDINGS
    if recording not in GOOD and recording.scenario not in FAULTS_OF_ORDER | FAULTS_OF_IDS
]


@pytest.mark.parametrize("recording", BAD, ids=str)
def test_a_faulty_answer_is_refused(recording: Recording) -> None:
    refused = list(recording.strays)  # lines that no function of ours makes
    request_of = asked(recording)
    for question, answer in recording.answers.items():
        try:
            assert encode(request_of[question], answer) == line_of(question, answer)
        except ValueError:
            refused.append(answer.parameter)
    for stream in recording.streams:
        try:
            written(next(iter(request_of.values())).version, stream)
        except ValueError:
            refused.append(stream.token)
    for line in recording.registered:
        kind, _, name = line.removeprefix(b"register|").decode().partition("|")
        try:
            wire.register(kind, *name.split("|"))
        except (ValueError, TypeError):
            refused += [line] if line != b"register|ready" else []
    assert refused


REQUEST = wire.Request((0, 7), "mail-from", b"7641df9771b4ed00", b"1ef1c203cc576e5d", b"a@b")
OLD = wire.Request((0, 6), "mail-from", b"7641df9771b4ed00", b"1ef1c203cc576e5d", b"a@b")
EHLO = wire.Request((0, 7), "ehlo", b"7641df9771b4ed00", b"1ef1c203cc576e5d", b"x")
RCPT = wire.Request((0, 7), "rcpt-to", b"7641df9771b4ed00", b"1ef1c203cc576e5d", b"b@c")
LINE = wire.Request((0, 7), "data-line", b"7641df9771b4ed00", b"1ef1c203cc576e5d", b"x")
DATA = wire.Request((0, 7), "data", b"7641df9771b4ed00", b"1ef1c203cc576e5d", b"")
COMMIT = wire.Request((0, 7), "commit", b"7641df9771b4ed00", b"1ef1c203cc576e5d", b"")
CONNECT = wire.Request((0, 7), "connect", b"7641df9771b4ed00", b"1ef1c203cc576e5d", b"x|y")


def dataline(line: bytes, version: wire.Version = (0, 7)) -> bytes:
    return wire.data_lines(version, REQUEST.session, REQUEST.token, [b"before", line])


# Every bad answer of traces/README.md, the ones without a recording among them.
REFUSED: dict[str, Callable[[], bytes]] = {
    "reject-no-code": lambda: wire.refuse(REQUEST, b"go away"),
    "reject-2xx": lambda: wire.refuse(REQUEST, b"250 fine"),
    "reject-short": lambda: wire.refuse(REQUEST, b"550"),
    "reject-empty-text": lambda: wire.refuse(REQUEST, b"550 "),
    "reject-dash": lambda: wire.refuse(REQUEST, b"550-first"),
    "reject-emptyparam": lambda: wire.refuse(REQUEST, b""),
    "reject-newline": lambda: wire.refuse(REQUEST, b"550 a\n550 b"),
    "reject-newline-at-the-end": lambda: wire.refuse(REQUEST, b"550 a\n"),
    "reject-inner-cr": lambda: wire.refuse(REQUEST, b"550 a\r250 ok"),
    "reject-nul": lambda: wire.refuse(REQUEST, b"550 a\0b"),
    "reject-long": lambda: wire.refuse(REQUEST, b"550 ".ljust(3000, b"x")),
    "disconnect-2xx": lambda: wire.refuse(REQUEST, b"221 bye", disconnect=True),
    "rewrite-emptyparam": lambda: wire.rewrite(REQUEST, b""),
    "rewrite-cr": lambda: wire.rewrite(REQUEST, b"<n@example.net>\r"),
    "rewrite-newline": lambda: wire.rewrite(REQUEST, b"<n@example.net>\n"),
    "rewrite-mail-from-nobrackets": lambda: wire.rewrite(REQUEST, b"new@example.net"),
    "rewrite-rcpt-two": lambda: wire.rewrite(RCPT, b"<one@example.net>,<two@example.net>"),
    "rewrite-rcpt-two-blank": lambda: wire.rewrite(RCPT, b"<one@example.net> <two@example.net>"),
    "rewrite-ehlo-invalid": lambda: wire.rewrite(EHLO, b"bad name!"),
    "rewrite-data": lambda: wire.rewrite(DATA, b"foo"),
    "rewrite-commit": lambda: wire.rewrite(COMMIT, b"foo"),
    "rewrite-connect": lambda: wire.rewrite(CONNECT, b"foo"),
    "rewrite-long": lambda: wire.rewrite(OLD, b"<%b@example.net>" % (b"x" * 2048)),
    "rewrite-very-long": lambda: wire.rewrite(REQUEST, b"<%b@example.net>" % (b"x" * 70_000)),
    "result-in-dataline": lambda: wire.proceed(LINE),
    "dataline-newline": lambda: dataline(b"X-A: 1\nX-B: 2"),
    "dataline-nul": lambda: dataline(b"a\0b"),
    "dataline-dot": lambda: dataline(b"."),
    "dataline-long": lambda: dataline(b"x" * 3008, (0, 6)),
    "dataline-too-long": lambda: dataline(b"x" * 65_536),
    "nonhex": lambda: wire.data_end((0, 7), b"a|b", REQUEST.token),
    "no-token": lambda: wire.data_end((0, 7), REQUEST.session, b""),
    "token-newline": lambda: wire.data_end((0, 7), REQUEST.session, b"ab\n"),
    "reg-unknown-filter": lambda: wire.register("filter", "smtp-in", "foo"),
    "reg-unknown-report": lambda: wire.register("report", "smtp-in", "foo"),
    "reg-filter-star": lambda: wire.register("filter", "smtp-in", "*"),
    "reg-filter-out": lambda: wire.register("filter", "smtp-out", "connect"),
    "reg-case": lambda: wire.register("FILTER", "smtp-in", "connect"),
}


@pytest.mark.parametrize("write", REFUSED.values(), ids=REFUSED.keys())
def test_bad_lines_are_refused(write: Callable[[], bytes]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        write()


def test_a_line_that_just_fits() -> None:
    prefix = len(b"filter-dataline|7641df9771b4ed00|1ef1c203cc576e5d|")
    assert dataline(b"x" * (65_535 - prefix))
    assert dataline(b"x" * (2047 - prefix), (0, 6))
    with pytest.raises(wire.LineTooLong):
        dataline(b"x" * (65_536 - prefix))
    with pytest.raises(wire.LineTooLong):
        dataline(b"x" * (2048 - prefix), (0, 6))


def test_every_folder_of_traces_is_read() -> None:
    folders = {path.relative_to(TRACES).parts[0] for path in traces()}
    assert folders == {"6.6.4p1", "6.8.0p2", "7.3.0p2", "7.8.0p1"}
    assert len(traces()) >= 247
