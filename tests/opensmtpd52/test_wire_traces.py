"""The codec against recorded conversations: it reads every frame, and writes only good ones."""

from __future__ import annotations

import ast
import re
import socket
from collections.abc import Mapping

import pytest

from mailgate_opensmtpd52 import wire
from mailgate_opensmtpd52.imsg import FrameDecoder, encode
from mailgate_opensmtpd52.wire import Codec, Kind, Query, Status
from tests.opensmtpd52.frames import EVENT, PIPE, QUERIES, QUERY, REGISTER, RESPONSE, without_pid
from tests.opensmtpd52.recorded import (
    FAITHFUL,
    FAULTY,
    NAMES,
    RECORDINGS,
    Line,
    Recording,
    little_endian,
)

pytestmark = little_endian


# -- what smtpd said -----------------------------------------------------------------------------


def told(codec: Codec, line: Line) -> str:
    """Return what a frame says, in the words of the recordings."""
    payload = line.payload
    if line.type == REGISTER:
        found, filter = wire.parse_registration(payload)
        return f"REGISTER version={found.version} name={filter.decode()}"
    if line.type == EVENT:
        event = codec.parse_event(payload)
        name = event.happening.name
        transaction = codec.version > 50 and event.happening >= wire.Happening.BEGIN
        return f"EVENT {'TX_' if transaction else ''}{name} session={event.session:016x}"
    if line.type == PIPE:
        return f"PIPE session={codec.parse_pipe(payload).session:016x}"
    query = codec.parse_query(payload)
    assert query.fault == ""
    start = f"QUERY {Kind(query.kind).name} session={query.session:016x} qid={query.id:016x}"
    return start + arguments(query)


def arguments(query: Query) -> str:
    match query.kind:
        case Kind.CONNECT:
            ends = f" local={end(query.local)} remote={end(query.remote)}"
            return f"{ends} host={query.name.decode()}"
        case Kind.HELO:
            return f" helo={query.name.decode()}"
        case Kind.MAIL | Kind.RCPT:
            return f" addr={query.mailbox.decode()}"
        case Kind.EOM:
            return f" datalen={query.datalen}"
    return ""


def end(sockaddr: bytes) -> str:
    family, port = int.from_bytes(sockaddr[:2], "little"), int.from_bytes(sockaddr[2:4], "big")
    if family == socket.AF_INET:
        return f"inet {socket.inet_ntop(family, sockaddr[4:8])}:{port}"
    if family == socket.AF_INET6:
        return f"inet6 [{socket.inet_ntop(family, sockaddr[8:24])}]:{port}"
    return f"family {family} len {len(sockaddr)} {sockaddr.hex()}"


def noted(line: Line) -> str:
    """Return a note without what its frame does not say, or says in the header."""
    return re.sub(r" \(.*\)$| peerid=.*$", "", line.note)


@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_every_frame_of_smtpd_says_what_is_noted(recording: Recording) -> None:
    codec = Codec(recording.version)
    for line in recording.frames("S"):
        found = told(codec, line)
        if recording.scenario[:2] in ("70", "71", "72", "73"):  # noted down with less
            assert found.startswith(noted(line))
            assert found.split(" session=")[0] == noted(line).split(" session=")[0]
        else:
            assert found == noted(line)


@pytest.mark.parametrize("piece", [1, 7, 4096])
@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_pieces_do_not_matter(recording: Recording, piece: int) -> None:
    for filter in recording.filters:
        lines = [line for line in recording.heard(filter) if line.direction == "S"]
        data = b"".join(line.octets for line in lines)
        decoder = FrameDecoder()
        found = [
            frame
            for at in range(0, len(data), piece)
            for frame in decoder.receive(data[at : at + piece])
        ]
        assert found == [(line.type, line.fd, line.payload) for line in lines if line.octets]
        assert decoder.partial == 0


# -- what the filter said ------------------------------------------------------------------------


