"""Take every message, and look at nothing."""

from __future__ import annotations

from mailgate import Message, Policy, Reject

policy = Policy("empty")


@policy.message
async def take(message: Message) -> Reject | None:
    """Take every message."""
    return None
