"""What every wire shares of RFC 5321 and RFC 5322.  Pure functions over bytes and text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MAX_REPLY_LINES = 32
MAX_REPLY_LINE = 450  # octets; RFC 5321 4.5.3.1.5 allows 512 with code and CRLF
MAX_PATH = 256  # octets; RFC 5321 4.5.3.1.3

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN = re.compile(rb"[!-9;-~]+")
_ENHANCED = re.compile(r"[245]\.(?:0|[1-9][0-9]{0,2})\.(?:0|[1-9][0-9]{0,2})")
_PARAMETER = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_VALUE = re.compile(r"[!-<>-~]+")
_BARE_CR = re.compile(rb"\r[^\n]")
_PATH_COMMAND = re.compile(rb"\s*(?:MAIL\s+FROM|RCPT\s+TO)\s*:\s*", re.IGNORECASE)
_PATH = re.compile(rb'<(?:[^">\\]|\\.|"(?:[^"\\]|\\.)*")*>|[^\s<>]+')


def text_of(octets: bytes) -> str:
    """Return a peer's octets as text; those that are not UTF-8 are there as surrogate escapes."""
    return octets.decode("utf-8", "surrogateescape")


def reply_lines(text: str) -> tuple[str, ...]:
    """Return a reply text as the lines that every protocol can carry.

    Line ends divide lines; what is not ASCII becomes ``?`` (RFC 5321 4.2, a reply is ASCII);
    lines are wrapped at 450 octets, and lines after the 32nd are dropped with ``...``.

    Raises ValueError for an empty text and for any other control character.
    """
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if _CONTROL.search(line):
            raise ValueError("a reply text must not hold control characters")
        plain = line.strip().encode("ascii", "replace").decode("ascii")
        lines += [plain[at : at + MAX_REPLY_LINE] for at in range(0, len(plain), MAX_REPLY_LINE)]
    if not lines:
        raise ValueError("a reply needs a text")
    if len(lines) > MAX_REPLY_LINES:
        lines[MAX_REPLY_LINES - 1 :] = [lines[MAX_REPLY_LINES - 1][: MAX_REPLY_LINE - 3] + "..."]
    return tuple(lines)


def is_enhanced(status: str) -> bool:
    """Tell whether a text is an enhanced status code (RFC 3463 2)."""
    return _ENHANCED.fullmatch(status) is not None


def is_field_name(name: bytes) -> bool:
    """Tell whether bytes are a header field name: printable ASCII but the colon (RFC 5322 2.2)."""
    return _TOKEN.fullmatch(name) is not None


def path_parameters(command: bytes) -> dict[str, str | None]:
    """Return the ESMTP parameters of a MAIL or RCPT command line, keywords in upper case.

    >>> path_parameters(b"mail from:<a@b> size=10 SMTPUTF8")
    {'SIZE': '10', 'SMTPUTF8': None}
    """
    start = _PATH_COMMAND.match(command)
    path = _PATH.match(command, start.end()) if start else None
    if path is None:
        return {}
    return parameters(re.split(rb"[ \t]+", command[path.end() :]))


def parameters(words: Iterable[bytes]) -> dict[str, str | None]:
    """Return ESMTP parameters from the words of a command, keywords in upper case.

    What is no parameter is passed over: the server has its own opinion of it.
    """
    found: dict[str, str | None] = {}
    for word in words:
        keyword, equals, value = text_of(word).partition("=")
        if _PARAMETER.fullmatch(keyword):
            found[keyword.upper()] = value if equals else None
    return found


def format_parameters(params: Mapping[str, str | None]) -> str:
    """Return ESMTP parameters as a command carries them, each with a blank before it.

    Raises ValueError for what RFC 5321 4.1.2 does not allow as keyword or value.
    """
    words = []
    for keyword, value in params.items():
        if not _PARAMETER.fullmatch(keyword) or not (value is None or _VALUE.fullmatch(value)):
            raise ValueError(f"not an ESMTP parameter: {keyword}={value}"[:80])
        words.append(f" {keyword}" if value is None else f" {keyword}={value}")
    return "".join(words)


def check_mailbox(address: str, *, utf8: bool = False) -> str:
    """Return an address that a policy made, without angle brackets, ready for an envelope.

    ``utf8`` allows what is not ASCII (RFC 6531).  Raises ValueError for anything that is not
    one address: blanks outside quotes, control characters, a second address, no domain.
    """
    if address.startswith("<") and address.endswith(">"):
        address = address[1:-1]
    shown = ascii(address[:60])
    if not address.isascii():
        if not utf8:
            raise ValueError(f"{shown} needs SMTPUTF8, which this message does not have")
        if re.search("[\ud800-\udfff\x80-\x9f\u2028\u2029]", address):
            raise ValueError(f"{shown} is not an address")
    if len(address.encode("utf-8")) > MAX_PATH - 2:
        raise ValueError(f"{shown}... is longer than {MAX_PATH} octets")
    if not _MAILBOX.fullmatch(address):
        raise ValueError(f"{shown} is not an address")
    return address


_MAILBOX = re.compile(
    r'(?:[^\s"\\<>()\[\],:;@\x00-\x1f\x7f]+|"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])*")'
    r"@(?:[^\s\"\\<>()\[\],:;@\x00-\x1f\x7f]+|\[[!-Z^-~]+\])"
)


def check_host_name(name: str) -> str:
    """Return a HELO argument that a policy made; ValueError unless it is one (RFC 5321 4.1.3)."""
    if len(name) > 255 or not re.fullmatch(r"[A-Za-z0-9._-]+|\[[A-Za-z0-9.:]+\]", name):
        raise ValueError(f"{name[:60]!a} is not a host name or an address literal")
    return name


def normal_line_ends(data: bytes) -> bytes:
    """Return bytes in which every bare CR and bare LF has become CRLF (RFC 5321 2.3.8)."""
    if data.count(b"\n") == data.count(b"\r\n") == data.count(b"\r"):
        return data
    # A regular expression would hold up every other thread for a second over a big body.
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def with_crlf(lines: bytes) -> bytes:
    """Return lines that end with LF, cut anywhere, as lines that end with CRLF."""
    return lines.replace(b"\n", b"\r\n")


def with_lf(lines: bytes) -> bytes:
    """Return lines that end with CRLF as lines that end with LF; undoes `with_crlf`."""
    if b"\r" not in lines:
        return lines
    if lines.endswith(b"\r") or _BARE_CR.search(lines):
        return lines.replace(b"\r\n", b"\n")
    return lines.replace(b"\r", b"")  # CPython takes a sixth of the time for one octet


def stuff_dots(data: bytes) -> bytes:
    """Return CRLF lines with a second dot before each leading one (RFC 5321 4.5.2)."""
    stuffed = data.replace(b"\r\n.", b"\r\n..")
    return b"." + stuffed if data.startswith(b".") else stuffed


def unstuff_dots(data: bytes) -> bytes:
    """Return CRLF lines with one leading dot of each dropped (RFC 5321 4.5.2)."""
    plain = data.replace(b"\r\n.", b"\r\n")
    return plain[1:] if data.startswith(b".") else plain
