"""The PROXY protocol of HAProxy, versions 1 and 2 (its doc/proxy-protocol.txt), in and out.

aiosmtpd parses the addresses; what is around them is checked here, since it is lenient there.
Pure: no I/O, no asyncio, no clock.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar, final

from aiosmtpd import proxy_protocol
from aiosmtpd.proxy_protocol import AF, PROTO, V2_CMD, V2_SIGNATURE, ProxyData

from mailgate.session import IPAddress, plain
from mailgate_smtp.identity import Identity
from mailgate_smtp.wire import WireError

MAX_V1 = 107
"""Octets of a header of version 1 with its CRLF (2.1)."""

MAX_V2 = 4096
"""Octets of a header of version 2.  Its length field allows 65551; no proxy has that to tell."""

_V2_FIXED = 16  # octets before the addresses
_LOCAL, _PROXY = 0x20 | V2_CMD.LOCAL, 0x20 | V2_CMD.PROXY  # with the version
_TCP4, _TCP6, _UNIX = (family << 4 | PROTO.STREAM for family in (AF.INET, AF.INET6, AF.UNIX))
_ADDRESSES = {
    **{family << 4: 0 for family in AF},
    **{protocol.value: 0 for protocol in PROTO},
    _TCP4: 12,
    _TCP6: 36,
    _UNIX: 216,
}
"""Octets of both addresses with their ports, by what a header of version 2 says they are (2.2).

Datagrams are left out: there is no SMTP in them.
"""

_IP = (IPv4Address, IPv6Address)

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class Source:
    """Where a proxy's client comes from, and where it connected to.

    Without an address, the connection is the proxy's own, or of a kind that has none: then its
    real peer is the client.
    """

    address: IPAddress | None = None
    port: int = 0
    server: IPAddress | None = None
    server_port: int = 0

    @property
    def local(self) -> bool:
        """Tell whether the real peer is the client."""
        return self.address is None


# -- in ------------------------------------------------------------------------------------------

_V1_ADDRESS = rb"[0-9A-Fa-f.:]{2,39}"
_V1_PORT = rb"(?:0|[1-9][0-9]{0,4})"
_V1 = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP[46] %b %b %b %b)\r\n"
    % (_V1_ADDRESS, _V1_ADDRESS, _V1_PORT, _V1_PORT)
)
_V1_BEGINNINGS = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN ", b"PROXY UNKNOWN\r\n")


@final
class ProxyHeader:
    """The first octets of a connection, until its header is whole."""

    __slots__ = ("_octets",)

    def __init__(self) -> None:
        self._octets = b""

    def receive(self, data: bytes) -> tuple[Source | None, bytes]:
        """Return what the header says, None while it is not whole, and what stands behind it.

        WireError for octets that cannot become one, as soon as that is certain.
        """
        octets = self._octets + data
        size = _v2_size(octets) if octets[:1] == V2_SIGNATURE[:1] else _v1_size(octets)
        if size is None:
            self._octets = octets
            return None, b""
        self._octets = b""
        return _source(octets[:size]), octets[size:]


def _v1_size(octets: bytes) -> int | None:
    """Return the octets of a header of version 1, None while it is not whole."""
    if not any(octets.startswith(text[: len(octets)]) for text in _V1_BEGINNINGS):
        raise WireError(f"not a PROXY header: {octets[:20]!r}")
    size = octets.find(b"\n", 0, MAX_V1) + 1
    if not size and len(octets) >= MAX_V1:
        raise WireError(f"a PROXY header over {MAX_V1} octets")
    if size and not _V1.fullmatch(octets, 0, size):
        raise WireError(f"not a PROXY header: {octets[:size]!r}")
    return size or None


def _v2_size(octets: bytes) -> int | None:
    """Return the octets of a header of version 2, None while it is not whole."""
    if not octets.startswith(V2_SIGNATURE[: len(octets)]):
        raise WireError(f"not a PROXY header: {octets[:12]!r}")
    if len(octets) > 12 and octets[12] not in (_LOCAL, _PROXY):
        raise WireError(f"PROXY version and command {octets[12]:#04x}")
    if len(octets) < _V2_FIXED:
        return None
    _, command, family, length = struct.unpack("!12sBBH", octets[:_V2_FIXED])
    if command == _PROXY and (family not in _ADDRESSES or length < _ADDRESSES[family]):
        raise WireError(f"a PROXY header with {length} octets for addresses of {family:#04x}")
    size: int = _V2_FIXED + length
    if size > MAX_V2:
        raise WireError(f"a PROXY header of {size} octets, over {MAX_V2}")
    return size if len(octets) >= size else None


def _source(header: bytes) -> Source:
    """Return what a whole header says."""
    if header.startswith(V2_SIGNATURE) and header[12] == _LOCAL:
        return Source()  # whatever the rest says (2.2): aiosmtpd would look at it
    with _silent():
        found: ProxyData = _run(proxy_protocol.get_proxy(_Octets(header)))
    if not found.valid:
        raise WireError(f"a PROXY header with faults: {found.error}")
    source, destination = found.src_addr, found.dst_addr
    if not isinstance(source, _IP) or not isinstance(destination, _IP):
        return Source()  # UNKNOWN, AF_UNSPEC, AF_UNIX
    return Source(plain(source), found.src_port or 0, plain(destination), found.dst_port or 0)


@final
class _Octets:
    """What aiosmtpd takes for a stream; nothing of it ever waits."""

    __slots__ = ("_rest",)

    def __init__(self, octets: bytes) -> None:
        self._rest = octets

    async def read(self, n: int = -1) -> bytes:
        octets = self._rest if n < 0 else self._rest[:n]
        self._rest = self._rest[len(octets) :]
        return octets

    async def readexactly(self, n: int) -> bytes:
        return await self.read(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        return await self.read(self._rest.find(separator) + len(separator))


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("a stream in memory has made its reader wait")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep aiosmtpd's logger quiet: it warns of every fault, and any peer can make them."""
    log = proxy_protocol.log
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


# -- out -----------------------------------------------------------------------------------------


def proxy_v1(identity: Identity) -> bytes:
    """Return the header of version 1 for a client; UNKNOWN for one without an address."""
    ends = _ends(identity)
    if ends is None:
        return b"PROXY UNKNOWN\r\n"
    source, destination = (str(end).partition("%")[0] for end in ends)
    family = f"TCP{ends[0].version}"
    return (
        f"PROXY {family} {source} {destination} {identity.port} {identity.server_port}\r\n"
    ).encode("ascii")


def proxy_v2(identity: Identity) -> bytes:
    """Return the header of version 2 for a client; LOCAL for one without an address."""
    ends = _ends(identity)
    if ends is None:
        return V2_SIGNATURE + struct.pack("!BBH", _LOCAL, 0, 0)
    block = b"".join(end.packed for end in ends)
    block += struct.pack("!HH", identity.port, identity.server_port)
    family = _TCP4 if ends[0].version == 4 else _TCP6
    fixed = struct.pack("!BBH", _PROXY, family, len(block))
    return V2_SIGNATURE + fixed + block


def _ends(identity: Identity) -> tuple[IPAddress, IPAddress] | None:
    """Return the addresses of both ends in one family, None for a client without an address.

    Where the client's own connection is of the other family (it was forwarded), the second is
    left unspecified: without a header the server would take the client for this host.
    """
    source, destination = identity.address, identity.server
    if source is None:
        return None
    if destination is None or source.version != destination.version:
        return source, (IPv4Address(0) if source.version == 4 else IPv6Address(0))
    return source, destination
