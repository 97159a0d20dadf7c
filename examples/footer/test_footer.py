"""Run with: pytest examples/footer"""

from __future__ import annotations

import base64
import quopri
from pathlib import Path

import pytest

from examples.footer.footer import policy
from mailgate.testing import send

MESSAGES = Path(__file__).parents[1] / "messages"
FOOTER = "-- \nExample Ltd"


def mail(
    body: bytes, *, kind: bytes = b"text/plain; charset=utf-8", encoding: bytes = b"8bit"
) -> bytes:
    """Return a message with this body."""
    return (
        b"Subject: hello\r\n"
        b"X-Mailer: Example 1.0\r\n"
        b"Content-Type: " + kind + b"\r\n"
        b"Content-Transfer-Encoding: " + encoding + b"\r\n"
        b"\r\n" + body
    )


def test_header_fields_are_edited_and_the_others_kept(adapter: str) -> None:
    raw = (
        b"Subject:  two  blanks,\r\n\tand a fold\r\n"
        b"x-mailer: Example 1.0\r\n"
        b"List-Id: <old.example.org>\r\n"
        b"X-Mailer: another\r\n"
        b"To: <ann@example.org>\r\n"
        b"\r\n"
        b"body \x80\xff\r\n.\r\nend\r\n"
    )
    edited = policy(text="", list_id="<staff.example.org>")
    outcome = send(edited, raw, adapter=adapter)
    assert outcome.raw == (
        b"Subject:  two  blanks,\r\n\tand a fold\r\n"
        b"List-Id: <staff.example.org>\r\n"
        b"To: <ann@example.org>\r\n"
        b"\r\n"
        b"body \x80\xff\r\n.\r\nend\r\n"
    )
    assert [str(change) for change in outcome.changes] == [
        "- header X-Mailer",
        "~ header List-Id: <staff.example.org>",
    ]


def test_the_footer_of_the_invoice(adapter: str) -> None:
    raw = (MESSAGES / "invoice.eml").read_bytes().replace(b"\n", b"\r\n")
    outcome = send(policy(text="-- \nGrüße"), raw, adapter=adapter)
    assert outcome.headers["X-Footer"] == "added"
    assert "X-Mailer" not in outcome.headers
    assert outcome.body == raw.partition(b"\r\n\r\n")[2] + "\r\n-- \r\nGrüße\r\n".encode()


def test_text_without_mime_fields() -> None:
    outcome = send(policy(text=FOOTER), b"Subject: plain\r\n\r\nHello.\r\n")
    assert outcome.body == b"Hello.\r\n\r\n-- \r\nExample Ltd\r\n"


def test_quoted_printable() -> None:
    body = b"Gr=C3=BC=C3=9Fe\r\n"
    outcome = send(policy(text="-- \n=ß"), mail(body, encoding=b"quoted-printable"))
    assert outcome.body.startswith(body)
    text = quopri.decodestring(outcome.body).decode()
    assert text.splitlines() == ["Grüße", "", "-- ", "=ß"]
    assert b"--=20\r\n" in outcome.body


def test_base64() -> None:
    body = base64.encodebytes("Grüße\r\n".encode("latin-1"))
    raw = mail(body, kind=b"text/plain; charset=iso-8859-1", encoding=b"BASE64")
    outcome = send(policy(text="-- \nß"), raw)
    assert base64.b64decode(outcome.body).decode("latin-1") == "Grüße\r\n\r\n-- \r\nß\r\n"
    assert max(map(len, outcome.body.split(b"\r\n"))) <= 76


@pytest.mark.parametrize(
    ("kind", "encoding", "text"),
    [
        (b"multipart/signed; boundary=B; protocol=x; micalg=y", b"7bit", FOOTER),
        (b"multipart/alternative; boundary=B", b"8bit", FOOTER),
        (b"text/html", b"8bit", FOOTER),
        (b"text/plain\r\nContent-Disposition: attachment; filename=a.txt", b"8bit", FOOTER),
        (b"text/plain; charset=utf-8", b"7bit", "-- \nß"),
        (b"text/plain; charset=iso-8859-1", b"8bit", "-- \n€"),
        (b"text/plain; charset=utf-16", b"8bit", FOOTER),
        (b"text/plain; charset=nonsense", b"8bit", FOOTER),
        (b"text/plain", b"base64", FOOTER),  # and the body is none
        (b"text/plain", b"x-uuencode", FOOTER),
    ],
)
def test_what_a_footer_would_break_is_left(
    kind: bytes, encoding: bytes, text: str, adapter: str
) -> None:
    body = b"--B\r\n\r\nsigned \r\n\x80\r\n.x\r\n--B--\r\n"
    outcome = send(policy(text=text), mail(body, kind=kind, encoding=encoding), adapter=adapter)
    assert outcome.accepted
    assert outcome.body == body
    assert "X-Footer" not in outcome.headers
    assert "X-Mailer" not in outcome.headers


def test_without_a_footer_no_body_is_read() -> None:
    assert {handler.stage for handler in policy(text="").handlers} == {"headers"}
