"""Read all content at the end of the message, and change nothing."""

from __future__ import annotations

from mailgate import Message, Policy, Reject

policy = Policy("whole")


@policy.message
async def look(message: Message) -> Reject | None:
    """Look for a word."""
    return Reject("not this body") if b"unheard of" in message.body else None
