"""Fail where nothing can be answered."""

from __future__ import annotations

from mailgate import Message, Policy

policy = Policy("observer")


@policy.mail
async def look(message: Message) -> None:
    """Only look on, and fail."""
    if message.sender.local == "faulty":
        raise ValueError("a fault of an observer")
