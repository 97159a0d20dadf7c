"""Print tables of mailgate beside its peers: OpenSMTPD filters, milters, SMTP proxies."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console

from bench import milter_tables, opensmtpd, opensmtpd52, smtp_tables
from bench.measure import BenchError, medians
from bench.milter import Generator
from bench.milter_peers import TRANSPORTS, WORKS, peers
from bench.milter_tables import Scope
from bench.smtp import Load, Tools
from bench.smtp_peers import PEERS
from bench.smtp_peers import peers as smtp_peers
from bench.smtp_tables import SESSIONS, SIZES
from bench.table import show

Command = TypeVar("Command", bound=Callable[..., None])


def _number(name: str, default: int, text: str, most: int | None = None) -> Callable[..., Command]:
    """Return an option that is a number, at least 1."""
    return click.option(
        name, type=click.IntRange(1, most), default=default, show_default=True, help=text
    )


def _several(
    name: str, into: str, known: Collection[str], text: str, shown: str = "all"
) -> Callable[..., Command]:
    """Return an option that may be repeated; without it all of them are meant."""
    return click.option(
        name,
        into,
        type=click.Choice(list(known)),
        multiple=True,
        default=list(known),
        help=f"{text}; may be repeated.  [default: {shown}]",
    )


def _seconds(default: float, text: str = "Length of a run, about.") -> Callable[..., Command]:
    """Return the option for the time that a run takes."""
    return click.option(
        "--seconds", type=click.FloatRange(0.1), default=default, show_default=True, help=text
    )


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Measure mailgate beside its peers.

    Without a command, all of them are run, with their defaults.
    """
    if context.invoked_subcommand is None:
        for command in (opensmtpd_filters, opensmtpd52_filters, milters, smtp_proxies):
            context.invoke(command)


@main.command("opensmtpd")
@_number("--messages", 1000, "Messages in a run.")
@_number("--lines", 999, "Lines of a message.")
@_number("--sessions", 10, "Sessions at a time, their lines interleaved.", 256)
@_number("--rounds", 5, "Runs of each, for the median.")
@click.option(
    "--protocol",
    type=click.Choice(list(opensmtpd.VERSIONS)),
    default="0.7",
    show_default=True,
    help="Version of the filter protocol.",
)
def opensmtpd_filters(
    messages: int, lines: int, sessions: int, rounds: int, protocol: str
) -> None:
    """Measure OpenSMTPD filters that change nothing, or one header field.

    A feeder plays smtpd. Each row is the median of interleaved rounds. "lines" are data-lines,
    the dots that end a message included.
    """
    load = opensmtpd.Load(messages, lines, sessions, protocol)
    console, progress = Console(), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="mailgate-bench.") as folder:
        contestants = list(opensmtpd.contestants(load, Path(folder)))
        with progress.status("") as status:
            try:
                rows = medians(contestants, rounds, status.update)
            except BenchError as error:
                raise click.ClickException(str(error)) from error
    title = (
        f"OpenSMTPD filter protocol {protocol}: {messages} messages of {lines} lines, "
        f"{sessions} sessions, medians of {rounds}, load {os.getloadavg()[0]:.1f}"
    )
    show(title, rows, opensmtpd.COLUMNS, rows.get(opensmtpd.C_LIBRARY), console)
    console.print()


@main.command("opensmtpd52")
@_several(
    "--smtpd",
    "smtpds",
    opensmtpd52.SMTPDS,
    "Who plays smtpd: imsgload, or that of the tests",
    "both",
)
@_several("--size", "sizes", opensmtpd52.SIZES, "Size of a message")
@click.option(
    "--sessions",
    type=click.IntRange(1, 1000),
    multiple=True,
    default=list(opensmtpd52.SESSIONS),
    show_default=True,
    help="Sessions at a time; may be repeated.",
)
@_number("--messages", 1, "Messages in a session.")
@_several("--peer", "names", opensmtpd52.PEERS, "Who takes part")
@_seconds(0.3)
@_number("--rounds", 3, "Runs of each, for the median.")
def opensmtpd52_filters(
    smtpds: tuple[str, ...],
    sizes: tuple[str, ...],
    sessions: tuple[int, ...],
    messages: int,
    names: tuple[str, ...],
    seconds: float,
    rounds: int,
) -> None:
    """Measure filters of the imsg API 52: messages a second, CPU, memory, latency.

    Two programs play smtpd, each a process of its own: imsgload, in C, which costs some 0.03 ms
    a message, so that the filter is what limits; and that of the tests, in Python, some 0.3 ms,
    which limits a filter in C itself. A real one takes some 2 ms. Both check every answer, and
    compare every message with what comes back. "smtpd CPU" is theirs, in ms a message; all else
    is the filter's. A message that no filter reads passes through smtpd's own socketpair, as
    with the real one. With the defaults that takes about three minutes.
    """
    loads = [opensmtpd52.Load(size, number, messages) for size in sizes for number in sessions]
    scope = opensmtpd52.Scope(smtpds, loads, rounds, seconds)
    console, progress = Console(), Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="mailgate-bench.") as folder,
        progress.status("preparing the peers") as status,
    ):
        try:
            generator = opensmtpd52.Generator(Path(folder))
            opensmtpd52.rates(names, scope, generator, console, status.update)
        except BenchError as error:
            raise click.ClickException(str(error)) from error


