"""The payloads of the imsg filter API 52, 51 and 50: pure functions over octets.

What smtpd sends becomes `Event`, `Query` and `Pipe`.  What it is sent is checked here once more:
a frame that it does not expect ends the whole mail server.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Literal, NamedTuple, final

REGISTER, EVENT, QUERY, PIPE, RESPONSE = range(5)
"""The types of frames."""

NEWEST = 52
OLDER = (50, 51)

DATALINE = 0x400
"""The one hook that has an effect: with it smtpd has the message pass through the filter."""
EVERY_HOOK = 0xFFFFFFFF

MAX_LINE = 500
"""Octets of a reply's text: smtpd ends where its buffer of 2,048 is too small for a reply."""


class Happening(IntEnum):
    """What an event tells; the numbers are those of versions 51 and 52."""

    CONNECT = 0
    RESET = 1
    DISCONNECT = 2
    BEGIN = 3
    COMMIT = 4
    ROLLBACK = 5


_HAPPENINGS = tuple(Happening)
_HAPPENINGS_50 = (*_HAPPENINGS[:3], Happening.COMMIT, Happening.ROLLBACK)


class Kind(IntEnum):
    """What a query asks about."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3
    DATA = 4
    EOM = 5
    DATALINE = 6  # smtpd has a number for it, and no such query


class Status(IntEnum):
    """The answer to a query; CLOSE gives the reply and ends the connection."""

    OK = 0
    FAIL = 1
    CLOSE = 2


class WireError(Exception):
    """A payload that no smtpd sends, and that nothing can be answered to."""


# -- values ------------------------------------------------------------------------------------

_INT, _U32, _SIZE, _STRING, _ID, _SOCKADDR, _MAILADDR = 0, 1, 2, 4, 6, 9, 10
"""The tags that stand before each value in versions 50 and 51."""
_UNTAGGED = -1

_SIZE_T = struct.calcsize("N")  # smtpd and we run on one host
BYTE_ORDER: Literal["little", "big"] = "little" if struct.pack("=H", 1)[0] else "big"
_ADDRESS_PART = 256  # octets of each half of a mailaddr, its NUL among them
_LINE = re.compile(rb"[ -~]+")


@final
class _Plain:
    """Numbers side by side, without anything between them: version 52."""

    __slots__ = ("pack", "size", "unpack")

    def __init__(self, *tags: int) -> None:
        layout = struct.Struct("=" + "".join(_LETTERS[tag] for tag in tags))
        self.size = layout.size
        self.pack = layout.pack
        self.unpack = layout.unpack_from  # struct.error where there are too few octets


@final
class _Tagged:
    """Numbers with a tag before each: versions 50 and 51."""

    __slots__ = ("_layout", "_tags", "size")

    def __init__(self, *tags: int) -> None:
        self._tags = tags
        self._layout = struct.Struct("=" + "".join(f"B{_LETTERS[tag]}" for tag in tags))
        self.size = self._layout.size

    def pack(self, *values: int) -> bytes:
        pairs = zip(self._tags, values, strict=True)
        return self._layout.pack(*(number for pair in pairs for number in pair))

    def unpack(self, payload: bytes) -> tuple[int, ...]:
        values = self._layout.unpack_from(payload)
        if values[::2] != self._tags:
            raise WireError(f"values of the types {values[::2]} in place of {self._tags}")
        return values[1::2]


_LETTERS = {_INT: "i", _U32: "I", _ID: "Q"}


@final
class _Arguments:
    """Reads values one by one; WireError where one is not there."""

    __slots__ = ("_at", "_payload", "_tagged")

    def __init__(self, payload: bytes, at: int, *, tagged: bool) -> None:
        self._payload = payload
        self._at = at
        self._tagged = tagged

    def _take(self, tag: int, size: int) -> bytes:
        """Return the octets of one value."""
        at = self._at
        if self._tagged and tag != _UNTAGGED:
            if self._payload[at : at + 1] != bytes([tag]):
                raise WireError(f"no value of the type {tag} where one has to be")
            at += 1
        self._at = end = at + size
        if end > len(self._payload):
            raise WireError("an argument that is cut short")
        return self._payload[at:end]

    def u32(self) -> int:
        return int.from_bytes(self._take(_U32, 4), BYTE_ORDER)

    def string(self) -> bytes:
        self._take(_STRING, 0)
        end = self._payload.find(b"\0", self._at)
        if end < 0:
            raise WireError("a string without an end")
        found = self._payload[self._at : end]
        self._at = end + 1
        return found

    def sockaddr(self) -> bytes:
        size = int.from_bytes(self._take(_SOCKADDR, _SIZE_T), BYTE_ORDER)
        return self._take(_UNTAGGED, size)

    def mailbox(self) -> bytes:
        """Return an address; the null sender is empty.  What follows a NUL means nothing."""
        octets = self._take(_MAILADDR, 2 * _ADDRESS_PART)
        user, ended, _ = octets[:_ADDRESS_PART].partition(b"\0")
        domain, ended_too, _ = octets[_ADDRESS_PART:].partition(b"\0")
        if not ended or not ended_too:
            raise WireError("an address without an end")
        return user + b"@" + domain if domain else user

    def end(self) -> None:
        if self._at != len(self._payload):
            raise WireError(f"{len(self._payload) - self._at} octets too many")


# -- what comes, and the answer to it -----------------------------------------------------------


class Event(NamedTuple):
    """Something that happened to a session; nobody waits for an answer."""

    session: int
    happening: Happening


class Pipe(NamedTuple):
    """A message is to pass through; the descriptor with the frame takes what leaves us."""

    session: int


@final
class Query:
    """One question of smtpd, which waits for its one answer for ever.

    ``fault`` says why the arguments cannot be read; they are empty then.  ``local`` and
    ``remote`` are sockaddr structures, ``name`` is the client's host name at CONNECT and what it
    greets with at HELO, ``mailbox`` an address without angle brackets, ``datalen`` the octets
    that went into our pipe.
    """

    fault = ""
    local = remote = name = mailbox = b""
    datalen = 0
    answered = False

    def __init__(self, session: int, id: int, kind: int, codec: Codec) -> None:
        self.session = session
        self.id = id
        self.kind = kind
        self._codec = codec

    def answer(
        self, status: Status, code: int = 0, line: bytes = b"", datalen: int | None = None
    ) -> bytes:
        """Return the payload of its RESPONSE, once.

        A refusal has a code from 400 to 599 and a line of printable ASCII, 500 octets at most;
        without both of them smtpd has words of its own.  ``datalen`` is what was written to the
        sink: at EOM, and only there.  Raises ValueError for all else, and the second time.
        """
        if self.answered:
            raise ValueError("a query has one answer")
        if status not in _STATUSES or ((code or line) and not _is_reply(status, code, line)):
            raise ValueError(f"not the reply of a refusal: {status!r} {code} {line[:40]!r}")
        if (datalen is not None) is not (self.kind == _EOM):
            raise ValueError("datalen goes with the answer to EOM")
        codec = self._codec
        if datalen is None:
            payload = codec.response.pack(self.id, self.kind, status, code)
        elif 0 <= datalen < 1 << 32:
            payload = codec.response_eom.pack(self.id, self.kind, datalen, status, code)
        else:
            raise ValueError(f"{datalen} octets are more than the answer to EOM can tell")
        self.answered = True
        return payload + codec.string(line) if line else payload


_STATUSES = frozenset(Status)
_EOM = int(Kind.EOM)


def _is_reply(status: Status, code: int, line: bytes) -> bool:
    return (
        status != Status.OK
        and 400 <= code <= 599
        and len(line) <= MAX_LINE
        and _LINE.fullmatch(line) is not None
    )


def parse_registration(payload: bytes) -> tuple[Codec, bytes]:
    """Return how smtpd speaks, and the name that its smtpd.conf gives the filter.

    Version 52 has no tags before its values, 50 and 51 have them.  Raises WireError for what is
    none of these.
    """
    known = {NEWEST: False} | dict.fromkeys(OLDER, True)
    found: set[int] = set()
    for tagged in (False, True):
        arguments = _Arguments(payload, 0, tagged=tagged)
        try:
            version = arguments.u32()
        except WireError:
            continue
        if known.get(version) is tagged:
            name = arguments.string()
            arguments.end()
            return Codec(version), name
        found.add(version)
    # Read the wrong way a version is a big number.
    raise WireError(f"API version {min(found, default=0)}; this mailgate knows 50, 51 and 52")


@final
class Codec:
    """The payloads of one API version."""

    def __init__(self, version: int) -> None:
        """Speak version 50, 51 or 52."""
        self.version = version
        self._tagged = version != NEWEST
        self._happenings = _HAPPENINGS_50 if version == OLDER[0] else _HAPPENINGS
        layout = _Tagged if self._tagged else _Plain
        self._registration = layout(_INT, _INT)
        self._event = layout(_ID, _INT)
        self._query = layout(_ID, _ID, _INT)
        self._pipe = layout(_ID)
        self.response = layout(_ID, _INT, _INT, _INT)
        self.response_eom = layout(_ID, _INT, _U32, _INT, _INT)

    def string(self, octets: bytes) -> bytes:
        """Return a string as a payload has it."""
        return (bytes([_STRING]) if self._tagged else b"") + octets + b"\0"

    def register(self, hooks: int) -> bytes:
        """Return the answer to REGISTER; smtpd does not listen before it has it."""
        signed = hooks - (1 << 32) if hooks >> 31 else hooks  # an int in C
        return self._registration.pack(signed, 0)

    def pipe(self, session: int) -> bytes:
        """Return the answer to PIPE; what its descriptor takes is what we read."""
        return self._pipe.pack(session)

    def parse_event(self, payload: bytes) -> Event:
        """Return an event.  Raises WireError."""
        session, number = _whole(self._event, payload)
        if not 0 <= number < len(self._happenings):
            raise WireError(f"EVENT {number}")
        return Event(session, self._happenings[number])

    def parse_pipe(self, payload: bytes) -> Pipe:
        """Return whose message is to pass through.  Raises WireError."""
        return Pipe(*_whole(self._pipe, payload))

    def parse_query(self, payload: bytes) -> Query:
        """Return a query, with its ``fault`` where only the arguments are wrong.

        Raises WireError where it cannot be answered: it does not say whose it is, or what.
        """
        layout = self._query
        try:
            session, id, kind = layout.unpack(payload)
        except struct.error:
            raise _too_short(payload) from None
        query = Query(session, id, kind, self)
        try:
            if kind not in _READERS:
                raise WireError(f"QUERY {kind}, which no smtpd has")
            arguments = _Arguments(payload, layout.size, tagged=self._tagged)
            _READERS[kind](query, arguments)
            arguments.end()
        except WireError as error:
            query.fault = str(error)
        return query


def _whole(layout: _Plain | _Tagged, payload: bytes) -> tuple[int, ...]:
    """Return the numbers that are all of a payload."""
    if len(payload) > layout.size:
        raise WireError(f"a payload of {len(payload)} octets, which is too long")
    try:
        return layout.unpack(payload)
    except struct.error:
        raise _too_short(payload) from None


def _too_short(payload: bytes) -> WireError:
    return WireError(f"a payload of {len(payload)} octets, which is too short")


def _read_connect(query: Query, arguments: _Arguments) -> None:
    query.local, query.remote = arguments.sockaddr(), arguments.sockaddr()
    query.name = arguments.string()


def _read_helo(query: Query, arguments: _Arguments) -> None:
    query.name = arguments.string()


def _read_mailbox(query: Query, arguments: _Arguments) -> None:
    query.mailbox = arguments.mailbox()


def _read_nothing(query: Query, arguments: _Arguments) -> None:
    pass


def _read_datalen(query: Query, arguments: _Arguments) -> None:
    query.datalen = arguments.u32()


_READERS: Mapping[int, Callable[[Query, _Arguments], None]] = {
    Kind.CONNECT: _read_connect,
    Kind.HELO: _read_helo,
    Kind.MAIL: _read_mailbox,
    Kind.RCPT: _read_mailbox,
    Kind.DATA: _read_nothing,
    Kind.EOM: _read_datalen,
}
