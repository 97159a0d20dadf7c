"""The MTAs of these tests against recordings of the real ones: packets, replies, messages.

The client's side of each recording is said to `Postfix` or `Sendmail`, and the recorded filter
answers.  What our MTA says to the filter, what it answers the client and what it delivers has to
be what was recorded.  Then its judgement of another filter's edits can be relied on.
"""

from __future__ import annotations

import pytest

from tests.core.asking import in_loop
from tests.milter.played import NOT_PLAYED, Play, as_recorded, delivered, replies, without_time
from tests.milter.recorded import Recording, everything

RECORDINGS = everything()

PLAYED = [recording for recording in RECORDINGS if str(recording) not in NOT_PLAYED]

FAULTS = {
    "bad-edit-truncated": "half a CHGHEADER",
    "bad-eom-hang-then-close": "has closed the connection",
    "bad-extra-data": "data behind CONTINUE",
    "bad-length-huge": "a packet of length 2147483647",
    "bad-length-zero": "a packet of length 0",
    "bad-optneg-actions": "actions that were not offered",
    "bad-optneg-continue": "as answer to OPTNEG",
    "bad-optneg-protocol": "steps that were not offered",
    "bad-optneg-version": "version 7 was not offered",
    "bad-optneg-version-1": "version 1 was not offered",
    "bad-reply-code": "'Z' as answer to MAIL",
    "conn-fail-eom": "'f' as answer to EOM",
    "double-reply": "an answer to nothing",
    "eom-edit-at-header": "'h' as answer to HEADER",
    "eom-header-badname": "ADDHEADER of b'X A::",
    "eom-not-negotiated": "CHGHEADER was not agreed on",
    "eom-replbody-interleaved": "a body in two runs",
    "header-skip": "SKIP at HEADER",
    "rcpt-skip": "SKIP at RCPT",
    "reply-250": "a reply that is none",
    "reply-mismatch": "a reply that is none",
    "reply-noenhanced": "a reply that is none",
    "shutdown-rcpt": "",  # each MTA has words of its own for it
    **{
        f"at-{stage}-close": "has closed the connection"
        for stage in ("connect", "helo", "mail", "data", "header", "body", "eom")
    },
}


@pytest.mark.parametrize("recording", PLAYED, ids=str)
@in_loop
async def test_the_mta_does_what_the_real_one_did(recording: Recording) -> None:
    play = Play(recording)
    answered = await play.run()

    for connection, filter in zip(recording.connections, play.filters, strict=False):
        assert [(f.code, without_time(f.data)) for f in filter.sent] == [
            (f.code, without_time(f.data)) for f in connection.of("M")
        ]
    said = replies([text for side, text in recording.dialogue if side == "S"])
    if str(recording) == "sendmail-bdat":  # to Sendmail it is ten commands; two answers were read
        assert replies([answered])[: len(said)] == said
    else:
        assert replies([answered]) == said
    assert delivered(play) == [as_recorded(one) for one in recording.delivered]


@pytest.mark.parametrize("recording", PLAYED, ids=str)
@in_loop
async def test_a_filter_s_faults_are_found_and_no_others(recording: Recording) -> None:
    play = Play(recording)
    await play.run()

    expected = FAULTS.get(recording.scenario)
    if expected is None:
        assert play.mta.faults == []
    else:
        assert expected in "\n".join(play.mta.faults)
        assert play.mta.faults


def test_what_is_held_back_is_not_delivered() -> None:
    held = [str(r) for r in PLAYED if r.scenario == "eom-quarantine" and not r.delivered]
    assert len(held) == 2


def test_every_recording_is_played() -> None:
    assert len(PLAYED) + len(NOT_PLAYED) == len(RECORDINGS) == 261
    scenarios = {recording.scenario for recording in PLAYED}
    assert set(FAULTS) <= scenarios
    assert {r.scenario for r in PLAYED if r.faulty} == set(FAULTS) - {"header-skip", "rcpt-skip"}
