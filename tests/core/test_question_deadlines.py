"""Answers come in time, and handlers run where they should."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from mailgate.address import Address
from mailgate.chain import Defaults, Loaded
from mailgate.engine import Conversation
from mailgate.errors import TooLate
from mailgate.headers import Section
from mailgate.limits import Limits
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.question import Step
from mailgate.session import Session
from mailgate.stage import Stage
from mailgate.verdict import Accept, Reject, Verdict
from tests.core.asking import (
    FAILED,
    RECIPIENT,
    SENDER,
    content,
    converse,
    engine,
    in_loop,
    reply,
    to_data,
    to_headers,
    to_mail,
)

SHORT = 0.05  # seconds of a deadline that is meant to pass
NO = Reject("no")


# -- deadlines -----------------------------------------------------------------------------------


@contextmanager
def held() -> Iterator[threading.Event]:
    """Give an event for threads to wait for; it comes at the end of the test."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


def waiting(**options: Any) -> Policy:
    policy = Policy("p")

    async def waits(message: Message) -> None:
        await for_ever()

    policy.mail(**options)(waits)
    return policy


@pytest.mark.parametrize(
    ("defaults", "of_policy", "options"),
    [
        (Defaults(timeout=SHORT), None, {}),
        (Defaults(), SHORT, {}),
        (Defaults(), None, {"timeout": SHORT}),
        (Defaults(timeout=SHORT), 100.0, {"timeout": 100}),
    ],
)
@in_loop
async def test_a_handler_that_waits_too_long_fails(
    defaults: Defaults, of_policy: float | None, options: Any
) -> None:
    policy = Loaded(waiting(**options), "p", timeout=of_policy)
    conversation = converse(policy, defaults=defaults)
    assert reply(await conversation.mail(SENDER)) == FAILED["defer"]


@in_loop
async def test_the_end_of_a_message_has_a_budget_of_its_own() -> None:
    policy = Policy("p")

    @policy.data
    @policy.message
    async def waits(message: Message) -> None:
        await asyncio.sleep(2 * SHORT)

    conversation = converse(policy, defaults=Defaults(timeout=SHORT, message_timeout=60))
    await to_mail(conversation)
    await conversation.rcpt(RECIPIENT)
    assert reply(await conversation.data()) == FAILED["defer"]
    policy = Policy("p")
    policy.message(waits)
    conversation = converse(policy, defaults=Defaults(timeout=SHORT, message_timeout=60))
    await to_headers(conversation)
    assert await conversation.end(content()) is None


@in_loop
async def test_handlers_share_the_budget_of_a_question() -> None:
    """What the first has used up is not there for the second, of another policy even."""
    second: list[str] = []
    other = Policy("other")

    @other.mail
    async def sleeps(message: Message) -> Verdict | None:
        await asyncio.sleep(SHORT / 2)
        second.append("had time")
        return None

    conversation = converse(waiting(on_error="continue"), other, defaults=Defaults(timeout=SHORT))
    assert reply(await conversation.mail(SENDER)) == FAILED["defer"]
    assert second == []
    await conversation.finish("refused")
    alone = converse(other, defaults=Defaults(timeout=60))
    assert await alone.mail(SENDER) is None
    assert second == ["had time"]


@in_loop
async def test_logins_share_the_budget_too() -> None:
    from mailgate.session import Attempt

    policy, second = Policy("p"), []

    @policy.auth(on_error="continue")
    async def waits(session: Session, attempt: Attempt) -> None:
        await for_ever()

    @policy.auth
    async def sleeps(session: Session, attempt: Attempt) -> Verdict | None:
        await asyncio.sleep(SHORT / 2)
        second.append("had time")
        return None

    conversation = converse(policy, defaults=Defaults(timeout=SHORT))
    assert reply(await conversation.auth(Attempt("PLAIN"))) == FAILED["defer"]
    assert second == []


