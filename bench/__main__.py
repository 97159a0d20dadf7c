"""Print one table: data-lines a second through OpenSMTPD filters, mailgate's and its peers'."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from bench.measure import BenchError, Contestant, medians
from bench.opensmtpd import COLUMNS, VERSIONS, Feeder, Load
from bench.table import show

HERE = Path(__file__).parent
C_LIBRARY = "C, libopensmtpd"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--messages",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Messages in a run.",
)
@click.option(
    "--lines", type=click.IntRange(1), default=999, show_default=True, help="Lines of a message."
)
@click.option(
    "--sessions",
    type=click.IntRange(1, 256),
    default=10,
    show_default=True,
    help="Sessions at a time, their lines interleaved.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Runs of each, for the median.",
)
@click.option(
    "--protocol",
    type=click.Choice(list(VERSIONS)),
    default="0.7",
    show_default=True,
    help="Version of the filter protocol.",
)
def main(messages: int, lines: int, sessions: int, rounds: int, protocol: str) -> None:
    """Measure OpenSMTPD filters that change nothing, or one header field.

    No mail server takes part: a feeder plays smtpd. Each row is the median of interleaved
    rounds. "lines" are data-lines, the dots that end a message included.
    """
    feeder = Feeder(Load(messages, lines, sessions, protocol))
    console, progress = Console(), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="mailgate-bench.") as folder:
        contestants = list(_contestants(feeder, Path(folder)))
        with progress.status("") as status:
            try:
                rows = medians(contestants, rounds, status.update)
            except BenchError as error:
                raise click.ClickException(str(error)) from error
    title = (
        f"OpenSMTPD filter protocol {protocol}: {messages} messages of {lines} lines, "
        f"{sessions} sessions, medians of {rounds}, load {os.getloadavg()[0]:.1f}"
    )
    show(title, rows, COLUMNS, rows.get(C_LIBRARY), console)


def _contestants(feeder: Feeder, folder: Path) -> Iterator[Contestant]:
    """Return the peers that this machine can run, then mailgate with its policies."""
    if (null_filter := _compiled(folder)) is not None:
        yield Contestant(C_LIBRARY, feeder.contest([str(null_filter)]))
    for name, file in (("Python, naive loop", "naive"), ("Python, least", "batch")):
        peer = HERE / "peers" / f"{file}_filter.py"
        yield Contestant(name, feeder.contest([sys.executable, str(peer)]))
    mailgate = str(Path(sysconfig.get_path("scripts"), "mailgate"))
    for name, file, added_lines in (
        ("mailgate, headers only", "pass_through", 0),
        ("mailgate, body in pieces", "streamed", 0),
        ("mailgate, whole message", "whole", 0),
        ("mailgate, whole, one header", "edited", 1),
    ):
        policy = HERE / "policies" / f"{file}.py"
        argv = [mailgate, "run", "--protocol", "opensmtpd", str(policy)]
        yield Contestant(name, feeder.contest(argv, added_lines))


def _compiled(folder: Path) -> Path | None:
    """Compile the filter on Debian's C library, installing that first where it lacks.

    Return None, and say why, where it cannot be had: the ratios are missing then.
    """
    program = folder / "null_filter"
    source = HERE / "peers" / "null_filter.c"
    compiler = ["cc", "-O2", "-o", str(program), str(source), "-lopensmtpd"]
    if _runs(compiler):
        return program
    packages = ["gcc", "libc6-dev", "libopensmtpd-dev"]
    install = ["apt-get", "-qy", "install", "--no-install-recommends", *packages]
    if os.geteuid() == 0 and (_runs(install) or (_runs(["apt-get", "update"]) and _runs(install))):
        _runs(compiler)
    if program.exists():
        return program
    click.echo("no libopensmtpd to compare with (Debian: gcc, libopensmtpd-dev)", err=True)
    return None


def _runs(argv: list[str]) -> bool:
    """Tell whether a command is there and succeeds."""
    if shutil.which(argv[0]) is None:
        return False
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


if __name__ == "__main__":
    main()
