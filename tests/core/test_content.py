"""A body is the same whether it lies in memory or on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.content import PIECE, Body, Form


def gathered(pieces: Iterable[bytes], memory: int, *, form: Form = "crlf") -> Body:
    body = Body(memory, form=form)
    for piece in pieces:
        body.append(piece)
    return body


@given(st.lists(st.binary(max_size=40), max_size=10), st.integers(0, 200), st.integers(1, 70))
def test_pieces_and_memory_do_not_matter(pieces: list[bytes], memory: int, size: int) -> None:
    body, whole = gathered(pieces, memory), b"".join(pieces)
    assert body.size == body.held == len(whole)
    assert body.in_memory == (len(whole) if len(whole) <= memory else 0)
    assert b"".join(body.pieces(size)) == b"".join(body.held_pieces(size)) == whole
    assert body.read() == whole
    body.append(b"more")
    assert body.read() == whole + b"more"
    assert b"".join(body.pieces(size)) == whole + b"more"
    body.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_above_memory_is_spooled_and_given_back() -> None:
    before = descriptors()
    body = gathered([b"x" * 100], memory=100)
    assert descriptors() == before
    body.append(b"y")
    assert descriptors() == before + 1
    body.close()
    assert descriptors() == before
    assert (body.size, body.read()) == (0, b"")


def test_a_spool_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    body = gathered([b"x" * 100], memory=1)
    assert list(tmp_path.iterdir()) == []
    body.close()


def test_a_spool_that_cannot_be_written_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    body = Body(1)
    with pytest.raises(OSError, match="missing"):
        body.append(b"xx")


def test_a_spooled_body_comes_in_pieces_of_a_bounded_size() -> None:
    body = gathered([b"x" * (3 * PIECE + 1)], memory=1)
    assert [len(piece) for piece in body.pieces()] == [PIECE, PIECE, PIECE, 1]
    body.close()


def test_a_reader_that_is_late_reads_nothing() -> None:
    """A handler past its deadline may be reading in its thread while the message is released."""
    body = gathered([b"abcdef"], memory=1)
    pieces = body.pieces(2)
    assert next(pieces) == b"ab"
    body.close()
    assert b"".join(pieces) == b""


def test_two_readers_do_not_disturb_each_other() -> None:
    body = gathered([b"abcdef"], memory=1)
    first, second = body.pieces(2), body.pieces(3)
    assert [next(first), next(second), next(first), next(second), next(first)] == [
        *(b"ab", b"abc", b"cd", b"def", b"ef")
    ]
    body.close()


# -- dot-stuffed lines ---------------------------------------------------------------------------

LINES = st.lists(st.sampled_from([b".", b"..", b"a", b"\r\n", b"\r", b"\n"]), max_size=30).map(
    b"".join
)


def plain(stuffed: bytes) -> bytes:
    """Return lines as RFC 5321 4.5.2 has them read: without the first dot of each."""
    return b"\r\n".join(
        line[1:] if line.startswith(b".") else line for line in stuffed.split(b"\r\n")
    )


@given(LINES, st.integers(0, 40), st.integers(1, 40), st.lists(st.integers(0, 60), max_size=8))
def test_stuffed_lines_may_be_cut_anywhere(
    stuffed: bytes, memory: int, size: int, cuts: list[int]
) -> None:
    at = [0, *sorted(min(cut, len(stuffed)) for cut in cuts), len(stuffed)]
    body = gathered((stuffed[a:b] for a, b in pairwise(at)), memory, form="stuffed")
    assert body.held == len(stuffed)
    assert body.read() == b"".join(body.pieces(size)) == plain(stuffed)
    assert b"".join(body.held_pieces(size)) == stuffed
    assert body.size == len(plain(stuffed))
    assert all(len(piece) <= size for piece in body.pieces(size)) or body.in_memory
    body.append(b"\r\n..x")
    assert body.read() == b"".join(body.pieces(size)) == plain(stuffed + b"\r\n..x")
    assert body.size == len(plain(stuffed + b"\r\n..x"))
    body.close()
    assert (body.size, body.held, body.in_memory, body.read()) == (0, 0, 0, b"")


@pytest.mark.parametrize("memory", [0, 1000])
@pytest.mark.parametrize("size", range(1, 12))
def test_stuffed_lines_are_read_right_across_every_cut(memory: int, size: int) -> None:
    stuffed = b"..a\r\n..\r\n\r\n...b\r\nc.\r\n"
    for at in range(len(stuffed) + 1):
        body = gathered([stuffed[:at], stuffed[at:]], memory, form="stuffed")
        assert b"".join(body.pieces(size)) == b".a\r\n.\r\n\r\n..b\r\nc.\r\n"
        body.close()


def test_what_is_not_stuffed_is_not_copied() -> None:
    octets = b"no dot begins a line.\r\n" * 100
    body = gathered([octets], memory=PIECE, form="stuffed")
    assert body.read() is octets
    assert next(body.pieces()) is octets
    assert next(body.held_pieces()) is octets


@given(st.binary(max_size=60), st.integers(0, 40), st.lists(st.integers(0, 60), max_size=8))
def test_lines_with_lf_are_read_with_crlf_and_kept_as_they_came(
    octets: bytes, memory: int, cuts: list[int]
) -> None:
    lines = b"\r\n".join(octets.split(b"\n"))
    at = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    body = gathered((octets[a:b] for a, b in pairwise(at)), memory, form="lf")
    assert body.held == len(octets)
    assert body.size == len(lines)
    assert body.read() == b"".join(body.pieces(7)) == lines
    assert b"".join(body.held_pieces(7)) == octets
    body.close()


def test_how_much_lies_in_memory() -> None:
    body = gathered([b"..a", b"b"], memory=5, form="stuffed")
    assert body.in_memory == 4
    body.append(b"\r\n")
    assert body.in_memory == 0
    body.close()
