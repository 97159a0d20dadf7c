"""Replay one filter's side of a recording: smtpd's frames and octets, in recorded order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, final

from mailgate.chain import Loaded
from mailgate.engine import Engine
from mailgate.policy import Policy
from mailgate_opensmtpd52.facts import CAPABILITIES
from mailgate_opensmtpd52.filter import Filter
from tests.opensmtpd52.frames import (
    EVENT,
    PIPE,
    QUERY,
    Frames,
    Hearing,
    Registration,
    Response,
    frame,
    passed,
    rights,
)
from tests.opensmtpd52.recorded import Line, Recording
from tests.opensmtpd52.running import Errors, keep
from tests.opensmtpd52.smtpd import PATIENCE

Key: TypeAlias = tuple[str, int]
"""What is answered: ("REGISTER", 0), ("PIPE", session), or (kind of query, its id)."""

SOON = 2.0
"""Seconds that octets of an unfinished message are given to leave."""


@dataclass(slots=True)
class Way:
    """One message's way: what smtpd wrote, what the recorded filter made of it, and what ours."""

    session: int
    sink: int  # smtpd reads here
    source: int = -1  # and writes here
    given: bytes = b""
    recorded: bytes = b""
    closed: bool = False  # the recorded filter has closed its sink
    ours: bytearray = field(default_factory=bytearray)
    ended: bool = False  # and so has ours
    taken: bool = False  # with OK at EOM


