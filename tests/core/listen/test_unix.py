"""Unix sockets: whose they are, what they replace, and what they never touch."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mailgate import listen
from mailgate.errors import ConfigError
from mailgate.listen import Access
from tests.core.listen.connecting import Bind, is_answered, refused


def leave_behind(path: Path) -> None:
    """Have a process listen on a unix socket, and kill it."""
    source = (
        "import socket, sys, time\n"
        f"server = socket.socket(socket.AF_UNIX); server.bind({str(path)!r}); server.listen()\n"
        "print('listens', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as left:
        assert left.stdout is not None
        assert left.stdout.readline() == b"listens\n"
        left.send_signal(signal.SIGKILL)
    assert stat.S_ISSOCK(path.lstat().st_mode)


def test_a_unix_socket_is_made_and_goes_when_it_is_released(bind: Bind, path: Path) -> None:
    (each,) = bind(f"unix:{path}")
    assert each.getsockname() == str(path)
    assert is_answered(each)
    assert not each.getblocking()
    assert not each.get_inheritable()
    assert list(path.parent.iterdir()) == [path]
    listen.release([each])
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666, 0o777, 0])
def test_its_mode_is_what_was_asked_for_whatever_the_umask(
    bind: Bind, path: Path, mode: int
) -> None:
    before = os.umask(0o027)
    try:
        bind(f"unix:{path}", access=Access(mode))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == mode


def test_it_listens_last(bind: Bind, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then a connection is refused, whatever the mode and the owner are."""
    seen: list[tuple[int, int, int]] = []
    real = socket.socket.listen

    def listen_now(self: socket.socket, backlog: int) -> None:
        found = path.lstat()
        seen.append((stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid))
        real(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen_now)
    me = os.getuid(), os.getgid()
    bind(f"unix:{path}", access=Access(0o640, str(me[0]), str(me[1])))
    assert seen == [(0o640, *me)]


def is_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives a file away")


def test_owner_and_group_are_names_or_numbers(bind: Bind, path: Path) -> None:
    is_root()
    user, group = pwd.getpwuid(1).pw_name, grp.getgrgid(2).gr_name
    bind(f"unix:{path}", access=Access(0o660, user, group))
    assert (path.lstat().st_uid, path.lstat().st_gid) == (1, 2)
    other = path.with_name("other.sock")
    bind(f"unix:{other}", access=Access(0o660, "12345", None))
    assert (other.lstat().st_uid, other.lstat().st_gid) == (12345, os.getegid())


@pytest.mark.parametrize(
    ("access", "why"),
    [
        (Access(owner="nobody-of-that-name"), "there is no user 'nobody-of-that-name' here"),
        (Access(group="no-such-group"), "there is no group 'no-such-group' here"),
        (Access(owner=""), "there is no user '' here"),
        (Access(owner="9" * 30), f"there is no user '{'9' * 30}' here"),
    ],
)
def test_an_unknown_owner_is_refused(path: Path, access: Access, why: str) -> None:
    assert refused(f"unix:{path}", access=access) == f"cannot listen on unix:{path}: {why}"
    assert not path.exists()


def test_a_socket_that_cannot_be_given_away_does_not_stay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*given: object, **how: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", denied)
    line = refused(f"unix:{path}", access=Access(owner="0"))
    assert "only root gives a socket to another user, or to a group not its own" in line
    assert not list(path.parent.iterdir())


def test_a_stale_socket_is_replaced(bind: Bind, path: Path) -> None:
    leave_behind(path)
    (each,) = bind(f"unix:{path}")
    assert is_answered(each)


def test_a_live_socket_is_refused_and_stays(bind: Bind, path: Path) -> None:
    (live,) = bind(f"unix:{path}")
    before = path.lstat()
    line = f"cannot listen on unix:{path}: in use: another mailgate? see ss -xlp src {path}"
    assert refused(f"unix:{path}") == line
    assert os.path.samestat(path.lstat(), before)
    assert is_answered(live)


def test_a_live_socket_whose_queue_is_full_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
        live.bind(str(path))
        live.listen(0)
        waiting.connect(str(path))
        assert "in use" in refused(f"unix:{path}")
        assert path.exists()


def test_a_live_socket_of_another_kind_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as live:
        live.bind(str(path))
        assert "in use" in refused(f"unix:{path}")
        assert path.exists()


def test_a_socket_that_may_not_be_tried_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_behind(path)

    def denied(self: socket.socket, place: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", denied)
    said = refused(f"unix:{path}")
    assert "it is another user's, and may be in use: see ss -xlp, or take another path" in said
    assert path.exists()


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_a_file(path: Path) -> None:
    path.with_name("target").write_text("precious")
    path.symlink_to("target")


def a_link_to_a_stale_socket(path: Path) -> None:
    leave_behind(path.with_name("target"))
    path.symlink_to("target")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("target")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (a_file, "not a socket"),
        (a_folder, "not a socket"),
        (a_fifo, "not a socket"),
        (a_link_to_a_file, "a symbolic link"),
        (a_link_to_a_stale_socket, "a symbolic link"),
        (a_link_to_nothing, "a symbolic link"),
    ],
)
def test_what_is_no_socket_stays(path: Path, make: Callable[[Path], None], kind: str) -> None:
    make(path)
    before = {name: os.lstat(path.parent / name).st_ino for name in os.listdir(path.parent)}
    line = refused(f"unix:{path}")
    assert line == (
        f"cannot listen on unix:{path}: it is {kind}, and stays: choose another path, or remove it"
    )
    after = {name: os.lstat(path.parent / name).st_ino for name in os.listdir(path.parent)}
    assert after == before


