"""The codec's contents, octet by octet: one end of data, nothing odd, however they are cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailgate_smtp import wire
from mailgate_smtp.wire import MAX_LINE, ChunkDecoder, CommandError, DataDecoder, parse_bdat
from tests.hostile.cases import Case, expand, load
from tests.smtp.cutting import SIZES, cut, cuts, mixed

# -- the content ----------------------------------------------------------------------------------


class Content(NamedTuple):
    """What was read: the content, what is behind its end, and whether the end has come."""

    content: bytes
    behind: bytes
    ended: bool
    fault: str


def read(pieces: Sequence[bytes], decoder: DataDecoder | None = None) -> Content:
    decoder = decoder or DataDecoder()
    content = b""
    for number, piece in enumerate(pieces):
        some, behind = decoder.receive(piece)
        content += some
        if decoder.ended:
            rest = b"".join(pieces[number + 1 :])
            return Content(content, behind + rest, True, decoder.strictness.fault)
        assert behind == b""
    return Content(content, b"", False, decoder.strictness.fault)


def content_of(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the content up to the first CRLF.CRLF, and what is behind (RFC 5321 4.1.1.4)."""
    content, end, behind = (b"\r\n" + data).partition(b"\r\n.\r\n")
    return ((content + b"\r\n")[2:], behind) if end else None


ODD = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")


def check_content(pieces: Sequence[bytes]) -> Content:
    """Read some pieces; see that nothing odd comes out, and that the end is the right one."""
    found, expected = read(pieces), content_of(b"".join(pieces))
    assert ODD.search(found.content) is None
    assert found.ended is (expected is not None)
    if expected is not None:
        content, behind = expected
        assert found.behind == behind
        assert found.fault == (wire.ODD_OCTET if ODD.search(content) else "")
        assert content.startswith(found.content)
        assert found.fault or found.content == content
    return found


CLIENTS = load("smtp-in")
SMUGGLING = [case for case in CLIENTS if case.group.startswith("smuggling")]


@pytest.mark.parametrize("case", SMUGGLING, ids=str)
def test_the_end_of_data_is_found_in_every_cut(case: Case) -> None:
    data = expand(case).partition(b"DATA\r\n")[2]
    for pieces in cuts(data):
        found = check_content(pieces)
        assert found.ended
        if case.expect.get("client_messages_max") == 1:
            assert found.behind == b"QUIT\r\n"
            assert found.fault or b"MAIL FROM:<evil@example.org>" in found.content


def test_smuggling_has_every_form() -> None:
    faulty = [bool(read([expand(case).partition(b"DATA\r\n")[2]]).fault) for case in SMUGGLING]
    assert (len(SMUGGLING), sum(faulty)) == (31, 15)


@settings(deadline=None)
@given(mixed(b"\r", b"\n", b".", b"\0", b"a", b"\r\n", b"\r\n.\r\n", b"\xe9"), SIZES)
@example(b".\r\n", [1, 1, 1])
@example(b"\r\n.\r.\r\n.\r\n", [1] * 12)
def test_pieces_of_a_content_do_not_matter(data: bytes, sizes: list[int]) -> None:
    found, whole = check_content(cut(data, sizes)), read([data])
    assert found._replace(content=b"") == whole._replace(content=b"")
    assert found.fault or not found.ended or found.content == whole.content


def test_octets_are_counted_whatever_they_are() -> None:
    for pieces in cuts(b"..\r\na\nb\r\n.\r\nQUIT\r\n"):
        decoder = DataDecoder()
        read(pieces, decoder)
        assert decoder.octets == len(b"..\r\na\nb\r\n")


