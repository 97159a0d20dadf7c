"""What a policy author writes is checked where it is written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mailgate.address import Address
from mailgate.errors import PolicyError
from mailgate.message import Message
from mailgate.policy import ANSWERS, ARGUMENTS, Handler, Policy
from mailgate.session import Attempt, Event, Session
from mailgate.stage import MESSAGE_STAGES, SILENT_STAGES, Stage
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

DECORATED = [stage for stage in Stage if stage is not Stage.COMMAND]


def taking(stage: Stage) -> Callable[..., Any]:
    """Return a new function with a stage's arguments."""
    functions: dict[str, Callable[..., Any]] = {
        "session": lambda session: None,
        "session, attempt": lambda session, attempt: None,
        "message": lambda message: None,
        "message, recipient": lambda message, recipient: None,
        "message, piece": lambda message, piece: None,
        "session, verb, argument": lambda session, verb, argument: None,
        "session, event": lambda session, event: None,
    }
    return functions[ARGUMENTS[stage]]


def registered(function: Callable[..., Any], stage: str = "mail", **options: Any) -> Handler:
    """Register a function and return its handler."""
    policy = Policy()
    getattr(policy, stage)(**options)(function)
    return policy.handlers[0]


def refusal(function: object, stage: str = "mail", **options: Any) -> PolicyError:
    """Return why a function is not taken; nothing of it is registered."""
    policy = Policy()
    decorate = getattr(policy, stage)(**options) if options else getattr(policy, stage)
    with pytest.raises(PolicyError) as caught:
        decorate(function)
    assert policy.handlers == []
    return caught.value


# -- decorators ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", DECORATED)
def test_decorators_return_the_function_as_it_is(stage: Stage) -> None:
    policy, function = Policy(), taking(stage)
    assert getattr(policy, stage)(function) is function
    assert getattr(policy, stage)()(function) is function
    assert getattr(policy, stage)(timeout=1)(function) is function
    assert [handler.stage for handler in policy.handlers] == [stage] * 3
    assert [handler.function for handler in policy.handlers] == [function] * 3


def test_a_handler_can_still_be_called() -> None:
    policy = Policy()

    @policy.rcpt
    def answer(message: Message, recipient: Address) -> Reject:
        return Reject(f"not {recipient}")

    assert answer(None, Address("a@b")) == Reject("not a@b")  # type: ignore[arg-type]


def test_handlers_are_in_source_order() -> None:
    policy = Policy("gate")

    @policy.message
    def last(message: Message) -> None: ...

    @policy.mail
    async def first(message: Message) -> None: ...

    assert [handler.name for handler in policy.handlers] == ["last", "first"]
    assert [handler.is_async for handler in policy.handlers] == [False, True]
    assert repr(policy) == "<Policy gate: 2 handlers>"
    assert repr(Policy()) == "<Policy (unnamed): 0 handlers>"


def test_a_handler_knows_where_it_is_written() -> None:
    def here(message: Message) -> None: ...

    handler = registered(here)
    assert handler.file == __file__
    assert handler.line == here.__code__.co_firstlineno


def test_a_wrapped_function_is_found_in_its_own_place() -> None:
    def inner(message: Message) -> None: ...

    @functools.wraps(inner)
    async def outer(*arguments: Any) -> None: ...

    handler = registered(outer)
    assert handler.line == inner.__code__.co_firstlineno
    assert handler.name == "inner"
    assert handler.is_async


def test_a_method_is_a_function_too() -> None:
    class Checks:
        def on_mail(self, message: Message) -> Reject | None: ...

    handler = registered(Checks().on_mail)
    assert handler.name == "on_mail"


def test_options_are_kept() -> None:
    handler = registered(
        lambda message: None,
        timeout=5,
        on_error="continue",
        needs={"tls"},
        wants=["auth", "change_sender"],
        optional=True,
    )
    assert (handler.timeout, handler.on_error, handler.optional) == (5, "continue", True)
    assert handler.needs == {"tls"}
    assert handler.wants == {"auth", "change_sender"}
    assert handler.edits
    assert not registered(lambda message: None, needs={"tls"}).edits


def test_commands_are_named() -> None:
    policy = Policy()

    @policy.command("noop", "VRFY", needs={"tls"})
    async def refuse(session: Session, verb: str, argument: str) -> Verdict | None: ...

    @policy.command()
    async def observe(session: Session, verb: str, argument: str) -> None: ...

    answering, observing = policy.handlers
    assert answering.verbs == {"NOOP", "VRFY"}
    assert answering.needs == {"tls"}
    assert answering.answers
    assert observing.verbs == frozenset()
    assert not observing.answers


# -- two policies in one -------------------------------------------------------------------------


