"""Answer at RCPT and at the end of the message, and look at nothing."""

from __future__ import annotations

from mailgate import Address, Message, Policy, Reject

policy = Policy("null")


@policy.rcpt
async def recipient(message: Message, recipient: Address) -> Reject | None:
    """Take every recipient."""
    return None
