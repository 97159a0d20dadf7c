"""Read all content in pieces as it arrives, and change nothing."""

from __future__ import annotations

from dataclasses import dataclass

from mailgate import Message, PerMessage, Policy


@dataclass
class Size:
    """The octets seen so far."""

    octets: int = 0


policy = Policy("streamed")
size = PerMessage(Size)


@policy.body
async def add(message: Message, piece: bytes) -> None:
    """Add up the octets."""
    size[message].octets += len(piece)
