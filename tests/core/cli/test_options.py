"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailgate.errors import ConfigError
from tests.core.cli.running import Command

FACTORY = """
from mailgate import Message, Policy, Reject

def policy(word: str, times: int = 1) -> Policy:
    policy = Policy()

    @policy.mail
    async def refuse(message: Message) -> Reject | None:
        return Reject(" ".join([word] * times))

    return policy
"""

CONFIG = """
[[policy]]
use = "gate.py"
settings = { word = "configured" }
"""


@pytest.fixture(autouse=True)
def factory(here: Path) -> None:
    (here / "gate.py").write_text(FACTORY)


def refusal(command: Command, *arguments: str) -> str:
    last = command("test", *arguments).lines[-2]
    return last.removeprefix("refused   550 5.7.1 ").removesuffix(" by gate.refuse")


def test_settings_of_the_single_policy(command: Command) -> None:
    assert refusal(command, "gate.py", "--set", "word=hello") == "hello"
    assert refusal(command, "gate.py", "--set", 'word="quoted"', "--set", "times=2") == (
        "quoted quoted"
    )


@pytest.mark.parametrize(
    ("pair", "said"), [("word", "--set takes KEY=VALUE, not 'word'"), ("a b=1", "--set takes KEY")]
)
def test_a_setting_has_a_key_and_a_value(shell: Command, pair: str, said: str) -> None:
    done = shell("check", "gate.py", "--set", pair)
    assert done.status == 2
    assert said in done.err


def test_settings_go_with_a_single_policy(shell: Command) -> None:
    for policies in ((), ("gate.py", "gate.py")):
        done = shell("check", *policies, "--set", "word=x")
        assert done.status == 2
        assert "--set goes with a single POLICY" in done.err


def test_a_setting_that_does_not_fit(shell: Command) -> None:
    done = shell("check", "gate.py", "--set", "word=x", "--set", "times=y")
    assert done.status == 78
    assert done.err == "gate.py:4: setting 'times' must be a whole number, not 'y'\n"


def test_the_configuration_is_found(
    command: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "mailgate.toml").write_text(CONFIG)
    assert refusal(command) == "configured"
    (here / "other.toml").write_text(CONFIG.replace("configured", "other"))
    assert refusal(command, "-c", "other.toml") == "other"
    monkeypatch.setenv("MAILGATE_CONFIG", "other.toml")
    assert refusal(command) == "other"
    assert refusal(command, "-c", "mailgate.toml") == "configured"


def test_a_policy_on_the_command_line_replaces_those_of_the_configuration(
    command: Command, here: Path
) -> None:
    (here / "mailgate.toml").write_text(CONFIG + '[defaults]\non_error = "reject"\n')
    (here / "fails.py").write_text(
        "from mailgate import Policy\npolicy = Policy()\n\n"
        "@policy.mail\nasync def fails(message): 1 / 0\n"
    )
    done = command("test", "fails.py")
    assert done.lines[-2] == "refused   550 5.3.0 the mail policy failed by fails.fails"


def test_without_any_policy(command: Command) -> None:
    with pytest.raises(ConfigError, match="no policy: name a POLICY on the command line"):
        command("check")


def test_an_unknown_protocol(shell: Command) -> None:
    for name in ("check", "test", "run"):
        done = shell(name, "gate.py", "--set", "word=x", "-p", "pigeon")
        assert done.status == 2
        assert (
            "unknown protocol 'pigeon'; installed: milter, opensmtpd, opensmtpd52, smtp "
            in done.err
        )


def test_options_can_be_given_by_the_environment(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILGATE_TEST_FROM", "env@client.example")
    monkeypatch.setenv("MAILGATE_TEST_EXPECT", "accept")
    done = command("test", "gate.py", "--set", "word=x")
    assert done.status == 1
    assert "env@client.example" in done.out
    monkeypatch.setenv("MAILGATE_CHECK_PROTOCOL", "pigeon")
    done = command("check", "gate.py", "--set", "word=x")
    assert done.status == 2
