"""Who a client is, told to the server behind the proxy and by one in front of it.

XCLIENT and XFORWARD as Postfix has them (XCLIENT_README, XFORWARD_README; src/smtpd/smtpd.c).
Pure: no I/O, no asyncio, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any, Literal, NoReturn, final

from mailgate.session import IPAddress, address_of
from mailgate.syntax import text_of
from mailgate_smtp.wire import CommandError, decode_xtext, reply

MAX_COMMAND = 510
"""Octets of one of these commands; with CRLF they are 512 (RFC 5321 4.5.3.1.4)."""

MAX_VALUE = 255
"""Octets of a value.  Postfix counts them as they are sent, encoded."""

XCLIENT_ATTRIBUTES = frozenset(b"NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT".split())
XFORWARD_ATTRIBUTES = frozenset(b"NAME ADDR PORT PROTO HELO IDENT SOURCE".split())


@final
@dataclass(frozen=True, slots=True)
class Identity:
    """One client: where it comes from and how it introduced itself.

    ``name`` is its reverse DNS, None where there is none.  ``protocol`` is SMTP or ESMTP; a
    trusted peer may forward others.  ``ident`` is what the host before this one calls the
    message, and ``source`` says whether it began there.  ``server`` is where the client
    connected to.
    """

    address: IPAddress | None = None
    port: int = 0
    name: str | None = None
    helo: str = ""
    protocol: str = "SMTP"
    login: str | None = None
    ident: str | None = None
    source: Literal["LOCAL", "REMOTE"] = "REMOTE"
    server: IPAddress | None = None
    server_port: int = 0
    forwarded: dict[bytes, tuple[bytes, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What `xforward` made of it for what was offered last: a client sends several messages."""

    def updated(self, attributes: Mapping[bytes, str | None]) -> Identity:
        """Return the identity with what `parse_attributes` has found."""
        fields = ((*_FIELDS[attribute], value) for attribute, value in attributes.items())
        return replace(self, **{name: read(value) for name, read, value in fields})


# -- to the server behind ------------------------------------------------------------------------

_UNAVAILABLE = b"[UNAVAILABLE]"

_LABEL = r"[0-9A-Za-z_](?:[0-9A-Za-z_-]{0,61}[0-9A-Za-z_])?"
_HOST_NAME = re.compile(rf"(?!(?:[0-9]+\.)*[0-9]+\Z){_LABEL}(?:\.{_LABEL})*")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]+")
_SPECIAL = re.compile(rb"[^0-9A-Za-z._:@\[\]-]")
_HARMLESS = re.compile(r"""[!#-'*-:=?A-\[\]-~]+""")  # nothing special in a header


def xforward(identity: Identity, offered: bytes) -> tuple[bytes, ...]:
    """Return the XFORWARD commands that tell of a client, without CRLF.

    ``offered`` is what stands behind the keyword in the reply to EHLO: only these attributes
    are told.  What the server would refuse, and a message with it, is called unavailable.
    """
    commands = identity.forwarded.get(offered)
    if commands is not None:
        return commands
    values = {
        b"NAME": _value(identity.name, _HOST_NAME),
        b"ADDR": _address(identity.address),
        b"PORT": _port(identity.port),
        b"PROTO": _value(identity.protocol, _HARMLESS),
        b"HELO": _value(identity.helo, _HARMLESS),
        b"IDENT": _value(identity.ident, _HARMLESS),
        b"SOURCE": identity.source.encode("ascii"),
    }
    commands = _commands(b"XFORWARD", values, offered)
    identity.forwarded.clear()  # a server may offer something else each time
    identity.forwarded[offered] = commands
    return commands


def xclient(identity: Identity, offered: bytes) -> tuple[bytes, ...]:
    """Return the XCLIENT commands that make a server take this client for its own, without CRLF.

    ADDR, PORT and NAME are in the last: behind it few servers take another one.  It has all
    that it has room for, since Postfix forgets HELO, PROTO and LOGIN with each command that
    does not repeat them.
    """
    values = {
        b"DESTADDR": _address(identity.server),
        b"DESTPORT": _port(identity.server_port),
        b"HELO": _value(identity.helo, _PRINTABLE),
        b"PROTO": _value(identity.protocol, _HARMLESS),
        b"LOGIN": _value(identity.login, _PRINTABLE),
        b"PORT": _port(identity.port),
        b"NAME": _value(identity.name, _HOST_NAME),
        b"ADDR": _address(identity.address),
    }
    if identity.protocol not in ("SMTP", "ESMTP"):
        del values[b"PROTO"]  # Postfix takes no other, and no [UNAVAILABLE] either
    return _commands(b"XCLIENT", values, offered)


