"""``mailgate snippet``."""

from __future__ import annotations

import click

from mailgate import adapter as adapters
from mailgate.adapter import Adapter, Site
from mailgate.cli import options
from mailgate.config import Config


def _complete_mta(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in servers() if name.startswith(incomplete)]


@click.command("snippet")
@click.argument("mta", shell_complete=_complete_mta)
@options.protocol(multiple=False, text="The protocol, where the mail server speaks several.")
@options.config
@options.listen
@options.upstream
@options.option(
    "--queue-directory",
    metavar="DIR",
    help="The mail server's queue, where it is not at its usual place.",
)
def command(
    mta: str,
    protocol: str | None,
    config_file: str | None,
    addresses: tuple[str, ...],
    upstreams: tuple[str, ...],
    queue_directory: str | None,
) -> None:
    """Print what to add to the configuration of a mail server (MTA).

    It goes by the configuration: where mailgate listens, and how long it takes to answer.  A
    socket that systemd passes (fd:3) is named with --listen, as its .socket unit has it.
    """
    read = options.load_config(config_file, (), ())
    adapter = _speaking(mta, protocol, read)
    config = options.placed(read, adapter.name, addresses, upstreams)
    table = config.options(adapter.name, adapter.Options)
    lines = adapter.snippets[mta](table, Site(config.defaults, queue_directory))
    click.echo("\n".join(lines))


def servers() -> list[str]:
    """Return the mail servers that an installed adapter has a snippet for."""
    return sorted({mta for each in adapters.installed().values() for mta in each.snippets})


def _speaking(mta: str, protocol: str | None, config: Config) -> type[Adapter]:
    """Return the adapter that has a snippet for a mail server; a usage error names what there is.

    Of several it is the one that the configuration has a table for.
    """
    able = {name: each for name, each in adapters.installed().items() if mta in each.snippets}
    if not able:
        raise click.UsageError(f"no snippet for {mta!r}; there are: {', '.join(servers())}")
    configured = [name for name in able if name in config.adapters]
    if protocol is None and len(configured or able) == 1:
        (protocol,) = configured or able
    if protocol not in able:
        raise click.UsageError(f"say which protocol {mta} speaks: -p {' or -p '.join(able)}")
    return able[protocol]
