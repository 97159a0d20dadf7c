"""What a handler's source uses without having declared it: a hint, never a contract."""

from __future__ import annotations

import ast
import inspect
import textwrap

from mailgate.policy import Handler
from mailgate.stage import ACTIONS

_CALLS = frozenset(
    {"change_helo", "change_sender", "change_recipient", "add_recipient", "remove_recipient"}
)
_FACTS = {
    "user": "auth",
    "tls": "tls",
    "rdns": "rdns",
    "rdns_verified": "rdns",
    "params": "params",
}
_VERDICTS = {"Discard": "discard", "Quarantine": "quarantine", "Authenticated": "authenticate"}


def undeclared(handler: Handler) -> list[str]:
    """Return a line for each action or fact that a handler uses and does not declare."""
    try:
        source = textwrap.dedent(inspect.getsource(handler.function))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        return []
    declared = handler.needs | handler.wants
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        used = _used(node)
        if used is not None and used[0] not in declared and used[0] not in found:
            line = handler.line + getattr(node, "lineno", 1) - 1
            found[used[0]] = (
                f"{handler.name} uses {used[1]} undeclared, line {line}: "
                f"{_consequence(used[0])}; declare needs={{{used[0]!r}}}"
            )
    return list(found.values())


def _consequence(capability: str) -> str:
    if capability in ACTIONS:
        return "it fails whenever it is asked"
    return "on a protocol that does not tell it, nobody has it"


def _used(node: ast.AST) -> tuple[str, str] | None:
    """Return (capability, what the source says) for a node that uses one."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) if name in _CALLS:
            return name, f"{name}()"
        case ast.Call(func=ast.Name(id=name)) if name in _VERDICTS:
            return _VERDICTS[name], name
        case ast.Attribute(value=ast.Attribute(attr="session"), attr=name) if name in _FACTS:
            return _FACTS[name], f"session.{name}"
        case ast.Attribute(value=ast.Name(id="session"), attr=name) if name in _FACTS:
            return _FACTS[name], f"session.{name}"
        case ast.Attribute(attr="params", value=ast.Name() | ast.Attribute(attr="sender")):
            return "params", "params"
    return None
