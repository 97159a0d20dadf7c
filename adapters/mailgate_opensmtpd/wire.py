"""The filter protocol of OpenSMTPD, smtpd-filters(7): lines <-> events.  No I/O, no clock.

`Decoder` turns smtpd's octets into events; the functions at the end make our lines.  A line
outside the grammar ends the whole mail server (lka_filter.c calls fatalx), so those functions
raise ValueError instead of writing one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, final

Version: TypeAlias = tuple[int, int]

NEWEST: Version = (0, 7)
MAX_INPUT_LINE = 128 * 1024  # octets; smtpd's longest is below 65,534 and some 100
MAX_ID = 64  # octets of a session or token; smtpd writes 16
MAX_REPLY = 510  # octets of a reply line without CRLF (RFC 5321 4.5.3.1.5)

EVENTS: dict[str, tuple[str, ...]] = {
    "link-connect": ("rdns", "fcrdns", "src", "dest"),
    "link-greeting": ("hostname",),
    "link-identify": ("method", "identity"),
    "link-tls": ("ciphers",),
    "link-auth": ("result", "username"),
    "link-disconnect": (),
    "tx-begin": ("msgid",),
    "tx-mail": ("msgid", "result", "address"),
    "tx-rcpt": ("msgid", "result", "address"),
    "tx-envelope": ("msgid", "evpid"),
    "tx-data": ("msgid", "result"),
    "tx-commit": ("msgid", "size"),
    "tx-rollback": ("msgid",),
    "tx-reset": ("msgid",),
    "protocol-client": ("command",),
    "protocol-server": ("response",),
    "filter-report": ("kind", "name", "message"),
    "filter-response": ("phase", "decision", "parameter"),
    "timeout": (),
}
"""The reports and their parameters, as protocol 0.7 orders them."""

OUTGOING = tuple(event for event in EVENTS if not event.startswith(("filter-", "link-auth")))
"""The reports of smtp-out that are worth registering; there is no filtering."""

PHASES = (
    *("connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data"),
    *("data-line", "commit", "rset", "quit", "noop"),
)
"""The phases that smtpd asks; `help` and `wiz` can be registered and are never asked."""


@final
@dataclass(frozen=True, slots=True)
class Config:
    """A ``config|`` line; the key ``ready`` ends the handshake."""

    key: str
    value: str


class Report(NamedTuple):  # a tuple: it is made faster than a frozen dataclass, and often
    """Something that happened; ``parameters`` are named in `EVENTS`, the last ones may lack."""

    version: Version
    direction: str
    event: str
    session: bytes
    parameters: Sequence[bytes]


class Request(NamedTuple):
    """A question; ``faulty`` says why it can only be answered with a failure."""

    version: Version
    phase: str
    session: bytes
    token: bytes
    parameter: bytes
    faulty: str = ""


@final
@dataclass(frozen=True, slots=True)
class DataLines:
    """Consecutive message lines of one session, dot-stuffed, without their line ends."""

    version: Version
    session: bytes
    token: bytes
    lines: list[bytes]


@final
@dataclass(frozen=True, slots=True)
class Ignored:
    """A line that nothing can be done with."""

    reason: str
    line: bytes


Event: TypeAlias = Config | Report | Request | DataLines | Ignored

_HEX = re.compile(rb"[0-9a-fA-F]+")
_LAYOUT = re.compile(rb"filter\|0\.\d\|\d{10}\.\d{6}(\|smtp-in\|data-line\|[^|]{16}\|[^|]{16}\|)")
_UNANSWERABLE = re.compile(rb"[\r\0]")


@final
class Decoder:
    """Turns smtpd's octets into events, whatever their pieces.

    Versions are read from each line: until 7.6 the handshake does not tell them.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._head = b""  # of a line that is longer than any real one
        self._versions: dict[bytes, Version | None] = {}

    def receive_data(self, data: bytes) -> list[Event]:
        """Return the events that are complete now.

        Events of one session are in order.  Message lines are grouped by session, so those of
        different sessions may change places.
        """
        data = self._rest + data
        lines = data.split(b"\n")
        rest = lines.pop()
        if _has_overlong(data):
            lines = [line[:MAX_INPUT_LINE] for line in lines]
        if self._head and lines:
            lines[0], self._head = self._head, b""
        if len(rest) > MAX_INPUT_LINE or self._head:
            self._head, rest = self._head or rest[:MAX_INPUT_LINE], b""
        self._rest = rest

        # Nearly every line is a message line in a fixed layout, of a message that is known by
        # then: those take two slices and a look-up each, and no more.
        events: list[Event] = []
        groups = _Groups()
        append_to = groups.append_to
        for line in lines:
            try:
                append_to[line[28:81]](line[81:])
            except KeyError:
                self._take(line, events, groups)
        return events

    def _take(self, line: bytes, events: list[Event], groups: _Groups) -> None:
        """Add the event of one line."""
        kind, _, rest = line.partition(b"|")
        if kind == b"filter":
            event = self._request(line, rest, groups)
        elif kind == b"report":
            event = self._report(line, rest)
        elif kind == b"config":
            key, _, value = rest.partition(b"|")
            event = Config(key.decode("latin-1"), value.decode("latin-1"))
        else:
            event = Ignored("unknown kind of line", line[:256])
        if event is None:
            return
        if type(event) is DataLines:
            groups.begin(event, line)
        elif type(event) is Report or type(event) is Request:
            groups.end(event.session)
        events.append(event)

    def _request(self, line: bytes, rest: bytes, groups: _Groups) -> Event | None:
        fields = rest.split(b"|", 6)
        if len(fields) < 6 or not _is_id(fields[4]) or not _is_id(fields[5]):
            return Ignored("a request without session and token", line[:256])
        version, _, direction, name, session, token = fields[:6]
        known = self._version(version)
        phase = name.decode("latin-1")
        if known is None:
            return Request(NEWEST, phase, session, token, b"", "unknown protocol version")
        if direction != b"smtp-in":
            return Request(known, phase, session, token, b"", "unknown direction")
        if len(fields) < 7:
            return Request(known, phase, session, token, b"", "no parameter")
        if not _HEX.fullmatch(token):
            return Request(known, phase, session, token, b"", "a token that is no number")
        if phase == "data-line":
            if groups.extend(session, token, fields[6]):
                return None
            return DataLines(known, session, token, [fields[6]])
        if _UNANSWERABLE.search(fields[6]):
            return Request(known, phase, session, token, b"", "CR or NUL in the parameter")
        if phase == "connect" and b"|" not in fields[6]:
            return Request(known, phase, session, token, b"", "no address")
        return Request(known, phase, session, token, fields[6])

    def _report(self, line: bytes, rest: bytes) -> Event:
        fields = rest.split(b"|", 5)
        if len(fields) < 5 or not _is_id(fields[4]):
            return Ignored("a report without session", line[:256])
        version = self._version(fields[0])
        if version is None:
            return Ignored("a report of an unknown protocol version", line[:256])
        event = fields[3].decode("latin-1")
        names = EVENTS.get(event)
        if names is None:
            return Ignored("unknown report", line[:256])
        parameters = _parameters(event, version, fields[5] if len(fields) > 5 else b"")
        if len(parameters) < len(names) - (event == "filter-response"):
            return Ignored("a report without its parameters", line[:256])
        return Report(version, fields[2].decode("latin-1"), event, fields[4], parameters)

    def _version(self, text: bytes) -> Version | None:
        """Return the version of a line; a later minor is read as it is, a major is unknown."""
        try:
            return self._versions[text]
        except KeyError:
            found = re.fullmatch(rb"0\.(\d{1,3})", text)
            version = (0, int(found[1])) if found else None
            if len(self._versions) < 100:
                self._versions[text] = version
            return version


