"""Look at header fields and add nothing: body lines pass as they come."""

from __future__ import annotations

from mailgate import Message, Policy

policy = Policy("pass-through")


@policy.headers
async def look(message: Message) -> None:
    """Read one field."""
    message.headers.get("Subject")
