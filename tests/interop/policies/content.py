"""Policies that look at the content and change nothing."""

from __future__ import annotations

from mailgate import Message, PerMessage, Policy, Reject

in_headers = Policy("in-headers")
in_pieces = Policy("in-pieces")
in_whole = Policy("in-whole")

tail = PerMessage(bytearray)


@in_headers.headers
async def subject(message: Message) -> Reject | None:
    """Refuse a message by its subject."""
    if "forbidden" in (message.headers.get("Subject") or ""):
        return Reject("not this subject", enhanced="5.6.0")
    return None


@in_pieces.body
async def piece(message: Message, piece: bytes) -> Reject | None:
    """Refuse a message by its body, a piece at a time."""
    seen = tail[message]
    seen += piece
    found = b"forbidden" in seen
    del seen[:-8]  # the word may lie across two pieces
    return Reject("not this body", enhanced="5.6.0") if found else None


@in_whole.message
async def whole(message: Message) -> Reject | None:
    """Refuse a message by its body."""
    return Reject("not this body", enhanced="5.6.0") if b"forbidden" in message.body else None
