"""Small policies that every protocol can serve."""

from __future__ import annotations

from mailgate import Message, Policy, Reject

tagging = Policy("tagging")
footing = Policy("footing")
failing = Policy("failing")
failing_closed = Policy("failing-closed")
failing_open = Policy("failing-open")
sizing = Policy("sizing")


@tagging.headers
async def tag(message: Message) -> None:
    """Mark the subject, unfolded as it is read."""
    message.headers["Subject"] = f"[list] {message.headers['Subject']}"
    message.headers["List-Id"] = "<list.example.org>"


@footing.message
def foot(message: Message) -> None:
    """Add a line to the plain text of a multipart message, and leave its other parts."""
    mail = message.parse()
    for part in mail.walk():
        if part.get_content_type() == "text/plain":
            part.set_payload(f"{part.get_payload()}-- \r\na footer\r\n")
    message.replace(mail)


@failing.rcpt
async def fail(message: Message, recipient: object) -> None:
    """Fail, once one looks."""
    raise RuntimeError("a fault")


@failing_closed.message(on_error="reject")
async def fail_closed(message: Message) -> Reject | None:
    """Fail, and refuse by that."""
    raise RuntimeError("a fault")


@failing_open.message(on_error="continue")
async def fail_open(message: Message) -> None:
    """Fail in the middle of an edit, which goes with it."""
    message.headers.add("X-Half", "done")
    message.body = b"half done\r\n"
    raise RuntimeError("a fault")


@sizing.message
async def size(message: Message) -> Reject | None:
    """Refuse what is over a megabyte, and tell the size of the rest."""
    if message.size > 1_000_000:
        return Reject("a megabyte is enough", code=552, enhanced="5.3.4")
    message.headers.add("X-Size", str(message.size))
    return None
