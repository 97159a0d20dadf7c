"""What an MTA tells of a client and a message, as policies see it: alike for every MTA.

A macro holds from where it was given until it is given again: those of CONNECT and HELO for
the connection, later ones for the message.  The MTAs send different sets and at different
stages, so a fact is looked up where either of them has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import final

from mailgate.session import TLS, IPAddress, Session, address_of
from mailgate.syntax import text_of
from mailgate_milter.wire import Command, Connect, WireError, macro_command, parse_macros

MAX_MACROS = 256
"""Macros in one packet."""

MAX_MACRO_OCTETS = 64 * 1024
"""Octets of all macros of a connection."""

_OF_CONNECTION = (Command.HELO, Command.CONNECT)
_OF_MESSAGE = (
    *(Command.EOM, Command.BODY, Command.EOH, Command.HEADER),
    *(Command.DATA, Command.RCPT, Command.MAIL),
)
_LATEST_FIRST = (*_OF_MESSAGE, *_OF_CONNECTION)

_STICKY = frozenset(_LATEST_FIRST)
_SHORT = 1024  # octets; that many for each command are nothing to count

_UNKNOWN_CLIENTS = frozenset({b"", b"unknown"})


_NONE: Mapping[bytes, bytes] = MappingProxyType({})


@final
class Macros(Mapping[str, str]):
    """The macros of a connection, names without braces; read only when somebody looks."""

    __slots__ = ("_packets", "_whole")

    def __init__(self) -> None:
        self._packets: dict[int, bytes] = {}
        self._whole: dict[str, str] | None = None  # as policies see them, once somebody looked

    def take(self, data: bytes) -> None:
        """Take a MACRO packet; WireError for more macros than any MTA sends."""
        command = macro_command(data)
        if command not in _STICKY:
            return  # of a command that no version has
        if len(data) > _SHORT:
            self._check(data)
        self._packets[command] = data
        self._whole = None

    def _check(self, data: bytes) -> None:
        octets = sum(map(len, self._packets.values())) + len(data)
        if octets > MAX_MACRO_OCTETS:
            raise WireError(f"{octets} octets of macros, over {MAX_MACRO_OCTETS}")
        if len(parse_macros(data)) > MAX_MACROS:
            raise WireError(f"more than {MAX_MACROS} macros in one packet")

    def end_message(self) -> None:
        """Forget what belongs to a message: nobody is logged in by the one before."""
        packets = self._packets
        self._whole = None
        for command in _OF_MESSAGE:
            if command in packets:
                del packets[command]

    def forget(self, command: int) -> None:
        """Forget the macros of one command: its next one may come without."""
        self._packets.pop(command, None)
        self._whole = None

    def of(self, command: int) -> Mapping[bytes, bytes]:
        """Return the macros of one command by their names on the wire: ``i``, ``{auth_type}``."""
        data = self._packets.get(command, b"")
        return parse_macros(data) if len(data) > 1 else _NONE

    def find(self, name: bytes) -> str:
        """Return the value that a macro has now, by its name on the wire; "" for none."""
        packets = self._packets
        for command in _LATEST_FIRST:
            if command in packets and name in packets[command]:
                value = parse_macros(packets[command]).get(name)
                if value is not None:
                    return text_of(value)
        return ""

    def _all(self) -> dict[str, str]:
        if self._whole is None:
            self._whole = {
                text_of(name).removeprefix("{").removesuffix("}"): text_of(value)
                for command in reversed(_LATEST_FIRST)
                for name, value in self.of(command).items()
            }
        return self._whole

    def __getitem__(self, name: str) -> str:
        return self._all()[name.removeprefix("{").removesuffix("}")]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"<Macros: {len(self)}>"


def session_of(id: str, client: Connect, macros: Macros) -> Session:
    """Return a client's session; WireError for an address that is none."""
    values = macros.of(Command.CONNECT)
    rdns, verified = _name_of(client, values)
    address = None
    if client.family in "46":
        address = _ip(client.address)
        if address is None:
            raise WireError(f"CONNECT with the address {client.address[:60]!r}")
    server = values.get(b"{if_addr}") or values.get(b"{daemon_addr}") or b""
    return Session(
        id=id,
        adapter="milter",
        client=address,
        client_port=client.port,
        local_socket=client.family == "L",
        server=_ip(server) if server else None,
        server_port=_number(values.get(b"{daemon_port}", b"")),
        rdns=rdns,
        rdns_verified=verified,
        macros=macros,
    )


def _ip(octets: bytes) -> IPAddress | None:
    """Return an address; Sendmail puts a word before those of IPv6."""
    text = octets.decode("latin-1")
    return address_of(text[5:] if text[:5].lower() == "ipv6:" else text)


def _name_of(client: Connect, values: Mapping[bytes, bytes]) -> tuple[str | None, bool | None]:
    """Return the client's name and whether it was confirmed.

    Both MTAs put an address in brackets where there is no name, Postfix also where the name was
    not confirmed; Sendmail tells that by ``{client_resolve}``.
    """
    name = client.host
    if name not in _UNKNOWN_CLIENTS and name[:1] != b"[":
        return text_of(name), values.get(b"{client_resolve}", b"OK") in (b"", b"OK")
    pointer = values.get(b"{client_ptr}", b"")
    if pointer not in _UNKNOWN_CLIENTS and pointer[:1] != b"[":
        return text_of(pointer), False
    return None, None


def tls_of(values: Mapping[bytes, bytes]) -> TLS | None:
    """Return what the macros of HELO or MAIL tell of encryption, None where there is none."""
    version = values.get(b"{tls_version}")
    if not version:
        return None
    cipher, subject = values.get(b"{cipher}"), values.get(b"{cert_subject}")
    return TLS(
        text_of(version),
        text_of(cipher) if cipher else None,
        _number(values.get(b"{cipher_bits}", b"")) or None,
        text_of(subject) if subject else None,
    )


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 6 else 0
