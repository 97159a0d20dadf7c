"""The tables about milters: messages a second, latency over TCP, memory of idle connections."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from rich.console import Console

from bench.measure import Contestant, Figures, medians
from bench.milter import Filter, Generator, Load, serving
from bench.milter_peers import FULL, LEAN, WORKS, Peer
from bench.table import Column, plain, ratio, ratio_to, show

Rows = dict[str, Figures]
Told = Callable[[str], None]
"""Is told what is being measured."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What to measure: works, transports, connections at a time, messages on each."""

    works: Sequence[str]
    transports: Sequence[str]
    connections: Sequence[int]
    kept: Sequence[int]
    seconds: float
    rounds: int


def rates(
    peers: Sequence[Peer], scope: Scope, generator: Generator, console: Console, told: Told
) -> dict[int, Rows]:
    """Print a table for each work, transport and number of messages on a connection.

    Return the rows of real work over TCP, by the messages on a connection.
    """
    latencies: dict[int, Rows] = {}
    for work, transport in product(scope.works, scope.transports):
        able = [peer for peer in peers if peer.can(work, transport, 1)]
        with serving(able, work, transport, generator) as filters:
            for kept in scope.kept:
                names = [peer.name for peer in able if peer.can(work, transport, kept)]
                rows = _measured({name: filters[name] for name in names}, kept, scope, told)
                _show_rates(work, transport, kept, rows, scope, console)
                if (work, transport) == ("real", "tcp"):
                    latencies[kept] = rows
    return latencies


def _measured(filters: Mapping[str, Filter], kept: int, scope: Scope, told: Told) -> Rows:
    """Return what each filter reached, with the number of connections before each key."""
    rows: dict[str, dict[str, float]] = {name: {} for name in filters}
    for connections in scope.connections:
        load = Load(connections, kept, scope.seconds)
        contestants = [
            Contestant(name, partial(filter_.run, load)) for name, filter_ in filters.items()
        ]
        for name, figures in medians(contestants, scope.rounds, told).items():
            rows[name] |= {f"{connections} {key}": value for key, value in figures.items()}
    return {**rows}


def _show_rates(
    work: str, transport: str, kept: int, rows: Rows, scope: Scope, console: Console
) -> None:
    """Print one table: for each number of connections the rate, and twice its multiple."""
    columns = []
    for connections in scope.connections:
        key = f"{connections} msgs/s"
        columns.append(Column(f"{connections} conn", plain(key)))
        columns.append(Column("/C", ratio(key)))
        if LEAN in rows:
            columns.append(Column("/lean", ratio_to(rows[LEAN], key)))
    messages = "a connection a message" if kept == 1 else f"{kept} messages a connection"
    title = (
        f"milter, {work}: {WORKS[work]}\n"
        f"messages/s, {transport}, {messages}, medians of {scope.rounds}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    show(title, rows, columns, rows.get(FULL), console)
    console.print()


def show_latencies(latencies: Mapping[int, Rows], console: Console) -> None:
    """Print how long a message takes over TCP, one connection at a time, edited."""
    rows: dict[str, dict[str, float]] = {}
    columns = []
    for kept, measured in latencies.items():
        key = f"{kept} ms"
        for name, figures in measured.items():
            rows.setdefault(name, {})[key] = figures["1 p50 ms"]
        columns += [Column(f"{kept} a conn", plain(key, 2)), Column("/C", ratio(key))]
    title = "milter, real, TCP, 1 connection: p50 of a message, ms"
    show(title, rows, columns, rows.get(FULL), console)
    console.print()


def memory(
    peers: Sequence[Peer],
    connections: int,
    rounds: int,
    generator: Generator,
    console: Console,
    told: Told,
) -> None:
    """Print what idle connections cost, each time in a fresh process."""

    def measured(peer: Peer) -> Figures:
        with serving([peer], "real", peer.transports[0], generator) as filters:
            return filters[peer.name].memory(connections)

    alone = [peer for peer in peers if peer.processes == 1]
    contestants = [Contestant(peer.name, partial(measured, peer)) for peer in alone]
    rows = medians(contestants, rounds, told)
    columns = (
        Column("at rest, MiB", plain("rest MiB", 1)),
        Column("a connection, KiB", plain("KiB", 1)),
    )
    show(f"milter, real: memory of {connections} idle connections", rows, columns, None, console)
