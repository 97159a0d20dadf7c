"""Want what the filter protocol of OpenSMTPD cannot do."""

from __future__ import annotations

from mailgate import Message, Policy

policy = Policy("archive")


@policy.message(needs={"add_recipient"})
async def copy(message: Message) -> None:
    """Send the archive a copy."""
    message.add_recipient("archive@example.test")