def test_a_folder_that_is_not_there_is_named(path: Path) -> None:
    missing = path.parent / "missing"
    line = f"cannot listen on unix:{missing}/m.sock: no such directory: make {missing}"
    assert refused(f"unix:{missing}/m.sock") == line


NOT_ROOT = """
    import os, sys
    from mailgate import listen

    if os.geteuid() == 0:  # who writes everywhere
        os.setresuid(65534, 65534, 65534)
    try:
        listen.bind([sys.argv[1]])
    except listen.ConfigError as error:
        print(error)
"""


def test_a_folder_that_cannot_be_written_is_named(path: Path) -> None:
    path.parent.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NOT_ROOT), f"unix:{path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        f"cannot listen on unix:{path}: permission denied: "
        f"this user has to be able to write in {path.parent}\n"
    )


def test_a_path_that_is_too_long_is_refused(path: Path) -> None:
    """sockaddr_un has 108 octets on Linux, the last one NUL: unix(7)."""
    long = path.with_name("s" * 108)
    assert "the path is too long for a socket: 107 octets on Linux" in refused(f"unix:{long}")
    assert not list(path.parent.iterdir())


def test_a_socket_that_another_has_replaced_is_not_unlinked(bind: Bind, path: Path) -> None:
    (first,) = bind(f"unix:{path}")
    path.unlink()
    (second,) = bind(f"unix:{path}")
    listen.release([first])
    assert is_answered(second)


def test_a_socket_of_the_same_inode_that_has_replaced_it_is_not_unlinked(
    bind: Bind, path: Path
) -> None:
    """An event loop closes listening sockets; then some file systems give the number again."""
    (first,) = bind(f"unix:{path}")
    first.close()
    (second,) = bind(f"unix:{path}")
    os.utime(path, ns=(0, time.time_ns() + 10**9))
    listen.release([first])
    assert is_answered(second)


def test_a_socket_that_was_closed_leaves_no_file(bind: Bind, path: Path) -> None:
    (each,) = bind(f"unix:{path}")
    each.close()
    listen.release([each])
    assert not list(path.parent.iterdir())


def test_a_socket_that_is_gone_is_released_all_the_same(bind: Bind, path: Path) -> None:
    (each,) = bind(f"unix:{path}")
    path.unlink()
    path.parent.rmdir()
    listen.release([each])
    assert each.fileno() == -1


def test_a_lock_that_a_killed_process_left_behind_does_no_harm(bind: Bind, path: Path) -> None:
    path.with_name(".milter.sock.mailgate-lock").touch()
    bind(f"unix:{path}")
    assert list(path.parent.iterdir()) == [path]


RACER = """
    import sys
    from mailgate import listen

    print("ready", flush=True)
    sys.stdin.readline()
    try:
        (bound,) = listen.bind([sys.argv[1]])
    except listen.ConfigError as error:
        print(error, flush=True)
        raise SystemExit
    print("bound", flush=True)
    bound.setblocking(True)
    while bound.accept()[0].recv(1) != b"x":
        pass  # a loser, who looked whether the socket is live
    print("accepted", flush=True)
"""


def race(address: str, runners: int) -> list[list[str]]:
    """Bind an address in several processes at once, then connect; return what each said."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RACER), address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(runners)
    ]
    try:
        said = [[_line(racer)] for racer in racers]
        for racer in racers:
            assert racer.stdin is not None
            print("go", file=racer.stdin, flush=True)
        for racer, lines in zip(racers, said, strict=True):
            lines.append(_line(racer))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(address.removeprefix("unix:"))
            client.send(b"x")
            for racer, lines in zip(racers, said, strict=True):
                lines += racer.communicate(timeout=20)[0].splitlines()
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    return said


def _line(racer: subprocess.Popen[str]) -> str:
    assert racer.stdout is not None
    return racer.stdout.readline().strip()


def test_of_several_that_start_at_once_one_has_the_socket_and_keeps_it(path: Path) -> None:
    """Each round begins with a stale socket, which all of them want to replace."""
    in_use = f"cannot listen on unix:{path}: in use: another mailgate? see ss -xlp src {path}"
    for _ in range(5):
        path.unlink(missing_ok=True)
        leave_behind(path)
        said = race(f"unix:{path}", 4)
        assert sorted(said) == [["ready", "bound", "accepted"], *[["ready", in_use]] * 3]


def test_many_that_make_and_release_it_never_take_it_from_each_other(path: Path) -> None:
    """Whoever has bound it can be connected to, until it lets go."""

    def once(at: int) -> str:
        try:
            bound = listen.bind([f"unix:{path}"])
        except ConfigError as error:
            return str(error).partition("sock: ")[2][:7]
        answered = is_answered(bound[0])
        listen.release(bound)
        return "answered" if answered else "taken away"

    with ThreadPoolExecutor(8) as threads:
        ends = list(threads.map(once, range(400)))
    assert "answered" in ends
    assert set(ends) <= {"answered", "in use:"}
    assert not list(path.parent.iterdir())