@final
class _Groups:
    """The message lines that are being gathered, by session and token."""

    __slots__ = ("_lines", "_of_session", "append_to")

    def __init__(self) -> None:
        self.append_to: dict[
            bytes, Callable[[bytes], None]
        ] = {}  # by octets 28 to 81 of `_LAYOUT`
        self._lines: dict[tuple[bytes, bytes], list[bytes]] = {}
        self._of_session: dict[bytes, list[tuple[bytes, bytes]]] = {}

    def begin(self, event: DataLines, line: bytes) -> None:
        """Gather the lines of one message into this event."""
        self._lines[event.session, event.token] = event.lines
        self._of_session.setdefault(event.session, []).append((event.session, event.token))
        layout = _LAYOUT.match(line)
        if layout is not None:
            self.append_to[layout[1]] = event.lines.append

    def extend(self, session: bytes, token: bytes, text: bytes) -> bool:
        """Add a line to a message that is known; False where none is."""
        lines = self._lines.get((session, token))
        if lines is not None:
            lines.append(text)
        return lines is not None

    def end(self, session: bytes) -> None:
        """Begin anew after another event of a session: order matters within it."""
        if not self._of_session:
            return
        for key in self._of_session.pop(session, ()):
            del self._lines[key]
            self.append_to.pop(b"|smtp-in|data-line|%b|%b|" % key, None)


