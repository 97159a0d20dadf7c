"""Change sender and recipient, each at the one stage where OpenSMTPD can."""

from __future__ import annotations

from mailgate import Address, Message, Policy

policy = Policy("envelope")


@policy.mail(needs={"change_sender"})
async def bounces(message: Message) -> None:
    """Send bounces elsewhere."""
    message.change_sender("bounces@example.org")


@policy.rcpt(needs={"change_recipient"})
async def alias(message: Message, recipient: Address) -> None:
    """Resolve one alias."""
    if recipient.local == "postmaster":
        message.change_recipient(recipient, "carol@example.test")
