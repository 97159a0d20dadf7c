"""Messages that hurt CPython's `email` (mime.json): read without an exception, and within caps.

Nothing is timed here: what costs more than linear time is behind a cap, and the caps are seen to
hold. Every message that is taken leaves octet for octet as it came.
"""

from __future__ import annotations

from email.message import EmailMessage

import pytest

from mailgate import Message, Policy
from mailgate.mime import TooComplex
from mailgate.testing import Mta, Outcome
from tests.hostile.cases import Case, expand, load

CASES = load("mime")
NAMES = ("From", "To", "Cc", "Subject", "Message-ID", "Date", "Content-Type", "X-None", "Received")

# Over a limit of ours before any policy sees them: header sections over 256 KiB or 1,000 fields.
REFUSED = {
    *("MIME-009", "MIME-012", "MIME-014", "MIME-060", "MIME-061", "MIME-062"),
}
# Parts, or fields that say how to read them, over a cap of `parse`: it says so in `defects`.
CAPPED = {
    *("MIME-001", "MIME-005", "MIME-006", "MIME-007", "MIME-018", "MIME-020", "MIME-021"),
    *("MIME-022", "MIME-058", "MIME-059"),
}
# Other fields over a cap, or that the parser fails on: they are plain text.
PLAIN = {
    **dict.fromkeys(("MIME-002", "MIME-003", "MIME-011", "MIME-013", "MIME-016"), "Cc"),
    **dict.fromkeys(("MIME-008", "MIME-010"), "Subject"),
    **dict.fromkeys(("MIME-023", "MIME-024", "MIME-026"), "To"),
    "MIME-004": "MIME-Version",
    "MIME-019": "Cc",
}


class Reader:
    """A policy that reads all there is in every way there is."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.policy = Policy("reader")
        self.policy.headers(self.headers)
        self.policy.message(self.message)

    async def headers(self, message: Message) -> None:
        headers = message.headers
        assert len(list(headers)) == len(headers)
        for name in NAMES:
            assert all("\n" not in content for content in headers.get_all(name))
            assert len(headers.raw(name)) == len(headers.get_all(name))
            headers.get(name)
            assert (name in headers) == bool(headers.get_all(name))

    async def message(self, message: Message) -> None:
        mail = message.parse()
        self.mails.append(mail)
        for content in mail.values():
            str(content)
        for part in mail.walk():
            part.get_content_type()
            part.get_filename()
        message.replace(mail)  # as it was: nothing is changed
        assert not message.changes


def run(case: Case, policy: Policy) -> Outcome:
    with Mta(policy) as mta:
        mta.mail("a@example.org")
        mta.rcpt("b@example.org")
        mta.data(raw_of(case))
        return mta.outcome


def raw_of(case: Case) -> bytes:
    return expand(case, limit=64 << 20)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_messages_are_read_and_leave_as_they_came(case: Case) -> None:
    reader = Reader()
    outcome = run(case, reader.policy)

    if case.id in REFUSED:
        assert outcome.reply.startswith("552 5.3.4 ")
        assert reader.mails == []
        return
    assert outcome.accepted
    assert outcome.raw == normal(raw_of(case))
    (mail,) = reader.mails
    capped = any(isinstance(defect, TooComplex) for defect in mail.defects)
    assert capped == (case.id in CAPPED)
    if case.id in PLAIN:
        assert type(mail[PLAIN[case.id]]) is str


def normal(raw: bytes) -> bytes:
    """Return a message as the test's server sends it: bare CR and LF are no line ends in SMTP."""
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


@pytest.mark.parametrize("case", [c for c in CASES if c.id not in REFUSED], ids=str)
def test_a_field_on_top_leaves_the_rest_alone(case: Case) -> None:
    policy = Policy("adds")

    @policy.message
    async def add(message: Message) -> None:
        message.headers.prepend("X-Seen", "yes")

    outcome = run(case, policy)

    raw = normal(raw_of(case))
    top = raw.index(b"\r\n") + 2 if raw.startswith(b"From ") else 0  # an mbox line stays first
    assert outcome.accepted
    assert outcome.raw == raw[:top] + b"X-Seen: yes\r\n" + raw[top:]


def test_every_case_is_run() -> None:
    assert len(CASES) == 56
    assert {*REFUSED, *CAPPED, *PLAIN} <= {case.id for case in CASES}
