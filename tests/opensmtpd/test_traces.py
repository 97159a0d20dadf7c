"""Replay every recorded conversation through the adapter, with a policy that decides as recorded.

smtpd's lines are fed as they are and our answers are compared with the recorded ones by session
and question, not by position.  What may differ, and why:

* an enhanced status is always there: mailgate adds 5.7.1 or 4.7.1 where a recorded text has none;
* replies are ASCII (RFC 5321 4.2), so other characters are ``?``;
* `reject` at connect is sent as `disconnect`: smtpd would leave the client without a banner;
* a 421 is sent as `disconnect`, which is what smtpd makes of it;
* there is no `junk`: it exists on this protocol only, and a policy sets a header instead.

Where the recorded filter was faulty on purpose, its lines are for the encoder to refuse
(test_wire_traces.py); here smtpd's side of them is answered by a policy that accepts all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import pytest

from mailgate.address import Address
from mailgate.chain import Loaded
from mailgate.engine import Engine
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Attempt, Session
from mailgate.syntax import path_parameters
from mailgate.verdict import Defer, Disconnect, Refusal, Reject
from mailgate_opensmtpd.registration import CAPABILITIES, registration
from tests.opensmtpd.recorded import (
    Answer,
    Question,
    Recording,
    Stream,
    conversation,
    read,
    traces,
)
from tests.opensmtpd.running import Outcome, converse, in_step, pieces

RECORDINGS = [read(path) for path in traces()]


def is_faithful(recording: Recording) -> bool:
    """Tell whether a recorded filter's decisions are ones that a policy can make.

    A line that is too long is no fault of that kind: what becomes of it is in expectations().
    """
    faults = [fault for fault in recording.faults() if not fault.endswith("octets with its LF")]
    return not faults and recording.path.parent.name != "malformed"


FAITHFUL = [recording for recording in RECORDINGS if is_faithful(recording)]
FAULTY = [recording for recording in RECORDINGS if not is_faithful(recording)]

BYTE_BY_BYTE = {
    *("basic", "dot-stuffing", "bare-cr-lf", "edit-message", "interleaved", "rset", "chain-two"),
    *("reject-451-rcpt-to", "rewrite-mail-from-size", "rewrite-rcpt-to", "rewrite-ehlo"),
    *("abort-mid-data", "auth-pipe-user", "hold-reject-commit", "smuggling", "smtp-out"),
}


# -- the recorded decisions as a policy ---------------------------------------------------------


def verdict_of(answer: Answer) -> Refusal | None:
    """Return the verdict that stands for a recorded refusal."""
    if answer.decision not in ("reject", "disconnect"):
        return None
    code, enhanced, text = parts(answer)
    if answer.decision == "disconnect" or code == 421:
        return Disconnect(text, code, enhanced)
    return Reject(text, code, enhanced) if code >= 500 else Defer(text, code, enhanced)


def parts(answer: Answer) -> tuple[int, str, str]:
    found = re.fullmatch(r"(\d{3}) (?:(\d\.\d+\.\d+) )?(.*)", answer.parameter.decode())
    assert found is not None
    return int(found[1]), found[2] or "", found[3]


class Script:
    """A policy that answers each question as it was answered in a recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.policy = Policy("script")
        self._asked: Counter[tuple[str, str]] = Counter()
        self._register()

    def _next(self, session: Session, phase: str) -> Answer:
        """Return what was answered to the next question of a phase."""
        self._asked[session.id, phase] += 1
        number = self._asked[session.id, phase]
        for question, answer in self.recording.answers.items():
            if (question.phase, question.session.decode(), question.number) == (
                *(phase, session.id),
                number,
            ):
                return answer
        return Answer("proceed")

    def _register(self) -> None:
        policy = self.policy

        @policy.connect
        async def connect(session: Session) -> Refusal | None:
            return verdict_of(self._next(session, "connect"))

        @policy.helo(needs={"change_helo"})
        async def helo(session: Session) -> Refusal | None:
            answer = self._next(session, "ehlo" if session.esmtp else "helo")
            if answer.decision == "rewrite":
                session.change_helo(answer.parameter.decode())
            return verdict_of(answer)

        @policy.starttls
        async def starttls(session: Session) -> Refusal | None:
            return verdict_of(self._next(session, "starttls"))

        @policy.auth
        async def auth(session: Session, attempt: Attempt) -> Refusal | None:
            return verdict_of(self._next(session, "auth"))

        @policy.mail(needs={"change_sender"})
        async def mail(message: Message) -> Refusal | None:
            answer = self._next(message.session, "mail-from")
            if answer.decision == "rewrite":
                message.change_sender(*path_of(answer))
            return verdict_of(answer)

        @policy.rcpt(needs={"change_recipient"})
        async def rcpt(message: Message, recipient: Address) -> Refusal | None:
            answer = self._next(message.session, "rcpt-to")
            if answer.decision == "rewrite":
                message.change_recipient(recipient, path_of(answer)[0])
            return verdict_of(answer)

        @policy.data
        async def data(message: Message) -> Refusal | None:
            return verdict_of(self._next(message.session, "data"))

        @policy.command("RSET", "QUIT", "NOOP")
        async def command(session: Session, verb: str, argument: str) -> Refusal | None:
            return verdict_of(self._next(session, verb.lower()))

        if b"register|filter|smtp-in|data-line" in self.recording.registered:
            self._register_content()

    def _register_content(self) -> None:
        @self.policy.message
        async def message(message: Message) -> Refusal | None:
            session = message.session.id
            self._asked[session, "message"] += 1
            ended = [
                s for s in self.recording.streams if s.ended and s.session.decode() == session
            ]
            stream = ended[self._asked[session, "message"] - 1]
            verdict = verdict_of(commit_answer(self.recording, stream))
            if verdict is None and not too_long(stream):
                edit(message, stream)
            return verdict


