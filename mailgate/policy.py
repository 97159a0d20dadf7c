"""What a policy author writes: a `Policy` and its handlers."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, Unpack, final, overload

from mailgate.address import Address
from mailgate.errors import PolicyError, suggestion
from mailgate.message import Message
from mailgate.session import Attempt, Event, Session
from mailgate.stage import (
    ACTIONS,
    CAPABILITIES,
    CONTENT_STAGES,
    MESSAGE_STAGES,
    ON_ERROR,
    SILENT_STAGES,
    Capability,
    OnError,
    Stage,
)
from mailgate.verdict import (
    Accept,
    Authenticated,
    Defer,
    Discard,
    Disconnect,
    Quarantine,
    Reject,
    Verdict,
)


class Options(TypedDict, total=False):
    """What a decorator takes.

    ``timeout``: seconds for this handler, within the budget of the question.
    ``on_error``: what its failure means; default: the configuration's.
    ``needs``: refuse to start on a protocol without these.  ``wants``: use them where they are;
    ask with ``message.can()``.  ``optional``: on a protocol without this stage, stay silent.
    """

    timeout: float
    on_error: OnError
    needs: Collection[Capability]
    wants: Collection[Capability]
    optional: bool


_Answer = Awaitable[Verdict | None] | Verdict | None
_Silence = Awaitable[None] | None

SessionHandler = TypeVar("SessionHandler", bound=Callable[[Session], _Answer])
AuthHandler = TypeVar("AuthHandler", bound=Callable[[Session, Attempt], _Answer])
MessageHandler = TypeVar("MessageHandler", bound=Callable[[Message], _Answer])
RecipientHandler = TypeVar("RecipientHandler", bound=Callable[[Message, Address], _Answer])
BodyHandler = TypeVar("BodyHandler", bound=Callable[[Message, bytes], _Answer])
CommandHandler = TypeVar("CommandHandler", bound=Callable[[Session, str, str], _Answer])
EventHandler = TypeVar("EventHandler", bound=Callable[[Session, Event], _Silence])
DoneHandler = TypeVar("DoneHandler", bound=Callable[[Message], _Silence])
CloseHandler = TypeVar("CloseHandler", bound=Callable[[Session], _Silence])
Function = TypeVar("Function", bound=Callable[..., Any])
Manager = TypeVar("Manager", bound=AbstractAsyncContextManager[Any])

ARGUMENTS: Mapping[Stage, str] = {
    Stage.CONNECT: "session",
    Stage.HELO: "session",
    Stage.STARTTLS: "session",
    Stage.AUTH: "session, attempt",
    Stage.MAIL: "message",
    Stage.RCPT: "message, recipient",
    Stage.DATA: "message",
    Stage.HEADERS: "message",
    Stage.BODY: "message, piece",
    Stage.MESSAGE: "message",
    Stage.COMMAND: "session, verb, argument",
    Stage.EVENT: "session, event",
    Stage.DONE: "message",
    Stage.CLOSE: "session",
}

_ALWAYS = (Accept, Reject, Defer, Disconnect)
ANSWERS: Mapping[Stage, tuple[type, ...]] = {
    **dict.fromkeys(Stage, _ALWAYS),
    **dict.fromkeys(MESSAGE_STAGES, (*_ALWAYS, Discard, Quarantine)),
    Stage.AUTH: (*_ALWAYS, Authenticated),
    **dict.fromkeys(SILENT_STAGES, ()),
}
"""The verdicts that a stage has a meaning for."""


@final
@dataclass(frozen=True, slots=True)
class Handler:
    """A registered function and its options.

    ``silent``: it is annotated ``-> None``.  ``answers`` is False for a silent one that edits
    nothing: it only looks on, and no client waits for it.  ``verbs`` are those of a command handler; empty: all of them.
    """

    stage: Stage
    function: Callable[..., Any]
    name: str
    file: str
    line: int
    is_async: bool
    answers: bool
    silent: bool
    needs: frozenset[str]
    wants: frozenset[str]
    timeout: float | None = None
    on_error: OnError | None = None
    optional: bool = False
    verbs: frozenset[str] = frozenset()

    @property
    def edits(self) -> bool:
        """Tell whether it declared an action."""
        return bool((self.needs | self.wants) & ACTIONS)


class Policy:
    """An ordered set of handlers.

    Each stage method is a decorator, bare or with `Options`; it returns the function as it is.
    Handlers of a stage are asked in source order and the first answer counts.  ``async def``
    handlers run on the event loop, ``def`` handlers in a worker thread.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.handlers: list[Handler] = []
        self.resources: list[AbstractAsyncContextManager[Any]] = []

    def __repr__(self) -> str:
        return f"<Policy {self.name or '(unnamed)'}: {len(self.handlers)} handlers>"

    def include(self, other: Policy) -> None:
        """Append another policy's handlers and resources: one filter made of two.

        An `Accept` in either part silences both.  Separate ``[[policy]]`` tables are separate
        filters instead.
        """
        self.handlers += other.handlers
        self.resources += other.resources

    def resource(self, manager: Manager) -> Manager:
        """Have an async context manager entered before serving and left after draining."""
        self.resources.append(manager)
        return manager

    # -- stages ------------------------------------------------------------------------------

    @overload
    def connect(self, function: SessionHandler, /) -> SessionHandler: ...
    @overload
    def connect(
        self, /, **options: Unpack[Options]
    ) -> Callable[[SessionHandler], SessionHandler]: ...
    def connect(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Ask ``f(session)`` when a client has connected: address and reverse DNS are known."""
        return self._register(Stage.CONNECT, function, options)

    @overload
    def helo(self, function: SessionHandler, /) -> SessionHandler: ...
    @overload
    def helo(
        self, /, **options: Unpack[Options]
    ) -> Callable[[SessionHandler], SessionHandler]: ...
    def helo(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Ask ``f(session)`` at HELO and EHLO: ``session.helo`` is known."""
        return self._register(Stage.HELO, function, options)

    @overload
    def starttls(self, function: SessionHandler, /) -> SessionHandler: ...
    @overload
    def starttls(
        self, /, **options: Unpack[Options]
    ) -> Callable[[SessionHandler], SessionHandler]: ...
    def starttls(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Ask ``f(session)`` at STARTTLS, before the handshake."""
        return self._register(Stage.STARTTLS, function, options)

    @overload
    def auth(self, function: AuthHandler, /) -> AuthHandler: ...
    @overload
    def auth(self, /, **options: Unpack[Options]) -> Callable[[AuthHandler], AuthHandler]: ...
    def auth(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Ask ``f(session, attempt)`` at AUTH; None leaves the decision to the server."""
        return self._register(Stage.AUTH, function, options)

    @overload
    def mail(self, function: MessageHandler, /) -> MessageHandler: ...
    @overload
    def mail(
        self, /, **options: Unpack[Options]
    ) -> Callable[[MessageHandler], MessageHandler]: ...
    def mail(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Ask ``f(message)`` at MAIL: the sender, TLS and the login are known."""
        return self._register(Stage.MAIL, function, options)

    @overload
    def rcpt(self, function: RecipientHandler, /) -> RecipientHandler: ...
    @overload
    def rcpt(
        self, /, **options: Unpack[Options]
    ) -> Callable[[RecipientHandler], RecipientHandler]: ...
    def rcpt(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Ask ``f(message, recipient)`` once for each recipient."""
        return self._register(Stage.RCPT, function, options)

    @overload
    def data(self, function: MessageHandler, /) -> MessageHandler: ...
    @overload
    def data(
        self, /, **options: Unpack[Options]
    ) -> Callable[[MessageHandler], MessageHandler]: ...
    def data(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Ask ``f(message)`` at DATA: all recipients are known, no content yet."""
        return self._register(Stage.DATA, function, options)

    @overload
    def headers(self, function: MessageHandler, /) -> MessageHandler: ...
    @overload
    def headers(
        self, /, **options: Unpack[Options]
    ) -> Callable[[MessageHandler], MessageHandler]: ...
    def headers(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Ask ``f(message)`` when the header fields are known; they can be edited."""
        return self._register(Stage.HEADERS, function, options)

    @overload
    def body(self, function: BodyHandler, /) -> BodyHandler: ...
    @overload
    def body(self, /, **options: Unpack[Options]) -> Callable[[BodyHandler], BodyHandler]: ...
    def body(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Ask ``f(message, piece)`` for each piece of the body as it arrives, whole lines."""
        return self._register(Stage.BODY, function, options)

    @overload
    def message(self, function: MessageHandler, /) -> MessageHandler: ...
    @overload
    def message(
        self, /, **options: Unpack[Options]
    ) -> Callable[[MessageHandler], MessageHandler]: ...
    def message(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Ask ``f(message)`` at the end of data: everything is known and can be edited."""
        return self._register(Stage.MESSAGE, function, options)

    def command(
        self, *verbs: str, **options: Unpack[Options]
    ) -> Callable[[CommandHandler], CommandHandler]:
        """Ask ``f(session, verb, argument)`` at these SMTP verbs; without verbs observe all."""
        for verb in verbs:
            if not isinstance(verb, str):  # bare, the function itself would be taken for a verb
                raise _wrong(verb, "@policy.command takes SMTP verbs: @policy.command('NOOP')")
        upper = frozenset(verb.upper() for verb in verbs)

        def register(function: CommandHandler) -> CommandHandler:
            self.handlers.append(_handler(Stage.COMMAND, function, options, upper))
            return function

        return register

    @overload
    def event(self, function: EventHandler, /) -> EventHandler: ...
    @overload
    def event(self, /, **options: Unpack[Options]) -> Callable[[EventHandler], EventHandler]: ...
    def event(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Tell ``f(session, event)`` what the wire reports beyond the stages."""
        return self._register(Stage.EVENT, function, options)

    @overload
    def done(self, function: DoneHandler, /) -> DoneHandler: ...
    @overload
    def done(self, /, **options: Unpack[Options]) -> Callable[[DoneHandler], DoneHandler]: ...
    def done(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Tell ``f(message)`` once how each message ended: ``message.outcome`` is set."""
        return self._register(Stage.DONE, function, options)

    @overload
    def close(self, function: CloseHandler, /) -> CloseHandler: ...
    @overload
    def close(self, /, **options: Unpack[Options]) -> Callable[[CloseHandler], CloseHandler]: ...
    def close(self, function: Any = None, /, **options: Unpack[Options]) -> Any:
        """Tell ``f(session)`` once when a connection has ended."""
        return self._register(Stage.CLOSE, function, options)

    def _register(self, stage: Stage, function: Function | None, options: Options) -> Any:
        def register(function: Function) -> Function:
            self.handlers.append(_handler(stage, function, options, frozenset()))
            return function

        return register if function is None else register(function)


def _handler(
    stage: Stage, function: Callable[..., Any], options: Options, verbs: frozenset[str]
) -> Handler:
    """Check a function and its options; PolicyError names the line and the remedy."""
    _check_signature(stage, function)
    _check_options(function, options)
    silent = _annotated_none(function)
    needs, wants = frozenset(options.get("needs", ())), frozenset(options.get("wants", ()))
    answers = stage not in SILENT_STAGES and not (silent and not (needs | wants) & ACTIONS)
    if silent and stage in CONTENT_STAGES:
        answers = True  # edits may come: every protocol waits there
    if stage is Stage.COMMAND and not verbs and answers:
        raise _wrong(function, "@policy.command without verbs only observes: annotate it -> None")
    _check_annotation(stage, function, needs | wants)
    code = inspect.unwrap(function).__code__
    return Handler(
        stage=stage,
        function=function,
        name=function.__name__,
        file=code.co_filename,
        line=code.co_firstlineno,
        is_async=inspect.iscoroutinefunction(function),
        answers=answers,
        silent=silent or stage in SILENT_STAGES,
        needs=needs,
        wants=wants,
        timeout=options.get("timeout"),
        on_error=options.get("on_error"),
        optional=options.get("optional", False),
        verbs=verbs,
    )


def _wrong(function: object, message: str) -> PolicyError:
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    if code is None:
        return PolicyError(message)
    return PolicyError(message, file=code.co_filename, line=code.co_firstlineno)


def _check_signature(stage: Stage, function: object) -> None:
    wanted = f"@policy.{stage} asks a function with the arguments ({ARGUMENTS[stage]})"
    if not inspect.isroutine(function) or not hasattr(inspect.unwrap(function), "__code__"):
        raise PolicyError(f"{wanted}; write @policy.{stage} above a def")
    signature = inspect.signature(function)
    try:
        signature.bind(*ARGUMENTS[stage].split(", "))
    except TypeError:
        raise _wrong(function, f"{function.__name__}{_names(signature)}: {wanted}") from None
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise _wrong(function, f"{function.__name__} yields: a handler returns its verdict")


def _names(signature: inspect.Signature) -> str:
    return f"({', '.join(signature.parameters)})"


def _check_options(function: Callable[..., Any], options: Options) -> None:
    for key in options:
        if key not in Options.__annotations__:
            raise _wrong(
                function, f"unknown option {key!r}{suggestion(key, Options.__annotations__)}"
            )
    for key in ("needs", "wants"):
        names = options.get(key, ())
        if isinstance(names, str) or not isinstance(names, Collection):
            raise _wrong(function, f"{key} is a set of capabilities: {key}={{'add_recipient'}}")
        for name in names:
            if name not in CAPABILITIES:
                raise _wrong(
                    function, f"unknown capability {name!r}{suggestion(name, CAPABILITIES)}"
                )
    if options.get("on_error", "defer") not in ON_ERROR:
        raise _wrong(function, f"on_error is one of {', '.join(ON_ERROR)}")
    timeout = options.get("timeout", 1)
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not timeout > 0:
        raise _wrong(function, "timeout is a number of seconds above 0")


def _annotated_none(function: Callable[..., Any]) -> bool:
    annotations = getattr(inspect.unwrap(function), "__annotations__", {})
    if "return" not in annotations:
        return False
    annotation = annotations["return"]
    if isinstance(annotation, str):
        annotation = annotation.strip("'\" ")
    return annotation in (None, "None", type(None))


def _check_annotation(
    stage: Stage, function: Callable[..., Any], declared: frozenset[str]
) -> None:
    """Refuse an annotated verdict that the stage has no meaning for, or that is undeclared."""
    try:
        annotated = typing.get_type_hints(function).get("return")
    except Exception:  # names that exist for type checkers only
        return
    named = set(typing.get_args(annotated) or (annotated,))
    if named >= set(typing.get_args(Verdict)):  # `Verdict` itself: it says nothing
        return
    if stage in SILENT_STAGES and named & set(_ALWAYS):
        raise _wrong(function, f"{function.__name__}: {stage} cannot answer; annotate it -> None")
    for answer in named & {Discard, Quarantine, Authenticated}:
        if answer not in ANSWERS[stage]:
            raise _wrong(
                function, f"{function.__name__}: {answer.__name__} means nothing in {stage}"
            )
        if answer.needs not in declared:
            raise _wrong(
                function,
                f"{function.__name__} returns {answer.__name__}: it needs={{{answer.needs!r}}}",
            )
