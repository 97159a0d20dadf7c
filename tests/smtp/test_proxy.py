"""The PROXY protocol: what HAProxy's doc/proxy-protocol.txt says, and what HAProxy sends."""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.session import plain
from mailgate_smtp.identity import Identity
from mailgate_smtp.proxy import MAX_V2, ProxyHeader, Source, proxy_v1, proxy_v2
from mailgate_smtp.wire import WireError
from tests.smtp.cutting import bytewise

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")

TCP4 = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"  # 2.1
FROM_TCP4 = Source(IPv4Address("192.168.0.1"), 56324, IPv4Address("192.168.0.11"), 443)

HAPROXY = SIGNATURE + bytes.fromhex("2111000cac130001ac130003a6520050")  # HAProxy's send-proxy-v2
FROM_HAPROXY = Source(IPv4Address("172.19.0.1"), 42578, IPv4Address("172.19.0.3"), 80)

ENDS6 = (IPv6Address("2001:db8::7"), IPv6Address("2001:db8::25"))


def v2(command: int, family: int, block: bytes, length: int | None = None) -> bytes:
    """Return a header of version 2 as 2.2 draws it."""
    size = len(block) if length is None else length
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family, size) + block


TCP6 = v2(1, 0x21, b"".join(end.packed for end in ENDS6) + struct.pack("!HH", 4711, 25))
FROM_TCP6 = Source(ENDS6[0], 4711, ENDS6[1], 25)


def received(pieces: Iterable[bytes]) -> tuple[Source | None, bytes]:
    """Return what a header in pieces says, and everything behind it."""
    header, source, behind = ProxyHeader(), None, b""
    for piece in pieces:
        if source is None:
            source, behind = header.receive(piece)
        else:
            behind += piece
    return source, behind


# -- in: what is valid ---------------------------------------------------------------------------

LOCAL = Source()

VALID = [
    (TCP4, FROM_TCP4),
    (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Source(IPv4Address(2**32 - 1), 65_535, IPv4Address(2**32 - 1), 65_535),
    ),
    (
        b"PROXY TCP6 %b %b 65535 65535\r\n" % ((b":".join([b"ffff"] * 8),) * 2),
        Source(IPv6Address(2**128 - 1), 65_535, IPv6Address(2**128 - 1), 65_535),
    ),
    (b"PROXY TCP6 2001:DB8::7 2001:db8::25 4711 25\r\n", FROM_TCP6),
    (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", Source(IPv4Address(0), 0, IPv4Address(0), 0)),
    (b"PROXY UNKNOWN\r\n", LOCAL),
    (b"PROXY UNKNOWN %b %b 65535 65535\r\n" % ((b":".join([b"ffff"] * 8),) * 2), LOCAL),
    (HAPROXY, FROM_HAPROXY),
    (TCP6, FROM_TCP6),
    (v2(1, 0x11, HAPROXY[16:] + b"\x04\x00\x03abc"), FROM_HAPROXY),  # a NOOP (2.2.4)
    (v2(1, 0x11, HAPROXY[16:] + b"\x20\xff\xff"), FROM_HAPROXY),  # what it says is not used
    (v2(1, 0x31, bytes(216)), LOCAL),
    (v2(1, 0x00, b""), LOCAL),
    (v2(1, 0x00, b"ignored"), LOCAL),
    (v2(1, 0x10, HAPROXY[16:]), LOCAL),
    (v2(0, 0x00, b""), LOCAL),
    (v2(0, 0x11, HAPROXY[16:]), LOCAL),  # "discard the protocol block including the family"
    (v2(0, 0x11, b""), LOCAL),
    (v2(0, 0xFF, b"\0"), LOCAL),
    (v2(1, 0x11, HAPROXY[16:] + bytes(MAX_V2 - 28)), FROM_HAPROXY),
]


@pytest.mark.parametrize(("header", "source"), VALID)
def test_a_header_says_where_the_client_is(header: bytes, source: Source) -> None:
    assert received([header]) == (source, b"")
    assert received(bytewise(header)) == (source, b"")
    assert source.local is (source.address is None)


@pytest.mark.parametrize(("header", "source"), VALID)
def test_what_stands_behind_a_header_is_the_client_s(header: bytes, source: Source) -> None:
    behind = b"EHLO x\r\n" + TCP4  # the second is a command like any other
    assert received([header + behind]) == (source, behind)
    assert received([header[:9], header[9:] + behind[:3], behind[3:]]) == (source, behind)


@pytest.mark.parametrize(("header", "_"), VALID)
def test_nothing_is_said_before_a_header_is_whole(header: bytes, _: Source) -> None:
    assert received(bytewise(header[:-1])) == (None, b"")


@given(st.data())
def test_a_header_may_be_cut_anywhere(data: st.DataObject) -> None:
    header, source = data.draw(st.sampled_from(VALID))
    octets = header + data.draw(st.binary(max_size=20))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(octets) - 1), max_size=8)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    assert received(pieces) == (source, octets[len(header) :])


