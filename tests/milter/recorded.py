"""Read recorded milter sessions (`traces/README.md`): packets, SMTP replies, what arrived.

for path in traces():
    recording = read(path)
    recording.connections[0].given      # the octets that the MTA wrote to the filter
    recording.dialogue                  # what the SMTP client said and got
    recording.delivered                 # the messages that came out
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

TRACES = Path(__file__).parent / "traces"

Kind: TypeAlias = Literal["postfix", "sendmail"]
Side: TypeAlias = Literal["M", "F", "close"]
KINDS: tuple[Kind, ...] = ("postfix", "sendmail")

_FAULTY = re.compile(
    r"bad-.*|at-.*-close|double-reply|conn-fail-eom|shutdown-rcpt"
    r"|reply-(?:250|mismatch|noenhanced)"
    r"|eom-(?:edit-at-header|header-badname|not-negotiated|replbody-interleaved)"
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A packet as it was on the wire; some of a faulty filter are none."""

    side: Side
    raw: bytes

    @property
    def code(self) -> bytes:
        """Return the command or response, one octet."""
        return self.raw[4:5]

    @property
    def data(self) -> bytes:
        """Return what stands behind it."""
        return self.raw[5:]


@dataclass(slots=True)
class Connection:
    """The packets of one connection between MTA and filter, in recorded order."""

    frames: list[Frame] = field(default_factory=list)

    def of(self, side: Side) -> list[Frame]:
        """Return the packets of one side."""
        return [frame for frame in self.frames if frame.side == side]

    @property
    def given(self) -> bytes:
        """Return all that the MTA wrote to the filter."""
        return b"".join(frame.raw for frame in self.of("M"))

    def answers(self) -> list[tuple[Frame, list[Frame]]]:
        """Return each packet of the MTA, MACRO left out, with what was answered to it."""
        found: list[tuple[Frame, list[Frame]]] = []
        for frame in self.frames:
            if frame.side == "M" and frame.code != b"D":
                found.append((frame, []))
            elif frame.side == "F":
                found[-1][1].append(frame)
        return found


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message that arrived: paths with brackets, their ESMTP parameters by name."""

    sender: bytes
    sender_params: dict[bytes, bytes]
    recipients: Sequence[bytes]
    recipient_params: Sequence[dict[bytes, bytes]]
    raw: bytes


@dataclass(frozen=True, slots=True)
class Recording:
    """One scenario with one MTA."""

    path: Path
    connections: Sequence[Connection]
    dialogue: Sequence[tuple[str, bytes]]
    """("C" or "S", text): a line of the server, a write of the client."""
    delivered: Sequence[Delivered]

    def __str__(self) -> str:
        return f"{self.kind}-{self.scenario}"

    @property
    def kind(self) -> Kind:
        """Return which MTA it was."""
        return "postfix" if self.path.parent.name == "postfix" else "sendmail"

    @property
    def scenario(self) -> str:
        """Return the name, the same for both MTAs."""
        return self.path.stem

    @property
    def faulty(self) -> bool:
        """Tell whether the recorded filter did wrong on purpose: no policy has us do that."""
        return _FAULTY.fullmatch(self.scenario) is not None

    @property
    def abridged(self) -> bool:
        """Tell whether the message that the client sent is not there as a whole."""
        return any(
            side == "C" and re.search(rb"\.\.\. \([0-9]+ octets\)\r\n", text)
            for side, text in self.dialogue
        )


def traces() -> list[Path]:
    """Return the packet file of every scenario, in a stable order."""
    return sorted(
        path for path in TRACES.rglob("*.jsonl") if not path.name.endswith(".smtp.jsonl")
    )


def read(path: Path) -> Recording:
    """Read one scenario."""
    connections: dict[int, Connection] = {}
    for line in _lines(path):
        frames = connections.setdefault(line["conn"], Connection()).frames
        frames.append(Frame(line["dir"], bytes.fromhex(line["hex"])))
    smtp = _lines(path.with_suffix(".smtp.jsonl"))
    return Recording(
        path,
        list(connections.values()),
        [(line["dir"], _octets(line["text"])) for line in smtp if line["dir"] != "delivered"],
        [_delivered(line) for line in smtp if line["dir"] == "delivered"],
    )


def everything() -> list[Recording]:
    """Read all of them."""
    return [read(path) for path in traces()]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def _octets(text: str) -> bytes:
    return text.encode("latin-1")


def _delivered(line: dict[str, Any]) -> Delivered:
    sender, sender_params = path_and_params(_octets(line["mail"]))
    recipients = [path_and_params(_octets(text)) for text in line["rcpts"]]
    return Delivered(
        sender,
        sender_params,
        [path for path, _ in recipients],
        [params for _, params in recipients],
        _octets(line["data"]),
    )


def path_and_params(text: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the path of an SMTP command's argument, and its ESMTP parameters."""
    found = re.fullmatch(rb'(<(?:"(?:[^"\\]|\\.)*"|[^>"])*>)((?: [^ ]+)*)', text)
    assert found is not None, text
    params = (word.partition(b"=") for word in found[2].split())
    return found[1], {name.upper(): value for name, _, value in params}
