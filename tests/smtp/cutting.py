"""Cut octets in every way that a network may."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hypothesis import strategies as st


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """Yield some octets whole, one by one, and as two pieces in every way there is."""
    yield [data]
    yield bytewise(data)
    for at in range(len(data) + 1):
        yield [data[:at], data[at:]]


def cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


def mixed(*parts: bytes) -> st.SearchStrategy[bytes]:
    """Draw octets that are made of these parts."""
    return st.lists(st.sampled_from(parts), max_size=24).map(b"".join)


SIZES = st.lists(st.integers(1, 9), max_size=40)
