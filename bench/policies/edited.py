"""Read all content at the end of the message, and add a header field."""

from __future__ import annotations

from mailgate import Message, Policy

policy = Policy("edited")


@policy.message
async def stamp(message: Message) -> None:
    """Say how long the body is."""
    message.headers.add("X-Length", str(len(message.body)))
