"""Every exception of mailgate.

    MailgateError
    +-- ConfigError             ours, before serving: shown as one line, exit status 78
    |   +-- PolicyError         a policy module cannot be used as it is written
    +-- PeerError               what the peer sent ends the process: one line, exit status 1
    +-- Misuse                  a handler used the API wrongly: its ``on_error`` decides
    |   +-- Undeclared          an action that the handler did not declare
    |   +-- Unsupported         an action that it wants, on a protocol that lacks it
    |   +-- TooEarly            content that is not known yet
    |   +-- TooLate             an edit that can no longer be made
    |   +-- WrongAnswer         something returned that is no verdict of that stage
    |   +-- LimitExceeded       an edit over a limit (also a ValueError)
    +-- DeadlineExceeded        a handler did not answer in time
    +-- ThreadsExhausted        too many ``def`` handlers never came back

What a peer sends raises nothing else: a decoder turns it into events, faulty ones among them.
Imports nothing of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection


class MailgateError(Exception):
    """What mailgate itself raises."""


class ConfigError(MailgateError):
    """A configuration or policy that cannot be used; ``str()`` is the one line to show.

    ``file`` and ``line`` say where; either may be missing.
    """

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        return (place if self.file else "") + self.message


class PolicyError(ConfigError):
    """A policy that is written wrongly: a handler's arguments, an option, a capability."""


class PeerError(MailgateError):
    """What the peer sent ends the process; ``str()`` is the one line to show.

    Raised by an adapter's ``serve``, and only where the protocol cannot go on from there.
    """


class Misuse(MailgateError):
    """A handler used the API wrongly; raised in tests, follows ``on_error`` in service."""


class Undeclared(Misuse):
    """An action or fact was used by a handler that did not declare it."""


class Unsupported(Misuse):
    """An action was declared in ``wants`` and used where the protocol cannot do it."""


class TooEarly(Misuse):
    """Content was asked for before the stage that knows it."""


class TooLate(Misuse):
    """An edit was made outside the stages that allow it, or after the handler's deadline."""


class WrongAnswer(Misuse):
    """A handler returned something that its stage has no meaning for."""


class LimitExceeded(Misuse, ValueError):
    """An edit would exceed a limit of the configuration."""


class ThreadsExhausted(MailgateError):
    """Every thread that may run ``def`` handlers is lost to one that never returned."""


class DeadlineExceeded(MailgateError):
    """A handler did not answer in time."""


def suggestion(word: object, known: Collection[str]) -> str:
    """Return the end of a message about an unknown word: the one that was meant, or all."""
    names = sorted(known) if isinstance(known, (set, frozenset)) else list(known)
    close = difflib.get_close_matches(str(word), names, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
