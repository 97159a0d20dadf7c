"""imsg frames, and the socket that carries them together with descriptors (imsg_init(3))."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from array import array
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, final

from mailgate import fork

log = logging.getLogger(__name__)

HEADER = struct.Struct("=IHHII")  # type, length with the header, flags, peerid, pid
MAX_FRAME = 16384
MAX_PAYLOAD = MAX_FRAME - HEADER.size
HAS_FD = 1  # the one flag: a descriptor belongs to this frame

READ_SIZE = 65535
WRITE_SIZE = 64 * 1024
_MOST_DESCRIPTORS = 253  # that Linux passes in one message; with less room some would be lost
MOST_WAITING = 1024  # descriptors whose frame has not come

_RIGHTS = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array("i").itemsize)
_LATER = {errno.EAGAIN, errno.EINTR, errno.ENOBUFS}
_ENDS = {errno.EPIPE, errno.ECONNRESET}  # as an end of file


class FramingError(Exception):
    """What came is no frame, and nothing behind it can be found."""


class Frame(NamedTuple):
    """One message: ``fd`` is None without the flag, and -1 where the flag came alone."""

    type: int
    payload: bytes
    fd: int | None = None


def encode(type: int, payload: bytes, *, fd: bool = False, pid: int = 0) -> bytes:
    """Return one frame; ValueError for a payload over 16,368 octets."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a payload of {len(payload)} octets does not fit into a frame")
    return HEADER.pack(type, HEADER.size + len(payload), HAS_FD if fd else 0, 0, pid) + payload


@final
class FrameDecoder:
    """Cuts a stream of octets into frames."""

    __slots__ = ("_octets",)

    def __init__(self) -> None:
        self._octets = b""

    @property
    def partial(self) -> int:
        """Octets of a frame that is not there as a whole."""
        return len(self._octets)

    def receive(self, data: bytes) -> Iterator[tuple[int, bool, bytes]]:
        """Yield type, whether a descriptor belongs to it, and payload of every whole frame.

        Raises FramingError at a length that no frame has, behind the frames before it.
        """
        octets = self._octets + data if self._octets else data
        at, there = 0, len(octets)
        while there - at >= HEADER.size:
            type, length, flags, _, _ = HEADER.unpack_from(octets, at)
            if not HEADER.size <= length <= MAX_FRAME:
                raise FramingError(f"a frame of {length} octets")
            if there - at < length:
                break
            yield type, bool(flags & HAS_FD), octets[at + HEADER.size : at + length]
            at += length
        self._octets = octets[at:]


@final
class Channel:
    """One end of a stream socket, which must not block.

    Descriptors come with their frame or before it, in the order of the frames that want one;
    so they wait in a queue.  All that were received and not handed out are closed by `close`.
    All of them were adopted (`fork.adopt`), and so has to be what is sent.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._pid = os.getpid()
        self._decoder = FrameDecoder()
        self._descriptors: deque[int] = deque()
        self._out: deque[tuple[bytes, int | None]] = deque()
        self.unsent = 0  # octets
        self.lost = False  # the peer takes nothing more

    def fileno(self) -> int:
        return self._socket.fileno()

    # -- in ------------------------------------------------------------------------------------

    def receive(self) -> Iterator[Frame] | None:
        """Return the frames that one read brings, maybe none; None at the end of file.

        A frame's descriptor is the caller's then.  Raises FramingError, also at an end inside a
        frame.
        """
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                READ_SIZE, _RIGHTS, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return iter(())
        except ConnectionResetError:
            return None
        if ancillary or flags & socket.MSG_CTRUNC:
            self._take_descriptors(ancillary)
        if data:
            return self._frames(data)
        if self._decoder.partial:
            raise FramingError("the end of file inside a frame")
        return None

    def _frames(self, data: bytes) -> Iterator[Frame]:
        for type, wants, payload in self._decoder.receive(data):
            if wants:
                fd = self._descriptors.popleft() if self._descriptors else -1
                yield Frame(type, payload, fd)
            else:
                yield Frame(type, payload)

    def _take_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Queue the first of what one sendmsg(2) has passed, and close what is more.

        One that this process has no room for keeps its place: its frame gets -1.
        """
        fds = array("i")
        for level, kind, octets in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(octets[: len(octets) - len(octets) % fds.itemsize])
        try:
            self._descriptors.append(fork.adopt(fds[0]) if fds else -1)
        except OSError:
            self._descriptors.append(-1)
        if self._descriptors[-1] < 0:
            log.error("a descriptor is lost: this process has too many open (ulimit -n)")
        for fd in fds[1:]:
            os.close(fd)
        if len(self._descriptors) > MOST_WAITING:
            raise FramingError("descriptors without a frame")

    # -- out -----------------------------------------------------------------------------------

    def send(self, type: int, payload: bytes, fd: int | None = None) -> None:
        """Queue a frame for `flush`; a descriptor is closed here once it has been passed."""
        frame = encode(type, payload, fd=fd is not None, pid=self._pid)
        self._out.append((frame, fd))
        self.unsent += len(frame)

    def flush(self) -> bool:
        """Write what the peer takes; False where some is left, because it does not read.

        Frames leave whole and in order.  One with a descriptor is alone in its sendmsg(2):
        the peer gives what comes with one to the first flagged frame that it reads.
        """
        out = self._out
        while out:
            fd = out[0][1]
            octets = out[0][0] if fd is not None or len(out) == 1 else self._gathered()
            rights = [] if fd is None else [_rights(fd)]
            try:
                sent = self._socket.sendmsg([octets], rights)
            except OSError as error:
                if error.errno in _LATER:
                    return False
                if fd is not None and error.errno == errno.ETOOMANYREFS:
                    log.error("a descriptor is not passed: too many are on their way")
                    fork.close(fd)
                    out[0] = _without_fd(octets), None
                    continue
                if error.errno not in _ENDS:
                    log.error("smtpd's socket cannot be written: %s", error.strerror)
                self.lost = True
                self._forget()
                return True
            self._drop(sent, fd)
        return True

    def _gathered(self) -> bytes:
        """Return the frames up to the next that has a descriptor, about 64 KiB of them."""
        frames, size = [], 0
        for frame, fd in self._out:
            if fd is not None or size > WRITE_SIZE:
                break
            frames.append(frame)
            size += len(frame)
        return b"".join(frames)

    def _drop(self, sent: int, fd: int | None) -> None:
        """Forget what was sent; the rest of a frame needs its descriptor no more."""
        self.unsent -= sent
        if fd is not None:
            fork.close(fd)
            self._out[0] = self._out[0][0], None
        while sent:
            frame, fd = self._out[0]
            if len(frame) > sent:
                self._out[0] = frame[sent:], fd
                break
            sent -= len(frame)
            self._out.popleft()

    def _forget(self) -> None:
        for _, fd in self._out:
            if fd is not None:
                fork.close(fd)
        self._out.clear()
        self.unsent = 0

    def close(self) -> None:
        """Close it, and every descriptor that nobody has taken."""
        self._forget()
        for fd in self._descriptors:
            if fd >= 0:
                fork.close(fd)
        self._descriptors.clear()
        self._socket.close()


def _rights(fd: int) -> tuple[int, int, array[int]]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd])


def _without_fd(frame: bytes) -> bytes:
    type, length, _, peerid, pid = HEADER.unpack_from(frame)
    return HEADER.pack(type, length, 0, peerid, pid) + frame[HEADER.size :]
