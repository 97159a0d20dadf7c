"""Options that several commands share, and what they become."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import click

from mailgate import adapter as adapters
from mailgate import config as configuration
from mailgate import listen as listen_on
from mailgate import settings
from mailgate.config import Config, Use
from mailgate.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])


class FlagNamed(click.Option):
    """An option whose environment variable is named after its flag: MAILGATE_TEST_FROM."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        prefix = ctx.auto_envvar_prefix
        if prefix is None or self.envvar is not None:
            return super().resolve_envvar_value(ctx)
        flag = max(self.opts, key=len).lstrip("-").replace("-", "_").upper()
        return os.environ.get(f"{prefix}_{flag}") or None


option = partial(click.option, cls=FlagNamed)


def policies(function: Function) -> Function:
    """Add POLICY..., --config and --set."""
    function = option(
        "--set",
        "pairs",
        metavar="KEY=VALUE",
        multiple=True,
        help="A setting of the single POLICY; may be repeated.",
    )(function)
    return click.argument("policy", nargs=-1)(config(function))


def config(function: Function) -> Function:
    """Add --config."""
    return option(
        "-c",
        "--config",
        "config_file",
        metavar="FILE",
        help="Configuration [mailgate.toml, /etc/mailgate/mailgate.toml].",
    )(function)


def _complete_protocol(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    return [name for name in adapters.names() if name.startswith(incomplete)]


def protocol(*, multiple: bool, text: str) -> Callable[[Function], Function]:
    """Add --protocol."""
    return option(
        "-p",
        "--protocol",
        metavar="NAME",
        multiple=multiple,
        help=text,
        shell_complete=_complete_protocol,
    )


def listen(function: Function) -> Function:
    """Add --listen."""
    return option(
        "-l",
        "--listen",
        "addresses",
        metavar="ADDR",
        multiple=True,
        help="Listen on HOST:PORT, unix:/PATH or fd:N; may be repeated.",
    )(function)


def listening(config: Config, name: str, addresses: Sequence[str]) -> Config:
    """Return a configuration whose protocol listens on other addresses than its table says."""
    if not addresses:
        return config
    kind = adapters.load(name).Options
    if not _listens(kind):
        others = [n for n, adapter in adapters.installed().items() if _listens(adapter.Options)]
        remedy = f"; --listen is for {', '.join(others)}" if others else ""
        raise click.UsageError(f"{name} listens on no address{remedy}")
    config.options(name, kind)  # what is wrong in the file is told as the file's
    for address in addresses:
        try:
            listen_on.parse(address)
        except ConfigError as error:
            raise click.UsageError(f"--listen: {error.message}") from None
    table = {**config.adapters.get(name, {}), "listen": [*addresses]}
    return replace(config, adapters={**config.adapters, name: table})


def _listens(kind: type[Any]) -> bool:
    return any(field.name == "listen" for field in fields(kind))


def load_config(
    config_file: str | None, policy: tuple[str, ...], pairs: tuple[str, ...]
) -> Config:
    """Return the configuration; POLICY arguments replace its ``[[policy]]`` tables."""
    config = configuration.read(configuration.find(config_file), adapters.names())
    if pairs and len(policy) != 1:
        raise click.UsageError("--set goes with a single POLICY; settings are in mailgate.toml")
    if not policy:
        return config
    given = dict(_pair(text) for text in pairs)
    uses = tuple(Use(spec, given) for spec in policy)
    return replace(config, policies=uses)


def _pair(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise click.UsageError(f"--set takes KEY=VALUE, not {text!r}")
    return key, settings.from_text(value)


def known_protocol(name: str) -> str:
    """Return a protocol's name; a usage error names those that are installed."""
    installed = adapters.names()
    if name not in installed:
        if not installed:
            raise ConfigError("no adapters are installed; is mailgate itself? (pip install .)")
        raise click.UsageError(f"unknown protocol {name!r}; installed: {', '.join(installed)}")
    return name
