"""The tables about SMTP proxies: rates and costs of each load, large mail, and what is owed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from bench.measure import Contestant, Figures, medians
from bench.smtp import Load, Tools, serving
from bench.smtp_peers import DIRECT, Peer
from bench.table import Column, plain, ratio, show

Rows = Mapping[str, Figures]
Told = Callable[[str], None]
"""Is told what is being measured."""

SIZES = {"4k": 4 << 10, "100k": 100 << 10, "5m": 5 << 20}
SESSIONS = {"4k": (1, 20, 200), "100k": (1, 20, 200), "5m": (1, 4)}
"""How many at a time unless told otherwise: some peers hold a message four times over."""

_FASTER_THAN = {"haraka-proxy": 4, "haraka-forward": 4, "aiosmtpd": 3, "postfix": 1}
_CHEAPER_THAN = ("haraka-proxy", "haraka-forward", "aiosmtpd")

_COLUMNS = (
    Column("msgs/s", plain("msgs/s", 1)),
    Column("to direct", ratio("msgs/s")),
    Column("CPU ms/msg", plain("cpu ms", 2)),
    Column("peak MiB", plain("peak MiB", 1)),
    Column("p50 ms", plain("p50 ms", 2)),
    Column("p99 ms", plain("p99 ms", 2)),
)
_LARGE_COLUMNS = (
    Column("at rest, MiB", plain("rest MiB", 1)),
    Column("30 MB adds, MiB", plain("rise MiB", 1)),
    Column("4 KB, p50 ms", plain("p50 ms", 2)),
    Column("p99 ms", plain("p99 ms", 2)),
    Column("worst ms", plain("worst ms", 2)),
    Column("25 MB, msgs/s", plain("large/s", 1)),
)
_OWED_COLUMNS = (
    Column("owed", lambda row, base: _bound(row)),
    Column("measured", plain("measured", 2)),
    Column("", lambda row, base: _met(row)),
)


@dataclass(frozen=True, slots=True)
class Scope:
    """What to measure: the loads, runs of each, seconds of a run."""

    loads: Sequence[Load]
    rounds: int
    seconds: float


def rates(
    peers: Sequence[Peer], scope: Scope, tools: Tools, console: Console, told: Told
) -> dict[Load, Rows]:
    """Print a table for each load; return their rows."""
    measured: dict[Load, Rows] = {}
    with serving(peers, tools) as proxies:
        for load in scope.loads:
            contestants = [
                Contestant(f"{name}, {_text(load)}", partial(proxy.run, load, scope.seconds))
                for name, proxy in proxies.items()
            ]
            rows = dict(
                zip(proxies, medians(contestants, scope.rounds, told).values(), strict=True)
            )
            measured[load] = rows
            title = (
                f"SMTP, {_text(load)}: medians of {scope.rounds}, load {os.getloadavg()[0]:.1f}"
            )
            show(title, rows, _COLUMNS, rows[DIRECT], console)
            console.print()
    return measured


def large(peers: Sequence[Peer], scope: Scope, tools: Tools, console: Console, told: Told) -> Rows:
    """Print what large mail costs memory and small mail, each time in a fresh process."""

    def measured(peer: Peer) -> Figures:
        with serving([peer], tools) as proxies:
            return proxies[peer.name].large(scope.seconds)

    contestants = [Contestant(peer.name, partial(measured, peer)) for peer in peers]
    rows = medians(contestants, scope.rounds, told)
    title = (
        "SMTP, large mail: memory of one message of 30 MB; times of 4 KB, one at a time, beside "
        f"two of 25 MB; medians of {scope.rounds}, load {os.getloadavg()[0]:.1f}"
    )
    show(title, rows, _LARGE_COLUMNS, None, console)
    console.print()
    return rows


def owed(measured: Mapping[Load, Rows], large: Rows, console: Console) -> None:
    """Print what mailgate owes beside what was measured, as far as it was."""
    if claims := dict(_claims(measured, large)):
        show("SMTP: what mailgate owes", claims, _OWED_COLUMNS, None, console)


def _claims(measured: Mapping[Load, Rows], large: Rows) -> Iterator[tuple[str, Figures]]:
    """Return claims: the least or the most that a figure may be, and the figure."""
    for load, rows in measured.items():
        if "mailgate" in rows and load == Load(SIZES["4k"], 20, kept=True):
            yield from _fast(_text(load), rows)
        if "mailgate" in rows and load.length == SIZES["5m"] and load.kept:
            yield from _cheap(_text(load), rows)
    if "mailgate" in large:
        figures = {"most": 8, "measured": large["mailgate"]["rise MiB"]}
        yield "a message of 30 MB: MiB on top of the peak", figures


def _fast(load: str, rows: Rows) -> Iterator[tuple[str, Figures]]:
    """Return how many times as fast mailgate has to be, and what a message may cost."""
    ours = rows["mailgate"]
    for name, least in _FASTER_THAN.items():
        if name in rows:
            multiple = ours["msgs/s"] / rows[name]["msgs/s"]
            yield f"{load}: msgs/s to {name}", {"least": least, "measured": multiple}
    yield f"{load}: CPU ms/msg", {"most": 0.25, "measured": ours["cpu ms"]}


def _cheap(load: str, rows: Rows) -> Iterator[tuple[str, Figures]]:
    """Return which part of another's processor time a message may cost."""
    for name in _CHEAPER_THAN:
        if name in rows:
            part = rows["mailgate"]["cpu ms"] / rows[name]["cpu ms"]
            yield f"{load}: CPU to {name}", {"most": 1 / 6, "measured": part}


def _bound(row: Figures) -> str:
    """Return what is owed, as text."""
    return f"at least {row['least']:g}" if "least" in row else f"at most {row['most']:.2g}"


def _met(row: Figures) -> str:
    """Tell whether what is owed is there."""
    met = row.get("least", 0) <= row["measured"] <= row.get("most", row["measured"])
    return "met" if met else "missed"


def _text(load: Load) -> str:
    """Name a load."""
    size = next(name for name, octets in SIZES.items() if octets == load.length)
    connections = "kept" if load.kept else "new"
    return f"{size[:-1]} {size[-1].upper()}B, {load.sessions} at a time, {connections} connections"