@in_loop
async def test_each_question_has_a_budget_of_its_own() -> None:
    policy = waiting(on_error="continue")

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Verdict | None:
        await asyncio.sleep(0)
        return None

    conversation = converse(policy, defaults=Defaults(timeout=SHORT))
    assert await conversation.mail(SENDER) is None
    assert await conversation.rcpt(RECIPIENT) is None


@in_loop
async def test_a_thread_that_waits_too_long_fails_and_is_replaced() -> None:
    policy = Policy("p")
    with held() as event:

        @policy.mail(timeout=SHORT)
        def waits(message: Message) -> None:
            event.wait()

        serving = engine(policy, limits=Limits(threads=1))
        for lost in (1, 2):
            conversation = serving.converse(Session("s1", "test"))
            assert reply(await conversation.mail(SENDER)) == FAILED["defer"]
            assert serving.threads.lost == lost


@in_loop
async def test_waiting_for_a_thread_is_part_of_the_budget() -> None:
    ran: list[str] = []
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    hog, late = Policy("hog"), Policy("late")
    with held() as event:

        @hog.mail
        def hogs(message: Message) -> None:
            loop.call_soon_threadsafe(started.set)
            event.wait()

        @late.helo(timeout=SHORT)
        def runs(session: Session) -> None:
            ran.append("late")

        serving = engine(hog, late, limits=Limits(threads=1))
        first, second = (serving.converse(Session(id, "test")) for id in "12")
        waiting = asyncio.create_task(first.mail(SENDER))
        await started.wait()
        assert reply(await second.helo("x.example")) == FAILED["defer"]
        event.set()
        assert await waiting is None
    assert ran == []
    assert serving.threads.lost == 0


@in_loop
async def test_a_late_threads_edits_change_nothing() -> None:
    errors: list[Exception] = []
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    with held() as event:
        policy = Policy("p")

        @policy.message(needs={"add_recipient"}, timeout=SHORT, on_error="continue")
        def late(message: Message) -> None:
            message.headers["X-A"] = "early"
            event.wait()
            try:
                message.add_recipient("late@b.example")
            except TooLate as error:
                errors.append(error)
            loop.call_soon_threadsafe(ended.set)

        conversation = converse(policy)
        message = await to_headers(conversation)
        assert await conversation.end(content()) is None
        event.set()
        await ended.wait()
    assert len(errors) == 1
    assert message.recipients == (RECIPIENT,)
    assert "X-A" not in message.headers
    assert not message.changes


@in_loop
async def test_a_task_that_a_handler_left_behind_changes_nothing() -> None:
    left: list[asyncio.Task[None]] = []
    policy = Policy("p")

    async def later(message: Message) -> None:
        await asyncio.sleep(0)
        message.headers["X-A"] = "late"

    @policy.headers
    async def leaves(message: Message) -> None:
        left.append(asyncio.create_task(later(message)))

    conversation = converse(policy)
    message = await to_headers(conversation)
    with pytest.raises(TooLate):
        await left[0]
    assert "X-A" not in message.headers


