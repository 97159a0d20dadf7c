"""What a case of the contract is, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

from mailgate.chain import Capabilities, Defaults, Loaded, unmet
from mailgate.policy import Policy

PLAIN = (
    b"From: Ann <ann@client.example>\r\n"
    b"To: Bob <bob@example.org>\r\n"
    b"Subject: folded\r\n over two lines\r\n"
    b"X-Mailer: one\r\n"
    b"x-mailer: two\r\n"
    b"Date: Sat, 21 Nov 2026 10:00:00 +0000\r\n"
    b"Message-ID: <contract@client.example>\r\n"
    b"\r\n"
    b"first line \r\n"
    b".a dot, ..two, and caf\xe9 in Latin-1\r\n"
    b".\r\n"
    b"\ta tab before it, and one\tinside\r\n"
    b"\r\n"
    b"last line\r\n"
)
END = b"<contract@client.example>\r\n"
"""Where the header section of `PLAIN` ends."""

LONG = PLAIN.replace(b"last line\r\n", b"0123456789 " * 80 + b"\r\n" * 2) + b"line\r\n" * 40_000


@final
@dataclass(frozen=True, slots=True)
class Mail:
    """What the client sends; ``raw`` is CRLF lines, not dot-stuffed.

    ``params`` are the ESMTP parameters of MAIL.
    """

    raw: bytes = PLAIN
    sender: str = "ann@client.example"
    params: Mapping[str, str] = field(default_factory=dict)
    recipients: Sequence[str] = ("bob@example.org",)
    helo: str = "client.example"
    client: str = "192.0.2.1"


@final
@dataclass(frozen=True, slots=True)
class Delivery:
    """What the client and the recipients get.

    ``code`` is the first digit of the reply that ended it: 2 where the message was taken.
    ``text`` is a part of that reply.  ``refused`` are recipients that were.  ``raw`` is what
    is delivered, without the server's own trace fields; empty where nothing is.  ``params`` are
    the ESMTP parameters of the sender, without those that the server adds.  ``held`` is true
    where the message stays in the server's quarantine.
    """

    code: int = 2
    text: str = ""
    refused: Sequence[str] = ()
    raw: bytes = b""
    sender: str = "ann@client.example"
    params: Mapping[str, str] = field(default_factory=dict)
    recipients: Sequence[str] = ("bob@example.org",)
    held: bool = False


class Server(Protocol):
    """A mail server of one protocol, as far as a test needs one."""

    def deliver(self, policies: Sequence[Loaded], defaults: Defaults, mail: Mail) -> Delivery:
        """Take one mail through policies, with a client that says QUIT at the first refusal."""


@final
@dataclass(frozen=True, slots=True)
class Case:
    """One policy and one mail; ``str()`` is the name."""

    name: str
    policy: Callable[[], Policy]
    delivery: Delivery
    mail: Mail = field(default_factory=Mail)

    def __str__(self) -> str:
        return self.name


class NotServed(Exception):
    """A protocol lacks what a case's policy needs, and has to refuse it at start-up."""


def check(case: Case, server: Server, capabilities: Capabilities) -> None:
    """Run a case; AssertionError where the outcome differs, NotServed where it cannot be run."""
    policies = [Loaded(case.policy(), case.name)]
    missing = unmet(policies, capabilities)
    if missing:
        raise NotServed(str(missing[0]))
    found = server.deliver(policies, Defaults(timeout=0.3, message_timeout=0.5), case.mail)
    wanted = case.delivery
    assert found.code == wanted.code, (found, wanted)
    assert wanted.text in found.text, (found, wanted)
    assert list(found.refused) == list(wanted.refused), (found, wanted)
    if wanted.code == 2:
        assert found.raw == wanted.raw, (found, wanted)
        assert found.sender == wanted.sender, (found, wanted)
        assert dict(found.params) == dict(wanted.params), (found, wanted)
        assert found.held is wanted.held, (found, wanted)
        assert list(found.recipients) == list(wanted.recipients), (found, wanted)


def edited(*changes: tuple[bytes, bytes], raw: bytes = PLAIN) -> bytes:
    """Return a message with some of its octets replaced."""
    for old, new in changes:
        raw = raw.replace(old, new)
    return raw


Make = Callable[[], Policy]


def add_to(cases: list[Case]) -> Callable[..., Callable[[Make], Make]]:
    """Return what adds a policy, with what has to come of it, to a list."""

    def case(delivery: Delivery, mail: Mail | None = None) -> Callable[[Make], Make]:
        def add(policy: Make) -> Make:
            cases.append(Case(policy.__name__, policy, delivery, mail or Mail()))
            return policy

        return add

    return case
