"""What the API tells, as policies see it, and what can be done through it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, AF_UNIX
from typing import NamedTuple

from mailgate.chain import Capabilities, Interest
from mailgate.session import Event, IPAddress, plain
from mailgate.stage import MESSAGE_STAGES, SILENT_STAGES, Stage
from mailgate.syntax import text_of
from mailgate_opensmtpd52.wire import BYTE_ORDER, DATALINE, EVERY_HOOK, Happening, Query

_FACTS = frozenset({"rdns"})

_STAGES = {Stage.CONNECT, Stage.HELO, *MESSAGE_STAGES, *SILENT_STAGES}

CAPABILITIES: Capabilities = dict.fromkeys((s for s in Stage if s in _STAGES), _FACTS)
"""Which stages there are: all that is told is reverse DNS, and nothing can be done but refuse."""

_EVENTS = {happening: happening.name.lower() for happening in Happening}

_BSD = sys.platform.startswith(("openbsd", "freebsd", "netbsd"))


class _Endpoint(NamedTuple):
    """An end of a connection; no address where it is a local socket, or unknown."""

    address: IPAddress | None = None
    port: int = 0
    local: bool = False


def _endpoint(sockaddr: bytes) -> _Endpoint:
    """Return what a sockaddr structure of this host says; of a local one only that it is local."""
    if len(sockaddr) < 2:
        return _Endpoint()
    # Where there is a length it stands first, and the family has one octet.
    family = sockaddr[1] if _BSD else int.from_bytes(sockaddr[:2], BYTE_ORDER)
    if family == AF_INET and len(sockaddr) >= 8:
        return _Endpoint(IPv4Address(sockaddr[4:8]), _port(sockaddr))
    if family == AF_INET6 and len(sockaddr) >= 24:
        return _Endpoint(plain(IPv6Address(sockaddr[8:24])), _port(sockaddr))
    return _Endpoint(local=family == AF_UNIX)


def _port(sockaddr: bytes) -> int:
    return int.from_bytes(sockaddr[2:4], "big")


def client_facts(query: Query) -> Mapping[str, object]:
    """Return what a CONNECT query tells, as `Session.learn` takes it."""
    client, server = _endpoint(query.remote), _endpoint(query.local)
    rdns = text_of(query.name)
    return {
        "client": client.address,
        "client_port": client.port,
        "local_socket": client.local,
        "server": server.address,
        "server_port": server.port,
        "rdns": None if rdns in ("", "<unknown>") else rdns,
    }


def event_of(happening: Happening) -> Event:
    """Return an event as policies see it, by the name that it has on OpenSMTPD 6.6, too."""
    return Event(_EVENTS[happening], {})


def hooks(interest: Interest) -> int:
    """Return what to register for: all but the content, which comes only where it is wanted.

    smtpd asks and tells everything whatever is registered; only `DATALINE` has an effect.
    """
    return EVERY_HOOK if interest.content != "none" else DATALINE - 1
