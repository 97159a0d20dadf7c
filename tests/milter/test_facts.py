"""What MTAs tell of a client, as policies see it; the packets are those of wire samples."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

import pytest

from mailgate.session import TLS, IPAddress
from mailgate_milter import wire
from mailgate_milter.facts import MAX_MACROS, Macros, session_of, tls_of
from mailgate_milter.wire import Command, Connect, WireError


def macro(command: int, **values: str) -> bytes:
    """Return the data of a MACRO packet."""
    return wire.macros(command, values)[5:]


def macros(*packets: bytes) -> Macros:
    made = Macros()
    for data in packets:
        made.take(data)
    return made


# -- the client ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "address", "port", "local_socket"),
    [
        (Connect(b"h", "4", 4711, b"192.0.2.1"), ip_address("192.0.2.1"), 4711, False),
        (Connect(b"h", "6", 4711, b"2001:db8::1"), ip_address("2001:db8::1"), 4711, False),
        (Connect(b"h", "6", 25, b"IPv6:2001:db8::1"), ip_address("2001:db8::1"), 25, False),
        (Connect(b"h", "L", 0, b"/run/x"), None, 0, True),
        (Connect(b"h", "U", 0, b""), None, 0, False),
        (Connect(b"localhost", "4", 0, b"127.0.0.1"), ip_address("127.0.0.1"), 0, False),
    ],
)
def test_addresses(
    client: Connect, address: IPAddress | None, port: int, local_socket: bool
) -> None:
    session = session_of("s1", client, Macros())
    assert session.client == address
    assert session.client_port == port
    assert session.local_socket is local_socket


@pytest.mark.parametrize("address", [b"999.1.1.1", b"", b"host.example", b"\xff", b"::g"])
def test_an_address_that_is_none(address: bytes) -> None:
    with pytest.raises(WireError, match="CONNECT with the address"):
        session_of("s1", Connect(b"h", "4", 25, address), Macros())


@pytest.mark.parametrize(
    ("host", "told", "name", "verified"),
    [
        # Postfix: the name was confirmed, or the address is there in brackets.
        (b"mx.example", {}, "mx.example", True),
        (b"[192.0.2.1]", {"client_ptr": "unknown"}, None, None),
        (b"[192.0.2.1]", {"client_ptr": "forged.example"}, "forged.example", False),
        (b"unknown", {}, None, None),
        # Sendmail tells what became of the name.
        (b"mx.example", {"client_resolve": "OK"}, "mx.example", True),
        (b"mx.example", {"client_resolve": "FORGED"}, "mx.example", False),
        (b"mx.example", {"client_resolve": "TEMP"}, "mx.example", False),
        (b"[192.0.2.1]", {"client_ptr": "[192.0.2.1]", "client_resolve": "FAIL"}, None, None),
    ],
)
def test_names(
    host: bytes, told: Mapping[str, str], name: str | None, verified: bool | None
) -> None:
    client = Connect(host, "4", 25, b"192.0.2.1")
    session = session_of("s1", client, macros(macro(Command.CONNECT, **told)))
    assert (session.rdns, session.rdns_verified) == (name, verified)


def test_the_server_is_the_interface_where_it_is_told_and_else_the_daemon() -> None:
    client = Connect(b"h", "4", 25, b"192.0.2.1")
    daemon = {"daemon_addr": "0.0.0.0", "daemon_port": "25"}
    here = session_of("s1", client, macros(macro(Command.CONNECT, **daemon)))
    assert (str(here.server), here.server_port) == ("0.0.0.0", 25)
    with_interface = macro(Command.CONNECT, if_addr="192.0.2.25", **daemon)
    assert str(session_of("s1", client, macros(with_interface)).server) == "192.0.2.25"
    assert session_of("s1", client, Macros()).server is None


# -- encryption ----------------------------------------------------------------------------------


def test_encryption() -> None:
    told = {
        "tls_version": "TLSv1.3",
        "cipher": "TLS_AES_256_GCM_SHA384",
        "cipher_bits": "256",
        "cert_subject": "",
    }
    seen = macros(macro(Command.HELO, **told)).of(Command.HELO)
    assert tls_of(seen) == TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, None)


def test_no_encryption() -> None:
    assert tls_of(macros(b"H").of(Command.HELO)) is None
    assert tls_of(macros(macro(Command.HELO, tls_version="")).of(Command.HELO)) is None


# -- macros --------------------------------------------------------------------------------------


def test_names_have_no_braces_in_a_policy() -> None:
    seen = macros(macro(Command.CONNECT, j="mx.example", client_addr="192.0.2.1"))
    assert dict(seen) == {"j": "mx.example", "client_addr": "192.0.2.1"}
    assert seen["{client_addr}"] == seen["client_addr"] == "192.0.2.1"
    assert "i" not in seen
    assert len(seen) == 2


def test_the_latest_stage_wins() -> None:
    seen = macros(macro(Command.MAIL, i="early"), macro(Command.EOM, i="late"))
    assert seen["i"] == seen.find(b"i") == "late"


def test_the_same_stage_again_takes_the_place_of_what_it_said() -> None:
    seen = macros(macro(Command.MAIL, i="1", auth_authen="ann"), macro(Command.MAIL, i="2"))
    assert dict(seen) == {"i": "2"}


def test_a_message_leaves_nothing_to_the_next() -> None:
    connected, helo = macro(Command.CONNECT, j="mx"), macro(Command.HELO, tls_version="TLSv1.3")
    message = [
        macro(command, i="4711", auth_authen="ann")
        for command in (Command.MAIL, Command.RCPT, Command.DATA, Command.EOH, Command.EOM)
    ]
    seen = macros(connected, helo, *message)
    seen.end_message()
    assert dict(seen) == {"j": "mx", "tls_version": "TLSv1.3"}


def test_octets_that_are_no_text() -> None:
    seen = macros(bytes((Command.MAIL,)) + b"i\0\xff\xfe\0")
    assert seen["i"].encode("utf-8", "surrogateescape") == b"\xff\xfe"


def test_macros_of_commands_that_no_version_has_are_passed_over() -> None:
    assert dict(macros(b"Zi\x004711\0")) == {}


def test_a_macro_packet_says_whose_macros_they_are() -> None:
    with pytest.raises(WireError, match="MACRO without a command"):
        macros(b"")


@pytest.mark.parametrize(
    ("packets", "fault"),
    [
        (
            [macro(Command.CONNECT, **{f"m{n}": "" for n in range(MAX_MACROS + 1)})],
            "more than 256 macros",
        ),
        (
            [
                macro(command, i="x" * 30_000)
                for command in (Command.MAIL, Command.RCPT, Command.EOM)
            ],
            "octets of macros",
        ),
    ],
)
def test_more_than_any_mta_sends(packets: list[bytes], fault: str) -> None:
    with pytest.raises(WireError, match=fault):
        macros(*packets)


def test_the_same_macro_often_is_one() -> None:
    data = bytes((Command.CONNECT,)) + b"i\0v\0" * 1000
    assert dict(macros(data)) == {"i": "v"}
