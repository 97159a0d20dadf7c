"""The octets of a message: header fields and a body that may lie on disk."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from io import FileIO
from typing import final

PIECE = 64 * 1024
"""Octets of a body that are handled at a time."""

_SMALL = 1024  # octets of a piece; smaller ones are gathered: an object each would cost more


@final
class Body:
    """A body as CRLF lines, gathered piece by piece; above ``memory`` octets it is spooled.

    The spool file has no name, so nothing of it is left behind however the process ends.
    OSError (a full disk) comes out of `append`.
    """

    __slots__ = ("_file", "_lock", "_memory", "_pieces", "size")

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._pieces: list[bytes | bytearray] = []
        self._file: FileIO | None = None
        self.size = 0

    def append(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._file is not None:
            self._write(piece)
        elif self.size > self._memory:
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
        if self._file is not None:
            return self._read_at(0, self.size)
        whole = self._pieces[0] if len(self._pieces) == 1 else b""
        if not isinstance(whole, bytes) or len(self._pieces) > 1:
            whole = b"".join(self._pieces)
            self._pieces = [whole]
        return whole

    def pieces(self, size: int = PIECE) -> Iterator[bytes]:
        """Yield it in order: at once from memory, ``size`` octets at a time from disk."""
        if self._file is None:
            if self.size:
                yield self.read()
            return
        for at in range(0, self.size, size):
            yield self._read_at(at, min(size, self.size - at))

    def _read_at(self, at: int, size: int) -> bytes:
        """Read from the spool file; a handler past its deadline may do so in its thread."""
        with self._lock:
            if self._file is None:
                return b""
            self._file.seek(at)
            data = self._file.read(size)
            self._file.seek(self.size)
            return data

    def close(self) -> None:
        """Give the space back."""
        self._pieces.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
        self.size = 0