def _commands(verb: bytes, values: dict[bytes, bytes], offered: bytes) -> tuple[bytes, ...]:
    """Return commands within `MAX_COMMAND`; the last one is filled first."""
    names = frozenset(offered.upper().split())
    lines: list[bytes] = []
    tail = b""
    for attribute in reversed(values):
        if attribute not in names:
            continue
        word = b" " + attribute + b"=" + values[attribute]
        if len(verb) + len(word) + len(tail) > MAX_COMMAND:
            lines.insert(0, verb + tail)
            tail = b""
        tail = word + tail
    if tail:
        lines.insert(0, verb + tail)
    return tuple(lines)


def _address(address: IPAddress | None) -> bytes:
    if address is None:
        return _UNAVAILABLE
    if isinstance(address, IPv4Address):
        return str(address).encode("ascii")
    return b"IPV6:" + str(address).partition("%")[0].encode("ascii")  # a zone is ours alone


def _port(port: int) -> bytes:
    return b"%d" % port if port else _UNAVAILABLE


def _value(text: str | None, allowed: re.Pattern[str]) -> bytes:
    """Return a text as xtext, if it is one that a server takes.

    More is escaped than RFC 3461 4 asks: with a quote in its HELO, a client could hide from
    Postfix' tokenizer that an ADDR follows, and would have the address of the proxy.
    """
    if not text or not allowed.fullmatch(text):
        return _UNAVAILABLE
    octets = text.encode("utf-8", "surrogateescape")
    value = _SPECIAL.sub(lambda odd: b"+%02X" % odd[0][0], octets)
    return value if len(value) <= MAX_VALUE else _UNAVAILABLE


# -- from a trusted peer -------------------------------------------------------------------------

_MISSING = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})
_DIGITS = re.compile(r"[0-9]{1,5}")
_PROTOCOL = re.compile(r"[0-9A-Za-z-]{1,64}")


def parse_attributes(argument: bytes, known: frozenset[bytes]) -> dict[bytes, str | None]:
    """Return what XCLIENT or XFORWARD tells; ``known`` has the attributes that it may tell.

    CommandError for anything else, and where nothing is told.
    """
    found: dict[bytes, str | None] = {}
    for word in filter(None, argument.split(b" ")):
        name, _, raw = word.partition(b"=")
        attribute = name.upper()
        if attribute not in known:
            _refuse("Unknown attribute")
        if attribute in found:
            _refuse(f"{text_of(attribute)} twice")
        found[attribute] = _checked(attribute, raw)
    if not found:
        _refuse("attribute=value expected")
    return found


def _refuse(text: str) -> NoReturn:
    raise CommandError(reply(501, "5.5.4", text))


def _checked(attribute: bytes, raw: bytes) -> str | None:
    """Return a value as text, None for one that is unavailable."""
    try:
        octets = decode_xtext(raw)
    except ValueError:
        octets = raw  # some clients never encode (XCLIENT_README, note 3)
    value = text_of(octets)
    if value.upper() in _MISSING:
        return None
    try:
        if len(octets) > MAX_VALUE or not _PRINTABLE.fullmatch(value):
            raise ValueError("empty, too long, or not printable")
        _FIELDS[attribute][1](value)
    except ValueError:
        _refuse(f"Bad {text_of(attribute)} value")
    return value


def _read_address(value: str | None) -> IPAddress | None:
    """Return an address; those of IPv6, and only those, have a prefix."""
    if value is None:
        return None
    prefixed = value[:5].upper() == "IPV6:"
    address = address_of(value[5:] if prefixed else value)
    if address is None or prefixed is isinstance(address, IPv4Address) or "%" in value:
        raise ValueError(f"{value!a} is not an address")
    return address


def _read_port(value: str | None) -> int:
    if value is None:
        return 0
    if not _DIGITS.fullmatch(value) or int(value) > 65_535:
        raise ValueError(f"{value!a} is not a port")
    return int(value)


def _read_protocol(value: str | None) -> str:
    if value is None:
        return "SMTP"
    if not _PROTOCOL.fullmatch(value):
        raise ValueError(f"{value!a} is not the name of a protocol")
    return value.upper()


def _read_source(value: str | None) -> str:
    source = (value or "REMOTE").upper()
    if source not in ("LOCAL", "REMOTE"):
        raise ValueError(f"{value!a} is not a source")
    return source


_FIELDS: Mapping[bytes, tuple[str, Callable[[str | None], Any]]] = {
    b"NAME": ("name", lambda value: value),
    b"ADDR": ("address", _read_address),
    b"PORT": ("port", _read_port),
    b"PROTO": ("protocol", _read_protocol),
    b"HELO": ("helo", lambda value: value or ""),
    b"LOGIN": ("login", lambda value: value),
    b"IDENT": ("ident", lambda value: value),
    b"SOURCE": ("source", _read_source),
    b"DESTADDR": ("server", _read_address),
    b"DESTPORT": ("server_port", _read_port),
}
"""The field of an attribute, and what makes its content of the text; ValueError where it is bad."""
