"""Load and expand the hostile-input cases of this folder (their form: README.md).

    for case in load("opensmtpd"):
        data = expand(case)              # all bytes of the input, preambles included
        for step in steps(case): ...     # the same as writes and acts, in order

Big inputs are described, not stored: `steps` makes them piece by piece, `expand` raises `TooBig`
before it keeps more than it may.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

HERE = Path(__file__).parent
FILES = (
    *("smtp-in", "smtp-upstream", "opensmtpd", "opensmtpd52", "milter"),
    *("policy-output", "mime", "eai"),
)
PIECE = 1 << 16
VERDICTS = frozenset(
    {
        "ok",
        "reject",
        "tempfail",
        "reject-or-normalise",
        "ignore",
        "answer-failure",
        "answer-proceed",
        "close",
        "close-or-reject",
        "exit",
        "bounded",
        "refuse-call",
        "sanitise",
    }
)

Kind: TypeAlias = Literal["close", "half_close", "reset", "no_read", "read", "refuse"]
ACTS: tuple[Kind, ...] = ("close", "half_close", "reset", "no_read", "read", "refuse")

Part: TypeAlias = Mapping[str, Any]
Preambles: TypeAlias = Mapping[str, Sequence[Part]]


class TooBig(Exception):
    """The input is longer than the caller wants to hold."""


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes for the peer, one write; `fds` are descriptors that go with it, by what they are."""

    data: bytes
    fds: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Feed:
    """Bytes for the data pipe that the peer has opened; none close it."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Sync:
    """Wait for the answers to what was sent; go on when none comes."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Act:
    """Do something to the connection itself."""

    kind: Kind


