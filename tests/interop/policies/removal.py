"""Remove one recipient."""

from __future__ import annotations

from mailgate import Message, Policy

policy = Policy("removal")


@policy.message(needs={"remove_recipient"})
async def remove(message: Message) -> None:
    """Remove the first recipient, as it is known here."""
    message.remove_recipient(message.recipients[0])
