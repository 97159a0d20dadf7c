"""Which handler is running: what it may do, and until when.

A context variable carries it, so it is right in coroutines, in the worker threads of ``def``
handlers, and in the tasks that a handler starts.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol, final

from mailgate.errors import Undeclared, Unsupported
from mailgate.stage import Stage


class Asked(Protocol):
    """The handler that is called, as far as an edit has to know it.

    ``declared`` is what its ``needs`` and ``wants`` name, ``granted`` the part of it that the
    protocol can do at this stage.
    """

    @property
    def name(self) -> str: ...
    @property
    def stage(self) -> Stage: ...
    @property
    def declared(self) -> frozenset[str]: ...
    @property
    def granted(self) -> frozenset[str]: ...


@final
class Invocation:
    """One call of one handler.

    ``session`` and ``message`` are what it is asked about, and all that it may edit.  Once
    ``live`` is False, what the handler still does (a thread past its deadline, a task it
    left behind) changes nothing any more.  ``undo`` is the message, or the greeting name, as it
    was before the handler's first edit.
    """

    # One is made for each call of a handler: what rarely changes is a default of the class.
    live = True
    undo: Any = None

    def __init__(self, handler: Asked, session: object, message: object) -> None:
        self.handler = handler
        self.session = session
        self.message = message


CURRENT: ContextVar[Invocation | None] = ContextVar("mailgate_invocation", default=None)


def may(capability: str) -> bool:
    """Tell whether the running handler may use a capability; outside of one, everything."""
    invocation = CURRENT.get()
    return invocation is None or capability in invocation.handler.granted


def require(capability: str, call: str) -> None:
    """Raise unless the running handler declared a capability and the protocol has it here.

    Outside a handler everything is allowed: a test may call a handler's function itself.
    """
    invocation = CURRENT.get()
    if invocation is None:
        return
    handler = invocation.handler
    if capability not in handler.declared:
        raise Undeclared(f"{call} wants needs={{{capability!r}}} on {handler.name!r}")
    if capability not in handler.granted:
        raise Unsupported(
            f"{call} is not possible in {handler.stage} on this protocol; "
            f"ask message.can({capability!r}) first"
        )
