"""Hints about what a handler uses without having declared it."""

from __future__ import annotations

import functools
from typing import Any, Self

import pytest

from mailgate.address import Address
from mailgate.lint import blind, undeclared
from mailgate.message import Message
from mailgate.policy import Handler, Policy
from mailgate.session import Session
from mailgate.stage import Stage
from mailgate.verdict import Authenticated, Discard, Quarantine, Reject, Verdict


def handler(function: Any, stage: str = "mail", **options: Any) -> Handler:
    policy = Policy()
    getattr(policy, stage)(**options)(function)
    return policy.handlers[0]


async def rewrites(message: Message) -> None:
    if message.session.user is None:
        return
    message.add_recipient("archive@example.org")
    message.add_recipient("second@example.org")


def test_each_use_is_named_once_with_its_line() -> None:
    line = rewrites.__code__.co_firstlineno
    fact = "on a protocol that never tells it, it raises"
    action = "it fails whenever it is asked"
    said = "rewrites uses {} undeclared, line {}: {}; declare needs={{{!r}}}"
    assert set(undeclared(handler(rewrites))) == {
        said.format("session.user", line + 1, fact, "auth"),
        said.format("add_recipient()", line + 3, action, "add_recipient"),
    }
    assert len(undeclared(handler(rewrites))) == 2


def test_what_is_declared_is_no_hint() -> None:
    assert undeclared(handler(rewrites, needs={"auth"}, wants={"add_recipient"})) == []


async def changes(message: Message) -> None:
    message.change_sender("a@b")
    message.change_recipient(Address("a@b"), "c@d")
    message.remove_recipient("a@b")


async def greets(session: Session) -> None:
    session.change_helo("x")
    print(session.tls, session.rdns, session.rdns_verified, session.user)


async def reads(message: Message, recipient: Address) -> None:
    print(message.sender.params, recipient.params)


async def answers(message: Message) -> Verdict | None:
    return Discard("x") if message.sender else Quarantine("y")


def logs_in(session: Session, attempt: Any) -> Verdict | None:
    return Authenticated("ann")


@pytest.mark.parametrize(
    ("function", "stage", "capabilities"),
    [
        (changes, "mail", {"change_sender", "change_recipient", "remove_recipient"}),
        (greets, "helo", {"change_helo", "tls", "rdns", "auth"}),
        (reads, "rcpt", {"params"}),
        (answers, "mail", {"discard", "quarantine"}),
        (logs_in, "auth", {"authenticate"}),
    ],
)
def test_what_is_looked_for(function: Any, stage: str, capabilities: set[str]) -> None:
    hints = undeclared(handler(function, stage))
    assert {hint.split("'")[1] for hint in hints} == capabilities


async def innocent(message: Message) -> Reject | None:
    user = message.headers.get("X-User")
    message.headers["X-Checked"] = "yes"
    return Reject("no") if user else None


def test_other_things_are_no_hints() -> None:
    assert undeclared(handler(innocent)) == []


def test_a_method_and_a_nested_function_are_read_too() -> None:
    class Checks:
        def on_mail(self, message: Message) -> None:
            message.change_sender("a@b")

    assert len(undeclared(handler(Checks().on_mail))) == 1


def test_a_wrapped_handler_is_read() -> None:
    @functools.wraps(rewrites)
    async def wrapper(*arguments: Any) -> None: ...

    assert len(undeclared(handler(wrapper))) == 2


def test_without_source_there_are_no_hints() -> None:
    names: dict[str, Any] = {}
    exec("def f(message): message.change_sender('a@b')", names)
    assert undeclared(handler(names["f"])) == []


# -- what surely cannot work ---------------------------------------------------------------------

DARK = dict.fromkeys((Stage.HELO, Stage.MAIL, Stage.RCPT), frozenset[str]())
"""A protocol that tells no fact at all."""


async def by_name(message: Message) -> None:
    session = message.session
    print(session.helo)
    print(session.user, session.user, session.tls)


async def at_once(message: Message) -> None:
    print(message.session.rdns, message.sender.params, message.original_sender.params)


async def in_a_loop(mail: Message, to: Address) -> None:
    for each in mail.recipients:
        print(each.params)


async def in_a_comprehension(mail: Message) -> None:
    print([each.params for each in mail.original_recipients[1:]])


async def by_index(mail: Message) -> None:
    print(mail.recipients[0].params)


async def on_the_way(mail: Message) -> None:
    if (whose := mail.session) and (sender := mail.sender):
        print(whose.user, sender.params)


async def annotated(mail: Message) -> None:
    client: Session = mail.session
    print(client.tls)


def of_the_client(client: Session) -> None:
    def inner() -> None:
        print(client.rdns_verified)

    inner()


async def of_the_recipient(mail: Message, to: Address) -> None:
    print(to.params.get("NOTIFY"))


@pytest.mark.parametrize(
    ("function", "stage", "reads"),
    [
        (by_name, "mail", [("session.user", 3), ("session.tls", 3)]),
        (at_once, "mail", [("session.rdns", 1), ("params", 1)]),
        (in_a_loop, "rcpt", [("params", 2)]),
        (in_a_comprehension, "mail", [("params", 1)]),
        (by_index, "mail", [("params", 1)]),
        (on_the_way, "mail", [("session.user", 2), ("params", 2)]),
        (annotated, "mail", [("session.tls", 2)]),
        (of_the_client, "helo", [("session.rdns_verified", 2)]),
        (of_the_recipient, "rcpt", [("params", 1)]),
    ],
)
def test_a_fact_that_is_never_told_is_found_with_its_line(
    function: Any, stage: str, reads: list[tuple[str, int]]
) -> None:
    first = function.__code__.co_firstlineno
    found = blind(handler(function, stage), DARK)
    assert {(use.said, use.line - first) for use in found} == set(reads)
    assert blind(handler(function, stage, needs={"auth", "tls", "rdns", "params"}), DARK) == []
    told = {**DARK, Stage.DONE: frozenset({"auth", "tls", "rdns", "params"})}
    assert blind(handler(function, stage), told) == []


class Pool:
    """Something of another library, with names like ours."""

    user = tls = params = ""
    session: Any

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ending: object) -> None: ...


async def asks_another_service(message: Message) -> None:
    with Pool() as session:
        print(session.user, session.params)


async def has_other_sessions(message: Message) -> None:
    request = Pool()
    print(request.params, request.session.user)


async def uses_a_name_twice(message: Message) -> None:
    session: Any = message.session
    print(session.user)
    session = Pool()
    print(session.user)


async def shadows(session: Session) -> None:
    print([session.tls for session in [Pool()]])


async def writes(message: Message) -> None:
    message.session.user = "ann"  # type: ignore[misc]


async def only_acts(message: Message) -> None:
    message.add_recipient("a@b.example")


@pytest.mark.parametrize(
    ("function", "stage"),
    [
        (asks_another_service, "mail"),
        (has_other_sessions, "mail"),
        (uses_a_name_twice, "mail"),
        (shadows, "helo"),
        (writes, "mail"),
        (only_acts, "mail"),
    ],
)
def test_what_is_not_sure_is_a_hint_only(function: Any, stage: str) -> None:
    assert undeclared(handler(function, stage)) != []
    assert blind(handler(function, stage), DARK) == []


def test_who_is_never_asked_reads_nothing() -> None:
    async def login(session: Session, attempt: Any) -> None:
        print(session.tls)

    able = {**DARK, Stage.AUTH: frozenset[str]()}
    assert blind(handler(login, "auth", optional=True), DARK) == []
    assert len(blind(handler(login, "auth", optional=True), able)) == 1
