"""What every wire shares of RFC 5321 and RFC 5322."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailgate.syntax import (
    check_host_name,
    check_mailbox,
    format_parameters,
    is_field_name,
    normal_line_ends,
    parameters,
    path_parameters,
    stuff_dots,
    text_of,
    unstuff_dots,
    with_crlf,
    with_lf,
)

# -- octets as text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("octets", "text"),
    [(b"", ""), (b"a\0b", "a\0b"), ("é€".encode(), "é€"), (b"\xe9", "\udce9")],
)
def test_octets_are_text(octets: bytes, text: str) -> None:
    assert text_of(octets) == text


@given(st.binary(max_size=60))
def test_any_octets_come_back(octets: bytes) -> None:
    assert text_of(octets).encode("utf-8", "surrogateescape") == octets


# -- header field names (RFC 5322 2.2) -----------------------------------------------------------


@pytest.mark.parametrize("name", [b"Subject", b"X-1", b"a", b"!#$%&'*+-/=?^_`{|}~"])
def test_field_names(name: bytes) -> None:
    assert is_field_name(name)


@pytest.mark.parametrize(
    "name", [b"", b"a b", b"a:", b"a\t", b"\xc3\xa9", b"a\n", b"a\x7f", b"\0"]
)
def test_what_is_no_field_name(name: bytes) -> None:
    assert not is_field_name(name)


# -- ESMTP parameters (RFC 5321 4.1.1.11, 4.1.2) -------------------------------------------------


@pytest.mark.parametrize(
    ("command", "params"),
    [
        (b"MAIL FROM:<a@b.example>", {}),
        (b"mail from:<a@b.example> size=10 SMTPUTF8", {"SIZE": "10", "SMTPUTF8": None}),
        (b"MAIL FROM: <a@b.example>  BODY=8BITMIME", {"BODY": "8BITMIME"}),
        (b"MAIL  FROM : a@b.example SIZE=1", {"SIZE": "1"}),
        (b"MAIL FROM:<> RET=HDRS ENVID=x+2By", {"RET": "HDRS", "ENVID": "x+2By"}),
        (b'RCPT TO:<"a> b"@c.example> NOTIFY=NEVER', {"NOTIFY": "NEVER"}),
        (b'RCPT TO:<"a\\" SIZE=1 "@c.example> ORCPT=rfc822;a=b', {"ORCPT": "rfc822;a=b"}),
        (b"MAIL FROM:<a@b.example> SIZE=1 SIZE=2", {"SIZE": "2"}),
        (b"MAIL FROM:<a@b.example> -x=1 =2 SIZE= ok=1", {"SIZE": "", "OK": "1"}),
        (b"MAIL FROM:<a@b.example> A=\xc3\xa9", {"A": "\xe9"}),
        (b"MAIL FROM:<a@b.example> A=\xff", {"A": "\udcff"}),
        ("MAIL FROM:<a@b.example> A=x\u00a0B=y".encode(), {"A": "x\u00a0B=y"}),
        ("MAIL FROM:<a@b.example> A=x\u2003B=y C".encode(), {"A": "x\u2003B=y", "C": None}),
        (b"MAIL FROM:", {}),
        (b"DATA", {}),
        (b"", {}),
    ],
)
def test_path_parameters(command: bytes, params: dict[str, str | None]) -> None:
    assert path_parameters(command) == params


@pytest.mark.parametrize(
    ("words", "params"),
    [
        ([], {}),
        ([b"size=10", b"SMTPUTF8"], {"SIZE": "10", "SMTPUTF8": None}),
        ([b"A=b=c", b"A-1="], {"A": "b=c", "A-1": ""}),
        ([b"A=1", b"a=2"], {"A": "2"}),
        ([b"A=x y", b"B=\t"], {"A": "x y", "B": "\t"}),
        ([b"A=\xff", "B=é".encode()], {"A": "\udcff", "B": "é"}),
        ([b"", b"=", b"=x", b"-A=1", b"A B=1", b"<a@b.example>", b"\xc3\x89=1", b"A\n"], {}),
    ],
)
def test_parameters_of_words(words: list[bytes], params: dict[str, str | None]) -> None:
    """As a milter is given them: one string for each (RFC 5321 4.1.2: esmtp-param)."""
    assert parameters(words) == params
    assert parameters(iter(words)) == params


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_any_words_are_taken(words: list[bytes]) -> None:
    for keyword in parameters(words):
        assert re.fullmatch("[A-Z0-9][A-Z0-9-]*", keyword)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(b"MAIL FROM:<a@b> ".__add__))
def test_path_parameters_take_any_command(command: bytes) -> None:
    for keyword in path_parameters(command):
        assert re.fullmatch("[A-Z0-9][A-Z0-9-]*", keyword)


def test_parameters_are_written_as_they_are_read() -> None:
    params = {"SIZE": "10", "SMTPUTF8": None, "ENVID": "x+2By"}
    assert format_parameters(params) == " SIZE=10 SMTPUTF8 ENVID=x+2By"
    assert path_parameters(b"MAIL FROM:<a@b>" + format_parameters(params).encode()) == params


@pytest.mark.parametrize(
    "params",
    [
        *({"": "1"}, {"A B": "1"}, {"-A": None}, {"\xc9": "1"}, {"A\n": None}),
        *({"A": ""}, {"A": "b c"}, {"A": "b=c"}, {"A": "b\r\nRSET"}, {"A": "\xe9"}, {"A": "b\n"}),
    ],
    ids=repr,
)
def test_what_no_command_could_carry_is_refused(params: dict[str, str | None]) -> None:
    with pytest.raises(ValueError, match="not an ESMTP parameter"):
        format_parameters(params)


# -- mailboxes (RFC 5321 4.1.2) ------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("a@b.example", "a.b+c@d.example", "a=b/c@d.example", "!#$%&'*/=?^_`{|}~-@d.example"),
        *('"a b"@c.example', '"a\\"b"@c.example', '"@"@c.example', "postmaster@[192.0.2.1]"),
        *("a@[IPv6:2001:db8::1]", "a@localhost", "x" * 64 + "@" + "y" * 180),
    ],
)
def test_mailboxes(address: str) -> None:
    assert check_mailbox(address) == address
    assert check_mailbox(f"<{address}>") == address


@pytest.mark.parametrize(
    "address",
    [
        *("", "<>", "a", "@b.example", "a@", "a@b@c.example", "a b@c.example", "a@b c"),
        *("a@b.example>", "<a@b.example", "a@b.example,c@d.example", "a@b.example c@d.example"),
        *(
            "<a@b.example> SIZE=1",
            "a@b.example\r\nRCPT TO:<c@d>",
            "a@b.example\n",
            "a\0@b",
            "a@b\0",
        ),
        *("@relay.example:a@b.example", 'a"b@c.example', '"a@b.example', "a\\b@c.example"),
        *("a@[]", "a@[1.2.3.4", "a@1.2.3.4]", "Ann <a@b.example>", "a@b.example;", "(x)a@b"),
    ],
    ids=ascii,
)
def test_what_is_no_mailbox_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address$"):
        check_mailbox(address)


def test_a_path_has_256_octets_at_most() -> None:
    """RFC 5321 4.5.3.1.3, the angle brackets included."""
    assert check_mailbox("a@" + "b" * 252)
    with pytest.raises(ValueError, match="longer than 256 octets"):
        check_mailbox("a@" + "b" * 253)
    with pytest.raises(ValueError, match="longer than 256 octets"):
        check_mailbox("é@" + "b" * 252, utf8=True)


def test_an_address_that_is_not_ascii_wants_smtputf8() -> None:
    assert check_mailbox("grün@bücher.example", utf8=True) == "grün@bücher.example"
    with pytest.raises(ValueError, match="needs SMTPUTF8"):
        check_mailbox("grün@b.example")


@pytest.mark.parametrize("char", ["\ud800", "\x80", "\x85", "\x9f", "\u2028", "\u2029"])
def test_smtputf8_does_not_allow_everything(char: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        check_mailbox(f"a{char}@b.example", utf8=True)


@given(st.text(alphabet='ab@<>"\\ \r\n\t\0[],;:()é.', max_size=20), st.booleans())
def test_what_passes_is_one_path_of_a_command(address: str, utf8: bool) -> None:
    try:
        passed = check_mailbox(address, utf8=utf8)
    except ValueError:
        return
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', "", passed)
    assert not set("\r\n\0\t") & set(passed)
    assert not set(' <>"\\,;:()') & set(unquoted)
    assert unquoted.count("@") == 1


# -- HELO arguments (RFC 5321 4.1.3) -------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mx.example", "localhost", "a_b-c.example", "[192.0.2.1]", "[IPv6:2001:db8::1]"]
)
def test_host_names(name: str) -> None:
    assert check_host_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "a b", "a\r\n", "a\n", "b\xfccher.example", "[", "[]", "a|b", "x" * 256]
)
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        check_host_name(name)


# -- lines (RFC 5321 2.3.8, 4.5.2) ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", b""),
        (b"a", b"a"),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\nb\rc\r\r\n\n", b"a\r\nb\r\nc\r\n\r\n\r\n"),
        (b"\n.\n", b"\r\n.\r\n"),
        (b"\r", b"\r\n"),
    ],
)
def test_normal_line_ends(data: bytes, lines: bytes) -> None:
    assert normal_line_ends(data) == lines


LINES = st.binary(max_size=60) | st.lists(st.sampled_from([b".", b"\r", b"\n", b"a"])).map(
    b"".join
)


@given(LINES)
def test_after_normal_line_ends_no_cr_or_lf_is_bare(data: bytes) -> None:
    lines = normal_line_ends(data)
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", lines)
    assert normal_line_ends(lines) == lines
    assert re.sub(rb"[\r\n]", b"", lines) == re.sub(rb"[\r\n]", b"", data)


@pytest.mark.parametrize(
    ("plain", "stuffed"),
    [
        (b"", b""),
        (b"a\r\n", b"a\r\n"),
        (b".\r\n", b"..\r\n"),
        (b".a\r\n..\r\nb.\r\n", b"..a\r\n...\r\nb.\r\n"),
        (b"a\r\n.", b"a\r\n.."),
    ],
)
def test_dots(plain: bytes, stuffed: bytes) -> None:
    assert stuff_dots(plain) == stuffed
    assert unstuff_dots(stuffed) == plain


@given(LINES)
@example(b".\r\n.\r\n")
def test_stuffed_lines_never_end_the_message_and_come_back(data: bytes) -> None:
    stuffed = stuff_dots(normal_line_ends(data))
    assert b"." not in stuffed.split(b"\r\n")
    assert unstuff_dots(stuffed) == normal_line_ends(data)


def test_a_dot_that_a_client_did_not_stuff_is_dropped() -> None:
    """RFC 5321 4.5.2: a first dot is deleted whatever follows it."""
    assert unstuff_dots(b".x\r\n") == b"x\r\n"


@given(st.text(alphabet="\r\na", max_size=30).map(str.encode))
def test_line_ends_come_back_as_they_were(lines: bytes) -> None:
    crlf = with_crlf(lines)
    assert crlf == b"\r\n".join(lines.split(b"\n"))
    assert with_lf(crlf) == lines


@given(st.text(alphabet="\r\na", max_size=30).map(str.encode))
def test_only_whole_line_ends_lose_their_cr(lines: bytes) -> None:
    assert with_lf(lines) == b"\n".join(lines.split(b"\r\n"))
