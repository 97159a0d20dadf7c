"""The milter protocol, versions 2 to 6: packets and what is in them, both directions.

Pure: octets in, packets out, and back.  The names are those of Sendmail's ``mfdef.h`` without
their prefixes: SMFIC (`Command`), SMFIR (`Response`), SMFIF (`Action`), SMFIP (`Step`), SMFIM
(`MacroStage`).  What a filter says is checked here once: no function makes a packet that
Postfix or Sendmail would misread.  What the MTA says is made here too, so that a test can play
it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum, IntFlag
from functools import cache
from typing import NamedTuple, TypeAlias, final

OLDEST, NEWEST = 2, 6
"""Versions of the protocol; 5 was never released, and 1 had no QUIT of its own."""

MAX_DATA = 65_535
"""Octets of data in a packet (MILTER_CHUNK_SIZE); what is longer fails the filter at both MTAs."""

MAX_HEADER = 1024 * 1024 + 64 * 1024
"""Octets of a HEADER packet: Postfix sends a field as one, and header_size_limit may be raised."""

Packet: TypeAlias = tuple[int, bytes]
"""A command or response, and its data."""


class WireError(Exception):
    """The peer sent what the protocol does not allow; the connection cannot go on."""


class Command(IntEnum):
    """What the MTA sends (SMFIC)."""

    OPTNEG = 0x4F  # O
    MACRO = 0x44  # D
    CONNECT = 0x43  # C
    HELO = 0x48  # H
    MAIL = 0x4D  # M
    RCPT = 0x52  # R
    DATA = 0x54  # T; since version 4
    HEADER = 0x4C  # L
    EOH = 0x4E  # N
    BODY = 0x42  # B
    EOM = 0x45  # E; BODYEOB: may hold a last piece of the body
    ABORT = 0x41  # A
    UNKNOWN = 0x55  # U; since version 3
    QUIT = 0x51  # Q
    QUIT_NC = 0x4B  # K; since version 6


class Response(IntEnum):
    """What the filter sends (SMFIR)."""

    OPTNEG = 0x4F  # O
    CONTINUE = 0x63  # c
    ACCEPT = 0x61  # a
    REJECT = 0x72  # r
    TEMPFAIL = 0x74  # t
    DISCARD = 0x64  # d
    REPLYCODE = 0x79  # y
    SKIP = 0x73  # s
    PROGRESS = 0x70  # p
    CONN_FAIL = 0x66  # f
    SHUTDOWN = 0x34  # 4
    ADDHEADER = 0x68  # h
    INSHEADER = 0x69  # i
    CHGHEADER = 0x6D  # m
    REPLBODY = 0x62  # b
    ADDRCPT = 0x2B  # +
    ADDRCPT_PAR = 0x32  # 2
    DELRCPT = 0x2D  # -
    CHGFROM = 0x65  # e
    QUARANTINE = 0x71  # q


class Action(IntFlag):
    """What a filter may do to a message (SMFIF)."""

    ADDHDRS = 0x01
    CHGBODY = 0x02
    ADDRCPT = 0x04
    DELRCPT = 0x08
    CHGHDRS = 0x10
    QUARANTINE = 0x20
    CHGFROM = 0x40
    ADDRCPT_PAR = 0x80
    SETSYMLIST = 0x100


class Step(IntFlag):
    """Which events are left out or not answered, and how some are sent (SMFIP)."""

    NOCONNECT = 0x01
    NOHELO = 0x02
    NOMAIL = 0x04
    NORCPT = 0x08
    NOBODY = 0x10
    NOHDRS = 0x20
    NOEOH = 0x40
    NR_HDR = 0x80
    NOUNKNOWN = 0x100
    NODATA = 0x200
    SKIP = 0x400
    RCPT_REJ = 0x800
    NR_CONN = 0x1000
    NR_HELO = 0x2000
    NR_MAIL = 0x4000
    NR_RCPT = 0x8000
    NR_DATA = 0x10000
    NR_UNKN = 0x20000
    NR_EOH = 0x40000
    NR_BODY = 0x80000
    HDR_LEADSPC = 0x100000
    MDS_256K = 0x10000000
    MDS_1M = 0x20000000


class MacroStage(IntEnum):
    """Where a list of macros is sent (SMFIM); mind the order of the last two."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3
    DATA = 4
    EOM = 5
    EOH = 6