# -- in: what is not -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        *(b"EHLO x\r\n", b"\x16\x03\x01\x02\x00", b"PROXX", b"PROXYTCP4", b"proxy TCP4", b"\n"),
        *(b"PROXY  TCP4", b"PROXY TCP5", b"PROXY TCPX4", b"PROXY UDP4", b"PROXY UNKNOWNX"),
        *(b"PROXY\r\n", b"PROXY TCP4\r\n", b"PROXY UNKNOWN\n", b"PROXY UNKNOWN a\n"),
        b"PROXY UNKNOWN a\rb\r\n",
        *(TCP4[:-2] + b"\n", TCP4[:-2] + b" \r\n", TCP4[:-2] + b" 1\r\n"),
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
        b"PROXY TCP4 192.168.0.1  192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 056324 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 65536 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 -1 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 5_6 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443x\r\n",
        b"PROXY TCP4 192.168.0.01 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.256 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 ::1 ::1 56324 443\r\n",
        b"PROXY TCP6 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY TCP6 fe80::1%lo ::1 56324 443\r\n",
        b"PROXY TCP6 1::2::3 ::1 56324 443\r\n",
        SIGNATURE[:4] + b"\r\n",
        *(SIGNATURE + b"\x11", SIGNATURE + b"\x31", SIGNATURE + b"\x22", SIGNATURE + b"\x2f"),
        *(v2(1, 0x11, bytes(11)), v2(1, 0x21, bytes(35)), v2(1, 0x31, bytes(215))),
        *(v2(1, 0x41, bytes(216)), v2(1, 0x13, bytes(216))),
        *(v2(1, 0x12, bytes(12)), v2(1, 0x22, bytes(36)), v2(1, 0x32, bytes(216))),
    ],
)
def test_what_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(WireError):
        received([header])
    with pytest.raises(WireError):
        received(bytewise(header))


@pytest.mark.parametrize(
    "beginning",
    [
        b"E",
        b"PROXY T" + b"X",
        b"PROXY UNKNOWN\n",
        b"PROXY UNKNOWN " + b"a" * 93,
        b"\r\n\r\nQ",
        SIGNATURE + b"\x10",
        v2(1, 0x11, b"", length=11),
        v2(1, 0x12, b"", length=12),
        v2(1, 0x11, b"", length=MAX_V2 - 15),
        v2(0, 0x00, b"", length=65_535),
    ],
)
def test_a_refusal_waits_for_nothing(beginning: bytes) -> None:
    """As soon as possible (2.1), without the octets that such a header would still have."""
    header = ProxyHeader()
    assert header.receive(beginning[:-1]) == (None, b"")
    with pytest.raises(WireError):
        header.receive(beginning[-1:])


