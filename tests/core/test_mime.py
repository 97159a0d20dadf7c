"""The standard library's parser behind caps: bounded, and without exceptions."""

from __future__ import annotations

import encodings
import time
from email.errors import MessageDefect
from email.message import MIMEPart

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailgate import mime
from mailgate.headers import MAX_CODECS, Field, parse_fields
from mailgate.mime import NoCharset, TooComplex, differences, parse


def too_complex(defects: list[MessageDefect]) -> bool:
    return any(isinstance(defect, TooComplex) for defect in defects)


def part(boundary: str, content: bytes, kind: str = "text/plain") -> bytes:
    return b"--%b\r\nContent-Type: %b\r\n\r\n%b\r\n" % (boundary.encode(), kind.encode(), content)


MULTIPART = b"Content-Type: multipart/mixed; boundary=b\r\n"


def test_a_plain_message() -> None:
    mail = parse(b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nTo: Ann <a@b.example>\r\n", b"text\r\n")
    assert mail["subject"] == "Grüße"
    assert mail["to"].addresses[0].addr_spec == "a@b.example"
    assert mail.get_content().strip() == "text"
    assert not mail.defects


def test_a_message_of_parts() -> None:
    body = part("b", b"one") + part("b", b"<p>two", "text/html") + b"--b--\r\n"
    mail = parse(MULTIPART, body)
    kinds = [each.get_content_type() for each in mail.iter_parts()]
    assert kinds == ["text/plain", "text/html"]
    plain = mail.get_body(("plain",))
    assert plain is not None
    assert plain.get_payload() == "one"
    assert not too_complex(mail.defects)


# Each of these makes email.policy.default raise, or take seconds (bpo gh-136063, gh-87075).
HOSTILE = {
    "index error": b"To: <\r\n",
    "index error in a domain": b"To: a@\r\n",
    "attribute error": b"To: a@[\r\n",
    "message id": b"Message-ID: <>\r\n",
    "message id domain": b"Message-ID: <a@[\r\n",
    "nested comments": b"Content-Type: " + b"(" * 300 + b"\r\n",
    "nested comments in an address": b"Cc: " + b"(" * 300 + b"\r\n",
    "groups": b"To: " + b"g:" * 1000 + b"\r\n",
    "semicolons": b"Content-Type: text/plain" + b";" * 12_500 + b"\r\n",
    "phrases": b"Cc: " + b". " * 6000 + b"\r\n",
    "parameters": b"Content-Type: a/b" + b"".join(b"; a%d=b" % n for n in range(3000)) + b"\r\n",
    "encoded words": b"Subject: " + b"=?utf-8?q?a?= " * 3000 + b"\r\n",
    "dots": b"To: " + b"a." * 6000 + b"@b.example\r\n",
    "a bare cr": b"Subject: a\rContent-Type: multipart/mixed\r\n",
    "nul": b"Subject: a\0b\r\n",
    "no text": b"\xff\xfe: \xff\r\n",
    "no field": b"nonsense\r\n",
}


@pytest.mark.parametrize("section", HOSTILE.values(), ids=HOSTILE)
def test_hostile_fields_are_read_as_something(section: bytes) -> None:
    mail = parse(section, b"text\r\n")
    for name in set(mail.keys()):
        assert isinstance(mail[name], str)
    assert mail.get_payload() == "text\r\n"


def test_a_bare_cr_is_no_line_end() -> None:
    mail = parse(b"Subject: a\rContent-Type: multipart/mixed\r\n", b"")
    assert mail.keys() == ["Subject"]
    assert mail.get_content_type() == "text/plain"


DEEP = b"".join(
    b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
    for n in range(mime.MAX_DEPTH + 1)
)
COMPLEX = {
    "parts": (MULTIPART, part("b", b"x") * (mime.MAX_PARTS + 1) + b"--b--\r\n"),
    "depth": (MULTIPART, b"--b\r\n" + DEEP),
    "messages": (
        b"Content-Type: message/rfc822\r\n",
        b"Content-Type: message/rfc822\r\n\r\n" * (mime.MAX_DEPTH + 1),
    ),
    "fields": (b"A: b\r\n" * (mime.MAX_HEADERS + 1), b""),
    "parameters": (b"Content-Type: a/b" + b"; a=b" * (mime.MAX_PARAMETERS + 1) + b"\r\n", b""),
}


@pytest.mark.parametrize(("section", "body"), COMPLEX.values(), ids=COMPLEX)
def test_what_is_over_a_cap_is_noted(section: bytes, body: bytes) -> None:
    mail = parse(section, body)
    assert too_complex(mail.defects)
    assert not mail.is_multipart()


def test_many_lines_in_many_parts_are_not_parsed() -> None:
    """The parser compares each line with the boundary of every part around it."""
    sections = b"".join(
        b"--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n" % (n, n + 1)
        for n in range(80)
    )
    mail = parse(b"Content-Type: multipart/mixed; boundary=b0\r\n", sections + b"x\r\n" * 500_000)
    assert too_complex(mail.defects)
    assert not mail.is_multipart()


@pytest.mark.parametrize("char", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"], ids=ascii)
def test_no_character_of_a_field_becomes_a_line_end(char: str) -> None:
    """`str.splitlines` divides at these, and so would the library when it writes a part."""
    field = f"Content-Type: text/plain\r\nX-Odd: a{char}Bcc: x@y.example\r\n\r\n".encode()
    body = b"--b\r\n" + field + b"x\r\n--b--\r\n"
    mail = parse(MULTIPART, body)
    (only,) = mail.iter_parts()
    only.set_payload("edited")
    try:
        _, edited = differences(fields_of(MULTIPART), body, mail)
    except ValueError:
        return
    assert edited is not None
    assert b"\nBcc" not in edited


@pytest.mark.parametrize("value", ["a\nBcc: x@y.example", "a\rb", "a\r\n\r\nbody"])
def test_a_line_end_is_refused_where_it_is_given(value: str) -> None:
    mail = parse(MULTIPART, part("b", b"x") + b"--b--\r\n")
    (only,) = mail.iter_parts()
    for each in (mail, only):
        with pytest.raises(ValueError, match="linefeed or carriage return"):
            each["X-Bad"] = value


def test_what_is_at_a_cap_is_read() -> None:
    mail = parse(MULTIPART, part("b", b"x") * (mime.MAX_PARTS - 1) + b"--b--\r\n")
    assert len(list(mail.iter_parts())) == mime.MAX_PARTS - 1
    assert not too_complex(mail.defects)


LOOKS = st.lists(
    st.sampled_from(
        [
            *(b"Content-Type: ", b"multipart/mixed", b"; boundary=", b'"b"', b"b", b"--b", b"--"),
            *(b"To: ", b"<", b"@", b"a", b"[", b"(", b"=?utf-8?q?", b"?=", b"\r\n", b" ", b";"),
            *(b"message/rfc822", b"Content-Transfer-Encoding: base64", b"Message-ID: ", b"\xff"),
        ]
    ),
    max_size=40,
).map(lambda words: b"".join(words) + b"\r\n")


@given(LOOKS, LOOKS)
@example(b"Content-Type: multipart/mixed\r\n", b"")
def test_parsing_never_raises(section: bytes, body: bytes) -> None:
    mail = parse(section, body)
    for each in mail.walk():
        assert all(isinstance(value, str) for value in each.values())
    assert differences(tuple(parse_fields(section)), body, mail) == (None, None)


def fields_of(section: bytes) -> tuple[Field, ...]:
    return tuple(parse_fields(section))


def test_a_field_that_cannot_be_written_is_refused() -> None:
    fields = fields_of(b"Subject: x\r\n")
    mail = parse(b"Subject: x\r\n", b"")
    mail._headers.append(("X-Bad", "a\r\nBcc: b@c.example"))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="not a header field that can be written"):
        differences(fields, b"", mail)


def test_the_servers_own_field_stays_where_it_is() -> None:
    own = Field(b"Received: by mx.example\r\n", b"received", trace=True)
    theirs = fields_of(b"Received: from a.example\r\nSubject: x\r\n")
    mail = parse(b"".join(field.raw for field in theirs), b"")
    del mail["Received"]
    new, body = differences((own, *theirs), b"", mail)
    assert new == (own, theirs[1])
    assert body is None


def test_equal_fields_stay_the_ones_they_were() -> None:
    fields = fields_of(b"X: 1\r\nx:1\r\nX: 1\r\n")
    mail = parse(b"X: 1\r\nx:1\r\nX: 1\r\n", b"")
    assert differences(fields, b"", mail) == (None, None)
    mail["X"] = "1"
    new, _ = differences(fields, b"", mail)
    assert new is not None
    assert new[:3] == fields
    assert new[3].raw == b"X: 1\r\n"


def test_parts_can_be_added() -> None:
    mail = parse(b"Subject: x\r\nContent-Type: text/plain\r\n", b"text\r\n")
    mail.add_attachment(b"\x00\xff", maintype="application", subtype="octet-stream")
    fields = fields_of(b"Subject: x\r\nContent-Type: text/plain\r\n")
    new, body = differences(fields, b"text\r\n", mail)
    assert new is not None
    assert body is not None
    again = parse(b"".join(field.raw for field in new), body)
    assert new[0] is fields[0]
    kinds = [each.get_content_type() for each in again.iter_parts()]
    assert kinds == ["text/plain", "application/octet-stream"]
    attachment = next(iter(again.iter_attachments()))
    assert attachment.get_payload(decode=True) == b"\x00\xff"
    assert b"\n" not in body.replace(b"\r\n", b"")


def test_a_text_without_mime_fields_is_kept_beside_an_attachment() -> None:
    mail = parse(b"Subject: x\r\n", b"text\r\n")
    mail.add_attachment("attached\n", filename="a.txt")
    new, body = differences(fields_of(b"Subject: x\r\n"), b"text\r\n", mail)
    assert new is not None
    assert body is not None
    first, second = parse(b"".join(field.raw for field in new), body).iter_parts()
    assert str(first.get_payload()).strip() == "text"
    assert str(second.get_payload()).strip() == "attached"


@pytest.mark.parametrize("kind", ["related", "alternative", "mixed"])
def test_a_text_becomes_the_first_part(kind: str) -> None:
    mail = parse(b"Subject: x\r\n", b"text\r\n")
    getattr(mail, f"make_{kind}")()
    (part,) = mail.iter_parts()
    assert str(part.get_payload()).strip() == "text"
    assert mail["subject"] == "x"


def test_a_copy_that_cannot_be_written_is_refused() -> None:
    mail = parse(b"Subject: x\r\n", b"text\r\n")
    mail.set_payload(5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="the edited message cannot be written"):
        differences(fields_of(b"Subject: x\r\n"), b"text\r\n", mail)


# -- charsets ------------------------------------------------------------------------------------

# Codecs of Python's that are no charset: some raise, whatever the error handler.
NO_CHARSETS = ("idna", "undefined", "punycode", "unicode-escape", "Raw_Unicode_Escape")


def text_of(mail: MIMEPart) -> str:
    return str(mail.get_content())


@pytest.mark.parametrize("charset", NO_CHARSETS)
@pytest.mark.parametrize("parameter", ["charset=%s", 'charset="%s"', "charset*=us-ascii''%s"])
def test_a_charset_that_is_none_is_read_as_ascii(charset: str, parameter: str) -> None:
    body = part("b", b"a\\u0041\xff-b", f"text/plain; {parameter % charset}") + b"--b--\r\n"
    mail = parse(MULTIPART, body)
    (only,) = mail.iter_parts()
    assert text_of(only) == only.get_payload() == "a\\u0041\ufffd-b"
    assert only.get_content_charset() == "us-ascii"
    assert [str(each) for each in mail.defects if isinstance(each, NoCharset)] == [
        f"{charset!r} is no charset"
    ]
    assert not too_complex(mail.defects)


@pytest.mark.parametrize(
    "parameters",
    [
        r'''x="a\\"; y="; charset=punycode; z="''',  # only one of the library's two parsers sees it
        r'''x="a\\"; y="; charset*=utf-8''punycode; z="''',
        "charset*0=puny; charset*1=code",
        'charset="a\0b"',
    ],
)
def test_a_hidden_charset_raises_nothing(parameters: str) -> None:
    body = part("b", b"\xff", f"text/plain; {parameters}") + b"--b--\r\n"
    mail = parse(MULTIPART, body)
    (only,) = mail.iter_parts()
    assert text_of(only) == "\ufffd"
    assert any(isinstance(each, NoCharset) for each in mail.defects)


@pytest.mark.parametrize(
    ("content_type", "text"),
    [
        ("text/plain", "gr\ufffdn"),
        ("text/plain; charset=iso-8859-1", "gr\xfcn"),
        ("text/plain; charset=Windows-1252", "gr\xfcn"),
        ("text/plain; charset=utf-8", "gr\ufffdn"),
    ],
)
def test_a_charset_of_mail_is_used(content_type: str, text: str) -> None:
    mail = parse(f"Content-Type: {content_type}\r\n".encode(), b"gr\xfcn")
    assert text_of(mail) == text
    assert not mail.defects


def test_a_charset_that_nobody_knows_is_for_the_policy() -> None:
    """It is a LookupError of the library's, as its documentation has it."""
    mail = parse(b"Content-Type: text/plain; charset=x-none\r\n", b"\xff")
    with pytest.raises(LookupError):
        mail.get_content()
    assert not mail.defects


def test_charsets_that_nobody_knows_are_not_remembered() -> None:
    """The library looks up what stands in any field, and keeps every name for ever."""
    words = b"".join(b" =?x%d?q?a?=" % number for number in range(200))
    for number in range(10):
        mail = parse(b"Subject:" + words.replace(b"x", b"y%d" % number) + b"\r\n", b"")
        assert isinstance(mail["subject"], str)
    parse(b"", b"")
    assert len(vars(encodings)["_cache"]) <= MAX_CODECS


@pytest.mark.parametrize("charset", [*NO_CHARSETS, "x-none", "utf-8", "utf-16"])
def test_a_part_that_nobody_changed_leaves_as_it_came(charset: str) -> None:
    odd = part("b", b"a\xff-\\u0041", f"text/plain; charset={charset}")
    body = odd + part("b", b"before") + b"--b--\r\n"
    mail = parse(MULTIPART, body)
    assert differences(fields_of(MULTIPART), body, mail) == (None, None)
    _, last = mail.iter_parts()
    last.set_payload("after")
    assert differences(fields_of(MULTIPART), body, mail) == (
        None,
        body.replace(b"before", b"after"),
    )


def test_octets_that_read_alike_are_an_edit() -> None:
    section = b"Content-Type: text/plain; charset=utf-8\r\n"
    mail = parse(section, b"\xff\r\n")
    mail.set_payload(b"\xfe\r\n")
    assert differences(fields_of(section), b"\xff\r\n", mail) == (None, b"\xfe\r\n")


@pytest.mark.parametrize("content", [b"\xff-" + b"a" * 400_000, b"ab9" * 200_000])
def test_reading_and_writing_by_charset_is_linear(content: bytes) -> None:
    """Python's punycode takes quadratic time for either of them."""
    body = part("b", content, "text/plain; charset=punycode") + b"--b--\r\n"
    began = time.process_time()
    mail = parse(MULTIPART, body)
    (only,) = mail.iter_parts()
    assert len(text_of(only)) == len(content)
    assert differences(fields_of(MULTIPART), body, mail) == (None, None)
    assert time.process_time() - began < 5