@final
class Replay:
    """smtpd's side of a recording for one filter; ``answers`` are what ours says."""

    def __init__(self, recording: Recording, filter: str, piece: int = 1 << 20) -> None:
        self.recording = recording
        self.lines = recording.heard(filter)
        self.answers: dict[Key, list[tuple[bytes, bool]]] = {}  # frames, and whether with an fd
        self.ways: list[Way] = []
        self.errors: Sequence[str] = ()
        self._piece = piece
        self._tag = int(recording.version != 52)
        self._frames, self._hearing = Frames(), Hearing(recording.version)
        self._descriptors: deque[int] = deque()
        self.hung_up: set[int] = set()  # sessions that our filter has closed
        self.cut = any(line.cut for line in self.lines)
        self._sessions = {self._qid(line): self._session(line) for line in self.queries()}
        self._changed = asyncio.Event()

    # -- the recording -------------------------------------------------------------------------

    def queries(self) -> list[Line]:
        """Return the queries that were asked."""
        frames = [line for line in self.lines if line.direction == "S" and line.octets]
        return [line for line in frames if line.type == QUERY]

    def _session(self, line: Line) -> int:
        return int.from_bytes(line.payload[self._tag : self._tag + 8], "little")

    def _qid(self, line: Line) -> int:
        start = 8 + 2 * self._tag
        return int.from_bytes(line.payload[start : start + 8], "little")

    def key(self, line: Line) -> Key:
        """Return what a frame asks for, or answers."""
        if line.type == QUERY:
            return line.note.split()[1], self._qid(line)
        if line.type == PIPE:
            return "PIPE", self._session(line)
        said = self._hearing.read(line.type, line.payload)
        return (said.kind, said.qid) if isinstance(said, Response) else ("REGISTER", 0)

    def session_of(self, key: Key) -> int:
        """Return the session that an answer is for; 0 for REGISTER."""
        return key[1] if key[0] == "PIPE" else self._sessions.get(key[1], 0)

    def _steps(self) -> Iterator[Line | Key]:
        """Yield the lines, and in place of each recorded answer what is to be answered by then.

        Where the recorded filter was faulty, that is what was asked just before.
        """
        for line in self.lines:
            question = line.direction == "S" and line.octets and line.type != EVENT
            if line.direction != "F":
                yield line
            elif line.octets and not self.recording.faulty:
                yield self.key(line)
            if question and self.recording.faulty:
                yield self.key(line) if line.type else ("REGISTER", 0)

    # -- smtpd ---------------------------------------------------------------------------------

    async def run(self, policy: Policy) -> None:
        """Feed it all; in the end the filter has heard the end of file, and ended."""
        self._end, theirs = socket.socketpair()
        self._end.setblocking(False)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._end, self._readable)
        with Errors() as errors:
            engine = Engine([Loaded(policy, policy.name)], CAPABILITIES)
            running = asyncio.create_task(keep(Filter(engine, theirs)).run())
            try:
                await self._play()
            finally:
                loop.remove_reader(self._end)
                self._end.close()
                await asyncio.wait([running], timeout=PATIENCE)
                engine.threads.stop()
            await running
            for way in self.ways:
                await self._close(way)
        self.errors = errors.messages

    async def _play(self) -> None:
        awaited: Counter[Key] = Counter()
        for step in self._steps():
            if isinstance(step, Line):
                await self._take(step)
            elif self.session_of(step) not in self.hung_up:
                awaited[step] += 1
                await self._answered(step, awaited[step])

    async def _take(self, line: Line) -> None:
        if line.direction == "S" and line.octets:
            await self._say(line)
        elif line.direction == "PI" and not line.note.startswith("filter closes"):
            await self._give(self._way(line), line.octets)
        elif line.direction == "PO":
            way = self._way(line)
            way.recorded += line.octets
            way.closed = way.closed or not line.octets

    async def _say(self, line: Line) -> None:
        session = self._session(line) if line.type else 0
        if session in self.hung_up and not line.note.startswith("EVENT DISCONNECT"):
            return  # in our place the client would be gone
        if line.type == EVENT:
            await self._leave(session)
        fds = [self._make_way(session)] if line.type == PIPE else []
        for at in range(0, len(line.octets), self._piece):
            self._end.sendmsg([line.octets[at : at + self._piece]], rights(*fds))
            for fd in fds:
                os.close(fd)
            fds = []
            if self._piece < len(line.octets):
                await asyncio.sleep(0)

    def _make_way(self, session: int) -> int:
        reading, sink = socket.socketpair()
        reading.setblocking(False)
        way = Way(session, reading.detach())
        self.ways.append(way)
        asyncio.get_running_loop().add_reader(way.sink, self._drain, way)
        return sink.detach()

    async def _leave(self, session: int) -> None:
        """Have what has come of an unfinished message leave, as it did when it was recorded."""
        for way in self.ways:
            if way.session == session and not way.taken and not way.ended:
                await self._until(lambda way=way: len(way.ours) >= len(way.recorded), SOON)  # type: ignore[misc]

    async def _give(self, way: Way, octets: bytes) -> None:
        if not octets:
            os.close(way.source)
            way.source = -1
            return
        way.given += octets
        for at in range(0, len(octets), self._piece):
            piece = octets[at : at + self._piece]
            while piece:
                try:
                    piece = piece[os.write(way.source, piece) :]
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            if self._piece < len(octets):
                await asyncio.sleep(0)

    def _way(self, line: Line) -> Way:
        return self._last_way(int(line.session, 16))

    def _last_way(self, session: int) -> Way:
        return [way for way in self.ways if way.session == session][-1]

    # -- our filter ----------------------------------------------------------------------------

    def _readable(self) -> None:
        data, ancillary, _, _ = self._end.recvmsg(65535, 1024, socket.MSG_CMSG_CLOEXEC)
        self._descriptors.extend(passed(ancillary))
        for type, flags, payload in self._frames.receive(data):
            said = self._hearing.read(type, payload)
            if isinstance(said, Registration):
                key: Key = ("REGISTER", 0)
            elif isinstance(said, Response):
                key = (said.kind, said.qid)
                self._decided(key, said)
            else:
                key = ("PIPE", said.session)
            self.answers.setdefault(key, []).append((frame(type, payload, flags=flags), flags > 0))
        self._changed.set()

    def _decided(self, key: Key, said: Response) -> None:
        session = self.session_of(key)
        if said.status == 2:
            self.hung_up.add(session)
        elif said.kind == "EOM" and said.status == 0:
            for way in self.ways:
                way.taken = way.taken or way.session == session

    async def _answered(self, key: Key, number: int) -> None:
        """Wait until a question has been answered so often."""
        await self._until(lambda: len(self.answers.get(key, ())) >= number, PATIENCE)
        found = self.answers.get(key, [])
        assert len(found) == number, f"{len(found)} answers to {key}, not {number}"
        if key[0] == "PIPE" and found[-1][1]:
            way = self._last_way(key[1])
            way.source = self._descriptors.popleft()
            os.set_blocking(way.source, False)

    def _drain(self, way: Way) -> None:
        data = os.read(way.sink, 1 << 16)
        way.ours += data
        if not data:
            way.ended = True
            asyncio.get_running_loop().remove_reader(way.sink)
        self._changed.set()

    async def _until(self, done: Callable[[], bool], patience: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while not done() and (left := until - loop.time()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    async def _close(self, way: Way) -> None:
        if way.source >= 0:
            os.close(way.source)
        await self._until(lambda: way.ended, PATIENCE)
        asyncio.get_running_loop().remove_reader(way.sink)
        os.close(way.sink)
