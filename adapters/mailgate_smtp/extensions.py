"""SMTP extensions: what is offered to a client, and what its parameters may say.

A keyword of the server behind is passed on only where it is known how to carry it; a parameter,
where its keyword was offered (RFC 5321 4.1.1.11).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from mailgate_smtp.hop import Features, HopError
from mailgate_smtp.wire import SYNTAX, CommandError, Path, Reply, is_xtext, reply

CARRIED = (
    *(b"8BITMIME", b"SMTPUTF8", b"DSN", b"ENHANCEDSTATUSCODES"),
    *(b"DELIVERBY", b"MT-PRIORITY", b"FUTURERELEASE", b"RRVS"),
)
"""Keywords that are passed on with their parameters: all they do is to allow others."""

_KEYWORD_OF: Mapping[bytes, bytes] = {
    b"SIZE": b"SIZE",
    b"BODY": b"8BITMIME",
    b"SMTPUTF8": b"SMTPUTF8",
    b"RET": b"DSN",
    b"ENVID": b"DSN",
    b"NOTIFY": b"DSN",
    b"ORCPT": b"DSN",
    b"AUTH": b"AUTH",
    b"REQUIRETLS": b"REQUIRETLS",
    b"BY": b"DELIVERBY",
    b"MT-PRIORITY": b"MT-PRIORITY",
    b"HOLDFOR": b"FUTURERELEASE",
    b"HOLDUNTIL": b"FUTURERELEASE",
    b"RRVS": b"RRVS",
}

_OF_RCPT = frozenset({b"NOTIFY", b"ORCPT", b"RRVS"})

UNKNOWN_PARAMETER = reply(555, "5.5.4", "Parameter not recognized or not implemented")
TOO_BIG = reply(552, "5.3.4", "Message size exceeds fixed limit")
NO_UTF8 = reply(553, "5.6.7", "The address needs SMTPUTF8")

_SIZE = re.compile(rb"[0-9]{1,20}")
_NOTIFY = re.compile(
    rb"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY)){0,2}", re.IGNORECASE
)
_ORCPT = re.compile(rb"[A-Za-z0-9-]+;(.+)")
_CONTROL = re.compile(rb"\+(?:[01][0-9A-F]|7F)")  # in xtext
_MAX_ENVID = 100  # octets; RFC 3461 4.4
_MAX_ORCPT = 500  # octets; RFC 3461 4.2


def size_limit(ours: int, theirs: int) -> int:
    """Return the smaller of two limits in octets; 0 is none."""
    return min(ours, theirs) if ours and theirs else ours or theirs


def check_mail(path: Path, offered: Features) -> None:
    """Check the argument of MAIL; ``offered`` is what the client was offered.

    CommandError for a parameter that is wrong, or that was not offered.
    """
    parameters = path.parameters
    if not path.mailbox.isascii():
        _need_utf8(b"SMTPUTF8" in parameters and b"SMTPUTF8" in offered)
    for keyword, value in parameters.items():
        _check(keyword, value, offered, of_rcpt=False)
    size = parameters.get(b"SIZE")
    if size is not None and offered.size and int(size) > offered.size:
        raise CommandError(TOO_BIG)


def check_rcpt(path: Path, sender: Path, offered: Features) -> None:
    """Check the argument of RCPT; as `check_mail`."""
    if not path.mailbox.isascii():
        _need_utf8(b"SMTPUTF8" in sender.parameters)
    for keyword, value in path.parameters.items():
        _check(keyword, value, offered, of_rcpt=True)


def _need_utf8(has: bool) -> None:
    if not has:
        raise CommandError(NO_UTF8)


def _check(keyword: bytes, value: bytes | None, offered: Features, *, of_rcpt: bool) -> None:
    if _KEYWORD_OF.get(keyword, b"") not in offered or (keyword in _OF_RCPT) is not of_rcpt:
        raise CommandError(NO_UTF8 if keyword == b"SMTPUTF8" else UNKNOWN_PARAMETER)
    fits = _FITS.get(keyword)
    if fits is not None and not fits(value):
        raise CommandError(SYNTAX)


def carried(path: Path, upstream: Features) -> Path:
    """Return an argument of MAIL or RCPT as a next hop understands it.

    HopError where that lacks what the client was offered: another server may have it.
    """
    for keyword in path.parameters:
        needed = _KEYWORD_OF.get(keyword, b"")
        if needed not in upstream:
            if needed not in _OURS:
                raise HopError(f"it does not offer {needed.decode()}", NOT_OFFERED)
            path = _without(path, keyword)
    return path


_OURS = (b"SIZE", b"AUTH")  # offered whatever the next hop offers

NOT_OFFERED = reply(451, "4.3.5", "The mail server behind this one does not take the parameters")


def _without(path: Path, keyword: bytes) -> Path:
    words = tuple(word for word in path.words if word.partition(b"=")[0].upper() != keyword)
    parameters = {key: value for key, value in path.parameters.items() if key != keyword}
    return Path(path.mailbox, words, parameters)


def _is_envid(value: bytes | None) -> bool:
    return (
        value is not None
        and len(value) <= _MAX_ENVID
        and is_xtext(value)
        and not _CONTROL.search(value)
    )


def _is_orcpt(value: bytes | None) -> bool:
    found = _ORCPT.fullmatch(value or b"")
    if found is None or len(found[1]) > _MAX_ORCPT:
        return False
    # "utf-8;" (RFC 6533 3) is not xtext.
    return (
        not found[1].isascii()
        or b"\\" in found[1]
        or (is_xtext(found[1]) and not _CONTROL.search(found[1]))
    )


_FITS: Mapping[bytes, Callable[[bytes | None], bool]] = {
    b"SIZE": lambda value: value is not None and _SIZE.fullmatch(value) is not None,
    b"BODY": lambda value: value is not None and value.upper() in (b"7BIT", b"8BITMIME"),
    b"SMTPUTF8": lambda value: value is None,
    b"REQUIRETLS": lambda value: value is None,
    b"RET": lambda value: value is not None and value.upper() in (b"FULL", b"HDRS"),
    b"ENVID": _is_envid,
    b"NOTIFY": lambda value: value is not None and _NOTIFY.fullmatch(value) is not None,
    b"ORCPT": _is_orcpt,
    b"AUTH": lambda value: value is not None and (value == b"<>" or is_xtext(value)),
}
"""What the value of a parameter has to be; of those that are not here, the next hop decides."""


def greeting(
    name: str,
    features: Features,
    *,
    size: int,
    more: Mapping[bytes, bytes],
) -> Reply:
    """Return the reply to EHLO and LHLO: what the server behind offers, as far as it is carried.

    ``size`` is in octets of a message, 0 for no limit.  ``more`` are keywords of our own.
    """
    lines = [name.encode("ascii", "replace"), b"PIPELINING"]
    lines.append(b"SIZE %d" % size if size else b"SIZE")
    for keyword in CARRIED:
        if keyword in features:
            lines.append(b" ".join(filter(None, (keyword, features[keyword]))))
    for keyword, parameters in more.items():
        lines.append(b" ".join(filter(None, (keyword, parameters))))
    return Reply(250, tuple(lines))
