"""Policies as the engine asks them: stage by stage, for one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from mailgate.policy import ANSWERS, Handler, Policy
from mailgate.session import TOLD_BY
from mailgate.settings import Seconds
from mailgate.stage import CAPABILITIES, FACTS, SILENT_STAGES, OnError, Stage

Capabilities: TypeAlias = Mapping[Stage, frozenset[str]]
"""What a protocol can do: its stages, and at each of them the capabilities.

At `Stage.COMMAND` the set also holds the SMTP verbs that can be answered.  `UNKNOWN_VERBS`
stands for those that the server does not know: a protocol with it and no others shows only
these to those who look on.
"""

UNKNOWN_VERBS = "*"

KNOWN_VERBS = frozenset(
    {
        *("HELO", "EHLO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT"),
        *("VRFY", "EXPN", "HELP", "ETRN", "AUTH", "STARTTLS", "XCLIENT", "XFORWARD"),
    }
)
"""Verbs that a server answers itself, unless it says otherwise."""

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

    timeout: Seconds = 20.0
    message_timeout: Seconds = 240.0
    on_error: OnError = "defer"

    def __post_init__(self) -> None:
        for name in ("timeout", "message_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name!r} must be above 0")


@final
@dataclass(frozen=True, slots=True)
class Interest:
    """What a set of policies wants to be asked, so that everything else need not be sent.

    ``answers``: stages at which a verdict or an edit may come back; ``verdicts``: those at which
    a verdict may, unless a handler fails.  ``asked``: stages with any handler.
    ``verbs``: SMTP verbs that are answered.  ``observes_commands``: all are looked at.
    ``refusing``: stages whose failure has to be answered, there or later.  ``needs``: the
    capabilities that a handler cannot do without; ``uses``: those and the ones that it would
    like and gets.
    """

    answers: frozenset[Stage]
    verdicts: frozenset[Stage]
    asked: frozenset[Stage]
    refusing: frozenset[Stage]
    content: Content
    verbs: frozenset[str]
    observes_commands: bool
    needs: frozenset[str]
    uses: frozenset[str]


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
        wanted = not silent or (handler.needs and not handler.optional)
        return Unmet(handler, (f"the stage {handler.stage}",)) if wanted else None
    missing = sorted(handler.needs - here)
    if handler.stage is Stage.COMMAND and not silent:
        missing += sorted(handler.verbs - answerable(handler.verbs, here))
    if not missing:
        return None
    elsewhere = tuple(s for s in Stage if set(missing) <= capabilities.get(s, frozenset()))
    return Unmet(handler, tuple(missing), elsewhere)


def untold(capabilities: Capabilities | None) -> frozenset[str]:
    """Return the facts that a protocol tells at no stage: there they are not known."""
    return frozenset() if capabilities is None else FACTS.difference(*capabilities.values())


def is_asked(handler: Handler, capabilities: Capabilities | None) -> bool:
    """Tell whether a protocol ever asks a handler: an optional one it may have no stage for."""
    if capabilities is None:
        return True
    if handler.stage not in capabilities:
        return False
    answering = handler.stage is Stage.COMMAND and handler.answers and handler.verbs
    return not answering or bool(answerable(handler.verbs, capabilities[handler.stage]))


def shows_all(here: frozenset[str]) -> bool:
    """Tell whether a protocol shows every command to those who look on; as `answerable`."""
    return UNKNOWN_VERBS not in here or bool(here & KNOWN_VERBS)


def answerable(verbs: frozenset[str], here: frozenset[str]) -> frozenset[str]:
    """Return which SMTP verbs a protocol can answer; ``here`` is what it can do at COMMAND."""
    return verbs & here | (verbs - KNOWN_VERBS if UNKNOWN_VERBS in here else frozenset())


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
        "needs",
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
        self.needs = handler.needs
        self.declared = handler.needs | handler.wants
        self.granted = self.declared & granted
        timeouts = (handler.timeout, loaded.timeout, float("inf"))
        self.timeout = next(t for t in timeouts if t is not None)
        self.on_error: OnError = handler.on_error or loaded.on_error or d.on_error
        self.verbs = handler.verbs


@final
class Chain:
    """The handlers of several policies for one protocol, stage by stage, in order.

    ``untold`` has the facts that the protocol never tells, ``withheld`` the fields of a session
    that are among them.
    """

    def __init__(
        self, policies: Sequence[Loaded], capabilities: Capabilities | None, defaults: Defaults
    ) -> None:
        self.policies = tuple(policies)
        self.capabilities = capabilities
        self.defaults = defaults
        self.untold = untold(capabilities)
        self.withheld = tuple(name for name, fact in TOLD_BY.items() if fact in self.untold)
        at: dict[Stage, list[Bound]] = {stage: [] for stage in Stage}
        for index, loaded in enumerate(policies):
            for handler in loaded.policy.handlers:
                if not is_asked(handler, capabilities):
                    continue
                granted = handler.needs | handler.wants
                if capabilities is not None:
                    granted &= capabilities[handler.stage]
                at[handler.stage].append(Bound(handler, loaded, index, granted, defaults))
        self.at: Mapping[Stage, tuple[Bound, ...]] = {s: tuple(b) for s, b in at.items()}
        self.interest = self._interest()

    def without(self, missing: frozenset[str]) -> Chain:
        """Return the same policies for a peer that lacks some of its protocol's capabilities."""
        granted = self.capabilities
        if granted is None:
            granted = dict.fromkeys(Stage, CAPABILITIES | KNOWN_VERBS | {UNKNOWN_VERBS})
        granted = {stage: here - missing for stage, here in granted.items()}
        return Chain(self.policies, granted, self.defaults)

    def _interest(self) -> Interest:
        every = [bound for bounds in self.at.values() for bound in bounds]
        asked = frozenset(bound.stage for bound in every)
        content: Content = "none"
        for stage, mode in _CONTENT_OF.items():
            if stage in asked:
                content = mode
        commands = self.at[Stage.COMMAND]
        verbs = frozenset[str]().union(*(bound.verbs for bound in commands if bound.answers))
        if self.capabilities is not None and commands:
            verbs = answerable(verbs, self.capabilities[Stage.COMMAND])
        return Interest(
            answers=frozenset(bound.stage for bound in every if bound.answers),
            verdicts=frozenset(b.stage for b in every if b.answers and not b.silent),
            asked=asked,
            refusing=frozenset(
                bound.stage
                for bound in every
                if bound.stage not in SILENT_STAGES
                and (bound.answers or bound.on_error != "continue")
            ),
            content=content,
            verbs=verbs,
            observes_commands=any(not bound.answers for bound in commands),
            needs=frozenset[str]().union(*(bound.needs for bound in every)),
            uses=frozenset[str]().union(*(bound.granted for bound in every)),
        )


_CONTENT_OF: Mapping[Stage, Content] = {
    Stage.HEADERS: "headers",
    Stage.BODY: "stream",
    Stage.MESSAGE: "buffer",
}