@pytest.mark.parametrize("answer", [None, NO])
@in_loop
async def test_an_answer_after_the_deadline_is_no_answer(answer: Verdict | None) -> None:
    policy = Policy("p")

    @policy.mail(timeout=SHORT)
    async def swallows(message: Message) -> Verdict | None:
        with suppress(asyncio.CancelledError):
            await for_ever()
        return answer

    assert reply(await converse(policy).mail(SENDER)) == FAILED["defer"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@in_loop
async def test_a_handler_that_goes_on_after_its_deadline_delays_nobody() -> None:
    cleaning, cleaned = asyncio.Event(), asyncio.Event()
    policy = Policy("p")

    @policy.mail(timeout=SHORT)
    async def goes_on(message: Message) -> None:
        try:
            await for_ever()
        finally:
            await cleaning.wait()
            cleaned.set()

    conversation = converse(policy)
    assert reply(await conversation.mail(SENDER)) == FAILED["defer"]
    assert not cleaned.is_set()
    cleaning.set()
    await cleaned.wait()


@in_loop
async def test_a_client_that_is_gone_cancels_the_handler_that_waits() -> None:
    seen: list[str] = []
    started = asyncio.Event()
    policy = Policy("p")

    @policy.mail
    async def waits(message: Message) -> None:
        try:
            started.set()
            await for_ever()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @policy.done
    async def done(message: Message) -> None:
        assert message.outcome is not None
        seen.append(message.outcome.result)

    conversation = converse(policy)
    conversation.abandon()  # nobody waits yet
    task = asyncio.create_task(conversation.mail(SENDER))
    await started.wait()
    conversation.abandon()
    conversation.abandon()
    with pytest.raises(asyncio.CancelledError):
        await task
    await conversation.close()
    assert seen == ["cancelled", "aborted"]


@pytest.mark.parametrize("waits", [False, True])
@in_loop
async def test_a_handler_that_cancels_its_own_task_harms_itself_only(waits: bool) -> None:
    """The task is the adapter's, and serves other clients afterwards."""
    policy = Policy("p")

    @policy.mail
    async def cancels(message: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if waits:
            await for_ever()

    served: list[tuple[str | None, int]] = []

    async def serve() -> None:
        verdict = await converse(policy).mail(SENDER)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        served.append((reply(verdict), task.cancelling()))

    await asyncio.create_task(serve())
    assert served[0][1] == 0
    assert served[0][0] == FAILED["defer"] or not waits


async def suspended(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start what will wait, and give it its first turn."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task


@in_loop
async def test_a_client_that_is_gone_cancels_nothing_that_only_looks_on() -> None:
    go_on, told = asyncio.Event(), list[str]()
    policy = Policy("p")

    @policy.done
    async def done(message: Message) -> None:
        await go_on.wait()
        told.append("done")

    conversation = converse(policy)
    await to_mail(conversation)
    task = await suspended(conversation.finish("accepted"))
    conversation.abandon()
    go_on.set()
    await task
    assert told == ["done"]


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.HELO])
@in_loop
async def test_a_message_that_is_given_up_cancels_what_is_asked_about_it(stage: Stage) -> None:
    go_on = asyncio.Event()
    policy = Policy("p")

    @policy.mail
    async def about_the_message(message: Message) -> None:
        await go_on.wait()

    @policy.helo
    async def about_the_session(session: Session) -> None:
        await go_on.wait()

    conversation = converse(policy)
    asks = conversation.mail(SENDER) if stage is Stage.MAIL else conversation.helo("x.example")
    task = await suspended(asks)
    conversation.abandon_message()
    go_on.set()
    if stage is Stage.HELO:
        assert await task is None
        return
    with pytest.raises(asyncio.CancelledError):
        await task


@in_loop
async def test_a_thread_of_a_handlers_own_making_changes_nothing() -> None:
    """It runs without the handler's context: nothing says whose edits those would be."""
    errors: list[Exception] = []
    policy = Policy("p")

    def edit(message: Message) -> None:
        try:
            message.headers["X-A"] = "1"
        except TooLate as error:
            errors.append(error)

    @policy.headers
    async def starts(message: Message) -> None:
        thread = threading.Thread(target=edit, args=(message,))
        thread.start()
        thread.join()

    message = await to_headers(converse(policy))
    assert len(errors) == 1
    assert "X-A" not in message.headers


# -- where a handler runs ------------------------------------------------------------------------


class Tasks:
    """Counts the tasks that are made."""

    def __init__(self) -> None:
        self.made = 0
        asyncio.get_running_loop().set_task_factory(self._make)

    def _make(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> Any:
        self.made += 1
        return asyncio.Task(coroutine, loop=loop, **named)


async def whole(conversation: Conversation) -> None:
    await to_headers(conversation)
    assert await conversation.end(content()) is None
    await conversation.finish("accepted")
    await conversation.close()


@pytest.mark.parametrize("waits", [False, True])
@in_loop
async def test_no_task_is_made_for_an_async_handler(waits: bool) -> None:
    tasks: list[asyncio.Task[Any] | None] = []
    policy = Policy("p")

    async def handler(*arguments: object) -> None:
        tasks.append(asyncio.current_task())
        if waits:
            await asyncio.sleep(0)

    for stage in (policy.connect, policy.helo, policy.mail, policy.message, policy.done):
        stage(handler)
    counted = Tasks()
    await whole(converse(policy))
    assert counted.made == 0
    assert set(tasks) == {asyncio.current_task()}
    assert len(tasks) == 5


@in_loop
async def test_timeouts_and_tasks_work_in_a_handler() -> None:
    policy, expired = Policy("p"), []

    async def slow() -> str:
        await asyncio.sleep(0)
        return "slow"

    @policy.mail
    async def handler(message: Message) -> Verdict | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(SHORT):
                await for_ever()
        expired.append("timeout")
        with suppress(TimeoutError):
            await asyncio.wait_for(for_ever(), SHORT)
        expired.append("wait_for")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(slow()) for _ in range(2)]
        return Reject(
            " ".join([*(task.result() for task in tasks), *await asyncio.gather(slow())])
        )

    verdict = await converse(policy, defaults=Defaults(timeout=60)).mail(SENDER)
    assert verdict == Reject("slow slow slow")
    assert expired == ["timeout", "wait_for"]


@in_loop
async def test_a_def_handler_runs_in_a_thread_with_its_context() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    seen: list[tuple[bool, str]] = []
    policy = Policy("p")

    @policy.mail
    def handler(message: Message) -> Verdict | None:
        seen.append((threading.current_thread() is threading.main_thread(), name.get()))
        return Accept()

    name.set("set before")
    assert await converse(policy).mail(SENDER) is None
    assert seen == [(False, "set before")]


@in_loop
async def test_others_go_on_while_a_handler_waits() -> None:
    """An adapter with one task for all sessions hears when a handler suspends, once."""
    told: list[str] = []
    policy = Policy("p")

    @policy.mail
    async def waits(message: Message) -> None:
        told.append("asked")
        for _ in range(3):
            await asyncio.sleep(0)

    @policy.mail
    async def waits_too(message: Message) -> None:
        await asyncio.sleep(0)

    @policy.rcpt
    async def at_once(message: Message, recipient: Address) -> None:
        told.append("at once")

    serving = engine(policy)
    conversation = serving.converse(Session("s1", "test"), lambda: told.append("waits"))
    await conversation.mail(SENDER)
    await conversation.rcpt(RECIPIENT)
    assert told == ["asked", "waits", "at once"]


# -- traces --------------------------------------------------------------------------------------


@in_loop
async def test_every_step_is_told() -> None:
    steps: list[Step] = []
    policy = Policy("p")

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Verdict | None:
        return NO if recipient != RECIPIENT else None

    @policy.headers
    async def edits(message: Message) -> None:
        message.headers["X-A"] = "1"

    @policy.headers(on_error="reject")
    async def fails(message: Message) -> None:
        message.headers["X-B"] = "1"
        raise ValueError("no")

    conversation = converse(policy, trace=steps.append)
    await to_data(conversation)
    await conversation.headers(Section.of([]))
    first, second, third = steps
    assert (first.stage, first.subject, first.by) == (Stage.RCPT, RECIPIENT, "p.rcpt")
    assert (first.verdict, first.error, first.changes) == (None, None, ())
    assert [str(change) for change in second.changes] == ["+ header X-A: 1"]
    assert reply(third.verdict) == FAILED["reject"]
    assert third.changes == ()
    assert isinstance(third.error, ValueError)
    assert all(step.seconds >= 0 for step in steps)
