"""A policy that is asked everything, and refuses what the hostile cases want to have refused."""

from __future__ import annotations

from mailgate import Address, Attempt, Defer, Event, Message, Policy, Reject, Session


def gate(*, whole: bool = True) -> Policy:
    """Make the policy; with ``whole`` it wants to see messages as a whole."""
    policy = Policy("gate")

    @policy.connect
    async def connect(session: Session) -> Reject | None:
        return None

    @policy.helo
    async def helo(session: Session) -> Reject | None:
        return None

    @policy.auth
    async def auth(session: Session, attempt: Attempt) -> Reject | None:
        return Reject("nobody logs in here", code=535, enhanced="5.7.8")

    @policy.mail
    async def mail(message: Message) -> Reject | None:
        return Reject("blocked") if message.sender.local == "blocked" else None

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Defer | None:
        return None

    @policy.data
    async def data(message: Message) -> Reject | None:
        return None

    @policy.headers
    async def headers(message: Message) -> Reject | None:
        return Reject("unwanted") if message.headers.get("Subject") == "reject-me" else None

    @policy.body
    async def body(message: Message, piece: bytes) -> Reject | None:
        return None

    @policy.command("NOOP", "VRFY")
    async def command(session: Session, verb: str, argument: str) -> None:
        repr((session, verb, argument))

    @policy.event
    async def event(session: Session, event: Event) -> None:
        repr((session, event))

    @policy.done
    async def done(message: Message) -> None:
        repr((message, message.outcome))

    @policy.close
    async def close(session: Session) -> None:
        repr(session)

    if whole:

        @policy.message
        async def message(message: Message) -> Reject | None:
            message.parse()
            return None

    return policy
