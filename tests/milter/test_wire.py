"""The codec packet by packet: what the MTA writes, however it is cut, and what may be answered."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailgate_milter import wire
from mailgate_milter.wire import (
    MAX_DATA,
    MAX_HEADER,
    Action,
    Command,
    Connect,
    Decoder,
    MacroStage,
    Negotiated,
    Offer,
    Packet,
    Response,
    Step,
    TooLong,
    WireError,
)
from tests.milter.samples import CLIENTS, SAMPLES, SMFIC, SMFIF, SMFIM, SMFIP, SMFIR, frame

# -- published numbers ------------------------------------------------------------------------------


def test_the_numbers_are_those_of_mfdef() -> None:
    assert {c.name: chr(c) for c in Command} == SMFIC
    assert {r.name: chr(r) for r in Response} == SMFIR
    assert {a.name: a.value for a in Action} == SMFIF
    assert {s.name: s.value for s in Step} == SMFIP
    assert {m.name: m.value for m in MacroStage} == SMFIM


def test_what_each_version_knows() -> None:
    assert (wire.OLDEST, wire.NEWEST) == (2, 6)
    assert {v: int(a) for v, a in wire.ACTIONS_OF.items()} == {
        **dict.fromkeys((2, 3, 4, 5), 0x3F),  # SMFI_V2_ACTS
        6: 0x1FF,  # SMFI_CURR_ACTS
    }
    steps = {v: int(s & ~(Step.MDS_1M | Step.MDS_256K)) for v, s in wire.STEPS_OF.items()}
    assert steps == {2: 0x7F, 3: 0x17F, 4: 0x37F, 5: 0x37F, 6: 0x1FFFFF}


def test_the_sizes_of_pieces() -> None:
    assert MAX_DATA == 65_535  # MILTER_CHUNK_SIZE
    assert wire.CHUNK_OF == {Step.MDS_256K: 262_143, Step.MDS_1M: 1_048_575}
    assert list(wire.CHUNK_OF) == [Step.MDS_1M, Step.MDS_256K]  # the greater goes first


# -- packets --------------------------------------------------------------------------------------


def decoded(pieces: Sequence[bytes], decoder: Decoder | None = None) -> list[Packet]:
    """Return the packets in these pieces; the decoder must not have found a fault."""
    decoder = decoder or Decoder()
    packets = [packet for piece in pieces for packet in decoder.receive_data(piece)]
    assert decoder.error is None
    return packets


def refusal(*pieces: bytes, decoder: Decoder | None = None) -> str:
    """Return the fault that a decoder finds."""
    decoder = decoder or Decoder()
    for piece in pieces:
        decoder.receive_data(piece)
    assert isinstance(decoder.error, WireError)
    return str(decoder.error)


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize(("code", "data"), SAMPLES)
def test_a_packet_is_read_whatever_its_pieces(code: str, data: bytes) -> None:
    whole, following = frame(code, data), frame("A", b"")
    packet, next_packet = (ord(code), data), (Command.ABORT, b"")
    assert decoded([whole]) == [packet]
    assert decoded(bytewise(whole)) == [packet]
    assert decoded([whole[:-1], whole[-1:]]) == [packet]
    assert decoded([whole + following]) == [packet, next_packet]
    assert decoded([whole + following[:3], following[3:]]) == [packet, next_packet]
    assert decoded([whole[:-1]]) == []
    assert wire.packet(ord(code), data) == whole


def test_all_of_them_at_once() -> None:
    data = b"".join(frame(code, data) for code, data in SAMPLES)
    assert decoded([data]) == [(ord(code), data) for code, data in SAMPLES]
    assert decoded([data], Decoder(Command)) == decoded([data])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ODCHMRTLNBEAUQK"), st.binary(max_size=300)), max_size=12),
    st.lists(st.integers(1, 400), max_size=60),
)
@example([("N", b""), ("B", b"x"), ("N", b"")], [1] * 60)
@example([("B", b"x" * 10), ("N", b"")], [4, 1, 9, 1, 1, 1, 1, 1])
def test_pieces_do_not_matter(packets: list[tuple[str, bytes]], sizes: list[int]) -> None:
    data = b"".join(frame(code, payload) for code, payload in packets)
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    expected = [(ord(code), payload) for code, payload in packets]
    assert decoded([*pieces, data[at:]]) == expected


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=10))
@example([b"\0\0\0", b"\0"])
@example([b"\0\0\0\1", b"Z"])
def test_no_octets_raise_and_pieces_do_not_change_what_is_refused(pieces: list[bytes]) -> None:
    one, other = Decoder(), Decoder()
    packets = [packet for piece in pieces for packet in one.receive_data(piece)]
    assert other.receive_data(b"".join(pieces)) == packets
    assert str(one.error) == str(other.error)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0\0\0", "a packet of length 0"),
        (b"\xff\xff\xff\xff", "a packet of length 4294967295"),
        (struct.pack(">I", MAX_HEADER + 2), f"a packet of length {MAX_HEADER + 2}"),
        (struct.pack(">I", MAX_HEADER + 2) + b"L", f"a packet of length {MAX_HEADER + 2}"),
        (b"GET / HTTP/1.1\r\n\r\n", "a packet of length 1195725856"),
        (b"\0\0\0\1Z", "an unknown command 0x5a"),
        (b"\0\0\0\1c", "an unknown command 0x63"),
        (b"\0\0\0\1\0", "an unknown command 0x00"),
        (struct.pack(">I", MAX_DATA + 2) + b"B", "a B packet of length 65537, over 65536"),
        (struct.pack(">I", MAX_DATA + 2) + b"M", "a M packet of length 65537, over 65536"),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_awaited(data: bytes, said: str) -> None:
    assert refusal(data) == said
    assert refusal(*bytewise(data)) == said
    assert refusal(frame("A", b"") + data) == said


def test_packets_before_a_fault_are_handed_out_and_none_behind_it() -> None:
    decoder = Decoder()
    assert decoder.receive_data(frame("N", b"") + frame("Z", b"") + frame("E", b"")) == [
        (Command.EOH, b"")
    ]
    assert decoder.error is not None
    assert decoder.receive_data(frame("A", b"")) == []


@pytest.mark.parametrize("piece", [1 << 10, MAX_DATA, 1 << 21])
@pytest.mark.parametrize(("code", "size"), [("B", MAX_DATA), ("L", MAX_HEADER), ("E", MAX_DATA)])
def test_the_longest_packets_are_read(code: str, size: int, piece: int) -> None:
    data = frame(code, b"x" * size) + frame("A", b"")
    whole, last = decoded([data[at : at + piece] for at in range(0, len(data), piece)])
    assert (whole[0], len(whole[1])) == (ord(code), size)
    assert last == (Command.ABORT, b"")


@pytest.mark.parametrize("size", [262_143, 1_048_575])
def test_longer_pieces_of_a_body_are_read_where_that_was_agreed_on(size: int) -> None:
    decoder = Decoder()
    decoder.allow_body(size)
    ((code, data),) = decoded([frame("B", b"x" * size)], decoder)
    assert (code, len(data)) == (Command.BODY, size)
    assert len(decoded([frame("E", b"x" * size)], decoder)[0][1]) == size
    said = f"a B packet of length {size + 2}, over {size + 1}"
    assert refusal(frame("B", b"x" * (size + 1)), decoder=decoder) == said


def test_no_more_is_kept_than_an_unfinished_packet() -> None:
    decoder = Decoder()
    for _ in range(100):
        assert len(decoder.receive_data(frame("N", b"") * 1000 + b"\0\0")) == 1000
        assert decoder.receive_data(b"\0\1N") == [(Command.EOH, b"")]


def test_macros_that_nobody_reads_are_left_out() -> None:
    queue_id, header = frame("D", b"Li\0QUEUE\0"), frame("L", b"Subject\0one\0")
    others = [("D", b"Mi\0QUEUE\0"), ("D", b""), ("L", b"i\0QUEUE\0")]
    data = queue_id + header + b"".join(frame(code, data) for code, data in others)
    expected = [(Command.HEADER, b"Subject\0one\0")] + [(ord(c), data) for c, data in others]
    assert decoded([data], Decoder(unread=Command.HEADER)) == expected
    assert decoded(bytewise(data), Decoder(unread=Command.HEADER)) == expected
    assert decoded([data])[0] == (Command.MACRO, b"Li\0QUEUE\0")


def test_a_filter_s_answers_are_read() -> None:
    decoder = Decoder(Response)
    data = frame("O", b"x" * 12) + frame("b", b"x" * MAX_DATA) + frame("c", b"")
    assert [chr(code) for code, _ in decoded([data], decoder)] == ["O", "b", "c"]
    assert refusal(frame("L", b"")[:5], decoder=decoder) == "an unknown command 0x4c"


# -- what the MTA says ----------------------------------------------------------------------------


def test_an_offer() -> None:
    data = bytes.fromhex("00000006000001ff001fffff")
    assert wire.parse_offer(data) == Offer(6, 0x1FF, 0x1FFFFF)
    assert wire.parse_offer(data + b"\xff" * 4000) == Offer(6, 0x1FF, 0x1FFFFF)
    assert wire.offer(6, 0x1FF, 0x1FFFFF) == frame("O", data)
    for length in range(12):
        with pytest.raises(WireError, match=f"OPTNEG of {length} octets"):
            wire.parse_offer(data[:length])


@pytest.mark.parametrize(("data", "client"), CLIENTS)
def test_a_client(data: bytes, client: Connect) -> None:
    assert wire.parse_connect(data) == client
    assert wire.connect(*client) == frame("C", data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "address family ''"),
        (b"host", "address family ''"),
        (b"host\0", "address family ''"),
        (b"host\0X\0\x19x\0", "address family 'X'"),
        (b"host\0\xff\0\x19x\0", r"address family '\\xff'"),
        (b"host\x004", "without a whole address"),
        (b"host\x004\0", "without a whole address"),
        (b"host\x004\0\x19", "without a whole address"),
        (b"host\x004\0\x19192.0.2.1", "without a whole address"),
    ],
)
def test_half_a_client_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        wire.parse_connect(data)


def test_one_string() -> None:
    assert wire.parse_string(b"client.example\0", "HELO") == b"client.example"
    assert wire.parse_string(b"\0", "HELO") == b""
    assert wire.parse_string(b"a\xff\0behind", "HELO") == b"a\xff"
    with pytest.raises(WireError, match="HELO without NUL"):
        wire.parse_string(b"client.example", "HELO")
    assert wire.helo(b"client.example") == frame("H", b"client.example\0")
    assert wire.unknown(b"XFROB one two") == frame("U", b"XFROB one two\0")


@pytest.mark.parametrize(
    ("data", "path", "arguments"),
    [
        (b"<ann@client.example>\0", b"ann@client.example", []),
        (b"<>\0", b"", []),
        (b"\0", b"", []),  # Postfix, for the null sender of local mail
        (b"ann@client.example\0", b"ann@client.example", []),  # Postfix, for local mail
        (b'<"dave d"@x.example>\0NOTIFY=NEVER\0', b'"dave d"@x.example', [b"NOTIFY=NEVER"]),
        (b"<a@b>\0SIZE=1\0BODY=8BITMIME\0", b"a@b", [b"SIZE=1", b"BODY=8BITMIME"]),
        (b"<a@b>\0\0\0", b"a@b", []),
        (b"<\xff\xfe@b>\0", b"\xff\xfe@b", []),
        (b"<a@b\0", b"<a@b", []),
        (b"<\0", b"<", []),
    ],
)
def test_a_path_and_its_arguments(data: bytes, path: bytes, arguments: list[bytes]) -> None:
    assert wire.parse_path(data, "MAIL") == (path, arguments)


@pytest.mark.parametrize("data", [b"", b"<a@b>", b"<a@b>\0SIZE=1"])
def test_a_path_without_its_end_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="RCPT without NUL"):
        wire.parse_path(data, "RCPT")


def test_paths_are_written() -> None:
    assert wire.mail(b"<a@b>", b"SIZE=1") == frame("M", b"<a@b>\0SIZE=1\0")
    assert wire.mail(b"<>") == frame("M", b"<>\0")
    assert wire.rcpt(b"<a@b>", b"NOTIFY=NEVER") == frame("R", b"<a@b>\0NOTIFY=NEVER\0")


@pytest.mark.parametrize(
    ("data", "name", "value"),
    [
        (b"Subject\0one\0", b"Subject", b"one"),
        (b"X-Empty\0\0", b"X-Empty", b""),
        (b"X-Fold\0first\n second\n\tthird\0", b"X-Fold", b"first\n second\n\tthird"),
        (b"A b:\0c\xe9\0", b"A b:", b"c\xe9"),
    ],
)
def test_a_header_field(data: bytes, name: bytes, value: bytes) -> None:
    assert wire.parse_header(data) == (name, value)
    assert wire.header(name, value) == frame("L", data)
    assert wire.parse_indexed(b"\0\0\x27\x0f" + data) == (9999, name, value)


@pytest.mark.parametrize(
    "data", [b"", b"Subject", b"Subject\0", b"Subject\0one", b"\0one\0", b"Subject\0one\0two\0"]
)
def test_half_a_header_field_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="HEADER that is not a name and a value"):
        wire.parse_header(data)


def test_a_field_without_an_index_is_refused() -> None:
    with pytest.raises(WireError, match="without an index"):
        wire.parse_indexed(b"\0\0\0")


@pytest.mark.parametrize(
    ("data", "macros"),
    [
        (b"H", {}),
        (b"Ci\0QUEUE\0{auth_authen}\0ann\0", {b"i": b"QUEUE", b"{auth_authen}": b"ann"}),
        (b"Mi\0\0", {b"i": b""}),
        (b"Ri\0one\0i\0two\0", {b"i": b"two"}),
        (b"Ci\0one\0j\0", {b"i": b"one"}),  # a name without a value
        (b"Ci\0", {}),
        (b"Ci", {}),
    ],
)
def test_macros(data: bytes, macros: dict[bytes, bytes]) -> None:
    assert wire.macro_command(data) == data[0]
    assert wire.parse_macros(data) == macros


def test_macros_of_nothing_are_refused() -> None:
    with pytest.raises(WireError, match="MACRO without a command"):
        wire.macro_command(b"")


def test_macros_are_written() -> None:
    assert wire.macros(Command.HELO) == frame("D", b"H")
    assert wire.macros(Command.MAIL, {"i": "Q", "mail_addr": "", "_": "\udcff"}) == frame(
        "D", b"Mi\0Q\0{mail_addr}\0\0_\0\xff\0"
    )


# -- what the filter says -------------------------------------------------------------------------


def test_answers_without_data() -> None:
    answers = (wire.CONTINUE, wire.SKIP, wire.PROGRESS, wire.DISCARD, wire.ACCEPT)
    assert b"".join(answers) == b"".join(frame(code, b"") for code in "cspda")
    assert frame("r", b"") + frame("t", b"") == wire.REJECT + wire.TEMPFAIL


def test_what_is_agreed_on() -> None:
    head = bytes.fromhex("00000006000001ff00000000")
    assert wire.negotiated(6, 0x1FF, 0, {}) == frame("O", head)
    symbols = {
        MacroStage.CONNECT: ["j", "{client_addr}"],
        MacroStage.EOH: [],
        MacroStage.EOM: ["i"],
    }
    lists = b"\0\0\0\0j {client_addr}\0\0\0\0\6\0\0\0\0\5i\0"
    assert wire.negotiated(6, 0x1FF, 0, symbols) == frame("O", head + lists)
    assert wire.parse_negotiated(head) == Negotiated(6, 0x1FF, 0, {})
    assert wire.parse_negotiated(head + lists) == Negotiated(
        6, 0x1FF, 0, {0: ["j", "{client_addr}"], 6: [], 5: ["i"]}
    )


@pytest.mark.parametrize("rest", [b"\0", b"\0\0\0\0", b"\0\0\0\0j"])
def test_half_a_list_of_macros_is_refused(rest: bytes) -> None:
    with pytest.raises(WireError, match="half a list of macros"):
        wire.parse_negotiated(b"\0" * 12 + rest)


def test_a_reply() -> None:
    assert wire.reply_code(550, "5.7.1", ["no"]) == frame("y", b"550 5.7.1 no\0")
    lines = ["first", "second", "last"]
    data = b"554-5.7.1 first\r\n554-5.7.1 second\r\n554 5.7.1 last\0"
    assert wire.reply_code(554, "5.7.1", lines) == frame("y", data)
    assert wire.parse_reply(data) == data[:-1].decode()
    assert wire.reply_code(451, "4.7.1", ["\t~ !"]) == frame("y", b"451 4.7.1 \t~ !\0")


def test_a_percent_sign_is_doubled() -> None:
    """The text is a format for printf: Postfix drops a single one, Sendmail the whole text."""
    data = b"550 5.7.1 100%% of %%s, %%%%\0"
    assert wire.reply_code(550, "5.7.1", ["100% of %s, %%"]) == frame("y", data)
    assert wire.parse_reply(data) == "550 5.7.1 100% of %s, %%"


@pytest.mark.parametrize(
    ("code", "enhanced", "lines"),
    [
        (250, "2.0.0", ["ok"]),  # Postfix: 451 4.3.5, and the connection is lost for the rest
        (399, "3.0.0", ["x"]),
        (600, "6.0.0", ["x"]),
        (554, "4.7.1", ["x"]),  # another class: likewise
        (451, "5.7.1", ["x"]),
        (550, "", ["x"]),  # Sendmail puts 5.0.0 in
        (550, "5.7", ["x"]),
        (550, "5.7.1 ", ["x"]),
        (550, "5.7.1\n", ["x"]),
        (550, "5.7.1000", ["x"]),
        (550, "5.7.1", []),
        (550, "5.7.1", ["a\r\n250 ok"]),
        (550, "5.7.1", ["a\0b"]),
        (550, "5.7.1", ["caf\xe9"]),
        (550, "5.7.1", ["fine", "\x7f"]),
    ],
)
def test_no_reply_is_made_that_an_mta_would_misread(
    code: int, enhanced: str, lines: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"is not a reply|lines of printable"):
        wire.reply_code(code, enhanced, lines)


def test_header_edits() -> None:
    assert wire.add_header(b"X-A", b"1") == frame("h", b"X-A\x001\0")
    assert wire.insert_header(0, b"X-A", b"1") == frame("i", b"\0\0\0\0X-A\x001\0")
    assert wire.insert_header(wire.BOTTOM, b"X-A", b" 1") == frame("i", b"\0\0\x27\x0fX-A\0 1\0")
    assert wire.change_header(2, b"Subject", b"a\n b\n\tc") == frame(
        "m", b"\0\0\0\2Subject\0a\n b\n\tc\0"
    )
    assert wire.change_header(1, b"X-A", b"") == frame("m", b"\0\0\0\1X-A\0\0")
    assert wire.add_header(b"X-8", b"\xff\xfe") == frame("h", b"X-8\0\xff\xfe\0")


FIELDS: list[Callable[[bytes, bytes], bytes]] = [
    wire.add_header,
    lambda name, value: wire.insert_header(0, name, value),
    lambda name, value: wire.change_header(1, name, value),
]


@pytest.mark.parametrize("make", FIELDS)
@pytest.mark.parametrize(
    "name", [b"", b"X A", b"X-A:", b"X\n", b"X\r\nBcc", b"X\0", b"\xe9", b"X\x7f", b" X"]
)
def test_no_field_is_made_without_a_proper_name(
    make: Callable[[bytes, bytes], bytes], name: bytes
) -> None:
    """Both MTAs would deliver it as it is: a broken header section."""
    with pytest.raises(ValueError, match="not a header field name"):
        make(name, b"1")


@pytest.mark.parametrize("make", FIELDS)
@pytest.mark.parametrize("value", [b"a\r\n b", b"a\r", b"a\0b", b"a\nBcc: x", b"a\n", b"\n\n b"])
def test_no_value_is_made_that_arrives_otherwise(
    make: Callable[[bytes, bytes], bytes], value: bytes
) -> None:
    """Both MTAs deliver a stray CR, and put a blank behind a line end that has none."""
    with pytest.raises(ValueError, match="holds NUL, CR or a line end"):
        make(b"X-A", value)


def test_indexes_count_from_one() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        wire.change_header(0, b"X-A", b"1")


@pytest.mark.parametrize("index", [-1, 1 << 32])
def test_no_index_is_made_that_is_not_32_bits(index: int) -> None:
    with pytest.raises(ValueError, match="index"):
        wire.insert_header(index, b"X-A", b"1")
    with pytest.raises(ValueError, match=r"index|counted"):
        wire.change_header(index, b"X-A", b"1")


def test_a_body() -> None:
    assert wire.replace_body(b"a\r\n") == frame("b", b"a\r\n")
    assert wire.replace_body(b"") == frame("b", b"")
    assert wire.replace_body(b"x" * MAX_DATA) == frame("b", b"x" * MAX_DATA)


@pytest.mark.parametrize(
    "make",
    [
        lambda: wire.replace_body(b"x" * (MAX_DATA + 1)),
        lambda: wire.add_header(b"X-A", b"x" * MAX_DATA),
        lambda: wire.insert_header(0, b"X-A", b"x" * MAX_DATA),
        lambda: wire.change_header(1, b"X-A", b"x" * MAX_DATA),
        lambda: wire.add_recipient(b"x" * MAX_DATA),
        lambda: wire.change_sender(b"x@y", "ENVID=" + "x" * MAX_DATA),
        lambda: wire.quarantine("x" * MAX_DATA),
        lambda: wire.reply_code(550, "5.7.1", ["x" * 1000] * 70),
        lambda: wire.negotiated(6, 0, 0, {MacroStage.EOM: ["i"] * 40_000}),
    ],
)
def test_no_packet_is_made_that_is_too_long(make: Callable[[], bytes]) -> None:
    with pytest.raises(TooLong, match=f"over {MAX_DATA}"):
        make()


def test_the_envelope() -> None:
    assert wire.add_recipient(b"a@b.example") == frame("+", b"<a@b.example>\0")
    assert wire.add_recipient(b"a@b.example", " NOTIFY=NEVER ") == frame(
        "2", b"<a@b.example>\0NOTIFY=NEVER\0"
    )
    assert wire.delete_recipient(b'"a b"@c.example') == frame("-", b'<"a b"@c.example>\0')
    assert wire.change_sender(b"") == frame("e", b"<>\0")
    assert wire.change_sender(b"a@b.example", "ENVID=x RET=FULL") == frame(
        "e", b"<a@b.example>\0ENVID=x RET=FULL\0"
    )
    assert wire.add_recipient("b\xf8b@c.example".encode()) == frame(
        "+", "<b\xf8b@c.example>\0".encode()
    )


PATHS: list[Callable[[bytes], bytes]] = [
    wire.add_recipient,
    wire.delete_recipient,
    wire.change_sender,
]


@pytest.mark.parametrize("make", PATHS)
@pytest.mark.parametrize(
    "address",
    [
        *(b"a@b\0", b"a@b\r\nX", b"a\n@b"),
        # Sendmail takes a list of addresses: the second would be a recipient, too.
        *(b"a@b.example>,<c@d.example", b"<a@b.example>", b"a@b.example> NOTIFY=NEVER"),
    ],
)
def test_no_path_is_made_that_is_not_one_address(
    make: Callable[[bytes], bytes], address: bytes
) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        make(address)


@pytest.mark.parametrize("make", [wire.add_recipient, wire.delete_recipient])
def test_nobody_is_no_recipient(make: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        make(b"")


@pytest.mark.parametrize("arguments", ["A=1\0B=2", "A=1\r\nB", "caf\xe9"])
def test_arguments_are_one_line_of_ascii(arguments: str) -> None:
    for make in (wire.add_recipient, wire.change_sender):
        with pytest.raises(ValueError, match=r"not ESMTP arguments|ascii"):
            make(b"a@b.example", arguments)


def test_a_quarantine() -> None:
    assert wire.quarantine("held, caf\xe9") == frame("q", b"held, caf?\0")
    for reason in ("", "a\r\nb", "a\0b"):
        with pytest.raises(ValueError, match="one line of text"):
            wire.quarantine(reason)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_nothing_but_wire_errors_comes_out_of_what_the_mta_says(data: bytes) -> None:
    parsers: list[Callable[[bytes], object]] = [
        *(wire.parse_offer, wire.parse_connect, wire.parse_header, wire.macro_command),
        *(wire.parse_indexed, lambda data: wire.parse_string(data, "HELO")),
        lambda data: wire.parse_path(data, "MAIL"),
    ]
    for parse in parsers:
        with contextlib.suppress(WireError):
            parse(data)
    wire.parse_macros(data)
