"""What a policy sees of every recorded conversation, against what the recordings say of it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter

import pytest

from mailgate.address import Address
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Event, Session
from tests.opensmtpd52.recorded import RECORDINGS, Line, Recording, little_endian
from tests.opensmtpd52.replay import Replay

pytestmark = little_endian

LEFT_OUT = {
    # The recorded filter had the message pass by; one that looks at it waits for it.
    "31-pipe-passthrough-fd",
    # Noted down with less.
    *("70-reference-c-filter-stub", "71-reference-c-filter-void"),
    *("72-reference-c-filter-trace", "73-reference-c-filter-abort"),
}
SIDES = [
    pytest.param(recording, filter, id=f"{recording}-{filter}")
    for recording in RECORDINGS
    for filter in recording.filters
    if recording.scenario not in LEFT_OUT
]


class Seen:
    """A policy that looks on and writes down, in the words of the recordings."""

    def __init__(self, *, content: bool) -> None:
        self.policy = Policy("seen")
        self.notes: list[str] = []
        self.begun: Counter[str] = Counter()
        self.endings: Counter[tuple[str, str]] = Counter()
        self.closed: Counter[str] = Counter()
        self._register()
        if content:

            @self.policy.headers
            async def headers(message: Message) -> None:
                message.headers.get("Subject")

    def _note(self, what: str, session: Session, rest: str) -> None:
        self.notes.append(f"{what} session={session.id} {rest}")

    def _register(self) -> None:
        policy = self.policy

        @policy.connect
        async def connect(session: Session) -> None:
            assert session.adapter == "opensmtpd52"
            assert session.rdns_verified is None
            assert not session.tells("tls")  # not known is not none
            assert not session.tells("user")
            ends = f"local={end(session, 'server')} remote={end(session, 'client')}"
            self._note("QUERY CONNECT", session, f"{ends} host={session.rdns}")

        @policy.helo
        async def helo(session: Session) -> None:
            assert session.esmtp is None
            self._note("QUERY HELO", session, f"helo={session.helo}")

        @policy.mail
        async def mail(message: Message) -> None:
            self.begun[message.session.id] += 1
            self._note("QUERY MAIL", message.session, f"addr={message.sender}")

        @policy.rcpt
        async def rcpt(message: Message, recipient: Address) -> None:
            self._note("QUERY RCPT", message.session, f"addr={recipient}")

        @policy.event
        async def event(session: Session, event: Event) -> None:
            assert event.fields == {}
            self._note(f"EVENT {event.name}", session, "")

        @policy.done
        async def done(message: Message) -> None:
            assert message.outcome is not None
            self.endings[message.session.id, message.outcome.result] += 1

        @policy.close
        async def close(session: Session) -> None:
            self.closed[session.id] += 1


def end(session: Session, which: str) -> str:
    address, port = getattr(session, which), getattr(session, f"{which}_port")
    if address is None:
        assert session.local
        return "local"
    return f"inet6 [{address}]:{port}" if address.version == 6 else f"inet {address}:{port}"


def told(line: Line) -> str:
    """Return a note without what a policy does not see, in the words of a policy."""
    note = re.sub(r" qid=\w+", "", line.note)
    note = re.sub(r"family 1 len 16 \w+", "local", note)
    note = re.sub(r"@[^ ]+", lambda domain: domain[0].lower(), note)
    event = re.fullmatch(r"EVENT (?:TX_)?(\w+) (session=\w+)", note)
    return f"EVENT {event[1].lower()} {event[2]} " if event else note


def in_order(notes: list[str]) -> dict[str, list[str]]:
    """Return the notes of each session; CONNECT is told to a policy once all of it is known."""
    found: dict[str, list[str]] = {}
    for note in notes:
        session = re.search(r"session=(\w+)", note)
        if session is not None and "QUERY DATA" not in note and "QUERY EOM" not in note:
            found.setdefault(session[1], []).append(note)
    return found


@pytest.mark.parametrize(("recording", "filter"), SIDES)
def test_what_an_onlooker_sees(recording: Recording, filter: str) -> None:
    replay = Replay(recording, filter)
    seen = Seen(content=any(line.fd for line in replay.lines))
    asyncio.run(replay.run(seen.policy))

    assert replay.errors == []
    lines = [line for line in replay.lines if line.direction == "S" and line.octets]
    notes = [told(line) for line in lines if line.note.startswith(("EVENT", "QUERY"))]
    wanted = in_order(notes)
    assert set(in_order(seen.notes)) == set(wanted)
    for session, found in in_order(seen.notes).items():
        ended = f"EVENT disconnect session={session} "
        if ended not in wanted[session]:  # that smtpd died of its filter, here it only ends
            wanted[session].append(ended)
        assert found == wanted[session]
    connected = [line for line in lines if line.note.startswith("EVENT CONNECT")]
    assert set(seen.closed.values()) <= {1}
    assert len(seen.closed) == len(connected)
    taken = [told(line) for line in lines if "COMMIT" in line.note]
    accepted = Counter(re.findall(r"session=(\w+)", " ".join(taken)))
    assert {s: n for (s, result), n in seen.endings.items() if result == "accepted"} == accepted
    assert seen.begun.total() == seen.endings.total()
