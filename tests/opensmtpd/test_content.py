"""Messages of any form come back octet for octet, however a policy looks at them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailgate import Message, Policy, Reject
from mailgate.contract import Case, Delivery, Mail, check
from mailgate_opensmtpd.registration import CAPABILITIES
from tests.opensmtpd.lines import Client, handshake
from tests.opensmtpd.recorded import unstuff
from tests.opensmtpd.running import converse, pieces
from tests.opensmtpd.server import SmtpdServer

CLIENT = Client("7641df9771b4ed00")
TRACE = [  # what smtpd puts on top of every message
    b"Received: from client.example.org (localhost [127.0.0.1])",
    b"\tby mx.test (OpenSMTPD) with ESMTP id 3682b2ad",
    b"\tfor <b@example.test>;",
    b"\tFri, 20 Nov 2026 23:57:27 +0000 (UTC)",
]


def reads_headers(policy: Policy) -> None:
    @policy.headers
    async def headers(message: Message) -> Reject | None:
        list(message.headers)
        return None


def reads_body(policy: Policy) -> None:
    @policy.body
    async def body(message: Message, piece: bytes) -> Reject | None:
        assert piece.endswith(b"\r\n")
        return None


def reads_all(policy: Policy) -> None:
    @policy.message
    async def whole(message: Message) -> Reject | None:
        assert message.raw.endswith(message.body)
        return None


LOOKS: dict[str, Callable[[Policy], None]] = {
    "headers": reads_headers,
    "body": reads_body,
    "message": reads_all,
}

# Lines that a client may send: no LF, and smtpd cuts them at a NUL. Few letters, so that what
# matters (dots, colons, blanks, CR, eight bits) meets often.
line = st.lists(st.sampled_from(b".: \t\r\xff\x85aX"), max_size=6).map(bytes)
lines = st.lists(line, max_size=12).map(lambda several: [one for one in several if one != b"."])


def session(message: list[bytes]) -> bytes:
    """Return a session with these data-lines in it, its questions in smtpd's order."""
    given = b"".join(CLIENT.question("data-line", one) for one in (*message, b"."))
    before = CLIENT.greeted() + CLIENT.mail() + CLIENT.began() + CLIENT.rcpt() + CLIENT.data()
    return handshake() + before + given + CLIENT.commit() + CLIENT.gone()


def result(policy: Policy, message: list[bytes], piece: int) -> tuple[list[bytes], bytes]:
    """Return what came back of a message, and the answer at commit."""
    outcome = converse(pieces(session(message), piece), policy)
    assert outcome.errors == []
    assert outcome.faults == []
    back = [
        one.split(b"|", 3)[3] for one in outcome.lines() if one.startswith(b"filter-dataline|")
    ]
    assert back.pop() == b"."
    return back, outcome.lines()[-1].split(b"|", 3)[3]


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
@settings(deadline=None, max_examples=150)
@given(message=lines, trace=st.booleans(), piece=st.sampled_from([1 << 16, 97]))
@example(message=[], trace=True, piece=1 << 16)
@example(message=[b""], trace=True, piece=1 << 16)
@example(message=[b"", b"only a body"], trace=True, piece=1 << 16)
@example(message=[b"text without a header"], trace=True, piece=1 << 16)
@example(message=[b"Subject: only a header"], trace=True, piece=1 << 16)
@example(message=[b" continued", b"Subject: x", b"", b"x"], trace=True, piece=1 << 16)
@example(
    message=[b"Subject: x", b"", b"..", b".unstuffed", b"..stuffed", b""], trace=True, piece=7
)
@example(message=[b"Subject: \xe9", b"X-\xff: y", b"\x85", b"caf\xc3\xa9\r"], trace=False, piece=7)
def test_messages_come_back(
    look: Callable[[Policy], None], message: list[bytes], trace: bool, piece: int
) -> None:
    policy = Policy("look")
    look(policy)
    given_lines = [*TRACE, *message] if trace else message

    back, decision = result(policy, given_lines, piece)

    assert unstuff(back) == unstuff(given_lines)
    assert decision == b"proceed"


@pytest.mark.parametrize("footer", [b"", b"footer\r\n"])
def test_a_bare_cr_in_a_line_stays(footer: bytes) -> None:
    """RFC 5321 2.3.8 forbids it, and smtpd passes it on."""
    raw = b"Subject: a\r\n\r\na bare \r inside\r\n\r\r\nlast line\r\n"

    def adds() -> Policy:
        policy = Policy()

        @policy.message
        async def add(message: Message) -> None:
            assert message.raw == raw
            if footer:
                message.body += footer

        return policy

    check(
        Case("adds", adds, Delivery(raw=raw + footer), Mail(raw=raw)), SmtpdServer(), CAPABILITIES
    )


@pytest.mark.parametrize(("size", "count"), [(60_000, 100), (997, 12_000), (0, 100_000)])
def test_long_messages_come_back_from_the_spool(size: int, count: int) -> None:
    policy = Policy("look")
    reads_all(policy)
    message = [*TRACE, b"Subject: long", b"", *(b"%d" % at + b"." * size for at in range(count))]

    back, decision = result(policy, message, 1 << 18)

    assert back == message
    assert decision == b"proceed"
