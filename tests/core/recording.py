"""Policies that answer as a test says, and keep what they were asked and told."""

from __future__ import annotations

from mailgate.address import Address
from mailgate.engine import Conversation
from mailgate.headers import Section, parse_fields
from mailgate.message import Ending, Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.stage import Stage
from mailgate.verdict import (
    Verdict,
)
from tests.core.asking import (
    BODY,
    RECIPIENT,
    SECTION,
    SENDER,
    content,
)


class Asked(list[str]):
    """Which handlers were asked, by name, in order."""

    def policy(
        self, name: str, answers: dict[Stage, Verdict | None], policy: Policy | None = None
    ) -> Policy:
        """Return a policy with one handler a stage, each with its answer."""
        policy = policy or Policy(name)
        for stage, answer in answers.items():
            self.handler(policy, name, stage, answer)
        return policy

    def handler(self, policy: Policy, name: str, stage: Stage, answer: Verdict | None) -> None:
        def asked() -> Verdict | None:
            self.append(f"{name}.{stage}")
            return answer

        async def on_session(session: Session) -> Verdict | None:
            return asked()

        async def on_message(message: Message) -> Verdict | None:
            return asked()

        async def on_recipient(message: Message, recipient: Address) -> Verdict | None:
            return asked()

        async def on_piece(message: Message, piece: bytes) -> Verdict | None:
            return asked()

        functions = {
            Stage.CONNECT: on_session,
            Stage.HELO: on_session,
            Stage.STARTTLS: on_session,
            Stage.RCPT: on_recipient,
            Stage.BODY: on_piece,
        }
        register = getattr(policy, stage)
        register(needs={"discard", "quarantine"})(functions.get(stage, on_message))


WHOLE = dict.fromkeys(
    [
        *(Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.RCPT, Stage.DATA),
        *(Stage.HEADERS, Stage.BODY, Stage.MESSAGE),
    ]
)


async def deliver(conversation: Conversation) -> Verdict | None:
    """Send a whole message, each step whatever became of the one before."""
    await conversation.mail(SENDER)
    await conversation.rcpt(RECIPIENT)
    await conversation.data()
    await conversation.headers(Section.of(parse_fields(SECTION)))
    await conversation.body(BODY)
    return await conversation.end(content())


async def greet(conversation: Conversation) -> None:
    """Greet a server that lets the client in."""
    if await conversation.connect() is None:
        await conversation.helo("client.example", True)


class Ends:
    """What `done` and `close` handlers were told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Ending | None]] = []
        self.sessions: list[str] = []

    def policy(self, name: str) -> Policy:
        policy = Policy()

        @policy.done
        async def done(message: Message) -> None:
            self.messages.append((name, message.outcome))

        @policy.close
        async def close(session: Session) -> None:
            self.sessions.append(name)

        return policy
