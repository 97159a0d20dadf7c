"""XCLIENT and XFORWARD: what Postfix' READMEs and its source say of them."""

from __future__ import annotations

import contextlib
import string
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate_smtp.identity import (
    XCLIENT_ATTRIBUTES,
    XFORWARD_ATTRIBUTES,
    Identity,
    parse_attributes,
    xclient,
    xforward,
)
from mailgate_smtp.wire import CommandError, decode_xtext

XCLIENT = b"NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"
XFORWARD = b"NAME ADDR PORT PROTO HELO IDENT SOURCE"

SPIKE = Identity(
    IPv4Address("168.100.189.2"),
    4711,
    name="spike.porcupine.org",
    helo="spike.porcupine.org",
    protocol="ESMTP",
)


def words(commands: tuple[bytes, ...]) -> dict[bytes, bytes]:
    """Return the attributes of commands with their values as they are sent."""
    pairs = [word.partition(b"=") for line in commands for word in line.split()[1:]]
    assert len({name for name, _, _ in pairs}) == len(pairs)
    return {name: value for name, _, value in pairs}


# -- to the server behind ------------------------------------------------------------------------


def test_the_example_of_the_xclient_readme() -> None:
    (line,) = xclient(SPIKE, b"NAME ADDR")
    assert line == b"XCLIENT NAME=spike.porcupine.org ADDR=168.100.189.2"


def test_the_example_of_the_xforward_readme() -> None:
    (line,) = xforward(SPIKE, b"NAME ADDR PROTO")
    assert line == b"XFORWARD NAME=spike.porcupine.org ADDR=168.100.189.2 PROTO=ESMTP"
    (line,) = xforward(SPIKE, b"HELO")
    assert line == b"XFORWARD HELO=spike.porcupine.org"


def test_only_what_was_offered_is_told() -> None:
    assert words(xclient(SPIKE, b"NAME ADDR PROTO HELO")).keys() == {
        *(b"NAME", b"ADDR", b"PROTO", b"HELO")
    }
    assert words(xforward(SPIKE, b"addr SOURCE PLANET")).keys() == {b"ADDR", b"SOURCE"}
    assert words(xclient(SPIKE, XCLIENT)).keys() == XCLIENT_ATTRIBUTES
    assert words(xforward(SPIKE, XFORWARD)).keys() == XFORWARD_ATTRIBUTES


@pytest.mark.parametrize("offered", [b"", b"PLANET"])
def test_nothing_is_told_to_who_wants_nothing(offered: bytes) -> None:
    assert xclient(SPIKE, offered) == ()
    assert xforward(SPIKE, offered) == ()


def test_an_address_of_ipv6_has_its_prefix_and_no_zone() -> None:
    here = Identity(IPv6Address("fe80::1%eth0"), 25, server=IPv6Address("2001:db8::25"))
    told = words(xclient(here, XCLIENT))
    assert told[b"ADDR"] == b"IPV6:fe80::1"
    assert told[b"DESTADDR"] == b"IPV6:2001:db8::25"


def test_what_is_not_known_is_unavailable() -> None:
    told = words(xforward(Identity(), XFORWARD))
    assert told == {
        **dict.fromkeys((b"NAME", b"ADDR", b"PORT", b"HELO", b"IDENT"), b"[UNAVAILABLE]"),
        b"PROTO": b"SMTP",
        b"SOURCE": b"REMOTE",
    }
    assert words(xclient(Identity(), b"LOGIN DESTPORT")) == {
        b"LOGIN": b"[UNAVAILABLE]",
        b"DESTPORT": b"[UNAVAILABLE]",
    }


def test_a_login_is_xtext() -> None:
    """RFC 3461 4: plus, equals and what is not printable ASCII are escaped."""
    (line,) = xclient(Identity(login="a+b=c d\u00fc"), b"LOGIN")
    assert line == b"XCLIENT LOGIN=a+2Bb+3Dc+20d+C3+BC"


