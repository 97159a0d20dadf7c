"""Send a message file to an SMTP server, and print what it replies.

    python3 examples/send.py examples/messages/invoice.eml

The server is that of `make run`, unless ``--server HOST:PORT`` says otherwise.
"""

from __future__ import annotations

import argparse
import re
import smtplib
import sys
from pathlib import Path


def send(server: str, content: bytes, sender: str, recipient: str) -> tuple[int, str]:
    """Return the last reply to a message: its code and its text."""
    host, _, port = server.rpartition(":")
    text: bytes | str
    with smtplib.SMTP(host, int(port), timeout=60) as smtp:
        smtp.ehlo_or_helo_if_needed()
        code, text = smtp.mail(sender)
        if code == 250:
            code, text = smtp.rcpt(recipient)
        if code == 250:
            try:
                code, text = smtp.data(content)
            except smtplib.SMTPDataError as error:  # DATA itself is refused
                code, text = error.smtp_code, error.smtp_error
    return code, text.decode(errors="replace") if isinstance(text, bytes) else text


def main() -> None:
    """Send the file that the command line names."""
    parser = argparse.ArgumentParser(description="Send a message file to an SMTP server.")
    parser.add_argument("file", type=Path, help="the message")
    parser.add_argument("--server", default="127.0.0.1:2525", metavar="HOST:PORT")
    parser.add_argument("--from", dest="sender", default="accounts@client.example")
    parser.add_argument("--to", dest="recipient", default="ann@example.org")
    given = parser.parse_args()
    try:
        content = re.sub(rb"\r?\n", b"\r\n", given.file.read_bytes())
        code, text = send(given.server, content, given.sender, given.recipient)
    except (OSError, smtplib.SMTPException) as error:
        sys.exit(f"{given.file} was not sent to {given.server}: {error}")
    print(code, text)
    sys.exit(0 if code == 250 else 1)


if __name__ == "__main__":
    main()
