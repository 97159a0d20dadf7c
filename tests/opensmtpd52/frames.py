"""smtpd's side of the filter API: the octets that it writes, and how it reads a filter's.

Made from the sources of smtpd (mproc.c, smtpf_session.c, imsg.c) and not from the adapter's
codec: what one of them writes the other one reads.  `Death` is what ends all of smtpd.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HEADER = struct.Struct("=IHHII")
MAX_FRAME = 16384
REGISTER, EVENT, QUERY, PIPE, RESPONSE = range(5)

EVENTS = {
    50: ("CONNECT", "RESET", "DISCONNECT", "COMMIT", "ROLLBACK"),
    51: ("CONNECT", "RESET", "DISCONNECT", "BEGIN", "COMMIT", "ROLLBACK"),
    52: ("CONNECT", "RESET", "DISCONNECT", "BEGIN", "COMMIT", "ROLLBACK"),
}
QUERIES = ("CONNECT", "HELO", "MAIL", "RCPT", "DATA", "EOM", "DATALINE")

INT, U32, STRING, ID, SOCKADDR, MAILADDR = 0, 1, 4, 6, 9, 10


class Death(Exception):
    """What smtpd logs as it ends with all its sessions."""


# -- frames ------------------------------------------------------------------------------------


def frame(
    type: int, payload: bytes = b"", *, flags: int = 0, length: int | None = None, pid: int = 7
) -> bytes:
    """Return a frame; ``length`` is what its header says in place of the truth."""
    whole = HEADER.size + len(payload) if length is None else length
    return HEADER.pack(type, whole, flags, 0, pid) + payload


def without_pid(octets: bytes) -> bytes:
    """Return one frame without the one field that differs in each run."""
    return octets[:12] + bytes(4) + octets[16:]


class Frames:
    """Cuts what a filter writes, as imsg_get(3) does."""

    def __init__(self) -> None:
        self._octets = b""

    def receive(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Yield type, flags and payload of every frame that is whole."""
        octets, at = self._octets + data, 0
        self._octets = b""
        while len(octets) - at >= HEADER.size:
            type, length, flags, _, _ = HEADER.unpack_from(octets, at)
            if not HEADER.size <= length <= MAX_FRAME:
                raise Death("imsg_get: Numerical result out of range")
            if len(octets) - at < length:
                break
            yield type, flags, octets[at + HEADER.size : at + length]
            at += length
        self._octets = octets[at:]


# -- what smtpd says ---------------------------------------------------------------------------


def inet(address: str = "192.0.2.1", port: int = 25) -> bytes:
    """Return a sockaddr_in or sockaddr_in6 of this host."""
    six = ":" in address
    family = socket.AF_INET6 if six else socket.AF_INET
    octets = socket.inet_pton(family, address)
    size = 28 if six else 16
    start = bytes([size, family]) if _has_length() else struct.pack("=H", family)
    body = port.to_bytes(2, "big") + (bytes(4) + octets + bytes(4) if six else octets)
    return (start + body).ljust(size, b"\0")


def local() -> bytes:
    """Return the address of a local enqueue: behind the family there is no sense in it."""
    family = socket.AF_UNIX
    start = bytes([16, family]) if _has_length() else struct.pack("=H", family)
    return start + bytes.fromhex("e88d0b5efe7fd0c3a1f27f000000")


def _has_length() -> bool:
    return sys.platform.startswith(("openbsd", "freebsd", "netbsd"))


