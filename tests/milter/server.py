"""The contract's mail server, with Postfix or Sendmail asking the adapter."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import final

from mailgate.chain import Defaults, Loaded
from mailgate.contract import Delivery, Mail
from tests.milter.mta import Channel, Client, Mta
from tests.milter.postfix import Postfix
from tests.milter.queued import Queued
from tests.milter.running import run, serving
from tests.milter.sendmail import Sendmail


class MilterServer(ABC):
    """The `mailgate.contract.Server` of the milter protocol."""

    faults: Sequence[str] = ()
    """What the MTA has to find wrong with the filter."""

    @abstractmethod
    def mta(self, open_channel: Callable[[], Awaitable[Channel]], client: Client) -> Mta:
        """Make the MTA."""

    def deliver(self, policies: Sequence[Loaded], defaults: Defaults, mail: Mail) -> Delivery:
        async def whole() -> Delivery:
            async with serving(*policies, defaults=defaults) as running:
                mta = self.mta(running.open, Client("client.example", mail.client))
                delivery = await _converse(mta, mail)
                await mta.end()
            assert mta.faults == list(self.faults)
            assert running.errors == []
            return delivery

        return run(whole)


@final
class PostfixServer(MilterServer):
    """Postfix as the mail server."""

    def mta(self, open_channel: Callable[[], Awaitable[Channel]], client: Client) -> Mta:
        return Postfix(open_channel, client)


@final
class SendmailServer(MilterServer):
    """Sendmail as the mail server."""

    def mta(self, open_channel: Callable[[], Awaitable[Channel]], client: Client) -> Mta:
        return Sendmail(open_channel, client)


async def _converse(mta: Mta, mail: Mail) -> Delivery:
    refused: list[str] = []
    reply = (await mta.connect()).decode()
    if reply[0] == "2":
        reply = await _say(mta, f"EHLO {mail.helo}")
    if reply[0] == "2":
        arguments = "".join(f" {name}={value}" for name, value in mail.params.items())
        reply = await _say(mta, f"MAIL FROM:<{mail.sender}>{arguments}")
    if reply[0] != "2":
        return Delivery(int(reply[0]), reply)
    for recipient in mail.recipients:
        reply = await _say(mta, f"RCPT TO:<{recipient}>")
        if reply[0] != "2":
            refused.append(recipient)
    if len(refused) == len(mail.recipients):
        return Delivery(int(reply[0]), reply, refused)
    reply = await _say(mta, "DATA")
    if reply[0] == "3":
        stuffed = re.sub(rb"(?m)^\.", b"..", mail.raw)
        reply = (await mta.say(stuffed + b".\r\n")).decode()
    await _say(mta, "QUIT")
    if reply[0] != "2":
        return Delivery(int(reply[0]), reply, refused)
    return _delivery(mta, mail, refused)


async def _say(mta: Mta, line: str) -> str:
    return (await mta.say(line.encode() + b"\r\n")).decode()


def _delivery(mta: Mta, mail: Mail, refused: Sequence[str]) -> Delivery:
    """Return what became of a message that was taken."""
    kept = [*mta.delivered, *mta.held]
    if not kept:
        return Delivery(sender=mail.sender, recipients=[], refused=refused)
    (queued,) = kept
    envelope = queued.envelope
    return Delivery(
        refused=refused,
        raw=_without_trace(queued),
        sender=envelope.sender[1:-1].decode(),
        params={name.decode(): value.decode() for name, value in envelope.sender_params.items()},
        recipients=[path[1:-1].decode() for path in envelope.recipients],
        held=bool(mta.held),
    )


def _without_trace(queued: Queued) -> bytes:
    trace = queued.trace.replace(b"\n", b"\r\n") + b"\r\n"
    assert queued.raw.count(trace) == 1, "the MTA's own field was touched"
    return queued.raw.replace(trace, b"")
