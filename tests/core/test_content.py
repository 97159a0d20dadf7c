"""A body is the same whether it lies in memory or on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.content import PIECE, Body


def gathered(pieces: list[bytes], memory: int) -> Body:
    body = Body(memory)
    for piece in pieces:
        body.append(piece)
    return body


@given(st.lists(st.binary(max_size=40), max_size=10), st.integers(0, 200), st.integers(1, 70))
def test_pieces_and_memory_do_not_matter(pieces: list[bytes], memory: int, size: int) -> None:
    body, whole = gathered(pieces, memory), b"".join(pieces)
    assert body.size == len(whole)
    assert b"".join(body.pieces(size)) == whole
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
