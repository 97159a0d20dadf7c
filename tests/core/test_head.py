"""A header section ends where its first line ends it, whatever the octets are cut like."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailgate.head import OPENSMTPD, Head, mark_own
from mailgate.headers import continues_section, parse_fields
from mailgate.limits import Limits

LIMITS = Limits(headers=10_000)
TRACE = b"Received: from a (b [192.0.2.1])\r\n\tby c (OpenSMTPD) with ESMTP id 1;\r\n\tnow\r\n"

LINES = st.lists(
    st.sampled_from(
        [
            *(b"A: 1", b"b :2", b"X-Long:", b" folded", b"\ttab", b"", b"From a b", b">From a"),
            *(
                b"no field",
                b": none",
                b"caf\xe9: 3",
                b"a\r: 4",
                b"Received: (OpenSMTPD)",
                b"\0: 5",
            ),
            *(b"a\tb: 6", b" ", b"c \t : 7"),
        ]
    ),
    max_size=12,
)
CUTS = st.lists(st.integers(0, 120), max_size=6)


def by_lines(octets: bytes) -> tuple[bytes, bytes, bytes, int]:
    """Return section, separator, rest and the number of fields, found line by line."""
    at = fields = 0
    while (end := octets.find(b"\r\n", at)) >= 0:
        line = octets[at:end]
        if not continues_section(line, first=not at):
            separator = b"" if line else b"\r\n"
            return octets[:at], separator, octets[at + len(separator) :], fields
        fields += line[:1] not in (b" ", b"\t")
        at = end + 2
    return octets[:at], b"", octets[at:], fields


def fed(head: Head, octets: bytes, cuts: list[int]) -> bytes | None:
    """Feed octets cut somewhere; return what stands behind the section, None without an end."""
    at = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    rest: bytes | None = None
    for start, stop in pairwise(at):
        piece = octets[start:stop]
        rest = rest + piece if rest is not None else head.receive(piece)
    return rest


@given(LINES, CUTS)
@example([b"A: 1", b" folded", b"no field", b" folded"], [5, 6, 7])
def test_it_ends_where_its_lines_end_it(lines: list[bytes], cuts: list[int]) -> None:
    octets = b"".join(line + b"\r\n" for line in lines)
    section, separator, rest, fields = by_lines(octets)
    head = Head(LIMITS)
    found = fed(head, octets, cuts)
    assert head.fields == fields
    assert bytes(head.octets) == section
    assert (head.separator, found or b"") == (separator, rest)


def test_it_goes_on_until_something_ends_it() -> None:
    head = Head(LIMITS)
    assert head.receive(b"A: 1\r\nB") is None
    assert head.receive(b": 2\r") is None
    assert head.receive(b"\n\r\nbody") == b"body"
    assert (bytes(head.octets), head.fields, head.separator) == (b"A: 1\r\nB: 2\r\n", 2, b"\r\n")


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_octets_over_the_limit_end_it(size: int) -> None:
    head = Head(Limits(headers=100))
    octets = b"A: 1\r\n" * 50
    pieces = [octets[at : at + size] for at in range(0, len(octets), size)]
    taken = 0
    for piece in pieces:
        taken += len(piece)
        if head.receive(piece) is not None:
            break
    assert taken <= 100 + max(size, 6)
    assert len(head.octets) > 100


def test_a_line_without_an_end_ends_it_at_the_limit() -> None:
    head = Head(Limits(headers=100))
    assert head.receive(b"A: " + b"x" * 97) is None
    assert head.receive(b"x") is not None
    assert len(head.octets) > 100


def test_lines_over_the_limit_count_as_fields() -> None:
    head = Head(Limits(fields=2))
    assert head.receive(b"A: 1\r\n" + b" folded\r\n" * 20 + b"\r\n") is not None
    assert head.fields == 21


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_an_mbox_line_is_the_clients_first_behind_the_servers_own_field(size: int) -> None:
    octets = TRACE + b"From a Sat\r\nSubject: x\r\n\r\nbody"
    head = Head(LIMITS, OPENSMTPD)
    assert fed(head, octets, list(range(0, len(octets), size))) == b"body"
    assert bytes(head.octets) == TRACE + b"From a Sat\r\nSubject: x\r\n"


@pytest.mark.parametrize(
    "before",
    [TRACE + b"A: 1\r\n", TRACE.replace(OPENSMTPD, b"(Other)"), b"A: (OpenSMTPD)\r\n" * 2],
)
def test_an_mbox_line_elsewhere_is_text(before: bytes) -> None:
    head = Head(LIMITS, OPENSMTPD)
    assert head.receive(before + b"From a Sat\r\n\r\n") == b"From a Sat\r\n\r\n"
    assert head.separator == b""


@pytest.mark.parametrize(
    ("section", "marked"),
    [
        (TRACE + b"Subject: x\r\n", [True, False]),
        (b"Subject: x\r\n" + TRACE, [False, True]),
        (TRACE + TRACE, [True, False]),
        (b"Received: by other\r\n" + TRACE, [False, False]),
        (b"Subject: x\r\n", [False]),
    ],
)
def test_only_the_topmost_received_field_is_the_servers(
    section: bytes, marked: list[bool]
) -> None:
    fields = parse_fields(section)
    mark_own(fields, OPENSMTPD, b" id 1;")
    assert [field.trace for field in fields] == marked
