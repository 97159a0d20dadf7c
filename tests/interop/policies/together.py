"""Make every kind of edit of one message, the header's all under one name."""

from __future__ import annotations

from mailgate import Message, Policy

policy = Policy("together")


@policy.message(needs={"change_sender", "add_recipient", "remove_recipient"})
async def edit(message: Message) -> None:
    """Change one field and drop two, add three, put two on top; change body and envelope."""
    headers = message.headers
    headers["X-Gate"] = "the first, changed"
    for value in ("below", "below that", "at the very end"):
        headers.add("X-Gate", value)
    for value in ("below the very top", "at the very top"):
        headers.prepend("X-Gate", value)
    headers["Date"] = "Sat, 03 Jan 2026 10:00:00 +0000"
    message.body = b"another body\r\n.\r\n..\r\n"
    message.change_sender("bounces@example.org", {"ENVID": "QQ314159"})
    message.add_recipient("dave@example.test")
    message.remove_recipient("carol@example.test")
