"""Addresses compare as a mail administrator expects, and never raise."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailgate.address import UNTOLD, Address
from mailgate.errors import Unsupported


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("Ann@Example.ORG", "Ann", "example.org"),
        ("postmaster", "postmaster", ""),
        ("", "", ""),
        ("@", "", ""),
        ("a@b@C", "a@b", "c"),
        ('"a@b"@C.example', '"a@b"', "c.example"),
        ("a@[IPv6:2001:DB8::1]", "a", "[ipv6:2001:db8::1]"),
    ],
)
def test_parts(text: str, local: str, domain: str) -> None:
    address = Address(text)
    assert (address.local, address.domain) == (local, domain)


def test_it_is_a_string_to_look_up() -> None:
    address = Address("Ann@EXAMPLE.org")
    assert address in {"Ann@example.org"}
    assert {"Ann@example.org": 1}[address] == 1
    assert f"{address}" == "Ann@example.org"


def test_the_null_sender_is_false() -> None:
    assert not Address("")
    assert Address("") == ""


def test_local_parts_differ_by_case() -> None:
    """RFC 5321 2.4."""
    assert Address("Ann@example.org") != Address("ann@example.org")


@pytest.mark.parametrize(
    ("domain", "ascii_form"),
    [
        # RFC 3492 7.1 has no domains; these are the A-labels that IDNA 2008 registries list.
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.Example", "xn--bcher-kva.example"),
        ("faß.de", "xn--fa-hia.de"),  # not fass.de: IDNA 2008 keeps the sharp s (RFC 5894 7.2)
        ("βόλος.com", "xn--nxasmm1c.com"),  # final sigma, UTS 46 4 table 1
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
    ],
)
def test_domains_are_in_their_ascii_form(domain: str, ascii_form: str) -> None:
    assert Address(f"a@{domain}").domain == ascii_form
    assert Address(f"a@{domain}") == f"a@{ascii_form}"


@pytest.mark.parametrize(
    ("domain", "other"),
    [
        ("\u212aelvin.example", "kelvin.example"),  # the Kelvin sign is k by lower()
        ("pa\u017fword.example", "password.example"),  # the long s is S by upper()
        ("\uff41.example", "a.example"),  # a full-width letter is a by NFKC
        ("mail\u3002example.org", "mail.example.org"),  # an ideographic full stop
        ("b\u200ducher.example", "bucher.example"),  # a zero-width joiner
    ],
)
def test_a_look_alike_does_not_pass_for_another_domain(domain: str, other: str) -> None:
    assert Address(f"a@{domain}") != Address(f"a@{other}")
    assert Address(f"a@{domain}").domain != other


@pytest.mark.parametrize(
    "domain", ["-ü-.example", "ü" * 64 + ".example", "é" * 300, "\u0300a.example", "ü..\udc80"]
)
def test_a_domain_without_an_ascii_form_is_kept(domain: str) -> None:
    assert Address(f"a@{domain}").domain == domain


@pytest.mark.parametrize("route", ["@r.example:", "@r.example,@s.example:"])
def test_a_source_route_is_dropped(route: str) -> None:
    """RFC 5321 C."""
    assert Address(f"{route}a@B.example") == "a@b.example"


def test_parameters() -> None:
    params: dict[str, str | None] = {"SIZE": "10", "SMTPUTF8": None}
    address = Address("a@b.example", params)
    params["SIZE"] = "11"
    assert address.params == {"SIZE": "10", "SMTPUTF8": None}
    assert address == Address("a@b.example")
    assert Address("a@b.example").params == {}
    with pytest.raises(TypeError):
        address.params["SIZE"] = "12"  # type: ignore[index]


def test_octets_that_are_no_text_survive() -> None:
    address = Address.from_wire(b"\xff@b.example", {"SIZE": "1"})
    assert address.encode("utf-8", "surrogateescape") == b"\xff@b.example"
    assert address.params == {"SIZE": "1"}
    assert Address.from_wire("ü@BÜCHER.example".encode()) == "ü@xn--bcher-kva.example"


@given(st.binary(max_size=80) | st.binary(max_size=40).map(b"a@".__add__))
@example(b"@" * 300)
@example(b"a@" + "\u0660\u0661".encode() * 100)
@example(b"a@" + b"\xed\xa0\x80")
def test_any_octets_make_an_address(raw: bytes) -> None:
    address = Address.from_wire(raw)
    local, at, domain = str(address).rpartition("@")
    assert (address.local, address.domain) == ((local, domain) if at else (address, ""))


@given(st.text(max_size=40) | st.text(max_size=30).map("a@".__add__))
@example("a@\u1e9e")
def test_any_text_makes_an_address_that_is_normal_then(text: str) -> None:
    address = Address(text)
    if not address.startswith("@"):
        assert Address(str(address)) == address
    if address.isascii():
        assert address.domain == address.domain.lower()


def test_it_can_be_copied_and_pickled() -> None:
    address = Address("a@b.example", {"SIZE": "10"})
    for other in (copy.deepcopy(address), pickle.loads(pickle.dumps(address))):
        assert other == address
        assert (other.local, other.domain, other.params) == ("a", "b.example", {"SIZE": "10"})


# -- parameters that are not told ----------------------------------------------------------------

Params = Mapping[str, str | None]
LOOKS: dict[str, Callable[[Params], object]] = {
    "[]": lambda params: params["SIZE"],
    "get": lambda params: params.get("SIZE"),
    "in": lambda params: "SIZE" in params,
    "bool": bool,
    "len": len,
    "iter": iter,
    "dict": dict,
    "keys": lambda params: "SIZE" in params.keys(),  # noqa: SIM118
    "values": lambda params: [*params.values()],
    "items": lambda params: [*params.items()],
    "==": lambda params: params == {},
    "!=": lambda params: params != {},
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_parameters_that_are_not_told_are_not_none(look: Callable[[Params], object]) -> None:
    for address in (Address("a@b.example", UNTOLD), Address.from_wire(b"a@b.example", UNTOLD)):
        with pytest.raises(Unsupported) as caught:
            look(address.params)
        assert str(caught.value) == (
            "params: this protocol does not tell them; declare wants={'params'} and ask "
            "message.can('params') first"
        )


def test_an_address_without_known_parameters_is_one_like_any_other() -> None:
    address = Address("Ann@B.example", UNTOLD)
    assert address == Address("Ann@b.example")
    assert (address.local, address.domain) == ("Ann", "b.example")
    assert repr(address.params) == "UNTOLD"
    others = (copy.copy(address), copy.deepcopy(address), pickle.loads(pickle.dumps(address)))
    for other in (*others, Address(address, address.params)):
        assert other == address
        assert other.params is UNTOLD
