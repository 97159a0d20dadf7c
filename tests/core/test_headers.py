"""Header fields: read from any octets, edited without touching the others."""

from __future__ import annotations

import encodings
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailgate.headers import (
    MAX_CODECS,
    MAX_DECODED,
    MAX_VALUE,
    Field,
    Headers,
    Section,
    continues_section,
    decode_value,
    encode_field,
    join,
    parse_fields,
)

SECTION = (
    b"Received: from a.example by b.example;\r\n\tSat, 21 Nov 2026 10:00:00 +0000\r\n"
    b"From: Ann <ann@example.org>\r\n"
    b"SUBJECT: first\r\n"
    b"DKIM-Signature: v=1; a=rsa-sha256;\r\n  b=abc\r\n\tdef\r\n"
    b"subject : second\r\n"
)


def apply(sign: str, text: str, edit: Callable[[], None]) -> None:
    """Allow every edit, as a handler of `headers` is."""
    edit()


def headers(section: bytes = SECTION) -> Headers:
    return Headers(Section.of(parse_fields(section)), apply)


def section_lines() -> st.SearchStrategy[bytes]:
    """Return sections of any octets, among them many that look like fields."""
    words = st.sampled_from(
        [b"A", b"B: x", b":", b" ", b"\t", b"\r\n", b"\r\n ", b"\n", b"\r", b"\0", b"\xff", b"=?"]
    )
    looks = st.lists(words, max_size=30).map(b"".join)
    return (st.binary(max_size=200) | looks).map(lambda octets: octets + b"\r\n")


# -- reading -------------------------------------------------------------------------------------


def test_fields_in_order() -> None:
    fields = parse_fields(SECTION)
    assert [f.name for f in fields] == [
        *(b"received", b"from", b"subject", b"dkim-signature", b"subject")
    ]
    assert [f.original_name for f in fields][2:] == [b"SUBJECT", b"DKIM-Signature", b"subject"]
    assert fields[3].raw == b"DKIM-Signature: v=1; a=rsa-sha256;\r\n  b=abc\r\n\tdef\r\n"
    assert fields[3].content == b"v=1; a=rsa-sha256;\r\n  b=abc\r\n\tdef"
    assert fields[4].content == b"second"


@given(section_lines())
@example(b"")
@example(b"\r\n")
@example(b"A: b\r\n\r\n")
@example(b" starts with a blank\r\n")
@example(b"A: b\r\n \r\nC: d\r\n")
def test_no_octet_is_lost(section: bytes) -> None:
    assert b"".join(field.raw for field in parse_fields(section)) == section


@given(section_lines())
def test_reading_never_raises(section: bytes) -> None:
    fields = headers(section)
    names = {field.original_name.decode("latin-1") for field in fields.fields} | {
        "",
        "\udc80",
        "é",
    }
    for name in names:
        values = fields.get_all(name)
        assert len(values) == len(fields.raw(name))
        assert fields.get(name) == (values[0] if values else None)
        assert (name in fields) == bool(values)
    assert len(list(fields)) == len(fields)
    assert bytes(fields) == section


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"no colon", b""),
        (b": no name", b""),
        (b"a b: c", b""),
        (b"\xc3\xa9: c", b""),
        (b">From a@b", b""),
        (b"X-A:", b"x-a"),
        (b"X-A\t : c", b"x-a"),
    ],
)
def test_what_is_a_field(line: bytes, name: bytes) -> None:
    (field,) = parse_fields(line + b"\r\n")
    assert field.name == name
    assert field.original_name == line[: len(name)]
    if not name:
        assert field.content == b""


def test_only_crlf_divides_fields() -> None:
    (field,) = parse_fields(b"A: b\nC: d\rE: f\r\n")
    assert field.name == b"a"


def test_reading_can_stop_early() -> None:
    section = b"".join(b"A%d: x\r\n" % n for n in range(100))
    assert [f.name for f in parse_fields(section, 3)] == [b"a0", b"a1", b"a2"]
    assert len(parse_fields(section, 100)) == len(parse_fields(section, 101)) == 100


@pytest.mark.parametrize(
    ("line", "first", "belongs"),
    [
        (b"", True, False),
        (b"", False, False),
        (b"Subject: x", True, True),
        (b"Subject: x", False, True),
        (b" folded", False, True),
        (b"\tfolded", False, True),
        (b" folded", True, False),
        (b"text", True, False),
        (b"text", False, False),
        (b"From ann@example.org Sat Nov 21", True, True),
        (b">From ann@example.org", True, True),
        (b"From ann@example.org Sat Nov 21", False, False),
        (b"two words: x", False, False),
    ],
)
def test_where_a_section_ends(line: bytes, first: bool, belongs: bool) -> None:
    assert continues_section(line, first) is belongs


