"""The header section of a message as it comes: where it ends, whatever the octets are cut like."""

from __future__ import annotations

import re
from typing import final

from mailgate.headers import Field, continues_section, is_mbox_line, parse_fields
from mailgate.limits import Limits

OPENSMTPD = b"(OpenSMTPD)"
"""In every Received field that OpenSMTPD makes."""

_LINES = 10  # of a section for each field that it may have: folds cost time, too
_OWN_LINES = 10  # that a server's own Received field may have; OpenSMTPD's has three to five


# Whole lines that `continues_section`, found at once: most sections have no others.
_FOLD_LINES = rb"(?:[ \t][^\n]*\n)*"
_FIELD_LINES = rb"(?:[^\x00- \x7f:]+[ \t]*:[^\n]*\n" + _FOLD_LINES + rb")*"
_FIELDS = re.compile(_FIELD_LINES)
_MORE = re.compile(_FOLD_LINES + _FIELD_LINES)


@final
class Head:
    """Gathers a header section from CRLF lines.

    ``own`` is what the mail server writes into the Received field that it puts on top; behind
    that field the client's first line is still to come.
    """

    __slots__ = (
        "_checked",
        "_lines",
        "_most_lines",
        "_most_octets",
        "_own",
        "fields",
        "octets",
        "separator",
    )

    def __init__(self, limits: Limits, own: bytes = b"") -> None:
        """Gather what the limits allow, and what has come with the line that is over them."""
        self._most_octets = limits.headers
        self._most_lines = _LINES * limits.fields
        self._own = own
        self._checked = 0  # octets of whole lines that belong to it
        self._lines = 0
        self.octets = bytearray()
        self.fields = 0
        self.separator = b""

    def receive(self, content: bytes) -> bytes | None:
        """Return what stands behind the section, or None where it goes on."""
        octets = self.octets
        octets += content
        while (end := octets.find(b"\n", self._checked) + 1) > 0:
            fields = (_MORE if self._lines else _FIELDS).match(octets, self._checked)
            whole = fields.end() if fields is not None else 0
            del fields  # it would keep the octets from growing
            if whole > self._checked:
                self._count(whole)
            else:
                line = bytes(octets[self._checked : end - 2])
                first = not self._lines or (is_mbox_line(line) and self._is_only_own())
                if not continues_section(line, first=first):
                    self.separator = b"" if line else b"\r\n"
                    rest = bytes(octets[self._checked + len(self.separator) :])
                    del octets[self._checked :]
                    return rest
                self._count(end)
            if self._checked > self._most_octets or self._lines > self._most_lines:
                self.fields = max(self.fields, self._lines)  # over the limit, too
                return bytes(octets[self._checked :])
        return bytes(octets) if len(octets) > self._most_octets else None

    def _count(self, end: int) -> None:
        """Take the lines up to ``end`` into the section."""
        at, octets = self._checked, self.octets
        before = max(at - 1, 0)  # a fold is told by the line end before it
        folds = octets.count(b"\n ", before, end) + octets.count(b"\n\t", before, end)
        lines = octets.count(b"\n", at, end)
        self._lines += lines
        self.fields += lines - folds
        self._checked = end

    def _is_only_own(self) -> bool:
        return self._own != b"" and is_only_own(bytes(self.octets[: self._checked]), self._own)


def is_only_own(section: bytes, own: bytes) -> bool:
    """Tell whether a section is the server's own Received field, and nothing of the client's."""
    short = section.count(b"\n") <= _OWN_LINES
    return short and own in section and len(parse_fields(section, 2)) == 1


def mark_own(fields: list[Field], *signs: bytes) -> None:
    """Mark the Received field that the server has put on top of this very message.

    It is the topmost one, and has all the signs: no other protocol would show it.
    """
    for field in fields:
        if field.name == b"received":
            field.trace = all(sign in field.raw for sign in signs)
            return
