"""Hints about what a handler uses without having declared it."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from mailgate.address import Address
from mailgate.lint import undeclared
from mailgate.message import Message
from mailgate.policy import Handler, Policy
from mailgate.session import Session
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
    fact = "on a protocol that does not tell it, nobody has it"
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
