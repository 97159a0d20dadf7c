"""SMTP and LMTP as octets: command lines, paths and parameters, replies, the end of data.

Pure: no I/O, no asyncio, no clock.  What is passed on is kept as it came; what is checked is
checked strictly (RFC 5321 2.3.8, 4.1.2): a mail server behind a proxy trusts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, final

from mailgate.syntax import normal_line_ends, stuff_dots, unstuff_dots

MAX_COMMAND = 2048
"""Octets of a command line: RFC 5321 4.5.3.1.4 wants 512, its extensions add to that."""

MAX_AUTH = 12_288
"""Octets of a line of an AUTH exchange (RFC 4954 4)."""

MAX_LINE = 65_535
"""Octets of a line of a message, without CRLF.  RFC 5321 4.5.3.1.6 has 998; users have more."""

MAX_REPLY = 64 * 1024
"""Octets of one reply that a server may send."""

MAX_REPLY_LINE = 512
"""Octets of a reply line with its code and CRLF (RFC 5321 4.5.3.1.5)."""

MAX_REPLY_LINES = 100
"""Lines of a reply that are passed on."""

END = b"\r\n.\r\n"
"""The end of data, and nothing else is (RFC 5321 4.1.1.4)."""


class WireError(Exception):
    """The peer broke the protocol in a way that ends its connection."""


class BareLF(WireError):
    """A command line that ends in a bare LF: what follows may be a command, or may be none."""


class CommandError(Exception):
    """A command that is refused for its syntax; ``reply`` says why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


# -- replies -------------------------------------------------------------------------------------


@final
class Reply(NamedTuple):
    """A reply: its code, and the text of each line as octets without code and CRLF."""

    code: int
    lines: tuple[bytes, ...]

    @property
    def positive(self) -> bool:
        """Tell whether the command was done (2xx)."""
        return 200 <= self.code <= 299

    @property
    def octets(self) -> bytes:
        """The reply as it is sent."""
        code, lines = self
        last = b"%d %b\r\n" % (code, lines[-1])
        if len(lines) == 1:
            return last
        return b"".join((*(b"%d-%b\r\n" % (code, line) for line in lines[:-1]), last))

    def __str__(self) -> str:
        return f"{self.code} {b'; '.join(self.lines).decode('utf-8', 'replace')}"


def reply(code: int, enhanced: str, text: str | Iterable[str]) -> Reply:
    """Return a reply of our own; the enhanced status code (RFC 2034) stands in every line."""
    lines = (text,) if isinstance(text, str) else text
    return Reply(code, tuple(f"{enhanced} {line}".encode("ascii", "replace") for line in lines))


_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?\r\n", re.DOTALL)
_UNPRINTABLE = re.compile(rb"[\x00-\x1f\x7f]")
_MAX_TEXT = MAX_REPLY_LINE - len(b"250-\r\n")


@final
class ReplyDecoder:
    """Replies of a server, however its octets are cut.

    ``error`` is set by a line that is none, lines of one reply with different codes, a line end
    that is not CRLF, and a reply over `MAX_REPLY`; nothing comes out behind it.
    """

    __slots__ = ("_code", "_lines", "_octets", "_size", "error")

    def __init__(self) -> None:
        self.error: WireError | None = None
        self._octets = b""
        self._forget()

    def _forget(self) -> None:
        self._code = 0
        self._lines: list[bytes] = []
        self._size = 0

    @property
    def empty(self) -> bool:
        """Tell whether nothing of a reply has come that is not whole yet."""
        return not self._octets and not self._lines

    def receive(self, data: bytes) -> list[Reply]:
        """Return the replies that are whole now."""
        replies: list[Reply] = []
        if self.error is None:
            try:
                self._receive(self._octets + data if self._octets else data, replies)
            except WireError as error:
                self.error = error
        return replies

    def _receive(self, data: bytes, replies: list[Reply]) -> None:
        at = 0
        while (end := data.find(b"\n", at) + 1) > 0:
            self._size += end - at
            if self._size > MAX_REPLY:
                break
            whole = self._line(data[at:end])
            if whole is not None:
                replies.append(whole)
            at = end
        self._octets = data[at:]
        if self._size + len(self._octets) > MAX_REPLY:
            raise WireError(f"a reply over {MAX_REPLY} octets")

    def _line(self, line: bytes) -> Reply | None:
        said, goes_on = _parse_line(line)
        if not self._lines and not goes_on:
            self._size = 0
            return said
        if self._lines and said.code != self._code:
            raise WireError(f"one reply with the codes {self._code} and {said.code}")
        self._code = said.code
        self._lines += said.lines
        if goes_on:
            return None
        whole = Reply(said.code, tuple(self._lines[:MAX_REPLY_LINES]))
        self._forget()
        return whole


