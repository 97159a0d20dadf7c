"""`mailgate protocols` lists what each one can do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mailgate.cli.protocols import rows, where
from mailgate.stage import CAPABILITIES, Stage
from tests.core.cli.running import Command
from tests.core.pigeon import install


def test_every_stage_and_capability_is_a_row() -> None:
    assert set(rows()) == {f"@policy.{stage}" for stage in Stage} | CAPABILITIES


def table(lines: list[str]) -> dict[str, list[str]]:
    found = [re.split(r" {2,}", line) for line in lines if line and ": " not in line]
    return {cells[0]: cells[1:] for cells in found}


def test_the_table_of_the_guide(command: Command) -> None:
    """policy-api.md 4.7, the column of OpenSMTPD's filters."""
    done = command("protocols")
    assert done.lines[0].startswith("opensmtpd: OpenSMTPD 6.6 and later")
    can = {what: cells[0] for what, cells in table(done.lines).items()}
    assert can["change_sender"] == "in mail"
    assert can["change_recipient"] == "in rcpt"
    assert can["change_helo"] == "in helo"
    for absent in ("add_recipient", "remove_recipient", "quarantine", "discard", "authenticate"):
        assert can[absent] == "-"
    for fact in ("rdns", "tls", "auth", "params"):
        assert can[fact] == "yes"
    assert can["@policy.rcpt"] == can["@policy.message"] == "yes"
    assert can["@policy.command"] == "NOOP QUIT RSET"


def test_a_third_partys_protocol_is_a_column(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    done = command("protocols")
    assert "pigeon: RFC 1149" in done.lines
    assert table(done.lines)["quarantine"] == ["-", "yes"]
    assert table(done.lines)["@policy.helo"] == ["yes", "-"]


def test_json(command: Command) -> None:
    report = json.loads(command("protocols", "--json").out)
    ours = report["opensmtpd"]
    assert ours["capabilities"]["mail"] == [*("auth", "change_sender", "params", "rdns", "tls")]
    assert ours["summary"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("@policy.mail", "yes"),
        ("@policy.helo", "-"),
        ("@policy.command", "NOOP VRFY"),
        ("change_sender", "in mail"),
        ("tls", "yes"),
        ("discard", "-"),
    ],
)
def test_what_a_cell_says(what: str, said: str) -> None:
    capabilities = {
        Stage.MAIL: frozenset({"change_sender", "tls"}),
        Stage.RCPT: frozenset({"tls"}),
        Stage.COMMAND: frozenset({"NOOP", "VRFY", "tls"}),
    }
    assert where(capabilities, what) == said
