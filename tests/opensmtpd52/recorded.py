"""Read recorded conversations of smtpd with a filter (`traces/README.md`).

    for recording in RECORDINGS:
        for filter in recording.filters:
            for line in recording.heard(filter): ...   # S, F, PI and PO, as the filter had them

Octets are as they were; those of chunks that a file has only the start of are made up.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.opensmtpd52.frames import EVENT, HEADER, PIPE, QUERY, REGISTER, RESPONSE

little_endian = pytest.mark.skipif(
    struct.pack("=H", 1) != b"\1\0" or struct.calcsize("N") != 8,
    reason="the octets were recorded on a little-endian host of 64 bits",
)

TRACES = Path(__file__).parent / "traces"
NAMES = {REGISTER: "REGISTER", EVENT: "EVENT", QUERY: "QUERY", PIPE: "PIPE", RESPONSE: "RESPONSE"}

FAULTY = {
    "17-eom-datalen-mismatch": "tells of more octets than it wrote",
    "19-eom-response-before-sink-close": "never closes the sink",
    "36-ok-with-code-and-line": "has words of its own for what is taken",
    "39-unknown-status-value": "has an unknown status",
    "43-eom-ok-understated-size": "tells of fewer octets than it wrote",
    "46-long-response-line": "has a line of 900 octets",
    "48-multiline-response": "forges a second reply",
    "49-short-code": "has a code of one digit and no line",
    "50-bad-qid": "answers what was not asked",
    "51-bad-type": "answers another kind of query",
    "52-bad-trunc": "cuts its answer short",
    "53-bad-unterminated": "has a line without its NUL",
    "55-bad-len0": "has a length of 0 in its header",
    "56-bad-lenbig": "has a length of 16,385 in its header",
    "57-bad-msgtype": "has an unknown type",
    "58-bad-twice": "answers twice",
    "59-bad-exit": "ends before it has answered",
    "60-bad-nodatalen": "tells no length at EOM",
    "61-register-exit": "ends before it has registered",
    "62-register-silent": "never registers",
    "63-register-twice": "registers twice",
    "64-silent-on-mail": "never answers MAIL",
}
"""Recorded filters that did wrong on purpose, to see what smtpd makes of it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a recording.

    ``direction`` is S, F, PI, PO, C, R, D or INFO.  Empty ``octets`` are an end of file.
    ``cut`` is set where the octets are not those of the recording.
    """

    direction: str
    octets: bytes
    note: str
    filter: str = ""
    client: str = ""
    session: str = ""
    fd: bool = False
    cut: bool = False
    time: float = 0.0

    @property
    def type(self) -> int:
        """Return the type of a frame."""
        return int(HEADER.unpack_from(self.octets)[0])

    @property
    def payload(self) -> bytes:
        """Return the payload of a frame."""
        return self.octets[HEADER.size :]


@dataclass(frozen=True, slots=True)
class Recording:
    """One scenario with one smtpd."""

    path: Path
    lines: Sequence[Line]

    def __str__(self) -> str:
        return str(self.path.relative_to(TRACES).with_suffix(""))

    @property
    def scenario(self) -> str:
        return self.path.stem

    @property
    def version(self) -> int:
        """Return the API version that was spoken."""
        folder = self.path.parent.name
        return int(folder.removeprefix("api")) if folder.startswith("api") else 52

    @property
    def faulty(self) -> bool:
        """Tell whether the recorded filter did wrong on purpose."""
        return self.scenario in FAULTY

    @property
    def filters(self) -> list[str]:
        """Return the names of the filters, the first of a chain first."""
        return sorted({line.filter for line in self.lines} - {""})

    def heard(self, filter: str) -> list[Line]:
        """Return what one filter read and wrote, in the order that it did."""
        return [line for line in self.lines if line.filter == filter]

    def of(self, *directions: str) -> list[Line]:
        return [line for line in self.lines if line.direction in directions]

    def frames(self, direction: str) -> list[Line]:
        """Return the frames of one side, S or F; ends and gaps are none."""
        return [line for line in self.of(direction) if line.octets]


def read(path: Path) -> Recording:
    """Read one trace."""
    return Recording(path, [_line(json.loads(text)) for text in path.read_text().splitlines()])


def _line(raw: dict[str, Any]) -> Line:
    octets = bytes.fromhex(raw.get("hex", ""))
    cut = "len" in raw
    return Line(
        direction=raw["dir"],
        octets=octets + _filler(raw["len"] - len(octets)) if cut else octets,
        note=re.sub(r" \[hex cut .*\]$", "", raw["note"]),
        filter=raw.get("filter", ""),
        client=raw.get("client", ""),
        session=raw.get("session", ""),
        fd=raw.get("fd", False),
        cut=cut,
        time=raw.get("t", 0.0),
    )


def _filler(size: int) -> bytes:
    return (b"what was here is not in the file\n" * (size // 33 + 1))[-size:]


RECORDINGS = [read(path) for path in sorted(TRACES.rglob("*.jsonl"))]
FAITHFUL = [recording for recording in RECORDINGS if not recording.faulty]
