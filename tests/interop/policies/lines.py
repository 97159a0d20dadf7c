"""Add a recipient that the steered Exim refuses."""

from __future__ import annotations

from mailgate import Message, Policy

policy = Policy("lines")


@policy.message(needs={"add_recipient"})
async def add(message: Message) -> None:
    """Add it to what anybody has sent."""
    if message.sender:
        message.add_recipient("lines@steered.example")
