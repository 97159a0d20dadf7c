"""Refuse one recipient and look at no content."""

from __future__ import annotations

from mailgate import Address, Message, Policy, Reject

policy = Policy("recipients")


@policy.rcpt
async def known(message: Message, recipient: Address) -> Reject | None:
    """Refuse nobody@, let everybody else pass."""
    if recipient.local == "nobody":
        return Reject("no such user here", enhanced="5.1.1")
    return None
