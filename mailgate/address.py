"""A mail address as envelopes carry it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import final

from mailgate.errors import Unsupported

_NO_PARAMS: Mapping[str, str | None] = MappingProxyType({})
_MAX_DOMAIN = 255


@final
class _Untold(Mapping[str, str | None]):
    """Parameters that are not known: every look at them raises Unsupported."""

    __slots__ = ()

    def __getitem__(self, keyword: str) -> str | None:
        raise self._not_known()

    def __iter__(self) -> Iterator[str]:
        raise self._not_known()

    def __len__(self) -> int:
        raise self._not_known()

    def __repr__(self) -> str:
        return "UNTOLD"

    def __reduce__(self) -> str:
        return "UNTOLD"

    @staticmethod
    def _not_known() -> Unsupported:
        return Unsupported(
            "params: this protocol does not tell them; declare wants={'params'} and ask "
            "message.can('params') first"
        )


UNTOLD: Mapping[str, str | None] = _Untold()
"""The ``params`` of an address on a protocol that tells none: not known, which is not empty."""


@final
class Address(str):
    """An address without angle brackets; the null sender is ``""``, and false.

    A ``str``, because policies look addresses up: ``recipient in allowed`` works.  The domain
    is lower-cased and in IDNA 2008 ASCII form, so that equal domains compare equal; a domain
    that has no such form is kept as it came.  The local part is left alone (RFC 5321 2.4), a
    source route is dropped (RFC 5321 C).  Making one never raises: a wire may send anything,
    and octets that are not UTF-8 are there as surrogate escapes.
    """

    __slots__ = ("domain", "local", "params")

    local: str
    domain: str
    params: Mapping[str, str | None]

    def __new__(cls, text: str, params: Mapping[str, str | None] | None = None) -> Address:
        if text.startswith("@") and ":" in text:
            text = text.partition(":")[2]
        local, at, domain = text.rpartition("@")
        if not at:
            local, domain = text, ""
        elif domain.isascii():
            domain = domain.lower()
        else:
            domain = _ascii_domain(domain)
        self = super().__new__(cls, local + at + domain)
        self.local = local
        self.domain = domain
        if params is UNTOLD:
            self.params = UNTOLD
        else:
            self.params = MappingProxyType(dict(params)) if params else _NO_PARAMS
        return self

    def __reduce__(self) -> tuple[type[Address], tuple[str, Mapping[str, str | None]]]:
        return Address, (str(self), UNTOLD if self.params is UNTOLD else dict(self.params))

    @classmethod
    def from_wire(cls, raw: bytes, params: Mapping[str, str | None] | None = None) -> Address:
        """Make an address from a peer's octets, whatever they are."""
        return cls(raw.decode("utf-8", "surrogateescape"), params)


def _ascii_domain(domain: str) -> str:
    """Return the A-label form of a domain (RFC 5891), or the domain where it has none."""
    # The Kelvin sign and the long s turn into ASCII letters by lower(): such a domain would
    # pass for another one in an allow-list, so only what stays outside ASCII is lower-cased.
    lowered = "".join(c.lower() if c.isascii() or not c.lower().isascii() else c for c in domain)
    if len(lowered) > _MAX_DOMAIN:
        return lowered
    import idna  # its tables cost start-up time, and few domains want them

    try:
        # Label by label: idna.encode() takes an ideographic full stop for a dot.
        return ".".join(
            label if label.isascii() else idna.alabel(label).decode("ascii")
            for label in lowered.split(".")
        )
    except UnicodeError:  # idna.IDNAError is one
        return lowered