@settings(deadline=None)
@given(mixed(b"a", b"x" * 8, b"\r\n", b"\r\n\r\n", b"x" * 10 + b"\r\n"), SIZES)
@example(b"x" * 10 + b"\r\n" + b"x" * 11 + b"\r\n", [9])
def test_a_line_over_the_limit_is_found(data: bytes, sizes: list[int]) -> None:
    found = read(cut(data + b"\r\n.\r\n", sizes), DataDecoder(limit=10))
    long = any(len(line) > 10 for line in data.split(b"\r\n"))
    assert found.ended
    assert found.fault == ("a line over 10 octets" if long else "")
    assert long or found.content == data + b"\r\n"


def test_a_line_has_65535_octets() -> None:
    assert MAX_LINE == 65_535
    longest = b"x" * MAX_LINE + b"\r\n"
    for size in (1000, 1 << 20):
        pieces = cut(longest * 3 + b".\r\n", [size] * 300)
        assert read(pieces) == Content(longest * 3, b"", True, "")
        pieces = cut(b"x" + longest + b".\r\nQUIT\r\n", [size] * 300)
        assert read(pieces)[1:] == (b"QUIT\r\n", True, "a line over 65535 octets")


def test_short_lines_do_not_make_the_next_one_long() -> None:
    lines = b"x" * 998 + b"\r\n"
    for first in range(64_000, 66_000, 100):
        pieces = [(lines * 70)[:first], (lines * 70)[first:] + b".\r\n"]
        assert read(pieces) == Content(lines * 70, b"", True, "")


def test_nothing_is_kept_of_what_is_refused() -> None:
    decoder = DataDecoder()
    assert decoder.receive(b"a\nb") == (b"", b"")
    assert decoder.receive(b"x" * 1_000_000 + b"\r\n") == (b"", b"")
    assert decoder.receive(b".\r\nNOOP\r\n") == (b"", b"NOOP\r\n")
    assert (decoder.ended, decoder.octets) == (True, 1_000_005)


# -- line ends that are made normal -------------------------------------------------------------------


def normal(content: bytes) -> bytes:
    """Return dot-stuffed lines with proper ends: RFC 5321 2.3.8, 4.5.2."""
    plain = b"\r\n".join(line.removeprefix(b".") for line in content.split(b"\r\n"))
    proper = re.sub(rb"\r\n|\r|\n", b"\r\n", plain)
    return b"\r\n".join(
        b"." + line if line.startswith(b".") else line for line in proper.split(b"\r\n")
    )


def check_normal(data: bytes, pieces: Sequence[bytes]) -> None:
    found, expected = read(pieces, DataDecoder(normalise=True)), content_of(data)
    assert found.ended is (expected is not None)
    assert ODD.search(found.content) is None
    if expected is not None:
        content, behind = expected
        assert found.behind == behind
        assert found.fault == (wire.ODD_OCTET if b"\0" in content else "")
        assert found.fault or found.content == normal(content)
        assert not any(line == b"." for line in found.content.split(b"\r\n"))


@pytest.mark.parametrize("case", SMUGGLING, ids=str)
def test_line_ends_can_be_made_normal_in_every_cut(case: Case) -> None:
    data = expand(case).partition(b"DATA\r\n")[2]
    for pieces in cuts(data):
        check_normal(data, pieces)


@settings(deadline=None)
@given(mixed(b"\r", b"\n", b".", b"\0", b"a", b"\r\n", b"\r\n.\r\n"), SIZES)
@example(b"a\n.\r\n\r\n..\r\n.\r\n", [3, 1, 1])
def test_pieces_do_not_matter_to_normal_line_ends(data: bytes, sizes: list[int]) -> None:
    check_normal(data, cut(data, sizes))


def test_a_content_without_a_single_crlf_is_made_normal() -> None:
    data = b"a\n" * 40_000
    for end in (b"\n", b"\r"):
        pieces = cut(data.replace(b"\n", end) + b"\r\n.\r\n", [1000] * 90)
        found = read(pieces, DataDecoder(normalise=True))
        assert found == Content(b"a\r\n" * 40_000 + b"\r\n", b"", True, "")


