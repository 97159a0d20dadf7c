"""imsg frames however they are cut, and descriptors on a real socket."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailgate_opensmtpd52 import imsg
from mailgate_opensmtpd52.imsg import Channel, Frame, FrameDecoder, FramingError, encode
from tests.opensmtpd52.frames import Frames, frame, open_descriptors, passed, rights, without_pid
from tests.opensmtpd52.recorded import little_endian

EVENT = frame(1, bytes(12))
PIPE = frame(3, bytes(8), flags=1)


def decoded(pieces: Iterable[bytes]) -> list[tuple[int, bool, bytes]]:
    decoder = FrameDecoder()
    return [found for piece in pieces for found in decoder.receive(piece)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


# -- frames --------------------------------------------------------------------------------------

RECORDED = [
    (
        "00000000 1700 0000 00000000 f81e0000 34000000663100",
        (0, False, bytes.fromhex("34000000663100")),
    ),
    (
        "01000000 1c00 0000 00000000 f81e0000 5eef341d8567ea5f00000000",
        (1, False, bytes.fromhex("5eef341d8567ea5f00000000")),
    ),
    (
        "03000000 1800 0100 00000000 f81e0000 5eef341d8567ea5f",
        (3, True, bytes.fromhex("5eef341d8567ea5f")),
    ),
]


@little_endian
@pytest.mark.parametrize(("octets", "found"), RECORDED)
def test_a_recorded_frame_is_read_whatever_its_pieces(
    octets: str, found: tuple[int, bool, bytes]
) -> None:
    data = bytes.fromhex(octets)
    assert decoded([data]) == [found]
    assert decoded(bytewise(data)) == [found]
    assert decoded([data + EVENT]) == [found, (1, False, bytes(12))]
    assert decoded([data[:-1], data[-1:] + EVENT[:3], EVENT[3:]])[0] == found
    assert decoded([data[:-1]]) == []


@little_endian
def test_a_frame_is_written_as_it_was_recorded() -> None:
    answer = bytes.fromhex("04000000 2400 0000 00000000 fb1e0000") + bytes(20)
    assert encode(4, bytes(20), pid=0x1EFB) == answer
    pipe = bytes.fromhex("03000000 1800 0100 00000000 fb1e0000 5eef341d8567ea5f")
    assert encode(3, pipe[16:], fd=True, pid=0x1EFB) == pipe


@pytest.mark.parametrize("size", [0, 1, 16384 - 16])
def test_the_least_and_the_most_that_a_frame_has(size: int) -> None:
    data = encode(2, b"x" * size)
    assert data == frame(2, b"x" * size, pid=0)
    assert decoded([data, EVENT]) == [(2, False, b"x" * size), (1, False, bytes(12))]


def test_a_payload_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="16369 octets"):
        encode(2, b"x" * (16384 - 15))


@pytest.mark.parametrize("length", [0, 1, 15, 16385, 65535])
def test_no_frame_has_such_a_length(length: int) -> None:
    bad = frame(0, b"x" * 20, length=length)
    for pieces in ([bad], bytewise(bad), [bad[:16]]):
        with pytest.raises(FramingError, match=f"a frame of {length} octets"):
            decoded(pieces)


def test_frames_before_a_bad_one_are_given() -> None:
    frames = FrameDecoder().receive(EVENT + PIPE + frame(0, length=15))
    assert [next(frames)[0], next(frames)[0]] == [1, 3]
    with pytest.raises(FramingError):
        next(frames)


def test_a_header_that_is_not_whole_says_nothing() -> None:
    decoder = FrameDecoder()
    assert list(decoder.receive(frame(0, length=0)[:15])) == []
    assert decoder.partial == 15


def test_other_flags_are_no_descriptor() -> None:
    assert decoded([frame(3, flags=0xFFFE), frame(3, flags=0xFFFF)]) == [
        (3, False, b""),
        (3, True, b""),
    ]


payloads = st.binary(max_size=300)
several = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans(), payloads), max_size=8)


@given(frames=several, cuts=st.lists(st.integers(0, 2500), max_size=8))
@example(frames=[(2, True, b"x" * 16368), (1, False, b"")], cuts=[15, 16, 17, 16383, 16384])
def test_what_is_written_is_what_is_read(
    frames: list[tuple[int, bool, bytes]], cuts: list[int]
) -> None:
    data = b"".join(encode(type, payload, fd=fd, pid=7) for type, fd, payload in frames)
    ends = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(ends)]
    assert decoded(pieces) == frames
    smtpd = Frames()
    read = [found for piece in pieces for found in smtpd.receive(piece)]
    assert [(type, bool(flags), payload) for type, flags, payload in read] == frames


@given(pieces=st.lists(st.binary(max_size=200), max_size=6))
def test_any_octets_are_frames_or_none(pieces: list[bytes]) -> None:
    decoder = FrameDecoder()
    with contextlib.suppress(FramingError):
        for piece in pieces:
            list(decoder.receive(piece))
            assert decoder.partial < 16384


# -- descriptors that come -----------------------------------------------------------------------


class Ends:
    """A channel, and the socket at smtpd's end; what is open in the end was open before."""

    def __init__(self) -> None:
        self.smtpd, ours = socket.socketpair()
        ours.setblocking(False)
        self.smtpd.setblocking(False)
        self.channel = Channel(ours)

    def send(self, data: bytes, *fds: int) -> None:
        self.smtpd.sendmsg([data], rights(*fds))

    def received(self) -> list[Frame]:
        """Return what one read of the channel brings."""
        found = self.channel.receive()
        assert found is not None
        return list(found)

    def taken(self, size: int = 1 << 20) -> tuple[bytes, list[int]]:
        """Return what smtpd reads at once: octets, and descriptors."""
        data, ancillary, _, _ = self.smtpd.recvmsg(size, 1024)
        return data, passed(ancillary)

    def everything(self) -> list[tuple[int, int, bytes]]:
        """Read as smtpd does until nothing is left, flushing meanwhile; close what came."""
        frames, found = Frames(), list[tuple[int, int, bytes]]()
        done = False
        while not done:
            done = self.channel.flush()
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, fds = self.taken()
                    found += frames.receive(data)
                    for fd in fds:
                        os.close(fd)
                    if not data:
                        break
        return found


