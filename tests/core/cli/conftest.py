"""Run `mailgate` in an empty folder: in this process, or as a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mailgate.cli import Start, group, main
from tests.core.cli.running import Command, Done


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, without a configuration from outside."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("mailgate.config._imported", set[str]())
    monkeypatch.delenv("MAILGATE_CONFIG", raising=False)
    # A thread that another test has left must not have `leave` end the whole run.
    monkeypatch.setattr(os, "_exit", sys.exit)
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def command() -> Command:
    """Run a command in this process; what it raises comes out, as `main` would see it."""

    def run(*arguments: str, input: bytes | None = None) -> Done:
        result = CliRunner().invoke(group, arguments, input, prog_name="mailgate", obj=Start())
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.output)

    return run


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line in this process, errors and all."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        said = capsys.readouterr()
        status = ended.value.code or 0  # None: the command came to its end
        assert isinstance(status, int)
        return Done(status, said.out, said.err)

    return run


@pytest.fixture
def program() -> Command:
    """Run a command as a program of its own."""

    def run(*arguments: str, input: bytes = b"") -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "mailgate", *arguments],
            input=input,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def gate(here: Path) -> Path:
    """Write a policy that refuses one domain and marks what passes."""
    path = here / "gate.py"
    path.write_text(
        "from mailgate import Address, Message, Policy, Reject\n"
        "\n"
        "policy = Policy()\n"
        "\n"
        "@policy.rcpt\n"
        "async def known(message: Message, recipient: Address) -> Reject | None:\n"
        "    return Reject('unknown') if recipient.domain == 'bad.example' else None\n"
        "\n"
        "@policy.headers\n"
        "def mark(message: Message) -> None:\n"
        "    message.headers['X-Marked'] = 'yes'\n"
    )
    return path
