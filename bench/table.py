"""One table of figures: rich on a terminal, plain text in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.measure import Figures


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, and how a cell is made from a row's figures and the base's.

    The base, the row that others are compared with, is None where it could not run.
    """

    heading: str
    cell: Callable[[Figures, Figures | None], str]


def plain(key: str, digits: int = 0) -> Callable[[Figures, Figures | None], str]:
    """Return the cell of a figure, "-" where a row lacks it."""
    return lambda row, base: f"{row[key]:,.{digits}f}" if key in row else "-"


def ratio(key: str) -> Callable[[Figures, Figures | None], str]:
    """Return the cell of a figure as a multiple of the base's."""
    return lambda row, base: _multiple(row, base, key)


def ratio_to(other: Figures, key: str) -> Callable[[Figures, Figures | None], str]:
    """Return the cell of a figure as a multiple of another row's than the base."""
    return lambda row, base: _multiple(row, other, key)


def _multiple(row: Figures, other: Figures | None, key: str) -> str:
    """Return a quotient in about three digits, or "-" where there is none."""
    if other is None or key not in row:
        return "-"
    value = row[key] / other[key]
    digits = next((n for n, least in enumerate((100, 10, 0.01)) if value >= least), 3)
    return f"{value:.{digits}f}"


def show(
    title: str,
    rows: Mapping[str, Figures],
    columns: Sequence[Column],
    base: Figures | None,
    console: Console,
) -> None:
    """Print the table."""
    lines = [
        (name, *(column.cell(figures, base) for column in columns))
        for name, figures in rows.items()
    ]
    headings = ("", *(column.heading for column in columns))
    if console.is_terminal:
        _rich(title, headings, lines, console)
    else:
        _text(title, headings, lines, console)


def _rich(
    title: str, headings: Sequence[str], lines: Sequence[Sequence[str]], console: Console
) -> None:
    """Print it with rules and colour."""
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.print(table)


def _text(
    title: str, headings: Sequence[str], lines: Sequence[Sequence[str]], console: Console
) -> None:
    """Print it as aligned text, whole lines whatever the width."""
    widths = [max(map(len, cells)) for cells in zip(headings, *lines, strict=True)]
    print(title, file=console.file)
    for first, *rest in (headings, *lines):
        cells = [first.ljust(widths[0])]
        cells += (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print("  ".join(cells), file=console.file)
