"""Cases about what policies answer, and about policies that fail."""

from __future__ import annotations

import time

from mailgate.address import Address
from mailgate.contract.case import END, PLAIN, Case, Delivery, Mail, add_to, edited
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.verdict import Accept, Defer, Discard, Disconnect, Quarantine, Reject

CASES: list[Case] = []
_case = add_to(CASES)


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


@_case(Delivery(5, "the second line"))
def refused_in_two_lines() -> Policy:
    policy = Policy()

    @policy.data
    async def refuse(message: Message) -> Reject:
        return Reject("the first line\nthe second line")

    return policy


@_case(Delivery(5, "550 5.7.1 100% of %s, %%d and %"))
def refused_with_percent_signs() -> Policy:
    policy = Policy()

    @policy.message
    async def refuse(message: Message) -> Reject:
        return Reject("100% of %s, %%d and %")

    return policy


@_case(Delivery(recipients=[]))
def message_discarded() -> Policy:
    policy = Policy()

    @policy.rcpt(needs={"discard"})
    async def drop(message: Message, recipient: Address) -> Discard:
        return Discard("nobody wants it")

    return policy


@_case(Delivery(raw=edited((END, END + b"X-Gate: held\r\n")), held=True))
def message_quarantined() -> Policy:
    policy = Policy()

    @policy.message(needs={"quarantine"})
    async def hold(message: Message) -> Quarantine:
        message.headers.add("X-Gate", "held")
        return Quarantine("somebody has to look at it")

    return policy
