"""Replay every recorded conversation through the adapter, with a policy that decides as recorded.

smtpd's frames and the octets of its data pipe are fed as they are; our frames, pid aside, and
what we write to the sink are compared with what was recorded.  What differs, and why:

* hooks are 0x3ff where no policy reads content; one recorded filter had 0 (21): without the bit
  DATALINE smtpd does not look at them;
* FAIL at HELO is sent as CLOSE (08): smtpd would take the client's MAIL next;
* a refusal always has a code and words (08b, 11, 18): those that smtpd has are "530", which
  means that the client is to log in.

Where the recorded filter was faulty on purpose, its frames are for the encoder to refuse
(test_wire_traces.py); here smtpd's side of them is answered by a policy that accepts all.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter

import pytest

from mailgate.address import Address
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.verdict import Accept, Defer, Disconnect, Refusal, Reject
from tests.opensmtpd52.frames import (
    PIPE,
    REGISTER,
    RESPONSE,
    Hearing,
    Registration,
    Response,
    Speech,
    frame,
    without_pid,
)
from tests.opensmtpd52.recorded import FAITHFUL, RECORDINGS, Line, Recording, little_endian
from tests.opensmtpd52.replay import Replay

pytestmark = little_endian

SIDES = [
    pytest.param(recording, filter, id=f"{recording}-{filter}")
    for recording in FAITHFUL
    for filter in recording.filters
]
FAULTY_SIDES = [
    pytest.param(recording, filter, id=f"{recording}-{filter}")
    for recording in RECORDINGS
    for filter in recording.filters
    if recording.faulty
]

DEFAULTS = {"HELO": "Hello rejected", "RCPT": "Temporary failure", "EOM": "Message rejected"}


# -- the recorded decisions as a policy ---------------------------------------------------------


def verdict_of(answer: Response) -> Refusal | None:
    """Return the verdict that stands for a recorded refusal."""
    if answer.status == 0:
        return None
    if answer.code == 0:
        text = DEFAULTS[answer.kind]
        return Disconnect(text) if answer.status == 2 else Reject(text, 530)
    enhanced, _, text = (answer.line or b"").decode().partition(" ")
    if answer.status == 2:
        return Disconnect(text, answer.code, enhanced)
    return (Reject if answer.code >= 500 else Defer)(text, answer.code, enhanced)


class Script:
    """A policy that answers each question as it was answered in a recording.

    It reads content where the recorded filter has asked for it, and passes it on as it comes;
    in the scenario "hold" at the end only.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._answers = self._recorded_answers()
        self.policy = Policy("script")
        self.past = replay.recording.scenario == "31-pipe-passthrough-fd"
        self._register()
        if self._registered() & 0x400:
            self._register_content()

    def _recorded_answers(self) -> dict[tuple[int, str], list[Response]]:
        """Return the answers by session and kind, in their order."""
        found: dict[tuple[int, str], list[Response]] = {}
        if self._replay.recording.faulty:
            return found
        for line in self._replay.lines:
            if line.direction == "F" and line.octets and line.type == RESPONSE:
                answer = heard(self._replay, line)
                session = self._replay.session_of(self._replay.key(line))
                found.setdefault((session, answer.kind), []).append(answer)
        return found

    def _registered(self) -> int:
        for line in self._replay.lines:
            if line.direction == "F" and line.octets and line.type == REGISTER:
                said = Hearing(self._replay.recording.version).read(line.type, line.payload)
                assert isinstance(said, Registration)
                return said.hooks
        return 0

    def _next(self, session: Session, kind: str) -> Refusal | None:
        answers = self._answers.get((int(session.id, 16), kind))
        return verdict_of(answers.pop(0)) if answers else None

    def _register(self) -> None:
        policy = self.policy

        @policy.connect
        async def connect(session: Session) -> Refusal | None:
            return self._next(session, "CONNECT")

        @policy.helo
        async def helo(session: Session) -> Refusal | None:
            return self._next(session, "HELO")

        @policy.mail
        async def mail(message: Message) -> Refusal | None:
            return self._next(message.session, "MAIL")

        @policy.rcpt
        async def rcpt(message: Message, recipient: Address) -> Refusal | None:
            return self._next(message.session, "RCPT")

        @policy.data
        async def data(message: Message) -> Refusal | Accept | None:
            return Accept() if self.past else self._next(message.session, "DATA")

    def _register_content(self) -> None:
        policy = self.policy

        @policy.headers
        async def headers(message: Message) -> None:
            for name in self._added():
                message.headers.add(name, "yes")

        @policy.body
        async def body(message: Message, piece: bytes) -> Refusal | None:
            return self._next(message.session, "EOM")

        if self._replay.recording.scenario == "16-hold-until-eof":

            @policy.message
            async def message(message: Message) -> None:
                assert message.body

    def _added(self) -> list[str]:
        """Return the header fields that the recorded filter has put below the others."""
        before = {line for way in self._sides("PI") for line in way}
        after = [line for way in self._sides("PO") for line in way]
        return [line.partition(b":")[0].decode() for line in after if line not in before]

    def _sides(self, direction: str) -> list[list[bytes]]:
        lines = [line for line in self._replay.lines if line.direction == direction]
        return [line.octets.split(b"\n") for line in lines if not line.cut]