def test_include_appends_handlers_and_resources() -> None:
    @asynccontextmanager
    async def opened() -> Any:
        yield

    one, other = Policy("one"), Policy("other")
    one.mail(taking(Stage.MAIL))
    other.rcpt(taking(Stage.RCPT))
    resource = opened()
    assert other.resource(resource) is resource
    one.include(other)
    assert [handler.stage for handler in one.handlers] == ["mail", "rcpt"]
    assert one.resources == [resource]
    assert len(other.handlers) == 1


# -- observers -----------------------------------------------------------------------------------


def nothing(message: Message) -> None: ...


def verdict(message: Message) -> Verdict | None: ...


def quoted(message: Message) -> "None": ...  # noqa: UP037 - as one may write it


def unannotated(message):  # type: ignore[no-untyped-def]
    ...


def compiled(source: str) -> Callable[..., Any]:
    """Return the function `f` of a source in which annotations are no strings."""
    names: dict[str, Any] = {"Message": Message, "Reject": Reject, "Discard": Discard}
    exec(compile(source, "policy.py", "exec", dont_inherit=True), names)
    found: Callable[..., Any] = names["f"]
    return found


@pytest.mark.parametrize(
    ("function", "answers"),
    [
        (nothing, False),
        (quoted, False),
        (verdict, True),
        (unannotated, True),
        (compiled("def f(message) -> None: ..."), False),
        (compiled("async def f(message: Message) -> None: ..."), False),
        (compiled("def f(message) -> type(None): ..."), False),
        (compiled("def f(message) -> 'None': ..."), False),
        (compiled("def f(message) -> Reject: ..."), True),
        (compiled("def f(message): ..."), True),
    ],
)
@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.DATA])
def test_a_handler_annotated_none_only_looks_on(
    stage: Stage, function: Callable[..., Any], answers: bool
) -> None:
    assert registered(function, stage).answers is answers


@pytest.mark.parametrize("stage", [Stage.HEADERS, Stage.MESSAGE])
def test_from_the_headers_on_edits_may_come(stage: Stage) -> None:
    assert registered(nothing, stage).answers


def test_an_action_makes_it_no_observer() -> None:
    assert registered(nothing, needs={"change_sender"}).answers
    assert registered(nothing, wants={"change_sender"}).answers
    assert not registered(nothing, needs={"tls"}).answers


@pytest.mark.parametrize("stage", sorted(SILENT_STAGES))
def test_some_stages_never_answer(stage: Stage) -> None:
    assert not registered(taking(stage), stage).answers


# -- what is refused -----------------------------------------------------------------------------


def no_argument() -> None: ...


def two_arguments(message: Message, more: str) -> None: ...


def keyword_only(message: Message, *, more: str) -> None: ...


def yields(message: Message) -> Any:
    yield


async def yields_async(message: Message) -> Any:
    yield


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (no_argument, "no_argument(): @policy.mail asks a function with the arguments (message)"),
        (two_arguments, "two_arguments(message, more): @policy.mail asks"),
        (keyword_only, "keyword_only(message, more): @policy.mail asks"),
        (yields, "yields yields: a handler returns its verdict"),
        (yields_async, "yields_async yields"),
    ],
)
def test_wrong_arguments_are_refused_with_their_place(
    function: Callable[..., Any], text: str
) -> None:
    error = refusal(function)
    assert text in error.message
    assert error.file == __file__
    assert error.line == function.__code__.co_firstlineno
    assert str(error) == f"{error.file}:{error.line}: {error.message}"


@pytest.mark.parametrize("stage", DECORATED)
def test_each_stage_says_what_it_asks(stage: Stage) -> None:
    error = refusal(lambda a, b, c, d: None, stage)
    assert f"@policy.{stage} asks a function with the arguments ({ARGUMENTS[stage]})" in str(error)


@pytest.mark.parametrize("thing", [5, "mail", print, Reject, functools.partial(nothing)])
def test_what_is_no_def_is_refused(thing: object) -> None:
    assert "write @policy.mail above a def" in refusal(thing).message


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"timeot": 5}, "unknown option 'timeot'; did you mean 'timeout'?"),
        ({"zzz": 5}, "unknown option 'zzz'; known: "),
        ({"needs": {"add_recipients"}}, "unknown capability 'add_recipients'; did you mean"),
        ({"wants": ["zzz"]}, "unknown capability 'zzz'; known: "),
        ({"needs": "tls"}, "needs is a set of capabilities"),
        ({"needs": None}, "needs is a set of capabilities"),
        ({"wants": 5}, "wants is a set of capabilities"),
        ({"on_error": "accept"}, "on_error is one of defer, reject, continue"),
        *(
            ({"timeout": bad}, "timeout is a number of seconds above 0")
            for bad in (0, -1, "5", None, True, float("nan"))
        ),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(options: dict[str, Any], text: str) -> None:
    error = refusal(nothing, **options)
    assert text in error.message
    assert (error.file, error.line) == (__file__, nothing.__code__.co_firstlineno)


