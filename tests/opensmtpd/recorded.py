"""Read recorded filter conversations (`traces/README.md`): what smtpd asked and was answered.

    for path in traces():
        recording = read(path)
        recording.given                       # the bytes smtpd wrote to the filter
        for question in recording.questions:
            recording.answers.get(question)   # what the recorded filter said, None if nothing

Everything is bytes: some lines are not UTF-8, some end in CR, and only LF ends a line.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tests.oracles import OpensmtpdOracle, before

TRACES = Path(__file__).parent / "traces"

Pair: TypeAlias = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Question:
    """One request of smtpd, no data-line; `number` counts from 1 within its session and token."""

    phase: str
    session: bytes
    token: bytes
    number: int
    parameter: bytes = field(compare=False)
    version: bytes = field(compare=False)

    def __str__(self) -> str:
        return f"{self.phase} {self.number} of {self.session.decode()}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the recorded filter answered: `proceed` and `junk` have an empty `parameter`."""

    decision: str
    parameter: bytes = b""


@dataclass(slots=True)
class Stream:
    """The data-lines of one message as they were on the wire: stuffed, without the final dot."""

    session: bytes
    token: bytes
    number: int
    given: list[bytes] = field(default_factory=list)
    answered: list[bytes] = field(default_factory=list)
    ended: bool = False  # smtpd sent its final dot
    closed: bool = False  # so did the filter
    commit: Question | None = None  # that was asked for it

    @property
    def message(self) -> bytes:
        """Return what smtpd gave as the message it stands for, every line ended by CRLF."""
        return unstuff(self.given)

    @property
    def result(self) -> bytes:
        """Return what the filter made of it, likewise."""
        return unstuff(self.answered)


@dataclass(slots=True)
class Recording:
    """One filter's side of a recorded scenario."""

    path: Path
    lines: Sequence[tuple[str, bytes]]  # ("S" or "F", the line without its LF), in recorded order
    registered: list[bytes] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    answers: dict[Question, Answer] = field(default_factory=dict)
    streams: list[Stream] = field(default_factory=list)
    strays: list[bytes] = field(
        default_factory=list
    )  # written by the filter, an answer to nothing

    def __str__(self) -> str:
        return str(self.path.relative_to(TRACES).with_suffix(""))

    @property
    def release(self) -> str:
        """Return the release of smtpd."""
        return self.path.relative_to(TRACES).parts[0]

    @property
    def scenario(self) -> str:
        """Return the name of the scenario, the same for all filters of a chain."""
        return re.sub(r"\.[0-9]+$", "", self.path.stem)

    @property
    def given(self) -> bytes:
        """Return all that smtpd wrote to the filter."""
        return b"".join(line + b"\n" for side, line in self.lines if side == "S")

    def delivered(self) -> list[bytes]:
        """Return the messages that came out in the end, as they lie in the maildir."""
        file = self.path.with_name(f"{self.scenario}.eml")
        if not file.exists():
            return []
        return file.read_bytes().split(b"\n-----NEXT-----\n")

    def faults(self) -> list[str]:
        """Return what was wrong with the answers: some were made to see what smtpd does then."""
        oracle = OpensmtpdOracle()
        for side, line in self.lines:
            take = oracle.asked if side == "S" else oracle.wrote
            take(line + b"\n")
        return oracle.ended()


def traces() -> list[Path]:
    """Return every trace file, in a stable order."""
    return sorted(TRACES.rglob("*.trace"))


def read(path: Path) -> Recording:
    """Read one trace; `ValueError` for a line that neither side can have said."""
    return _sorted(path, [_side(raw) for raw in _lines(path.read_bytes())])


def conversation(path: Path, given: bytes, output: bytes) -> Recording:
    """Return what another filter answered, which was given the lines of a recording."""
    asked = [("S", line) for line in _lines(given)]
    return _sorted(path, asked + [("F", line) for line in _lines(output)])


def _lines(data: bytes) -> list[bytes]:
    return data.removesuffix(b"\n").split(b"\n") if data else []


def _sorted(path: Path, lines: Sequence[tuple[str, bytes]]) -> Recording:
    reader = _Reader(Recording(path, lines))
    for side, line in lines:
        if side == "S":
            reader.said(line)
        else:
            reader.answered(line)
    return reader.recording


def unstuff(lines: Sequence[bytes]) -> bytes:
    """Return the message that these data-lines stand for."""
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines)


def _side(raw: bytes) -> tuple[str, bytes]:
    side, blank, line = raw[:1], raw[1:2], raw[2:]
    if side not in (b"S", b"F") or blank != b" ":
        raise ValueError(f"neither S nor F: {raw[:80]!r}")
    return side.decode(), line


class _Reader:
    """Sort a recording's lines: an answer goes to the first open question with the same ids."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._open: dict[Pair, deque[Question]] = {}
        self._reading: dict[Pair, deque[Stream]] = {}
        self._asked: Counter[Pair] = Counter()
        self._messages: Counter[Pair] = Counter()

    def said(self, line: bytes) -> None:
        fields = line.split(b"|", 7)
        if fields[0] != b"filter" or len(fields) < 8:
            return
        _, version, _, _, phase, session, token, parameter = fields
        pair = (token, session) if before(version, 5) else (session, token)
        if phase == b"data-line":
            self._given(pair, session, token, parameter)
            return
        self._asked[pair] += 1
        number = self._asked[pair]
        question = Question(phase.decode(), session, token, number, parameter, version)
        self.recording.questions.append(question)
        self._open.setdefault(pair, deque()).append(question)
        if phase == b"commit":
            self._commit(question)

    def _commit(self, question: Question) -> None:
        for stream in reversed(self.recording.streams):
            if stream.session == question.session:
                stream.commit = stream.commit or question
                return

    def _given(self, pair: Pair, session: bytes, token: bytes, line: bytes) -> None:
        streams = self._reading.setdefault(pair, deque())
        if not streams or streams[-1].ended:
            self._messages[pair] += 1
            streams.append(Stream(session, token, self._messages[pair]))
            self.recording.streams.append(streams[-1])
        if line == b".":
            streams[-1].ended = True
        else:
            streams[-1].given.append(line)

    def answered(self, line: bytes) -> None:
        fields = line.split(b"|", 4)
        pair = (fields[1], fields[2]) if len(fields) > 3 else (b"", b"")
        if fields[0] == b"register":
            self.recording.registered.append(line)
        elif fields[0] == b"filter-result" and self._open.get(pair):
            question = self._open[pair].popleft()
            self.recording.answers[question] = Answer(fields[3].decode("latin-1"), *fields[4:])
        elif fields[0] == b"filter-dataline" and self._reading.get(pair):
            self._taken(self._reading[pair], line.split(b"|", 3)[3])
        else:
            self.recording.strays.append(line)

    def _taken(self, streams: deque[Stream], line: bytes) -> None:
        if line != b".":
            streams[0].answered.append(line)
            return
        streams.popleft().closed = True
