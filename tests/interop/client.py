"""A blocking SMTP and LMTP client that sends the bytes it is given and shows each reply.

smtplib mends line ends, raises on refusals and hides the text of a reply; a test wants to
see all three.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, cast

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])([ -])([^\r\n\0]*)\r\n\Z")


class Malformed(Exception):
    """The server sent something that is not one whole SMTP reply."""


# Sendmail puts the address in question before a text at MAIL and RCPT, ours included.
_ADDRESS = re.compile(r"(?m)^([245](?:\.\d+){2} )<[^>]*>\.\.\. ")


class Reply(NamedTuple):
    """A reply: its code, and its text with lines joined by a line feed."""

    code: int
    text: str

    @property
    def plain(self) -> Self:
        """The reply without the address that Sendmail puts before a text."""
        return self._replace(text=_ADDRESS.sub(r"\1", self.text))


class Client:
    """One connection to a port on loopback, or to a unix socket.

    The banner is read at once and kept. Each reply is checked against the grammar of
    RFC 5321, and to be the only one: octets that arrive before the next command are an error.
    """

    def __init__(self, place: int | Path, timeout: float = 30) -> None:
        self._socket = _connected(place, timeout)
        self._timeout = timeout
        self._received = b""
        try:
            self.banner = self.reply()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up without QUIT."""
        self._socket.close()

    def ask(self, line: str) -> None:
        """Send one command line and wait for nothing."""
        self._unasked(0)
        self._socket.sendall(line.encode() + b"\r\n")

    def reply(self) -> Reply:
        """Read one reply, of one line or several."""
        codes: list[bytes] = []
        texts: list[bytes] = []
        while True:
            match = _REPLY_LINE.match(line := self._line())
            if match is None:
                raise Malformed(f"not a reply line: {line!r}")
            codes.append(match[1])
            texts.append(match[3])
            if match[2] == b" ":
                break
        if len(set(codes)) > 1:
            raise Malformed(f"a reply with several codes: {codes!r}")
        return Reply(int(codes[0]), b"\n".join(texts).decode())

    def command(self, line: str) -> Reply:
        """Send one command line and return its reply."""
        self.ask(line)
        return self.reply()

    def pipeline(self, *lines: str) -> list[Reply]:
        """Send command lines at once and return their replies: RFC 2920."""
        self._unasked(0)
        self._socket.sendall(b"".join(line.encode() + b"\r\n" for line in lines))
        return [self.reply() for _ in lines]

    def ehlo(self, name: str = "client.example.org") -> Reply:
        """Greet the server."""
        return self.command(f"EHLO {name}")

    def lhlo(self, name: str = "client.example.org") -> Reply:
        """Greet the server as LMTP wants it: RFC 2033 4.1."""
        return self.command(f"LHLO {name}")

    def starttls(self, certificate: Path, name: str) -> Reply:
        """Ask for TLS; begin it if the server agrees, with the host of this name.

        The server's certificate must be the one in the file.
        """
        reply = self.command("STARTTLS")
        if reply.code == 220:
            context = ssl.create_default_context(cafile=certificate)
            self._socket = context.wrap_socket(self._socket, server_hostname=name)
        return reply

    @property
    def address(self) -> tuple[str, int]:
        """The address and the port that the client connects from."""
        address, port = self._socket.getsockname()
        return address, port

    @property
    def cipher(self) -> tuple[str, str, int]:
        """The name of the cipher, the version of TLS, and the bits of the key."""
        cipher = cast("ssl.SSLSocket", self._socket).cipher()
        assert cipher is not None
        return cipher

    def mail(self, sender: str) -> Reply:
        """Begin a message."""
        return self.command(f"MAIL FROM:<{sender}>")

    def rcpt(self, recipient: str) -> Reply:
        """Name a recipient."""
        return self.command(f"RCPT TO:<{recipient}>")

    def data(self, content: bytes) -> Reply:
        """Send DATA, the content and the final dot; return the last reply.

        A refused DATA sends no content.
        """
        begun = self.command("DATA")
        if begun.code != 354:
            return begun
        self.content(content)
        self._socket.sendall(b".\r\n")
        return self.reply()

    def deliver(
        self,
        content: bytes,
        *,
        sender: str = "alice@example.org",
        to: str | Sequence[str] = "bob@example.test",
    ) -> Reply:
        """Send one message; return the first refusal or the last reply."""
        recipients = [to] if isinstance(to, str) else to
        for command in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{r}>" for r in recipients)):
            reply = self.command(command)
            if reply.code != 250:
                return reply
        return self.data(content)

    def content(self, lines: bytes) -> None:
        """Send whole lines of a message, dot-stuffed and otherwise as they are."""
        self._socket.sendall(re.sub(rb"(?m)^\.", b"..", lines))

    def octets(self, octets: bytes) -> None:
        """Send octets as they are: a chunk of BDAT."""
        self._socket.sendall(octets)

    def quit(self) -> Reply:
        """Say goodbye."""
        return self.command("QUIT")

    def quiet(self, seconds: float = 0.3) -> bool:
        """Tell whether nothing arrives and the connection stays open for a while."""
        try:
            self._unasked(seconds)
        except Malformed:
            return False
        return True

    def hung_up(self) -> bool:
        """Tell whether the server has closed the connection, waiting for it."""
        try:
            return self._received + self._socket.recv(1) == b""
        except ConnectionError:
            return True

    def _unasked(self, seconds: float) -> None:
        """Refuse octets, or an end, that no command has asked for."""
        if self._received:
            raise Malformed(f"unasked for: {self._received!r}")
        self._socket.settimeout(seconds)
        try:
            octets = self._socket.recv(4096)
        except (BlockingIOError, TimeoutError, ssl.SSLWantReadError):
            return
        finally:
            self._socket.settimeout(self._timeout)
        raise Malformed(f"unasked for: {octets!r}")

    def _line(self) -> bytes:
        """Read up to a line feed."""
        while b"\n" not in self._received:
            piece = self._socket.recv(65536)
            if not piece:
                raise Malformed(f"the server hung up after {self._received!r}")
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return line + b"\n"


def _connected(place: int | Path, timeout: float) -> socket.socket:
    if isinstance(place, int):
        return socket.create_connection(("127.0.0.1", place), timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    connection.connect(str(place))
    return connection


def send(
    port: int,
    content: bytes,
    *,
    sender: str = "alice@example.org",
    to: str | Sequence[str] = "bob@example.test",
    timeout: float = 30,
) -> Reply:
    """Send one message in a session of its own; return the first refusal or the last reply."""
    with Client(port, timeout) as client:
        if client.banner.code != 220:
            return client.banner
        reply = client.ehlo()
        if reply.code == 250:
            reply = client.deliver(content, sender=sender, to=to)
        if reply.code != 421:  # RFC 5321 3.8: the server hangs up
            client.quit()
        return reply
