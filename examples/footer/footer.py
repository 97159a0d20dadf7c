"""Edits of header fields, and a footer under plain-text mail.

    [[policy]]
    use = "footer.py"
    settings = { text = "-- \\nExample Ltd, 1 Mail Street", list_id = "<staff.example.org>" }

Settings:

* ``text``: the footer; ``""``: none, and then no body is read, let alone changed.
* ``list_id``: the value of ``List-Id``, which replaces one that is there; ``""``: left alone.
* ``remove``: header fields that are removed.

A footer is added to a message that is one plain text, in its own character set and transfer
encoding; ``X-Footer: added`` marks it.  Everything else keeps its body octet for octet:
multipart messages, signed and encrypted ones among them, attachments, and text in a character
set that lacks a letter of the footer.  A DKIM signature over the body does not survive a
footer, so this belongs before the signer.
"""

from __future__ import annotations

import base64
import quopri
from collections.abc import Collection
from email.message import EmailMessage

from mailgate import Message, Policy


def is_plain_text(mail: EmailMessage) -> bool:
    """Tell whether a message is one text to read."""
    return mail.get_content_type() == "text/plain" and not mail.is_attachment()


def append(mail: EmailMessage, body: bytes, text: str) -> bytes | None:
    """Return a plain-text body with a text below it, or None where it cannot be written."""
    charset = mail.get_content_charset("us-ascii")
    encoding = str(mail.get("Content-Transfer-Encoding", "7bit")).strip().lower()
    try:
        if "\r\n".encode(charset) != b"\r\n":
            return None  # UTF-16 and the like
        footer = "\r\n".join(["", *text.splitlines(), ""]).encode(charset)
        match encoding:
            case "7bit" if footer.isascii():
                return body + footer
            case "8bit":
                return body + footer
            case "quoted-printable":
                return body + quopri.encodestring(footer.replace(b"\r\n", b"\n"))
            case "base64":
                return base64.encodebytes(base64.b64decode(body) + footer)
    except (LookupError, ValueError):  # an unknown character set, a letter that it lacks
        return None
    return None


def policy(
    text: str = "-- \nThis message passed through mailgate.",
    list_id: str = "",
    remove: Collection[str] = ("X-Mailer",),
) -> Policy:
    """Edit header fields and add a footer."""
    policy = Policy("footer")

    # Header fields alone: the body passes by and is not held.
    @policy.headers
    async def edit_headers(message: Message) -> None:
        for name in remove:
            del message.headers[name]
        if list_id:
            message.headers["List-Id"] = list_id

    if not text:
        return policy

    # A `def` handler runs in a thread: parsing a message may take some milliseconds.
    @policy.message
    def add_footer(message: Message) -> None:
        mail = message.parse()
        body = append(mail, message.body, text) if is_plain_text(mail) else None
        if body is not None:
            message.body = body
            message.headers["X-Footer"] = "added"

    return policy