def test_a_multi_map_with_names_in_any_case() -> None:
    fields = headers()
    assert fields["subject"] == fields["SUBJECT"] == "first"
    assert fields.get_all("Subject") == ["first", "second"]
    assert fields.raw("subject") == [b"first", b"second"]
    assert fields.get("X-None") is None
    assert fields.get("X-None", "-") == "-"
    assert "from" in fields
    assert "X-None" not in fields
    assert 5 not in fields
    assert len(fields) == 5
    assert [name for name, _ in fields] == [
        *("Received", "From", "SUBJECT", "DKIM-Signature", "subject")
    ]
    with pytest.raises(KeyError):
        fields["X-None"]
    assert repr(fields) == "<Headers: 5 fields>"


def test_folded_values_are_unfolded() -> None:
    assert headers()["dkim-signature"] == "v=1; a=rsa-sha256;  b=abc\tdef"


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoded", "text"),
    [  # RFC 2047 8
        (b"=?ISO-8859-1?Q?a?=", "a"),
        (b"=?ISO-8859-1?Q?a?= b", "a b"),
        (b"=?ISO-8859-1?Q?a?= =?ISO-8859-1?Q?b?=", "ab"),
        (b"=?ISO-8859-1?Q?a?=  =?ISO-8859-1?Q?b?=", "ab"),
        (b"=?ISO-8859-1?Q?a?=\r\n    =?ISO-8859-1?Q?b?=", "ab"),
        (b"=?ISO-8859-1?Q?a_b?=", "a b"),
        (b"=?ISO-8859-1?Q?a?= =?ISO-8859-2?Q?_b?=", "a b"),
        (b"=?US-ASCII?Q?Keith_Moore?= <moore@cs.utk.edu>", "Keith Moore <moore@cs.utk.edu>"),
        (b"=?ISO-8859-1?Q?Keld_J=F8rn_Simonsen?= <k@d.dk>", "Keld Jørn Simonsen <k@d.dk>"),
        (b"=?ISO-8859-1?Q?Andr=E9?= Pirard <p@v.be>", "André Pirard <p@v.be>"),
        (
            b"=?ISO-8859-1?B?SWYgeW91IGNhbiByZWFkIHRoaXMgeW8=?=\r\n "
            + b"=?ISO-8859-2?B?dSB1bmRlcnN0YW5kIHRoZSBleGFtcGxlLg==?=",
            "If you can read this you understand the example.",
        ),
    ],
)
def test_encoded_words(encoded: bytes, text: str) -> None:
    assert decode_value(encoded) == text


def test_charsets_that_nobody_knows_are_not_remembered() -> None:
    """Python's own look-up keeps every name for ever, and a client may choose thousands."""
    for number in range(3 * MAX_CODECS):
        assert decode_value(b"=?x%d?q?=E9?=" % number) == "é"
        assert len(vars(encodings)["_cache"]) <= MAX_CODECS + 1
    assert decode_value(b"=?iso-8859-15?q?=A4?=") == "€"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", ""),
        ("Grüße".encode(), "Grüße"),
        (b"Gr\xfc\xdfe", "Grüße"),
        ("Grüße € =?utf-8?q?a?=".encode(), "Grüße € a"),
        (b"Gr\xfc\xdfe =?utf-8?q?a?=", "Grüße a"),
        (b"\\u20ac =?utf-8?q?a?=", "\\u20ac a"),
        (b"a\0b", "a b"),
        (b"a\nb", "a b"),
        (b"a\rb", "a b"),
        (b"=?utf-8?q?a=0D=0ABcc:_x=00?=", "a  Bcc: x "),
        (b"=?utf-8?q?=FF?=", "\ufffd"),
        (b"=?bogus?q?=E9?=", "é"),
        (b"=?Punycode?q?=E9-a?=", "é-a"),
        (b"=?undefined?q?a?=", "a"),
        (b"=?utf-8?b?A?=", "=?utf-8?b?A?="),
        (b"=?utf-8?x?a?=", "=?utf-8?x?a?="),
        (b"=?utf-8?q?unclosed", "=?utf-8?q?unclosed"),
    ],
)
def test_values_that_are_not_as_they_should_be(content: bytes, text: str) -> None:
    assert decode_value(content) == text


