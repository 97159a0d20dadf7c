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
from mailgate import settings
from mailgate.cli import Start
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


def upstream(function: Function) -> Function:
    """Add --upstream."""
    return option(
        "-u",
        "--upstream",
        "upstreams",
        metavar="URL",
        multiple=True,
        help="Pass mail on to smtp://HOST:PORT or others.",
    )(function)


def placed(
    config: Config, name: str, addresses: Sequence[str], upstreams: Sequence[str]
) -> Config:
    """Return a configuration whose protocol has other addresses than its table says."""
    given = {"listen": addresses, "upstream": upstreams}
    kind = adapters.load(name).Options
    for key, values in given.items():
        if not values:
            continue
        if not _has(kind, key):
            others = [n for n, a in adapters.installed().items() if _has(a.Options, key)]
            remedy = f"; --{key} is for {', '.join(others)}" if others else ""
            raise click.UsageError(f"{name} has no {_MEANS[key]}{remedy}")
        config.options(name, kind)  # what is wrong in the file is told as the file's
        table = {**config.adapters.get(name, {}), key: [*values]}
        config = replace(config, adapters={**config.adapters, name: table})
        try:
            config.options(name, kind)
        except ConfigError as error:
            raise click.UsageError(f"--{key}: {_plain(error.message, name)}") from None
    return config


_MEANS = {"listen": "address to listen on", "upstream": "server to pass mail on to"}


def _plain(message: str, name: str) -> str:
    """Return what is wrong with a value, without the table that it is not written in."""
    return message.removeprefix(f"[{name}]: ")


def _has(kind: type[Any], key: str) -> bool:
    return any(field.name == key for field in fields(kind))


def load_config(
    config_file: str | None, policy: tuple[str, ...], pairs: tuple[str, ...]
) -> Config:
    """Return the configuration; POLICY arguments replace its ``[[policy]]`` tables."""
    start: Start = click.get_current_context().obj
    file = configuration.find(config_file, here=start.here)
    config = configuration.read(file, adapters.names())
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
