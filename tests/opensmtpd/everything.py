"""A policy that is asked everything, holds every message and refuses nothing.

It is for both protocols of OpenSMTPD: of the older one some stages are never asked.  A sender
named ``slow`` keeps it thinking for a moment.
"""

from __future__ import annotations

import asyncio

from mailgate import Address, Attempt, Event, Message, Policy, Reject, Session

policy = Policy("everything")


@policy.connect
async def connect(session: Session) -> Reject | None:
    return None


@policy.helo
async def helo(session: Session) -> Reject | None:
    return None


@policy.starttls(optional=True)
async def starttls(session: Session) -> Reject | None:
    return None


@policy.auth(optional=True)
async def auth(session: Session, attempt: Attempt) -> Reject | None:
    return None


@policy.mail
async def mail(message: Message) -> Reject | None:
    if message.sender.local == "slow":
        await asyncio.sleep(0.3)
    return None


@policy.rcpt
async def rcpt(message: Message, recipient: Address) -> Reject | None:
    return None


@policy.data
async def data(message: Message) -> Reject | None:
    return None


@policy.message
async def whole(message: Message) -> Reject | None:
    return None


@policy.command("NOOP", "RSET", "QUIT", optional=True)
async def command(session: Session, verb: str, argument: str) -> Reject | None:
    return None


@policy.event
async def event(session: Session, event: Event) -> None:
    repr((session, event))


@policy.done
async def done(message: Message) -> None:
    repr((message, message.outcome))


@policy.close
async def close(session: Session) -> None:
    repr(session)
