"""`mailgate protocols` lists what each one can do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mailgate.chain import UNKNOWN_VERBS
from mailgate.cli.protocols import rows, where
from mailgate.stage import CAPABILITIES, MESSAGE_STAGES, Stage
from tests.core.cli.running import Command, Done, on_terminal, plain
from tests.core.pigeon import install


def test_every_stage_and_capability_is_a_row() -> None:
    assert set(rows()) == {f"@policy.{stage}" for stage in Stage} | CAPABILITIES


def table(lines: list[str]) -> dict[str, list[str]]:
    found = [re.split(r" {2,}", line) for line in lines if line and ": " not in line]
    return {cells[0]: cells[1:] for cells in found}


def column(done: Done, protocol: str) -> dict[str, str]:
    """Return what the table says of one protocol, by row."""
    found = table(done.lines)
    at = found["can"].index(protocol)
    return {what: cells[at] for what, cells in found.items()}


def test_each_protocol_is_said_and_heads_a_column(command: Command) -> None:
    done = command("protocols")
    assert done.lines[:5] == [
        "milter: Postfix, Sendmail and others, the milter protocol on a socket",
        "opensmtpd: OpenSMTPD 6.6 and later, smtpd-filters(7) on stdin and stdout",
        "opensmtpd52: OpenSMTPD 5.4 to 6.0.2, the imsg filter API on stdin",
        "smtp: any mail server, as an SMTP or LMTP proxy in front of it",
        "",
    ]
    assert done.lines[5].split() == ["can", "milter", "opensmtpd", "opensmtpd52", "smtp"]
    assert {len(cells) for cells in table(done.lines).values()} == {4}


def test_a_terminal_shows_the_head_once() -> None:
    lines = plain(on_terminal("-m", "mailgate", "protocols", COLUMNS="100")).splitlines()
    assert [line.split() for line in lines if line.startswith("can ")] == [
        ["can", "milter", "opensmtpd", "opensmtpd52", "smtp"]
    ]


def test_a_terminal_of_80_columns_is_enough() -> None:
    lines = plain(on_terminal("-m", "mailgate", "protocols", COLUMNS="80")).splitlines()
    assert max(map(len, lines)) <= 80
    shown = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert {what: len(shown[what]) >= 4 for what in rows()} == dict.fromkeys(rows(), True)


def test_the_column_of_milter(command: Command) -> None:
    """policy-api.md 4.7, the column of milter v6; a milter is told of unknown commands only."""
    can = column(command("protocols"), "milter")
    for action in (
        *("change_sender", "change_recipient", "add_recipient", "remove_recipient"),
        *("quarantine", "discard"),
    ):
        assert can[action] == "yes"
    for fact in ("rdns", "tls", "auth", "params"):
        assert can[fact] == "yes"
    for absent in ("change_helo", "authenticate", "credentials"):
        assert can[absent] == "-"
    assert can["@policy.starttls"] == can["@policy.auth"] == "-"
    assert can["@policy.rcpt"] == can["@policy.message"] == "yes"
    assert can["@policy.command"] == "unknown verbs"


def test_the_column_of_opensmtpd(command: Command) -> None:
    """policy-api.md 4.7, the column of OpenSMTPD's filters."""
    can = column(command("protocols"), "opensmtpd")
    assert can["change_sender"] == "in mail"
    assert can["change_recipient"] == "in rcpt"
    assert can["change_helo"] == "in helo"
    for absent in ("add_recipient", "remove_recipient", "quarantine", "discard", "authenticate"):
        assert can[absent] == "-"
    for fact in ("rdns", "tls", "auth", "params"):
        assert can[fact] == "yes"
    assert can["@policy.rcpt"] == can["@policy.message"] == "yes"
    assert can["@policy.command"] == "NOOP QUIT RSET"


def test_the_column_of_opensmtpd52(command: Command) -> None:
    """Its API has no TLS, AUTH, parameters or other commands, and the envelope stays as it is."""
    can = column(command("protocols"), "opensmtpd52")
    stages = ("connect", "helo", *MESSAGE_STAGES, "event", "done", "close")
    told = {"can", "rdns", *(f"@policy.{stage}" for stage in stages)}
    assert {what for what, cell in can.items() if cell != "-"} == told


def test_the_column_of_smtp(command: Command) -> None:
    """A proxy speaks for both sides: it can do what any of the others can, and log clients in."""
    protocols = command("protocols")
    can, others = column(protocols, "smtp"), ("milter", "opensmtpd")
    assert can["authenticate"] == "yes"
    assert can["change_helo"] == "in helo"
    assert can["@policy.command"] == "ETRN EXPN HELP NOOP QUIT RSET VRFY, unknown verbs"
    assert {"yes"} == {
        can[what]
        for other in others
        for what, cell in column(protocols, other).items()
        if cell == "yes"
    }


def test_a_third_partys_protocol_is_a_column(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    done = command("protocols")
    assert "pigeon: RFC 1149" in done.lines
    can = column(done, "pigeon")
    assert (can["quarantine"], can["discard"]) == ("yes", "-")
    assert (can["@policy.connect"], can["@policy.helo"]) == ("yes", "-")


def test_json(command: Command) -> None:
    report = json.loads(command("protocols", "--json").out)
    ours = report["opensmtpd"]
    assert ours["capabilities"]["mail"] == [*("auth", "change_sender", "params", "rdns", "tls")]
    assert ours["summary"]
    assert report["milter"]["capabilities"]["command"] == ["*", "rdns", "tls"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("@policy.mail", "yes"),
        ("@policy.helo", "-"),
        ("change_sender", "in mail"),
        ("tls", "yes"),
        ("discard", "-"),
    ],
)
def test_what_a_cell_says(what: str, said: str) -> None:
    capabilities = {
        Stage.MAIL: frozenset({"change_sender", "tls"}),
        Stage.RCPT: frozenset({"tls"}),
    }
    assert where(capabilities, what) == said


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"NOOP", "VRFY", "tls"}, "NOOP VRFY"),
        ({UNKNOWN_VERBS, "tls"}, "unknown verbs"),
        ({UNKNOWN_VERBS, "NOOP", "VRFY"}, "NOOP VRFY, unknown verbs"),
        ({"tls"}, "observers only"),
        (set[str](), "observers only"),
    ],
)
def test_which_commands_can_be_answered(here: set[str], said: str) -> None:
    capabilities = {Stage.COMMAND: frozenset(here)}
    assert where(capabilities, "@policy.command") == said
    assert where({}, "@policy.command") == "-"
