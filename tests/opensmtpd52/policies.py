"""Policies that several tests of this folder serve."""

from __future__ import annotations

from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session


def endings(policy: Policy) -> list[str]:
    """Return what becomes of each message and session, filled as it is told."""
    told: list[str] = []

    @policy.done
    async def done(message: Message) -> None:
        assert message.outcome is not None
        told.append(message.outcome.result)

    @policy.close
    async def close(session: Session) -> None:
        told.append("closed")

    return told


def reads() -> Policy:
    """Return a policy that holds each message, and changes nothing."""
    policy = Policy("reads")

    @policy.message
    async def message(message: Message) -> None:
        message.body  # noqa: B018

    return policy


def streams() -> Policy:
    """Return a policy that looks at each message as it passes by."""
    policy = Policy("streams")

    @policy.body
    async def body(message: Message, piece: bytes) -> None: ...

    return policy
