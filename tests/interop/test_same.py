"""The same policy and the same message end the same way behind every mail server.

The servers' own trace fields are taken off, and what Sendmail puts before a reply text at MAIL
and RCPT. A message without a blank line gets one from Sendmail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.interop.client import Client, Reply
from tests.interop.conftest import folder_in
from tests.interop.dovecot import Dovecot
from tests.interop.exim import Exim
from tests.interop.gate import Gate, Table
from tests.interop.installation import Installation
from tests.interop.mail import letter
from tests.interop.pairs import PAIRS, Delivery, Letter, Pair, Serving
from tests.interop.postfix import BeforeQueue, Postfix
from tests.interop.processes import free_port
from tests.interop.relay import Relay
from tests.interop.sendmail import Sendmail
from tests.interop.smtpd import OpenSMTPD

PROXIES = ("smtp before Postfix", "smtp before Exim", "smtp to Dovecot LMTP")


@dataclass(frozen=True, slots=True)
class Way:
    """A port where the policies of a pair decide, and what finds what was delivered from there.

    That is told how many copies to wait for, one a recipient, and returns None for nothing.
    """

    port: int
    delivery: Callable[[int], Delivery | None]
    lmtp: bool = False


Behind: TypeAlias = Callable[[Serving], Mapping[str, Way]]


def kept(server: OpenSMTPD | Dovecot, copies: int) -> Delivery | None:
    """Return what lies in maildirs, and empty them: line ends are LF, recipients have copies."""
    messages = server.delivered(copies)
    server.forget()
    if not messages:
        return None
    [(sender, content)] = {(m.sender, m.content) for m in messages}
    recipients = frozenset(m.recipient for m in messages)
    return Delivery(content.replace(b"\n", b"\r\n"), sender, recipients)


def relayed(server: Relay, copies: int) -> Delivery | None:
    """Return what has come to the sink, one message to all recipients, and forget it."""
    messages = server.arrived(1 if copies else 0)
    server.forget()
    if not messages:
        return None
    [message] = messages
    return Delivery(message.content, message.sender, frozenset(message.recipients))


@pytest.fixture(scope="module")
def second(scratch: Path, postfix_package: Path) -> Iterator[BeforeQueue]:
    """Run a Postfix whose second smtpd takes what has passed a filter."""
    nobody = f"127.0.0.1:{free_port()}"
    with BeforeQueue(postfix_package, folder_in(scratch, "postfix."), nobody) as server:
        yield server


@pytest.fixture(scope="module")
def proxied(
    mailgate: Installation, second: BeforeQueue, light: Exim, dovecot: Dovecot
) -> Callable[[Serving, ExitStack], Mapping[str, Way]]:
    """Put policies before a Postfix, an Exim and a Dovecot, until a stack is closed."""
    upstreams = (f"smtp://127.0.0.1:{second.back}", light.url, dovecot.url)
    deliveries = (partial(relayed, second), partial(relayed, light), partial(kept, dovecot))

    def proxied(serving: Serving, stack: ExitStack) -> Mapping[str, Way]:
        def gate(upstream: str) -> Gate:
            spoken = "lmtp:" if upstream.startswith("lmtp") else ""
            table: Table = {"upstream": upstream}
            return Gate(
                mailgate,
                f"{spoken}127.0.0.1:{free_port()}",
                *serving.policies,
                protocol="smtp",
                table=table,
                settings=dict(serving.settings),
            )

        with ThreadPoolExecutor() as pool:
            gates = list(pool.map(gate, upstreams))
        for each in gates:
            stack.enter_context(each)
        return {
            name: Way(each.port, delivery, lmtp="LMTP" in name)
            for name, each, delivery in zip(PROXIES, gates, deliveries, strict=True)
        }

    return proxied


@pytest.fixture(scope="module")
def behind(
    scratch: Path,
    mailgate: Installation,
    opensmtpd: Path,
    address: str,
    postfix: Postfix,
    sendmail: Sendmail,
    proxied: Callable[[Serving, ExitStack], Mapping[str, Way]],
) -> Iterator[Behind]:
    """Put policies behind all the servers; those that are there already stay."""
    ways: dict[str, Way] = {}
    last: Serving | None = None
    stack = ExitStack()

    def behind(serving: Serving) -> Mapping[str, Way]:
        nonlocal last
        if serving != last:
            stack.close()
            settings = dict(serving.settings)
            command = mailgate.run(*serving.policies, **settings)
            smtpd = OpenSMTPD(opensmtpd, folder_in(scratch, "smtpd."), command)
            stack.enter_context(smtpd)
            stack.enter_context(Gate(mailgate, address, *serving.policies, settings=settings))
            ways["OpenSMTPD"] = Way(smtpd.port, partial(kept, smtpd))
            for name, server in (("Postfix", postfix), ("Sendmail", sendmail)):
                ways[name] = Way(server.port, partial(relayed, server))
            ways.update(proxied(serving, stack))
            last = serving
        return ways

    with stack:
        yield behind


def refusals(way: Way, letter: Letter) -> Iterator[Reply]:
    """Send a letter to those recipients that are taken; yield the replies that refuse."""
    with Client(way.port) as client:
        greet = client.lhlo if way.lmtp else client.ehlo
        for reply in (client.banner, greet(letter.helo), client.mail(letter.sender)):
            if reply.code >= 400:
                yield reply.plain
                return
        replies = [client.rcpt(recipient) for recipient in letter.recipients]
        accepted = sum(reply.code < 400 for reply in replies)
        if accepted:
            replies.append(client.data(letter.content))
        if way.lmtp:
            replies += [client.reply() for _ in range(accepted - 1)]
        yield from (reply.plain for reply in replies if reply.code >= 400)


def ended(delivery: Delivery | None) -> Delivery | None:
    """Return a delivery with a blank line after its header, where there was none."""
    if delivery is None or b"\r\n\r\n" in delivery.content:
        return delivery
    return Delivery(delivery.content + b"\r\n", delivery.sender, delivery.recipients)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_pair_ends_the_same_way(behind: Behind, pair: Pair) -> None:
    copies = len(pair.delivery.recipients) if pair.delivery is not None else 0
    for name, way in behind(pair.serving).items():
        heard = tuple(refusals(way, pair.letter))
        assert (name, heard) == (name, pair.refusals)
        assert (name, ended(way.delivery(copies))) == (name, ended(pair.delivery))


UNFIT = {
    # Servers differ in what they take for the end of a line, and so of a message: RFC 5321 2.3.8.
    "a bare CR": letter(b"one\rtwo\r\n"),
    "a bare LF": letter(b"one\ntwo\r\n"),
    # RFC 5321 4.5.2 forbids it, and programs in C see the end of a message in it.
    "NUL": letter(b"one\0two\r\n"),
    # RFC 5321 4.5.3.1.6 allows 998; servers cut what is far beyond it, or hang up.
    "a line of 65,536 octets": letter(b"x" * 65_536 + b"\r\n"),
}
"""The messages that cannot be in the table, and why: they are refused by the proxy alone."""


@pytest.mark.parametrize("octets", UNFIT)
def test_what_servers_read_differently_is_refused(behind: Behind, octets: str) -> None:
    ways = behind(PAIRS[-1].serving)
    for name in PROXIES:
        [refusal] = refusals(ways[name], Letter(UNFIT[octets]))
        assert (name, refusal.code, refusal.text[:6]) == (name, 554, "5.6.0 ")
        assert ways[name].delivery(0) is None
