"""A recording's SMTP side, played again to the MTAs of these tests."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import final

from mailgate_milter.wire import parse_connect
from tests.milter.mta import Channel, Client, Mta
from tests.milter.postfix import Postfix
from tests.milter.queued import Params, Queued
from tests.milter.recorded import Connection, Delivered, Frame, Recording
from tests.milter.sendmail import Sendmail

TRACE = re.compile(rb"Received: from [^\r]*\r\n\tby mta\.example\.org [^\r]*\r\n(?:\t[^\r]*\r\n)?")
_NOW = re.compile(rb"Sat, 21 Nov 2026 [0-9:]{8}|20261121[0-9]{4,6}(?=\.)")

# XCLIENT begins another session, and sendmail(1) has no SMTP side.
NOT_PLAYED = {
    *("postfix-xclient-login", "postfix-xclient-ipv6", "postfix-submission-local"),
    *("postfix-submission-local-null-sender", "postfix-submission-local-reject"),
}


@final
class Recorded:
    """The filter of a recording: after each packet of the MTA it says what it said then."""

    def __init__(self, connection: Connection) -> None:
        self.sent: list[Frame] = []
        self._frames = iter(connection.frames)
        self._said = b""
        self._next: Frame | None = next(self._frames, None)

    def send(self, data: bytes) -> None:
        for raw in _frames(data):
            self.sent.append(Frame("M", raw))
            self._next = next(self._frames, None)
            while self._next is not None and self._next.side == "F":
                self._said += self._next.raw
                self._next = next(self._frames, None)

    async def receive(self) -> bytes:
        said, self._said = self._said, b""
        return said

    early = receive

    def close(self) -> None:
        pass


def _frames(data: bytes) -> Iterator[bytes]:
    while data:
        size = 4 + int.from_bytes(data[:4])
        yield data[:size]
        data = data[size:]


@final
class Play:
    """A recording's SMTP side, played again."""

    def __init__(
        self, recording: Recording, filter: Callable[[], Awaitable[Channel]] | None = None
    ) -> None:
        """Play with the recorded filter, or connect to another."""
        self.recording = recording
        self.filters: list[Recorded] = []
        self.mta = self._mta(filter or self._open)

    def _mta(self, open_channel: Callable[[], Awaitable[Channel]]) -> Mta:
        frames = self.recording.connections[0].of("M")
        connect = next((one.data for one in frames if one.code == b"C"), b"localhost\0U")
        client = parse_connect(connect)
        name = "" if client.host.startswith(b"[") else client.host.decode()
        make = Postfix if self.recording.kind == "postfix" else Sendmail
        return make(open_channel, Client(name, "127.0.0.1", client.port), ids=self._ids())

    def _ids(self) -> list[str]:
        """Return the queue ids of a recording."""
        found = re.findall(
            rb"D[A-Z](?:[^\0]*\0[^\0]*\0)*?i\0([^\0]+)\0"
            rb"|queued as ([0-9A-F]+)\r|250 2\.0\.0 ([0-9A-Za-z]+) Message",
            b"".join(connection.given for connection in self.recording.connections)
            + b"".join(text for _, text in self.recording.dialogue),
        )
        return list(dict.fromkeys((a or b or c).decode() for a, b, c in found))

    async def _open(self) -> Recorded:
        self.filters.append(Recorded(self.recording.connections[len(self.filters)]))
        return self.filters[-1]

    async def run(self) -> bytes:
        """Say what the client said; return what it was answered."""
        answered = [await self.mta.connect()]
        for side, text in self.recording.dialogue:
            if side == "C" and text == b"<drops the connection>":
                await self.mta.end()
            elif side == "C":
                answered.append(await self.mta.say(self._whole(text)))
        await self.mta.end()
        return b"".join(answered)

    def _whole(self, text: bytes) -> bytes:
        """Return what the client wrote; a message that is abridged is as it arrived."""
        if text.startswith(b"MAIL FROM:<\xe5lice@"):  # noted in another encoding than all others
            return text.replace(b"\xe5", b"\xc3\xa5")
        if not re.search(rb"\.\.\. \([0-9]+ octets\)\r\n", text):
            return text
        raw = TRACE.sub(b"", self.recording.delivered[0].raw, count=1)
        return re.sub(rb"(?m)^\.", b"..", raw) + b".\r\n"


def without_time(data: bytes) -> bytes:
    return _NOW.sub(b"NOW", data)


def replies(texts: Sequence[bytes]) -> list[bytes]:
    """Return reply lines; of EHLO's only its last code, the extensions are the MTA's affair."""
    lines = b"".join(texts).split(b"\r\n")
    kept = [line for line in lines if not line.startswith(b"250-")]
    return [
        b"250 to EHLO" if re.match(rb"250 (?:HELP|CHUNKING|ENHANCED|mta\.)", line) else line
        for line in map(without_time, kept)
        if line not in (b"", b"<connection lost>")
    ]


def delivered(play: Play) -> list[Delivered]:
    """Return what our MTA delivered; Sendmail's queue has the last recipient first."""
    return [_delivered(queued, play.recording.kind) for queued in play.mta.delivered]


def _delivered(queued: Queued, kind: str) -> Delivered:
    recipients = list(queued.envelope.recipients.items())
    if kind == "sendmail":
        recipients.reverse()
    return Delivered(
        queued.envelope.sender,
        _params(queued.envelope.sender_params),
        [path for path, _ in recipients],
        [_params(params) for _, params in recipients],
        _plain(queued.raw),
    )


def as_recorded(one: Delivered) -> Delivered:
    """Return a recorded delivery without what the MTA's own client adds."""
    raw = one.raw
    if len(raw) > 190_000:  # lines that are too long for SMTP were broken
        raw = re.sub(rb"!\r\n |(?<=[^\r\n]{997})\r\n ", b"", raw)
    return Delivered(
        one.sender,
        _params(one.sender_params),
        one.recipients,
        [_params(params) for params in one.recipient_params],
        _plain(raw),
    )


def _params(params: Params) -> Params:
    return {name: value for name, value in params.items() if name in (b"ENVID", b"RET", b"NOTIFY")}


def _plain(raw: bytes) -> bytes:
    return without_time(TRACE.sub(b"Received: TRACE\r\n", raw, count=1))
