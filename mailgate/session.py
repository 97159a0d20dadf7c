"""A client connection, as policies see it, and what happens on it beyond mail."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias, final

from mailgate.errors import TooLate, Unsupported
from mailgate.invocation import CURRENT, may, require
from mailgate.stage import Capability
from mailgate.syntax import check_host_name

IPAddress: TypeAlias = IPv4Address | IPv6Address


def plain(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv6 one maps (RFC 4291 2.5.5.2), or the address itself.

    A socket that takes both families tells IPv4 clients so.
    """
    return getattr(address, "ipv4_mapped", None) or address


def address_of(text: str) -> IPAddress | None:
    """Return an IP address that a wire tells, or None where it is none."""
    return None if len(text) > _LONGEST_ADDRESS else _address_of(text)


_LONGEST_ADDRESS = 45  # characters: INET6_ADDRSTRLEN


@lru_cache(maxsize=4096)  # the same server, and often the same client, again and again
def _address_of(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


TOLD_BY: Mapping[str, Capability] = MappingProxyType(
    {"user": "auth", "tls": "tls", "rdns": "rdns", "rdns_verified": "rdns"}
)
"""The fields of a session that not every protocol tells, each with the fact that it belongs to."""

_NO_MACROS: Mapping[str, str] = MappingProxyType({})


@final
@dataclass(frozen=True, slots=True)
class TLS:
    """What is known of a connection's encryption; ``None`` where the protocol does not tell."""

    version: str
    cipher: str | None = None
    bits: int | None = None
    subject: str | None = None


@final
@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """One client connection.  Read-only for policies; adapters tell it facts with `learn`.

    ``client`` is None for a local socket (``local_socket``) and where the server tells an
    address that is none.  ``rdns_verified`` is the forward-confirmed reverse
    DNS (RFC 8601 3), None where it is not known.  ``esmtp`` is None before
    HELO, and where the protocol does not tell HELO from EHLO.  ``direction``
    is "out" for the outgoing sessions that OpenSMTPD reports to ``event`` handlers.

    None is an answer.  Where a protocol never tells ``user``, ``tls``, ``rdns`` or
    ``rdns_verified``, reading it raises Unsupported.
    """

    id: str
    adapter: str
    client: IPAddress | None = None
    client_port: int = 0
    local_socket: bool = False
    server: IPAddress | None = None
    server_port: int = 0
    rdns: str | None = None
    rdns_verified: bool | None = None
    helo: str = ""
    esmtp: bool | None = None
    tls: TLS | None = None
    user: str | None = None
    macros: Mapping[str, str] = field(default_factory=lambda: _NO_MACROS)
    direction: Literal["in", "out"] = "in"
    state: dict[object, object] = field(default_factory=dict, repr=False)

    @property
    def local(self) -> bool:
        """Tell whether the client is this host: a local socket or a loopback address."""
        return self.local_socket or (self.client is not None and self.client.is_loopback)

    def learn(self, **facts: object) -> None:
        """Set facts that the wire has told; for adapters."""
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    def greet(self, name: str, esmtp: bool | None) -> None:
        """Set what a greeting tells; as `learn`, and fast."""
        object.__setattr__(self, "helo", name)
        object.__setattr__(self, "esmtp", esmtp)

    def withhold(self, *names: str) -> None:
        """Have fields raise Unsupported: the protocol does not tell them.  `learn` ends that."""
        object.__setattr__(self, "__class__", _Blind)
        for name in names:
            with suppress(AttributeError):  # it is withheld already
                object.__delattr__(self, name)

    def tells(self, name: str) -> bool:
        """Tell whether a field can be read; for those who show whatever there is."""
        try:
            object.__getattribute__(self, name)
        except AttributeError:
            return False
        return True

    def __repr__(self) -> str:
        told = [each.name for each in fields(self) if each.repr and self.tells(each.name)]
        return f"Session({', '.join(f'{name}={getattr(self, name)!r}' for name in told)})"

    def can(self, capability: Capability) -> bool:
        """Tell whether the running handler may use an action or trust a fact here and now."""
        return may(capability)

    def change_helo(self, name: str) -> None:
        """Give the server another greeting name; only in ``helo``, needs ``change_helo``.

        Raises ValueError unless it is a host name or an address literal.
        """
        require("change_helo", "session.change_helo()")
        invocation = CURRENT.get()
        checked = check_host_name(name)
        if invocation is not None:
            if not invocation.live or invocation.session is not self:
                raise TooLate("session.change_helo() after its handler")
            if invocation.undo is None:
                invocation.undo = self.helo
        self.learn(helo=checked)


@final
class _Blind(Session):  # type: ignore[misc]  # nobody else makes a kind of session
    """A session that does not know everything.

    A class of its own: with `__getattr__` CPython reads each field the slow way.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker would take any name for a field

        def __getattr__(self, name):  # only what is missing is looked for here
            raise _missing(name)


def _missing(name: str) -> Exception:
    """Return what a session raises for a field that it does not have."""
    fact = TOLD_BY.get(name)
    if fact is None:
        return AttributeError(f"'Session' object has no attribute {name!r}")
    return Unsupported(
        f"session.{name}: this protocol does not tell it; declare wants={{{fact!r}}} and ask "
        f"session.can({fact!r}) first"
    )


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """A login that a client tries; ``user`` is None where the wire does not show it.

    ``password`` is there only in handlers with ``needs={"credentials"}``; it is never printed.
    """

    method: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)


@final
@dataclass(frozen=True, slots=True)
class Event:
    """Something that a wire reports beyond the stages; the adapter's page lists its events."""

    name: str
    fields: Mapping[str, str]