ACTIONS_OF: Mapping[int, Action] = {
    2: Action(0x3F),
    3: Action(0x3F),
    4: Action(0x3F),
    5: Action(0x3F),
    6: Action(0x1FF),
}
"""Which actions a version knows."""

STEPS_OF: Mapping[int, Step] = {
    2: Step(0x7F),
    3: Step(0x17F),
    4: Step(0x37F),
    5: Step(0x37F),
    6: Step(0x301FFFFF),
}
"""Which protocol bits a version knows."""

CHUNK_OF: Mapping[Step, int] = {Step.MDS_1M: 1_048_575, Step.MDS_256K: 262_143}
"""Octets of a body packet where one of these bits was agreed on, instead of `MAX_DATA`."""

# -- packets -----------------------------------------------------------------------------------

_MACRO = int(Command.MACRO)  # an enumeration's are found slower

_HEAD = struct.Struct(">IB").unpack_from
_LENGTH = struct.Struct(">I").unpack_from
_PACKET = struct.Struct(">IB").pack
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_OFFER = struct.Struct(">III")
OFFER_OCTETS = _OFFER.size


@cache
def _limits(kind: type[Command | Response], body: int) -> Sequence[int]:
    """Return the greatest length of a packet by its code, 0 where the code is unknown."""
    limits = [0] * 256
    for code in kind:
        limits[code] = MAX_DATA + 1
    if kind is Command:
        limits[Command.HEADER] = MAX_HEADER + 1
        limits[Command.BODY] = limits[Command.EOM] = body + 1
    return limits


@final
class Decoder:
    """Octets become packets.  `receive_data` never raises: see ``error`` after the packets.

    A packet is handed out when it is there as a whole; until then no more is kept than its
    own length, which is checked before it is awaited.
    """

    __slots__ = ("_limits", "_rest", "_unread", "_wanted", "error")

    def __init__(self, kind: type[Command | Response] = Command, unread: int = -1) -> None:
        """Decode an MTA's commands, or a filter's answers.

        The macros of the command ``unread`` are left out: Postfix sends the queue id before
        every header field.
        """
        self._limits = _limits(kind, MAX_DATA)
        self._unread = unread
        self._rest = bytearray()
        self._wanted = 0
        self.error: WireError | None = None

    def allow_body(self, octets: int) -> None:
        """Allow body packets of this size: MDS_256K or MDS_1M may have been agreed on."""
        self._limits = _limits(Command, octets)

    def receive_data(self, data: bytes) -> list[Packet]:
        """Take what was read; return the packets that are complete now."""
        packets: list[Packet] = []
        if self.error is not None:
            return packets
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return packets
            data = bytes(self._rest)
            self._rest.clear()
        at, end, limits, head, append = 0, len(data), self._limits, _HEAD, packets.append
        last, unread = end - 5, self._unread
        while at <= last:
            size, code = head(data, at)
            if not 0 < size <= limits[code]:
                self.error = _refused(size, code, limits)
                return packets
            stop = at + 4 + size
            if stop > end:
                wanted = stop - at
                break
            if code != _MACRO or size == 1 or data[at + 5] != unread:
                append((code, data[at + 5 : stop]))
            at = stop
        else:
            if end - at == 4 and not 0 < (size := _LENGTH(data, at)[0]) <= max(limits):
                self.error = _refused(size, 0, limits)
                return packets
            wanted = 5 if end - at == 4 else 4
        self._wanted = wanted
        if at < end:
            self._rest += data[at:] if at else data
        return packets


def _refused(size: int, code: int, limits: Sequence[int]) -> WireError:
    if size == 0 or size > max(limits):
        return WireError(f"a packet of length {size}")
    if not limits[code]:
        return WireError(f"an unknown command 0x{code:02x}")
    return WireError(f"a {chr(code)} packet of length {size}, over {limits[code]}")


