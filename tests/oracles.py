"""Judge what an adapter wrote: each fault found would harm its peer or one of the peer's sessions.

The OpenSMTPD oracle knows what smtpd does with a filter's lines (`opensmtpd/traces/README.md`,
"Malformed answers"): most bad lines end the whole mail server, the others hang or break a session.
The SMTP oracles know what RFC 5321 allows a server to say, and a client to send as content.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

PHASES = frozenset(
    b"connect helo ehlo starttls auth mail-from rcpt-to data data-line commit "
    b"rset quit noop help wiz".split()
)
EVENTS = frozenset(
    b"link-connect link-greeting link-identify link-tls link-auth link-disconnect "
    b"tx-reset tx-begin tx-mail tx-rcpt tx-envelope tx-data tx-commit tx-rollback "
    b"protocol-client protocol-server filter-report filter-response timeout".split()
)
LONGEST_ID = 64  # smtpd's are 16 digits; an answer to a longer one cannot be expected
LONGEST_LINE = 65_536  # with its LF: one octet more and smtpd reads no further line
LONGEST_LINE_BEFORE_0_7 = 2_048  # with its LF: what is longer is cut without a word
FAULTS_KEPT = 20

Pair: TypeAlias = tuple[bytes, bytes]

_REGISTER = re.compile(
    rb"register\|(report|filter)\|(smtp-in|smtp-out)\|([a-z*-]+)|register\|ready"
)
_RESULT = re.compile(
    rb"filter-result\|([0-9A-Za-z]+)\|([0-9A-Za-z]+)\|(proceed|junk|(rewrite)\|([^\0-\x1f\x7f]+)"
    rb"|(?:reject|disconnect)\|[45][0-9][0-9] [^\0-\x08\x0a-\x1f\x7f]+)"
)
_DATALINE = re.compile(rb"filter-dataline\|([0-9A-Za-z]+)\|([0-9A-Za-z]+)\|([^\0\n]*)")
_PATH = rb'<(?:"(?:[^"\\]|\\.)*"|[^"<>\\ ])*>'
_PARAMETERS = rb"(?: [A-Za-z0-9][A-Za-z0-9-]*(?:=[^ ]+)?)*"
_REWRITES = {
    b"helo": re.compile(rb"[^ ]+"),
    b"ehlo": re.compile(rb"[^ ]+"),
    b"auth": re.compile(rb".+"),
    b"mail-from": re.compile(_PATH + _PARAMETERS),
    b"rcpt-to": re.compile(_PATH + _PARAMETERS),
}


@dataclass(slots=True)
class _Waiting:
    """What smtpd expects under one pair of ids: answers to questions, a stream of data-lines."""

    session: bytes
    phases: deque[bytes] = field(default_factory=deque)
    dots_due: int = 0  # messages given whole whose dot has not come back
    reading: bool = False  # lines were given since the last dot
    gone: bool = False  # the session has ended: answers may come once or never

    @property
    def owed(self) -> int:
        return len(self.phases) + self.dots_due


class OpensmtpdOracle:
    """Follow both directions of one filter's conversation and collect faults of the filter.

    Report bytes to `asked` before they are written to the filter, to `wrote` as they are read from
    it: then an answer that comes too early is seen as well.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.answers = 0  # decisions and final dots
        self.owed = 0  # that are still to come, of sessions that live
        self.ready = False  # register|ready was said
        self._asked_rest = bytearray()
        self._wrote_rest = bytearray()
        self._line = 0
        self._registered: set[bytes] = set()
        self._outgoing_known = False
        self._configured = False
        self._longest = LONGEST_LINE
        self._waiting: dict[Pair, _Waiting] = {}
        self._sessions: dict[bytes, set[Pair]] = {}

    # -- smtpd's side ----------------------------------------------------------------------------

    def asked(self, data: bytes) -> None:
        """Take bytes that smtpd writes to the filter."""
        for line in _complete(self._asked_rest, data):
            if line.startswith(b"filter|"):
                self._question(line.split(b"|", 7))
            elif line.startswith(b"report|"):
                self._report(line.split(b"|", 6))
            elif line.startswith(b"config|subsystem|"):
                self._outgoing_known = True
            elif line == b"config|ready":
                self._configured = True

    def _question(self, fields: list[bytes]) -> None:
        if len(fields) < 7:
            return
        _, version, _, _, phase, session, token = fields[:7]
        if not (_is_id(session) and _is_id(token)):
            return
        if before(version, 7):
            self._longest = LONGEST_LINE_BEFORE_0_7
        pair = (token, session) if before(version, 5) else (session, token)
        waiting = self._open(pair, session)
        if phase != b"data-line":
            waiting.phases.append(phase)
            self.owed += 1
        elif fields[7:] == [b"."]:
            waiting.dots_due += 1
            waiting.reading = False
            self.owed += 1
        else:
            waiting.reading = True

    def _open(self, pair: Pair, session: bytes) -> _Waiting:
        waiting = self._waiting.get(pair)
        if waiting is None:
            waiting = self._waiting[pair] = _Waiting(session)
            self._sessions.setdefault(session, set()).add(pair)
        if waiting.gone:
            waiting.gone = False
            self.owed += waiting.owed
        return waiting

    def _report(self, fields: list[bytes]) -> None:
        if len(fields) < 6 or fields[4] != b"link-disconnect":
            return
        for pair in list(self._sessions.get(fields[5], ())):
            waiting = self._waiting[pair]
            self.owed -= 0 if waiting.gone else waiting.owed
            waiting.gone = True
            self._forget_idle(pair)

    def _forget_idle(self, pair: Pair) -> None:
        waiting = self._waiting[pair]
        if waiting.owed or waiting.reading:
            return
        del self._waiting[pair]
        pairs = self._sessions[waiting.session]
        pairs.discard(pair)
        if not pairs:
            del self._sessions[waiting.session]

    # -- the filter's side -----------------------------------------------------------------------

    def wrote(self, data: bytes) -> None:
        """Take bytes that the filter has written."""
        for line in _complete(self._wrote_rest, data):
            self._line += 1
            if len(line) >= self._longest:
                self._fault(f"{len(line) + 1} octets with its LF")
            if line.startswith(b"filter-dataline|"):
                self._dataline(line)
            elif line.startswith(b"filter-result|"):
                self._result(line)
            else:
                self._register(line)

    def _register(self, line: bytes) -> None:
        found = _REGISTER.fullmatch(line)
        if found is None:
            self._fault(f"not in the grammar: {line[:80]!r}")
            return
        if self.ready:
            self._fault(f"after register|ready: {line!r}")
        if line in self._registered:
            self._fault(f"registered twice: {line!r}")
        self._registered.add(line)
        kind, direction, name = found.groups()
        if kind is None:
            self.ready = True
        elif kind == b"filter" and (name not in PHASES or direction != b"smtp-in"):
            self._fault(f"smtpd knows no such phase: {line!r}")
        elif kind == b"report" and name not in EVENTS and name != b"*":
            self._fault(f"smtpd knows no such event: {line!r}")
        elif direction == b"smtp-out" and not self._outgoing_known:
            self._fault(f"this smtpd knows no smtp-out: {line!r}")

    def _result(self, line: bytes) -> None:
        found = _RESULT.fullmatch(line)
        if found is None:
            self._fault(f"not in the grammar: {line[:120]!r}")
            return
        first, second, decision, rewrite, parameter = found.groups()
        phase = self._phase_of((first, second), line)
        if phase is None:
            return
        self.answers += 1
        if decision == b"junk" and phase == b"commit":
            self._fault(f"junk at commit: {line!r}")
        if rewrite is None:
            return
        allowed = _REWRITES.get(phase)
        if allowed is None or allowed.fullmatch(parameter) is None:
            self._fault(f"smtpd cannot use this rewrite at {phase.decode()}: {line[:120]!r}")

    def _phase_of(self, pair: Pair, line: bytes) -> bytes | None:
        """Return the phase whose question this answers, and forget the question."""
        waiting = self._answered(pair, line)
        if waiting is None:
            return None
        if not waiting.phases:
            self._fault(f"no such question is open: {line[:120]!r}")
            return None
        phase = waiting.phases.popleft()
        self._settle(pair, waiting)
        return phase

    def _settle(self, pair: Pair, waiting: _Waiting) -> None:
        if waiting.gone:
            self._forget_idle(pair)
        else:
            self.owed -= 1

    def _dataline(self, line: bytes) -> None:
        found = _DATALINE.fullmatch(line)
        if found is None:
            self._fault(f"not in the grammar: {line[:120]!r}")
            return
        first, second, text = found.groups()
        waiting = self._answered((first, second), line)
        if waiting is None:
            return
        if text == b".":
            self._dot((first, second), waiting, line)
        elif not (waiting.dots_due or waiting.reading):
            self._fault(f"a line outside a message: {line[:120]!r}")

    def _dot(self, pair: Pair, waiting: _Waiting, line: bytes) -> None:
        self.answers += 1
        if waiting.dots_due == 0:
            self._fault(f"a dot before smtpd's own: {line!r}")
            return
        waiting.dots_due -= 1
        self._settle(pair, waiting)

    def _answered(self, pair: Pair, line: bytes) -> _Waiting | None:
        if not self.ready:
            self._fault(f"before register|ready: {line[:120]!r}")
        waiting = self._waiting.get(pair)
        if waiting is None:
            self._fault(f"smtpd never used these ids: {line[:120]!r}")
        return waiting

    def _fault(self, what: str) -> None:
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(f"line {self._line}: {what}")

    def ended(self) -> list[str]:
        """Return all faults, with those that show when nothing more will come."""
        faults = list(self.faults)
        if self._wrote_rest:
            rest = bytes(self._wrote_rest[:80])
            faults.append(f"the output ends in the middle of a line: {rest!r}")
        if self._configured and not self.ready:
            faults.append("never register|ready: smtpd serves nobody")
        for pair, waiting in self._waiting.items():
            name = b"|".join(pair).decode("latin-1")
            if waiting.phases and not waiting.gone:
                asked = b", ".join(waiting.phases).decode("latin-1")
                faults.append(f"{name}: without an answer: {asked}")
            if waiting.dots_due and not waiting.gone:
                faults.append(f"{name}: {waiting.dots_due} final dots without an answer")
        return faults


