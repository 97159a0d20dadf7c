"""A policy that is asked everything, holds every message and refuses nothing.

An address named ``slow`` and a message without a body keep it thinking for a moment.
"""

from __future__ import annotations

import asyncio

from mailgate import Address, Event, Message, Policy, Reject, Session

policy = Policy("everything")


@policy.connect
async def connect(session: Session) -> Reject | None:
    return None


@policy.helo
async def helo(session: Session) -> Reject | None:
    return None


@policy.mail
async def mail(message: Message) -> Reject | None:
    if message.sender.local == "slow":
        await asyncio.sleep(0.2)
    return None


@policy.rcpt
async def rcpt(message: Message, recipient: Address) -> Reject | None:
    if recipient.local == "slow":
        await asyncio.sleep(0.2)
    return None


@policy.data
async def data(message: Message) -> Reject | None:
    return None


@policy.headers
async def headers(message: Message) -> Reject | None:
    return None


@policy.body
async def body(message: Message, piece: bytes) -> Reject | None:
    return None


@policy.message(
    wants={"change_sender", "add_recipient", "remove_recipient", "quarantine", "discard"}
)
async def whole(message: Message) -> Reject | None:
    if not message.body:
        await asyncio.sleep(0.2)
    return None


@policy.command("XFROB")
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
    repr((session, dict(session.macros)))
