"""The words that policies, the engine and the adapters share.  Imports nothing of ours."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias, get_args


class Stage(StrEnum):
    """Where a handler is asked, in the order of an SMTP conversation."""

    CONNECT = "connect"
    HELO = "helo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    HEADERS = "headers"
    BODY = "body"
    MESSAGE = "message"
    COMMAND = "command"
    EVENT = "event"
    DONE = "done"
    CLOSE = "close"

    __str__ = str.__str__


SESSION_STAGES = frozenset({Stage.CONNECT, Stage.HELO, Stage.STARTTLS, Stage.AUTH})
"""Asked before a message exists: what they refuse concerns the connection."""

MESSAGE_STAGES = frozenset(
    {Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.HEADERS, Stage.BODY, Stage.MESSAGE}
)
"""Asked for a message: what they refuse concerns that message, or one recipient of it."""

CONTENT_STAGES = frozenset({Stage.HEADERS, Stage.BODY, Stage.MESSAGE})
"""Asked with content in hand: a protocol has to carry the message itself for these."""

SILENT_STAGES = frozenset({Stage.EVENT, Stage.DONE, Stage.CLOSE})
"""Stages that only look on: nothing can be answered there."""

ANSWERING_STAGES = frozenset(Stage) - SILENT_STAGES

Capability: TypeAlias = Literal[
    "change_helo",
    "change_sender",
    "change_recipient",
    "add_recipient",
    "remove_recipient",
    "quarantine",
    "discard",
    "authenticate",
    "credentials",
    "rdns",
    "tls",
    "auth",
    "params",
]
"""What not every protocol can do, or tell."""

CAPABILITIES: frozenset[str] = frozenset(get_args(Capability))
FACTS = frozenset({"credentials", "rdns", "tls", "auth", "params"})
"""What a protocol tells; the other capabilities are `ACTIONS`, which it does."""
ACTIONS = CAPABILITIES - FACTS

OnError: TypeAlias = Literal["defer", "reject", "continue"]
"""What a handler's failure means: 451, 550, or as if it had said nothing."""

ON_ERROR: tuple[str, ...] = get_args(OnError)