@pytest.fixture
def ends() -> Iterator[Ends]:
    before = open_descriptors()
    ends = Ends()
    yield ends
    ends.channel.close()
    ends.smtpd.close()
    assert open_descriptors() == before


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    """Return pipes: the first end of each is to be passed, the second one tells them apart."""
    pairs = [os.pipe() for _ in range(20)]
    yield pairs
    for fd in (fd for pair in pairs for fd in pair):
        os.close(fd)


def same(fd: int | None, other: int) -> bool:
    """Tell whether two descriptors are one thing; the first is closed."""
    assert fd is not None
    assert fd >= 0
    told = os.fstat(fd).st_ino == os.fstat(other).st_ino
    os.close(fd)
    return told


Pipes = Sequence[tuple[int, int]]


def test_a_descriptor_comes_with_its_frame(ends: Ends, pipes: Pipes) -> None:
    ends.send(PIPE, pipes[0][0])
    (found,) = ends.received()
    assert (found.type, found.payload) == (3, bytes(8))
    assert found.fd is not None
    assert not os.get_inheritable(found.fd)
    assert same(found.fd, pipes[0][0])


def test_a_descriptor_comes_before_its_frame(ends: Ends, pipes: Pipes) -> None:
    """smtpd gathers frames up to the one that has a descriptor, and the read may be cut."""
    ends.send(EVENT + EVENT + PIPE[:5], pipes[0][0])
    assert [f.fd for f in ends.received()] == [None, None]
    ends.send(PIPE[5:] + EVENT)
    pipe, event = ends.received()
    assert event.fd is None
    assert same(pipe.fd, pipes[0][0])


def test_descriptors_are_given_out_in_order(ends: Ends, pipes: Pipes) -> None:
    for fd, _ in pipes[:3]:
        ends.send(EVENT + PIPE, fd)
    found = [f for _ in range(3) for f in ends.received()]
    assert [f.type for f in found] == [1, 3] * 3
    given_out = [f.fd for f in found if f.type == 3]
    assert [same(fd, pipe) for fd, (pipe, _) in zip(given_out, pipes, strict=False)] == [True] * 3


