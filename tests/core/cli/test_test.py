"""`mailgate test` sends a message through policies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mailgate.errors import ConfigError
from tests.core.cli.running import Command

MAIL = b"Subject: mine\n\ntext\n"
SHOWS = """
from mailgate import Address, Message, Policy, Reject

policy = Policy()

@policy.mail
async def shows(message: Message) -> Reject | None:
    session = message.session
    return Reject("; ".join([
        str(session.client), str(session.rdns), session.helo, str(session.user),
        "tls" if session.tls else "clear", message.sender, session.adapter,
    ]))
"""


def test_the_trace(command: Command, gate: Path) -> None:
    done = command("test", "gate.py")
    assert done.status == 0
    assert [line.split()[0] for line in done.lines] == [
        *("connect", "mail", "rcpt", "headers", "+", "accepted", "runs")
    ]
    assert done.lines[-2:] == [
        "accepted  250, 1 recipient",
        "runs on   milter, opensmtpd, opensmtpd52, smtp",
    ]


def test_where_it_could_not_run_is_said(command: Command, here: Path) -> None:
    (here / "copies.py").write_text(
        "from mailgate import Policy\npolicy = Policy()\n\n"
        "@policy.message(needs={'add_recipient'})\nasync def copies(message): ...\n"
    )
    done = command("test", "copies.py")
    assert done.status == 0
    assert done.lines[-1] == "runs on   milter, smtp"
    assert command("test", "copies.py", "-p", "milter").status == 0
    with pytest.raises(
        ConfigError,
        match=r"^copies\.py:4: copies needs add_recipient; opensmtpd cannot \(milter, smtp can",
    ):
        command("test", "copies.py", "-p", "opensmtpd")
    (here / "too_early.py").write_text(
        "from mailgate import Policy\npolicy = Policy()\n\n"
        "@policy.connect(needs={'auth'})\nasync def too_early(session): ...\n"
    )
    done = command("test", "too_early.py")
    assert done.status == 0
    assert done.lines[-1] == "runs on   no installed protocol; see mailgate check"


def test_the_conversation_is_as_the_options_say(command: Command, here: Path) -> None:
    (here / "shows.py").write_text(SHOWS)

    def shown(*options: str) -> str:
        line = next(line for line in command("test", "shows.py", *options).lines if "550" in line)
        return line.partition("550 5.7.1 ")[2].partition("  ")[0]

    assert shown() == "192.0.2.1; None; client.example; None; clear; sender@client.example; test"
    assert (
        shown(
            *("--client", "2001:db8::1", "--rdns", "mx.example", "--helo", "hi.example"),
            *("--user", "ann", "--tls", "--from", "x@y.example", "-p", "opensmtpd"),
        )
        == "2001:db8::1; mx.example; hi.example; ann; tls; x@y.example; opensmtpd"
    )
    assert shown("--client", "local").startswith("None; ")


def test_several_recipients(command: Command, gate: Path) -> None:
    done = command("test", "gate.py", "--to", "a@good.example", "--to", "b@bad.example")
    assert done.status == 0
    assert "accepted  250, 1 recipient" in done.lines
    assert any("b@bad.example" in line and "reject" in line for line in done.lines)


@pytest.mark.parametrize(
    ("expect", "to", "status"),
    [
        ("accept", "a@good.example", 0),
        ("reject", "a@good.example", 1),
        ("reject", "a@bad.example", 0),
        ("accept", "a@bad.example", 1),
        ("defer", "a@bad.example", 1),
    ],
)
def test_it_can_be_a_test(command: Command, gate: Path, expect: str, to: str, status: int) -> None:
    done = command("test", "gate.py", "--to", to, "--expect", expect)
    assert done.status == status
    if status:
        assert f"expected {expect}, got " in done.out


@pytest.mark.parametrize("verb", ["reject", "defer", "disconnect", "discard", "quarantine"])
@pytest.mark.parametrize("stage", ["mail", "message"])
def test_every_ending_can_be_expected(command: Command, here: Path, verb: str, stage: str) -> None:
    (here / "ends.py").write_text(
        "from mailgate import *\npolicy = Policy()\n\n"
        f"@policy.{stage}(needs={{'discard', 'quarantine'}})\n"
        f"async def ends(message): return {verb.title()}('so')\n"
    )
    assert command("test", "ends.py", "--expect", verb).status == 0
    assert command("test", "ends.py", "--expect", "accept").status == 1


def test_a_message_of_a_file_or_of_stdin(command: Command, gate: Path, here: Path) -> None:
    (here / "mail.eml").write_bytes(MAIL)
    (here / "plain").write_bytes(MAIL)
    for arguments in (("gate.py", "mail.eml"), ("gate.py", "plain"), ("gate.py", "-")):
        done = command("test", *arguments, "-o", "out.eml", input=MAIL)
        assert done.status == 0
        assert (here / "out.eml").read_bytes() == (
            b"Subject: mine\r\nX-Marked: yes\r\n\r\ntext\r\n"
        )


def test_policies_of_the_configuration(command: Command, gate: Path, here: Path) -> None:
    (here / "mailgate.toml").write_text("[[policy]]\nuse = 'gate.py'\n")
    (here / "mail.eml").write_bytes(MAIL)
    assert command("test", "mail.eml", "--expect", "accept").status == 0
    assert "X-Marked" in command("test").out


def test_a_policy_of_a_module(command: Command, gate: Path) -> None:
    assert "gate.mark" in command("test", "gate").out
    assert "gate.mark" in command("test", "gate:policy").out


def test_what_is_not_there_is_one_line(shell: Command, gate: Path) -> None:
    for arguments, line in (
        (
            ("gate.py", "none.eml"),
            "none.eml: the message cannot be read: No such file or directory",
        ),
        (("none.py",), "none.py: no such file"),
        (("gate.py", "-o", "none/out.eml"), "none/out.eml: "),
    ):
        done = shell("test", *arguments)
        assert done.status == 78
        assert done.err.startswith(line)
        assert len(done.err.splitlines()) == 1


def test_a_client_is_an_address(shell: Command, gate: Path) -> None:
    done = shell("test", "gate.py", "--client", "mx.example")
    assert done.status == 2
    assert "--client: 'mx.example'" in done.err


def test_a_failure_of_the_policy_is_shown_as_in_service(command: Command, here: Path) -> None:
    (here / "fails.py").write_text(
        "from mailgate import Policy\npolicy = Policy()\n\n"
        "@policy.mail\nasync def fails(message): return message.body\n"
    )
    done = command("test", "fails.py", "--expect", "defer")
    assert done.status == 0
    assert "(TooEarly: " in done.out
    assert "Traceback" not in done.out


def test_json(command: Command, gate: Path) -> None:
    done = command("test", "gate.py", "--json", "--to", "a@good.example", "--to", "b@bad.example")
    *steps, ending = [json.loads(line) for line in done.lines]
    assert [step["stage"] for step in steps] == ["rcpt", "rcpt", "headers"]
    assert [step["verdict"] for step in steps] == ["continue", "reject", "continue"]
    assert steps[1]["reply"] == "550 5.7.1 unknown"
    assert steps[2]["changes"] == ["+ header X-Marked: yes"]
    assert ending == {
        "ended": "accept",
        "reply": "250 2.0.0 Ok",
        "by": "",
        "recipients": ["a@good.example"],
        "replies": {"a@good.example": "250 2.0.0 Ok", "b@bad.example": "550 5.7.1 unknown"},
    }


def test_json_of_anything_a_client_may_send(command: Command, gate: Path) -> None:
    done = command("test", "gate.py", "--json", "--from", "a\x1b\n@b", "--to", "\udc80\n@c")
    for line in done.lines:
        json.loads(line)
    assert done.out.isascii()
