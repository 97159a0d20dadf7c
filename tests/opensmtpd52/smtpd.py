"""An smtpd of the years 2013 to 2017, as far as its filters see one: `Smtpd`.

It keeps filters at the other ends of sockets that do not block, asks them one after the other,
has a message pass through all of them, and ends, as the real one does, at anything that it does
not expect: `Death` comes out of whatever is waiting, then and ever after.  `faults` are what the
real one lives with, and no filter should do.  The SMTP sessions are in `client.py`.

Left out: it adds no Date and no Message-Id, and removes no Bcc.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias, final

from tests.opensmtpd52.frames import (
    EVENT,
    PIPE,
    QUERY,
    REGISTER,
    Death,
    Frames,
    Hearing,
    PipeAnswer,
    Registration,
    Response,
    Speech,
    frame,
    passed,
    rights,
)

PATIENCE = 20.0
"""Seconds until a missing answer is a failure; the real one waits for ever."""
DATALINE = 0x400


class Hang(Exception):
    """An answer, or the end of a message, that does not come."""


@final
class Link:
    """One filter at the other end of its control socket."""

    def __init__(self, smtpd: Smtpd, end: socket.socket, name: str) -> None:
        end.setblocking(False)
        self.name = name
        self.hooks: int | None = None
        self.registered = smtpd.loop.create_future()
        self.pieces: Callable[[int], int] = lambda left: left
        """How many of the octets that are left go into one write."""
        self._smtpd = smtpd
        self._end = end
        self._frames = Frames()
        self._hearing = Hearing(smtpd.version)
        self._descriptors: deque[int] = deque()
        self._out: deque[tuple[bytes, int | None]] = deque()
        self._writing = False
        smtpd.loop.add_reader(end, self._readable)

    @property
    def passes_data(self) -> bool:
        return bool((self.hooks or 0) & DATALINE)

    # -- what smtpd says -----------------------------------------------------------------------

    def send(self, type: int, payload: bytes, fd: int | None = None) -> None:
        """Write a frame behind those that wait; a descriptor is closed when it is passed.

        As imsg_flush(3) does, frames are gathered up to the first that has a descriptor.
        """
        self._out.append((frame(type, payload, flags=int(fd is not None)), fd))
        if not self._writing:
            self._writing = True
            self._smtpd.loop.call_soon(self.flush)

    async def raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Write octets as they are, with descriptors that stay the caller's."""
        while data and not self.closed:
            try:
                data = data[self._end.sendmsg([data], rights(*fds)) :]
                fds = ()
            except BlockingIOError:
                await asyncio.sleep(0.001)
            except (BrokenPipeError, ConnectionResetError):
                return  # it has had enough

    def flush(self) -> None:
        """Write what the filter takes now, and the rest as it takes it."""
        while self._out and not self.closed:
            data, fd, frames = self._gathered()
            size = min(len(data), max(1, self.pieces(len(data))))
            try:
                sent = self._end.sendmsg([data[:size]], rights(*([] if fd is None else [fd])))
            except BlockingIOError:
                self._smtpd.loop.add_writer(self._end, self.flush)
                return
            except (BrokenPipeError, ConnectionResetError):
                self._smtpd.die(f'filter "{self.name}" closed unexpectedly')
                return
            if fd is not None:
                os.close(fd)
            for _ in range(frames):
                self._out.popleft()
            if sent < len(data):
                self._out.appendleft((data[sent:], None))
        self._writing = False
        if not self.closed:
            self._smtpd.loop.remove_writer(self._end)

    def _gathered(self) -> tuple[bytes, int | None, int]:
        data, number = b"", 0
        for octets, fd in self._out:
            data += octets
            number += 1
            if fd is not None:
                return data, fd, number
        return data, None, number

    # -- what smtpd hears ----------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data, ancillary, flags, _ = self._end.recvmsg(
                65535, socket.CMSG_SPACE(256), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, ancillary, flags = b"", [], 0
        self._descriptors.extend(passed(ancillary))
        try:
            if flags & socket.MSG_CTRUNC:
                raise Death("a descriptor was lost")
            if not data:
                raise Death(f'filter "{self.name}" closed unexpectedly')
            for type, frame_flags, payload in self._frames.receive(data):
                fd = self._descriptors.popleft() if frame_flags & 1 and self._descriptors else -1
                self._hear(type, payload, fd)
        except Death as death:
            self._smtpd.die(str(death))

    def _hear(self, type: int, payload: bytes, fd: int) -> None:
        said = self._hearing.read(type, payload)
        if self.hooks is None and not isinstance(said, Registration):
            raise Death(f'filter "{self.name}" is not registered')
        if isinstance(said, Registration):
            if self.hooks is not None:
                raise Death(f'filter "{self.name}" already registered')
            self.hooks = said.hooks
            self.registered.set_result(None)
        elif isinstance(said, Response):
            self._smtpd.answered(self, said)
        else:
            self._smtpd.piped(self, said, fd)

    # -- the end -------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._end.fileno() < 0

    def close(self) -> None:
        if self.closed:
            return
        self._smtpd.loop.remove_reader(self._end)
        self._smtpd.loop.remove_writer(self._end)
        self._end.close()
        for fd in (*self._descriptors, *(fd for _, fd in self._out if fd is not None)):
            os.close(fd)
        self._descriptors.clear()
        self._out.clear()


