"""Put policies before the engine as an adapter does, without a wire."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ParamSpec

from mailgate.address import Address
from mailgate.chain import Capabilities, Defaults, Loaded
from mailgate.content import Body
from mailgate.engine import Conversation, Engine
from mailgate.headers import Section, parse_fields
from mailgate.limits import Limits
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.stage import OnError
from mailgate.verdict import Verdict

SENDER = Address("sender@client.example")
RECIPIENT = Address("rcpt@example.org")
SECTION = b"From: sender@client.example\r\nSubject: a test\r\n"
BODY = b"Hello.\r\n"
FAILED: dict[OnError, str | None] = {
    "defer": "451 4.3.0 the mail policy failed, try again later",
    "reject": "550 5.3.0 the mail policy failed",
    "continue": None,
}
"""What a handler's failure is answered with."""

P = ParamSpec("P")


def in_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a coroutine function as a test, in an event loop of its own."""

    @functools.wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        async def whole() -> None:
            await test(*arguments, **named)

        asyncio.run(whole())

    return run


def loaded(*policies: Policy | Loaded) -> list[Loaded]:
    """Name policies as a configuration does."""
    return [p if isinstance(p, Loaded) else Loaded(p, p.name or "policy") for p in policies]


def engine(
    *policies: Policy | Loaded,
    capabilities: Capabilities | None = None,
    defaults: Defaults | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> Engine:
    """Return an engine; what is not given is as a configuration leaves it."""
    return Engine(loaded(*policies), capabilities, defaults=defaults, limits=limits, **options)


def converse(*policies: Policy | Loaded, **options: Any) -> Conversation:
    """Begin a conversation with these policies."""
    return engine(*policies, **options).converse(Session("s1", "test"))


async def to_mail(conversation: Conversation) -> Message:
    """Bring a conversation to an accepted MAIL."""
    assert await conversation.connect() is None
    assert await conversation.helo("client.example", True) is None
    assert await conversation.mail(SENDER) is None
    assert conversation.message is not None
    return conversation.message


async def to_data(
    conversation: Conversation, recipients: Iterable[Address] = (RECIPIENT,)
) -> Message:
    """Bring a conversation to an accepted DATA."""
    message = await to_mail(conversation)
    for recipient in recipients:
        assert await conversation.rcpt(recipient) is None
    assert await conversation.data() is None
    return message


def content(octets: bytes = BODY) -> Body:
    """Return a body that was received whole."""
    body = Body(1 << 20)
    body.append(octets)
    return body


async def to_headers(conversation: Conversation, section: bytes = SECTION) -> Message:
    """Bring a conversation to the end of an accepted header section."""
    message = await to_data(conversation)
    assert await conversation.headers(Section.of(parse_fields(section))) is None
    return message


def reply(verdict: Verdict | None) -> str | None:
    """Return the reply that a refusal becomes; None where nothing is refused."""
    return getattr(verdict, "reply", None)
