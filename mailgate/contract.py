"""What every adapter has to do alike: the same policy, the same mail, the same outcome.

An adapter's tests play the server of its protocol (a `Server`) and run every case:

    from mailgate.contract import CASES, Case, check

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_contract(case: Case) -> None:
        check(case, MyServer(), MyAdapter.capabilities)

What a case expects is written out in it; no adapter is compared with another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

from mailgate.address import Address
from mailgate.chain import Capabilities, Defaults, Loaded, unmet
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.verdict import Accept, Defer, Disconnect, Reject

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
    b"\ttab and a bare \r inside\r\n"
    b"\r\n"
    b"last line\r\n"
)
LONG = PLAIN.replace(b"last line\r\n", b"0123456789 " * 80 + b"\r\n" * 2) + b"line\r\n" * 40_000


@final
@dataclass(frozen=True, slots=True)
class Mail:
    """What the client sends; ``raw`` is CRLF lines, not dot-stuffed."""

    raw: bytes = PLAIN
    sender: str = "ann@client.example"
    recipients: Sequence[str] = ("bob@example.org",)
    helo: str = "client.example"
    client: str = "192.0.2.1"


@final
@dataclass(frozen=True, slots=True)
class Delivery:
    """What the client and the recipients get.

    ``code`` is the first digit of the reply that ended it: 2 where the message was taken.
    ``text`` is a part of that reply.  ``refused`` are recipients that were.  ``raw`` is what
    is delivered, without the server's own trace fields; empty where nothing is.
    """

    code: int = 2
    text: str = ""
    refused: Sequence[str] = ()
    raw: bytes = b""
    sender: str = "ann@client.example"
    recipients: Sequence[str] = ("bob@example.org",)


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


def check(case: Case, server: Server, capabilities: Capabilities) -> str:
    """Run a case; AssertionError where the outcome differs.

    A protocol that lacks what the policy needs has to say so before serving: the reason is
    returned, and "" where the case was run.
    """
    policies = [Loaded(case.policy(), case.name)]
    missing = unmet(policies, capabilities)
    if missing:
        return str(missing[0])
    found = server.deliver(policies, Defaults(timeout=0.3, message_timeout=0.5), case.mail)
    wanted = case.delivery
    assert found.code == wanted.code, (found, wanted)  # noqa: S101
    assert wanted.text in found.text, (found, wanted)  # noqa: S101
    assert list(found.refused) == list(wanted.refused), (found, wanted)  # noqa: S101
    if wanted.code == 2:
        assert found.raw == wanted.raw, (found, wanted)  # noqa: S101
        assert found.sender == wanted.sender, (found, wanted)  # noqa: S101
        assert list(found.recipients) == list(wanted.recipients), (found, wanted)  # noqa: S101
    return ""


# -- policies ----------------------------------------------------------------------------------

CASES: list[Case] = []


def _case(
    delivery: Delivery, mail: Mail | None = None
) -> Callable[[Callable[[], Policy]], Callable[[], Policy]]:
    def add(policy: Callable[[], Policy]) -> Callable[[], Policy]:
        CASES.append(Case(policy.__name__, policy, delivery, mail or Mail()))
        return policy

    return add


def _edited(*changes: tuple[bytes, bytes], raw: bytes = PLAIN) -> bytes:
    for old, new in changes:
        raw = raw.replace(old, new)
    return raw


_END = b"<contract@client.example>\r\n"


@_case(Delivery(raw=PLAIN))
def untouched_with_headers_read() -> Policy:
    policy = Policy()

    @policy.headers
    async def look(message: Message) -> None:
        list(message.headers)

    return policy


@_case(Delivery(raw=PLAIN))
def untouched_with_body_shown() -> Policy:
    policy = Policy()

    @policy.body
    async def look(message: Message, piece: bytes) -> None:
        assert piece.endswith(b"\r\n")  # noqa: S101

    return policy


@_case(Delivery(raw=PLAIN))
def untouched_with_everything_read() -> Policy:
    policy = Policy()

    @policy.message
    async def look(message: Message) -> Reject | None:
        return None if message.raw == PLAIN else Reject("that is not what was sent")

    return policy


@_case(Delivery(raw=LONG), Mail(raw=LONG))
def untouched_and_long() -> Policy:
    policy = Policy()

    @policy.message
    def look(message: Message) -> Reject | None:
        return None if message.size == len(LONG) else Reject("that is not what was sent")

    return policy


@_case(Delivery(raw=_edited((_END, _END + b"X-Gate: seen\r\n"))))
def header_added() -> Policy:
    policy = Policy()

    @policy.headers
    async def add(message: Message) -> None:
        message.headers.add("X-Gate", "seen")

    return policy


@_case(Delivery(raw=b"X-Second: 2\r\nX-First: 1\r\n" + PLAIN))
def headers_prepended() -> Policy:
    policy = Policy()

    @policy.message
    async def prepend(message: Message) -> None:
        message.headers.prepend("X-First", "1")
        message.headers.prepend("X-Second", "2")

    return policy


@_case(Delivery(raw=_edited((b"Subject: folded\r\n over two lines", b"Subject: [list] hello"))))
def header_changed() -> Policy:
    policy = Policy()

    @policy.headers
    async def change(message: Message) -> Reject | None:
        if message.headers["subject"] != "folded over two lines":
            return Reject("not unfolded")
        message.headers["Subject"] = "[list] hello"
        return None

    return policy


@_case(Delivery(raw=_edited((b"X-Mailer: one\r\nx-mailer: two\r\n", b"X-Mailer: three\r\n"))))
def header_changed_and_its_others_deleted() -> Policy:
    policy = Policy()

    @policy.message
    async def change(message: Message) -> None:
        message.headers["X-Mailer"] = "three"

    return policy


@_case(Delivery(raw=_edited((b"X-Mailer: one\r\nx-mailer: two\r\n", b""))))
def header_removed() -> Policy:
    policy = Policy()

    @policy.headers
    async def remove(message: Message) -> None:
        del message.headers["X-MAILER"]

    return policy


@_case(Delivery(raw=PLAIN.partition(b"\r\n\r\n")[0] + b"\r\n\r\n.\r\nnew\r\n"))
def body_replaced() -> Policy:
    policy = Policy()

    @policy.message
    async def replace(message: Message) -> None:
        message.body = b".\nnew"

    return policy


@_case(Delivery(raw=PLAIN + b"-- \r\nfooter\r\n"))
def body_appended_in_a_thread() -> Policy:
    policy = Policy()

    @policy.message
    def append(message: Message) -> None:
        message.body += b"-- \r\nfooter\r\n"

    return policy


@_case(Delivery(5, "550 5.1.2 no such domain", refused=["bob@example.org"]))
def recipient_refused() -> Policy:
    policy = Policy()

    @policy.rcpt
    async def refuse(message: Message, recipient: Address) -> Reject:
        return Reject("no such domain", enhanced="5.1.2")

    return policy


@_case(
    Delivery(raw=PLAIN, refused=["no@example.org"], recipients=["bob@example.org"]),
    Mail(recipients=["no@example.org", "bob@example.org"]),
)
def one_recipient_refused() -> Policy:
    policy = Policy()

    @policy.rcpt
    async def refuse(message: Message, recipient: Address) -> Reject | None:
        return Reject("not that one") if recipient.local == "no" else None

    return policy


@_case(Delivery(4, "451 4.7.1 come back"))
def sender_deferred() -> Policy:
    policy = Policy()

    @policy.mail
    async def defer(message: Message) -> Defer | None:
        return Defer("come back") if message.sender.domain == "client.example" else None

    return policy


@_case(Delivery(5, "554 5.7.1 go away"))
def client_disconnected() -> Policy:
    policy = Policy()

    @policy.connect
    async def disconnect(session: Session) -> Disconnect:
        return Disconnect("go away", code=554)

    return policy


@_case(Delivery(5, "550 5.7.1 not with that name"))
def greeting_refused() -> Policy:
    policy = Policy()

    @policy.helo
    async def refuse(session: Session) -> Reject | None:
        return Reject("not with that name") if session.helo == "client.example" else None

    return policy


@_case(Delivery(5, "550 5.7.1 not now"))
def data_refused() -> Policy:
    policy = Policy()

    @policy.data
    async def refuse(message: Message) -> Reject | None:
        return Reject("not now") if message.recipients == ("bob@example.org",) else None

    return policy


@_case(Delivery(5, "550 5.7.1 two mailers"))
def refused_for_its_headers() -> Policy:
    policy = Policy()

    @policy.headers
    async def refuse(message: Message) -> Reject | None:
        return Reject("two mailers") if len(message.headers.get_all("X-Mailer")) == 2 else None

    return policy


@_case(Delivery(5, "550 5.7.1 a tab"))
def refused_for_its_body_as_it_came() -> Policy:
    policy = Policy()

    @policy.body
    async def refuse(message: Message, piece: bytes) -> Reject | None:
        return Reject("a tab") if b"\t" in piece else None

    return policy


@_case(Delivery(5, "552 5.3.4 too big"))
def refused_at_the_end() -> Policy:
    policy = Policy()

    @policy.message
    async def refuse(message: Message) -> Reject:
        message.headers["X-Gate"] = "gone with the message"
        return Reject("too big", code=552, enhanced="5.3.4")

    return policy


@_case(Delivery(raw=PLAIN))
def accepted_before_a_refusal() -> Policy:
    policy = Policy()

    @policy.rcpt
    async def accept(message: Message, recipient: Address) -> Accept:
        return Accept()

    @policy.message
    async def refuse(message: Message) -> Reject:
        return Reject("never asked")

    return policy


@_case(Delivery(4, "451 4.3.0", refused=["bob@example.org"]))
def failing() -> Policy:
    policy = Policy()

    @policy.rcpt
    async def fail(message: Message, recipient: Address) -> Reject | None:
        raise ValueError("x\r\n250 y")

    return policy


@_case(Delivery(raw=PLAIN))
def failing_open_without_its_edits() -> Policy:
    policy = Policy()

    @policy.message(on_error="continue")
    async def fail(message: Message) -> None:
        message.headers["X-Gate"] = "rolled back"
        message.body = b"rolled back"
        raise SystemExit(1)

    return policy


@_case(Delivery(4, "451 4.3.0"))
def observer_failing() -> Policy:
    policy = Policy()

    @policy.mail
    async def fail(message: Message) -> None:
        raise KeyError("nobody waits for this handler, the message does")

    return policy


@_case(Delivery(4, "451 4.3.0"))
def hanging_in_a_thread() -> Policy:
    policy = Policy()

    @policy.message(timeout=0.1)
    def hang(message: Message) -> None:
        time.sleep(1.0)
        message.headers["X-Late"] = "never"

    return policy


@_case(
    Delivery(raw=PLAIN, sender="new@example.net"),
)
def sender_changed() -> Policy:
    policy = Policy()

    @policy.mail(needs={"change_sender"})
    async def change(message: Message) -> None:
        message.change_sender("new@example.net")

    return policy


@_case(Delivery(raw=PLAIN, recipients=["new@example.net"]))
def recipient_changed() -> Policy:
    policy = Policy()

    @policy.rcpt(needs={"change_recipient"})
    async def change(message: Message, recipient: Address) -> None:
        message.change_recipient(recipient, "new@example.net")

    return policy


@_case(Delivery(raw=PLAIN, recipients=["bob@example.org", "archive@example.org"]))
def recipient_added() -> Policy:
    policy = Policy()

    @policy.message(needs={"add_recipient"})
    async def add(message: Message) -> None:
        message.add_recipient("archive@example.org")

    return policy
