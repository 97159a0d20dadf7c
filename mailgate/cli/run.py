"""``mailgate run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import cast, get_args

import click

from mailgate import logs
from mailgate.cli import Start, leave, options
from mailgate.config import Config
from mailgate.gateway import Gateway


@click.command("run")
@options.policies
@options.protocol(multiple=False, text="The protocol to speak; see mailgate protocols.")
@options.listen
@options.upstream
@options.option(
    "--workers", metavar="N|auto", default="1", help="Processes that share the work [1]."
)
@options.option("--log-level", type=click.Choice(get_args(logs.Level)), help="What to log [info].")
@options.option(
    "--log-format", type=click.Choice(get_args(logs.Format)), help="How to log it [auto]."
)
def command(
    policy: tuple[str, ...],
    protocol: str | None,
    config_file: str | None,
    pairs: tuple[str, ...],
    addresses: tuple[str, ...],
    upstreams: tuple[str, ...],
    workers: str,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Serve policies behind a mail server.

    POLICY is file.py[:name] or package.module[:name]; without one the [[policy]] tables of the
    configuration are used.  Without -p every protocol is served that the configuration has a
    table for; opensmtpd and opensmtpd52 have to be named, and smtpd starts the command itself.
    """
    name = None if protocol is None else options.known_protocol(protocol)
    for flag, values in (("--listen", addresses), ("--upstream", upstreams)):
        if name is None and values:
            raise click.UsageError(f"{flag} goes with one protocol: name it with -p")
    number = _number_of(workers)
    if name is None and number > 1:
        raise click.UsageError("--workers goes with one protocol: name it with -p")

    def configure() -> Config:
        config = options.load_config(config_file, policy, pairs)
        if name is not None:
            config = options.placed(config, name, addresses, upstreams)
        level = cast("logs.Level", log_level or config.log.level)
        format = cast("logs.Format", log_format or config.log.format)
        return replace(config, log=replace(config.log, level=level, format=format))

    gateway = Gateway(name, configure)
    config = configure()
    if name is None and not config.adapters:
        raise click.UsageError(
            "say which protocol to speak: -p NAME, or a table such as [milter] in mailgate.toml"
        )
    start: Start = click.get_current_context().obj
    to = "stderr" if start.foreground and config.log.to == "auto" else config.log.to
    listener = logs.configure(config.log.level, config.log.format, to, start.program)
    (handler,) = listener.handlers
    start.syslog = handler if isinstance(handler, logs.Syslog) else None
    ended, status = True, 0
    try:
        # What policies print goes where the log goes.
        with redirect_stdout(sys.stderr if start.syslog is None else logs.Printed()):
            if number > 1:
                argv = _worker(
                    *(name, config_file, pairs, upstreams, log_level, log_format),
                    verbose=start.verbose,
                )
                status = gateway.run_workers(argv, policy, number)
            else:
                ended = gateway.run()
    finally:
        written = logs.stop(listener)
        sys.stdout.flush()
    if not written:
        os._exit(status)  # whoever reads stderr would keep the process for ever
    if not ended:
        sys.stderr.flush()
        os._exit(status)  # a handler would
    leave(status)


def _number_of(workers: str) -> int:
    """Return how many processes are meant; ``auto`` is one for each processor."""
    if workers == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not workers.isdecimal() or not 1 <= int(workers) <= 256:
        raise click.UsageError(f"--workers takes a number from 1 to 256 or auto, not {workers!r}")
    return int(workers)


def _worker(
    name: str | None,
    config_file: str | None,
    pairs: Sequence[str],
    upstreams: Sequence[str],
    log_level: str | None,
    log_format: str | None,
    *,
    verbose: bool,
) -> list[str]:
    """Return the command line of a worker, without POLICY and the sockets that it takes over."""
    argv = [sys.executable, "-P", "-m", "mailgate", *(["--verbose"] if verbose else [])]
    argv += ["run", "--workers", "1"]
    given = (
        *(("--protocol", name), ("--config", config_file)),
        *(("--set", pair) for pair in pairs),
        *(("--upstream", url) for url in upstreams),
        *(("--log-level", log_level), ("--log-format", log_format)),
    )
    argv += [word for option, value in given if value for word in (option, value)]
    return argv
