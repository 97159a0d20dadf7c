"""Greylisting: a stranger's first delivery is deferred, a second one later is taken.

    [[policy]]
    use = "greylist.py"
    settings = { recipients = ["example.org", "info@example.net"], delay = 300 }

What is remembered is the triplet (client network, sender, recipient): /24 of an IPv4 address, /64
of an IPv6 address, since large senders try again from a neighbouring host.

Settings:

* ``recipients``: addresses and domains that are greylisted; empty: all of them.
* ``delay``: seconds that a new triplet waits.
* ``retry``: seconds in which the second delivery has to come; later it counts as a new one.
* ``keep``: seconds that a triplet which has passed is remembered after its last mail.
* ``entries``: triplets in memory; above it the one unused for the longest time is forgotten.

Local clients and logged-in users are never deferred.  The memory is this process's own: after a
restart everybody is a stranger again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from ipaddress import ip_network
from typing import NamedTuple

from mailgate import Address, Defer, Message, Policy, Session


class Triplet(NamedTuple):
    """Who sends to whom, and from where."""

    network: str
    sender: str
    recipient: str


class Seen(NamedTuple):
    """When a triplet first came, and until when it is remembered."""

    first: float
    expires: float


class Memory:
    """The triplets, the one unused for the longest time first."""

    def __init__(
        self,
        *,
        delay: float,
        retry: float,
        keep: float,
        entries: int,
        clock: Callable[[], float],
    ) -> None:
        self._delay = delay
        self._retry = retry
        self._keep = keep
        self._entries = entries
        self._clock = clock
        self._seen: OrderedDict[Triplet, Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def wait(self, triplet: Triplet) -> float:
        """Return how many seconds a triplet still has to wait, and remember it."""
        now = self._clock()
        seen = self._seen.get(triplet)
        if seen is None or seen.expires <= now:
            seen = Seen(first=now, expires=now + self._delay + self._retry)
        wait = seen.first + self._delay - now
        if wait <= 0:
            seen = seen._replace(expires=now + self._keep)
        self._seen[triplet] = seen
        self._seen.move_to_end(triplet)
        while len(self._seen) > self._entries:
            self._seen.popitem(last=False)
        return max(0.0, wait)


def network(session: Session) -> str:
    """Return the network that a client belongs to."""
    if session.client is None:
        return ""
    prefix = 24 if session.client.version == 4 else 64
    return str(ip_network((session.client, prefix), strict=False))


def policy(
    recipients: Collection[str] = (),
    delay: float = 300,
    retry: float = 24 * 3600,
    keep: float = 36 * 24 * 3600,
    entries: int = 100_000,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Policy:
    """Greylist the listed recipients; ``clock`` is for tests."""
    policy = Policy("greylist")
    memory = Memory(delay=delay, retry=retry, keep=keep, entries=entries, clock=clock)
    # An address and a domain as a message has them: in lower case and as A-labels.
    listed = {Address(r) if "@" in r else Address(f"@{r}").domain for r in recipients}

    # An `async def` that never waits: it runs on the event loop, so it needs no lock.
    @policy.rcpt(wants={"auth"})
    async def greylist(message: Message, recipient: Address) -> Defer | None:
        session = message.session
        logged_in = message.can("auth") and session.user is not None
        if session.local or logged_in:
            return None
        if listed and recipient not in listed and recipient.domain not in listed:
            return None
        wait = memory.wait(Triplet(network(session), message.sender, recipient))
        if wait > 0:
            text = f"greylisted, please try again in {wait:.0f} seconds"
            return Defer(text, code=450, enhanced="4.2.0")
        return None

    return policy
