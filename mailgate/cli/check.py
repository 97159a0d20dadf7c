"""``mailgate check``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from mailgate import adapter as adapters
from mailgate.adapter import Adapter
from mailgate.chain import (
    Capabilities,
    Chain,
    Defaults,
    Loaded,
    answerable,
    shows_all,
)
from mailgate.cli import options
from mailgate.config import Config, load_all
from mailgate.gateway import refusals
from mailgate.lint import undeclared
from mailgate.policy import Handler
from mailgate.stage import Stage


@click.command("check")
@options.policies
@options.protocol(multiple=True, text="Check for this protocol only; may be repeated.")
@options.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    policy: tuple[str, ...],
    protocol: tuple[str, ...],
    config_file: str | None,
    pairs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Load everything, print the plan, serve nothing.

    Exit status: 0 all is well, 1 a protocol cannot serve the policies, 78 they cannot be loaded.
    """
    config = options.load_config(config_file, policy, pairs)
    names = [options.known_protocol(name) for name in protocol] or adapters.names()
    policies = load_all(config.policies)
    protocols = {name: _as_set_up(config, name) for name in names}
    verdicts = {name: _problems(policies, protocol) for name, protocol in protocols.items()}
    rows = [(loaded.name, handler) for loaded in policies for handler in loaded.policy.handlers]
    if as_json:
        click.echo(json.dumps(_report(policies, verdicts), indent=2))
    else:
        _print(rows, policies, verdicts)
    failed = all(verdicts.values()) if not protocol else any(verdicts.values())
    sys.exit(1 if failed else 0)


def _as_set_up(config: Config, name: str) -> Adapter:
    """Return an adapter with the options of the configuration, which may leave things out."""
    protocol = adapters.load(name)
    return protocol(config.options(name, protocol.Options))


def _problems(policies: Sequence[Loaded], protocol: Adapter) -> list[str]:
    return [str(refusal) for refusal in refusals(policies, protocol)]


def _plan(policies: Sequence[Loaded], name: str) -> str:
    protocol = adapters.load(name)
    interest = Chain(policies, protocol.capabilities, Defaults()).interest
    replies = ", ".join(stage for stage in Stage if stage in interest.answers) or "none"
    text = f"replies: {replies}   content: {interest.content}"
    handlers = [handler for loaded in policies for handler in loaded.policy.handlers]
    handlers.sort(key=lambda handler: list(Stage).index(handler.stage))
    silent = dict.fromkeys(_silent(handler, protocol.capabilities) for handler in handlers)
    silent.pop("", None)
    return text + (f"   silent: {', '.join(silent)}" if silent else "")


def _silent(handler: Handler, capabilities: Capabilities) -> str:
    """Return where a protocol never asks a handler that it can serve: a stage, or SMTP verbs."""
    here = capabilities.get(handler.stage)
    if here is None:
        return handler.stage
    if handler.stage is not Stage.COMMAND:
        return ""
    if shows_all(here) and not handler.answers:
        return ""
    if not handler.verbs:
        return "command (known verbs)"
    hidden = sorted(handler.verbs - answerable(handler.verbs, here))
    return f"command {' '.join(hidden)}" if hidden else ""


def _does(handler: Handler) -> str:
    if handler.edits or (handler.silent and handler.answers):
        return "edits"
    return "answers" if handler.answers else "observes"


def _declared(handler: Handler) -> str:
    parts = [("needs", handler.needs), ("wants", handler.wants)]
    words = [f"{key} {' '.join(sorted(names))}" for key, names in parts if names]
    if handler.verbs:
        words.insert(0, " ".join(sorted(handler.verbs)))
    return "  ".join(words)


def _cells(name: str, handler: Handler) -> tuple[str, ...]:
    kind = "async" if handler.is_async else "thread"
    return (name, handler.stage, handler.name, kind, _does(handler), _declared(handler))


def _print(
    rows: Sequence[tuple[str, Handler]],
    policies: Sequence[Loaded],
    verdicts: dict[str, list[str]],
) -> None:
    from mailgate.cli.output import print_table

    print_table(
        ("policy", "stage", "handler", "runs", "does", "declares"),
        [_cells(name, handler) for name, handler in rows],
    )
    for line in (hint for _, handler in rows for hint in undeclared(handler)):
        click.echo(f"hint: {line}")
    for name, problems in verdicts.items():
        if not problems:
            click.echo(f"{name:<12} ok    {_plan(policies, name)}")
        for problem in problems:
            click.echo(f"{name:<12} no    {problem}")


def _report(policies: Sequence[Loaded], verdicts: dict[str, list[str]]) -> dict[str, object]:
    return {
        "policies": [
            {
                "name": loaded.name,
                "handlers": [
                    {
                        "stage": handler.stage,
                        "name": handler.name,
                        "file": handler.file,
                        "line": handler.line,
                        "async": handler.is_async,
                        "does": _does(handler),
                        "needs": sorted(handler.needs),
                        "wants": sorted(handler.wants),
                        "verbs": sorted(handler.verbs),
                        "hints": undeclared(handler),
                    }
                    for handler in loaded.policy.handlers
                ],
            }
            for loaded in policies
        ],
        "protocols": {
            name: {"ok": not problems, "problems": problems} for name, problems in verdicts.items()
        },
    }
