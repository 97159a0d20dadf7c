"""Sockets that a service manager passes: sd_listen_fds(3), and any descriptor."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailgate import listen
from tests.core.listen.connecting import Bind, is_answered, refused

SYSTEMD = """
    import os, sys

    count = int(sys.argv[1])
    fds = [int(fd) for fd in sys.argv[2:2 + count]]
    for at, fd in enumerate(fds):
        os.dup2(fd, 3 + at)
    os.environ.update(LISTEN_FDS=str(count), LISTEN_FDNAMES=":".join(["mailgate"] * count))
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execv(sys.executable, [sys.executable, "-c", *sys.argv[2 + count:]])
"""
"""What systemd.exec(5) does of socket activation: sockets from descriptor 3 on, and variables."""

ACTIVATED = """
    import os, subprocess, sys
    from mailgate import listen

    try:
        bound = listen.bind(sys.argv[1:])
    except listen.ConfigError as error:
        print(error)
    else:
        for each in bound:
            print(each.getsockname(), each.getblocking(), each.get_inheritable())
        listen.release(bound)
    print(*sorted(name for name in os.environ if name.startswith("LISTEN_")))
    child = "import os; print([fd for fd in (3, 4) if os.path.exists(f'/dev/fd/{fd}')])"
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", child], close_fds=False)
"""


def activated(*addresses: str, passed: list[socket.socket]) -> list[str]:
    """Bind addresses in a process that gets sockets as systemd passes them."""
    fds = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, 50) for each in passed]
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-c", textwrap.dedent(SYSTEMD), str(len(fds)), *map(str, fds)),
                *(textwrap.dedent(ACTIVATED), *addresses),
            ],
            pass_fds=fds,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        for fd in fds:
            os.close(fd)
    *said, variables, inherited = done.stdout.splitlines()
    assert variables == ""
    assert inherited == "[]"
    return said


@pytest.fixture
def made(path: Path) -> Iterator[list[socket.socket]]:
    """Give a listening unix socket and a TCP one, as a .socket unit makes them."""
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as tcp:
        local.bind(str(path))
        local.listen()
        yield [local, tcp]


def test_sockets_that_systemd_passes_are_taken(made: list[socket.socket], path: Path) -> None:
    local, tcp = made
    said = activated("fd:3", "fd:4", passed=made)
    assert said == [f"{local.getsockname()} False False", f"{tcp.getsockname()} False False"]


def test_the_file_of_a_passed_socket_is_systemds(made: list[socket.socket], path: Path) -> None:
    activated("fd:3", passed=made)
    assert is_answered(made[0])


def test_a_passed_socket_that_nobody_names_is_no_childs(made: list[socket.socket]) -> None:
    (said,) = activated("fd:4", passed=made)
    assert said == f"{made[1].getsockname()} False False"


def test_an_inherited_socket_needs_no_variables(bind: Bind, made: list[socket.socket]) -> None:
    fd = os.dup(made[0].fileno())
    os.set_inheritable(fd, True)
    (each,) = bind(f"fd:{fd}")
    assert each.fileno() == fd
    assert not each.getblocking()
    assert not each.get_inheritable()
    listen.release([each])
    assert is_answered(made[0])


def test_variables_of_another_process_are_left(
    bind: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    bind("127.0.0.1:0")
    assert os.environ["LISTEN_FDS"] == "1"


NOT_PASSED = "no socket was passed there: start mailgate by a systemd .socket unit"


def test_a_descriptor_that_nobody_passed_is_refused(made: list[socket.socket]) -> None:
    assert activated("fd:5", passed=made) == [f"cannot listen on fd:5: {NOT_PASSED}"]
    assert refused("fd:99999") == f"cannot listen on fd:99999: {NOT_PASSED}"


def test_what_is_no_socket_is_refused_and_stays_open(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert refused(f"fd:{file.fileno()}").endswith(NOT_PASSED)
        assert os.fstat(file.fileno())


def test_what_does_not_listen_is_refused_and_stays_open() -> None:
    """systemd.socket(5): with Accept=yes a connection is passed, not the socket."""
    one, other = socket.socketpair()
    with one, other:
        line = refused(f"fd:{one.fileno()}")
        assert line.endswith("it does not listen: the .socket unit has to say Accept=no")
        one.send(b"still there")
        assert other.recv(20) == b"still there"


def test_what_is_no_stream_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        line = refused(f"fd:{datagrams.fileno()}")
    assert line.endswith("it is no stream socket: the .socket unit has to say ListenStream=")
