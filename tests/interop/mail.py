"""Messages to send: complete enough that smtpd has nothing to mend in them.

smtpd adds Date and Message-ID where they lack, completes addresses without a domain and
drops Bcc on its way to the queue, after its filters; that would be taken for a filter's work.
"""

from __future__ import annotations

_HEADER = (
    b"Date: Fri, 02 Jan 2026 10:00:00 +0000\r\n"
    b"Message-ID: <letter@client.example.org>\r\n"
    b"From: Alice <alice@example.org>\r\n"
    b"To: Bob <bob@example.test>\r\n"
)


def letter(body: bytes, *, subject: bytes = b"a letter") -> bytes:
    """Return a plain message with this body; its lines end in CRLF."""
    return _HEADER + b"Subject: " + subject + b"\r\n\r\n" + body


def delivered(content: bytes) -> bytes:
    """Return what a maildir holds of a message that nothing has changed."""
    return content.replace(b"\r\n", b"\n")


FIELDS = (
    b"Date: Fri, 02 Jan 2026 10:00:00 +0000",
    b"Message-ID: <difficult@client.example.org>",
    b'From: "Alice, A." <alice@example.org>',
    b"To: Bob <bob@example.test>,\r\n\tCarol  <carol@example.test>",
    b"X-Twice: the first",
    b"Subject:no blank, then folded\r\n  twice\r\n\t and with a tab ",
    b"X-Empty:",
    b"X-Latin: caf\xe9 \xff",
    b"x-odd-CASE  : a blank before the colon",
    b"x-twice: the second,\r\n folded",
    b"X-Long: " + b"a" * 1800,
    b"DKIM-Signature: v=1; a=rsa-sha256;   c=simple/simple;\r\n\tbh=abc=;  b=def=",
)

BODY = b"\r\n".join(
    (
        b".",
        b"..",
        b"...",
        b".a leading dot",
        b". ",
        b" .",
        b"",
        b"trailing blanks   ",
        b"a trailing tab\t",
        b"   ",
        b"8 bit \xe4\xf6\xfc \xff\x80, a line separator \xe2\x80\xa8, NEL \xc2\x85, U+0085 alone \x85",
        b"form\x0cfeed, vertical\x0btab, separators \x1c\x1d\x1e, escape \x1b",
        b"a bare\rCR",
        b"\rone at the start",
        b"filter-dataline|0|0|.",
        b"From here on, not mangled",
        b"x" * 1899,
        b"y" * 998,
        b"",
        b"",
        b"the end",
        b"",
    )
)


def difficult(*fields: bytes, body: bytes = BODY) -> bytes:
    """Return a message that a careless filter damages, with these header fields."""
    return b"\r\n".join((*fields, b"", body))


DIFFICULT = difficult(*FIELDS)


# What Postfix and Sendmail leave alone: no bare CR, no line over 990 octets, no blank before a
# colon, no address that they could write more prettily.
PLAIN_FIELDS = (
    b"Date: Fri, 02 Jan 2026 10:00:00 +0000",
    b"Message-ID: <plain@client.example.org>",
    b"From: Alice <alice@example.org>",
    b"To: Bob <bob@example.test>",
    b"X-Twice: the first",
    b"Subject:no blank, then folded\r\n  twice\r\n\t and with a tab ",
    b"X-Empty:",
    b"X-Tab:\ttabbed",
    b"X-Latin: caf\xe9 \xff",
    b"x-twice: the second,\r\n folded",
    b"X-Long: " + b"a" * 900,
    b"DKIM-Signature: v=1; a=rsa-sha256;   c=simple/simple;\r\n\tbh=abc=;  b=def=",
)

PLAIN_BODY = b"\r\n".join(
    (
        *(b".", b"..", b"...", b".a leading dot", b". ", b" .", b""),
        *(b"trailing blanks   ", b"a trailing tab\t", b"   "),
        b"8 bit \xe4\xf6\xfc \xff\x80, a line separator \xe2\x80\xa8, NEL \xc2\x85 and \x85 alone",
        b"form\x0cfeed, vertical\x0btab, separators \x1c\x1d\x1e, escape \x1b",
        b"From here on, not mangled",
        b"x" * 980,
        *(b"", b"", b"the end", b""),
    )
)

PLAIN = difficult(*PLAIN_FIELDS, body=PLAIN_BODY)
