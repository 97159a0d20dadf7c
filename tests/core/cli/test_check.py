"""`mailgate check` prints the plan, and what stands against it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mailgate.errors import ConfigError
from tests.core.cli.running import Command
from tests.core.pigeon import install

OUTGOING = """
from mailgate import Address, Message, Policy, Reject, Session

policy = Policy("outgoing")

@policy.connect
def look(session: Session) -> None: ...

@policy.helo
async def sees(session: Session) -> None: ...

@policy.command("noop", "QUIT")
async def quiet(session: Session, verb: str, argument: str) -> Reject | None: ...

@policy.message(needs={"change_sender", "auth"}, wants={"discard"})
async def rewrite(message: Message) -> None:
    message.add_recipient("archive@example.org")
"""


@pytest.fixture
def outgoing(here: Path) -> None:
    (here / "outgoing.py").write_text(OUTGOING)


def rows(lines: list[str]) -> list[list[str]]:
    return [re.split(r" {2,}", line) for line in lines]


def test_the_plan(command: Command, gate: Path) -> None:
    done = command("check", "gate.py")
    assert done.status == 0
    assert rows(done.lines) == [
        ["gate", "rcpt", "known", "async", "answers"],
        ["gate", "headers", "mark", "thread", "edits"],
        ["opensmtpd", "ok", "replies: rcpt, headers", "content: headers"],
    ]


@pytest.mark.usefixtures("outgoing")
def test_what_stands_against_it(command: Command) -> None:
    done = command("check", "outgoing.py")
    assert done.status == 1
    *handlers, hint, problem = done.lines
    assert rows(handlers) == [
        ["outgoing", "connect", "look", "thread", "observes"],
        ["outgoing", "helo", "sees", "async", "observes"],
        ["outgoing", "command", "quiet", "async", "answers", "NOOP QUIT"],
        [
            *("outgoing", "message", "rewrite", "async", "edits"),
            *("needs auth change_sender", "wants discard"),
        ],
    ]
    assert hint == (
        "hint: rewrite uses add_recipient() undeclared, line 17: "
        "it fails whenever it is asked; declare needs={'add_recipient'}"
    )
    assert problem.startswith(
        "opensmtpd    no    outgoing.py:15: rewrite needs change_sender (in mail only); "
        "opensmtpd cannot ("
    )


@pytest.mark.usefixtures("outgoing")
def test_several_policies_in_order(command: Command, gate: Path) -> None:
    done = command("check", "outgoing.py", "gate.py", "gate.py")
    assert [row[0] for row in rows(done.lines)[:8]] == ["outgoing"] * 4 + ["gate"] * 4


@pytest.mark.usefixtures("outgoing")
def test_one_protocol_is_enough_unless_it_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    """Which one is to be served is not said: a policy that runs somewhere is a good one."""
    (here / "changes.py").write_text(
        "from mailgate import Policy\npolicy = Policy()\n\n"
        "@policy.mail(needs={'change_sender'})\nasync def changes(message): ...\n"
    )
    install(tmp_path, monkeypatch)
    done = command("check", "changes.py")
    assert done.status == 0
    assert [line.split()[:2] for line in done.lines[-2:]] == [
        ["opensmtpd", "ok"],
        ["pigeon", "no"],
    ]
    assert command("check", "changes.py", "-p", "opensmtpd").status == 0
    assert command("check", "changes.py", "-p", "pigeon").status == 1
    assert command("check", "changes.py", "-p", "opensmtpd", "-p", "pigeon").status == 1


def test_an_observer_without_its_stage_will_stay_silent(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    (here / "sees.py").write_text(
        "from mailgate import Policy\npolicy = Policy()\n\n"
        "@policy.helo\nasync def sees(session) -> None: ...\n"
    )
    install(tmp_path, monkeypatch)
    done = command("check", "sees.py", "-p", "pigeon")
    assert done.status == 0
    assert done.lines[-1].startswith("pigeon       ok ")
    assert done.lines[-1].endswith("silent: helo")


def test_a_protocols_table_is_checked_too(command: Command, gate: Path, here: Path) -> None:
    (here / "mailgate.toml").write_text("[opensmtpd]\nlong_lines = 'fold'\n")
    with pytest.raises(ConfigError, match=r"mailgate\.toml: \[opensmtpd\]: key 'long_lines' must"):
        command("check", "gate.py")


@pytest.mark.usefixtures("outgoing")
def test_json(command: Command, here: Path) -> None:
    done = command("check", "outgoing.py", "--json")
    assert done.status == 1
    report = json.loads(done.out)
    (policy,) = report["policies"]
    assert policy["name"] == "outgoing"
    last = policy["handlers"][-1]
    assert last.pop("hints")
    assert last == {
        "stage": "message",
        "name": "rewrite",
        "file": str(here / "outgoing.py"),
        "line": 15,
        "async": True,
        "does": "edits",
        "needs": ["auth", "change_sender"],
        "wants": ["discard"],
        "verbs": [],
    }
    assert policy["handlers"][2]["verbs"] == ["NOOP", "QUIT"]
    assert report["protocols"]["opensmtpd"]["ok"] is False
    (problem,) = report["protocols"]["opensmtpd"]["problems"]
    assert "rewrite needs change_sender" in problem