def _has_overlong(data: bytes) -> bool:
    """Tell whether a line is over the limit: one step for as many lines as a limit holds."""
    at = 0
    while len(data) - at > MAX_INPUT_LINE:
        end = data.rfind(b"\n", at, at + MAX_INPUT_LINE + 1)
        if end < 0:
            return True
        at = end + 1
    return False


def _is_id(text: bytes) -> bool:
    """Tell whether something can be repeated in an answer."""
    return 0 < len(text) <= MAX_ID and text.isalnum()


def _parameters(event: str, version: Version, rest: bytes) -> list[bytes]:
    """Return a report's parameters as `EVENTS` orders them.

    Where a client's text may hold the separator, the line is split from its fixed side.
    """
    if event == "link-connect":
        return rest.rsplit(b"|", 3)
    if event == "link-auth" and version < (0, 7):
        return rest.rsplit(b"|", 1)[::-1]
    if event in ("tx-mail", "tx-rcpt") and version < (0, 6):
        msgid, _, tail = rest.partition(b"|")
        address, _, result = tail.rpartition(b"|")
        return [msgid, result, address] if result else []
    if not EVENTS[event]:
        return []
    return rest.split(b"|", len(EVENTS[event]) - 1)


# -- our lines ---------------------------------------------------------------------------------


class LineTooLong(ValueError):
    """An answer that this release of smtpd cannot take whole."""


def line_limit(version: Version) -> int:
    """Return how many octets one answer may have, without its LF.

    smtpd up to 7.3 (protocol 0.6) cuts a line silently at 2,047 octets; later ones stop
    serving anyone above 65,536 with the LF (IOBUF_MAX).
    """
    return 2047 if version <= (0, 6) else 65535


def register(kind: str, direction: str, name: str) -> bytes:
    """Return a line that registers a report or a phase; ValueError for one smtpd dies of."""
    known = {"report": tuple(EVENTS), "filter": PHASES}.get(kind, ())
    if name not in known or direction not in ("smtp-in", "smtp-out"):
        raise ValueError(f"no such registration: {kind}|{direction}|{name}")
    if direction == "smtp-out" and (kind == "filter" or name not in OUTGOING):
        raise ValueError(f"smtp-out does not know {kind} {name}")
    return f"register|{kind}|{direction}|{name}\n".encode("ascii")


READY = b"register|ready\n"

_REPLY = re.compile(rb"[45]\d\d [^\r\n\0]+")
_NAME = re.compile(rb"[!-~]+")
_PATH = re.compile(rb"<[^<>\r\n\0]*>(?: [A-Za-z0-9-]+(?:=[^\s<>\0]+)?)*")


