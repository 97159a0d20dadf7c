"""The contract with MTAs of old: version 2 to 4, version 6 without its bits, lines with bare CRs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import final

import pytest

from mailgate.chain import Defaults, Loaded
from mailgate.contract import CASES, Case, Delivery, Mail, check
from mailgate.contract.case import PLAIN
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate_milter.negotiate import CAPABILITIES
from mailgate_milter.wire import Offer
from tests.milter.mta import Channel, Client, Mta
from tests.milter.postfix import Postfix
from tests.milter.sendmail import Sendmail
from tests.milter.server import MilterServer

OFFERS = {
    "version-2": Offer(2, 0x3F, 0x7F),  # milter_protocol = 2, and Sendmail 8.10 to 8.12
    "version-3": Offer(3, 0x3F, 0x17F),
    "version-4": Offer(4, 0x3F, 0x37F),
    "version-6-without-bits": Offer(6, 0x1FF, 0),
}


@final
class Old(MilterServer):
    """An MTA that makes another offer."""

    def __init__(self, kind: str, offer: Offer) -> None:
        self.kind = kind
        self.offer = offer

    def mta(self, open_channel: Callable[[], Awaitable[Channel]], client: Client) -> Mta:
        if self.kind == "sendmail":
            return Sendmail(open_channel, client, offer=self.offer)
        return Postfix(open_channel, client, offer=self.offer, replaces_stray_cr=False)


def needs(case: Case) -> set[str]:
    return {name for handler in case.policy().handlers for name in handler.needs}


def as_delivered(case: Case) -> Case:
    """Return a case as such an MTA can serve it.

    It puts a space before each value itself, and takes an empty one for a deletion; so a field
    without a value has two.
    """
    if case.name != "header_emptied":
        return case
    raw = case.delivery.raw.replace(b"X-Mailer: \r\n", b"X-Mailer:  \r\n")
    return replace(case, delivery=replace(case.delivery, raw=raw))


@pytest.mark.parametrize("kind", ["postfix", "sendmail"])
@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_outcome_is_the_same_or_the_mta_is_refused(case: Case, offer: str, kind: str) -> None:
    server = Old(kind, OFFERS[offer])
    if "change_sender" in needs(case) and server.offer.version < 6:
        server.faults = ["the filter has closed the connection"]
        delivery = server.deliver([Loaded(case.policy(), case.name)], Defaults(), case.mail)
        assert delivery.code == 4
        assert not delivery.raw
    else:
        check(as_delivered(case), server, CAPABILITIES)


# RFC 5321 2.3.8 forbids it; Postfix makes it a blank since January 2024, and passed it on before.
BARE_CR = PLAIN.replace(b"last line", b"a bare \r inside\r\n\r\r\nlast line")


def looks() -> Policy:
    policy = Policy()

    @policy.message
    async def look(message: Message) -> None:
        assert message.raw == BARE_CR

    return policy


def appends() -> Policy:
    policy = Policy()

    @policy.message
    async def append(message: Message) -> None:
        message.body += b"footer\r\n"

    return policy


@pytest.mark.parametrize("kind", ["postfix", "sendmail"])
@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize(("policy", "footer"), [(looks, b""), (appends, b"footer\r\n")])
def test_a_bare_cr_in_a_line_stays(
    policy: Callable[[], Policy], footer: bytes, offer: str, kind: str
) -> None:
    case = Case(policy.__name__, policy, Delivery(raw=BARE_CR + footer), Mail(raw=BARE_CR))
    check(case, Old(kind, OFFERS[offer]), CAPABILITIES)