def test_descriptors_that_wait_are_given_out_in_order(ends: Ends, pipes: Pipes) -> None:
    ends.send(PIPE[:5], pipes[0][0])
    ends.send(PIPE[5:] + PIPE[:5], pipes[1][0])
    assert ends.received() == []
    first = ends.received()
    ends.send(PIPE[5:])
    found = [f.fd for f in first + ends.received()]
    assert [same(fd, pipe) for fd, (pipe, _) in zip(found, pipes, strict=False)] == [True] * 2


def test_byte_by_byte_it_is_still_its_own(ends: Ends, pipes: Pipes) -> None:
    ends.send(PIPE[:1], pipes[0][0])
    found = ends.received()
    for octet in bytewise(PIPE[1:] + PIPE[:8]):
        ends.send(octet)
        found += ends.received()
    ends.send(PIPE[8:], pipes[1][0])
    found += ends.received()
    assert [same(f.fd, pipe) for f, (pipe, _) in zip(found, pipes, strict=False)] == [True, True]


def test_a_flag_alone_is_no_descriptor(ends: Ends) -> None:
    ends.send(PIPE + EVENT)
    assert [f.fd for f in ends.received()] == [-1, None]


def test_of_several_in_one_message_the_first_counts(ends: Ends, pipes: Pipes) -> None:
    ends.send(PIPE + PIPE, *[fd for fd, _ in pipes])
    first, second = ends.received()
    assert second.fd == -1
    assert same(first.fd, pipes[0][0])


def test_a_descriptor_without_a_frame_is_closed_in_the_end(ends: Ends, pipes: Pipes) -> None:
    ends.send(EVENT, pipes[0][0], pipes[1][0])
    ends.send(PIPE[:9], pipes[2][0])
    assert [f.fd for f in ends.received()] == [None]
    assert ends.received() == []


def test_descriptors_without_frames_come_to_an_end(
    ends: Ends, pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imsg, "MOST_WAITING", 3)
    for fd, _ in pipes[:3]:
        ends.send(EVENT, fd)
        ends.received()
    ends.send(EVENT, pipes[3][0])
    with pytest.raises(FramingError, match="without a frame"):
        ends.received()


def test_what_is_not_there_yet_is_no_end(ends: Ends) -> None:
    assert ends.received() == []


@pytest.mark.parametrize("rest", [b"\0", EVENT[:16], PIPE[:-1]])
def test_an_end_inside_a_frame_is_an_error(ends: Ends, rest: bytes) -> None:
    ends.send(EVENT + rest)
    ends.smtpd.shutdown(socket.SHUT_WR)
    assert [f.type for f in ends.received()] == [1]
    with pytest.raises(FramingError, match="inside a frame"):
        ends.channel.receive()


def test_an_end_between_frames_is_the_end(ends: Ends) -> None:
    ends.send(EVENT)
    ends.smtpd.shutdown(socket.SHUT_WR)
    assert [f.type for f in ends.received()] == [1]
    assert ends.channel.receive() is None


def test_a_socket_that_is_gone_is_the_end(ends: Ends) -> None:
    ends.channel.send(1, b"")  # what is left unread makes a reset of the end
    ends.channel.flush()
    ends.smtpd.close()
    assert ends.channel.receive() is None


# -- what leaves ---------------------------------------------------------------------------------


class Noting(socket.socket):
    """A socket that notes each sendmsg(2), and may take less than it is offered, or fail once."""

    most = 1 << 20
    fails = 0

    def sendmsg(self, buffers: Iterable[bytes], ancdata: object = ()) -> int:  # type: ignore[override]
        if self.fails:
            error, self.fails = self.fails, 0
            raise OSError(error, os.strerror(error))
        data = b"".join(buffers)[: self.most]
        sent = super().sendmsg([data], ancdata)  # type: ignore[arg-type]
        self.calls.append((data[:sent], bool(ancdata)))
        return sent

    calls: list[tuple[bytes, bool]]


@pytest.fixture
def noting(ends: Ends) -> Noting:
    theirs, ours = socket.socketpair()
    ends.channel.close()
    ends.smtpd.close()
    ends.smtpd = theirs
    theirs.setblocking(False)
    sock = Noting(fileno=ours.detach())
    sock.setblocking(False)
    sock.calls = []
    ends.channel = Channel(sock)
    return sock


def types(octets: bytes) -> list[int]:
    return [type for type, _, _ in Frames().receive(octets)]


