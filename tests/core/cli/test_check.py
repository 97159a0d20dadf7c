"""`mailgate check` prints the plan, and what stands against it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mailgate.errors import ConfigError
from tests.core.cli.running import Command
from tests.core.pigeon import install

ROOT = Path(__file__).parents[3]

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
        ["milter", "ok", "replies: rcpt, headers", "content: headers"],
        ["opensmtpd", "ok", "replies: rcpt, headers", "content: headers"],
        ["opensmtpd52", "ok", "replies: rcpt, headers", "content: headers"],
        ["smtp", "ok", "replies: rcpt, headers", "content: headers"],
    ]


@pytest.mark.usefixtures("outgoing")
def test_what_stands_against_it(command: Command) -> None:
    done = command("check", "outgoing.py")
    assert done.status == 0
    *handlers, hint, milter, opensmtpd, no_command, no_sender, smtp = done.lines
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
    assert milter == (
        "milter       no    outgoing.py:12: quiet needs NOOP, QUIT; "
        "milter cannot (opensmtpd, smtp can)"
    )
    assert opensmtpd.startswith(
        "opensmtpd    no    outgoing.py:15: rewrite needs change_sender (in mail only); "
        "opensmtpd cannot (milter, smtp can"
    )
    assert no_command == (
        "opensmtpd52  no    outgoing.py:12: quiet needs the stage command; "
        "opensmtpd52 cannot (opensmtpd, smtp can)"
    )
    assert no_sender == (
        "opensmtpd52  no    outgoing.py:15: rewrite needs auth, change_sender; "
        "opensmtpd52 cannot (milter, smtp can)"
    )
    assert smtp.startswith("smtp         ok    replies: message, command")


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
    assert [line.split()[:2] for line in done.lines[1:]] == [
        ["milter", "ok"],
        ["opensmtpd", "ok"],
        ["opensmtpd52", "no"],
        ["pigeon", "no"],
        ["smtp", "ok"],
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


COMMANDS = """
from mailgate import Policy, Reject, Session

policy = Policy("commands")

@policy.auth(optional=True)
async def login(session, attempt) -> Reject | None: ...

@policy.command("ETRN", "XYZZY", optional=True)
async def answers(session: Session, verb: str, argument: str) -> Reject | None: ...

@policy.command("NOOP", "RSET")
async def sees_two(session: Session, verb: str, argument: str) -> None: ...

@policy.command()
async def sees_all(session: Session, verb: str, argument: str) -> None: ...
"""


def test_verbs_that_a_protocol_does_not_show_will_stay_silent(
    command: Command, here: Path
) -> None:
    """A milter is told of commands that the MTA does not know (SMFIC_UNKNOWN), and of no other.

    smtpd reports every command (protocol-client), and asks about NOOP, RSET and QUIT.
    """
    (here / "commands.py").write_text(COMMANDS)
    done = command("check", "commands.py")
    assert done.status == 0
    milter, opensmtpd, opensmtpd52, smtp = rows(done.lines[-4:])
    assert milter[-1] == "silent: auth, command ETRN, command NOOP RSET, command (known verbs)"
    assert opensmtpd[-1] == "silent: command ETRN XYZZY"
    assert opensmtpd52[-1] == "silent: auth, command"
    assert "silent" not in smtp[-1]


def test_unknown_verbs_cannot_be_answered_everywhere(command: Command, here: Path) -> None:
    (here / "commands.py").write_text(
        COMMANDS.replace('"ETRN", "XYZZY", optional=True', '"xyzzy"')
    )
    done = command("check", "commands.py")
    assert done.status == 0
    milter, opensmtpd, _, smtp = done.lines[-4:]
    assert milter.split()[:2] == ["milter", "ok"]
    assert opensmtpd == (
        "opensmtpd    no    commands.py:9: answers needs XYZZY; "
        "opensmtpd cannot (milter, smtp can)"
    )
    assert smtp.split()[:2] == ["smtp", "ok"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[opensmtpd]\nlong_lines = 'fold'", "[opensmtpd]: key 'long_lines' must be 'reject' or"),
        ("[milter]\nmta = 'exim'", "[milter]: key 'mta' must be 'postfix' or 'sendmail'"),
        ("[milter]\nmode = '0999'", "[milter]: 'mode' must be octal digits such as"),
        ("[smtp]\nupstream = 'mx'", "[smtp]: upstream 'mx': write smtp://HOST:PORT, "),
        ("[smtp.limits]\nline = 'all'", "[smtp]: key 'limits.line' must be a whole number"),
    ],
)
def test_a_protocols_table_is_checked_too(
    command: Command, gate: Path, here: Path, table: str, said: str
) -> None:
    (here / "mailgate.toml").write_text(table)
    with pytest.raises(ConfigError) as caught:
        command("check", "gate.py")
    assert str(caught.value).startswith(f"mailgate.toml: {said}")


@pytest.mark.usefixtures("outgoing")
def test_json(command: Command, here: Path) -> None:
    done = command("check", "outgoing.py", "--json")
    assert done.status == 0
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
    assert report["protocols"]["milter"] == {
        "ok": False,
        "problems": [
            "outgoing.py:12: quiet needs NOOP, QUIT; milter cannot (opensmtpd, smtp can)"
        ],
    }
    assert report["protocols"]["smtp"] == {"ok": True, "problems": []}


# -- what a protocol does not tell ---------------------------------------------------------------

READS = """
from mailgate import Address, Message, Policy, Reject, Session