def _answer(kind: bytes, version: Version, session: bytes, token: bytes) -> bytes:
    """Return the start of an answer; until protocol 0.4 the token comes first."""
    if not _is_id(session) or not _is_id(token):
        raise ValueError("a session or token that no question had")
    first, second = (token, session) if version <= (0, 4) else (session, token)
    return b"%b|%b|%b|" % (kind, first, second)


def _result(request: Request, decision: bytes) -> bytes:
    if request.phase == "data-line":
        raise ValueError("a decision in the data phase ends smtpd")
    line = _answer(b"filter-result", request.version, request.session, request.token) + decision
    if len(line) > line_limit(request.version):
        raise LineTooLong("an answer over the limit of this smtpd")
    return line + b"\n"


def proceed(request: Request) -> bytes:
    """Return the answer that lets a command pass."""
    return _result(request, b"proceed")


def refuse(request: Request, reply: bytes, *, disconnect: bool = False) -> bytes:
    """Return the answer that refuses a command with one reply line, ``NNN text``.

    smtpd turns any other text into 421 and closes the connection.
    """
    if not _REPLY.fullmatch(reply) or len(reply) > MAX_REPLY:
        raise ValueError(f"not a reply that refuses: {reply[:60]!r}")
    return _result(request, (b"disconnect|" if disconnect else b"reject|") + reply)


def rewrite(request: Request, parameter: bytes) -> bytes:
    """Return the answer that replaces a command's argument.

    A path is in angle brackets and its ESMTP parameters follow, else smtpd refuses the command.
    """
    if request.phase not in ("helo", "ehlo", "mail-from", "rcpt-to"):
        raise ValueError(f"nothing to rewrite in {request.phase}")
    path = request.phase in ("mail-from", "rcpt-to")
    if not (_PATH if path else _NAME).fullmatch(parameter):
        raise ValueError(f"not an argument for {request.phase}: {parameter[:60]!r}")
    return _result(request, b"rewrite|" + parameter)


def data_lines(version: Version, session: bytes, token: bytes, lines: Sequence[bytes]) -> bytes:
    """Return answers for message lines, dot-stuffed, without their line ends and without the dot.

    Raises LineTooLong where one does not fit, ValueError for one that holds LF or NUL or that
    would end the message.
    """
    if not lines:
        return b""
    start = _answer(b"filter-dataline", version, session, token)
    if max(map(len, lines)) + len(start) > line_limit(version):
        raise LineTooLong("a message line over the limit of this smtpd")
    if b"." in lines:
        raise ValueError("a message line that would end the message: dots are to be stuffed")
    out = start + (b"\n" + start).join(lines) + b"\n"
    if out.count(b"\n") != len(lines) or b"\0" in out:
        raise ValueError("LF or NUL in a message line")
    return out


def data_text(version: Version, session: bytes, token: bytes, text: bytes) -> bytes:
    """Return answers for a whole text: CRLF lines, dot-stuffed.  Raises as `data_lines` does."""
    if not text:
        return b""
    start = _answer(b"filter-dataline", version, session, token)
    longest = line_limit(version) - len(start) + 2  # with CRLF
    at = 0
    while at < len(text):
        # The last line end within reach: one step for as many lines as a limit holds.
        end = text.rfind(b"\r\n", at, at + longest)
        if end < 0 and text.find(b"\r\n", at) < 0:
            raise ValueError("a text that does not end with a line end")
        if end < 0:
            raise LineTooLong("a message line over the limit of this smtpd")
        at = end + 2
    if text.startswith(b".\r\n") or b"\r\n.\r\n" in text:
        raise ValueError("a message line that would end the message: dots are to be stuffed")
    if text.count(b"\n") != text.count(b"\r\n") or b"\0" in text:
        raise ValueError("bare LF or NUL in a message line")
    return start + text[:-2].replace(b"\r\n", b"\n" + start) + b"\n"


def data_end(version: Version, session: bytes, token: bytes) -> bytes:
    """Return the dot that ends a message; nothing may follow it."""
    return _answer(b"filter-dataline", version, session, token) + b".\n"
