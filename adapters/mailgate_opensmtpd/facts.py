"""What smtpd's lines say, as policies see it."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Literal

from mailgate.session import Attempt, Event, IPAddress, Session, address_of
from mailgate.syntax import text_of
from mailgate_opensmtpd.wire import EVENTS, Report

_BLANKS = re.compile(r"[ \t]+")


def session_of(report: Report) -> Session:
    name, fcrdns, src, dest = report.parameters
    client, client_port = _endpoint(text_of(src))
    server, server_port = _endpoint(text_of(dest))
    rdns = text_of(name)
    direction: Literal["in", "out"] = "out" if report.direction == "smtp-out" else "in"
    return Session(
        id=text_of(report.session),
        adapter="opensmtpd",
        client=client,
        client_port=client_port,
        local_socket=src.startswith((b"unix:", b"local")),
        server=server,
        server_port=server_port,
        rdns=None if rdns in ("", "<unknown>") else rdns,
        rdns_verified={b"pass": True, b"fail": False}.get(fcrdns),
        direction=direction,
    )


def _endpoint(text: str) -> tuple[IPAddress | None, int]:
    """Return address and port of ``192.0.2.1:25`` or ``[2001:db8::1]:25``; None for others."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or text.endswith("]"):
        host, port = text, "0"
    address = address_of(host.removeprefix("[").removesuffix("]"))
    return address, int(port) if address is not None and len(port) < 6 else 0


def unvis(text: str) -> str:
    """Undo vis(3) as smtpd uses it in user names: ``\\040`` is a blank."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda octal: chr(int(octal[1], 8)), text)


def command_of(line: bytes) -> tuple[str, str]:
    """Return verb, in capitals, and argument of a command line; smtpd takes a tab for a blank."""
    words = _BLANKS.split(text_of(line).strip(), maxsplit=1)
    return words[0].upper(), words[1] if len(words) > 1 else ""


def login(argument: str) -> tuple[str, str]:
    """Return the mechanism, in capitals, and the initial response of an AUTH argument."""
    words = _BLANKS.split(argument.strip(), maxsplit=1)
    return words[0].upper(), words[1] if len(words) > 1 else ""


def attempt_of(parameter: bytes) -> Attempt:
    """Return a login attempt from ``PLAIN base64`` or ``LOGIN [base64]`` (RFC 4616)."""
    method, response = login(text_of(parameter))
    try:
        decoded = text_of(base64.b64decode(response, validate=True))
    except (binascii.Error, ValueError):
        return Attempt(method)
    if method == "PLAIN" and decoded.count("\0") == 2:
        _, user, password = decoded.split("\0")
        return Attempt(method, user, password)
    return Attempt(method, decoded or None) if method == "LOGIN" else Attempt(method)


_EVENT_NAMES = {
    "link-connect": "connect",
    "link-greeting": "greeting",
    "link-identify": "helo",
    "link-tls": "tls",
    "link-auth": "auth",
    "link-disconnect": "disconnect",
    "protocol-client": "client",
    "protocol-server": "server",
}


def event_of(report: Report) -> Event:
    """Return a report as policies see it; credentials are never among its fields."""
    names = EVENTS[report.event]
    fields = {n: text_of(p) for n, p in zip(names, report.parameters, strict=False)}
    if report.event == "protocol-client":
        verb, argument = command_of(report.parameters[0])
        if verb == "AUTH":
            fields["command"] = f"AUTH {login(argument)[0]}"
    name = _EVENT_NAMES.get(report.event, report.event.removeprefix("tx-"))
    return Event(name, fields)
