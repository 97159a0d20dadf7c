"""A table for a person on a terminal, columns for a program in a pipe."""

from __future__ import annotations

import pytest

from mailgate.cli.output import print_table
from tests.core.cli.running import on_terminal


def test_columns_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("head", "other"), [("a", "b"), ("longer", ""), ("c", "[d]")])
    assert capsys.readouterr().out == "a       b\nlonger\nc       [d]\n"


def test_nothing_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("head",), [])
    assert capsys.readouterr().out == ""


PRINTS = """
from mailgate.cli.output import print_table
print_table(('head', 'other'), [('a', '[bold]'), ('c', 'x' * 60)])
"""


def test_a_table_on_a_terminal() -> None:
    shown = on_terminal("-c", PRINTS, NO_COLOR="")
    assert "head" in shown
    assert "\x1b[1m" in shown
    assert shown.count("x") == 60


def test_no_colour_is_honoured() -> None:
    """https://no-color.org: bold is no colour."""
    shown = on_terminal("-c", PRINTS, NO_COLOR="1")
    assert "\x1b[3" not in shown
    assert "head" in shown


def test_what_a_policy_is_named_is_no_markup() -> None:
    assert "[bold]" in on_terminal("-c", PRINTS, NO_COLOR="1")
