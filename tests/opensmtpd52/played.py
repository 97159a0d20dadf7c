"""Play a recording with the smtpd of these tests between the recorded clients and filters."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections import deque
from collections.abc import Sequence
from typing import final

from tests.opensmtpd52.client import Client
from tests.opensmtpd52.frames import (
    EVENT,
    EVENTS,
    HEADER,
    PIPE,
    QUERIES,
    QUERY,
    REGISTER,
    Death,
    Frames,
    passed,
    rights,
)
from tests.opensmtpd52.recorded import Line, Recording
from tests.opensmtpd52.smtpd import PATIENCE, Hang, Smtpd

SLOW = 0.2
"""Seconds between a recorded question and its answer that are no accident."""

HANGING = {"19-eom-response-before-sink-close", "64-silent-on-mail"}
"""Recordings in which smtpd waits for ever."""


@final
class RecordedFilter:
    """A recorded filter, which answers other sessions in the same way.

    What it writes to a sink is what it reads, with the header fields that it has added, if any.
    """

    def __init__(self, recording: Recording, name: str, end: socket.socket) -> None:
        self.said: list[str] = []  # what it has heard, a line each
        self._recording = recording
        self._lines = [line for line in recording.heard(name) if line.direction in ("S", "F")]
        self._end = end
        self._tag = int(recording.version != 52)
        self._sessions = list(dict.fromkeys(self._session(x) for x in self._asked(EVENT)))
        self._known: dict[int, int] = {}  # sessions -> recorded ones
        self._used: set[int] = set()  # indices of recorded questions
        self._ways: dict[int, tuple[int, int]] = {}  # session -> octets read and written
        self._descriptors: deque[int] = deque()
        self._added = self._fields_added(name)
        self._tasks: set[asyncio.Task[None]] = set()
        self._frames = Frames()
        end.setblocking(False)
        asyncio.get_running_loop().add_reader(end, self._readable)

    def _asked(self, *types: int) -> list[Line]:
        lines = [line for line in self._lines if line.direction == "S" and line.octets]
        return [line for line in lines if line.type in types]

    def _session(self, line: Line) -> int:
        return self._id(line.payload, 0)

    def _id(self, payload: bytes, number: int) -> int:
        start = self._tag + number * (8 + self._tag)
        return int.from_bytes(payload[start : start + 8], "little")

    def _fields_added(self, name: str) -> bytes:
        heard = self._recording.heard(name)
        sides = [
            b"".join(line.octets for line in heard if line.direction == direction)
            for direction in ("PI", "PO")
        ]
        before = set(sides[0].split(b"\n"))
        return b"".join(line + b"\n" for line in sides[1].split(b"\n") if line not in before)

    # -- what comes ----------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._end.recvmsg(65535, 1024)
        except OSError:
            data, ancillary = b"", []
        self._descriptors.extend(passed(ancillary))
        if not data:
            asyncio.get_running_loop().remove_reader(self._end)
        for type, _, payload in self._frames.receive(data):
            self._hear(type, payload)

    def _hear(self, type: int, payload: bytes) -> None:
        session = self._id(payload, 0) if type else 0
        if type == EVENT:
            number = int.from_bytes(payload[-4:], "little")
            name = EVENTS[self._recording.version][number]
            self.said.append(f"{self._mine(session)} EVENT {name}")
            return
        what = "REGISTER"
        if type == QUERY:
            start = 2 * (8 + self._tag) + self._tag
            what = QUERIES[int.from_bytes(payload[start : start + 4], "little")]
        elif type == PIPE:
            what = "PIPE"
        self.said.append(f"{self._mine(session)} {what}")
        self._answer(session, what, payload)

    def _mine(self, session: int) -> int:
        """Return the number of a session, from 1; 0 is REGISTER's."""
        if session and session not in self._known:
            self._known[session] = len(self._known) + 1
        return self._known.get(session, 0)

    # -- what was answered ---------------------------------------------------------------------

    def _answer(self, session: int, what: str, payload: bytes) -> None:
        at = self._question(session, what)
        asked = self._lines[at]
        answers = [line for line in self._lines[at:] if self._is_answer(line, asked, what)]
        if what == "PIPE":
            self._pipe(session, answers[0].octets, payload)
            return
        delay = answers[0].time - asked.time if answers and answers[0].octets else 0
        task = asyncio.ensure_future(self._write(session, asked, answers, payload, delay > SLOW))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _question(self, session: int, what: str) -> int:
        """Return where the next recorded question of that kind is."""
        recorded = self._sessions[self._known[session] - 1] if session else 0
        for at, line in enumerate(self._lines):
            words = line.note.split()
            if line.direction != "S" or not line.octets or at in self._used:
                continue
            fits = what in words[:2] and words[0] != "EVENT"
            if fits and (line.type == REGISTER or self._session(line) == recorded):
                self._used.add(at)
                return at
        raise AssertionError(f"{what} was not asked in {self._recording}")

    def _is_answer(self, line: Line, asked: Line, what: str) -> bool:
        if line.direction != "F":
            return False
        if what == "PIPE":
            return line.fd
        if what == "REGISTER" or not line.octets:
            return not line.octets or line.type == REGISTER
        if what not in line.note:
            return False
        qid = self._id(asked.payload, 1)
        return "MALFORMED" in line.note or self._id(line.payload, 0) == qid

    async def _write(
        self, session: int, asked: Line, answers: Sequence[Line], payload: bytes, slow: bool
    ) -> None:
        if slow:
            await asyncio.sleep(0.1)
        numbers = range(2 if "twice" in self._recording.scenario else 1)
        for number in numbers:
            if number >= len(answers):
                return
            line = answers[number]
            if "without answering" in line.note or line.note.startswith("EOF"):
                self._end.close()
                return
            if line.octets and asked.type:
                self._send(self._renamed(line, asked, payload, session))
            elif line.octets:
                self._send(line.octets)

    def _renamed(self, line: Line, asked: Line, payload: bytes, session: int) -> bytes:
        """Return a recorded answer with the id and the length that belong to this question."""
        start = HEADER.size + self._tag
        octets = line.octets
        if self._id(line.payload, 0) == self._id(asked.payload, 1):
            qid = self._id(payload, 1).to_bytes(8, "little")
            octets = octets[:start] + qid + octets[start + 8 :]
        at = start + 8 + self._tag + 4 + self._tag
        if " EOM " in asked.note and "nodatalen" not in line.note:
            read, written = self._ways.pop(session, (0, 0))
            told = int.from_bytes(octets[at : at + 4], "little")
            asked_length = int.from_bytes(asked.payload[-4:], "little")
            if read:
                told += written - asked_length - len(self._added)
            else:  # it did not pass through
                told += int.from_bytes(payload[-4:], "little") - asked_length
            octets = octets[:at] + told.to_bytes(4, "little") + octets[at + 4 :]
        return octets

    def _send(self, octets: bytes, *fds: int) -> None:
        if self._end.fileno() >= 0:
            self._end.sendmsg([octets], rights(*fds))

    # -- the data ------------------------------------------------------------------------------

    def _pipe(self, session: int, answer: bytes, payload: bytes) -> None:
        sink = self._descriptors.popleft()
        octets = answer[: HEADER.size] + payload
        if self._recording.scenario == "31-pipe-passthrough-fd":
            self._send(octets, sink)
            os.close(sink)
            return
        theirs, source = socket.socketpair()
        source.setblocking(False)
        self._send(octets, theirs.fileno())
        theirs.close()
        os.set_blocking(sink, True)
        content = bytearray()
        asyncio.get_running_loop().add_reader(source, self._copy, session, source, sink, content)

    def _copy(self, session: int, source: socket.socket, sink: int, content: bytearray) -> None:
        data = source.recv(1 << 16)
        if data:
            content += data
            return
        asyncio.get_running_loop().remove_reader(source)
        source.close()
        head, blank, body = bytes(content).partition(b"\n\n")
        made = head + b"\n" + self._added + blank[1:] + body if self._added else bytes(content)
        self._ways[session] = len(content), len(made)
        os.write(sink, made)
        if not self._recording.scenario.startswith("19"):
            os.close(sink)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        self._end.close()