policy = Policy("reads")

@policy.connect
async def greet(session: Session) -> Reject | None:
    return None if session.rdns else Reject("no name")

@policy.rcpt
async def insiders(message: Message, recipient: Address) -> Reject | None:
    session = message.session
    if session.tls and (
        session.user
        or session.user == recipient.local
    ):
        return None
    return Reject("log in")
"""
INSIDERS = (
    "reads.py:14: insiders reads session.user; {} cannot tell it ({}): declare needs={{'auth'}} "
    "to run only where it is known, or wants={{'auth'}} and ask message.can('auth')"
)
GREET = (
    "reads.py:8: greet reads session.rdns; pigeon cannot tell it ({}): declare needs={{'rdns'}} "
    "to run only where it is known, or wants={{'rdns'}} and ask session.can('rdns')"
)


def test_what_a_protocol_never_tells_is_refused_where_it_is_read(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    """One line for each fact that a handler reads, and what protocols tell is no matter."""
    install(tmp_path, monkeypatch)
    (here / "reads.py").write_text(READS)
    known = "milter, opensmtpd, smtp can"
    named = "milter, opensmtpd, opensmtpd52, smtp can"
    for name in ("milter", "opensmtpd", "smtp"):
        assert command("check", "reads.py", "-p", name).status == 0
    done = command("check", "reads.py", "-p", "pigeon")
    assert done.status == 1
    assert [line for line in done.lines if line.startswith("pigeon")] == [
        f"pigeon       no    {GREET.format(named)}",
        f"pigeon       no    {INSIDERS.format('pigeon', known)}",
    ]
    report = json.loads(command("check", "reads.py", "--json").out)["protocols"]["opensmtpd52"]
    told = "insiders reads session.tls; opensmtpd52 cannot tell it (milter, opensmtpd, "
    (first, second) = sorted(report["problems"])
    assert (report["ok"], second) == (False, INSIDERS.format("opensmtpd52", known))
    assert first.startswith(f"reads.py:13: {told}pigeon, smtp can)")


@pytest.mark.parametrize("declared", ["needs", "wants"])
def test_what_is_declared_is_not_refused_as_read(
    command: Command, here: Path, declared: str
) -> None:
    """What is needed is refused as that; what is wanted can be asked about."""
    (here / "reads.py").write_text(
        READS.replace("@policy.rcpt", f"@policy.rcpt({declared}={{'auth', 'tls'}})")
    )
    done = command("check", "reads.py", "-p", "opensmtpd52")
    assert done.status == (1 if declared == "needs" else 0)
    last = "opensmtpd52  no    reads.py:10: insiders needs auth, tls; opensmtpd52 cannot ("
    assert done.lines[-1].startswith(last if declared == "needs" else "opensmtpd52  ok  ")


def test_every_command_refuses_what_is_read(
    shell: Command, program: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    (here / "reads.py").write_text(READS.replace("session.tls", "session.local"))
    refused = INSIDERS.format("opensmtpd52", "milter, opensmtpd, smtp can")
    assert shell("test", "reads.py", "-p", "opensmtpd52").err == f"{refused}\n"
    assert shell("test", "reads.py").lines[-1] == "runs on   milter, opensmtpd, smtp"
    install(tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    done = program("run", "-p", "pigeon", "reads.py")
    named = "milter, opensmtpd, opensmtpd52, smtp can"
    assert (done.status, done.out, done.err) == (78, "", f"{GREET.format(named)}\n")
