"""`mailgate new` makes a policy that works, and overwrites nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mailgate.errors import ConfigError
from tests.core.cli.running import Command

PROTOCOLS = ["milter", "opensmtpd", "opensmtpd52", "smtp"]
"""What is installed: each test of a new policy runs once on each of them."""


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_it_makes_passes_check_test_and_pytest(command: Command, here: Path) -> None:
    done = command("new", "mypolicy")
    assert done.status == 0
    assert {path.name for path in (here / "mypolicy").iterdir()} == {
        *("mypolicy.py", "test_mypolicy.py", "conftest.py", "mailgate.toml")
    }
    assert done.lines[-1] == "next: cd mypolicy; mailgate check; mailgate test; pytest"
    for words in (("check",), ("test", "--expect", "accept")):
        ran = python(here / "mypolicy", "-m", "mailgate", *words)
        assert ran.returncode == 0, ran.stderr
    ran = python(here / "mypolicy", "-m", "pytest", "-v", "-W", "error")
    assert ran.returncode == 0, ran.stdout
    assert re.findall(r"::(\S+) PASSED", ran.stdout) == [
        f"{test}[{protocol}]"
        for test in ("test_blocked_domain_is_refused", "test_other_mail_is_marked")
        for protocol in PROTOCOLS
    ]


NAMES = [
    *("my-policy 2", "123", "class", "email", "test", "été", "a.b", "x\\y", "it's", "{n}"),
    *("mailgate", "pytest", 'say "hi"'),
]
ODD = ["--", "Policy", "line\nend", "\\", "'''"]


@pytest.mark.parametrize("name", [*NAMES, *ODD])
def test_any_name_of_a_folder_will_do(command: Command, here: Path, name: str) -> None:
    folder = here / name
    assert command("new", "--", str(folder)).status == 0
    (module,) = [p for p in folder.glob("*.py") if not p.name.startswith(("test_", "conftest"))]
    assert module.stem.isidentifier()
    assert command("check", "-c", str(folder / "mailgate.toml")).status == 0


def test_all_of_them_pass_their_tests(command: Command, here: Path) -> None:
    for name in NAMES:
        command("new", "--", str(here / name))
    ran = python(here, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert ran.returncode == 0, ran.stdout
    assert f"{2 * len(PROTOCOLS) * len(NAMES)} passed" in ran.stdout


def test_nothing_is_overwritten(command: Command, here: Path) -> None:
    (here / "there").mkdir()
    (here / "there" / "conftest.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"conftest\.py: exists already; nothing was written"):
        command("new", "there")
    assert [path.name for path in (here / "there").iterdir()] == ["conftest.py"]
    assert (here / "there" / "conftest.py").read_text() == "mine"


def test_an_empty_folder_may_be_there(command: Command, here: Path) -> None:
    assert command("new", ".").status == 0
    assert (here / "here.py").exists()


def test_a_place_that_cannot_be_written_is_one_line(shell: Command, here: Path) -> None:
    (here / "file").write_text("")
    done = shell("new", "file/below")
    assert done.status == 78
    assert len(done.err.splitlines()) == 1
    assert "file/below" in done.err
