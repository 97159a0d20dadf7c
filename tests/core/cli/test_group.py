"""What all commands have in common: help, exit statuses, errors of one line."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import mailgate.cli
from mailgate import __version__
from mailgate.cli import COMMANDS, group
from tests.core.cli.running import Command
from tests.core.pigeon import install

ROOT = Path(__file__).parents[3]
NOT_COMMANDS = {"filter", "options", "output"}


def each_command() -> list[tuple[str, click.Command]]:
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in COMMANDS}
    return [(name, command) for name, command in found.items() if command is not None]


def test_every_module_is_a_command() -> None:
    modules = {module.name for module in pkgutil.iter_modules(mailgate.cli.__path__)}
    assert modules - NOT_COMMANDS == set(COMMANDS) == {name for name, _ in each_command()}


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)], ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_fits_a_terminal(command: Command, words: tuple[str, ...], flag: str) -> None:
    done = command(*words, flag)
    assert done.status == 0
    assert len(done.lines) <= 24
    assert max(map(len, done.lines)) <= 80


@pytest.mark.parametrize(("name", "each"), each_command(), ids=COMMANDS)
def test_every_option_has_a_help_text(name: str, each: click.Command) -> None:
    """`click-man` fails on one without, and so does whoever reads it."""
    assert each.help
    for parameter in each.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"
            assert parameter.help.endswith((".", "]."))


def test_help_lists_what_the_commands_are_for(command: Command) -> None:
    done = command("--help")
    for name, text in COMMANDS.items():
        assert f"  {name}" in done.out
        assert text in done.out


def test_version(command: Command) -> None:
    assert command("--version").out == f"mailgate {__version__}\n"


def test_without_a_command_the_help_is_shown(shell: Command) -> None:
    done = shell()
    assert done.status == 2
    assert "Commands:" in done.out + done.err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tets", "no such command 'tets'; did you mean 'test'?"),
        ("x", "no such command 'x'; known: "),
    ],
)
def test_a_word_that_is_no_command(shell: Command, word: str, said: str) -> None:
    done = shell(word)
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith(f"mailgate: {said}")


# -- exit statuses (sysexits(3)) -----------------------------------------------------------------

CANNOT = """
from mailgate import Policy, Reject, Session

policy = Policy()

@policy.connect(needs={"auth"})
async def too_early(session: Session) -> Reject | None: ...
"""


def test_exit_statuses(shell: Command, gate: Path, here: Path) -> None:
    (here / "cannot.py").write_text(CANNOT)
    assert shell("check", "gate.py").status == 0
    assert shell("test", "gate.py").status == 0
    assert shell("check", "cannot.py").status == 1  # it runs on none of them
    assert shell("test", "gate.py", "--expect", "defer").status == 1
    assert shell("check", "--no-such-option").status == 2
    assert shell("check", "none.py").status == 78
    assert shell("check", "gate.py", "-c", "none.toml").status == 78


def test_an_error_is_one_line_with_its_place(shell: Command, here: Path) -> None:
    (here / "bad.py").write_text("\nraise ValueError('first\\nsecond')\n")
    done = shell("check", "bad.py")
    assert (done.status, done.out) == (78, "")
    assert done.err == "bad.py:2: cannot be imported: ValueError: first second\n"


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (("check", "--no-such"), "mailgate check: "),
        (("run", "gate.py"), "mailgate run: "),
        (("nothing",), "mailgate: "),
    ],
)
def test_a_usage_error_is_one_line_too(shell: Command, words: tuple[str, ...], start: str) -> None:
    done = shell(*words)
    assert (done.status, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(start)
    assert "--help says more)" in line


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_a_traceback_is_shown_when_it_is_asked_for(shell: Command, here: Path, flag: str) -> None:
    (here / "bad.py").write_text("def f():\n    raise ValueError('no')\n\nf()\n")
    done = shell(flag, "check", "bad.py")
    assert done.status == 78
    assert done.err.startswith("Traceback (most recent call last):")
    assert "line 2, in f" in done.err
    assert done.err.endswith("\nbad.py:2: cannot be imported: ValueError: no\n")


def test_a_traceback_can_be_asked_for_by_the_environment(
    shell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILGATE_VERBOSE", "1")
    assert shell("check", "none.py").err.startswith("Traceback")


def test_a_fault_of_our_own_is_one_line_too(
    shell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("of\nours")

    monkeypatch.setattr("mailgate.adapter.installed", broken)
    done = shell("protocols")
    assert done.status == 70
    assert done.err == "mailgate: internal error: RuntimeError: of ours (-v says more)\n"
    assert shell("-v", "protocols").err.startswith("Traceback")


SPOILT = """
from mailgate.errors import PeerError
from tests.core.pigeon import Pigeon

async def serve(engine):
    raise PeerError("the letter is\\ntorn")

Pigeon.script = staticmethod(serve)
"""


def test_a_fault_of_the_peer_is_one_line_too(
    program: Command, gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    gate.write_text(gate.read_text() + SPOILT)
    done = program("run", "-p", "pigeon", "gate.py")
    assert (done.status, done.out, done.err) == (1, "", "the letter is torn\n")
    assert program("-v", "run", "-p", "pigeon", "gate.py").err.startswith("Traceback")


# -- the program ---------------------------------------------------------------------------------


def test_the_program(program: Command, gate: Path) -> None:
    done = program("check", str(gate))
    assert (done.status, done.err) == (0, "")
    done = program("check", "none.py")
    assert (done.status, done.out, done.err) == (78, "", "none.py: no such file\n")


def test_help_imports_no_command_and_nothing_heavy() -> None:
    source = (
        "import sys\n"
        "from mailgate.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=30, check=True
    )
    heavy = {"asyncio", "email", "rich", "uvloop", "idna", "mailgate.engine"}
    assert not heavy & set(done.stderr.split())
    assert not {f"mailgate.cli.{name}" for name in COMMANDS} & set(done.stderr.split())


def completed(words: str) -> list[str]:
    """Return what a shell is offered for the last word."""
    done = subprocess.run(
        [sys.executable, "-c", "from mailgate.cli import main; main()"],
        env={
            **os.environ,
            "_MAILGATE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_a_shell_can_complete() -> None:
    assert completed("mailgate ") == [*COMMANDS]
    assert completed("mailgate check -p open") == ["opensmtpd", "opensmtpd52"]
    assert completed("mailgate check -p ") == ["milter", "opensmtpd", "opensmtpd52", "smtp"]
