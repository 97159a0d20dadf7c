"""Typed state of a policy that lives as long as a connection or a message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast, final

from mailgate.message import Message
from mailgate.session import Session

T = TypeVar("T")


@final
class PerSession(Generic[T]):
    """A slot of state per connection, made by ``factory`` on first use.

    >>> karma = PerSession(Karma)           # at module level
    >>> karma[message].points -= 1          # in a handler; a Session will do, too
    """

    __slots__ = ("factory",)

    def __init__(self, factory: Callable[[], T]) -> None:
        self.factory = factory

    def __getitem__(self, owner: Session | Message) -> T:
        session = owner.session if isinstance(owner, Message) else owner
        return _slot(session.state, self, self.factory)


@final
class PerMessage(Generic[T]):
    """A slot of state per message, made by ``factory`` on first use, gone with RSET too."""

    __slots__ = ("factory",)

    def __init__(self, factory: Callable[[], T]) -> None:
        self.factory = factory

    def __getitem__(self, message: Message) -> T:
        return _slot(message.state, self, self.factory)


def _slot(state: dict[object, object], key: object, factory: Callable[[], T]) -> T:
    if key not in state:
        state[key] = factory()
    return cast(T, state[key])