@lru_cache(maxsize=256)  # a server says the same few things again and again
def _parse_line(line: bytes) -> tuple[Reply, bool]:
    """Return a reply line, and whether the reply goes on behind it."""
    found = _REPLY_LINE.fullmatch(line)
    if found is None:
        raise WireError(f"not a reply line: {line[:40]!r}")
    return Reply(int(found[1]), (_clean(found[3] or b""),)), found[2] == b"-"


def _clean(text: bytes) -> bytes:
    """Return a reply text that a client may be given: no control characters, valid UTF-8."""
    if _UNPRINTABLE.search(text):
        text = _UNPRINTABLE.sub(b"?", text.replace(b"\t", b" "))
    if not text.isascii():
        text = text.decode("utf-8", "replace").replace("\ufffd", "?").encode()
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT].decode("utf-8", "ignore").encode()


# -- command lines -------------------------------------------------------------------------------

TOO_LONG = b"\n"
"""Stands for a command line that is too long; no line holds this octet."""

_GIVEN_UP = 1024 * 1024  # octets of one line, after which nobody waits for its end


@final
class Lines:
    """Command lines of a client, and what follows them as data."""

    __slots__ = ("_at", "_octets", "_skipped")

    def __init__(self) -> None:
        self._octets = b""
        self._at = 0
        self._skipped = 0  # octets of a line that is too long

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        self._octets = self._octets[self._at :] + data if self._at < len(self._octets) else data
        self._at = 0

    @property
    def waiting(self) -> int:
        """Octets that were received and not taken yet."""
        return len(self._octets) - self._at

    def take(self) -> bytes:
        """Return everything that is left: it is data."""
        rest = self._octets[self._at :] if self._at else self._octets
        self._octets, self._at = b"", 0
        return rest

    def command(self) -> bytes | None:
        """Return the next command line as `next` does; AUTH with a response may be longer."""
        octets, at = self._octets, self._at
        if at == len(octets):
            return None
        limit = MAX_COMMAND
        if len(octets) - at > limit and not self._skipped:
            limit = MAX_AUTH if octets[at : at + 5].upper() == b"AUTH " else limit
        return self.next(limit)

    def next(self, limit: int = MAX_COMMAND) -> bytes | None:
        """Return the next line without its CRLF, or None where no line is whole yet.

        `TOO_LONG` stands for one of more than ``limit`` octets.  WireError for one that ends in
        a bare LF: other servers would take what follows for another command, or would not.
        """
        end = self._octets.find(b"\n", self._at) + 1
        if not end:
            self._skip(limit)
            return None
        line, skipped = self._octets[self._at : end], self._skipped
        self._at, self._skipped = end, 0
        if not line.endswith(b"\r\n"):
            raise BareLF("a command line that ends in a bare LF")
        return line[:-2] if len(line) + skipped <= limit else TOO_LONG

    def _skip(self, limit: int) -> None:
        """Forget the beginning of a line that is too long already."""
        if not self._skipped and self.waiting <= limit:
            return
        last = self._octets[-1:] if self._octets.endswith(b"\r") else b""
        self._skipped += self.waiting - len(last)
        self._octets, self._at = last, 0
        if self._skipped > _GIVEN_UP:
            raise WireError(f"a command line over {_GIVEN_UP} octets")