def asked(recording: Recording) -> Mapping[tuple[str, int, int], Query]:
    """Return the queries by filter, id and how often it has come."""
    codec, found = Codec(recording.version), {}
    for line in recording.frames("S"):
        if line.type == QUERY:
            query = codec.parse_query(line.payload)
            found[line.filter, query.id, query.kind] = query
    return found


ANSWER = re.compile(
    r"RESPONSE (?P<kind>[A-Z]+)(?: qid=\w+)?(?: datalen=(?P<early>\d+))? status=(?P<status>\w+)"
    r" code=(?P<code>\d+)(?: datalen=(?P<late>\d+))?(?: line=(?P<line>'.*'))?"
    r"(?: \[DELIBERATELY .*)?"
)


def answered(note: str, query: Query) -> bytes:
    """Answer a query as it is noted; ValueError where our encoder does not."""
    found = ANSWER.fullmatch(note)
    assert found is not None
    word, datalen = found["status"], found["early"] or found["late"]
    status = Status[word] if word.isalpha() else Status(int(word))
    line = ast.literal_eval(found["line"] or "''").encode()
    return query.answer(status, int(found["code"]), line, int(datalen) if datalen else None)


def written(
    recording: Recording, line: Line, queries: Mapping[tuple[str, int, int], Query]
) -> bytes:
    """Return the frame that we write where the recorded filter wrote this one."""
    codec = Codec(recording.version)
    if line.type == REGISTER:
        hooks = re.search(r"hooks=(0x\w+)", line.note)
        return encode(REGISTER, codec.register(int(hooks[1], 16) if hooks else wire.EVERY_HOOK))
    if line.type == PIPE:
        session = codec.parse_pipe(line.payload).session
        return encode(PIPE, codec.pipe(session), fd=line.fd)
    return encode(RESPONSE, answered(line.note, queries[query_of(line, recording.version)]))


def query_of(line: Line, version: int) -> tuple[str, int, int]:
    tag = version != 52
    qid = int.from_bytes(line.payload[tag : tag + 8], "little")
    return line.filter, qid, QUERIES.index(line.note.split()[1])


@pytest.mark.parametrize("recording", FAITHFUL, ids=str)
def test_every_frame_is_written_as_it_was_recorded(recording: Recording) -> None:
    queries = asked(recording)
    for line in recording.frames("F"):
        assert without_pid(written(recording, line, queries)) == without_pid(line.octets)
    assert [query.answered for query in queries.values()] == [True] * len(queries)


# What is wrong with these is no frame by itself: how many octets went to the sink, when it was
# closed, that nothing came, or that it came twice.  The adapter is tested for it.
FAULTS_OF_ORDER = {
    name for name in FAULTY if name[:2] in ("17", "19", "43", "59", "61", "62", "64")
}


@pytest.mark.parametrize(
    "recording", [r for r in RECORDINGS if r.faulty and r.scenario not in FAULTS_OF_ORDER], ids=str
)
def test_a_faulty_frame_is_not_written(recording: Recording) -> None:
    queries, refused = asked(recording), []
    for line in recording.frames("F"):
        try:
            found = without_pid(written(recording, line, queries))
        except (ValueError, KeyError):  # not what the encoder takes, or no query that there is
            refused.append(line)
        else:
            if found != without_pid(line.octets):
                refused.append(line)
    if recording.scenario == "63-register-twice":  # its frame is a good one: test_hostile.py
        assert len([line for line in recording.frames("F") if line.type == REGISTER]) == 2
    else:
        assert len(refused) == (2 if recording.scenario[:2] in ("36", "58") else 1)


def test_every_kind_of_frame_is_among_them() -> None:
    heard = {NAMES[line.type] for recording in RECORDINGS for line in recording.frames("S")}
    said = {NAMES[line.type] for recording in FAITHFUL for line in recording.frames("F")}
    assert heard == {"REGISTER", "EVENT", "QUERY", "PIPE"}
    assert said == {"REGISTER", "PIPE", "RESPONSE"}
    assert {recording.version for recording in RECORDINGS} == {50, 51, 52}
    assert len(RECORDINGS) == 76
    assert len(FAITHFUL) == 76 - len(FAULTY) == 54
