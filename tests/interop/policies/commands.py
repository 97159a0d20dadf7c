"""Answer a command that the mail server does not know."""

from __future__ import annotations

from mailgate import Policy, Reject, Session

policy = Policy("commands")


@policy.command("XYZZY")
async def xyzzy(session: Session, verb: str, argument: str) -> Reject:
    """Say what is always said to this."""
    return Reject("nothing happens", code=502, enhanced="5.5.1")
