"""What a handler's source uses without having declared it: hints, and what surely cannot work."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from mailgate.chain import Capabilities, is_asked, untold
from mailgate.policy import ARGUMENTS, Handler
from mailgate.session import TOLD_BY
from mailgate.stage import ACTIONS

_CALLS = frozenset(
    {"change_helo", "change_sender", "change_recipient", "add_recipient", "remove_recipient"}
)
_VERDICTS = {"Discard": "discard", "Quarantine": "quarantine", "Authenticated": "authenticate"}
_READABLE = frozenset({*TOLD_BY.values(), "params"})


@final
@dataclass(frozen=True, slots=True)
class Use:
    """A capability that a handler uses undeclared.

    ``said`` is how its source says it, ``line`` where in its file.  ``sure``: a fact is read,
    and of what the handler was given, not of something that has such a name.
    """

    capability: str
    said: str
    line: int
    sure: bool = False


def undeclared(handler: Handler) -> list[str]:
    """Return a line for each action or fact that a handler uses and does not declare."""
    return [
        f"{handler.name} uses {use.said} undeclared, line {use.line}: "
        f"{_consequence(use.capability)}; declare needs={{{use.capability!r}}}"
        for use in _first(_uses(handler))
    ]


def blind(handler: Handler, capabilities: Capabilities) -> list[Use]:
    """Return the facts that a handler surely reads, undeclared, and a protocol never tells."""
    dark = untold(capabilities) & _READABLE
    if not dark or not is_asked(handler, capabilities):
        return []
    return _first(use for use in _uses(handler) if use.sure and use.capability in dark)


def _first(uses: Iterator[Use]) -> list[Use]:
    """Return the first use of each capability."""
    found: dict[str, Use] = {}
    for use in uses:
        found.setdefault(use.capability, use)
    return list(found.values())


def _consequence(capability: str) -> str:
    if capability in ACTIONS:
        return "it fails whenever it is asked"
    return "on a protocol that never tells it, it raises"


def _uses(handler: Handler) -> Iterator[Use]:
    """Yield what a handler's source uses and does not declare; nothing where there is none."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(handler.function)))
    except (OSError, TypeError, SyntaxError):
        return
    names = _Names(tree, handler)
    declared = handler.needs | handler.wants
    for node in ast.walk(tree):
        used = _used(node, names)
        if used is not None and used[0] not in declared:
            line = handler.line + getattr(node, "lineno", 1) - 1
            yield Use(used[0], used[1], line, names.reads_fact(node))


def _used(node: ast.AST, names: _Names) -> tuple[str, str] | None:
    """Return (capability, what the source says) for a node that uses one."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) if name in _CALLS:
            return name, f"{name}()"
        case ast.Call(func=ast.Name(id=name)) if name in _VERDICTS:
            return _VERDICTS[name], name
        case ast.Attribute(value=ast.Attribute(attr="session"), attr=name) if name in TOLD_BY:
            return TOLD_BY[name], f"session.{name}"
        case ast.Attribute(value=ast.Name(id="session"), attr=name) if name in TOLD_BY:
            return TOLD_BY[name], f"session.{name}"
        case ast.Attribute(value=of, attr=name) if name in TOLD_BY and names.kind(of) == "session":
            return TOLD_BY[name], f"session.{name}"
        case ast.Attribute(attr="params", value=ast.Name() | ast.Attribute(attr="sender")):
            return "params", "params"
        case ast.Attribute(attr="params", value=of) if names.kind(of) == "address":
            return "params", "params"
    return None


_Kind: TypeAlias = Literal["session", "message", "address", "addresses"]

_GIVEN: Mapping[str, _Kind] = {"session": "session", "message": "message", "recipient": "address"}
_OF_MESSAGE: Mapping[str, _Kind] = {
    "session": "session",
    "sender": "address",
    "original_sender": "address",
    "recipients": "addresses",
    "original_recipients": "addresses",
}


@final
class _Names:
    """What the names in a handler's source surely stand for: those that are bound only once."""

    def __init__(self, tree: ast.Module, handler: Handler) -> None:
        self._bound = Counter(name for node in ast.walk(tree) for name in _binds(node))
        self._kinds: dict[str, _Kind] = {}
        arguments = ARGUMENTS[handler.stage].split(", ")
        parameters = inspect.signature(handler.function).parameters
        for given, name in zip(arguments, parameters, strict=False):
            self._learn(name, _GIVEN.get(given))
        for node in ast.walk(tree):
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                    | ast.NamedExpr(target=ast.Name(id=name), value=value)
                ):
                    self._learn(name, self.kind(value))
                case (
                    ast.For(target=ast.Name(id=name), iter=several)
                    | ast.AsyncFor(target=ast.Name(id=name), iter=several)
                    | ast.comprehension(target=ast.Name(id=name), iter=several)
                ):
                    self._learn(name, "address" if self.kind(several) == "addresses" else None)

    def _learn(self, name: str, kind: _Kind | None) -> None:
        if kind is not None and self._bound[name] == 1:
            self._kinds[name] = kind

    def kind(self, node: ast.expr) -> _Kind | None:
        """Return what an expression surely is, or None."""
        match node:
            case ast.Name(id=name):
                return self._kinds.get(name)
            case ast.Attribute(value=of, attr=name) if self.kind(of) == "message":
                return _OF_MESSAGE.get(name)
            case ast.Subscript(value=of, slice=at) if self.kind(of) == "addresses":
                return "addresses" if isinstance(at, ast.Slice) else "address"
        return None

    def reads_fact(self, node: ast.AST) -> bool:
        """Tell whether a node surely reads a fact of a session or an address."""
        match node:
            case ast.Attribute(value=of, attr=name, ctx=ast.Load()):
                kind = self.kind(of)
                return (kind == "session" and name in TOLD_BY) or (
                    kind == "address" and name == "params"
                )
        return False


def _binds(node: ast.AST) -> Iterator[str]:
    """Yield the name that a node binds, if any."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
            yield name
