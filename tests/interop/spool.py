"""A queue of OpenSMTPD 6.8 that keeps messages in a folder, on the frames of `mailgate_opensmtpd52`.

`smtpd -B queue=spool:/FOLDER` runs it as a process, with one end of a socket pair as its standard
input. The frames there are those that the filters of old were asked with. A message comes as a
descriptor and has to be given back as one, so mail gets through only if both ways are right.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shlex
import shutil
import socket
import struct
import sys
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from mailgate_opensmtpd52.imsg import Channel, Frame

_ANSWER = 0
_VERSION = 2
_YES, _NO = struct.pack("=i", 1), struct.pack("=i", -1)
_HEADER = struct.Struct("=IHHII")
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")  # of messages and of envelopes: ids

# The exit status of the backend is smtpd's to see, so a shell writes it down.
_PROGRAM = """\
#!/bin/sh
{command} "$1"
echo $? > "$1/status"
"""


class Request(IntEnum):
    """What smtpd asks for here; the numbers are those of 6.8."""

    INIT = 2
    CLOSE = 3
    MESSAGE_CREATE = 4
    MESSAGE_DELETE = 5
    MESSAGE_COMMIT = 6
    MESSAGE_FD_R = 7
    ENVELOPE_CREATE = 8
    ENVELOPE_DELETE = 9
    ENVELOPE_WALK = 12


class Header(NamedTuple):
    """What stands before a payload: imsg_init(3)."""

    type: int
    length: int
    flags: int
    peerid: int
    pid: int


class Seen(NamedTuple):
    """A frame of smtpd: its header as the kernel showed it, and what the channel made of it."""

    header: Header
    request: Request
    size: int  # of the payload
    fd: int | None


class Spool:
    """A folder for the queue, and the queue's program where smtpd looks for it."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self._folder = folder
        self.options = ("-B", f"queue=spool:{folder}")
        command = shlex.join([sys.executable, "-P", __file__])
        program = tree / "usr/libexec/opensmtpd/queue-spool"
        program.write_text(_PROGRAM.format(command=command))
        program.chmod(0o755)

    def seen(self) -> list[Seen]:
        """Return the frames so far."""
        lines = (self._folder / "frames").read_text().splitlines()
        return [Seen(Header(*h), Request(r), *rest) for h, r, *rest in map(json.loads, lines)]

    def messages(self) -> list[Path]:
        """Return the folders of the messages that have neither been delivered nor given up."""
        return [entry for entry in self._folder.iterdir() if entry.is_dir()]

    def status(self) -> int | None:
        """Return with what the backend has ended; None while it runs."""
        file = self._folder / "status"
        text = file.read_text() if file.exists() else ""
        return int(text) if text else None


class _Backend:
    """Answers requests: each message has a folder, its content and each envelope a file there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept = [e for m in folder.glob("*/content") for e in m.parent.glob("envelope.*")]

    def answer(self, frame: Frame) -> tuple[bytes, int | None]:
        """Return payload and descriptor of the answer."""
        payload = frame.payload
        match frame.type:
            case Request.INIT:
                assert _U32.unpack(payload) == (_VERSION,)
                return b"", None
            case Request.CLOSE:
                return _YES, None
            case Request.MESSAGE_CREATE:
                return _YES + self._create(), None
            case Request.MESSAGE_DELETE:
                shutil.rmtree(self._message(payload))
                return _YES, None
            case Request.MESSAGE_COMMIT:
                assert frame.fd is not None
                with open(frame.fd, "rb") as passed:
                    (self._message(payload) / "content").write_bytes(passed.read())
                return _YES, None
            case Request.MESSAGE_FD_R:
                return b"", os.open(self._message(payload) / "content", os.O_RDONLY)
            case Request.ENVELOPE_CREATE:
                return _YES + self._create_envelope(payload), None
            case Request.ENVELOPE_DELETE:
                self._delete_envelope(payload)
                return _YES, None
            case Request.ENVELOPE_WALK:
                return self._next(), None
            case _:
                raise AssertionError(f"smtpd asks for {frame.type}")

    def _create(self) -> bytes:
        """Begin a message; return its id."""
        id = _U32.pack(_number())
        self._message(id).mkdir()
        return id

    def _create_envelope(self, payload: bytes) -> bytes:
        """Keep an envelope of a message; return its id."""
        [message] = _U32.unpack_from(payload)
        id = _U64.pack(message << 32 | _number())
        self._envelope(id).write_bytes(payload[_U32.size :])
        return id

    def _delete_envelope(self, payload: bytes) -> None:
        """Drop an envelope, and with the last of them the message."""
        file = self._envelope(payload)
        file.unlink()
        if not list(file.parent.glob("envelope.*")):
            shutil.rmtree(file.parent)

    def _next(self) -> bytes:
        """Return an envelope that an earlier smtpd has left; smtpd ends at one of its own."""
        if not self._kept:
            return _NO
        file = self._kept.pop()
        text, id = file.read_bytes(), int(file.suffix[1:], 16)
        return struct.pack("=i", len(text)) + _U64.pack(id) + text

    def _message(self, payload: bytes) -> Path:
        [id] = _U32.unpack(payload)
        return self._folder / f"{id:08x}"

    def _envelope(self, payload: bytes) -> Path:
        [id] = _U64.unpack(payload)
        return self._folder / f"{id >> 32:08x}" / f"envelope.{id:016x}"


def _number() -> int:
    """Return an id that is not 0 and that smtpd has not seen."""
    return secrets.randbits(32) | 1


def _serve(folder: Path) -> None:
    """Answer until the end of file."""
    end = socket.socket(fileno=0)
    end.setblocking(False)
    channel = Channel(end)
    backend = _Backend(folder)
    with open(folder / "frames", "a", buffering=1) as ledger:
        while True:
            select.select([channel], [], [])
            header = end.recv(_HEADER.size, socket.MSG_PEEK)
            frames = channel.receive()
            if frames is None:
                break
            [frame] = frames  # smtpd asks one thing at a time
            size = len(frame.payload)
            print(json.dumps([_HEADER.unpack(header), frame.type, size, frame.fd]), file=ledger)
            channel.send(_ANSWER, *backend.answer(frame))
            while not channel.flush():
                select.select([], [channel], [])
    channel.close()


def _main(folder: Path) -> None:
    """Serve, and exit with 0 unless something is still open that was not at the start."""
    before = set(os.listdir("/proc/self/fd"))
    _serve(folder)
    left = set(os.listdir("/proc/self/fd")) - before
    if left:
        sys.exit(f"descriptors that stayed open: {left}")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