def parse_command(line: bytes) -> tuple[bytes, bytes]:
    """Return the verb of a command line in upper case, and its argument as it came."""
    verb, _, argument = line.partition(b" ")
    return verb.upper(), argument.strip(b" ")


# -- MAIL and RCPT -------------------------------------------------------------------------------

_ATOM = rb"[!#$%&'*+/=?^_`{|}~0-9A-Za-z\x80-\xff-]+"
_LOCAL_PART = rb'(?:%b(?:\.%b)*|"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*")' % (_ATOM, _ATOM)
_LABEL = rb"[0-9A-Za-z_\x80-\xff](?:[0-9A-Za-z_\x80-\xff-]{0,61}[0-9A-Za-z_\x80-\xff])?"
_DOMAIN = rb"%b(?:\.%b)*" % (_LABEL, _LABEL)
_MAILBOX = re.compile(rb"(%b)@(?:(%b)|\[([0-9A-Za-z:.]+)\])" % (_LOCAL_PART, _DOMAIN))
_ROUTE = re.compile(rb"(?:@%b,)*@%b:" % (_DOMAIN, _DOMAIN))
_PATH = re.compile(
    rb'(FROM|TO): ?<((?:[^<>"\\ ]|"(?:[^"\\]|\\.)*")*)>(?: +(.*))?', re.IGNORECASE | re.DOTALL
)
_PARAMETER = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\x80-\xff]+))?")

_MAX_LOCAL_PART = 255  # octets; RFC 5321 4.5.3.1.1 has 64, bounce addresses of lists have more
_MAX_DOMAIN = 255  # octets; RFC 5321 4.5.3.1.2

SYNTAX = reply(501, "5.5.4", "Syntax error in parameters or arguments")
_BAD_PATH = {
    b"FROM": reply(501, "5.1.7", "Bad sender address syntax"),
    b"TO": reply(501, "5.1.3", "Bad recipient address syntax"),
}


@final
class Path(NamedTuple):
    """The argument of MAIL or RCPT.

    ``mailbox`` is the address without angle brackets and source route, empty for the null
    sender.  ``words`` are the parameters as they came; ``parameters`` has them by keyword in
    upper case, with None where no value was given.
    """

    mailbox: bytes
    words: tuple[bytes, ...] = ()
    parameters: Mapping[bytes, bytes | None] = {}

    @property
    def argument(self) -> bytes:
        """What stands behind ``MAIL FROM:`` and ``RCPT TO:``."""
        return b" ".join((b"<" + self.mailbox + b">", *self.words))


@lru_cache(maxsize=1024)  # the same senders and recipients again and again
def parse_path(argument: bytes, keyword: bytes) -> Path:
    """Return the argument of MAIL (``keyword`` is ``FROM``) or RCPT (``TO``).

    CommandError for what is no path or no parameter (RFC 5321 4.1.2).  One blank behind the
    colon is taken, since so many clients send it.
    """
    found = _PATH.fullmatch(argument)
    if found is None or found[1].upper() != keyword:
        raise CommandError(SYNTAX)
    mailbox = _mailbox(found[2], keyword)
    if mailbox is None:
        raise CommandError(_BAD_PATH[keyword])
    words = tuple(word for word in (found[3] or b"").split(b" ") if word)
    parameters: dict[bytes, bytes | None] = {}
    for word in words:
        parameter = _PARAMETER.fullmatch(word)
        if parameter is None or parameter[1].upper() in parameters:
            raise CommandError(SYNTAX)
        parameters[parameter[1].upper()] = parameter[2]
    return Path(mailbox, words, parameters)