def test_a_greeting_cannot_hide_the_address() -> None:
    """Postfix 3.7 takes everything from a bare quote on for one word, and keeps its own ADDR."""
    for text in ('a"b', "a<b", "a\\", "a(b", "a;b", "a,b", "a>b"):
        (line,) = xclient(Identity(SPIKE.address, helo=text, login=text), b"HELO LOGIN ADDR")
        assert line.endswith(b" ADDR=168.100.189.2")
        assert not set(line) & set(b'"<\\(;,>')
        assert parse_attributes(line[8:], XCLIENT_ATTRIBUTES)[b"HELO"] == text


@pytest.mark.parametrize("login", ["a\r\nMAIL FROM:<x@y>", "a\0b", "", "a" * 256, "+" * 86])
def test_a_login_that_no_server_takes_is_unavailable(login: str) -> None:
    """Postfix refuses a value of more than 255 octets as they are sent: 86 pluses are 258."""
    assert words(xclient(Identity(login=login), b"LOGIN")) == {b"LOGIN": b"[UNAVAILABLE]"}


@pytest.mark.parametrize(
    "name",
    [
        *("192.0.2.7", "a..example", ".example", "example.", "-a.example", "a-.example"),
        *("a" * 64 + ".example", "a b.example", "\u00fc.example", "a.example\n"),
    ],
)
def test_a_name_that_postfix_refuses_is_unavailable(name: str) -> None:
    """valid_hostname() in src/util/valid_hostname.c; the message would be refused with it."""
    assert words(xclient(Identity(name=name), b"NAME")) == {b"NAME": b"[UNAVAILABLE]"}
    assert words(xforward(Identity(name=name), b"NAME")) == {b"NAME": b"[UNAVAILABLE]"}


@pytest.mark.parametrize("helo", ["a b", "<a>", "a;b", 'a"b', "a\\b", "a@b", "(a)", "\u00fc"])
def test_xforward_has_nothing_that_is_special_in_a_header(helo: str) -> None:
    """XFORWARD_README, note 1."""
    assert words(xforward(Identity(helo=helo), b"HELO")) == {b"HELO": b"[UNAVAILABLE]"}


@pytest.mark.parametrize("helo", ["[192.0.2.7]", "[IPv6:2001:db8::7]", "a_b.example", "WIN-7"])
def test_every_usual_greeting_is_forwarded(helo: str) -> None:
    told = words(xforward(Identity(helo=helo), b"HELO"))[b"HELO"]
    assert decode_xtext(told).decode() == helo


def test_xclient_is_silent_about_a_protocol_that_postfix_refuses_there() -> None:
    assert xclient(Identity(protocol="LMTP"), b"PROTO") == ()
    assert words(xforward(Identity(protocol="LMTP"), b"PROTO")) == {b"PROTO": b"LMTP"}


LABEL = "a" * 62
NAME = f"{LABEL}.{LABEL}.{LABEL}.{LABEL}"


def test_an_identity_that_fits_is_one_command() -> None:
    """Postfix forgets HELO, PROTO and LOGIN with each command that does not have them."""
    client = Identity(
        IPv6Address("2001:db8::7"), 4711, NAME, "a.example", "ESMTP", "user@example.org"
    )
    assert len(xclient(client, XCLIENT)) == 1


def test_a_long_identity_ends_with_the_address() -> None:
    client = Identity(IPv4Address("192.0.2.7"), 4711, NAME, NAME, "ESMTP", "u" * 255)
    first, *_, last = xclient(client, XCLIENT)
    assert words((last,)).keys() >= {b"ADDR", b"PORT", b"NAME"}
    assert words((first,)).keys() & {b"ADDR", b"PORT", b"NAME"} == set()


IDENTITIES = st.builds(
    Identity,
    address=st.none() | st.ip_addresses(),
    port=st.integers(0, 65_535),
    name=st.none() | st.text() | st.just(NAME),
    helo=st.text() | st.just(NAME),
    protocol=st.sampled_from(["SMTP", "ESMTP"]),
    login=st.none() | st.text() | st.text("a+", min_size=80, max_size=260),
    ident=st.none() | st.text() | st.text("a", min_size=250, max_size=260),
    source=st.sampled_from(["LOCAL", "REMOTE"]),
    server=st.none() | st.ip_addresses(),
    server_port=st.integers(0, 65_535),
)


