"""``mailgate run``."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import cast, get_args

import click

from mailgate import logs
from mailgate.cli import options
from mailgate.config import Config
from mailgate.gateway import Gateway


@click.command("run")
@options.policies
@options.protocol(multiple=False, text="The protocol to speak; see mailgate protocols.")
@options.option("--log-level", type=click.Choice(get_args(logs.Level)), help="What to log [info].")
@options.option(
    "--log-format", type=click.Choice(get_args(logs.Format)), help="How to log it [auto]."
)
def command(
    policy: tuple[str, ...],
    protocol: str | None,
    config_file: str | None,
    pairs: tuple[str, ...],
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Serve policies behind a mail server.

    POLICY is file.py[:name] or package.module[:name]; without one the [[policy]] tables of the
    configuration are used.  On opensmtpd smtpd starts this command itself, as a filter:

    \b
        filter gate proc-exec \\
            "/usr/local/bin/mailgate run -p opensmtpd /etc/mailgate/gate.py"
    """
    if protocol is None:
        raise click.UsageError("say which protocol to speak: -p NAME (see mailgate protocols)")

    def configure() -> Config:
        config = options.load_config(config_file, policy, pairs)
        level = cast("logs.Level", log_level or config.log.level)
        format = cast("logs.Format", log_format or config.log.format)
        return replace(config, log=replace(config.log, level=level, format=format))

    gateway = Gateway(options.known_protocol(protocol), configure)
    config = configure()
    listener = logs.configure(config.log.level, config.log.format)
    ended = True
    try:
        ended = gateway.run()
    finally:
        listener.stop()
        sys.stdout.flush()
    if not ended:
        os._exit(0)  # a handler would keep the process for ever