def path_of(answer: Answer) -> tuple[str, Mapping[str, str | None]]:
    """Return address and ESMTP parameters of a recorded rewrite."""
    found = re.match(rb"<([^>]*)>", answer.parameter)
    assert found is not None
    return found[1].decode(), path_parameters(b"MAIL FROM:" + answer.parameter)


def commit_answer(recording: Recording, stream: Stream) -> Answer:
    if stream.commit is None:
        return Answer("proceed")
    return recording.answers.get(stream.commit, Answer("proceed"))


def edit(message: Message, stream: Stream) -> None:
    """Change a message as the recorded filter did: fields on top, another body."""
    before, after = stream.message.split(b"\r\n\r\n", 1), stream.result.split(b"\r\n\r\n", 1)
    if before == after or not stream.closed:
        return
    assert after[0].endswith(before[0]), "an edit that this test has no words for"
    added = after[0].removesuffix(before[0]).decode().split("\r\n")[:-1]
    for line in reversed(added):
        name, _, value = line.partition(": ")
        message.headers.prepend(name, value)
    if before[1:] != after[1:]:
        message.body = after[1]


# -- what we are to answer ----------------------------------------------------------------------


def expected(question: Question, answer: Answer) -> Answer:
    """Return the answer that mailgate gives where this one was recorded."""
    if answer.decision == "junk":
        return Answer("proceed")
    if answer.decision not in ("reject", "disconnect"):
        return answer
    code, enhanced, text = parts(answer)
    plain = text.encode("ascii", "replace")
    closing = answer.decision == "disconnect" or code == 421 or question.phase == "connect"
    return Answer(
        "disconnect" if closing else "reject",
        b"%d %b %b" % (code, (enhanced or f"{code // 100}.7.1").encode(), plain),
    )


def too_long(stream: Stream) -> bool:
    """Tell whether a message has a line that this smtpd cannot take back whole."""
    limit = 65_485 if stream.commit is None or stream.commit.version >= b"0.7" else 1997
    return any(len(line) > limit for line in stream.given)


def expectations(recording: Recording) -> dict[Question, Answer]:
    wanted = {
        question: expected(question, recording.answers.get(question, Answer("proceed")))
        for question in recording.questions
    }
    for stream in recording.streams:
        if stream.commit is not None and too_long(stream):
            text = b"554 5.6.0 a line is too long for this mail server's filters"
            wanted[stream.commit] = Answer("reject", text)
    return wanted