def test_a_line_that_is_too_long_is_not_made_normal() -> None:
    data = b"x" * 70_000 + b"\r\n.\r\n"
    found = read(cut(data, [1000] * 70), DataDecoder(normalise=True))
    assert found[1:] == (b"", True, "a line over 65535 octets")


# -- dots (RFC 5321 4.5.2) ------------------------------------------------------------------------


@settings(deadline=None)
@given(mixed(b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n."), SIZES)
@example(b"..\r\n.\r\n", [1] * 7)
def test_a_second_dot_is_put_before_each_leading_one(content: bytes, sizes: list[int]) -> None:
    stuffer = wire.DotStuffer()
    pieces = [stuffer.stuff(piece) for piece in cut(content, sizes)]
    dotted = [line.startswith(b".") for line in content.split(b"\r\n")]
    lines = b"".join(pieces).split(b"\r\n")
    assert lines == [
        b"." * dot + line for dot, line in zip(dotted, content.split(b"\r\n"), strict=True)
    ]


# -- BDAT (RFC 3030) ------------------------------------------------------------------------------


def chunked(chunks: Sequence[bytes], sizes: Sequence[int]) -> tuple[bytes, str]:
    """Return the message in some chunks, each cut and with a command behind it."""
    decoder, content = ChunkDecoder(), b""
    for chunk in chunks:
        decoder.begin(len(chunk))
        behind = b""
        for piece in cut(chunk + b"BDAT 1\r\n", sizes):
            some, rest = decoder.receive(piece)
            content, behind = content + some, behind + rest
        assert decoder.ended
        assert behind == b"BDAT 1\r\n"
    content += decoder.end()
    assert decoder.octets == sum(map(len, chunks))
    return content, decoder.strictness.fault


@settings(deadline=None)
@given(st.lists(mixed(b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n.\r\n", b"\0"), max_size=4), SIZES)
@example([b"a\r", b"\nb\r\n"], [])
@example([b"a\r", b"", b"\n"], [1, 1])
@example([b"a\r"], [])
@example([b"a\r\n", b".\r\n", b"b"], [2])
def test_chunks_are_one_message_wherever_they_are_cut(
    chunks: list[bytes], sizes: list[int]
) -> None:
    whole = b"".join(chunks)
    content, fault = chunked(chunks, sizes)
    assert fault == (wire.ODD_OCTET if ODD.search(whole) else "")
    end = b"" if not whole or whole.endswith(b"\r\n") else b"\r\n"
    assert fault or content == whole + end


def test_a_chunk_is_awaited() -> None:
    decoder = ChunkDecoder()
    decoder.begin(5)
    assert decoder.receive(b"abc") == (b"abc", b"")
    assert not decoder.ended
    assert decoder.receive(b"\r\nRSET\r\n") == (b"\r\n", b"RSET\r\n")


def test_lines_of_chunks_have_the_limit_of_others() -> None:
    decoder = ChunkDecoder(limit=3)
    decoder.begin(9)
    assert decoder.receive(b"abc\r\nabcdRSET\r\n") == (b"", b"RSET\r\n")
    assert decoder.strictness.fault == "a line over 3 octets"


@pytest.mark.parametrize(
    ("argument", "chunk"),
    [(b"86 LAST", (86, True)), (b"100000", (100_000, False)), (b"0  last", (0, True))],
)
def test_a_chunk_has_a_size(argument: bytes, chunk: tuple[int, bool]) -> None:
    assert parse_bdat(argument) == chunk


@pytest.mark.parametrize(
    "argument", [b"", b"x", b"-1", b"+1", b"1_0", b"1 FIRST", b"1LAST", b"9" * 11, b"\xb2", b"1 "]
)
def test_a_chunk_without_a_size_is_refused(argument: bytes) -> None:
    with pytest.raises(CommandError) as refused:
        parse_bdat(argument)
    assert str(refused.value.reply).startswith("501 5.5.4")
