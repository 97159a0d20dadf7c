"""``mailgate test``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mailgate import adapter as adapters
from mailgate import testing
from mailgate.chain import Loaded
from mailgate.cli import options
from mailgate.config import load_all
from mailgate.errors import ConfigError
from mailgate.gateway import check, refusals
from mailgate.outcome import Outcome, lines, printable
from mailgate.verdict import verb

VERBS = ("accept", "reject", "defer", "disconnect", "discard", "quarantine")


@click.command("test")
@click.argument("arguments", nargs=-1, metavar="[POLICY]... [MESSAGE|-]")
@options.option("--from", "sender", default="sender@client.example", help="Envelope sender.")
@options.option("--to", "recipients", multiple=True, help="Envelope recipient; may be repeated.")
@options.option("--client", default="192.0.2.1", metavar="IP", help="Client address, or 'local'.")
@options.option("--rdns", metavar="NAME", help="The client's host name.")
@options.option("--helo", default="client.example", metavar="NAME", help="Name in EHLO.")
@options.option("--user", metavar="U", help="Authenticated user.")
@options.option("--tls", is_flag=True, help="The connection is encrypted.")
@options.protocol(multiple=False, text="Grant only what this protocol can do.")
@options.option("--expect", type=click.Choice(VERBS), help="Exit 1 unless it ends like this.")
@options.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@options.option("-o", "output", metavar="FILE", help="Write the resulting message here.")
@options.option("-c", "--config", "config_file", metavar="FILE", help="Configuration.")
@options.option("--set", "pairs", metavar="KEY=VALUE", multiple=True, help="A setting of POLICY.")
def command(
    arguments: tuple[str, ...],
    sender: str,
    recipients: tuple[str, ...],
    client: str,
    rdns: str | None,
    helo: str,
    user: str | None,
    tls: bool,
    protocol: str | None,
    expect: str | None,
    as_json: bool,
    output: str | None,
    config_file: str | None,
    pairs: tuple[str, ...],
) -> None:
    """Send a message through policies and print the trace.

    MESSAGE is a file, or - for standard input; without one a short message is sent.  Arguments
    that end in .py, or name a module, are policies.
    """
    specs, source = _divide(arguments)
    config = options.load_config(config_file, specs, pairs)
    raw = _read(source)
    policies = load_all(config.policies)
    if protocol is not None:
        check(policies, adapters.load(options.known_protocol(protocol)))
    try:
        mta = testing.Mta(
            policies,
            client=None if client == "local" else client,
            rdns=rdns,
            helo=helo,
            tls=tls,
            user=user,
            adapter=protocol,
            defaults=config.defaults,
            limits=config.limits,
            strict=False,
        )
    except ValueError as error:
        raise click.UsageError(f"--client: {error}") from None
    outcome = testing.converse(mta, raw, sender, recipients or ("rcpt@example.org",))
    if output is not None:
        _write(output, outcome.raw)
    _print(outcome, as_json)
    if protocol is None and not as_json:
        click.echo(_runs_on(policies))
    sys.exit(0 if expect is None or _ended(outcome) == expect else _missed(outcome, expect))


def _divide(arguments: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    """Return the policies and the message among the arguments."""
    if arguments and not _is_policy(arguments[-1]):
        return arguments[:-1], arguments[-1]
    return arguments, None


def _is_policy(word: str) -> bool:
    name = word.partition(":")[0]
    if name.endswith(".py"):
        return True
    return not Path(word).exists() and word != "-" and "/" not in word and not _is_mail(word)


def _is_mail(word: str) -> bool:
    return word.lower().endswith((".eml", ".msg", ".txt", ".mbox"))


def _read(source: str | None) -> bytes:
    if source is None:
        return testing.MESSAGE
    if source == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise ConfigError(f"the message cannot be read: {error.strerror}", file=source) from None


def _write(file: str, raw: bytes) -> None:
    try:
        Path(file).write_bytes(raw)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=file) from None


def _ended(outcome: Outcome) -> str:
    """Return the word for how it ended."""
    if outcome.verdict is None:
        return "accept" if outcome.accepted else "reject"
    return verb(outcome.verdict)


def _missed(outcome: Outcome, expect: str) -> int:
    click.echo(f"expected {expect}, got {_ended(outcome)}", err=True)
    return 1


def _runs_on(policies: Sequence[Loaded]) -> str:
    installed = adapters.installed()
    able = [n for n, a in installed.items() if not any(refusals(policies, a))]
    return f"runs on   {', '.join(able) or 'no installed protocol; see mailgate check'}"


def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        for record in _records(outcome):
            click.echo(json.dumps(record))
        return
    colour = {"refused": "red", "accepte": "green", "discard": "yellow", "held by": "yellow"}
    for line in lines(outcome):
        fg = None if "NO_COLOR" in os.environ else colour.get(line[:7])
        click.echo(click.style(line, fg=fg) if fg else line)


def _records(outcome: Outcome) -> list[dict[str, object]]:
    steps: list[dict[str, object]] = [
        {
            "stage": step.stage,
            "subject": printable(step.subject),
            "by": step.by,
            "verdict": verb(step.verdict),
            "reply": getattr(step.verdict, "reply", None),
            "ms": round(step.seconds * 1000, 3),
            "changes": [str(change) for change in step.changes],
            "error": None if step.error is None else type(step.error).__name__,
        }
        for step in outcome.steps
    ]
    ending: dict[str, object] = {
        "ended": _ended(outcome),
        "reply": outcome.reply,
        "by": outcome.by,
        "recipients": [*outcome.message.recipients] if outcome.message is not None else [],
        "replies": {str(address): reply for address, reply in outcome.replies.items()},
    }
    return [*steps, ending]
