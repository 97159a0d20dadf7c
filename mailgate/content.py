"""The octets of a message: header fields and a body that may lie on disk."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from io import FileIO
from typing import Literal, TypeAlias, final

from mailgate.syntax import unstuff_dots, with_crlf

PIECE = 64 * 1024
"""Octets of a body that are handled at a time."""

_SMALL = 1024  # octets of a piece; smaller ones are gathered: an object each would cost more


Form: TypeAlias = Literal["crlf", "stuffed", "lf"]
"""How the lines of a body are kept: see `Body`."""


@final
class Body:
    """A body as CRLF lines, gathered piece by piece; above ``memory`` octets it is spooled.

    ``form`` is what is appended, and kept: ``"stuffed"`` has a second dot before each leading one
    (RFC 5321 4.5.2), ``"lf"`` has lines that end with LF.  It is read without the dots, and with
    CRLF.  ``held`` counts the octets that were appended.

    The spool file has no name, so nothing of it is left behind however the process ends.
    OSError (a full disk) comes out of `append`.
    """

    __slots__ = ("_counted", "_file", "_lock", "_memory", "_pieces", "form", "held")

    def __init__(self, memory: int, *, form: Form = "crlf") -> None:
        self._memory = memory
        self.form = form
        self._lock = threading.Lock()
        self._pieces: list[bytes | bytearray] = []
        self._file: FileIO | None = None
        self._counted = 0, 0  # what was held when `size` was asked for, and the answer
        self.held = 0

    @property
    def size(self) -> int:
        """Octets of the body as it is read."""
        if self.form == "crlf":
            return self.held
        if self._counted[0] != self.held:
            self._counted = self.held, sum(map(len, self.pieces()))
        return self._counted[1]

    @property
    def in_memory(self) -> int:
        """Octets that lie in memory: none of a body that is spooled."""
        return self.held if self._file is None else 0

    def spool(self) -> None:
        """Have all of it on disk from the next piece on."""
        self._memory = 0

    def append(self, piece: bytes) -> None:
        """Add octets, cut anywhere."""
        self.held += len(piece)
        if self._file is not None:
            self._write(piece)
        elif self.held > self._memory:
            # Unbuffered: what cannot be written is told here, not at the end.
            file = tempfile.TemporaryFile(prefix="mailgate-", buffering=0)
            self._file = file
            self._write(b"".join(self._pieces))
            self._pieces.clear()
            self._write(piece)
        elif len(piece) >= _SMALL:
            self._pieces.append(piece)
        elif self._pieces and isinstance(last := self._pieces[-1], bytearray):
            last += piece
        else:
            self._pieces.append(bytearray(piece))

    def _write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest and self._file is not None:
            rest = rest[self._file.write(rest) :]

    def read(self) -> bytes:
        """Return all of it."""
        held = self._read_held()
        if self.form == "stuffed":
            return unstuff_dots(held)
        return held if self.form == "crlf" else with_crlf(held)

    def _read_held(self) -> bytes:
        if self._file is not None:
            return self._read_at(0, self.held)
        whole = self._pieces[0] if len(self._pieces) == 1 else b""
        if not isinstance(whole, bytes) or len(self._pieces) > 1:
            whole = b"".join(self._pieces)
            self._pieces = [whole]
        return whole

    def pieces(self, size: int = PIECE) -> Iterator[bytes]:
        """Yield it in order: at once from memory, up to ``size`` octets at a time from disk."""
        held = self.held_pieces(size)
        if self.form == "stuffed":
            return _unstuffed(held)
        return held if self.form == "crlf" else map(with_crlf, held)

    def held_pieces(self, size: int = PIECE) -> Iterator[bytes]:
        """Yield the octets as they were appended, in pieces as `pieces` does."""
        if self._file is None:
            yield from map(bytes, tuple(self._pieces))
            return
        for at in range(0, self.held, size):
            yield self._read_at(at, min(size, self.held - at))

    def _read_at(self, at: int, size: int) -> bytes:
        """Read from the spool file; a handler past its deadline may do so in its thread."""
        with self._lock:
            if self._file is None:
                return b""
            return os.pread(self._file.fileno(), size, at)

    def close(self) -> None:
        """Give the space back."""
        self._pieces.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
        self.held = 0


def _unstuffed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield CRLF lines, cut anywhere, with one leading dot of each dropped (RFC 5321 4.5.2)."""
    before = b"\r\n"  # the last two octets; a body begins with a line
    for piece in pieces:
        plain = piece
        if before == b"\r\n" and piece.startswith(b"."):
            plain = piece[1:]
        elif before.endswith(b"\r") and piece.startswith(b"\n."):
            plain = b"\n" + piece[2:]
        before = (before + piece[-2:])[-2:]
        if b"\r\n." in plain:
            plain = plain.replace(b"\r\n.", b"\r\n")
        if plain:
            yield plain
