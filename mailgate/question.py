"""One stage being put to its handlers: deadlines, failures, what may be answered."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import current_task, get_running_loop
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

from mailgate import fork
from mailgate.chain import Bound, Chain
from mailgate.deadline import Wait, resume, stay
from mailgate.errors import Misuse, Undeclared, Unsupported, WrongAnswer
from mailgate.invocation import CURRENT, Invocation
from mailgate.logs import trouble
from mailgate.message import Change, Message
from mailgate.session import Session
from mailgate.stage import SILENT_STAGES, Stage
from mailgate.threads import Threads
from mailgate.verdict import Authenticated, Defer, Discard, Quarantine, Reject, Verdict

log = logging.getLogger(__name__)

FAILURE = Defer("the mail policy failed, try again later", 451, "4.3.0")
FAILED: Mapping[str, Verdict | None] = {
    "defer": FAILURE,
    "reject": Reject("the mail policy failed", 550, "5.3.0"),
    "continue": None,
}


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One handler's answer, for traces; ``seconds`` is what it took."""

    stage: Stage
    subject: str
    by: str
    verdict: Verdict | None
    seconds: float
    changes: tuple[Change, ...]
    error: BaseException | None = None


@final
@dataclass(frozen=True, slots=True)
class Terms:
    """How a process runs handlers; see `mailgate.engine.Engine`."""

    threads: Threads
    strict: bool = False
    trace: Callable[[Step], None] | None = None


class Asker(Protocol):
    """Who asks: a conversation.

    ``on_wait`` is called when a handler first suspends; ``patience`` (seconds) bounds what is
    asked before the end of the message.
    """

    @property
    def session(self) -> Session: ...
    @property
    def terms(self) -> Terms: ...
    @property
    def chain(self) -> Chain: ...
    @property
    def on_wait(self) -> Callable[[], None] | None: ...
    @property
    def patience(self) -> float: ...


@final
class Question:
    """A stage, and what is asked there; its handlers share one budget of time."""

    # One is made for each stage of each message: what rarely changes is a default of the class.
    _ends: float | None = None
    _wait: Wait | None = None

    def __init__(
        self, asker: Asker, stage: Stage, message: Message | None, arguments: tuple[Any, ...]
    ) -> None:
        self._asker = asker
        self._stage = stage
        self._message = message
        self._arguments = arguments
        self.began = time.perf_counter()

    def abandon(self, stages: frozenset[Stage]) -> None:
        """Cancel the handler that is waiting at one of these stages: nobody waits for it."""
        if self._wait is not None and self._stage in stages:
            self._wait.abandon()

    async def put(self, bound: Bound) -> Verdict | None:
        """Ask one handler; its failure becomes the verdict that its ``on_error`` names.

        Most handlers end in their first step: without a task, a timer or a thread.
        """
        asker = self._asker
        invocation = Invocation(bound, asker.session, self._message)
        trace = None if asker.terms.trace is None else self._begin_trace(asker.terms.trace)
        error: BaseException | None = None
        verdict: Verdict | None = None
        token = CURRENT.set(invocation)
        try:
            plain = bound.is_plain
            coroutine = bound.function(*self._arguments) if plain else self._start(bound)
            try:
                pending = coroutine.send(None)
            except StopIteration as done:
                answer = done.value
            else:
                fork.leave_if_child()
                answer = await self._rest(coroutine, pending, bound)
            if answer is not None:
                verdict = _checked(answer, bound)
        except BaseException as raised:
            fork.leave_if_child()
            error = raised
            verdict = self._failed(raised, bound, invocation)
        finally:
            invocation.live = False
            CURRENT.reset(token)
        fork.leave_if_child()
        task = current_task(get_running_loop())
        if task is not None and task.cancelling():
            await stay()  # it cancelled the task that it runs in, which is not its own
        if trace is not None:
            trace(bound, verdict, error)
        return verdict

    def _start(self, bound: Bound) -> Any:
        """Call a handler that waits for a thread, or that may not see all there is."""
        arguments = self._arguments
        if self._stage is Stage.AUTH and "credentials" not in bound.granted:
            arguments = (arguments[0], replace(arguments[1], password=None))
        if bound.is_async:
            return bound.function(*arguments)
        return self._asker.terms.threads.run(bound.function, *arguments)

    def _failed(
        self, error: BaseException, bound: Bound, invocation: Invocation
    ) -> Verdict | None:
        """Undo what a handler did and return what its failure means; raise what is not its own."""
        message, session = self._message, self._asker.session
        if message is not None:
            message.roll_back(invocation)
        elif invocation.undo is not None:
            session.learn(helo=invocation.undo)
        abandoned = self._wait is not None and self._wait.gone
        if abandoned and isinstance(error, asyncio.CancelledError):
            raise error
        if self._asker.terms.strict and isinstance(error, Misuse):
            raise error
        id = message.id if message is not None else session.id
        trouble(log, error, bound.label, self._stage, id)
        return None if self._stage in SILENT_STAGES else FAILED[bound.on_error]

    def _begin_trace(
        self, trace: Callable[[Step], None]
    ) -> Callable[[Bound, Verdict | None, BaseException | None], None]:
        """Note the time and the edits so far; return what tells the step that follows."""
        message = self._message
        mark = message.edits if message is not None else 0
        began = time.perf_counter()

        def tell(bound: Bound, verdict: Verdict | None, error: BaseException | None) -> None:
            seconds = time.perf_counter() - began
            changes = tuple(message.changes[mark:]) if message is not None else ()
            subject = str(self._arguments[-1]) if self._stage is Stage.RCPT else ""
            trace(Step(self._stage, subject, bound.label, verdict, seconds, changes, error))

        return tell

    async def _rest(self, coroutine: Any, pending: Any, bound: Bound) -> Any:
        """Go on with a handler that has suspended, within what is left of the budget."""
        now = get_running_loop().time()
        if self._ends is None:
            defaults = self._asker.chain.defaults
            last = self._stage is Stage.MESSAGE
            budget = min(defaults.timeout, self._asker.patience)
            self._ends = now + (defaults.message_timeout if last else budget)
            if self._asker.on_wait is not None:
                self._asker.on_wait()
        self._wait = wait = Wait()
        return await resume(coroutine, pending, wait, min(bound.timeout, self._ends - now))


def _checked(answer: Any, bound: Bound) -> Verdict:
    """Return a handler's answer; raise `Misuse` unless the stage has a meaning for it."""
    kind = type(answer)
    if bound.silent:
        raise WrongAnswer(f"{bound.name} is annotated -> None and returned {kind.__name__}")
    if kind not in bound.allowed:
        allowed = ", ".join(t.__name__ for t in bound.allowed)
        raise WrongAnswer(f"{bound.name} returned {kind.__name__}, not None, {allowed}")
    if kind in (Discard, Quarantine, Authenticated):
        if answer.needs not in bound.declared:
            raise Undeclared(f"{kind.__name__} wants needs={{{answer.needs!r}}} on {bound.name!r}")
        if answer.needs not in bound.granted:
            raise Unsupported(f"{kind.__name__} is not possible on this protocol")
    verdict: Verdict = answer
    return verdict
