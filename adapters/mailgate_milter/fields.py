"""Header fields: from HEADER packets to what policies see, and back into packets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial

from mailgate.headers import Field, Section
from mailgate.syntax import is_field_name

OWN_TRACE = Field(b"", b"received", trace=True)
"""Stands for the Received field that the MTA puts on top and shows to no filter.

What a policy prepends goes above it, as on every other protocol.
"""

_LOOSE_LINE_END = re.compile(rb"\r?\n(?![ \t])|\r(?!\n)")


def section_of(packets: Sequence[bytes], octets: int, *, leading_space: bool) -> Section:
    """Return the section that HEADER packets make up, below the MTA's own field.

    ``octets`` are those of the fields.  ``leading_space``: values came whole (HDR_LEADSPC),
    else the MTA has eaten the space before each.
    """
    return Section(partial(_fields, packets, leading_space), len(packets), octets)


def _fields(packets: Sequence[bytes], leading_space: bool) -> tuple[Field, ...]:
    return (OWN_TRACE, *(_field(data, leading_space) for data in packets))


def _field(data: bytes, leading_space: bool) -> Field:
    name, value, _ = data.split(b"\0")
    if b"\n" in value or b"\r" in value:
        # Behind a line end without a blank there would be another field.
        value = _LOOSE_LINE_END.sub(b"\n ", value).replace(b"\r\n", b"\n")
        value = value.replace(b"\n", b"\r\n")
    if not leading_space and value[:1] != b"\t":
        value = b" " + value
    known = _known_name(name) if len(name) <= _COMMON else _name(name)
    return Field(name + b":" + value + b"\r\n", known)


def _name(name: bytes) -> bytes:
    return name.lower() if is_field_name(name) else b""


_COMMON = 76  # octets of a name; what is longer is no use in a cache
_known_name = lru_cache(maxsize=1024)(_name)  # most come with nearly every message


def name_and_value(field: Field, *, leading_space: bool) -> tuple[bytes, bytes]:
    """Return a field as a packet has it: the lines of its value divided by LF."""
    name, _, value = field.raw.partition(b":")
    value = value.removesuffix(b"\r\n").replace(b"\r\n", b"\n").replace(b"\r", b" ")
    return name.rstrip(b" \t"), value if leading_space else value.removeprefix(b" ")
