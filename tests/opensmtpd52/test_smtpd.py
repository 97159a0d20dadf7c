"""The smtpd of these tests against recordings of the real ones: frames, replies, messages, ends.

The clients of each recording talk to `Smtpd`, and the recorded filters answer.  What our smtpd
says to each filter, in order, what it answers the clients, and what it dies of has to be what was
recorded.  Then its judgement of another filter can be relied on.
"""

from __future__ import annotations

import re

import pytest

from tests.core.asking import in_loop
from tests.opensmtpd52.played import play
from tests.opensmtpd52.recorded import RECORDINGS, Recording, little_endian

pytestmark = little_endian

NOT_PLAYED = {
    "13-reject-eom-code-50": "that server said nothing more after a refused message",
    "29-large-message-460k": "not all of what its client said is in the file",
    "33-message-too-big": "the limit is smtpd's own",
    "34-odd-addresses": "smtpd's own refusals",
    "40-local-enqueue": "no client was recorded",
    "41-pipelined-rcpts": "pipelining is refused before a filter hears of it",
    "61-register-exit": "there is no smtpd before its filters have registered",
    "62-register-silent": "the same",
    "63-register-twice": "the same",
    "67-client-idle-timeout": "five minutes",
}

PLAYED = [
    recording
    for recording in RECORDINGS
    if recording.scenario not in NOT_PLAYED
    and f"{recording.scenario}-{recording.version}" not in NOT_PLAYED
]

DEATHS = {
    "49-short-code": "smtp_reply: response too short",
    "50-bad-qid": "tree_xpop",
    "51-bad-type": "type mismatch",
    "52-bad-trunc": "msg too short",
    "53-bad-unterminated": "unterminated string",
    "55-bad-len0": "Numerical result out of range",
    "56-bad-lenbig": "Numerical result out of range",
    "57-bad-msgtype": "bad imsg from filter",
    "58-bad-twice": "tree_xpop",
    "59-bad-exit": 'filter "f1" closed unexpectedly',
    "60-bad-nodatalen": "msg too short",
}
"""What the real one logged as it ended."""

FAULTS = {"17", "36", "39", "43", "46", "48", "49", "08b", "11", "18"}
"""What smtpd lives with and no filter should do; the last three leave the words to smtpd."""


def heard(recording: Recording, filter: str) -> dict[int, list[str]]:
    """Return what a filter was told and asked, by session."""
    found: dict[int, list[str]] = {}
    sessions: list[str] = []
    for line in recording.heard(filter):
        words = line.note.removeprefix("(").split()
        session = re.search(r"session=(\w+)", line.note)
        if line.direction != "S" or not line.octets or session is None:
            continue
        if session[1] not in sessions:
            sessions.append(session[1])
        what = words[1].removeprefix("TX_") if words[0] != "PIPE" else ""
        text = f"EVENT {what}" if words[0] == "EVENT" else what or "PIPE"
        found.setdefault(sessions.index(session[1]) + 1, []).append(text)
    return found


def by_session(said: list[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for line in said:
        number, _, what = line.partition(" ")
        if number != "0":
            found.setdefault(int(number), []).append(what)
    return found


def replies(recording: Recording) -> list[str]:
    """Return what the clients were told, without what differs in each run."""
    clients = dict.fromkeys(line.client for line in recording.of("C"))
    said = [
        line.octets.decode("latin-1").split("\r\n")[0]
        for client in clients
        for line in recording.of("R")
        if line.octets and line.client == client
    ]
    return [generic(text) for text in said]


def generic(reply: str) -> str:
    reply = re.sub(r"^250[- ](2\.0\.0: )?[\w.]+ (Hello|Message accepted).*", r"250 \2", reply)
    return reply.replace("550 second", "")


@pytest.mark.parametrize("recording", PLAYED, ids=str)
@in_loop
async def test_it_does_what_the_real_one_did(recording: Recording) -> None:
    smtpd, filters, said = await play(recording)

    for name, filter in zip(recording.filters, filters, strict=True):
        assert by_session(filter.said) == heard(recording, name)
    told = [generic(reply.split("\r\n")[0]) for reply in said if reply]
    wanted = [reply for reply in replies(recording) if reply]
    death = DEATHS.get(recording.scenario, "")
    assert told[: len(wanted) if death else None] == wanted  # some died with a reply unwritten
    assert death in smtpd.dead
    assert bool(smtpd.dead) is bool(death)
    logged = " ".join(line.note for line in recording.of("INFO"))
    assert death in logged
    if not death or recording.scenario[:2] in FAULTS:
        assert bool(smtpd.faults) is (recording.scenario.partition("-")[0] in FAULTS)


def test_every_recording_is_played() -> None:
    assert len(PLAYED) + len(NOT_PLAYED) == len(RECORDINGS)
    assert set(DEATHS) <= {recording.scenario for recording in PLAYED}