@pytest.mark.parametrize(
    "codec",
    [
        *("idna", "punycode", "unicode_escape", "unicode-escape", "raw_unicode_escape"),
        *("undefined", "rot13", "zlib", "hex", "base64", "bz2", "", "utf-8*en", "x" * 200),
    ],
)
def test_codecs_that_are_no_character_set_are_not_run(codec: str) -> None:
    assert decode_value(f"=?{codec}?q?a=5Cx41?=".encode()) in (
        "a\\x41",
        f"=?{codec}?q?a=5Cx41?=",
    )


def test_decoding_stops_where_it_would_cost_too_much() -> None:
    words = b"=?utf-8?q?a?= " * (MAX_DECODED // 14 + 1)
    assert len(words) > MAX_DECODED
    assert decode_value(words) == words.decode()


@given(
    st.binary(max_size=100)
    | st.text(alphabet="=?utf-8qQbB_ aZ0\r\n\t", max_size=60).map(str.encode)
)
@example(b"=?utf-8?b?" + b"=" * 50 + b"?=")
def test_no_value_breaks_a_line(content: bytes) -> None:
    assert not re.search(r"[\r\n\0]", decode_value(content))


# -- making a field ------------------------------------------------------------------------------


def unfolded(raw: bytes) -> str:
    """Return a field's line as RFC 5322 2.2.3 unfolds it."""
    assert raw.endswith(b"\r\n")
    return re.sub(rb"\r\n(?=[ \t])", b"", raw.removesuffix(b"\r\n")).decode("ascii")


def is_one_field(raw: bytes) -> bool:
    """Tell whether octets are one field that a mail server reads as such."""
    first, *more = raw.removesuffix(b"\r\n").split(b"\r\n")
    return (
        raw.endswith(b"\r\n")
        and not re.search(rb"[\0\x80-\xff]|\r(?!\n)|(?<!\r)\n", raw)
        and re.match(rb"[!-9;-~]+:", first) is not None
        and all(line[:1] in (b" ", b"\t") and line.strip(b" \t") for line in more)
    )


@pytest.mark.parametrize(
    ("name", "value", "raw"),
    [
        ("X-A", "b", b"X-A: b\r\n"),
        ("X-A", "", b"X-A: \r\n"),
        ("X-A", "a\r\n b", b"X-A: a\r\n b\r\n"),
        ("X-A", "a\n\tb\n", b"X-A: a\r\n\tb\r\n"),
        ("X-A", "a\tb", b"X-A: a\tb\r\n"),
        ("Subject", "Grüße", b"Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n"),
    ],
)
def test_encode_field(name: str, value: str, raw: bytes) -> None:
    assert encode_field(name, value) == raw


@given(
    name=st.text(
        alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1
    ).filter(lambda name: ":" not in name),
    value=st.text(
        alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.just("\t"),
        max_size=90,
    ),
)
@example("X", "x" * 75)
@example("X", "x" * 76)
@example("X" * 40, "x" * 36)
@example("X", " a")
@example("X", "a ")
@example("X", "a  b")
@example("X", "")
@example("X", " ")
@example("X", "a\tb")
def test_what_fits_one_line_is_written_in_one(name: str, value: str) -> None:
    """RFC 5322 2.1.1 and 2.2: a name, a colon, the body, CRLF; 78 characters without CRLF."""
    line = f"{name}: {value}"
    if len(line) <= 78:
        assert encode_field(name, value) == line.encode("ascii") + b"\r\n"
    else:
        assert unfolded(encode_field(name, value)) == line


ASCII_VALUES = st.text(
    alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.just("\t"), max_size=300
)


@given(ASCII_VALUES)
@example("word " * 60)
@example("x" * 200)
@example(" a" + " " * 100 + "b")
@example("a " + "x" * 77 + " " + "y" * 77)
@example(" " * 100)
def test_folding_unfolds_to_the_same_text(value: str) -> None:
    raw = encode_field("X-Name", value)
    assert unfolded(raw) == f"X-Name: {value}"
    assert all(line.strip() for line in raw.splitlines())


@given(st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=70), max_size=30))
@example(["a"] * 38)  # 78 octets
@example(["a"] * 37 + ["bb"])  # 79
@example(["a"] * 39)
def test_lines_are_folded_at_78_octets(words: list[str]) -> None:
    raw = encode_field("X", " ".join(words))
    assert all(len(line) <= 78 for line in raw.split(b"\r\n"))


