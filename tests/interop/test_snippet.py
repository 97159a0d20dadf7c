"""What `mailgate snippet` prints, in the configuration of real servers: mail passes mailgate."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.interop import debian
from tests.interop.client import Reply, send
from tests.interop.conftest import folder_in
from tests.interop.gate import Gate
from tests.interop.installation import Installation
from tests.interop.mail import letter
from tests.interop.postfix import Postfix
from tests.interop.processes import free_port
from tests.interop.relay import Relay
from tests.interop.sendmail import Sendmail, Trees

LETTER = letter(b"hello\r\n")
REFUSED = Reply(554, "5.7.0 not here, 100% sure")


def printed(mailgate: Installation, *words: str) -> list[str]:
    return debian.run(str(mailgate.program), "snippet", *words).splitlines()


def assert_asked(server: Relay, mailgate: Installation, address: str) -> None:
    """Check that mailgate decides, and that without it nothing passes."""
    with Gate(mailgate, address, "verdicts"):
        assert send(server.port, LETTER, sender="reject.mail@example.org").plain == REFUSED
        assert send(server.port, LETTER).code == 250
        server.arrived(1)
    assert send(server.port, LETTER).code == 451
    server.arrived(1)


def places(where: str, queue: Path, scratch: Path) -> tuple[str, str]:
    """Return the address that is given to `snippet`, and the one that mailgate listens at."""
    port = free_port()
    if where == "IPv6 port":
        try:
            socket.create_server(("::1", port), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        return f"[::1]:{port}", f"*:{port}"
    address = {
        "port": f"127.0.0.1:{port}",
        "socket": f"unix:{folder_in(scratch, 'milter.')}/milter.sock",
        "socket below the queue": f"unix:{queue}/mailgate/milter.sock",
    }[where]
    return address, address


@pytest.mark.parametrize("where", ["port", "IPv6 port", "socket", "socket below the queue"])
def test_postfix(scratch: Path, postfix_package: Path, mailgate: Installation, where: str) -> None:
    work = folder_in(scratch, "postfix.")
    queue = work / "queue"
    address, listen = places(where, queue, scratch)
    lines = printed(
        mailgate, "postfix", "-p", "milter", "-l", address, "--queue-directory", str(queue)
    )
    settings = dict(line.split(" = ") for line in lines if not line.startswith("#"))
    settings["inet_protocols"] = "all"
    with Postfix(postfix_package, work, address, sasl=None, **settings) as server:
        (queue / "mailgate").mkdir()
        assert_asked(server, mailgate, listen)


class Printed(Sendmail):
    """A Sendmail with lines of sendmail.mc in place of its own filter."""

    def __init__(self, trees: Trees, work: Path, milter: str, lines: list[str]) -> None:
        super().__init__(trees, work, milter)
        self._lines = lines

    def _source(self) -> str:
        source, filters = re.subn(
            r"(?m)^INPUT_MAIL_FILTER.*$", lambda _: "\n".join(self._lines), super()._source()
        )
        assert filters == 1
        return source


@pytest.mark.parametrize("where", ["port", "IPv6 port", "socket"])
def test_sendmail(
    scratch: Path, sendmail_packages: Trees, mailgate: Installation, where: str
) -> None:
    work = folder_in(scratch, "sendmail.")
    address, listen = places(where, work, scratch)
    lines = printed(mailgate, "sendmail", "-l", address)
    with Printed(sendmail_packages, work, address, lines) as server:
        assert_asked(server, mailgate, listen)
