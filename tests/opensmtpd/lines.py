"""Lines as smtpd writes them to a filter, for conversations made up in tests."""

from __future__ import annotations

TIME = "1576146008.006099"
MAIL = b"Subject: clean\r\n\r\nnothing to see\r\n"


def handshake(protocol: str = "0.7", release: str = "7.8.0") -> bytes:
    """Return what smtpd says before anything else; a release before 7.6 names no protocol."""
    named = f"config|protocol|{protocol}\n" if protocol == "0.7" else ""
    return (
        f"config|smtpd-version|{release}\n{named}config|smtp-session-timeout|300\n"
        "config|subsystem|smtp-in\nconfig|subsystem|smtp-out\nconfig|admd|mx.example.org\n"
        "config|ready\n"
    ).encode()


class Client:
    """One client's session; every method returns the lines that tell a filter of a step."""

    def __init__(self, session: str, version: str = "0.7") -> None:
        self.session = session
        self.version = version

    def report(self, event: str, *parameters: str) -> bytes:
        fields = ("report", self.version, TIME, "smtp-in", event, self.session, *parameters)
        return "|".join(fields).encode() + b"\n"

    def question(self, phase: str, parameter: bytes = b"") -> bytes:
        """Return a question; as smtpd has it, the token is the same each time."""
        token = f"{phase.encode().hex()[:12]:0<16}"
        fields = ("filter", self.version, TIME, "smtp-in", phase, self.session, token, "")
        return "|".join(fields).encode() + parameter + b"\n"

    def connect(self) -> bytes:
        host, address = "client.example.org", "192.0.2.1:33174"
        return self.report(
            "link-connect", host, "pass", address, "198.51.100.1:25"
        ) + self.question("connect", b"client.example.org|192.0.2.1")

    def ehlo(self) -> bytes:
        return self.question("ehlo", b"client.example.org") + self.report(
            "link-identify", "EHLO", "client.example.org"
        )

    def mail(self, sender: bytes = b"a@example.org") -> bytes:
        command = f"MAIL FROM:<{sender.decode('ascii', 'replace')}>"
        return self.report("protocol-client", command) + self.question("mail-from", sender)

    def began(self, message: str = "3682b2ad") -> bytes:
        """Tell that the sender was taken."""
        return self.report("tx-begin", message) + self.report(
            "tx-mail", message, "ok", "a@example.org"
        )

    def rcpt(self, recipient: bytes = b"b@example.org", message: str = "3682b2ad") -> bytes:
        address = recipient.decode("ascii", "replace")
        return (
            self.report("protocol-client", f"RCPT TO:<{address}>")
            + self.question("rcpt-to", recipient)
            + self.report("tx-rcpt", message, "ok", address)
        )

    def data(self) -> bytes:
        return self.report("protocol-client", "DATA") + self.question("data")

    def content(self, content: bytes = MAIL) -> bytes:
        """Return CRLF lines as data-lines, stuffed, and the final dot."""
        lines = content.removesuffix(b"\r\n").split(b"\r\n")
        stuffed = [b"." + line if line.startswith(b".") else line for line in lines]
        return b"".join(self.question("data-line", line) for line in (*stuffed, b"."))

    def commit(self, message: str = "3682b2ad") -> bytes:
        return (
            self.question("commit")
            + self.report("tx-commit", message, "100")
            + self.report("tx-reset", message)
        )

    def gone(self) -> bytes:
        return self.report("link-disconnect")

    def greeted(self) -> bytes:
        """Return a session up to its greeting."""
        return self.connect() + self.ehlo()

    def whole(self, content: bytes = MAIL) -> bytes:
        """Return a session with one message, to its end."""
        return (
            self.greeted()
            + self.mail()
            + self.began()
            + self.rcpt()
            + self.data()
            + self.content(content)
            + self.commit()
        )