def packet(code: int, data: bytes = b"") -> bytes:
    """Return a packet as it goes over the wire."""
    return _PACKET(len(data) + 1, code) + data


# -- what the MTA says ---------------------------------------------------------------------------


class Offer(NamedTuple):
    """What an MTA offers, or a filter answers: a version and two sets of bits."""

    version: int
    actions: int
    steps: int


class Connect(NamedTuple):
    """A client: ``family`` is ``4``, ``6``, ``L`` (a local socket) or ``U`` (unknown)."""

    host: bytes
    family: str
    port: int
    address: bytes


def parse_offer(data: bytes) -> Offer:
    """Return what OPTNEG offers; what follows its twelve octets belongs to later versions."""
    if len(data) < OFFER_OCTETS:
        raise WireError(f"OPTNEG of {len(data)} octets")
    return Offer(*_OFFER.unpack_from(data))


def parse_connect(data: bytes) -> Connect:
    """Return the client that CONNECT tells."""
    host, nul, rest = data.partition(b"\0")
    family = rest[:1].decode("latin-1")
    if not nul or family not in _FAMILIES or not family:
        raise WireError(f"CONNECT with address family {family!a}")
    if family == "U":
        return Connect(host, family, 0, b"")
    address, nul, _ = rest[3:].partition(b"\0")
    if not nul:
        raise WireError("CONNECT without a whole address")
    return Connect(host, family, _U16.unpack_from(rest, 1)[0], address)


_FAMILIES = "46LU"


def parse_string(data: bytes, name: str) -> bytes:
    """Return the one string of HELO or UNKNOWN, which has to end in NUL."""
    text, nul, _ = data.partition(b"\0")
    if not nul:
        raise WireError(f"{name} without NUL")
    return text


def parse_path(data: bytes, name: str) -> tuple[bytes, list[bytes]]:
    """Return the path of MAIL or RCPT without its angle brackets, and the ESMTP arguments.

    Postfix sends no brackets for mail that did not come by SMTP.
    """
    if data[-1:] != b"\0":
        raise WireError(f"{name} without NUL")
    path, *arguments = data[:-1].split(b"\0")
    if path[:1] == b"<" and path[-1:] == b">":
        path = path[1:-1]
    return path, [argument for argument in arguments if argument] if arguments else arguments


def parse_header(data: bytes) -> tuple[bytes, bytes]:
    """Return name and value of a header field; its lines are divided by LF."""
    check_header(data)
    name, value, _ = data.split(b"\0")
    return name, value


def check_header(data: bytes) -> None:
    """Raise WireError unless HEADER holds a name and a value."""
    if data.count(b"\0") != 2 or data[-1] or not data[0]:
        raise WireError("HEADER that is not a name and a value")


def macro_command(data: bytes) -> int:
    """Return which command the macros of a MACRO packet belong to."""
    if not data:
        raise WireError("MACRO without a command")
    return data[0]


def parse_macros(data: bytes) -> dict[bytes, bytes]:
    """Return the macros of a MACRO packet, names as they come: ``i``, ``{auth_authen}``.

    A name without a value is passed over, as libmilter does.
    """
    parts = data[1:].split(b"\0")
    return dict(zip(parts[0:-1:2], parts[1:-1:2], strict=False))


def offer(version: int, actions: int, steps: int) -> bytes:
    """Make the OPTNEG of an MTA."""
    return packet(Command.OPTNEG, _OFFER.pack(version, actions, steps))


def macros(command: int, values: Mapping[str, str] | None = None) -> bytes:
    """Make a MACRO packet; names of more than one letter are put in braces."""
    pairs = "".join(
        f"{name if len(name) == 1 else f'{{{name}}}'}\0{value}\0"
        for name, value in (values or {}).items()
    )
    return packet(Command.MACRO, bytes((command,)) + pairs.encode("utf-8", "surrogateescape"))


def connect(host: bytes, family: str = "U", port: int = 0, address: bytes = b"") -> bytes:
    """Make a CONNECT packet."""
    where = b"" if family == "U" else _U16.pack(port) + address + b"\0"
    return packet(Command.CONNECT, host + b"\0" + family.encode() + where)