@final
class Smtpd:
    """The process "pony express" with its filters, the first of a chain first."""

    def __init__(
        self, *ends: socket.socket, version: int = 52, seed: int = 0, patience: float = PATIENCE
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.version = version
        self.speech = Speech(version)
        self.random = random.Random(seed)
        self.patience = patience
        self.dead = ""  # what it has logged as it ended
        self.faults: list[str] = []
        self.sinks_block = False  # as that of a filter between may do
        self._ids = self.random.getrandbits(63)
        self._waiting: dict[tuple[str, int], deque[_Expected]] = {}
        self.chain = [Link(self, end, f"f{number}") for number, end in enumerate(ends, start=1)]

    async def start(self) -> None:
        """Have every filter register; the real one listens only then."""
        for link in self.chain:
            link.send(REGISTER, self.speech.register(link.name.encode()))
        for link in self.chain:
            await self.in_time(link.registered, f"REGISTER of {link.name}")

    def stop(self) -> None:
        """End as at SIGTERM: the filters see the end of file, and nothing else.

        What was said before is theirs to hear.
        """
        for link in self.chain:
            link.flush()
        self._close()

    def die(self, reason: str) -> None:
        """End with all sessions."""
        if not self.dead and not all(link.closed for link in self.chain):
            self.dead = reason
        self._close()

    def _close(self) -> None:
        for link in self.chain:
            link.close()
        futures = [future for several in self._waiting.values() for _, _, future in several]
        for future in (*futures, *(link.registered for link in self.chain)):
            if not future.done():
                future.set_exception(Death(self.dead or "terminated"))
                future.exception()  # maybe nobody waits for it
        self._waiting.clear()

    def new_id(self) -> int:
        """Return an id for a session or a query; none comes twice."""
        self._ids += self.random.randrange(1, 1 << 20)
        return self._ids & (1 << 64) - 1

    # -- events and queries --------------------------------------------------------------------

    def event(self, session: int, name: str) -> None:
        """Tell all filters; version 50 has no BEGIN."""
        if self.version == 50 and name == "BEGIN":
            return
        for link in reversed(self.chain):
            link.send(EVENT, self.speech.event(session, name))

    async def ask(
        self, session: int, kind: str, *arguments: bytes, datalen: int | None = None
    ) -> Response:
        """Ask the filters one after the other, up to the first that refuses.

        At EOM each is told how many octets went into its pipe: what the one before has said.
        """
        qid = self.new_id()
        answer = Response(qid, kind, 0, 0, None, datalen)
        for link in self.chain:
            values = arguments if datalen is None else (self.speech.u32(answer.datalen or 0),)
            future = self.expect("RESPONSE", qid, link, kind)
            link.send(QUERY, self.speech.query(session, qid, kind, *values))
            found = await self.in_time(future, f"answer of {link.name} to {kind}")
            assert isinstance(found, Response)
            answer = found
            if answer.status:
                break
        return answer

    def answered(self, link: Link, response: Response) -> None:
        """Take the answer to a query; Death where there is none such."""
        kind, future = self._pop("RESPONSE", response.qid, link)
        if kind != response.kind:
            self.die(f"filter: type mismatch {kind} != {response.kind}")
            future.set_exception(Death(self.dead))
            return
        self._judge(link, response)
        future.set_result(response)

    def _judge(self, link: Link, response: Response) -> None:
        """Note what smtpd lives with, or dies of only as it writes the reply."""
        line = response.line or b""
        faulty = (
            (response.code, line) != (0, b"")
            if response.status == 0
            else response.status not in (1, 2)
            or not 400 <= response.code <= 599
            or not 0 < len(line) <= 500
            or any(not 32 <= octet < 127 for octet in line)
        )
        if faulty:
            self.faults.append(f"{link.name} answers {response}")

    # -- the data path -------------------------------------------------------------------------

    async def pipe(self, session: int, link: Link, sink: int) -> int:
        """Pass a sink to a filter; return where to write, -1 where it has nothing."""
        future = self.expect("PIPE", session, link, "PIPE")
        link.send(PIPE, self.speech.pipe(session), sink)
        fd = await self.in_time(future, f"PIPE of {link.name}")
        assert isinstance(fd, int)
        return fd

    def piped(self, link: Link, answer: PipeAnswer, fd: int) -> None:
        """Take a filter's PIPE; Death where none was asked for."""
        try:
            _, future = self._pop("PIPE", answer.session, link)
        except Death:
            if fd >= 0:
                os.close(fd)
            raise
        future.set_result(fd)

    # -- waiting -------------------------------------------------------------------------------

    def expect(self, what: str, id: int, link: Link, kind: str) -> asyncio.Future[object]:
        """Return what the next answer of a filter, a RESPONSE or a PIPE, becomes."""
        if self.dead or link.closed:
            raise Death(self.dead or "terminated")
        future: asyncio.Future[object] = self.loop.create_future()
        self._waiting.setdefault((what, id), deque()).append((link, kind, future))
        return future

    def _pop(self, what: str, number: int, link: Link) -> tuple[str, asyncio.Future[object]]:
        several = self._waiting.get((what, number))
        if not several or several[0][0] is not link:
            raise Death(f"tree_xpop: no {what} of {link.name} is expected for {number:016x}")
        _, kind, future = several.popleft()
        return kind, future

    async def in_time(self, future: asyncio.Future[object], what: str) -> object:
        done, _ = await asyncio.wait([future], timeout=self.patience)
        if not done:
            raise Hang(f"no {what} within {self.patience} s")
        return future.result()


_Expected: TypeAlias = tuple[Link, str, "asyncio.Future[object]"]


def reply_of(response: Response, defaults: Sequence[str]) -> bytes:
    """Return the reply that a refusal becomes, without its CRLF; Death where none can be made.

    ``defaults`` are the words for FAIL and for CLOSE.
    """
    if response.code == 0 and not response.line:
        return defaults[response.status == 2].encode()
    text = b"%d %b" % (response.code or 530, response.line or b"")
    if len(text) < 4:
        raise Death("smtp_reply: response too short")
    if len(text) + 2 >= 2048:
        raise Death("smtp_reply: response too long")
    return text
