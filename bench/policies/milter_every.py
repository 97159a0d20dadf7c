"""Answer every event: nothing can be sent ahead."""

from __future__ import annotations

from mailgate import Address, Message, Policy, Reject, Session

policy = Policy("every")


@policy.connect
async def connect(session: Session) -> Reject | None:
    """Take every client."""
    return None


@policy.helo
async def helo(session: Session) -> Reject | None:
    """Take every greeting."""
    return None


@policy.mail
async def mail(message: Message) -> Reject | None:
    """Take every sender."""
    return None


@policy.rcpt
async def rcpt(message: Message, recipient: Address) -> Reject | None:
    """Take every recipient."""
    return None


@policy.data
async def data(message: Message) -> Reject | None:
    """Let the message come."""
    return None


@policy.headers
async def headers(message: Message) -> Reject | None:
    """Take every header."""
    return None


@policy.body
async def body(message: Message, piece: bytes) -> Reject | None:
    """Take every piece of a body."""
    return None


@policy.message
async def whole(message: Message) -> Reject | None:
    """Take every message."""
    return None
