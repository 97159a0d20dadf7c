"""`mailgate run --listen`: addresses of the command line stand over those of the file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.core.cli.running import Command
from tests.core.pigeon import install


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Run `mailgate run -p milter` until it says where it listens; end it with SIGTERM."""
    command = [sys.executable, "-m", "mailgate", "run", "-p", "milter", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            yield process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        try:
            client.connect(os.path.relpath(path))  # whatever the length of the whole path
        except FileNotFoundError:
            return False
        return True


def test_every_address_is_listened_on_and_not_the_one_of_the_file(here: Path, gate: Path) -> None:
    table = f"[milter]\nlisten = 'unix:{here}/file'\nmode = '0600'\n"
    (here / "mailgate.toml").write_text(table)
    with serving("-l", f"unix:{here}/a", "--listen", f"unix:{here}/b", "gate.py") as said:
        assert said == f"info: milter on unix:{here}/a, unix:{here}/b\n"
        assert [is_answered(here / name) for name in ("a", "b", "file")] == [True, True, False]
        assert (here / "a").stat().st_mode & 0o777 == 0o600
    assert not (here / "a").exists()


def test_the_environment_has_addresses_too(
    here: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILGATE_RUN_LISTEN", f"unix:{here}/a unix:{here}/b")
    with serving("gate.py") as said:
        assert said == f"info: milter on unix:{here}/a, unix:{here}/b\n"


def test_a_protocol_without_addresses_says_so(shell: Command, gate: Path) -> None:
    done = shell("run", "-p", "opensmtpd", "-l", "127.0.0.1:8891", "gate.py")
    assert done.status == 2
    assert done.err.startswith(
        "mailgate run: opensmtpd has no address to listen on; --listen is for milter, smtp"
    )


def test_so_does_one_of_a_third_party(
    shell: Command, gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    done = shell("run", "-p", "pigeon", "-l", "127.0.0.1:8891", "gate.py")
    assert done.status == 2
    assert "pigeon has no address to listen on; --listen is for milter, smtp" in done.err


def test_what_is_no_address_is_one_line(program: Command, gate: Path) -> None:
    done = program("run", "-p", "milter", "-l", "inet:8891@127.0.0.1", "gate.py")
    assert (done.status, done.out) == (2, "")
    assert "--listen: address 'inet:8891@127.0.0.1': write 127.0.0.1:8891" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_file_that_is_wrong_is_told_all_the_same(
    program: Command, here: Path, gate: Path
) -> None:
    (here / "mailgate.toml").write_text("milter = 3\n")
    done = program("run", "-p", "milter", "-l", "127.0.0.1:8891", "gate.py")
    assert (done.status, done.err) == (78, "mailgate.toml: [milter] must be a table\n")
