"""Think about a recipient for longer than a mail server waits."""

from __future__ import annotations

import asyncio

from mailgate import Address, Message, Policy, Reject

policy = Policy("hesitant")


@policy.rcpt
async def think(message: Message, recipient: Address) -> Reject | None:
    """Take a minute."""
    await asyncio.sleep(60)
    return None
