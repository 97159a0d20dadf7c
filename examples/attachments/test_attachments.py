"""Run with: pytest examples/attachments"""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.attachments.attachments import policy
from mailgate.testing import send

MESSAGES = Path(__file__).parents[1] / "messages"
REFUSED = "550 5.7.1 we take no attachments named *.exe"


def mail(*parts: bytes, kind: bytes = b"multipart/mixed; boundary=B") -> bytes:
    """Return a message with these parts."""
    body = b"".join(b"--B\r\n" + part + b"\r\n\r\ncontent\r\n" for part in parts)
    return b"MIME-Version: 1.0\r\nContent-Type: " + kind + b"\r\n\r\n" + body + b"--B--\r\n"


def attached(disposition: str, kind: str = "application/octet-stream") -> bytes:
    """Return the fields of a part."""
    return f"Content-Type: {kind}\r\nContent-Disposition: {disposition}".encode()


def test_a_program_is_refused(adapter: str) -> None:
    outcome = send(policy(), (MESSAGES / "program.eml").read_bytes(), adapter=adapter)
    assert outcome.reply == REFUSED
    assert outcome.by == "attachments.refuse"


def test_an_invoice_passes_untouched(adapter: str) -> None:
    raw = (MESSAGES / "invoice.eml").read_bytes().replace(b"\n", b"\r\n")
    outcome = send(policy(), raw, adapter=adapter)
    assert outcome.accepted
    assert outcome.raw == raw


@pytest.mark.parametrize(
    "disposition",
    [
        'attachment; filename="program.exe"',
        "attachment; filename=program.exe",
        "attachment; filename=my program.exe",
        'attachment; filename="PROGRAM.EXE"',
        'attachment; filename="invoice.pdf.exe"',
        'attachment; filename="program.exe. . "',
        'attachment; filename="program.exe\u200b"',
        'attachment; filename="\u202efdp.exe"',
        'attachment; filename="program.exe',
        'attachment; filename="program\\.exe"',
        'attachment;\r\n filename="program\r\n .exe"',
        "attachment; filename*=utf-8''program%2Eexe",
        "attachment; filename*=utf-8'en'it%27s.exe",
        'attachment; filename*0="program."; filename*1="exe"',
        'attachment; filename*1="exe"; filename*0="program."',
        "attachment; filename*0*=utf-8''program%2E; filename*1=exe",
        'attachment; filename="=?utf-8?B?cHJvZ3JhbS5leGU=?="',
        "attachment; filename==?utf-8?Q?program=2Eexe?=",
        "attachment; filename=\"note.txt\"; filename*=utf-8''program.exe",
        "attachment; filename=note.txt; filename=program.exe",
        "attachment; note=" + "x" * 1100 + "; filename=program.exe",
        "inline; filename=program.exe",
    ],
)
def test_names_in_every_form(disposition: str, adapter: str) -> None:
    outcome = send(policy(), mail(attached(disposition)), adapter=adapter)
    assert outcome.reply == REFUSED


@pytest.mark.parametrize(
    "part",
    [
        attached("attachment", 'application/octet-stream; name="program.exe"'),
        attached("attachment; filename=note.txt", "text/plain; name=program.exe"),
        attached("attachment; filename=note.txt\r\nContent-Disposition: x; name=program.exe"),
    ],
)
def test_every_name_of_a_part_counts(part: bytes) -> None:
    assert send(policy(), mail(part)).reply == REFUSED


def test_a_message_that_is_itself_a_program() -> None:
    raw = b"Content-Type: application/octet-stream; name=program.exe\r\n\r\ncontent\r\n"
    assert send(policy(), raw).reply == REFUSED


def test_a_program_behind_many_parts_and_in_an_attached_message() -> None:
    other = attached("attachment; filename=note.txt")
    program = attached("attachment; filename=program.exe")
    assert send(policy(), mail(*[other] * 200, program)).reply == REFUSED
    inner = b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n" + program
    assert send(policy(), mail(inner)).reply == REFUSED


@pytest.mark.parametrize(
    "disposition",
    [
        "attachment; filename=program.exe.txt",
        "attachment; filename=exe",
        'attachment; filename="how to run an .exe safely.pdf"',
        'attachment; filename="=?unknown?B?AAAA?="',
        "attachment; hostname=www.example.com; filename=note.txt",
    ],
)
def test_other_names_pass(disposition: str, adapter: str) -> None:
    assert send(policy(), mail(attached(disposition)), adapter=adapter).accepted


def test_the_setting_replaces_the_list() -> None:
    only = policy(forbidden=[".TAR.GZ"])
    refused = send(only, mail(attached("attachment; filename=a.tar.gz")))
    assert refused.reply == "550 5.7.1 we take no attachments named *.tar.gz"
    assert send(only, mail(attached("attachment; filename=a.exe"))).accepted


UNREADABLE = [
    mail(b"", kind=b"multipart/mixed"),  # no boundary
    mail(b"", kind=b"multipart/mixed; boundary=other"),  # not the one that is used
    mail(b"", kind=b"multipart/mixed; boundary=" + b"B" * 2000),
    mail(b"", kind=b"text/plain\r\nContent-Type: multipart/mixed; boundary=B"),
    mail(*[b""] * 1100),
    mail(attached("attachment; filename=" + "x; x=" * 1000 + "; filename=program.exe")),
]


@pytest.mark.parametrize("raw", UNREADABLE)
def test_what_cannot_be_read_is_refused_unless_the_setting_says_otherwise(raw: bytes) -> None:
    outcome = send(policy(), raw)
    assert outcome.reply == "550 5.6.0 the parts of this message cannot be read"
    assert send(policy(unreadable="pass"), raw).accepted


def test_a_name_too_long_for_a_file_is_refused() -> None:
    outcome = send(policy(), mail(attached(f"attachment; filename={'x' * 1025}.pdf")))
    assert outcome.reply == "550 5.6.0 the name of an attachment is too long"