def _complete(rest: bytearray, data: bytes) -> list[bytes]:
    """Return the lines that are complete with some more data; what is left stays in `rest`."""
    head, newline, tail = data.rpartition(b"\n")
    if not newline:
        rest += tail
        return []
    lines = (bytes(rest) + head).split(b"\n")
    rest[:] = tail
    return lines


def _is_id(text: bytes) -> bool:
    """Tell whether an answer can be expected that repeats this."""
    return text.isalnum() and len(text) <= LONGEST_ID


def before(version: bytes, minor: int) -> bool:
    """Tell whether a protocol version is older than 0.`minor`; what is none is the newest."""
    major, _, low = version.partition(b".")
    return major == b"0" and low.isdigit() and int(low) < minor


def check_opensmtpd_stdout(out: bytes, stdin: bytes) -> list[str]:
    """Return the faults in a filter's whole output, given the whole input."""
    oracle = OpensmtpdOracle()
    oracle.asked(stdin)
    oracle.wrote(out)
    return oracle.ended()


# -- SMTP ------------------------------------------------------------------------------------------

LONGEST_REPLY_LINE = 512  # with its CRLF: RFC 5321 4.5.3.1.5

_REPLY = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\0-\x1f\x7f]*))?")
_STRAY = ((rb"\r(?!\n)", "a bare CR"), (rb"(?<!\r)\n", "a bare LF"), (rb"\0", "a NUL"))


