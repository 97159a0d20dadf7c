"""The table's filters on pymilter: pymilter_filter.py full|lean null|real|every SOCKET.

It runs on the Python that has the module Milter, Debian's own (python3-milter).  "full" has a
callback for every event and answers it, as most filters do; for "lean", callbacks that are not
overridden are negotiated away, and so are the replies of those with @noreply.
"""
# mypy: allow-untyped-decorators, allow-subclassing-any

from __future__ import annotations

import sys

import Milter  # type: ignore[import-not-found]


class Lean(Milter.Base):
    """Answers at RCPT and at the end of the message."""

    def envrcpt(self, recipient: str, *params: str) -> int:
        return int(Milter.CONTINUE)

    def eom(self) -> int:
        return int(Milter.CONTINUE)


class LeanReal(Lean):
    """Reads header and body, and adds a field with the length of the body."""

    length = 0

    @Milter.noreply
    def header(self, name: str, value: str) -> int:
        return int(Milter.CONTINUE)

    @Milter.noreply
    def body(self, piece: bytes) -> int:
        self.length += len(piece)
        return int(Milter.CONTINUE)

    def eom(self) -> int:
        self.addheader("X-Length", str(self.length))
        self.length = 0
        return int(Milter.CONTINUE)


class Full(Lean):
    """Answers every event."""

    def connect(self, host: str, family: int, address: object) -> int:
        return int(Milter.CONTINUE)

    def hello(self, host: str) -> int:
        return int(Milter.CONTINUE)

    def envfrom(self, sender: str, *params: str) -> int:
        return int(Milter.CONTINUE)

    def data(self) -> int:
        return int(Milter.CONTINUE)

    def unknown(self, command: str) -> int:
        return int(Milter.CONTINUE)

    def header(self, name: str, value: str) -> int:
        return int(Milter.CONTINUE)

    def eoh(self) -> int:
        return int(Milter.CONTINUE)

    def body(self, piece: bytes) -> int:
        return int(Milter.CONTINUE)


class FullReal(Full):
    """Keeps the sizes of header and body, and adds a field with the length of the body."""

    fields = length = 0

    def header(self, name: str, value: str) -> int:
        self.fields += len(name) + len(value) + 4  # ": " and CRLF
        return int(Milter.CONTINUE)

    def body(self, piece: bytes) -> int:
        self.length += len(piece)
        return int(Milter.CONTINUE)

    def eom(self) -> int:
        self.addheader("X-Length", str(self.length))
        self.fields = self.length = 0
        return int(Milter.CONTINUE)


if __name__ == "__main__":
    callbacks, work, socket = sys.argv[1:]
    classes = {"full": (Full, FullReal), "lean": (Lean, LeanReal)}[callbacks]
    Milter.factory = classes[work == "real"]
    Milter.set_flags(Milter.ADDHDRS if work == "real" else 0)
    Milter.milter.setbacklog(1024)
    Milter.runmilter("bench", socket)
