"""The codec against recorded sessions: it reads every packet, and writes only good ones."""

from __future__ import annotations

import re

import pytest

from mailgate_milter import wire
from mailgate_milter.wire import Command, Decoder, MacroStage, Packet, Response
from tests.milter.recorded import Connection, Frame, Recording, everything

RECORDINGS = everything()
CONNECTIONS = [
    pytest.param(connection, id=f"{recording}-{number}")
    for recording in RECORDINGS
    for number, connection in enumerate(recording.connections, 1)
]


def packets(frames: list[Frame]) -> list[Packet]:
    return [(frame.code[0], frame.data) for frame in frames]


@pytest.mark.parametrize("piece", [1 << 20, 4096, 7])
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_all_that_an_mta_said_is_read(connection: Connection, piece: int) -> None:
    decoder, data = Decoder(), connection.given
    read = [
        packet
        for at in range(0, len(data), piece)
        for packet in decoder.receive_data(data[at : at + piece])
    ]
    assert decoder.error is None
    assert read == packets(connection.of("M"))


def again(frame: Frame) -> bytes:
    """Read a packet of an MTA and write it."""
    data = frame.data
    match Command(frame.code[0]):
        case Command.OPTNEG:
            return wire.offer(*wire.parse_offer(data))
        case Command.MACRO:
            values = {
                name.decode().strip("{}"): value.decode("utf-8", "surrogateescape")
                for name, value in wire.parse_macros(data).items()
            }
            return wire.macros(wire.macro_command(data), values)
        case Command.CONNECT:
            return wire.connect(*wire.parse_connect(data))
        case Command.HELO:
            return wire.helo(wire.parse_string(data, "HELO"))
        case Command.UNKNOWN:
            return wire.unknown(wire.parse_string(data, "UNKNOWN"))
        case Command.MAIL | Command.RCPT as command:
            path, arguments = wire.parse_path(data, command.name)
            make = wire.mail if command is Command.MAIL else wire.rcpt
            return make(b"<" + path + b">" if data.startswith(b"<") else path, *arguments)
        case Command.HEADER:
            return wire.header(*wire.parse_header(data))
        case Command.BODY as command:
            return wire.packet(command, data)
        case command:
            assert data == b""
            return wire.packet(command)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_what_an_mta_said_is_written_as_it_was(connection: Connection) -> None:
    for frame in connection.of("M"):
        assert again(frame) == frame.raw


# -- the filter's side ----------------------------------------------------------------------------

REFUSED = {
    "bad-edit-truncated": "half of an edit",
    "bad-extra-data": "data behind CONTINUE",
    "bad-length-huge": "a length",
    "bad-length-zero": "a length",
    "bad-reply-code": "an answer that is none",
    "conn-fail-eom": "there is no function for it",
    "eom-addrcpt": "a path without brackets",  # good for an MTA; ours are always in brackets
    "eom-chgheader-0": "index 0",
    "eom-header-badname": "a name that is none",
    "reply-250": "2xx",
    "reply-mismatch": "4.7.1 for 554",
    "reply-noenhanced": "no enhanced status",
    "shutdown-rcpt": "there is no function for it",
}


def ours(frame: Frame) -> bytes:
    """Write what a recorded filter said; ValueError where our encoder cannot or will not."""
    data = frame.data
    match Response(frame.code[0]):
        case Response.OPTNEG:
            agreed = wire.parse_negotiated(data)
            symbols = {MacroStage(stage): names for stage, names in agreed.symbols.items()}
            return wire.negotiated(agreed.version, agreed.actions, agreed.steps, symbols)
        case Response.REPLYCODE:
            return _reply(wire.parse_reply(data))
        case Response.ADDHEADER:
            return wire.add_header(*wire.parse_header(data))
        case Response.INSHEADER:
            return wire.insert_header(*wire.parse_indexed(data))
        case Response.CHGHEADER:
            return wire.change_header(*wire.parse_indexed(data))
        case Response.REPLBODY:
            return wire.replace_body(data)
        case Response.QUARANTINE:
            return wire.quarantine(wire.parse_string(data, "QUARANTINE").decode())
        case Response.DELRCPT:
            return wire.delete_recipient(wire.parse_path(data, "DELRCPT")[0])
        case Response.ADDRCPT | Response.ADDRCPT_PAR | Response.CHGFROM as response:
            path, arguments = wire.parse_path(data, response.name)
            text = b" ".join(arguments).decode()
            if response is Response.CHGFROM:
                return wire.change_sender(path, text)
            return wire.add_recipient(path, text)
    return _without_data[Response(frame.code[0])]


def _reply(text: str) -> bytes:
    lines = [re.fullmatch(r"([0-9]{3})[ -]([0-9.]*) ?(.*)", one) for one in text.split("\r\n")]
    first = lines[0]
    assert first is not None
    return wire.reply_code(int(first[1]), first[2], [one[3] for one in lines if one is not None])


_without_data = {
    Response.CONTINUE: wire.CONTINUE,
    Response.ACCEPT: wire.ACCEPT,
    Response.REJECT: wire.REJECT,
    Response.TEMPFAIL: wire.TEMPFAIL,
    Response.DISCARD: wire.DISCARD,
    Response.SKIP: wire.SKIP,
    Response.PROGRESS: wire.PROGRESS,
}


def refused(recording: Recording) -> list[Frame]:
    """Return what a recorded filter said and our encoder does not."""
    found = []
    for connection in recording.connections:
        for frame in connection.of("F"):
            try:
                written = ours(frame)
            except (ValueError, wire.WireError, IndexError, KeyError):
                written = b""
            if written != frame.raw:
                found.append(frame)
    return found


@pytest.mark.parametrize("recording", RECORDINGS, ids=str)
def test_our_encoder_writes_what_a_good_filter_said_and_nothing_else(
    recording: Recording,
) -> None:
    same = {  # ADDRCPT_PAR without parameters is ADDRCPT
        "eom-addrcpt-par": [b"\x00\x00\x00\x132<two@example.net>\x00"],
    }
    found = [frame.raw for frame in refused(recording)]
    if recording.scenario in REFUSED:
        assert found
    else:
        assert found == same.get(recording.scenario, [])


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_all_that_a_filter_said_is_read(connection: Connection) -> None:
    frames = connection.of("F")
    codes = {response.value for response in Response}
    good = [f for f in frames if f.code and f.code[0] in codes and len(f.raw) > 4]
    decoder = Decoder(Response)
    read = decoder.receive_data(b"".join(frame.raw for frame in frames))
    if [len(f.raw) - 4 for f in frames] == [int.from_bytes(f.raw[:4]) for f in good]:
        assert decoder.error is None
        assert read == packets(frames)
    else:
        assert decoder.error is not None


def test_there_is_a_recording_for_each_refusal() -> None:
    scenarios = {recording.scenario for recording in RECORDINGS}
    assert scenarios >= set(REFUSED)
    assert len(CONNECTIONS) == 265