def told(recording: Recording, policy: Policy) -> bytes:
    """Return what smtpd says to a filter with this policy.

    That is less than the recorder saw, which registered everything, or more: link-connect is
    always ours to hear and was not always the recorder's.
    """
    engine = Engine([Loaded(policy, "test")], CAPABILITIES)
    registered = set(registration(engine.interest, outgoing=True))
    connected: set[bytes] = set()
    lines = []
    for line in recording.given.split(b"\n")[:-1]:
        kind, _, _, direction, name, session, *_ = (*line.split(b"|", 6), *[b""] * 6)
        if kind in (b"report", b"filter"):
            first = session not in connected
            connected.add(session)
            if first and name != b"link-connect":
                lines.append(connect_report(line))
            elif not first and name == b"link-connect":
                continue  # the recorder had registered it twice
            if b"register|%b|%b|%b\n" % (kind, direction, name) not in registered:
                continue
        lines.append(line)
    return b"".join(line + b"\n" for line in lines)


def connect_report(line: bytes) -> bytes:
    """Return the link-connect that came before a line and that the recorder did not register."""
    _, version, when, direction, _, session = line.split(b"|", 6)[:6]
    rest = (b"localhost", b"pass", b"127.0.0.1:46412", b"127.0.0.1:25")
    return b"|".join((b"report", version, when, direction, b"link-connect", session, *rest))


def check(recording: Recording, given: bytes, outcome: Outcome) -> None:
    """Compare what we answered with what was recorded, and the messages with what came out."""
    assert outcome.errors == []
    assert outcome.faults == []
    ours = conversation(recording.path, given, outcome.output)
    assert ours.strays == []
    wanted = expectations(recording)
    assert ours.answers == {question: wanted[question] for question in ours.questions}
    if ours.streams:
        for stream, our_stream in zip(recording.streams, ours.streams, strict=True):
            check_message(recording, stream, our_stream)


def check_message(recording: Recording, stream: Stream, ours: Stream) -> None:
    assert ours.closed == stream.ended
    refused = commit_answer(recording, stream).decision != "proceed" or too_long(stream)
    if not stream.ended or refused:
        return  # what the filter made of it went nowhere
    assert ours.result == (stream.result if stream.closed else stream.message)
    check_delivered(recording, ours)


def check_delivered(recording: Recording, ours: Stream) -> None:
    """Compare a message of ours with the ones that smtpd delivered, if it is among them."""
    if recording.path.stem.endswith(".1"):
        return  # another filter of the chain changed it after this one
    message = ours.result.replace(b"\r\n", b"\n")
    head = message.partition(b"\n\n")[0]
    queue_id = re.search(rb" id ([0-9a-f]{8})\n", head)
    for delivered in recording.delivered():
        delivered_head = delivered.partition(b"\n\n")[0]
        if queue_id is not None and queue_id[0] in delivered_head:
            assert body_of(delivered) == body_of(message)
            assert names(delivered_head) == names(head)


# smtpd's own work after the filters: envelope fields, what a message lacks, addresses without a
# domain, Bcc.
OWN = {b"return-path", b"delivered-to", b"date", b"message-id", b"bcc"}


def names(head: bytes) -> list[bytes]:
    """Return the lines of a header section that are the filter's to make, addresses cut."""
    fields = re.sub(rb"\n(?=[ \t])", b" ", head).split(b"\n")
    kept = [f for f in fields if f.partition(b":")[0].lower() not in OWN]
    return [re.sub(rb"(?i)^(from|to|cc):.*", rb"\1", field) for field in kept]


# -- the replays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recording", FAITHFUL, ids=str)
def test_decisions_and_messages_are_as_recorded(recording: Recording) -> None:
    policy = Script(recording).policy
    given = told(recording, policy)

    check(recording, given, converse([given], policy))


@pytest.mark.parametrize("recording", FAITHFUL, ids=str)
def test_line_by_line_as_smtpd_waits(recording: Recording) -> None:
    policy = Script(recording).policy
    given = told(recording, policy)

    check(recording, given, converse(in_step(given), policy))


@pytest.mark.parametrize("recording", [r for r in FAITHFUL if r.scenario in BYTE_BY_BYTE], ids=str)
def test_byte_by_byte(recording: Recording) -> None:
    policy = Script(recording).policy
    given = told(recording, policy)

    check(recording, given, converse(pieces(given, 1), policy))


def accept_all() -> Policy:
    policy = Policy("accept")

    @policy.message
    async def look(message: Message) -> Refusal | None:
        return None

    return policy


@pytest.mark.parametrize("recording", FAULTY, ids=str)
def test_what_smtpd_said_to_a_faulty_filter(recording: Recording) -> None:
    for policy in (accept_all(), Seen().policy):
        given = told(recording, policy)
        outcome = converse([given], policy)
        assert outcome.errors == []
        assert outcome.faults == []
        for stream in conversation(recording.path, given, outcome.output).streams:
            assert stream.closed == stream.ended
            assert stream.answered in (stream.given, [])


