"""Put a digest of the body into the header, and take turns with other messages meanwhile."""

from __future__ import annotations

import asyncio
import hashlib

from mailgate import Message, Policy

policy = Policy("stamp")


@policy.message
async def stamp(message: Message) -> None:
    """Give way to other sessions in the middle of the work."""
    digest = hashlib.sha256(message.body).hexdigest()
    await asyncio.sleep(0.01)
    message.headers.add("X-Digest", digest)