# -- what we are to answer ----------------------------------------------------------------------


def heard(replay: Replay, line: Line) -> Response:
    found = Hearing(replay.recording.version).read(line.type, line.payload)
    assert isinstance(found, Response)
    return found


def expected(replay: Replay, line: Line) -> bytes:
    """Return the frame that mailgate writes where this one was recorded."""
    speech = Speech(replay.recording.version)
    if line.type == REGISTER:
        (hooks,) = struct.unpack_from("<i", line.payload, int(speech.version != 52))
        return frame(REGISTER, speech.s32(hooks or 0x3FF) + speech.s32(0))
    if line.type == PIPE:
        return line.octets
    answer = heard(replay, line)
    verdict = verdict_of(answer)
    if verdict is None:
        return line.octets
    closes = answer.status == 2 or answer.kind in ("CONNECT", "HELO")
    number = ("CONNECT", "HELO", "MAIL", "RCPT", "DATA", "EOM").index(answer.kind)
    datalen = b"" if answer.datalen is None else speech.u32(answer.datalen)
    words = f"{verdict.reply.enhanced} {verdict.text}".encode()
    return frame(
        RESPONSE,
        speech.id(answer.qid)
        + speech.s32(number)
        + datalen
        + speech.s32(2 if closes else 1)
        + speech.s32(verdict.code)
        + speech.string(words),
    )


def differs(line: Line, wanted: bytes) -> bool:
    return without_pid(line.octets) != without_pid(wanted)


def check(replay: Replay) -> None:
    """Compare what we said and wrote with what was recorded."""
    assert replay.errors == []
    ours = {key: list(frames) for key, frames in replay.answers.items()}
    for line in replay.lines:
        if line.direction == "F" and line.octets:
            key = replay.key(line)
            if replay.session_of(key) in replay.hung_up and key not in ours:
                continue
            found, with_fd = ours[key].pop(0)
            assert without_pid(found) == without_pid(expected(replay, line)), line.note
            assert with_fd is line.fd
    assert [frames for frames in ours.values() if frames] == []
    for way in replay.ways:
        assert way.ended
        if replay.cut:  # what is not in the file went through as it came
            assert way.ours == way.given
            assert len(way.ours) == len(way.recorded)
        else:
            assert way.ours == way.recorded


async def replayed(recording: Recording, filter: str, piece: int) -> Replay:
    replay = Replay(recording, filter, piece)
    await replay.run(Script(replay).policy)
    return replay


# -- the replays ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("recording", "filter"), SIDES)
def test_frames_and_octets_are_as_recorded(recording: Recording, filter: str) -> None:
    check(asyncio.run(replayed(recording, filter, 1 << 20)))


@pytest.mark.parametrize(("recording", "filter"), SIDES)
def test_pieces_do_not_matter(recording: Recording, filter: str) -> None:
    piece = 4001 if any(line.cut for line in recording.lines) else 1
    check(asyncio.run(replayed(recording, filter, piece)))


@pytest.mark.parametrize(("recording", "filter"), FAULTY_SIDES)
def test_where_a_filter_was_faulty_ours_is_not(recording: Recording, filter: str) -> None:
    replay = asyncio.run(replayed(recording, filter, 1 << 20))
    assert replay.errors == []
    asked = [replay.key(line) for line in replay.queries()]
    answered = {key: frames for key, frames in replay.answers.items() if key[0] != "REGISTER"}
    for key in asked:
        ((found, _),) = answered.pop(key)
        answer = Hearing(recording.version).read(RESPONSE, found[16:])
        assert isinstance(answer, Response)
        assert (answer.status, answer.code, answer.line) == (0, 0, None)
        if answer.kind == "EOM":
            (way,) = replay.ways
            assert way.ours == way.given
            assert answer.datalen == len(way.given)
    assert {key[0] for key in answered} <= {"PIPE"}
    assert all(way.ended for way in replay.ways)


def test_what_differs_is_what_is_said_to_differ() -> None:
    found: Counter[str] = Counter()
    for recording in FAITHFUL:
        for filter in recording.filters:
            replay = Replay(recording, filter)
            for line in replay.lines:
                if line.direction == "F" and line.octets and differs(line, expected(replay, line)):
                    found[recording.scenario] += 1
    assert found == {
        "08-reject-helo": 1,
        "08b-reject-helo-default": 1,
        "11-reject-rcpt-close": 1,
        "18-reject-eom-default": 1,
        "21-hooks-zero": 1,
    }


def test_every_recording_is_replayed() -> None:
    assert len(SIDES) + len(FAULTY_SIDES) == sum(
        len(recording.filters) for recording in RECORDINGS
    )
    assert len(SIDES) >= 58
