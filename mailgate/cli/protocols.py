"""``mailgate protocols``."""

from __future__ import annotations

import json
import sys

import click

from mailgate import adapter as adapters
from mailgate.chain import UNKNOWN_VERBS, Capabilities
from mailgate.cli import options
from mailgate.stage import CAPABILITIES, Stage


@click.command("protocols")
@options.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """List the installed protocols and what they can do."""
    installed = adapters.installed()
    if as_json:
        report = {
            name: {
                "summary": adapter.summary,
                "capabilities": {
                    stage: sorted(names) for stage, names in adapter.capabilities.items()
                },
            }
            for name, adapter in installed.items()
        }
        click.echo(json.dumps(report, indent=2))
        return
    from mailgate.cli.output import print_table

    for name, adapter in installed.items():
        click.echo(f"{name}: {adapter.summary}")
    click.echo()
    head = ("can", *installed)
    table = [
        (what, *(where(adapter.capabilities, what) for adapter in installed.values()))
        for what in rows()
    ]
    # In a pipe `print_table` leaves the head out, and here it says which column is whose.
    print_table(head, table if sys.stdout.isatty() else [head, *table])


def rows() -> list[str]:
    """Return what a protocol can be asked for: every stage, then every capability."""
    return [*(f"@policy.{stage}" for stage in Stage), *sorted(CAPABILITIES)]


def where(capabilities: Capabilities, what: str) -> str:
    """Return "yes", "-", or the stages or verbs for which a protocol can do something."""
    if what.startswith("@"):
        stage = Stage(what.removeprefix("@policy."))
        if stage is Stage.COMMAND and stage in capabilities:
            return answered(capabilities[stage])
        return "yes" if stage in capabilities else "-"
    stages = [stage for stage in Stage if what in capabilities.get(stage, ())]
    if not stages:
        return "-"
    # An action in some stages only is worth saying; a fact is known from some stage on.
    few = what.startswith("change_") and len(stages) < 3
    return f"in {', '.join(stages)}" if few else "yes"


def answered(here: frozenset[str]) -> str:
    """Return the SMTP verbs that a protocol lets policies answer."""
    named = " ".join(sorted(name for name in here if name.isupper()))
    unknown = "unknown verbs" if UNKNOWN_VERBS in here else ""
    return ", ".join(filter(None, (named, unknown))) or "observers only"