PLAIN = set(string.ascii_letters.encode() + string.digits.encode() + b" =+._:@[]-")


@given(IDENTITIES)
def test_every_command_is_one_short_line_that_postfix_reads(client: Identity) -> None:
    """What README and source ask of a command, for any client."""
    for verb, told, known in (
        (b"XCLIENT ", xclient(client, XCLIENT), XCLIENT_ATTRIBUTES),
        (b"XFORWARD ", xforward(client, XFORWARD), XFORWARD_ATTRIBUTES),
    ):
        for line in told:
            assert len(line) <= 510  # without its CRLF
            assert line.startswith(verb)
            assert not set(line) - PLAIN
            assert all(0 < len(value) <= 255 for value in words((line,)).values())
            parse_attributes(line.removeprefix(verb), known)
        assert words(told).keys() == known


def test_what_one_server_takes_is_not_told_another() -> None:
    client = Identity(IPv4Address("192.0.2.7"), 4711, NAME)
    few, more = xforward(client, b"ADDR"), xforward(client, b"ADDR PORT")
    assert (few, more) == ((b"XFORWARD ADDR=192.0.2.7",), (b"XFORWARD ADDR=192.0.2.7 PORT=4711",))
    assert xforward(client, b"ADDR PORT") is more  # made once
    assert len(client.forwarded) == 1
    assert xforward(client.updated({b"ADDR": "192.0.2.8"}), b"ADDR") == (
        b"XFORWARD ADDR=192.0.2.8",
    )


# -- from a trusted peer -------------------------------------------------------------------------


def refusal(argument: bytes, known: frozenset[bytes] = XCLIENT_ATTRIBUTES) -> str:
    with pytest.raises(CommandError) as caught:
        parse_attributes(argument, known)
    assert caught.value.reply.code == 501
    assert caught.value.reply.lines[0].startswith(b"5.5.4 ")
    return str(caught.value.reply)


def test_what_the_readme_sends_is_read() -> None:
    found = parse_attributes(
        b"NAME=spike.porcupine.org ADDR=168.100.189.2 PROTO=ESMTP HELO=spike.porcupine.org",
        XFORWARD_ATTRIBUTES,
    )
    assert Identity(port=4711).updated(found) == SPIKE


def test_every_attribute_has_its_place() -> None:
    client = parse_attributes(
        b"NAME=a.example ADDR=IPV6:2001:db8::7 PORT=4711 PROTO=esmtp HELO=b.example"
        b" LOGIN=user+40example.org DESTADDR=192.0.2.25 DESTPORT=587",
        XCLIENT_ATTRIBUTES,
    )
    message = parse_attributes(b"IDENT=3CF6B2AAE8 SOURCE=LOCAL", XFORWARD_ATTRIBUTES)
    assert Identity().updated(client).updated(message) == Identity(
        IPv6Address("2001:db8::7"),
        4711,
        name="a.example",
        helo="b.example",
        protocol="ESMTP",
        login="user@example.org",
        ident="3CF6B2AAE8",
        source="LOCAL",
        server=IPv4Address("192.0.2.25"),
        server_port=587,
    )


def test_names_and_prefix_are_in_any_case() -> None:
    """XCLIENT_README, the syntax and note 2."""
    found = parse_attributes(b"addr=ipv6:::1 Name=[unavailable]", XCLIENT_ATTRIBUTES)
    assert found == {b"ADDR": "ipv6:::1", b"NAME": None}
    assert Identity(name="x").updated(found) == Identity(IPv6Address("::1"))