# -- the clients -----------------------------------------------------------------------------------


async def play(recording: Recording) -> tuple[Smtpd, list[RecordedFilter], list[str]]:
    """Have the recorded clients come one after the other; return what came of it."""
    patience = 0.3 if recording.scenario in HANGING else PATIENCE
    pairs = {name: socket.socketpair() for name in recording.filters}
    filters = [RecordedFilter(recording, name, theirs) for name, (_, theirs) in pairs.items()]
    smtpd = Smtpd(
        *(ours for ours, _ in pairs.values()), version=recording.version, patience=patience
    )
    replies: list[str] = []
    try:
        await smtpd.start()
        for name in dict.fromkeys(line.client for line in recording.of("C")):
            lines = [line for line in recording.of("C", "R") if line.client == name]
            await _converse(Client(smtpd, "127.0.0.1", "localhost"), lines, replies)
    except (Death, Hang):
        pass
    smtpd.stop()
    await asyncio.sleep(0.01)
    for filter in filters:
        filter.close()
    return smtpd, filters, replies


async def _converse(client: Client, lines: Sequence[Line], replies: list[str]) -> None:
    for at, line in enumerate(lines):
        if line.direction == "R" or client.closed:
            continue
        after = lines[at + 1] if at + 1 < len(lines) else None
        if line.note.startswith("tcp close"):
            client.vanish()
        elif after is not None and after.note.startswith("tcp close"):
            asking = asyncio.ensure_future(_say(client, line))
            await asyncio.sleep(0.02)
            client.vanish()
            await asking
        else:
            replies.append(await _say(client, line))


async def _say(client: Client, line: Line) -> str:
    if line.note == "tcp connect":
        return await client.connect()
    if client.way is not None:
        ended = line.octets.endswith(b"\r\n.\r\n") or line.octets == b".\r\n"
        content = line.octets.removesuffix(b".\r\n") if ended else line.octets
        await client.send(re.sub(rb"(?m)^\.", b"", content))
        return await client.end() if ended else ""
    word, _, argument = line.octets.decode().strip().partition(" ")
    path = re.search(r"<(.*)>", argument)
    match word:
        case "HELO" | "EHLO":
            return await client.greet(argument)
        case "MAIL":
            return await client.mail(path[1] if path else "")
        case "RCPT":
            return await client.rcpt(path[1] if path else "")
        case "DATA":
            return await client.data()
        case "RSET":
            return await client.rset()
        case "NOOP":
            return "250 2.0.0: Ok"
        case "QUIT":
            return await client.quit()
    raise ValueError(f"{word} is not played")