@main.command("milter")
@_several("--filter", "works", WORKS, "What the filters do")
@click.option(
    "--transport",
    "transports",
    type=click.Choice(TRANSPORTS),
    multiple=True,
    default=list(TRANSPORTS),
    help="Kind of socket; may be repeated.  [default: both]",
)
@click.option(
    "--connections",
    type=click.IntRange(1),
    multiple=True,
    default=[1, 10, 100],
    show_default=True,
    help="Connections at a time; may be repeated.",
)
@click.option(
    "--kept",
    type=click.IntRange(1),
    multiple=True,
    default=[1, 50],
    show_default=True,
    help="Messages on a connection; may be repeated.",
)
@_seconds(0.7, "Length of a run.")
@_number("--rounds", 3, "Runs of each, for the median.")
@click.option(
    "--idle",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Idle connections to measure memory with; 0 leaves that out.",
)
def milters(
    works: tuple[str, ...],
    transports: tuple[str, ...],
    connections: tuple[int, ...],
    kept: tuple[int, ...],
    seconds: float,
    rounds: int,
    idle: int,
) -> None:
    """Measure milters: messages a second, latency over TCP, memory.

    The program milterload plays Postfix: one recipient, ten header fields, a body of 4 KiB. It
    sends and awaits what a filter has negotiated. /C and /lean are multiples of a filter on the
    C library with all callbacks, and of one with those only that answer.
    """
    scope = Scope(works, transports, connections, kept, seconds, rounds)
    console, progress = Console(), Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="mailgate-bench.") as folder,
        progress.status("preparing the peers") as status,
    ):
        try:
            generator = Generator(Path(folder))
            able = list(peers(Path(folder)))
            latencies = milter_tables.rates(able, scope, generator, console, status.update)
            if latencies and 1 in connections:
                milter_tables.show_latencies(latencies, console)
            if idle:
                milter_tables.memory(able, idle, rounds, generator, console, status.update)
        except BenchError as error:
            raise click.ClickException(str(error)) from error


@main.command("smtp")
@_several("--size", "sizes", SIZES, "Size of a message")
@click.option(
    "--sessions",
    type=click.IntRange(1),
    multiple=True,
    help="Sessions at a time; may be repeated.  [default: 1, 20, 200; with 5m 1 and 4]",
)
@click.option(
    "--kept/--new",
    default=None,
    help="Connections for many messages, or for one.  [default: both]",
)
@_several("--peer", "names", PEERS, "Who takes part")
@_seconds(0.7)
@_number("--rounds", 3, "Runs of each, for the median.")
@click.option(
    "--large/--no-large",
    default=True,
    show_default=True,
    help="Measure memory and small mail beside large mail, too.",
)
def smtp_proxies(
    sizes: tuple[str, ...],
    sessions: tuple[int, ...],
    kept: bool | None,
    names: tuple[str, ...],
    seconds: float,
    rounds: int,
    large: bool,
) -> None:
    """Measure SMTP proxies: messages a second, CPU, memory, latency.

    smtp-source sends, smtp-sink receives; "direct" is without a proxy between them. CPU time and
    memory are those of all processes of a proxy; a page that they share counts in each. Another
    client takes the times, in up to 20 sessions. What mailgate owes is printed at the end, as
    far as it was measured. With the defaults that takes about a quarter of an hour.
    """
    loads = [
        Load(SIZES[size], number, keeping)
        for size in sizes
        for number in sessions or SESSIONS[size]
        for keeping in ((True, False) if kept is None else (kept,))
    ]
    scope = smtp_tables.Scope(loads, rounds, seconds)
    console, progress = Console(), Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="mailgate-bench.") as folder,
        progress.status("preparing the peers") as status,
    ):
        try:
            tools = Tools(Path(folder))
            able = list(smtp_peers(names, Path(folder), tools.tree))
            told = status.update
            measured = smtp_tables.rates(able, scope, tools, console, told)
            rows = smtp_tables.large(able, scope, tools, console, told) if large else {}
            smtp_tables.owed(measured, rows, console)
        except BenchError as error:
            raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
