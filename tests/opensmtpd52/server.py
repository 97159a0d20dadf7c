"""The contract's mail server, with an smtpd of the API 52, 51 or 50 asking the adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar, final

from mailgate.chain import Defaults, Loaded
from mailgate.contract import Delivery, Mail
from mailgate.policy import Policy
from tests.opensmtpd52.client import ENTER, Client, without_trace
from tests.opensmtpd52.policies import streams
from tests.opensmtpd52.running import Running, serving


class Smtpd52Server:
    """The `mailgate.contract.Server` of the API, with one filter.

    The API has no ESMTP parameters: those of a mail reach smtpd and nobody else.
    """

    version: ClassVar[int] = 52

    def deliver(self, policies: Sequence[Loaded], defaults: Defaults, mail: Mail) -> Delivery:
        return asyncio.run(self._deliver(policies, defaults, mail))

    def chain(self, policies: Sequence[Loaded]) -> list[Sequence[Policy | Loaded]]:
        """Return the filters, the first one first."""
        return [policies]

    async def _deliver(
        self, policies: Sequence[Loaded], defaults: Defaults, mail: Mail
    ) -> Delivery:
        chain = self.chain(policies)
        async with serving(*chain, version=self.version, defaults=defaults) as running:
            delivery = await _converse(running, mail)
            assert running.smtpd.dead == ""
        running.check()
        return delivery


@final
class Smtpd51Server(Smtpd52Server):
    """An smtpd with tags in what it says."""

    version = 51


@final
class Smtpd50Server(Smtpd52Server):
    """An smtpd that tells of no beginning, and not of every end."""

    version = 50


@final
class ChainServer(Smtpd52Server):
    """The policies are in the second of two filters; the first one reads all and says nothing."""

    def chain(self, policies: Sequence[Loaded]) -> list[Sequence[Policy | Loaded]]:
        return [[streams()], policies]


async def _converse(running: Running, mail: Mail) -> Delivery:
    client = Client(running.smtpd, mail.client)
    reply, refused = await client.connect(), list[str]()
    if reply[0] == "2":
        reply = await client.greet(mail.helo)
    if reply[0] == "2":
        reply = await client.mail(mail.sender)
    if reply[0] != "2":
        return await _ended(client, Delivery(int(reply[0]), reply))
    for recipient in mail.recipients:
        reply = await client.rcpt(recipient)
        if reply[0] != "2":
            refused.append(recipient)
        if client.closed:
            break
    if len(refused) == len(mail.recipients):
        return await _ended(client, Delivery(int(reply[0]), reply, refused))
    reply = await client.data()
    if reply == ENTER:
        await client.send(mail.raw)
        reply = await client.end()
    if reply[0] != "2":
        return await _ended(client, Delivery(int(reply[0]), reply, refused))
    taken = [recipient for recipient in mail.recipients if recipient not in refused]
    (delivered,) = client.delivered
    return await _ended(
        client,
        Delivery(
            refused=refused,
            raw=without_trace(delivered),
            sender=mail.sender,
            params=mail.params,
            recipients=taken,
        ),
    )


async def _ended(client: Client, delivery: Delivery) -> Delivery:
    if not client.closed:
        await client.quit()
    return delivery
