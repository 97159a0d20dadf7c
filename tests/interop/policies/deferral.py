"""Put a client off before it has named a message."""

from __future__ import annotations

from mailgate import Defer, Policy, Session

at_connect = Policy("at-connect")
at_helo = Policy("at-helo")


@at_connect.connect
async def busy(session: Session) -> Defer:
    """Put every client off."""
    return Defer("come back later", enhanced="4.3.2")


@at_helo.helo
async def stranger(session: Session) -> Defer | None:
    """Put off the clients that greet by one name."""
    if session.helo == "later.example.org":
        return Defer("come back later", enhanced="4.3.2")
    return None