TEXTS = st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=120)


@given(TEXTS)
@example("é" * 100)
@example("a" * 60 + "€" * 40)
@example("é =?utf-8?q?x?=")
def test_any_text_is_read_back_as_it_was_written(value: str) -> None:
    (field,) = parse_fields(encode_field("Subject", value))
    if "=?" not in value:
        assert decode_value(field.content).strip(" ") == value.strip(" ")
    assert is_one_field(field.raw)


@pytest.mark.parametrize("char", ["\x85", "\u2028", "\u2029"], ids=ascii)
def test_a_separator_of_unicode_is_kept_or_refused(char: str) -> None:
    """`str.splitlines` takes them for line ends; mail does not."""
    try:
        raw = encode_field("Subject", f"é{char}b")
    except ValueError:
        return
    (field,) = parse_fields(raw)
    assert decode_value(field.content) == f"é{char}b"


@given(st.text(alphabet="ab :\r\n\t\0é\x7f\u2028\udc80", max_size=30))
@example("a\n \n b")
@example("a\n\t")
@example("a\n ")
@example("\n b")
def test_whatever_is_written_is_one_field(value: str) -> None:
    try:
        raw = encode_field("X-A", value)
    except ValueError:
        return
    assert is_one_field(raw)
    assert len(parse_fields(raw)) == 1


@pytest.mark.parametrize(
    "value",
    [
        *("a\nBcc: b@c.example", "a\r\nBcc: b@c.example", "a\rBcc: b", "a\r\n\r\nbody", "\nX: y"),
        *("a\n\n b", "a\0b", "a\x7fb", "a\x1bb", "é\nBcc: x", "a\x0bb", "a\x0cb"),
    ],
    ids=ascii,
)
def test_injection_is_refused(value: str) -> None:
    for edit in (headers().add, headers().prepend, headers().__setitem__):
        with pytest.raises(ValueError, match="line end or a control character"):
            edit("X-A", value)


@pytest.mark.parametrize(
    "name", ["", "a b", "a:", "a\r\nb", "a\n", " a", "é", "\udc80", "a\0"], ids=ascii
)
def test_a_name_is_a_token(name: str) -> None:
    for edit in (headers().add, headers().prepend, headers().__setitem__):
        with pytest.raises(ValueError, match="is not a header field name"):
            edit(name, "x")


@pytest.mark.parametrize(("name", "value"), [(b"A", "b"), ("A", b"b"), ("A", 5), ("A", None)])
def test_names_and_values_are_text(name: object, value: object) -> None:
    with pytest.raises(TypeError, match="must be str"):
        encode_field(name, value)  # type: ignore[arg-type]


def test_a_value_has_a_limit() -> None:
    assert encode_field("A", "x" * MAX_VALUE)
    with pytest.raises(ValueError, match="over 102400 octets"):
        encode_field("A", "x" * (MAX_VALUE + 1))


# -- editing -------------------------------------------------------------------------------------


def without(section: bytes, *names: bytes) -> bytes:
    return b"".join(f.raw for f in parse_fields(section) if f.name not in names)


def test_setting_changes_the_first_and_drops_the_others() -> None:
    fields = headers()
    fields["Subject"] = "third"
    assert fields.get_all("subject") == ["third"]
    assert bytes(fields) == SECTION.replace(b"SUBJECT: first", b"SUBJECT: third").replace(
        b"subject : second\r\n", b""
    )


@pytest.mark.parametrize("spelled", [b"SUBJECT", b"sUBJECt", b"Subject"])
@pytest.mark.parametrize("space", [b"", b" ", b"\t "])
def test_setting_keeps_the_spelling_of_the_name(spelled: bytes, space: bytes) -> None:
    """Sendmail changes the value of a field that it finds by its name, and leaves the name."""
    fields = headers(b"A: b\r\n" + spelled + space + b": old\r\nSubject: other\r\nC: d\r\n")
    fields["subjecT"] = "new"
    assert bytes(fields) == b"A: b\r\n" + spelled + b": new\r\nC: d\r\n"
    assert [name for name, _ in fields] == ["A", spelled.decode(), "C"]
    assert fields["SUBJECT"] == "new"


def test_setting_what_was_deleted_spells_it_anew() -> None:
    fields = headers(b"SUBJECT: old\r\n")
    del fields["Subject"]
    fields["Subject"] = "new"
    assert bytes(fields) == b"Subject: new\r\n"


