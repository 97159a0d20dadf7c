"""The same policy and the same message end the same way behind OpenSMTPD, Postfix and Sendmail.

The servers' own trace fields are taken off, and what Sendmail puts before a reply text at MAIL
and RCPT. A message without a blank line gets one from Sendmail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TypeAlias

import pytest

from tests.interop.client import Client, Reply
from tests.interop.conftest import folder_in
from tests.interop.gate import Gate
from tests.interop.installation import Installation
from tests.interop.pairs import PAIRS, Delivery, Letter, Pair, Serving
from tests.interop.postfix import Postfix
from tests.interop.relay import Relay
from tests.interop.sendmail import Sendmail
from tests.interop.smtpd import OpenSMTPD


class Server(Protocol):
    """A mail server with the policies of a pair behind it."""

    @property
    def port(self) -> int: ...

    def delivery(self, copies: int) -> Delivery | None:
        """Return what has been delivered, None for nothing; ``copies`` is one a recipient."""


Behind: TypeAlias = Callable[[Serving], Mapping[str, Server]]


class OverFilter:
    """OpenSMTPD, which delivers to a maildir: line ends are LF, and recipients have copies."""

    def __init__(self, server: OpenSMTPD) -> None:
        self._server = server

    @property
    def port(self) -> int:
        return self._server.port

    def delivery(self, copies: int) -> Delivery | None:
        """Return what lies in the maildir, and empty it."""
        messages = self._server.delivered(copies)
        self._server.forget()
        if not messages:
            return None
        [(sender, content)] = {(m.sender, m.content) for m in messages}
        recipients = frozenset(m.recipient for m in messages)
        return Delivery(content.replace(b"\n", b"\r\n"), sender, recipients)


class OverMilter:
    """Postfix or Sendmail, which relay one message to all recipients."""

    def __init__(self, server: Relay) -> None:
        self._server = server

    @property
    def port(self) -> int:
        return self._server.port

    def delivery(self, copies: int) -> Delivery | None:
        """Return what has come to the sink, and forget it."""
        messages = self._server.arrived(1 if copies else 0)
        self._server.sink.forget()
        if not messages:
            return None
        [message] = messages
        return Delivery(message.content, message.sender, frozenset(message.recipients))


@pytest.fixture(scope="module")
def behind(
    scratch: Path,
    mailgate: Installation,
    opensmtpd: Path,
    address: str,
    postfix: Postfix,
    sendmail: Sendmail,
) -> Iterator[Behind]:
    """Put policies behind all three servers; those that are there already stay."""
    servers: dict[str, Server] = {}
    last: Serving | None = None
    stack = ExitStack()

    def behind(serving: Serving) -> Mapping[str, Server]:
        nonlocal last
        if serving != last:
            stack.close()
            settings = dict(serving.settings)
            command = mailgate.run(*serving.policies, **settings)
            smtpd = OpenSMTPD(opensmtpd, folder_in(scratch, "smtpd."), command)
            servers["OpenSMTPD"] = OverFilter(stack.enter_context(smtpd))
            stack.enter_context(Gate(mailgate, address, *serving.policies, **settings))
            servers["Postfix"] = OverMilter(postfix)
            servers["Sendmail"] = OverMilter(sendmail)
            last = serving
        return servers

    with stack:
        yield behind


def refusals(port: int, letter: Letter) -> Iterator[Reply]:
    """Send a letter to those recipients that are taken; yield the replies that refuse."""
    with Client(port) as client:
        for reply in (client.banner, client.ehlo(letter.helo), client.mail(letter.sender)):
            if reply.code >= 400:
                yield reply.plain
                return
        replies = [client.rcpt(recipient) for recipient in letter.recipients]
        if any(reply.code < 400 for reply in replies):
            replies.append(client.data(letter.content))
        yield from (reply.plain for reply in replies if reply.code >= 400)


def ended(delivery: Delivery | None) -> Delivery | None:
    """Return a delivery with a blank line after its header, where there was none."""
    if delivery is None or b"\r\n\r\n" in delivery.content:
        return delivery
    return Delivery(delivery.content + b"\r\n", delivery.sender, delivery.recipients)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_pair_ends_the_same_way(behind: Behind, pair: Pair) -> None:
    copies = len(pair.delivery.recipients) if pair.delivery is not None else 0
    for name, server in behind(pair.serving).items():
        heard = tuple(refusals(server.port, pair.letter))
        assert (name, heard) == (name, pair.refusals)
        assert (name, ended(server.delivery(copies))) == (name, ended(pair.delivery))
