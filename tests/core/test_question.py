"""Whatever a handler does, its question is answered, and nothing else is touched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from mailgate.address import Address
from mailgate.chain import Capabilities, Defaults, Loaded
from mailgate.errors import Misuse, Undeclared, Unsupported, WrongAnswer
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.stage import OnError, Stage
from mailgate.verdict import Discard, Quarantine, Reject, Verdict
from tests.core.asking import (
    FAILED,
    RECIPIENT,
    SENDER,
    content,
    converse,
    in_loop,
    reply,
    to_headers,
    to_mail,
)

NO = Reject("no")


class Unshowable(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("not even this")

    __repr__ = __str__


class Base(BaseException):
    """An exception that is none of the usual."""


def recursion() -> None:
    recursion()


def raises(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


FAILURES: dict[str, Callable[[], None]] = {
    "exception": raises(ValueError("no")),
    "unshowable": raises(Unshowable()),
    "exit": raises(SystemExit(3)),
    "interrupt": raises(KeyboardInterrupt()),
    "generator exit": raises(GeneratorExit()),
    "cancelled": raises(asyncio.CancelledError()),
    "base": raises(Base("x" * 1000)),
    "memory": raises(MemoryError()),
    "stop": raises(StopIteration(NO)),
    "stop async": raises(StopAsyncIteration()),
    "timeout": raises(TimeoutError()),
    "group": raises(BaseExceptionGroup("several", [ValueError(), SystemExit()])),
    "recursion": recursion,
}


def failing(fail: Callable[[], None], how: str) -> Policy:
    """Return a policy whose mail handler fails: at once, after a wait, or in a thread."""
    policy = Policy("p")

    async def at_once(message: Message) -> Verdict | None:
        fail()
        return None

    async def later(message: Message) -> Verdict | None:
        await asyncio.sleep(0)
        fail()
        return None

    def thread(message: Message) -> Verdict | None:
        fail()
        return None

    policy.mail({"at once": at_once, "later": later, "thread": thread}[how])
    return policy


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["at once", "later", "thread"])
@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
@in_loop
async def test_any_failure_is_deferred(fail: Callable[[], None], how: str) -> None:
    conversation = converse(failing(fail, how))
    assert reply(await conversation.mail(SENDER)) == FAILED["defer"]
    await conversation.finish("refused")
    assert conversation.message is None


@pytest.mark.parametrize(("word", "text"), FAILED.items())
@in_loop
async def test_a_failure_is_what_on_error_says(word: OnError, text: str | None) -> None:
    conversation = converse(failing(recursion, "at once"), defaults=Defaults(on_error=word))
    assert reply(await conversation.mail(SENDER)) == text


@pytest.mark.parametrize(
    ("own", "of_policy", "word"),
    [("reject", "continue", "reject"), (None, "continue", "continue"), (None, None, "defer")],
)
@in_loop
async def test_the_nearest_on_error_wins(own: Any, of_policy: Any, word: OnError) -> None:
    policy = Policy("p")

    async def fails(message: Message) -> None:
        raise ValueError

    policy.mail(**({"on_error": own} if own else {}))(fails)
    conversation = converse(Loaded(policy, "p", on_error=of_policy))
    assert reply(await conversation.mail(SENDER)) == FAILED[word]


@in_loop
async def test_a_failure_that_continues_leaves_the_word_to_others() -> None:
    policy = Policy("p")

    @policy.mail(on_error="continue")
    async def fails(message: Message) -> None:
        raise ValueError

    @policy.mail
    async def refuses(message: Message) -> Verdict | None:
        return NO

    assert await converse(policy).mail(SENDER) == NO


@pytest.mark.parametrize("word", FAILED)
@in_loop
async def test_a_failure_where_nobody_can_answer_is_logged_only(word: OnError) -> None:
    told: list[str] = []
    policy = Policy("p")

    def ending(name: str) -> None:
        told.append(name)
        raise SystemExit(name)

    @policy.done(on_error=word)
    async def done(message: Message) -> None:
        ending("done")

    @policy.done
    def done_in_a_thread(message: Message) -> None:
        ending("done in a thread")

    @policy.close(on_error=word)
    async def close(session: Session) -> None:
        ending("close")

    conversation = converse(policy)
    await to_mail(conversation)
    await conversation.finish("accepted")
    await conversation.close()
    assert told == ["done", "done in a thread", "close"]


def answering(answer: object, stage: str = "mail", **options: Any) -> Policy:
    policy = Policy("p")

    async def answers(*arguments: object) -> object:
        return answer

    getattr(policy, stage)(**options)(answers)
    return policy


@pytest.mark.parametrize(
    "answer", ["550 no", 550, True, False, 0, b"", (), Reject, NO.reply, ValueError("x"), object()]
)
@in_loop
async def test_what_is_no_verdict_is_a_failure(answer: object) -> None:
    assert reply(await converse(answering(answer)).mail(SENDER)) == FAILED["defer"]
    with pytest.raises(WrongAnswer, match=r"answers returned \w+, not None, Accept, Reject"):
        await converse(answering(answer), strict=True).mail(SENDER)


@in_loop
async def test_an_observer_that_answers_is_a_failure() -> None:
    policy = Policy("p")

    @policy.mail
    async def sees(message: Message) -> None:
        return NO  # type: ignore[return-value]

    assert reply(await converse(policy).mail(SENDER)) == FAILED["defer"]
    with pytest.raises(WrongAnswer, match="annotated -> None"):
        await converse(policy, strict=True).mail(SENDER)


@in_loop
async def test_a_verdict_without_meaning_at_its_stage_is_a_failure() -> None:
    policy = answering(Discard("x"), "connect", needs={"discard"})
    assert reply(await converse(policy).connect()) == FAILED["defer"]


CAN: Capabilities = {Stage.MAIL: frozenset()}


@pytest.mark.parametrize(
    ("options", "capabilities", "error"),
    [({}, None, Undeclared), ({"wants": {"quarantine"}}, CAN, Unsupported)],
)
@in_loop
async def test_a_verdict_is_declared_and_possible(
    options: Any, capabilities: Capabilities | None, error: type[Misuse]
) -> None:
    policy = answering(Quarantine("x"), **options)
    conversation = converse(policy, capabilities=capabilities)
    assert reply(await conversation.mail(SENDER)) == FAILED["defer"]
    with pytest.raises(error):
        await converse(policy, capabilities=capabilities, strict=True).mail(SENDER)


@in_loop
async def test_tests_see_misuse_and_only_that() -> None:
    """Every other failure follows `on_error` in a test, as it does in service."""
    conversation = converse(failing(FAILURES["exception"], "at once"), strict=True)
    assert reply(await conversation.mail(SENDER)) == FAILED["defer"]


def test_a_failure_is_logged_with_its_handler_and_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @in_loop
    async def story() -> None:
        await converse(failing(FAILURES["exception"], "thread")).mail(SENDER, "4F2A")

    story()
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    first, *rest = record.getMessage().splitlines()
    assert first == "error=ValueError by=p.thread stage=mail id=4F2A"
    assert rest[0].startswith("Traceback")
    assert any("in thread" in line for line in rest)
    assert rest[-1] == "ValueError: no"


# -- edits of a handler that fails ---------------------------------------------------------------


def editing(fail: Callable[[Message], Any], *, thread: bool = False) -> Policy:
    """Return a policy that edits a message in every way and then fails."""
    policy = Policy("p")

    def edit(message: Message) -> None:
        message.headers["X-A"] = "1"
        del message.headers["Subject"]
        message.body = b"other\n"
        message.change_sender("n@b.example")
        message.add_recipient("n@b.example")
        message.remove_recipient(RECIPIENT)

    async def on_loop(message: Message) -> Any:
        edit(message)
        return fail(message)

    def in_thread(message: Message) -> Any:
        edit(message)
        return fail(message)

    register = policy.message(
        needs={"change_sender", "add_recipient", "remove_recipient"}, on_error="continue"
    )
    register(in_thread if thread else on_loop)
    return policy


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("fail", [lambda m: 1 / 0, lambda m: "no verdict"])
@in_loop
async def test_a_failed_handlers_edits_are_taken_back(
    fail: Callable[[Message], Any], thread: bool
) -> None:
    kept = Policy("kept")

    @kept.headers
    async def before(message: Message) -> None:
        message.headers["X-Kept"] = "1"

    conversation = converse(kept, editing(fail, thread=thread))
    message = await to_headers(conversation)
    raw = bytes(message.headers)
    assert b"X-Kept" in raw
    assert await conversation.end(content()) is None
    assert (bytes(message.headers), message.body) == (raw, b"Hello.\r\n")
    assert (message.sender, message.recipients) == (SENDER, (RECIPIENT,))
    assert [str(change) for change in message.changes] == ["+ header X-Kept: 1"]


@in_loop
async def test_a_changed_recipient_is_taken_back_with_its_handler() -> None:
    policy = Policy("p")

    @policy.rcpt(needs={"change_recipient"}, on_error="continue")
    async def rcpt(message: Message, recipient: Address) -> None:
        message.change_recipient(recipient, "new@example.org")
        if recipient.local == "bad":
            raise ValueError

    conversation = converse(policy)
    message = await to_mail(conversation)
    for name in ("good", "bad"):
        assert await conversation.rcpt(Address(f"{name}@example.org")) is None
    assert message.recipients == ("new@example.org", "bad@example.org")
    assert message.original_recipients == ("good@example.org", "bad@example.org")


@in_loop
async def test_a_refused_recipient_is_not_kept_as_it_was_changed() -> None:
    policy = Policy("p")

    @policy.rcpt(needs={"change_recipient"})
    async def rcpt(message: Message, recipient: Address) -> Verdict | None:
        message.change_recipient(recipient, "new@example.org")
        return NO

    conversation = converse(policy)
    message = await to_mail(conversation)
    assert await conversation.rcpt(RECIPIENT) == NO
    assert message.recipients == ()