def test_setting_adds_what_is_missing() -> None:
    fields = headers()
    fields["X-New"] = "value"
    assert bytes(fields) == SECTION + b"X-New: value\r\n"


def test_deleting_drops_every_field_of_the_name() -> None:
    fields = headers()
    del fields["SUBJECT"]
    assert bytes(fields) == without(SECTION, b"subject")
    del fields["Subject"]
    assert bytes(fields) == without(SECTION, b"subject")


def test_adding_at_both_ends() -> None:
    fields = headers()
    fields.add("Subject", "bottom")
    fields.prepend("Subject", "top")
    assert bytes(fields) == b"Subject: top\r\n" + SECTION + b"Subject: bottom\r\n"
    assert fields.get_all("Subject") == ["top", "first", "second", "bottom"]


NAMES = st.sampled_from(["A", "B", "From", "Subject"])
EDITS = st.lists(st.tuples(st.sampled_from(["set", "del", "add", "prepend"]), NAMES), max_size=6)


@given(section_lines().filter(lambda section: section[:1] not in (b" ", b"\t")), EDITS)
def test_edits_touch_nothing_but_what_they_name(
    section: bytes, edits: list[tuple[str, str]]
) -> None:
    fields = headers(section)
    for edit, name in edits:
        match edit:
            case "set":
                fields[name] = "new"
            case "del":
                del fields[name]
            case "add":
                fields.add(name, "new")
            case "prepend":
                fields.prepend(name, "new")
    named = [name.lower().encode() for _, name in edits]
    assert without(bytes(fields), *named) == without(section, *named)


def test_prepending_does_not_end_the_section() -> None:
    """An mbox line may come first, and only there."""
    fields = headers(b"From ann@example.org Sat Nov 21 10:00:00 2026\r\nSubject: x\r\n")
    fields.prepend("X-A", "1")
    lines = bytes(fields).split(b"\r\n")[:-1]
    assert sorted(line.partition(b":")[0] for line in lines)[1:] == [b"Subject", b"X-A"]
    assert all(continues_section(line, at == 0) for at, line in enumerate(lines))


def test_edits_are_told_before_they_are_made() -> None:
    told: list[tuple[str, str]] = []

    def refuse(sign: str, text: str, edit: Callable[[], None]) -> None:
        told.append((sign, text))
        raise RuntimeError

    fields = Headers(Section.of(parse_fields(SECTION)), refuse)
    edits: list[Callable[[], None]] = [
        lambda: fields.add("X", "1"),
        lambda: fields.prepend("X", "2"),
        lambda: fields.__setitem__("From", "3"),
        lambda: fields.__delitem__("From"),
    ]
    for edit in edits:
        with pytest.raises(RuntimeError):
            edit()
    assert told == [
        ("+", "header X: 1"),
        ("+", "header X: 2 (on top)"),
        ("~", "header From: 3"),
        ("-", "header From"),
    ]
    assert bytes(fields) == SECTION


# -- the server's own field ----------------------------------------------------------------------


def traced() -> Headers:
    """Return a section on top of which the server put a Received field of its own."""
    own = Field(b"Received: by mx.example\r\n", b"received", trace=True)
    return Headers(Section.of([own, *parse_fields(SECTION)]), apply)


def test_the_servers_own_field_is_shown_to_nobody() -> None:
    fields = traced()
    assert bytes(fields) == SECTION
    assert len(fields) == len(list(fields)) == 5
    assert len(fields.get_all("Received")) == 1
    assert len(fields.fields) == 6


def test_the_servers_own_field_is_edited_by_nobody() -> None:
    fields = traced()
    own = fields.fields[0]
    del fields["Received"]
    fields["Received"] = "new"
    fields.prepend("X-Top", "1")
    assert own in fields.fields
    assert fields.fields[0].raw == b"X-Top: 1\r\n"
    assert fields.fields[1] is own


def test_join_leaves_the_servers_own_field_out_unless_asked() -> None:
    own = Field(b"Received: x\r\n", b"received", trace=True)
    fields = (own, *parse_fields(b"A: b\r\n"))
    assert join(fields, b"\r\n", trace=False) == b"A: b\r\n\r\n"
    assert join(fields, b"\r\n", trace=True) == b"Received: x\r\nA: b\r\n\r\n"
    assert join(fields, b"", trace=False) == b"A: b\r\n"
