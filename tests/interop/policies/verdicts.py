"""Answer with each verdict at each stage, as the client asks for.

For a message the sender's local part is `WORD.STAGE`, at the greeting the name begins `WORD.`;
at a connection the setting says it.
"""

from __future__ import annotations

from typing import TypeAlias

from mailgate import (
    Accept,
    Address,
    Defer,
    Discard,
    Disconnect,
    Message,
    Policy,
    Quarantine,
    Reject,
    Session,
)
from mailgate.stage import Capability

Refusal: TypeAlias = Reject | Defer | Disconnect
Answer: TypeAlias = Refusal | Discard | Quarantine | None

REFUSALS: dict[str, Refusal] = {
    "reject": Reject("not here, 100% sure", code=554, enhanced="5.7.0"),
    "defer": Defer("come back in 5 minutes", code=450, enhanced="4.2.0"),
    "lines": Reject("first of all\nand 50%s more", code=550, enhanced="5.6.0"),
    "disconnect": Disconnect("that is enough", code=421, enhanced="4.7.0"),
    "leave": Disconnect("for good", code=554, enhanced="5.7.0"),
}
WANTS: frozenset[Capability] = frozenset({"discard", "quarantine"})

policy = Policy("verdicts")
at_helo = Policy("at-helo")


def answer(stage: str, message: Message) -> Answer:
    """Return what the sender asks for at this stage."""
    word, _, wanted = message.sender.local.partition(".")
    if wanted != stage:
        return None
    match word:
        case "discard":
            return Discard("unwanted")
        case "quarantine":
            return Quarantine("look at this")
        case _:
            return REFUSALS[word]


@policy.mail(wants=WANTS)
async def mail(message: Message) -> Answer:
    """Answer at MAIL."""
    return answer("mail", message)


@policy.rcpt(wants=WANTS)
async def rcpt(message: Message, recipient: Address) -> Answer:
    """Answer at RCPT."""
    return answer("rcpt", message)


@policy.data(wants=WANTS)
async def data(message: Message) -> Answer:
    """Answer at DATA."""
    return answer("data", message)


@policy.headers(wants=WANTS)
async def headers(message: Message) -> Answer:
    """Answer when the header fields are known."""
    return answer("headers", message)


@policy.body(wants=WANTS)
async def body(message: Message, piece: bytes) -> Answer:
    """Answer at a piece of the body."""
    return answer("body", message)


@policy.message(wants=WANTS)
async def content(message: Message) -> Answer:
    """Answer at the end of the message."""
    return answer("message", message)


def at_connect(word: str) -> Policy:
    """Make a policy that answers every connection alike."""
    made = Policy("at-connect")

    @made.connect
    async def connect(session: Session) -> Refusal:
        return REFUSALS[word]

    return made


@at_helo.helo
async def helo(session: Session) -> Refusal | None:
    """Answer at the greeting."""
    return REFUSALS.get(session.helo.partition(".")[0])


def accepting_at(stage: str) -> Policy:
    """Make a policy that accepts at one stage what it would refuse in the end."""
    made = Policy("accepting")

    async def accept(*arguments: object) -> Accept:
        return Accept()

    @made.message
    async def refuse(message: Message) -> Reject:
        return Reject("never said")

    getattr(made, stage)(accept)
    return made