Step: TypeAlias = Send | Feed | Sync | Wait | Act


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile input and what must come of it; which input field is set depends on the file."""

    id: str
    group: str
    title: str
    why: str
    protocol: str
    verdict: str
    expect: Mapping[str, Any]
    preambles: Preambles
    parts: Sequence[Part] = ()
    script: Sequence[Mapping[str, Any]] = ()
    call: Mapping[str, Any] | None = None
    policy_source: str | None = None
    address: bytes | None = None
    headers: bytes | None = None
    smtputf8: bool = False

    def __str__(self) -> str:
        return self.id


def load(*names: str) -> Sequence[Case]:
    """Return the cases of these files, or of all."""
    files = [json.loads((HERE / f"{name}.json").read_text("utf-8")) for name in names or FILES]
    return [
        _case(raw, file["protocol"], file["preambles"]) for file in files for raw in file["cases"]
    ]


def _case(raw: Mapping[str, Any], protocol: str, preambles: Preambles) -> Case:
    return Case(
        id=raw["id"],
        group=raw["group"],
        title=raw["title"],
        why=raw.get("why", ""),
        protocol=protocol,
        verdict=raw["expect"]["verdict"],
        expect=raw["expect"],
        preambles=preambles,
        parts=raw.get("input") or raw.get("rfc822") or (),
        script=raw.get("script", ()),
        call=raw.get("call"),
        policy_source=raw.get("policy_source"),
        address=_address(raw),
        headers=raw["headers"].encode() if "headers" in raw else None,
        smtputf8=raw.get("smtputf8", False),
    )


def _address(raw: Mapping[str, Any]) -> bytes | None:
    if "address_hex" in raw:
        return bytes.fromhex(raw["address_hex"])
    if "address" in raw:
        text: str = value(raw["address"])
        return text.encode("utf-8", "surrogatepass")
    return None


def value(described: Any) -> Any:
    """Turn the {"concat"}, {"repeat"} and {"bytes"} of an abstract call into Python values."""
    match described:
        case {"concat": [*several]}:
            return "".join(value(one) for one in several)
        case {"repeat": int(n), "of": str(text)}:
            return text * n
        case {"bytes": str(digits)}:
            return bytes.fromhex(digits)
        case {**fields}:
            return {key: value(one) for key, one in fields.items()}
        case [*several]:
            return [value(one) for one in several]
    return described


# -- expansion -----------------------------------------------------------------------------------


def steps(case: Case, piece: int = PIECE) -> Iterator[Step]:
    """Yield the writes and acts of a case; what repeats comes in writes of about `piece` bytes."""
    return _steps(case.parts, case.preambles, piece)


def script(case: Case, piece: int = PIECE) -> list[tuple[str, list[Step]]]:
    """Return what a scripted server does: for each row, what it comes after and what it is."""
    return [(row["on"], list(_steps(row["send"], case.preambles, piece))) for row in case.script]


def expand(case: Case, limit: int = 1 << 20) -> bytes:
    """Return all bytes of a case; `TooBig` when there are more than `limit`."""
    out = bytearray()
    for step in steps(case):
        if isinstance(step, Send):
            out += step.data
        if len(out) > limit:
            raise TooBig(f"{case.id}: more than {limit} bytes")
    return bytes(out)


def fits(case: Case, limit: int) -> bool:
    """Tell whether a case has at most `limit` bytes, without making many more than that."""
    try:
        expand(case, limit)
    except TooBig:
        return False
    return True


def _steps(parts: Sequence[Part], preambles: Preambles, piece: int) -> Iterator[Step]:
    for part in parts:
        yield from _expander(part)(part, preambles, piece)


def _bytes(parts: Sequence[Part], preambles: Preambles) -> bytes:
    made = _steps(parts, preambles, PIECE)
    return b"".join(step.data for step in made if isinstance(step, Send))


def _use(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    return _steps(preambles[part["use"]], preambles, piece)


def _text(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    yield Send(part["text"].encode("latin-1"))


def _hex(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    yield Send(bytes.fromhex(part["hex"]))


def _repeat(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    one = _bytes(part["of"], preambles)
    left, per_piece = part["repeat"], max(1, piece // len(one))
    whole = one * min(left, per_piece)
    while left >= per_piece:
        yield Send(whole)
        left -= per_piece
    if left:
        yield Send(one * left)


def _count(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    return _series(part["format"], part["start"], part["count"], piece)


def _template(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    if "imsg" in part:
        rest = bytes.fromhex(part["format_le64_then"])
        numbers = (i.to_bytes(8, "little") for i in range(part["template"]))
        return _joined((imsg(part["imsg"], number + rest) for number in numbers), piece)
    if "milter" in part:
        code, pattern = part["milter"].encode("latin-1"), part["format"]
        return _joined(
            (milter(code, (pattern % i).encode("latin-1")) for i in range(part["template"])), piece
        )
    return _series(part["format"], 0, part["template"], piece)


def _joined(frames: Iterator[bytes], piece: int) -> Iterator[Step]:
    data = bytearray()
    for frame in frames:
        data += frame
        if len(data) >= piece:
            yield Send(bytes(data))
            data.clear()
    yield Send(bytes(data))


def _series(pattern: str, start: int, count: int, piece: int) -> Iterator[Step]:
    conversions = pattern.replace("%%", "").count("%")
    per_piece = max(1, piece // len(pattern))
    for low in range(start, start + count, per_piece):
        numbers = range(low, min(low + per_piece, start + count))
        yield Send("".join(pattern % ((i,) * conversions) for i in numbers).encode("latin-1"))


def milter(code: bytes, body: bytes) -> bytes:
    """Return a packet of the milter protocol."""
    return (len(body) + 1).to_bytes(4) + code + body


def _milter(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    code = bytes.fromhex(part["milter_hex"]) if "milter_hex" in part else part["milter"].encode()
    yield Send(milter(code, _bytes(part["body"], preambles)))


def imsg(type: int, body: bytes, *, length: int | None = None, flags: int = 0) -> bytes:
    """Return a frame of the legacy OpenSMTPD API as a little-endian host writes it."""
    header = struct.pack("<IHHII", type, 16 + len(body) if length is None else length, flags, 0, 0)
    return header + body


def _imsg(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    fds = (part["fd"],) * part.get("fds", 1) if "fd" in part else ()
    flags = part.get("flags", 1 if fds else 0)
    body = _bytes(part["body"], preambles)
    yield Send(imsg(part["imsg"], body, length=part.get("len"), flags=flags), fds)


def _data_pipe(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    for step in _steps(part["data_pipe"], preambles, piece):
        if isinstance(step, Send):
            yield Feed(step.data)
    if not part.get("keep_open"):
        yield Feed(b"")


def _chunk(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    data, size = _bytes(part["of"], preambles), part["chunk"]
    for at in range(0, len(data), size):
        yield Send(data[at : at + size])


def _sync(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    yield Sync()


def _wait(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    yield Wait(part["wait_ms"] / 1000)


def _act(part: Part, preambles: Preambles, piece: int) -> Iterator[Step]:
    yield from (Act(kind) for kind in ACTS if kind in part)


Expander: TypeAlias = Callable[[Part, Preambles, int], Iterator[Step]]

_EXPANDERS: Mapping[str, Expander] = {
    "text": _text,
    "hex": _hex,
    "repeat": _repeat,
    "count": _count,
    "template": _template,
    "milter": _milter,
    "milter_hex": _milter,
    "imsg": _imsg,
    "data_pipe": _data_pipe,
    "chunk": _chunk,
    "use": _use,
    "sync": _sync,
    "wait_ms": _wait,
    **dict.fromkeys(ACTS, _act),
}


def _expander(part: Part) -> Expander:
    for key, expander in _EXPANDERS.items():
        if key in part:
            return expander
    raise ValueError(f"unknown part {part!r}")