def spare() -> int:
    """Return a descriptor that a channel may close."""
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def test_a_frame_with_a_descriptor_is_alone_in_its_sendmsg(ends: Ends, noting: Noting) -> None:
    for number in range(3):
        ends.channel.send(1, b"a")
        ends.channel.send(2, b"b")
        ends.channel.send(3, bytes([number]) * 8, spare())
    ends.channel.send(4, b"c")
    assert ends.channel.flush()
    assert [(types(data), rights) for data, rights in noting.calls] == [
        *([([1, 2], False), ([3], True)] * 3),
        ([4], False),
    ]
    assert ends.channel.unsent == 0


def test_a_descriptor_is_passed_and_closed_here(ends: Ends, pipes: Pipes) -> None:
    ends.channel.send(3, bytes(8), os.dup(pipes[0][0]))
    ends.channel.send(4, bytes(20))
    assert ends.channel.flush()
    data, fds = ends.taken()
    assert without_pid(data[:24]) == without_pid(PIPE)
    assert [same(fd, pipes[0][0]) for fd in fds] == [True]


def test_the_header_has_our_pid(ends: Ends) -> None:
    ends.channel.send(4, b"")
    ends.channel.flush()
    assert ends.taken()[0] == frame(4, pid=os.getpid())


def test_a_peer_that_does_not_read_gets_all_in_order_later(ends: Ends) -> None:
    for number in range(3000):
        fd = spare() if number % 500 == 250 else None
        ends.channel.send(number, b"x" * 1000, fd)
        if number % 100 == 0:
            ends.channel.flush()
    assert not ends.channel.flush()
    assert ends.channel.unsent > 1 << 20
    found = ends.everything()
    assert [type for type, _, _ in found] == list(range(3000))
    assert [type for type, flags, _ in found if flags] == [250, 750, 1250, 1750, 2250, 2750]
    assert {payload for _, _, payload in found} == {b"x" * 1000}
    assert ends.channel.unsent == 0


@pytest.mark.parametrize("most", [1, 7, 16, 25])
def test_a_frame_that_is_written_in_pieces_has_its_descriptor_once(
    ends: Ends, noting: Noting, most: int
) -> None:
    noting.most = most
    for type in range(4):
        ends.channel.send(type, bytes(8), spare() if type % 2 else None)
    assert [type for type, _, _ in ends.everything()] == [0, 1, 2, 3]
    assert sum(rights for _, rights in noting.calls) == 2
    starts = [data[:2] for data, rights in noting.calls if rights]
    assert [start[:1] for start in starts] == [b"\1", b"\3"]


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR, errno.ENOBUFS])
def test_what_cannot_be_written_yet_is_written_later(
    ends: Ends, noting: Noting, error: int
) -> None:
    noting.fails = error
    ends.channel.send(3, bytes(8), spare())
    assert not ends.channel.flush()
    assert not ends.channel.lost
    assert [flags for _, flags, _ in ends.everything()] == [1]


def test_a_descriptor_too_many_on_its_way_is_left_out(ends: Ends, noting: Noting) -> None:
    """smtpd gives that client 421, and lives."""
    noting.fails = errno.ETOOMANYREFS
    ends.channel.send(3, bytes(8), spare())
    ends.channel.send(4, b"")
    assert [(type, flags) for type, flags, _ in ends.everything()] == [(3, 0), (4, 0)]
    assert not any(rights for _, rights in noting.calls)


def test_a_peer_that_is_gone_takes_nothing_more(ends: Ends) -> None:
    ends.smtpd.close()
    ends.channel.send(4, b"")
    ends.channel.send(3, bytes(8), spare())
    assert ends.channel.flush()
    assert ends.channel.lost
    assert ends.channel.unsent == 0


def test_what_was_never_written_is_closed_in_the_end(ends: Ends) -> None:
    ends.channel.send(3, bytes(8), spare())
    ends.channel.send(3, bytes(8), spare())


def test_a_frame_over_its_length_never_leaves(ends: Ends) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        ends.channel.send(4, b"x" * 20_000)
    assert ends.channel.flush()
    with pytest.raises(BlockingIOError):
        ends.taken()


def test_the_layout_is_that_of_the_host() -> None:
    assert imsg.HEADER.size == 16
    assert struct.unpack("=IHHII", encode(1, b"ab", pid=5)[:16]) == (1, 18, 0, 0, 5)
