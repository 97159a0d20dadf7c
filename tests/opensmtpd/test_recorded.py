"""The reader of recorded conversations finds in a trace what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.opensmtpd.recorded import TRACES, Answer, Recording, read, traces

SESSION = b"866f71b3aa3c8b4d"


def trace(name: str) -> Recording:
    return read(TRACES / f"{name}.trace")


@pytest.mark.parametrize("path", traces(), ids=lambda path: str(path.relative_to(TRACES)))
def test_every_trace_is_read_whole(path: Path) -> None:
    recording = read(path)

    said = [line for side, line in recording.lines if side == "F"]
    understood = (
        len(recording.registered)
        + len(recording.answers)
        + sum(len(stream.answered) + stream.closed for stream in recording.streams)
        + len(recording.strays)
    )
    assert understood == len(said)
    assert recording.given.count(b"\n") == len(recording.lines) - len(said)


def test_questions_and_answers() -> None:
    recording = trace("6.8.0p2/basic")

    asked = [(question.phase, question.parameter) for question in recording.questions]
    assert asked == [
        ("connect", b"localhost|127.0.0.1"),
        ("ehlo", b"client.example.org"),
        ("mail-from", b"a@example.org"),
        ("rcpt-to", b"b@example.test"),
        ("data", b""),
        ("commit", b""),
        ("quit", b""),
    ]
    assert {question.session for question in recording.questions} == {SESSION}
    assert set(recording.answers.values()) == {Answer("proceed")}
    assert recording.registered[-1] == b"register|ready"
    assert recording.faults() == []


def test_a_message() -> None:
    recording = trace("6.8.0p2/basic")
    (stream,) = recording.streams
    (delivered,) = recording.delivered()

    assert (stream.session, stream.number) == (SESSION, 1)
    assert stream.given == stream.answered
    assert stream.ended
    assert stream.closed
    assert stream.message.endswith(b"Subject: test\r\n\r\nhello\r\n")
    assert delivered.startswith(b"Return-Path: <a@example.org>\nDelivered-To: b@example.test\n")


def test_dots_are_taken_off() -> None:
    (stream,) = trace("6.8.0p2/dot-stuffing").streams

    assert any(line.startswith(b"..") for line in stream.given)
    assert b"\r\n...two\r\n" not in stream.message
    assert b"\r\n..two\r\n" in stream.message


def test_the_order_of_ids_before_protocol_0_5() -> None:
    recording = trace("6.6.4p1/edit-message")

    first, second = recording.streams
    assert (first.session, first.token) == (b"49af39a531a579dd", b"f9b41ec3bd2bfc07")
    assert (first.number, second.number) == (1, 2)
    assert first.result.startswith(b"X-Filtered: yes\r\nReceived: from client.example.org ")
    assert first.result.endswith(b"\r\nThe body was replaced.\r\n.leading dot\r\n")
    assert [stream.commit and stream.commit.number for stream in recording.streams] == [1, 2]
    assert len(recording.answers) == len(recording.questions)
    assert len(recording.delivered()) == 2


def test_the_same_question_again_has_the_next_number() -> None:
    recording = trace("6.8.0p2/reject-451-rcpt-to")

    answers = [
        recording.answers[asked] for asked in recording.questions if asked.phase == "rcpt-to"
    ]
    numbers = [asked.number for asked in recording.questions if asked.phase == "rcpt-to"]
    assert numbers == [1, 2, 3]
    assert sorted(answers, key=str) == [
        Answer("proceed"),
        Answer("reject", b"451 4.7.1 greylisted"),
        Answer("reject", b"550 5.1.1 bad"),
    ]


def test_the_filters_of_a_chain_share_what_was_delivered() -> None:
    first, second = trace("6.8.0p2/chain-two.1"), trace("6.8.0p2/chain-two.2")

    assert first.scenario == second.scenario == "chain-two"
    assert first.delivered() == second.delivered()
    assert first.streams[0].answered == second.streams[0].given


def test_a_message_that_breaks_off() -> None:
    (stream,) = trace("6.8.0p2/abort-mid-data").streams

    assert not stream.ended
    assert not stream.closed
    assert stream.commit is None


def test_a_question_without_an_answer() -> None:
    recording = trace("6.8.0p2/never-answers")

    (unanswered,) = set(recording.questions) - recording.answers.keys()
    assert unanswered.phase == "mail-from"


def test_an_answer_to_nothing_is_kept_apart() -> None:
    recording = trace("6.8.0p2/malformed/stray-print")

    assert recording.strays == [b"scanning a@example.org"]
    assert recording.release == "6.8.0p2"


def test_a_line_of_neither_side(tmp_path: Path) -> None:
    file = tmp_path / "x.trace"
    file.write_bytes(b"S config|ready\nhello\n")

    with pytest.raises(ValueError, match="neither S nor F"):
        read(file)
