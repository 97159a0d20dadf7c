"""Edit a message as its first recipient's local part says, at either stage that can."""

from __future__ import annotations

from mailgate import Message, Policy

in_headers = Policy("in-headers")
in_message = Policy("in-message")


@in_headers.headers
@in_message.message
async def edit(message: Message) -> None:
    """Make one edit of the header."""
    match message.recipients[0].local:
        case "add":
            message.headers.add("X-Added", "yes")
        case "prepend":
            message.headers.prepend("X-Prepended", "yes")
        case "change":
            message.headers["Subject"] = "changed"
        case "remove":
            del message.headers["X-Twice"]


@in_message.message
async def rewrite(message: Message) -> None:
    """Replace the body, by one with a line that only dot-stuffing brings through."""
    if message.recipients[0].local == "body":
        message.body = b"another body\r\n.\r\n..and its dots\r\n"