def helo(name: bytes) -> bytes:
    """Make a HELO packet; EHLO and LHLO look the same."""
    return packet(Command.HELO, name + b"\0")


def mail(path: bytes, *arguments: bytes) -> bytes:
    """Make a MAIL packet; the brackets belong to ``path``."""
    return packet(Command.MAIL, b"\0".join((path, *arguments)) + b"\0")


def rcpt(path: bytes, *arguments: bytes) -> bytes:
    """Make a RCPT packet; the brackets belong to ``path``."""
    return packet(Command.RCPT, b"\0".join((path, *arguments)) + b"\0")


def header(name: bytes, value: bytes) -> bytes:
    """Make a HEADER packet; a folded value has LF as line end."""
    return packet(Command.HEADER, name + b"\0" + value + b"\0")


def unknown(line: bytes) -> bytes:
    """Make an UNKNOWN packet: an SMTP command that the MTA does not know."""
    return packet(Command.UNKNOWN, line + b"\0")


# -- what the filter says ------------------------------------------------------------------------

CONTINUE = packet(Response.CONTINUE)
SKIP = packet(Response.SKIP)
PROGRESS = packet(Response.PROGRESS)
DISCARD = packet(Response.DISCARD)
ACCEPT = packet(Response.ACCEPT)
REJECT = packet(Response.REJECT)
TEMPFAIL = packet(Response.TEMPFAIL)

BOTTOM = 9999
"""An index of INSHEADER far beyond the end puts a field at the bottom, in both MTAs."""

_NAME = re.compile(rb"[!-9;-~]+")
_BAD_VALUE = re.compile(rb"[\0\r]|\n(?![ \t])")
# Sendmail reads a recipient as a list: what ends an address must not be in one, unless quoted.
_ADDRESS = re.compile(rb'(?:[^"<>,\\\x00-\x20\x7f]|"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])*")+')
_BAD_STRING = re.compile(rb"[\0\r\n]")
_ENHANCED = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}")
_BAD_TEXT = re.compile(r"[^\t\x20-\x7e]")


class TooLong(ValueError):
    """What a policy made does not fit into one packet."""


def _packet(code: int, data: bytes) -> bytes:
    if len(data) > MAX_DATA:
        raise TooLong(f"{Response(code).name} of {len(data)} octets, over {MAX_DATA}")
    return packet(code, data)


def negotiated(
    version: int, actions: int, steps: int, symbols: Mapping[MacroStage, Sequence[str]]
) -> bytes:
    """Make a filter's OPTNEG; ``symbols`` are the macros to send at a stage, instead of the
    MTA's own choice.
    """
    lists = b"".join(
        _U32.pack(stage) + " ".join(names).encode("ascii") + b"\0"
        for stage, names in symbols.items()
    )
    return _packet(Response.OPTNEG, _OFFER.pack(version, actions, steps) + lists)


def reply_code(code: int, enhanced: str, lines: Sequence[str]) -> bytes:
    """Make a REPLYCODE packet.

    The text is a format for printf: Postfix drops a single ``%``, Sendmail the whole text.
    Raises ValueError unless the code is 4xx or 5xx, the enhanced status (RFC 3463) is of the
    same class, and the lines are printable ASCII: Postfix poisons the connection for the rest.
    """
    status = _ENHANCED.fullmatch(enhanced)
    if not 400 <= code <= 599 or status is None or int(status[1]) != code // 100:
        raise ValueError(f"{code} {enhanced} is not a reply to refuse with")
    if not lines or any(_BAD_TEXT.search(line) for line in lines):
        raise ValueError("a reply is lines of printable ASCII")
    last = len(lines) - 1
    text = "\r\n".join(
        f"{code}{'-' if at < last else ' '}{enhanced} {line}" for at, line in enumerate(lines)
    )
    return _packet(Response.REPLYCODE, text.replace("%", "%%").encode("ascii") + b"\0")


def _field(name: bytes, value: bytes) -> bytes:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:60]!r} is not a header field name")
    if _BAD_VALUE.search(value):
        raise ValueError(f"the value of {name!r} holds NUL, CR or a line end without a blank")
    return name + b"\0" + value + b"\0"