def _mailbox(text: bytes, keyword: bytes) -> bytes | None:
    """Return a mailbox without its source route (RFC 5321 4.1.1.3), or None."""
    if not text:
        return text if keyword == b"FROM" else None
    if text.startswith(b"@"):
        route = _ROUTE.match(text)
        text = text[route.end() :] if route else text
    found = _MAILBOX.fullmatch(text)
    if found is None:  # RFC 5321 4.5.1: this one recipient needs no domain
        return text if keyword == b"TO" and text.lower() == b"postmaster" else None
    local_part, domain, literal = found.groups()
    if len(local_part) > _MAX_LOCAL_PART or len(domain or b"") > _MAX_DOMAIN:
        return None
    if not text.isascii() and not _is_utf8(text):
        return None
    if literal is not None and not _is_address_literal(literal.decode("ascii")):
        return None
    return text


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_address_literal(text: str) -> bool:
    """Tell whether an address stands between brackets (RFC 5321 4.1.3)."""
    tag, _, rest = text.partition(":")
    try:
        if tag.lower() == "ipv6":
            IPv6Address(rest)
        else:
            IPv4Address(text)
    except ValueError:
        return False
    return True


# -- the content ---------------------------------------------------------------------------------

_ALL_BUT_ODD = bytes(set(range(256)) - set(b"\r\n\0"))

ODD_OCTET = "a bare CR, a bare LF or a NUL"
LONG_LINE = "a line over {} octets"


@final
class Strictness:
    """Checks lines of a message in pieces that may be cut anywhere but inside CRLF.

    ``fault`` says what is wrong with them, once something is.
    """

    __slots__ = ("_limit", "_line", "fault")

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._line = 0  # octets of the last line so far
        self.fault = ""

    def check(self, piece: bytes) -> bool:
        """Tell whether a piece, and everything before it, is all right."""
        if self.fault:
            return False
        # CR, LF and NUL are what is left: every one of them belongs to a CRLF, or one is odd.
        if len(piece.translate(None, _ALL_BUT_ODD)) != 2 * piece.count(b"\r\n"):
            self.fault = ODD_OCTET
        elif self._is_long(piece):
            self.fault = LONG_LINE.format(self._limit)
        return not self.fault

    def _is_long(self, piece: bytes) -> bool:
        """Tell whether a line is too long, by hopping from one within reach to the next."""
        reach = self._limit + 2
        start = -self._line  # where the line under way begins
        while len(piece) - start > self._limit:
            end = piece.rfind(b"\n", max(start, 0), start + reach) + 1
            if not end:
                return True
            start = end
        last = piece.rfind(b"\n") + 1
        self._line = len(piece) - last if last else self._line + len(piece)
        return False