class Speech:
    """The payloads of one API version, as m_add_*() makes them: 50 and 51 put a tag before each."""

    def __init__(self, version: int = 52) -> None:
        self.version = version
        self._tagged = version != 52

    def _tag(self, number: int) -> bytes:
        return bytes([number]) if self._tagged else b""

    def s32(self, value: int) -> bytes:
        return self._tag(INT) + struct.pack("=i", value)

    def u32(self, value: int) -> bytes:
        return self._tag(U32) + struct.pack("=I", value)

    def id(self, value: int) -> bytes:
        return self._tag(ID) + struct.pack("=Q", value)

    def string(self, text: bytes) -> bytes:
        return self._tag(STRING) + text + b"\0"

    def sockaddr(self, octets: bytes) -> bytes:
        return self._tag(SOCKADDR) + struct.pack("@N", len(octets)) + octets

    def mailaddr(self, address: bytes) -> bytes:
        user, _, domain = address.rpartition(b"@") if b"@" in address else (address, b"", b"")
        return self._tag(MAILADDR) + user.ljust(256, b"\0") + domain.ljust(256, b"\0")

    def register(self, name: bytes = b"f1") -> bytes:
        return self.u32(self.version) + self.string(name)

    def event(self, session: int, name: str) -> bytes:
        return self.id(session) + self.s32(EVENTS[self.version].index(name))

    def query(self, session: int, qid: int, kind: str, *arguments: bytes) -> bytes:
        start = self.id(session) + self.id(qid) + self.s32(QUERIES.index(kind))
        return start + b"".join(arguments)

    def pipe(self, session: int) -> bytes:
        return self.id(session)


# -- what smtpd hears --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registration:
    """A filter is ready."""

    hooks: int


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a query; ``line`` is None and ``code`` 0 where smtpd is to find words."""

    qid: int
    kind: str
    status: int
    code: int
    line: bytes | None = None
    datalen: int | None = None


@dataclass(frozen=True, slots=True)
class PipeAnswer:
    """Where smtpd is to write a message."""

    session: int


class Hearing:
    """Reads what a filter says as m_get_*() does; `Death` where that ends smtpd."""

    def __init__(self, version: int = 52) -> None:
        self._tagged = version != 52
        self._payload = b""

    def read(self, type: int, payload: bytes) -> Registration | Response | PipeAnswer:
        """Return what a frame says."""
        self._payload = payload
        found: Registration | Response | PipeAnswer
        if type == REGISTER:
            found = self._registration()
        elif type == PIPE:
            found = self._pipe()
        elif type == RESPONSE:
            found = self._response()
        else:
            raise Death("bad imsg from filter")
        if self._payload:
            raise Death("not at msg end")
        return found

    def _take(self, tag: int, layout: str) -> int:
        size = struct.calcsize(layout)
        if self._tagged:
            if self._payload[:1] != bytes([tag]):
                raise Death("msg type mismatch" if self._payload else "msg too short")
            self._payload = self._payload[1:]
        if len(self._payload) < size:
            raise Death("msg too short")
        (value,) = struct.unpack_from(layout, self._payload)
        self._payload = self._payload[size:]
        return int(value)

    def _string(self) -> bytes:
        if self._tagged:
            self._payload = self._payload[1:]
        text, end, self._payload = self._payload.partition(b"\0")
        if not end:
            raise Death("unterminated string")
        return text

    def _registration(self) -> Registration:
        hooks = self._take(INT, "=i") & 0xFFFFFFFF
        self._take(INT, "=i")
        return Registration(hooks)

    def _pipe(self) -> PipeAnswer:
        return PipeAnswer(self._take(ID, "=Q"))

    def _response(self) -> Response:
        qid, number = self._take(ID, "=Q"), self._take(INT, "=i")
        datalen = self._take(U32, "=I") if number == QUERIES.index("EOM") else None
        status, code = self._take(INT, "=i"), self._take(INT, "=i")
        line = self._string() if self._payload else None
        kind = QUERIES[number] if 0 <= number < len(QUERIES) else str(number)
        return Response(qid, kind, status, code, line, datalen)


# -- descriptors -------------------------------------------------------------------------------


def rights(*fds: int) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data of sendmsg(2) that passes descriptors."""
    if not fds:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))]


def passed(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors that came with recvmsg(2)."""
    return [
        fd
        for level, type, octets in ancillary
        if (level, type) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (fd,) in struct.iter_unpack("=i", octets)
    ]


def open_descriptors(pid: int | str = "self") -> set[int]:
    """Return the descriptors that a process has open, without the one that this looks with."""
    folder = f"/proc/{pid}/fd"
    own = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return {int(name) for name in os.listdir(own)} - ({own} if pid == "self" else set())
    finally:
        os.close(own)
