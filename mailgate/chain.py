"""Policies as the engine asks them: stage by stage, for one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from mailgate.policy import ANSWERS, Handler, Policy
from mailgate.stage import SILENT_STAGES, OnError, Stage

Capabilities: TypeAlias = Mapping[Stage, frozenset[str]]
"""What a protocol can do: its stages, and at each of them the capabilities.

At `Stage.COMMAND` the set holds the SMTP verbs that can be answered.
"""

Content: TypeAlias = Literal["none", "headers", "stream", "buffer"]


@final
@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy as a configuration uses it; its own defaults go before the general ones."""

    policy: Policy
    name: str
    timeout: float | None = None
    on_error: OnError | None = None


@final
@dataclass(frozen=True, slots=True)
class Defaults:
    """The ``[defaults]`` table.

    ``timeout`` and ``message_timeout`` (seconds) are the budgets of one question, of all
    handlers of all policies together; the second is for the end of the message.  Postfix waits
    30 s for an answer to a command and 300 s for one to a message, OpenSMTPD for ever.
    """

    timeout: float = 20.0
    message_timeout: float = 240.0
    on_error: OnError = "defer"

    def __post_init__(self) -> None:
        for name in ("timeout", "message_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name!r} must be a number of seconds above 0")


@final
@dataclass(frozen=True, slots=True)
class Interest:
    """What a set of policies wants to be asked, so that everything else need not be sent.

    ``answers``: stages at which a verdict may come back.  ``asked``: stages with any handler.
    ``verbs``: SMTP verbs that are answered.  ``observes_commands``: all are looked at.
    ``refusing``: stages whose failure has to be answered, there or later.
    """

    answers: frozenset[Stage]
    asked: frozenset[Stage]
    refusing: frozenset[Stage]
    content: Content
    verbs: frozenset[str]
    observes_commands: bool


@final
@dataclass(frozen=True, slots=True)
class Unmet:
    """Something that a handler needs and a protocol cannot do."""

    handler: Handler
    needs: tuple[str, ...]
    only_at: tuple[Stage, ...] = ()

    def __str__(self) -> str:
        stages = f" (in {', '.join(self.only_at)} only)" if self.only_at else ""
        return f"{self.handler.name} needs {', '.join(self.needs)}{stages}"


def unmet(policies: Sequence[Loaded], capabilities: Capabilities) -> list[Unmet]:
    """Return what a protocol cannot do of what these policies need, in their order."""
    return [
        missing
        for loaded in policies
        for handler in loaded.policy.handlers
        if (missing := lacking(handler, capabilities)) is not None
    ]


def lacking(handler: Handler, capabilities: Capabilities) -> Unmet | None:
    """Return what a protocol cannot do of what one handler needs, or None."""
    here = capabilities.get(handler.stage)
    silent = handler.optional or not handler.answers
    if here is None:
        return None if silent else Unmet(handler, (f"the stage {handler.stage}",))
    missing = sorted(handler.needs - here)
    if handler.stage is Stage.COMMAND and not silent:
        missing += sorted(handler.verbs - here)
    if not missing:
        return None
    elsewhere = tuple(s for s in Stage if set(missing) <= capabilities.get(s, frozenset()))
    return Unmet(handler, tuple(missing), elsewhere)


@final
class Bound:
    """A handler as the engine calls it, everything looked up beforehand."""

    __slots__ = (
        "allowed",
        "answers",
        "bit",
        "declared",
        "function",
        "granted",
        "is_async",
        "is_plain",
        "label",
        "name",
        "on_error",
        "silent",
        "stage",
        "timeout",
        "verbs",
    )

    def __init__(
        self, handler: Handler, loaded: Loaded, at: int, granted: frozenset[str], d: Defaults
    ) -> None:
        self.function = handler.function
        self.stage = handler.stage
        self.name = handler.name
        self.label = f"{loaded.name}.{handler.name}"
        self.bit = 1 << at
        self.is_async = handler.is_async
        self.is_plain = handler.is_async and handler.stage is not Stage.AUTH
        self.answers = handler.answers
        self.silent = handler.silent
        self.allowed = ANSWERS[handler.stage]
        self.declared = handler.needs | handler.wants
        self.granted = self.declared & granted
        timeouts = (handler.timeout, loaded.timeout, float("inf"))
        self.timeout = next(t for t in timeouts if t is not None)
        self.on_error: OnError = handler.on_error or loaded.on_error or d.on_error
        self.verbs = handler.verbs


@final
class Chain:
    """The handlers of several policies for one protocol, stage by stage, in order."""

    def __init__(
        self, policies: Sequence[Loaded], capabilities: Capabilities | None, defaults: Defaults
    ) -> None:
        self.policies = tuple(policies)
        self.defaults = defaults
        at: dict[Stage, list[Bound]] = {stage: [] for stage in Stage}
        for index, loaded in enumerate(policies):
            for handler in loaded.policy.handlers:
                granted = handler.needs | handler.wants
                if capabilities is not None:
                    granted &= capabilities.get(handler.stage, frozenset())
                at[handler.stage].append(Bound(handler, loaded, index, granted, defaults))
        self.at: Mapping[Stage, tuple[Bound, ...]] = {s: tuple(b) for s, b in at.items()}
        self.interest = self._interest()

    def _interest(self) -> Interest:
        every = [bound for bounds in self.at.values() for bound in bounds]
        asked = frozenset(bound.stage for bound in every)
        content: Content = "none"
        for stage, mode in _CONTENT_OF.items():
            if stage in asked:
                content = mode
        commands = self.at[Stage.COMMAND]
        return Interest(
            answers=frozenset(bound.stage for bound in every if bound.answers),
            asked=asked,
            refusing=frozenset(
                bound.stage
                for bound in every
                if bound.stage not in SILENT_STAGES
                and (bound.answers or bound.on_error != "continue")
            ),
            content=content,
            verbs=frozenset[str]().union(*(bound.verbs for bound in commands if bound.answers)),
            observes_commands=any(not bound.answers for bound in commands),
        )


_CONTENT_OF: Mapping[Stage, Content] = {
    Stage.HEADERS: "headers",
    Stage.BODY: "stream",
    Stage.MESSAGE: "buffer",
}
