"""Log how each message and each connection ends."""

from __future__ import annotations

import logging

from mailgate import Message, Policy, Session

log = logging.getLogger(__name__)
policy = Policy("outcomes")


@policy.message
async def look(message: Message) -> None:
    """Want the content."""


@policy.done
async def done(message: Message) -> None:
    """Tell the end of a message."""
    if message.outcome is not None:
        log.info("outcome of %s: %s", message.sender.local, message.outcome.result)


@policy.close
async def close(session: Session) -> None:
    """Tell the end of a connection."""
    log.info("closed: %s", session.helo)