@pytest.mark.parametrize("value", [b"[UNAVAILABLE]", b"[TEMPUNAVAIL]", b"[TempUnavail]"])
@pytest.mark.parametrize("attribute", sorted(XCLIENT_ATTRIBUTES | XFORWARD_ATTRIBUTES))
def test_what_is_unavailable_is_forgotten(attribute: bytes, value: bytes) -> None:
    known = XCLIENT_ATTRIBUTES | XFORWARD_ATTRIBUTES
    found = parse_attributes(attribute + b"=" + value, known)
    assert found == {attribute: None}
    before = Identity(
        IPv4Address("192.0.2.7"),
        1,
        "n",
        "h",
        "ESMTP",
        "l",
        "i",
        "LOCAL",
        IPv4Address("192.0.2.25"),
        2,
    )
    after = before.updated(found)
    assert after != before


@pytest.mark.parametrize("name", [b"user+tag@example.org", b"user=x", b"us\xc3\xbcr"])
def test_a_value_that_is_not_encoded_is_taken_as_it_is(name: bytes) -> None:
    """XCLIENT_README, note 3; Postfix does the same (xtext_unquote() in smtpd.c)."""
    assert parse_attributes(b"LOGIN=" + name, XCLIENT_ATTRIBUTES) == {b"LOGIN": name.decode()}


def test_octets_that_are_not_utf8_survive() -> None:
    found = parse_attributes(b"HELO=+FF.example", XFORWARD_ATTRIBUTES)
    client = Identity().updated(found)
    assert client.helo == "\udcff.example"
    assert xclient(client, b"HELO") == (b"XCLIENT HELO=+FF.example",)


@pytest.mark.parametrize(
    "argument",
    [
        *(b"", b"   ", b"NAME", b"NAME=", b"=x", b"PLANET=earth", b"IDENT=1", b"NAME =x"),
        *(b"NAME=a NAME=a", b"NAME=a name=b"),
        *(b"ADDR=a.example", b"ADDR=1.2.3", b"ADDR=01.2.3.4", b"ADDR=[192.0.2.7]", b"ADDR=::1"),
        *(b"ADDR=IPV6:192.0.2.7", b"ADDR=IPV6:fe80::1%lo", b"DESTADDR=IPV6:", b"DESTADDR=x"),
        *(b"PORT=-1", b"PORT=65536", b"PORT=1_0", b"PORT=+2B1", b"DESTPORT=smtp"),
        b"PORT=\xd9\xa3",  # a digit, says Unicode
        *(b"HELO=a+0D+0AMAIL", b"HELO=a+00", b"NAME=+7F", b"LOGIN=\tx", b"LOGIN=a\tNAME=b"),
        *(b"HELO=" + b"a" * 256, b"LOGIN=" + b"a" * 300, b"PROTO=a+20b"),
    ],
)
def test_what_is_wrong_is_refused(argument: bytes) -> None:
    refusal(argument)


@pytest.mark.parametrize("argument", [b"LOGIN=root", b"DESTADDR=192.0.2.1", b"SOURCE=EARTH"])
def test_xforward_takes_its_own_attributes_only(argument: bytes) -> None:
    refusal(argument, XFORWARD_ATTRIBUTES)


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    assert "evil" not in refusal(b"EVIL=1")
    assert "evil" not in refusal(b"ADDR=evil")


@given(st.binary(max_size=600))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    for prefix in (b"", b"HELO=", b"ADDR=", b"PORT=", b"PROTO="):
        with contextlib.suppress(CommandError):
            client = Identity().updated(parse_attributes(prefix + octets, XFORWARD_ATTRIBUTES))
            assert 0 <= client.port <= 65_535
            assert not any(ord(c) < 32 or ord(c) == 127 for c in client.helo)


@given(IDENTITIES)
def test_what_is_told_is_what_is_understood(client: Identity) -> None:
    """A proxy behind a proxy knows as much as the first, or that it does not."""
    told = xclient(client, XCLIENT)
    heard = Identity()
    for line in told:
        heard = heard.updated(parse_attributes(line[8:], XCLIENT_ATTRIBUTES))
    assert (heard.port, heard.server_port) == (client.port, client.server_port)
    assert heard.protocol == client.protocol
    assert heard.login in (client.login, None)
    assert heard.helo in (client.helo, "")
    for sent, got in ((client.address, heard.address), (client.server, heard.server)):
        assert str(sent).partition("%")[0] == str(got)
