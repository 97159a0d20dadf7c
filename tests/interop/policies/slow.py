"""Take too long, as the recipient's local part says."""

from __future__ import annotations

import asyncio
import time

from mailgate import Address, Message, Policy, Reject

waits = Policy("waits")
blocks = Policy("blocks")


@waits.rcpt(timeout=1)
async def rcpt(message: Message, recipient: Address) -> Reject | None:
    """Wait on the event loop for longer than the deadline."""
    if recipient.local == "hangs":
        await asyncio.sleep(600)
    return None


@waits.message(timeout=1)
async def content(message: Message) -> Reject | None:
    """Wait with a whole message in hand."""
    if message.recipients[0].local == "hangs-later":
        await asyncio.sleep(600)
    return None


@blocks.rcpt
def blocked(message: Message, recipient: Address) -> Reject | None:
    """Block a thread for longer than another session should have to wait."""
    if recipient.local == "blocks":
        time.sleep(5)
    return None
