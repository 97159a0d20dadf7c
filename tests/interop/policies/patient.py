"""Wait at the end of a message, and before at its header, for as long as the settings say."""

from __future__ import annotations

import asyncio

from mailgate import Message, Policy


def policy(seconds: float, before: float = 0) -> Policy:
    """Make a policy that waits, and then marks the message."""
    made = Policy("patient")

    @made.headers
    async def wait_before(message: Message) -> None:
        await asyncio.sleep(before)

    @made.message
    async def wait(message: Message) -> None:
        await asyncio.sleep(seconds)
        message.headers.add("X-Waited", f"{seconds:g}")

    return made