def check_smtp_replies(out: bytes) -> list[str]:
    """Return the faults in everything that an SMTP server has said (RFC 5321 4.2)."""
    faults: list[str] = []
    *lines, rest = out.split(b"\r\n")
    code = b""  # of the lines before, where the reply goes on
    for number, line in enumerate(lines, 1):
        found = _REPLY.fullmatch(line)
        if found is None:
            faults.append(f"line {number}: not a reply line: {line[:60]!r}")
            continue
        if len(line) + 2 > LONGEST_REPLY_LINE:
            faults.append(f"line {number}: {len(line) + 2} octets with its CRLF")
        if code and found[1] != code:
            faults.append(f"line {number}: another code within a reply: {line[:60]!r}")
        if not _is_utf8(line):
            faults.append(f"line {number}: not UTF-8: {line[:60]!r}")
        code = found[1] if found[2] == b"-" else b""
    if code:
        faults.append("the last reply has no end")
    if rest:
        faults.append(f"the last line has no CRLF: {rest[:60]!r}")
    return faults


def check_smtp_content(octets: bytes) -> list[str]:
    """Return the faults in what was sent behind DATA, up to and with the end of data.

    Another server might take a faulty one for two messages (RFC 5321 4.1.1.4).
    """
    faults = [stray for pattern, stray in _STRAY if re.search(pattern, octets)]
    whole = b"\r\n" + octets
    if whole.find(b"\r\n.\r\n") != len(whole) - 5:
        faults.append("the end of data is not at the end, and there only")
    return faults


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
