"""Answer at RCPT, read the whole message at its end, and add a header field."""

from __future__ import annotations

from mailgate import Address, Message, Policy, Reject

policy = Policy("real")


@policy.rcpt
async def recipient(message: Message, recipient: Address) -> Reject | None:
    """Take every recipient."""
    return None


@policy.message
async def stamp(message: Message) -> Reject | None:
    """Say how long the body is."""
    message.headers.add("X-Length", str(len(message.body)))
    return None