@final
class DataDecoder:
    """What follows the reply 354, until CRLF.CRLF: dot-stuffed lines.

    ``strictness`` has the fault that refuses the message; what comes behind it is dropped,
    and the end is looked for all the same.  ``octets`` counts what has come, faulty or not.
    ``normalise`` makes CRLF of every bare CR and LF instead, before dots are looked at.
    """

    __slots__ = (
        "_begun",
        "_fresh",
        "_normalise",
        "_rest",
        "_tail",
        "ended",
        "octets",
        "strictness",
    )

    def __init__(self, limit: int = MAX_LINE, *, normalise: bool = False) -> None:
        self.strictness = Strictness(limit)
        self.ended = False
        self.octets = 0
        self._tail = b"\r\n"  # may be the beginning of the end; at first as if a line had ended
        self._begun = False
        self._normalise = normalise
        self._rest = b""  # the last line so far, where line ends are normalised
        self._fresh = True  # a CRLF stands before it

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the content in some octets, and what stands behind its end."""
        window = self._tail + data if self._tail else data
        end = window.find(END)
        if end >= 0:
            self.ended = True
            content, behind = window[: end + 2], window[end + 5 :]
        else:
            content, behind = self._keep_tail(window), b""
        if not self._begun and content:
            self._begun = True
            content = content[2:]
        self.octets += len(content)
        if self._normalise:
            content = self._normal(content)
        return (content if self.strictness.check(content) else b""), behind

    def _keep_tail(self, window: bytes) -> bytes:
        """Keep what may begin the end of data, and return what comes before."""
        for size in (4, 3, 2, 1):
            if window.endswith(END[:size]):
                self._tail = window[-size:]
                return window[:-size]
        self._tail = b""
        return window

    def _normal(self, content: bytes) -> bytes:
        """Return whole lines, every line end a CRLF, dots stuffed anew."""
        content = self._rest + content
        end = max(content.rfind(b"\n"), content.rfind(b"\r")) + 1
        lines, self._rest = content[:end], content[end:]
        if len(self._rest) > MAX_LINE:
            self.strictness.fault = LONG_LINE.format(MAX_LINE)
            self._rest = b""
        # A dot is stuffed behind CRLF only; behind a bare LF it was the client's own.
        plain = unstuff_dots(lines) if self._fresh else unstuff_dots(b"-" + lines)[1:]
        self._fresh = lines.endswith(b"\r\n") if lines else self._fresh
        return stuff_dots(normal_line_ends(plain))


@final
class ChunkDecoder:
    """What BDAT commands carry (RFC 3030): lines that are not dot-stuffed, cut anywhere."""

    __slots__ = ("_left", "_tail", "_whole", "octets", "strictness")

    def __init__(self, limit: int = MAX_LINE) -> None:
        self.strictness = Strictness(limit)
        self.octets = 0
        self._left = 0
        self._tail = b""
        self._whole = True  # the last line has its CRLF

    def begin(self, size: int) -> None:
        """Begin a chunk of some octets."""
        self._left = size

    @property
    def ended(self) -> bool:
        """Tell whether the chunk under way is whole."""
        return not self._left

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the content in some octets, and what stands behind the chunk."""
        content, behind = data[: self._left], data[self._left :]
        self._left -= len(content)
        self.octets += len(content)
        content = self._tail + content
        self._tail = b"\r" if content.endswith(b"\r") else b""
        if self._tail:
            content = content[:-1]
        return self._checked(content), behind

    def end(self) -> bytes:
        """Return what the last line lacks: a message ends with CRLF when it is sent by DATA."""
        content = self._checked(self._tail)
        self._tail = b""
        return content if self._whole else content + b"\r\n"

    def _checked(self, content: bytes) -> bytes:
        if content:
            self._whole = content.endswith(b"\r\n")
        return content if self.strictness.check(content) else b""


_BDAT = re.compile(rb"([0-9]{1,10})(?: +(LAST))?", re.IGNORECASE)


def parse_bdat(argument: bytes) -> tuple[int, bool]:
    """Return the octets of a chunk, and whether it is the last (RFC 3030 2).  CommandError."""
    found = _BDAT.fullmatch(argument)
    if found is None:
        raise CommandError(SYNTAX)
    return int(found[1]), found[2] is not None


# -- xtext ---------------------------------------------------------------------------------------

_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_HEX = re.compile(rb"\+([0-9A-F]{2})")


def is_xtext(text: bytes) -> bool:
    """Tell whether octets are xtext (RFC 3461 4)."""
    return _XTEXT.fullmatch(text) is not None


def decode_xtext(text: bytes) -> bytes:
    """Return the octets that xtext stands for; ValueError where it is none."""
    if not is_xtext(text):
        raise ValueError(f"{text[:40]!r} is not xtext (RFC 3461 4)")
    return _HEX.sub(lambda found: bytes([int(found[1], 16)]), text)


# -- dots ----------------------------------------------------------------------------------------


@final
class DotStuffer:
    """Puts a second dot before each leading one of CRLF lines that are cut anywhere."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before = b"\r\n"

    def stuff(self, piece: bytes) -> bytes:
        """Return the next octets as they are sent after DATA (RFC 5321 4.5.2)."""
        window = self._before + piece
        stuffed = window.replace(b"\r\n.", b"\r\n..")[len(self._before) :]
        self._before = window[-2:]
        return stuffed