def test_a_bare_command_decorator_is_refused() -> None:
    """It takes verbs: the function itself would pass for one, and never be asked."""
    with pytest.raises(PolicyError, match=r"@policy\.command\('NOOP'\)"):
        Policy().command(taking(Stage.COMMAND))  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", [5, None, b"NOOP"])
def test_verbs_are_text(verb: Any) -> None:
    with pytest.raises(PolicyError, match="takes SMTP verbs"):
        Policy().command(verb)(taking(Stage.COMMAND))


def test_who_sees_every_command_cannot_answer() -> None:
    def answer(session: Session, verb: str, argument: str) -> Reject | None: ...

    policy = Policy()
    with pytest.raises(PolicyError, match="only observes: annotate it -> None"):
        policy.command()(answer)
    assert policy.handlers == []


# -- verdicts in annotations ---------------------------------------------------------------------


def discards(*arguments: Any) -> Discard | None: ...


def holds(*arguments: Any) -> Reject | Quarantine | None: ...


def logs_in(*arguments: Any) -> Authenticated | None: ...


def rejects(*arguments: Any) -> Reject | None: ...


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.HELO, Stage.STARTTLS, Stage.AUTH])
@pytest.mark.parametrize(("function", "name"), [(discards, "Discard"), (holds, "Quarantine")])
def test_a_verdict_without_meaning_is_refused(
    stage: Stage, function: Callable[..., Any], name: str
) -> None:
    error = refusal(function, stage, needs={"discard", "quarantine"})
    assert f"{name} means nothing in {stage}" in error.message


@pytest.mark.parametrize("stage", sorted(MESSAGE_STAGES))
def test_only_auth_can_log_in(stage: Stage) -> None:
    error = refusal(logs_in, stage, needs={"authenticate"})
    assert "Authenticated means nothing" in error.message
    assert registered(logs_in, "auth", needs={"authenticate"}).answers


@pytest.mark.parametrize("stage", sorted(SILENT_STAGES))
@pytest.mark.parametrize("function", [rejects, holds])
def test_a_stage_that_cannot_answer_refuses_verdicts(
    stage: Stage, function: Callable[..., Any]
) -> None:
    assert refusal(function, stage, needs={"quarantine"}).line


@pytest.mark.parametrize(
    ("function", "stage", "text"),
    [
        (discards, "mail", "needs={'discard'}"),
        (holds, "message", "needs={'quarantine'}"),
        (logs_in, "auth", "needs={'authenticate'}"),
    ],
)
def test_an_annotated_verdict_is_declared(
    function: Callable[..., Any], stage: str, text: str
) -> None:
    assert text in refusal(function, stage).message


def test_verdict_or_none_may_stand_anywhere() -> None:
    """The alias of all verdicts says nothing about a handler, so it promises nothing."""

    def anything(message: Message) -> Verdict | None: ...

    def on_connect(session: Session) -> Verdict | None: ...

    assert registered(anything).answers
    assert registered(on_connect, "connect").answers


def test_an_annotation_that_only_a_type_checker_knows_is_passed_over() -> None:
    function = compiled("def f(message: 'Nowhere') -> 'Unknown | None': ...")
    assert registered(function).answers


def test_what_stages_have_a_meaning_for() -> None:
    always = {Accept, Reject, Defer, Disconnect}
    for stage in Stage:
        expected = set(always)
        if stage in MESSAGE_STAGES:
            expected |= {Discard, Quarantine}
        if stage is Stage.AUTH:
            expected |= {Authenticated}
        assert set(ANSWERS[stage]) == (set() if stage in SILENT_STAGES else expected)


# -- types ---------------------------------------------------------------------------------------


def test_a_type_checker_refuses_what_is_refused_here() -> None:
    """Each of these is an error for mypy, or its comment would be one."""
    policy = Policy()

    async def one_argument(message: Message) -> Reject | None: ...

    async def text(message: Message) -> str:
        return "550 no"

    with pytest.raises(PolicyError):
        policy.rcpt(one_argument)  # type: ignore[type-var]
    with pytest.raises(PolicyError):
        policy.mail(needs={"add_recipients"})(one_argument)  # type: ignore[arg-type]
    with pytest.raises(PolicyError):
        policy.mail(on_error="accept")(one_argument)  # type: ignore[call-overload]
    policy.mail(text)  # type: ignore[type-var]


def test_a_decorated_function_keeps_its_type() -> None:
    policy = Policy()

    @policy.body
    def body(message: Message, piece: bytes) -> Defer | None: ...

    @policy.auth(needs={"credentials"})
    async def auth(session: Session, attempt: Attempt) -> Reject | None: ...

    @policy.event
    def event(session: Session, event: Event) -> None: ...

    checked: Callable[[Message, bytes], Defer | None] = body
    assert checked is body
    assert [handler.name for handler in policy.handlers] == ["body", "auth", "event"]
