"""What a connection shows of its peer."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

from mailgate.session import TLS, IPAddress, plain
from mailgate_smtp.identity import Identity

_HTTP_METHODS = (b"GET", b"POST", b"PUT", b"HEAD", b"CONNECT", b"OPTIONS")


def is_foreign(line: bytes) -> bool:
    """Tell whether a client takes us for an HTTP or a TLS server."""
    return line.startswith(b"\x16") or (
        b" HTTP/" in line and line.partition(b" ")[0] in _HTTP_METHODS
    )


def peer_of(transport: asyncio.BaseTransport) -> Identity:
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    if not isinstance(peer, tuple) or not isinstance(own, tuple):
        return Identity()
    return Identity(
        address=_plain(peer[0]),
        port=peer[1],
        server=_plain(own[0]),
        server_port=own[1],
    )


def _plain(text: str) -> IPAddress:
    """Return an address without its zone; IPv4 where the socket takes both (RFC 4291 2.5.5.2)."""
    return plain(ip_address(text.partition("%")[0]))


def tls_of(transport: asyncio.BaseTransport) -> TLS | None:
    made = transport.get_extra_info("ssl_object")
    if made is None:
        return None
    name, _, bits = made.cipher() or (None, None, None)
    return TLS(made.version() or "", name, bits)
