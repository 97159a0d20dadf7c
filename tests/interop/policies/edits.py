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
        case "add-again":
            message.headers.add("X-Twice", "the third")
            message.headers.add("X-Twice", "the fourth")
        case "prepend":
            message.headers.prepend("X-Prepended", "yes")
        case "prepend-again":
            message.headers.prepend("X-Twice", "the zeroth")
            message.headers.prepend("X-Twice", "above the zeroth")
        case "change":
            message.headers["Subject"] = "changed"
        case "change-twice":
            message.headers["X-Twice"] = "only once"
        case "change-first":
            message.headers["Date"] = "Sat, 03 Jan 2026 10:00:00 +0000"
        case "change-none":
            message.headers["X-New"] = "there was none"
        case "change-empty":
            message.headers["Subject"] = ""
        case "add-empty":
            message.headers.add("X-Added", "")
        case "fold":
            message.headers.add("X-Added", "one\r\n two\r\n\tthree")
        case "fold-changed":
            message.headers["Subject"] = "one\r\n two\r\n\tthree"
        case "blanks":
            message.headers.add("X-Added", "  two before,\ta tab, two behind  ")
        case "many":
            for number in range(20):
                message.headers.add(f"X-Added-{number % 3}", f"{number}")
                message.headers.prepend(f"X-Added-{number % 3}", f"{number}")
        case "remove":
            del message.headers["X-Twice"]
        case "remove-odd":
            del message.headers["X-Odd"]
        case "remove-all":
            for name, _ in message.headers:
                del message.headers[name]
            message.headers.add("From", "Nobody <nobody@example.org>")
            message.headers.add("Date", "Sat, 03 Jan 2026 10:00:00 +0000")
            message.headers.add("Message-ID", "<new@example.org>")


@in_message.message
async def rewrite(message: Message) -> None:
    """Replace the body, by one with a line that only dot-stuffing brings through."""
    match message.recipients[0].local:
        case "body":
            message.body = b"another body\r\n.\r\n..and its dots\r\n"
        case "footer":
            message.body += b"-- \r\na footer\r\n"
        case "no-body":
            message.body = b""