def _index(index: int) -> bytes:
    if not 0 <= index < 1 << 32:
        raise ValueError(f"{index} is no index of a header field")
    return _U32.pack(index)


def add_header(name: bytes, value: bytes) -> bytes:
    """Make an ADDHEADER packet; `insert_header` is the form that both MTAs place alike."""
    return _packet(Response.ADDHEADER, _field(name, value))


def insert_header(index: int, name: bytes, value: bytes) -> bytes:
    """Make an INSHEADER packet: 0 is the top, `BOTTOM` the bottom."""
    return _packet(Response.INSHEADER, _index(index) + _field(name, value))


def change_header(index: int, name: bytes, value: bytes) -> bytes:
    """Make a CHGHEADER packet: the index counts fields of that name from 1.

    An empty value deletes.
    """
    if index < 1:
        raise ValueError("fields of a name are counted from 1")
    return _packet(Response.CHGHEADER, _index(index) + _field(name, value))


def replace_body(piece: bytes) -> bytes:
    """Make a REPLBODY packet: at most `MAX_DATA` octets, the next packet goes on behind it."""
    return _packet(Response.REPLBODY, piece)


def _path(address: bytes) -> bytes:
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"{address[:60]!r} is not an address")
    return b"<" + address + b">\0"


def _arguments(text: str) -> bytes:
    argument = text.strip().encode("ascii")
    if _BAD_STRING.search(argument):
        raise ValueError(f"{text[:60]!a} is not ESMTP arguments")
    return argument + b"\0" if argument else b""


def add_recipient(address: bytes, arguments: str = "") -> bytes:
    """Make an ADDRCPT packet, or with ESMTP arguments an ADDRCPT_PAR packet."""
    more = _arguments(arguments)
    return _packet(Response.ADDRCPT_PAR if more else Response.ADDRCPT, _path(address) + more)


def delete_recipient(address: bytes) -> bytes:
    """Make a DELRCPT packet; the MTA wants the address as it was given at RCPT."""
    return _packet(Response.DELRCPT, _path(address))


def change_sender(address: bytes, arguments: str = "") -> bytes:
    """Make a CHGFROM packet; ``arguments`` are ESMTP arguments, divided by blanks.

    An empty address is the null sender.
    """
    path = _path(address) if address else b"<>\0"
    return _packet(Response.CHGFROM, path + _arguments(arguments))


def quarantine(reason: str) -> bytes:
    """Make a QUARANTINE packet; Postfix drops the reason."""
    text = reason.encode("ascii", "replace")
    if not text or _BAD_STRING.search(text):
        raise ValueError("a reason is one line of text")
    return _packet(Response.QUARANTINE, text + b"\0")


# -- a filter's answers, read by a test that plays the MTA ----------------------------------------


class Negotiated(NamedTuple):
    """A filter's OPTNEG."""

    version: int
    actions: int
    steps: int
    symbols: dict[int, list[str]]


def parse_negotiated(data: bytes) -> Negotiated:
    """Return what a filter's OPTNEG asks for."""
    agreed, rest = parse_offer(data), data[OFFER_OCTETS:]
    symbols: dict[int, list[str]] = {}
    while rest:
        names, nul, more = rest[4:].partition(b"\0")
        if not nul:
            raise WireError("OPTNEG with half a list of macros")
        symbols[_U32.unpack_from(rest)[0]] = names.decode("ascii").split()
        rest = more
    return Negotiated(*agreed, symbols)


def parse_indexed(data: bytes) -> tuple[int, bytes, bytes]:
    """Return index, name and value of INSHEADER or CHGHEADER."""
    if len(data) < 4:
        raise WireError("a header field without an index")
    name, value = parse_header(data[4:])
    return _U32.unpack_from(data)[0], name, value


def parse_reply(data: bytes) -> str:
    """Return the text of REPLYCODE as the client gets it, lines divided by CRLF."""
    return parse_string(data, "REPLYCODE").decode("latin-1").replace("%%", "%")