@pytest.mark.parametrize(
    "recording", [r for r in RECORDINGS if r.scenario == "long-lines"], ids=str
)
def test_long_lines_can_be_cut_as_smtpd_does(recording: Recording) -> None:
    policy = accept_all()
    given = told(recording, policy)
    outcome = converse([given], policy, long_lines="cut")

    assert outcome.faults == []
    (ours,) = conversation(recording.path, given, outcome.output).streams
    (delivered,) = recording.delivered()
    assert body_of(ours.result.replace(b"\r\n", b"\n")) == body_of(delivered)


def body_of(message: bytes) -> bytes:
    return message.partition(b"\n\n")[2].rstrip(b"\n")


# -- what policies see ----------------------------------------------------------------------------


class Seen:
    """A policy that only looks on, and what it saw: smtpd waits for it at the end at most."""

    def __init__(self) -> None:
        self.policy = Policy("seen")
        self.taken: list[tuple[str, str, list[str]]] = []  # session, sender, recipients
        self.endings: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self._register()

    def _register(self) -> None:
        @self.policy.mail
        async def mail(message: Message) -> None: ...

        @self.policy.rcpt
        async def rcpt(message: Message, recipient: Address) -> None:
            assert message.sender == message.original_sender

        @self.policy.done
        async def done(message: Message) -> None:
            assert message.outcome is not None
            self.endings[message.outcome.result] += 1
            if message.outcome.result == "accepted":
                recipients = [str(recipient) for recipient in message.recipients]
                self.taken.append((message.session.id, str(message.sender), recipients))

        @self.policy.close
        async def close(session: Session) -> None:
            self.closed[session.id] += 1


class Told:
    """What the reports of a recording tell of its messages, read without the adapter."""

    def __init__(self, recording: Recording) -> None:
        self.sessions: list[str] = []
        self.begun = 0
        self.taken: list[tuple[str, str, list[str]]] = []
        self._under_way: dict[str, tuple[str, list[str]]] = {}
        self._rewritten: dict[str, bytes] = {}
        for line in recording.given.split(b"\n")[:-1]:
            fields = line.split(b"|", 6)
            if len(fields) > 5 and fields[3] == b"smtp-in":
                self._report(fields[1], fields[4], fields[5].decode(), fields[6:])

    def _report(self, version: bytes, event: bytes, session: str, rest: list[bytes]) -> None:
        if session not in self.sessions:
            self.sessions.append(session)
        if event in (b"tx-mail", b"tx-rcpt"):
            self._address(version, event, session, rest[0])
        elif event == b"filter-response":
            # tx-mail and tx-rcpt tell what the client typed, whatever a filter made of it.
            found = re.fullmatch(rb"(?:mail-from|rcpt-to)\|rewrite\|<(.*?)>.*", rest[0])
            if found is not None:
                self._rewritten[session] = found[1]
        elif event == b"tx-begin":
            self.begun += 1
        elif event == b"tx-commit":
            self.taken.append((session, *self._under_way[session]))

    def _address(self, version: bytes, event: bytes, session: str, rest: bytes) -> None:
        if version < b"0.6":
            address, _, result = rest.partition(b"|")[2].rpartition(b"|")
        else:
            _, result, address = rest.split(b"|", 2)
        address = self._rewritten.pop(session, address)
        if result != b"ok":
            return
        text = str(Address.from_wire(address))
        if event == b"tx-mail":
            self._under_way[session] = (text, [])
        else:
            self._under_way[session][1].append(text)


@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_what_an_onlooker_sees(recording: Recording) -> None:
    seen, reports = Seen(), Told(recording)
    given = told(recording, seen.policy)
    outcome = converse([given], seen.policy)

    assert outcome.errors == []
    assert outcome.faults == []
    assert all(line.endswith(b"|proceed") for line in outcome.lines())
    if b"register|report|smtp-in|tx-commit" in recording.registered:
        assert seen.taken == reports.taken
        assert seen.endings.total() == reports.begun
    assert seen.closed == Counter(reports.sessions)


def test_every_recording_is_replayed() -> None:
    assert len(FAITHFUL) + len(FAULTY) == len(traces())
    assert len(FAITHFUL) >= 180
