"""The octets of a message: header fields and a body that may lie on disk."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from typing import IO, final

PIECE = 64 * 1024
"""Octets of a body that are handled at a time."""


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
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None
        self.size = 0

    def append(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._file is None and self.size > self._memory:
            self._file = tempfile.TemporaryFile(prefix="mailgate-")
            self._file.write(b"".join(self._pieces))
            self._pieces.clear()
        if self._file is None:
            self._pieces.append(piece)
        else:
            self._file.write(piece)

    def read(self) -> bytes:
        """Return all of it."""
        if self._file is not None:
            return self._read_at(0, self.size)
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

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
