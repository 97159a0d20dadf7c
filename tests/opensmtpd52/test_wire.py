"""The payloads: what smtpd says in each API version, and what may be answered.

The octets written out here are from recordings (`traces/`); the others are made by
`tests.opensmtpd52.frames`, which shares no code with the codec.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailgate_opensmtpd52 import wire
from mailgate_opensmtpd52.wire import Codec, Event, Happening, Kind, Pipe, Query, Status, WireError
from tests.opensmtpd52.frames import QUERIES, Hearing, Response, Speech, inet, local
from tests.opensmtpd52.recorded import little_endian

VERSIONS = (50, 51, 52)
SESSION = 0xE2C1DF7A7DDAA6A6
QID = 0x5FEA6786A3CD36CD

S = bytes.fromhex("5eef341d8567ea5f")
Q = bytes.fromhex("cd36cda38667ea5f")
CLIENT, SERVER = inet("192.0.2.1", 35640), inet("192.0.2.25", 25)


def codec(version: int = 52) -> Codec:
    return Codec(version)


def query(kind: str, *arguments: bytes, version: int = 52) -> Query:
    payload = Speech(version).query(SESSION, QID, kind, *arguments)
    return codec(version).parse_query(payload)


# -- REGISTER ------------------------------------------------------------------------------------


@little_endian
@pytest.mark.parametrize(
    ("payload", "version"),
    [
        ("34000000 663100", 52),
        ("01 33000000 04 663100", 51),
        ("01 32000000 04 663100", 50),
    ],
)
def test_the_first_message_tells_the_version(payload: str, version: int) -> None:
    found, name = wire.parse_registration(bytes.fromhex(payload))
    assert (found.version, name) == (version, b"f1")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [b"", b"f" * 300, b"caf\xe9 \r\n"])
def test_any_name_is_taken(version: int, name: bytes) -> None:
    found, read = wire.parse_registration(Speech(version).register(name))
    assert (found.version, read) == (version, name)


def tagged(version: int) -> bytes:
    return b"\1" + struct.pack("=I", version) + b"\4f1\0"


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"", "version 0;"),
        (struct.pack("=I", 52)[:3], "version 0;"),
        (struct.pack("=I", 53) + b"f1\0", "version 53;"),
        (struct.pack("=I", 51) + b"f1\0", "version 51;"),  # 51 has tags
        (tagged(52), "version 52;"),  # and 52 has none
        (tagged(49), "version 49;"),
        (tagged(2**32 - 1), "version "),
        (struct.pack("=I", 52), "a string without an end"),
        (struct.pack("=I", 52) + b"f1", "a string without an end"),
        (struct.pack("=I", 52) + b"f1\0junk", "4 octets too many"),
        (tagged(51)[:-1], "a string without an end"),
        (tagged(51)[:5] + b"\6f1\0", "no value of the type 4"),
        (tagged(51)[:5], "no value of the type 4"),
        (tagged(50) + b"\0", "1 octets too many"),
    ],
)
def test_a_registration_that_is_none(payload: bytes, error: str) -> None:
    with pytest.raises(WireError, match=error):
        wire.parse_registration(payload)


def test_an_unknown_version_is_told_with_those_that_are_known() -> None:
    with pytest.raises(WireError, match="API version 53; this mailgate knows 50, 51 and 52"):
        wire.parse_registration(struct.pack("=I", 53) + b"f1\0")


@little_endian
@pytest.mark.parametrize(
    ("version", "hooks", "payload"),
    [
        (52, wire.EVERY_HOOK, "ffffffff 00000000"),
        (52, 0x3FF, "ff030000 00000000"),
        (51, wire.EVERY_HOOK, "00 ffffffff 00 00000000"),
        (50, 0x3FF, "00 ff030000 00 00000000"),
    ],
)
def test_what_a_filter_registers(version: int, hooks: int, payload: str) -> None:
    assert codec(version).register(hooks) == bytes.fromhex(payload)


def test_every_hook_has_the_one_that_counts() -> None:
    assert wire.EVERY_HOOK & wire.DATALINE == 0x400


# -- EVENT and PIPE ------------------------------------------------------------------------------


@little_endian
@pytest.mark.parametrize(
    ("version", "payload", "happening"),
    [
        (52, "5eef341d8567ea5f 00000000", Happening.CONNECT),
        (52, "5eef341d8567ea5f 01000000", Happening.RESET),
        (52, "5eef341d8567ea5f 02000000", Happening.DISCONNECT),
        (52, "5eef341d8567ea5f 03000000", Happening.BEGIN),
        (52, "5eef341d8567ea5f 04000000", Happening.COMMIT),
        (52, "5eef341d8567ea5f 05000000", Happening.ROLLBACK),
        (51, "06 5eef341d8567ea5f 00 03000000", Happening.BEGIN),
        (51, "06 5eef341d8567ea5f 00 05000000", Happening.ROLLBACK),
        (50, "06 5eef341d8567ea5f 00 02000000", Happening.DISCONNECT),
        (50, "06 5eef341d8567ea5f 00 03000000", Happening.COMMIT),
        (50, "06 5eef341d8567ea5f 00 04000000", Happening.ROLLBACK),
    ],
)
def test_an_event_is_read(version: int, payload: str, happening: Happening) -> None:
    event = codec(version).parse_event(bytes.fromhex(payload))
    assert event == Event(0x5FEA67851D34EF5E, happening)


@pytest.mark.parametrize(("version", "number"), [(52, 6), (51, 6), (50, 5), (52, -1), (50, -1)])
def test_an_event_of_no_meaning(version: int, number: int) -> None:
    speech = Speech(version)
    with pytest.raises(WireError, match=rf"EVENT {number}\b"):
        codec(version).parse_event(speech.id(SESSION) + speech.s32(number))


@little_endian
@pytest.mark.parametrize(
    ("version", "payload"),
    [(52, "5eef341d8567ea5f"), (51, "06 5eef341d8567ea5f"), (50, "06 5eef341d8567ea5f")],
)
def test_a_pipe_is_announced_and_answered_alike(version: int, payload: str) -> None:
    octets = bytes.fromhex(payload)
    assert codec(version).parse_pipe(octets) == Pipe(0x5FEA67851D34EF5E)
    assert codec(version).pipe(0x5FEA67851D34EF5E) == octets


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_its_own_length_is_refused(version: int) -> None:
    speech = Speech(version)
    event, pipe = speech.event(SESSION, "RESET"), speech.pipe(SESSION)
    for payload in (event[:-1], event + b"\0", b""):
        with pytest.raises(WireError, match=r"too short|too long"):
            codec(version).parse_event(payload)
    for payload in (pipe[:-1], pipe + b"\0", b""):
        with pytest.raises(WireError, match=r"too short|too long"):
            codec(version).parse_pipe(payload)


def test_a_value_of_another_type_is_refused() -> None:
    speech = Speech(51)
    event = speech.event(SESSION, "RESET")
    with pytest.raises(WireError, match="types"):
        codec(51).parse_event(b"\5" + event[1:])
    with pytest.raises(WireError, match="types"):
        codec(51).parse_event(event.replace(b"\0\1\0", b"\1\1\0"))
    with pytest.raises(WireError, match="types"):
        codec(51).parse_pipe(b"\7" + speech.pipe(SESSION)[1:])
    with pytest.raises(WireError, match="types"):
        codec(51).parse_query(b"\7" + speech.query(SESSION, QID, "DATA")[1:])


# -- QUERY ---------------------------------------------------------------------------------------


@little_endian
def test_a_connect_query_is_read() -> None:
    local_address = "0200526d7f0000010000000000000000"
    remote = "02008b387f0000010000000000000000"
    payload = bytes.fromhex(
        f"5eef341d8567ea5f cd36cda38667ea5f 00000000 1000000000000000 {local_address}"
        f"1000000000000000 {remote} 6c6f63616c686f737400"
    )
    found = codec().parse_query(payload)
    assert (found.session, found.id, found.kind) == (0x5FEA67851D34EF5E, QID, Kind.CONNECT)
    assert (found.local, found.remote) == (bytes.fromhex(local_address), bytes.fromhex(remote))
    assert (found.name, found.fault) == (b"localhost", "")


@little_endian
def test_a_query_of_an_older_version_is_read() -> None:
    head = "06 5eef341d8567ea5f 06 cd36cda38667ea5f 00"
    found = codec(51).parse_query(bytes.fromhex(f"{head} 05000000 01 6c010000"))
    assert (found.kind, found.datalen, found.fault) == (Kind.EOM, 364, "")
    found = codec(50).parse_query(bytes.fromhex(f"{head} 01000000 04 612e6f726700"))
    assert (found.kind, found.name, found.fault) == (Kind.HELO, b"a.org", "")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_kind_has_its_arguments(version: int) -> None:
    speech = Speech(version)
    connect = query(
        *(
            "CONNECT",
            speech.sockaddr(SERVER),
            speech.sockaddr(CLIENT),
            speech.string(b"<unknown>"),
        ),
        version=version,
    )
    helo = query("HELO", speech.string(b"[192.0.2.1]"), version=version)
    mail = query("MAIL", speech.mailaddr(b"Ann.B@example.org"), version=version)
    rcpt = query("RCPT", speech.mailaddr(b"bob@[192.0.2.9]"), version=version)
    data = query("DATA", version=version)
    eom = query("EOM", speech.u32(2**32 - 1), version=version)
    found = [connect, helo, mail, rcpt, data, eom]

    assert [q.fault for q in found] == [""] * 6
    assert [q.kind for q in found] == [*Kind][:6]
    assert {(q.session, q.id) for q in found} == {(SESSION, QID)}
    assert (connect.local, connect.remote, connect.name) == (SERVER, CLIENT, b"<unknown>")
    assert (helo.name, mail.mailbox, rcpt.mailbox) == (
        *(b"[192.0.2.1]", b"Ann.B@example.org"),
        b"bob@[192.0.2.9]",
    )
    assert eom.datalen == 2**32 - 1


@pytest.mark.parametrize(
    "sockaddr", [b"", b"\2", local(), inet("2001:db8::1", 25), b"\xff" * 16, b"x" * 9000]
)
def test_any_sockaddr_is_read_as_it_is(sockaddr: bytes) -> None:
    speech = Speech()
    found = query("CONNECT", speech.sockaddr(sockaddr), speech.sockaddr(CLIENT), b"h\0")
    assert (found.local, found.remote, found.fault) == (sockaddr, CLIENT, "")


def halves(user: bytes, domain: bytes) -> bytes:
    return user.ljust(256, b"\0") + domain.ljust(256, b"\0")


@pytest.mark.parametrize(
    ("octets", "mailbox"),
    [
        (halves(b"", b""), b""),
        (halves(b"a", b"example.org"), b"a@example.org"),
        (halves(b"root", b""), b"root"),
        (halves(b"", b"example.org"), b"@example.org"),
        (halves(b"a\0SECRET", b"example.org\0X"), b"a@example.org"),
        (halves(b"\xff\xfe", b"example.org"), b"\xff\xfe@example.org"),
        (halves(b"u" * 255, b"d" * 255), b"u" * 255 + b"@" + b"d" * 255),
    ],
)
def test_an_address_ends_at_its_nul(octets: bytes, mailbox: bytes) -> None:
    found = query("MAIL", octets)
    assert (found.mailbox, found.fault) == (mailbox, "")


HUGE = b"\xff" * struct.calcsize("N")

FAULTS: dict[str, tuple[str, bytes]] = {
    "connect without arguments": ("CONNECT", b""),
    "half of a length": ("CONNECT", b"\x10\0\0"),
    "sockaddr cut short": ("CONNECT", Speech().sockaddr(SERVER)[:-1]),
    "sockaddr without an end": ("CONNECT", HUGE + b"h\0"),
    "one sockaddr only": ("CONNECT", Speech().sockaddr(SERVER)),
    "no host name": ("CONNECT", Speech().sockaddr(SERVER) * 2),
    "host name without its NUL": ("CONNECT", Speech().sockaddr(SERVER) * 2 + b"h"),
    "something behind the host name": ("CONNECT", Speech().sockaddr(SERVER) * 2 + b"h\0x"),
    "helo without its NUL": ("HELO", b"client"),
    "helo twice": ("HELO", b"a\0b\0"),
    "mail without arguments": ("MAIL", b""),
    "mail cut short": ("MAIL", halves(b"a", b"b")[:-1]),
    "user without its NUL": ("MAIL", b"a" * 256 + b"b".ljust(256, b"\0")),
    "domain without its NUL": ("RCPT", b"a".ljust(256, b"\0") + b"b" * 256),
    "rcpt with more": ("RCPT", halves(b"a", b"b") + b"\0"),
    "data with an argument": ("DATA", b"x"),
    "eom without a length": ("EOM", b""),
    "eom with half of it": ("EOM", b"\0\0\0"),
    "eom with more": ("EOM", bytes(5)),
    "dataline": ("DATALINE", b"x\0"),
    "dataline without arguments": ("DATALINE", b""),
}


@pytest.mark.parametrize(("kind", "arguments"), FAULTS.values(), ids=FAULTS)
def test_wrong_arguments_can_be_answered(kind: str, arguments: bytes) -> None:
    found = query(kind, arguments)
    assert found.fault
    assert (found.session, found.id, found.kind) == (SESSION, QID, QUERIES.index(kind))


@pytest.mark.parametrize("number", [-1, 7, 2**31 - 1, -(2**31)])
def test_an_unknown_kind_can_be_answered(number: int) -> None:
    speech = Speech()
    found = codec().parse_query(speech.id(SESSION) + speech.id(QID) + speech.s32(number))
    assert str(number) in found.fault
    answer = Hearing().read(4, found.answer(Status.FAIL, 451, b"4.3.0 no"))
    assert isinstance(answer, Response)
    assert (answer.qid, answer.kind) == (QID, str(number))


def test_an_argument_of_another_type_is_a_fault() -> None:
    speech = Speech(51)
    for kind, arguments in {
        "HELO": b"\5" + speech.string(b"x")[1:],
        "EOM": b"\2" + speech.u32(1)[1:],
        "MAIL": b"\4" + speech.mailaddr(b"a@b")[1:],
        "CONNECT": b"\2" + speech.sockaddr(SERVER)[1:],
    }.items():
        assert "no value of the type" in query(kind, arguments, version=51).fault


@pytest.mark.parametrize("version", VERSIONS)
def test_a_query_of_nobody_cannot_be_answered(version: int) -> None:
    whole = Speech(version).query(SESSION, QID, "DATA")
    for end in range(len(whole)):
        with pytest.raises(WireError, match="too short"):
            codec(version).parse_query(whole[:end])


# -- RESPONSE ------------------------------------------------------------------------------------


@little_endian
@pytest.mark.parametrize(
    ("version", "payload", "status", "code", "line"),
    [
        (52, "03000000 00000000 00000000", Status.OK, 0, b""),
        (52, "03000000 01000000 00000000", Status.FAIL, 0, b""),
        (52, "03000000 02000000 00000000", Status.CLOSE, 0, b""),
        (52, "03000000 01000000 26020000 352e312e31206e6f00", Status.FAIL, 550, b"5.1.1 no"),
        (52, "03000000 02000000 a5010000 342e372e30206e6f00", Status.CLOSE, 421, b"4.7.0 no"),
        (51, "00 03000000 00 00000000 00 00000000", Status.OK, 0, b""),
        (
            *(51, "00 03000000 00 01000000 00 26020000 04 352e312e31206e6f00"),
            *(Status.FAIL, 550, b"5.1.1 no"),
        ),
    ],
)
def test_an_answer_is_written(
    version: int, payload: str, status: Status, code: int, line: bytes
) -> None:
    tag = "" if version == 52 else "06"
    asked = Speech(version).query(
        int.from_bytes(S, "little"), int.from_bytes(Q, "little"), "RCPT", mailaddr(version)
    )
    found = codec(version).parse_query(asked)
    assert not found.answered
    assert found.answer(status, code, line) == bytes.fromhex(f"{tag} cd36cda38667ea5f {payload}")
    assert found.answered


def mailaddr(version: int) -> bytes:
    return Speech(version).mailaddr(b"bob@example.net")


@little_endian
def test_the_answer_to_eom_has_a_length() -> None:
    asked = bytes.fromhex("5eef341d8567ea5f 7a996cb68c67ea5f 05000000 6c010000")
    answer = "7a996cb68c67ea5f 05000000 {} {} {}"
    found = codec().parse_query(asked)
    assert found.answer(Status.OK, datalen=364) == bytes.fromhex(
        answer.format("6c010000", "00000000", "00000000")
    )
    found = codec().parse_query(asked)
    assert found.answer(Status.FAIL, 550, b"5.7.1 spam", 0) == bytes.fromhex(
        answer.format("00000000", "01000000", "26020000") + "352e372e31207370616d00"
    )
    older = bytes.fromhex("06 5eef341d8567ea5f 06 7a996cb68c67ea5f 00 05000000 01 6c010000")
    found = codec(50).parse_query(older)
    assert found.answer(Status.OK, datalen=364) == bytes.fromhex(
        "06 7a996cb68c67ea5f 00 05000000 01 6c010000 00 00000000 00 00000000"
    )


def rcpt() -> Query:
    return query("RCPT", mailaddr(52))


def eom() -> Query:
    return query("EOM", Speech().u32(364))


# What ends smtpd, forges a reply, or leaves the client with words that nobody chose.
REFUSED: dict[str, Callable[[], bytes]] = {
    "ok with a code and a line": lambda: rcpt().answer(Status.OK, 250, b"2.0.0 fine"),
    "ok with a refusal": lambda: rcpt().answer(Status.OK, 550, b"5.7.1 no"),
    "ok with a code": lambda: rcpt().answer(Status.OK, 550),
    "ok with a line": lambda: rcpt().answer(Status.OK, 0, b"fine"),
    "an unknown status": lambda: rcpt().answer(7, 455, b"status seven"),  # type: ignore[arg-type]
    "an unknown status alone": lambda: rcpt().answer(7),  # type: ignore[arg-type]
    "a line without a code": lambda: rcpt().answer(Status.FAIL, 0, b"5.7.1 no"),
    "a code without a line": lambda: rcpt().answer(Status.FAIL, 550),
    "a code of one digit": lambda: rcpt().answer(Status.FAIL, 5, b"5.7.1 no"),
    "a code of two digits": lambda: rcpt().answer(Status.FAIL, 99, b"5.7.1 no"),
    "a code of four digits": lambda: rcpt().answer(Status.FAIL, 5500, b"5.7.1 no"),
    "a negative code": lambda: rcpt().answer(Status.FAIL, -550, b"5.7.1 no"),
    "a code that accepts": lambda: rcpt().answer(Status.FAIL, 250, b"2.0.0 fine"),
    "a code that goes on": lambda: rcpt().answer(Status.CLOSE, 354, b"go on"),
    "a code from 600 on": lambda: rcpt().answer(Status.FAIL, 600, b"no"),
    "a line over 500 octets": lambda: rcpt().answer(Status.FAIL, 550, b"x" * 501),
    "a line over smtpd's buffer": lambda: rcpt().answer(Status.FAIL, 550, b"x" * 2100),
    "a line end": lambda: rcpt().answer(Status.FAIL, 550, b"first\r\n550 second"),
    "a line end at the end": lambda: rcpt().answer(Status.FAIL, 550, b"first\n"),
    "a bare CR": lambda: rcpt().answer(Status.FAIL, 550, b"first\r250 ok"),
    "a NUL": lambda: rcpt().answer(Status.FAIL, 550, b"first\0second"),
    "a tab": lambda: rcpt().answer(Status.FAIL, 550, b"first\tsecond"),
    "eight bits": lambda: rcpt().answer(Status.FAIL, 550, b"caf\xe9"),
    "a length where none belongs": lambda: rcpt().answer(Status.OK, datalen=364),
    "a length of zero where none belongs": lambda: rcpt().answer(Status.OK, datalen=0),
    "eom without a length": lambda: eom().answer(Status.OK),
    "a length of more than 32 bits": lambda: eom().answer(Status.OK, datalen=1 << 32),
    "a length below zero": lambda: eom().answer(Status.OK, datalen=-1),
    "eom refused without a length": lambda: eom().answer(Status.FAIL, 550, b"5.7.1 no"),
}


@pytest.mark.parametrize("write", REFUSED.values(), ids=REFUSED)
def test_what_no_filter_may_say_is_refused(write: Callable[[], bytes]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        write()


@pytest.mark.parametrize("kind", ["RCPT", "EOM"])
def test_a_query_has_one_answer(kind: str) -> None:
    asked = eom() if kind == "EOM" else rcpt()
    datalen = 364 if kind == "EOM" else None
    asked.answer(Status.OK, datalen=datalen)
    for status, code, line in ((Status.OK, 0, b""), (Status.FAIL, 451, b"4.3.0 no")):
        with pytest.raises(ValueError, match="one answer"):
            asked.answer(status, code, line, datalen)


def test_an_answer_that_was_refused_was_none() -> None:
    asked = rcpt()
    with pytest.raises(ValueError, match="not the reply"):
        asked.answer(Status.FAIL, 250, b"2.0.0 fine")
    with pytest.raises(ValueError, match="7"):
        asked.answer(7)  # type: ignore[arg-type]
    assert not asked.answered
    assert asked.answer(Status.OK)


def test_the_longest_line_fits_into_a_reply_of_smtpd() -> None:
    answer = rcpt().answer(Status.FAIL, 550, b"x" * wire.MAX_LINE)
    assert answer.endswith(b"x" * 500 + b"\0")


# -- any octets ----------------------------------------------------------------------------------

numbers = st.integers(0, 2**64 - 1)
names = st.binary(max_size=60).map(lambda octets: octets.replace(b"\0", b""))
words = names.map(lambda octets: octets.replace(b"@", b""))
lines = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=500)


@given(payload=st.binary(max_size=700), version=st.sampled_from(VERSIONS))
@example(payload=b"", version=52)
@example(payload=b"\1" + bytes(600), version=51)
def test_any_octets_are_read_or_refused(payload: bytes, version: int) -> None:
    """Nothing but WireError comes out, and a query is what can be answered once."""
    parsers: tuple[Callable[[bytes], object], ...] = (
        *(wire.parse_registration, codec(version).parse_event),
        *(codec(version).parse_pipe, codec(version).parse_query),
    )
    for parse in parsers:
        try:
            found = parse(payload)
        except WireError:
            continue
        if isinstance(found, Query):
            datalen = 0 if found.kind == Kind.EOM else None
            Hearing(version).read(4, found.answer(Status.FAIL, 451, b"4.3.0 no", datalen))


@given(
    version=st.sampled_from(VERSIONS),
    session=numbers,
    qid=numbers,
    addresses=st.tuples(st.binary(max_size=40), st.binary(max_size=40)),
    name=names,
    datalen=st.integers(0, 2**32 - 1),
)
def test_what_smtpd_says_is_what_is_read(
    version: int,
    session: int,
    qid: int,
    addresses: tuple[bytes, bytes],
    name: bytes,
    datalen: int,
) -> None:
    speech, ours = Speech(version), codec(version)
    ends = [speech.sockaddr(octets) for octets in addresses]
    connect = ours.parse_query(speech.query(session, qid, "CONNECT", *ends, speech.string(name)))
    helo = ours.parse_query(speech.query(session, qid, "HELO", speech.string(name)))
    eom = ours.parse_query(speech.query(session, qid, "EOM", speech.u32(datalen)))
    assert (connect.local, connect.remote, connect.name) == (*addresses, name)
    assert (helo.name, eom.datalen) == (name, datalen)
    for found in (connect, helo, eom):
        assert (found.session, found.id, found.fault) == (session, qid, "")


@given(version=st.sampled_from(VERSIONS), user=words, domain=words)
def test_any_address_is_read(version: int, user: bytes, domain: bytes) -> None:
    address = user + b"@" + domain if domain else user
    found = query("RCPT", Speech(version).mailaddr(address), version=version)
    assert (found.mailbox, found.fault) == (address, "")


@given(
    version=st.sampled_from(VERSIONS),
    kind=st.sampled_from(QUERIES[:6]),
    cut=st.integers(1, 600),
    more=st.binary(min_size=1, max_size=20),
)
def test_arguments_too_few_or_too_many_are_a_fault(
    version: int, kind: str, cut: int, more: bytes
) -> None:
    speech = Speech(version)
    arguments = {
        "CONNECT": speech.sockaddr(SERVER) + speech.sockaddr(CLIENT) + speech.string(b"name"),
        "HELO": speech.string(b"name"),
        **dict.fromkeys(("MAIL", "RCPT"), mailaddr(version)),
        "DATA": b"",
        "EOM": speech.u32(364),
    }[kind]
    assert query(kind, arguments, version=version).fault == ""
    assert query(kind, arguments + more, version=version).fault
    if arguments:
        assert query(kind, arguments[: -min(cut, len(arguments))], version=version).fault


@given(
    version=st.sampled_from(VERSIONS),
    status=st.sampled_from([Status.FAIL, Status.CLOSE]),
    code=st.integers(400, 599),
    line=lines,
    datalen=st.none() | st.integers(0, 2**32 - 1),
)
def test_what_is_answered_is_what_smtpd_reads(
    version: int, status: Status, code: int, line: str, datalen: int | None
) -> None:
    kind = "DATA" if datalen is None else "EOM"
    arguments = [] if datalen is None else [Speech(version).u32(0)]
    asked = query(kind, *arguments, version=version)
    answer = Hearing(version).read(4, asked.answer(status, code, line.encode(), datalen))
    assert answer == Response(QID, kind, int(status), code, line.encode(), datalen)
