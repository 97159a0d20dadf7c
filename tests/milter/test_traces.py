"""Every recorded session again, with the adapter in the place of the recorded filter.

Two ways.  The SMTP side is played to the MTA of these tests (proved by `test_mta.py`) with a
policy that decides and edits as the recorded filter did: the client's replies and the message
that is delivered have to be those of the real MTA.  Packets are not compared: ours edit in the
form that both MTAs take alike, and leave out what the policy does not ask for.  And the MTA's
packets are fed as they are: an onlooker has to see what they tell.

What may differ, and why:

* a refusal at connect or helo is given at MAIL, with its own text;
* `REJECT` and `TEMPFAIL` have texts of the MTA's own; a policy's refusal always has one;
* a field is always written with a blank behind its colon.

Where the recorded filter was faulty on purpose, its packets are for the encoder to refuse
(test_wire_traces.py) and for the MTA of these tests to find (test_mta.py); here the MTA's side of
them is answered by a policy that accepts all.
"""

from __future__ import annotations

from functools import partial

import pytest

from mailgate import Policy
from tests.milter import everything as asks_everything
from tests.milter.onlooker import Seen, Told
from tests.milter.peer import Peer
from tests.milter.played import NOT_PLAYED, Play, as_recorded, delivered, replies
from tests.milter.recorded import Connection, Delivered, Recording, everything
from tests.milter.running import LOOPS, run, serving
from tests.milter.script import Script

RECORDINGS = everything()
FAITHFUL = [r for r in RECORDINGS if not r.faulty and str(r) not in NOT_PLAYED]
FAULTY = [r for r in RECORDINGS if r.faulty]

BYTE_BY_BYTE = {
    *("ehlo", "esmtp-args", "two-messages", "ehlo-again", "8bit", "header-shapes", "body-empty"),
    *("headers-none", "message-empty", "smtputf8", "setsymlist", "version-4", "drop-in-data"),
    *("rcpt-rejected-by-mta-wanted", "at-mail-reject", "xclient-ipv6", "submission-local"),
}


# -- a policy that decides as recorded ------------------------------------------------------------


def check_replies(recording: Recording, script: Script, answered: bytes) -> None:
    """Compare what the client was answered with what the real MTA's client was."""
    ours = replies([answered])
    lines = script.refusal
    assert [line for line in ours if line in lines] == lines * script.refusals
    if not recording.scenario.startswith(("at-connect-", "at-helo-")):
        theirs = replies([text for side, text in recording.dialogue if side == "S"])
        assert [line[:1] for line in ours[: len(theirs)]] == [line[:1] for line in theirs]


def expected(recording: Recording) -> list[Delivered]:
    found = [as_recorded(one) for one in recording.delivered]
    if recording.scenario == "eom-addheader-leadspc":
        found = [
            Delivered(
                one.sender,
                one.sender_params,
                one.recipients,
                one.recipient_params,
                one.raw.replace(b"X-Added:tight", b"X-Added: tight"),
            )
            for one in found
        ]
    return found


async def play(recording: Recording, *others: Policy) -> None:
    script = Script(recording)
    async with serving(script.policy, *others) as running:
        playing = Play(recording, running.open)
        answered = await playing.run()
    assert running.errors == []
    assert playing.mta.faults == []
    check_replies(recording, script, answered)
    assert delivered(playing) == expected(recording)
    held = recording.scenario == "eom-quarantine"
    assert [queued.held is not None for queued in playing.mta.held] == [True] * held


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("recording", FAITHFUL, ids=str)
def test_replies_and_messages_are_as_recorded(recording: Recording, loop: str) -> None:
    run(partial(play, recording), loop)


@pytest.mark.parametrize("recording", FAITHFUL, ids=str)
def test_beside_a_policy_that_asks_for_everything(recording: Recording) -> None:
    run(partial(play, recording, asks_everything.policy))


# -- what an onlooker sees ------------------------------------------------------------------------


async def show(connection: Connection, size: int) -> None:
    """Feed the packets of an MTA to an onlooker; compare what it saw with what they tell."""
    seen, told = Seen(), Told(connection)
    async with serving(seen.policy) as running:
        peer = Peer(await running.open())
        for at in range(0, len(connection.given), size):
            await peer.send(connection.given[at : at + size])
        await peer.rest()
        assert peer.owed() == 0
        peer.socket.close()
    assert running.errors == []
    assert [chr(code) for code, _ in peer.answers()[1:]] == ["c"] * (len(peer.answers()) - 1)
    assert seen.sessions == told.sessions
    assert seen.messages == told.messages


@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_an_onlooker_sees_what_the_packets_tell(recording: Recording) -> None:
    for connection in recording.connections:
        run(partial(show, connection, 1 << 24))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "recording", [r for r in RECORDINGS if r.scenario in BYTE_BY_BYTE], ids=str
)
def test_byte_by_byte(recording: Recording, loop: str) -> None:
    for connection in recording.connections:
        run(partial(show, connection, 1), loop)


def test_every_recording_is_replayed() -> None:
    assert len(FAITHFUL) + len(FAULTY) + len(NOT_PLAYED) == len(RECORDINGS) == 261
    assert len(FAITHFUL) >= 200
    assert {r.scenario for r in RECORDINGS} >= BYTE_BY_BYTE
