"""A message's edits as packets, in the one form that gives the same message on every MTA.

Postfix and Sendmail differ in how fields are counted after a deletion, where ADDHEADER and
INSHEADER put a field, and in what may stand between two pieces of a body.  They agree on this
order: changes; deletions, the last field of a name first; insertions below the MTA's own
field, then above it, the lowest first; insertions behind the end; the envelope; the body.  A field in the middle has no request
of its own: everything behind it is deleted and put in again behind the end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from mailgate.address import Address
from mailgate.headers import Field, Section
from mailgate.message import Message
from mailgate.syntax import format_parameters
from mailgate_milter.fields import name_and_value
from mailgate_milter.wire import (
    BOTTOM,
    MAX_DATA,
    add_recipient,
    change_header,
    change_sender,
    delete_recipient,
    insert_header,
    quarantine,
    replace_body,
)


def edits(
    message: Message,
    section: Section | None,
    paths: Mapping[str, Sequence[bytes]],
    *,
    hold: str | None,
    leading_space: bool,
    with_arguments: bool,
) -> list[bytes]:
    """Return the packets for all that policies changed; ``hold`` is why to quarantine it.

    ``section`` is the header section as it came, ``paths`` has the paths of RCPT by recipient:
    an MTA removes a recipient by the address as the client gave it.  ``leading_space``:
    HDR_LEADSPC was agreed on; ``with_arguments``: ADDRCPT_PAR was.  Raises ValueError for a
    field or an address that no packet can carry.
    """
    packets = [] if hold is None else [quarantine(hold)]
    if not message.edits:
        return packets
    if section is not None:
        added = message.headers.only_added
        if added is None:
            after = message.headers.fields
            packets += header_edits(section.fields, after, leading_space=leading_space)
        else:
            packets += [
                insert_header(BOTTOM, *name_and_value(new, leading_space=leading_space))
                for new in added
            ]
    packets += sender_edits(message.original_sender, message.sender)
    packets += recipient_edits(
        message.original_recipients, message.recipients, paths, with_arguments=with_arguments
    )
    packets += body_edits(message.new_body)
    return packets


# -- header fields -----------------------------------------------------------------------------


def header_edits(
    before: tuple[Field, ...], after: tuple[Field, ...], *, leading_space: bool
) -> Iterator[bytes]:
    """Yield the packets that make one header section out of another.

    Both hold the MTA's own field: `OWN_TRACE`, which is the first before the edits.
    """
    moves = _moves(before, after)
    numbers = _numbers(before) if moves.changed or moves.deleted else {}
    for old, new in moves.changed:
        name, value = name_and_value(new, leading_space=leading_space)
        yield change_header(numbers[old], name, value or b" ")  # an empty one would delete
    for gone in reversed(moves.deleted):
        yield change_header(numbers[gone], gone.original_name, b"")
    for new in reversed(moves.below_trace):
        yield insert_header(1, *name_and_value(new, leading_space=leading_space))
    for new in reversed(moves.top):
        yield insert_header(0, *name_and_value(new, leading_space=leading_space))
    for new in moves.bottom:
        yield insert_header(BOTTOM, *name_and_value(new, leading_space=leading_space))


@final
@dataclass(slots=True)
class _Moves:
    """How a header section is reached from another.

    ``changed`` pairs an old field with the new one in its place; ``below_trace`` is right
    below the MTA's own field.
    """

    top: list[Field] = field(default_factory=list)
    below_trace: list[Field] = field(default_factory=list)
    changed: list[tuple[Field, Field]] = field(default_factory=list)
    deleted: list[Field] = field(default_factory=list)
    bottom: list[Field] = field(default_factory=list)


def _moves(before: tuple[Field, ...], after: tuple[Field, ...]) -> _Moves:
    """Walk both sections.

    A field is taken over, or it takes the place of one of its name before the next that is
    taken over.  One at the very beginning goes below the MTA's own; from any other that has no
    place, all is put in anew.
    """
    moves = _Moves()
    start = next(n for n, new in enumerate(after) if new.trace)
    moves.top = list(after[:start])
    kept = _kept(before, after)
    named = _by_name(before)
    at = first = 1  # in `before`, which begins with the MTA's own field
    for position in range(start + 1, len(after)):
        new = after[position]
        here, end = kept[position]
        found = here if here >= 0 else _next_named(named, new, at, end)
        if found < at == first:
            moves.below_trace.append(new)
            continue
        if found < at:
            moves.bottom = list(after[position:])
            break
        moves.deleted += before[at:found]
        if before[found] is not new:
            moves.changed.append((before[found], new))
        at = found + 1
    moves.deleted += before[at:]
    return moves


def _kept(before: Sequence[Field], after: Sequence[Field]) -> list[tuple[int, int]]:
    """Return for each field of ``after`` its place in ``before``, or -1, and the place of the
    next one that has one.
    """
    place = {old: at for at, old in enumerate(before)}
    found: list[tuple[int, int]] = []
    following = len(before)
    for new in reversed(after):
        here = place.get(new, -1)
        if here >= 0:
            following = here
        found.append((here, following))
    return found[::-1]


def _by_name(fields: Sequence[Field]) -> dict[bytes, list[int]]:
    """Return where the fields of each name are; Sendmail keeps the spelling of what it changes."""
    places: dict[bytes, list[int]] = {}
    for at, one in enumerate(fields):
        if one.name and not one.trace:
            places.setdefault(one.original_name, []).append(at)
    return places


def _next_named(named: Mapping[bytes, list[int]], new: Field, at: int, end: int) -> int:
    """Return the first place from ``at`` on and before ``end`` of a name, or -1."""
    places = named.get(new.original_name, []) if new.name else []
    which = bisect_left(places, at)
    return places[which] if which < len(places) and places[which] < end else -1


def _numbers(fields: Sequence[Field]) -> dict[Field, int]:
    """Return the number of each field among those of its name, from 1."""
    numbers: dict[Field, int] = {}
    seen: dict[bytes, int] = {}
    for one in fields:
        if one.trace:
            continue  # the MTA does not count its own
        name = one.name or one.raw.partition(b":")[0].lower()
        numbers[one] = seen[name] = seen.get(name, 0) + 1
    return numbers


# -- envelope and body -------------------------------------------------------------------------


def sender_edits(before: Address, after: Address) -> Iterator[bytes]:
    """Yield the packet that changes the sender.

    Without arguments the MTA keeps the ESMTP parameters; with some, Sendmail forgets the DSN
    ones that are not among them, and Postfix keeps them.
    """
    if after is before:
        return
    new = {
        keyword: value
        for keyword, value in after.params.items()
        if keyword not in before.params or before.params[keyword] != value
    }
    if new:
        new = {k: v for k, v in after.params.items() if k in new or k in _DSN}
    yield change_sender(_octets(after), format_parameters(new))


_DSN = frozenset({"RET", "ENVID"})  # RFC 3461 4.3, 4.4


def recipient_edits(
    before: Sequence[Address],
    after: Sequence[Address],
    paths: Mapping[str, Sequence[bytes]],
    *,
    with_arguments: bool,
) -> Iterator[bytes]:
    """Yield the packets that make one set of recipients out of another.

    Removed ones go first: an MTA may take two spellings of an address for one.
    """
    if after == before:
        return
    left, there = frozenset(after), frozenset(before)
    for gone in dict.fromkeys(before):
        if gone not in left:
            for path in dict.fromkeys(paths.get(gone, ())):
                yield delete_recipient(path)
    for new in dict.fromkeys(after):
        if new not in there:
            arguments = format_parameters(new.params) if with_arguments else ""
            yield add_recipient(_octets(new), arguments)


def body_edits(body: bytes | None) -> Iterator[bytes]:
    """Yield a new body in one run of pieces; an empty one is one empty piece."""
    if body is not None:
        for at in range(0, max(len(body), 1), MAX_DATA):
            yield replace_body(body[at : at + MAX_DATA])


def _octets(address: Address) -> bytes:
    return str(address).encode("utf-8", "surrogateescape")
