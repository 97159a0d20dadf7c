"""Where Postfix and Sendmail deliver: a mail server on loopback that takes every message.

It speaks only what those two say to it. Messages are kept as they came over the wire, so a test
sees what another mail server would get, ESMTP parameters and line ends included.
"""

from __future__ import annotations

import re
import socketserver
import threading
from collections.abc import Mapping
from typing import NamedTuple

from tests.interop.processes import eventually

_PATH = re.compile(r"(?:FROM|TO):<([^>]*)>((?: \S+)*) *\Z", re.IGNORECASE)
_GREETING = b"250-sink.example\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250 PIPELINING\r\n"


class Taken(NamedTuple):
    """A message as it came: lines end in CRLF, dots are not stuffed.

    ``parameters`` are the ESMTP parameters of MAIL; ``recipients`` has those of each RCPT.
    """

    sender: str
    parameters: Mapping[str, str]
    recipients: Mapping[str, Mapping[str, str]]
    content: bytes


class Sink:
    """A server that takes every message, each connection in a thread of its own."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Conversation)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def start(self) -> None:
        """Take messages from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Take no connections any more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait(self, count: int, seconds: float) -> list[Taken]:
        """Wait until this many messages have come, and return what has come."""
        eventually(lambda: len(self._server.taken) >= count, seconds)
        return list(self._server.taken)

    def forget(self) -> None:
        """Forget the messages so far."""
        self._server.taken.clear()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False  # a mail server keeps its connection open for a while

    def __init__(
        self, address: tuple[str, int], conversation: type[socketserver.BaseRequestHandler]
    ) -> None:
        super().__init__(address, conversation)
        self.taken: list[Taken] = []


class _Conversation(socketserver.StreamRequestHandler):
    """One SMTP connection."""

    server: _Server
    rbufsize = 1 << 20
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Talk until the client leaves, politely or not."""
        self._begin("", {})
        try:
            self._say(b"220 sink.example ESMTP\r\n")
            while line := self.rfile.readline():
                self._answer(line.decode().rstrip("\r\n"))
        except ConnectionError:
            pass

    def _begin(self, sender: str, parameters: Mapping[str, str]) -> None:
        self._sender = sender
        self._parameters = parameters
        self._recipients: dict[str, Mapping[str, str]] = {}

    def _say(self, reply: bytes) -> None:
        self.wfile.write(reply)

    def _answer(self, line: str) -> None:
        match line[:4].upper():
            case "EHLO":
                self._say(_GREETING)
            case "MAIL":
                self._begin(*_path(line[5:]))
                self._say(b"250 2.1.0 taken\r\n")
            case "RCPT":
                recipient, parameters = _path(line[5:])
                self._recipients[recipient] = parameters
                self._say(b"250 2.1.5 taken\r\n")
            case "DATA":
                self._say(b"354 go on\r\n")
                self._take()
            case "QUIT":
                self._say(b"221 2.0.0 bye\r\n")
            case _:
                self._say(b"250 2.0.0 taken\r\n")

    def _take(self) -> None:
        """Read the content and keep the message, unless the client leaves in the middle."""
        lines: list[bytes] = []
        while (line := self.rfile.readline()) != b".\r\n":
            if not line:
                return
            lines.append(line.removeprefix(b"."))
        message = Taken(self._sender, self._parameters, self._recipients, b"".join(lines))
        self.server.taken.append(message)
        self._say(b"250 2.0.0 taken\r\n")


def _path(argument: str) -> tuple[str, dict[str, str]]:
    """Split what follows MAIL or RCPT into the address and its ESMTP parameters."""
    match = _PATH.match(argument)
    assert match is not None, argument
    pairs = (word.partition("=") for word in match[2].split())
    return match[1], {name.upper(): value for name, _, value in pairs}