BEGINNINGS = st.sampled_from(
    [
        *(b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::", b"PROXY UNKNOWN", TCP4[:-4]),
        *(SIGNATURE, SIGNATURE + b"\x21", SIGNATURE + b"\x21\x11\x00", SIGNATURE + b"\x20"),
    ]
)


@given(BEGINNINGS, st.lists(st.binary(max_size=40), max_size=6), st.booleans())
def test_any_octets_are_a_header_or_refused(
    beginning: bytes, pieces: list[bytes], ended: bool
) -> None:
    octets = [beginning, *pieces, b"\r\n" if ended else b""]
    said: list[tuple[Source | None, bytes] | None] = []
    for cut in (octets, [b"".join(octets)], bytewise(b"".join(octets))):
        said.append(None)
        with contextlib.suppress(WireError):
            said[-1] = received(cut)
    assert said[0] == said[1] == said[2]


def test_a_hostile_header_writes_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """A peer could fill the disk: the parser warns of each fault."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(WireError):
        received([b"PROXY TCP4 192.0.2.1 192.0.2.256 1 25\r\n"])
    received([TCP4])
    assert caplog.records == []
    assert not logging.getLogger("mail.debug").disabled


# -- out -----------------------------------------------------------------------------------------


def test_a_client_is_told_as_the_specification_shows() -> None:
    client = Identity(
        FROM_TCP4.address,
        FROM_TCP4.port,
        server=FROM_TCP4.server,
        server_port=FROM_TCP4.server_port,
    )
    assert proxy_v1(client) == TCP4


def test_a_client_is_told_as_haproxy_does() -> None:
    client = Identity(
        FROM_HAPROXY.address,
        FROM_HAPROXY.port,
        server=FROM_HAPROXY.server,
        server_port=FROM_HAPROXY.server_port,
    )
    assert proxy_v2(client) == HAPROXY


def test_a_client_of_ipv6_is_told_in_both_versions() -> None:
    client = Identity(ENDS6[0], 4711, server=ENDS6[1], server_port=25)
    assert proxy_v1(client) == b"PROXY TCP6 2001:db8::7 2001:db8::25 4711 25\r\n"
    assert proxy_v2(client) == TCP6


def test_the_zone_of_an_address_stays_here() -> None:
    client = Identity(IPv6Address("fe80::1%eth0"), 1, server=IPv6Address("fe80::2%eth0"))
    assert proxy_v1(client) == b"PROXY TCP6 fe80::1 fe80::2 1 0\r\n"
    assert received([proxy_v2(client)])[0] == Source(
        IPv6Address("fe80::1"), 1, IPv6Address("fe80::2"), 0
    )


@pytest.mark.parametrize(
    "client",
    [
        Identity(),
        Identity(server=ENDS6[0]),
    ],
)
def test_a_client_without_an_address_is_not_told(client: Identity) -> None:
    assert proxy_v1(client) == b"PROXY UNKNOWN\r\n"
    assert proxy_v2(client) == SIGNATURE + b"\x20\x00\x00\x00"


@pytest.mark.parametrize("server", [None, ENDS6[1]])
def test_a_client_of_another_family_is_told_all_the_same(server: IPv6Address | None) -> None:
    client = Identity(IPv4Address("192.0.2.7"), 4711, server=server, server_port=25)
    assert proxy_v1(client) == b"PROXY TCP4 192.0.2.7 0.0.0.0 4711 25\r\n"
    assert received([proxy_v2(client)])[0] == Source(
        IPv4Address("192.0.2.7"), 4711, IPv4Address(0), 25
    )


PORTS = st.integers(0, 65_535)


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6), PORTS, st.data())
def test_what_is_told_is_what_is_understood(
    address: IPv4Address | IPv6Address, port: int, data: st.DataObject
) -> None:
    server = data.draw(st.ip_addresses(v=4 if address.version == 4 else 6))
    client = Identity(address, port, server=server, server_port=data.draw(PORTS))
    for header in (proxy_v1(client), proxy_v2(client)):
        source, behind = received([header])
        assert source is not None
        assert behind == b""
        ends = (source.address, source.server)
        assert [str(end) for end in ends] == [
            str(plain(end)).partition("%")[0] for end in (address, server)
        ]
        assert (source.port, source.server_port) == (port, client.server_port)
