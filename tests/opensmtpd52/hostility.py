"""Say to a filter what no smtpd says: the steps of a hostile case, beside a clean session."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias, final

from tests.hostile.cases import Act, Feed, Send, Step, Sync, Wait
from tests.opensmtpd52.frames import PIPE, QUERIES, QUERY, Death, Frames, Response
from tests.opensmtpd52.smtpd import Link, Smtpd

Cut: TypeAlias = Literal["as described", "byte by byte", "all at once"]
CUTS: Sequence[Cut] = ("as described", "byte by byte", "all at once")

STALLED = 1.0
"""Seconds after which a filter that takes no more of a message is left alone."""


def cut(steps: Iterable[Step], way: Cut) -> Iterator[Step]:
    """Cut what is written in another way; descriptors go with the first octet of their frame."""
    if way == "as described":
        yield from steps
    elif way == "byte by byte":
        for step in steps:
            if isinstance(step, Send):
                yield Send(step.data[:1], step.fds)
                yield from (Send(step.data[at : at + 1]) for at in range(1, len(step.data)))
            else:
                yield step
    else:
        yield from _joined(steps)


def _joined(steps: Iterable[Step]) -> Iterator[Step]:
    """Yield several writes as one, up to the next that has a descriptor."""
    gathered = b""
    for step in steps:
        match step:
            case Send(data, fds):
                gathered += data
                if fds:
                    yield Send(gathered, fds)
                    gathered = b""
            case Sync():
                pass
            case _:
                yield Send(gathered)
                gathered = b""
                yield step
    yield Send(gathered)
    yield Sync()


@final
class Hostility:
    """Plays a case through the control socket of a filter, and keeps what it answers."""

    def __init__(self, smtpd: Smtpd, patience: float) -> None:
        self._smtpd = smtpd
        self._link: Link = smtpd.chain[0]
        self._patience = patience
        self._frames = Frames()
        self._asked: list[asyncio.Future[object]] = []
        self._ours: list[int] = []  # descriptors
        self.closed = False

    @property
    def answers(self) -> list[object]:
        """Return what was answered: a `Response`, or the descriptor of a PIPE."""
        done = [future for future in self._asked if future.done()]
        return [future.result() for future in done if future.exception() is None]

    @property
    def unanswered(self) -> int:
        return sum(not future.done() for future in self._asked)

    async def play(self, steps: Iterable[Step]) -> None:
        for step in steps:
            await self._take(step)

    async def _take(self, step: Step) -> None:
        match step:
            case Send(data, fds):
                self._expect(data)
                await self._link.raw(data, [self._open(kind) for kind in fds])
            case Feed(data):
                await self.settle()
                await self._feed(data)
            case Sync():
                await self.settle()
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case Act("close"):
                self.closed = True
                self._link.close()
            case Act(kind):
                raise ValueError(f"no {kind} on this socket")

    def _expect(self, data: bytes) -> None:
        """Expect the answers to what is about to be asked."""
        with contextlib.suppress(Death):  # what is no frame asks nothing
            for type, _, payload in self._frames.receive(data):
                if type == PIPE and len(payload) == 8:
                    (session,) = struct.unpack("<Q", payload)
                    self._asked.append(self._smtpd.expect("PIPE", session, self._link, "PIPE"))
                elif type == QUERY and len(payload) >= 20:
                    _, qid, number = struct.unpack_from("<QQi", payload)
                    kind = QUERIES[number] if 0 <= number < len(QUERIES) else str(number)
                    self._asked.append(self._smtpd.expect("RESPONSE", qid, self._link, kind))

    async def settle(self) -> None:
        """Wait for the answers to all that was asked, or until patience ends."""
        if waiting := [future for future in self._asked if not future.done()]:
            await asyncio.wait(waiting, timeout=self._patience)

    def _open(self, kind: str) -> int:
        if kind == "dir":
            self._ours.append(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
            return self._ours[-1]
        reading, writing = os.pipe()
        self._ours.append(writing)
        if kind == "closed-pipe":
            os.close(reading)
        else:
            self._ours.append(reading)
            if kind == "pipe":
                asyncio.get_running_loop().add_reader(reading, os.read, reading, 1 << 16)
        return writing

    async def _feed(self, data: bytes) -> None:
        """Write to the pipe that was opened last; nothing closes it."""
        (*_, fd) = [answer for answer in self.answers if isinstance(answer, int)]
        assert fd >= 0
        if not data:
            os.close(fd)
            self._asked = [
                future for future in self._asked if not future.done() or future.result() != fd
            ]
            return
        os.set_blocking(fd, False)
        loop = asyncio.get_running_loop()
        until = loop.time() + STALLED
        while data and loop.time() < until:
            try:
                data = data[os.write(fd, data) :]
                until = loop.time() + STALLED
            except BlockingIOError:
                await asyncio.sleep(0.001)

    def close(self) -> None:
        """Close what was passed, and what came back."""
        for fd in (*self._ours, *(a for a in self.answers if isinstance(a, int) and a >= 0)):
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self._ours.clear()
        self._asked.clear()


def failed(answer: object) -> bool:
    """Tell whether an answer is a refusal for now: 4xx, or no way for a message."""
    if isinstance(answer, Response):
        return answer.status in (1, 2) and 400 <= answer.code <= 499 and bool(answer.line)
    return answer == -1


def goes_on(answer: object) -> bool:
    """Tell whether an answer lets the client go on."""
    if isinstance(answer, Response):
        return answer.status == 0
    return isinstance(answer, int) and answer >= 0
