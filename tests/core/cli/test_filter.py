"""`filter-mailgate` as OpenSMTPD before 6.0.3 starts it."""

from __future__ import annotations

import os
import pwd
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mailgate.cli.filter import main

SOURCE = """
import sys
from mailgate import logs
logs.SYSLOG = sys.argv.pop(1)
from mailgate.cli.filter import main
main()
"""
HEADER = struct.Struct("=IHHII")
REGISTER = HEADER.pack(0, 23, 0, 0, 0x1E32) + struct.pack("=I", 52) + b"f1\0"
"""What smtpd says first: its version, and the filter's name in smtpd.conf."""
CONFIG = "[opensmtpd52]\nuser = 'root'\n[log]\nlevel = 'warning'\n"
TORN = b"\xff" * 16


@dataclass(frozen=True)
class Ended:
    """How a filter ended, what smtpd had from it, and what syslogd and stderr had."""

    status: int
    answer: bytes
    log: list[str]
    err: str


@pytest.fixture(autouse=True)
def configured(here: Path, gate: Path) -> None:
    """Have a policy, and no other user for it: this host may be without _smtpd."""
    (here / "mailgate.toml").write_text(CONFIG)


@pytest.fixture
def syslogd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.setblocking(False)
        yield listening


def started(
    syslogd: socket.socket | None,
    *arguments: str,
    said: bytes = REGISTER,
    lost: bool = True,
    streams: str = "",
) -> Ended:
    """Start a filter as smtpd does, say something, and close the socket.

    ``lost``: stderr is /dev/null, as in the background.  ``streams`` changes descriptors, in
    words of a shell.
    """
    if Path("mailgate.toml").exists():  # it is not looked for in the current folder
        arguments = ("-c", "mailgate.toml", *arguments)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    path = str(syslogd.getsockname()) if syslogd is not None else "/nowhere/log"
    with ours, theirs:
        program = ("sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-c", SOURCE)
        process = subprocess.Popen(
            [*program, path, *arguments],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if lost else subprocess.PIPE,
            text=True,
        )
        theirs.close()
        ours.settimeout(60)
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):  # what it has not read is lost with it
            while octets := ours.recv(65536):
                answer += octets
        _, err = process.communicate(timeout=60)
    log: list[str] = []
    with suppress(BlockingIOError):
        while syslogd is not None:
            log.append(syslogd.recv(65536).decode())
    return Ended(process.returncode, answer, log, err or "")


def lines(ended: Ended) -> list[tuple[int, str]]:
    """Return severity and text of what the system's log had; each line names the program."""
    found = []
    for line in ended.log:
        parts = re.fullmatch(r"<(\d+)>filter-mailgate\[\d+\]: (.*)", line)
        assert parts is not None, line
        found.append((int(parts[1]) & 7, parts[2]))
    return found


def is_registered(answer: bytes) -> bool:
    """Tell whether a filter asks for everything (filter_api.c), and says nothing else."""
    registered = HEADER.size + 8
    type, length, flags, _, _ = HEADER.unpack_from(answer)
    return (type, length, flags, len(answer)) == (0, registered, 0, registered) and answer[
        HEADER.size :
    ] == b"\xff\xff\xff\xff\0\0\0\0"


# -- its command line ----------------------------------------------------------------------------


def test_it_is_installed_by_its_name() -> None:
    """smtpd looks for filter-NAME in its libexec folder."""
    (script,) = entry_points(group="console_scripts", name="filter-mailgate")
    assert script.load() is main


@pytest.mark.parametrize("flags", [(), ("-v",), ("-d",), ("-v", "-d")], ids=" ".join)
def test_the_flags_of_smtpd_are_no_arguments(flags: tuple[str, ...]) -> None:
    """smtpd adds them behind those of smtpd.conf (fork_filter in smtpd.c)."""
    ended = started(None, "gate.py", *flags, lost=False)
    assert (ended.status, ended.err) == (0, "")
    assert is_registered(ended.answer)


def test_without_arguments_the_configuration_names_the_policies(here: Path) -> None:
    assert started(None, "-d", lost=False).err.startswith("no policy: ")
    with (here / "mailgate.toml").open("a") as file:
        file.write("[[policy]]\nuse = 'gate.py'\n")
    assert started(None, "-v", "-d").status == 0


@pytest.mark.parametrize("arguments", [("-d", "gate.py"), ("gate.py", "-d", "-v"), ("-x",)])
def test_other_flags_are_told_by_the_name_of_the_program(arguments: tuple[str, ...]) -> None:
    ended = started(None, *arguments, lost=False)
    assert (ended.status, ended.answer) == (2, b"")
    (line,) = ended.err.splitlines()
    assert line.startswith("filter-mailgate: ")
    assert line.endswith("(filter-mailgate --help says more)")


def test_the_options_of_run_are_its_own(here: Path, gate: Path) -> None:
    (here / "loud.py").write_text("import logging\nlogging.info('said')\n" + gate.read_text())
    assert started(None, "loud.py", lost=False).err == ""
    ended = started(None, "--log-level", "info", "loud.py", "-v", lost=False)
    assert ended.err.startswith("info: said\n")


# -- its log -------------------------------------------------------------------------------------


def test_what_nobody_would_see_goes_to_the_systems_log(syslogd: socket.socket, here: Path) -> None:
    (here / "loud.py").write_text(
        "import logging\nlogging.warning('two\\nlines')\n" + (here / "gate.py").read_text()
    )
    ended = started(syslogd, "loud.py")
    assert (ended.status, lines(ended)) == (0, [(4, "two"), (4, "lines")])
    assert is_registered(ended.answer)


BAD = "bad.py:1: cannot be imported: ValueError: first second"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("none.py",), 78, "none.py: no such file"),
        (("bad.py", "-v"), 78, BAD),
        (("-c", "none.toml"), 78, "none.toml: cannot be read: No such file or directory"),
        (("--no-such",), 2, "filter-mailgate: No such option '--no-such'."),
    ],
)
def test_why_it_does_not_serve_is_in_the_systems_log(
    syslogd: socket.socket, here: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    (here / "bad.py").write_text("raise ValueError('first\\nsecond')")
    ended = started(syslogd, *arguments)
    assert ended.status == status
    assert [(severity, line.partition(" (")[0]) for severity, line in lines(ended)] == [(2, said)]


def test_a_fault_of_smtpd_is_in_the_systems_log(syslogd: socket.socket) -> None:
    ended = started(syslogd, "gate.py", said=REGISTER + TORN)
    assert ended.status == 1
    ((severity, line),) = lines(ended)
    assert severity == 2
    assert started(syslogd, "gate.py", said=REGISTER + TORN, lost=False).err == f"{line}\n"


@pytest.mark.parametrize("lost", [True, False])
def test_in_the_foreground_the_log_is_on_stderr(syslogd: socket.socket, lost: bool) -> None:
    """As somebody may well want it who says `smtpd -d 2>/dev/null`."""
    ended = started(syslogd, "none.py", "-d", lost=lost)
    assert (ended.status, ended.log) == (78, [])
    assert ended.err == ("" if lost else "none.py: no such file\n")


def test_a_log_that_is_seen_stays_on_stderr(syslogd: socket.socket) -> None:
    ended = started(syslogd, "none.py", lost=False)
    assert (ended.log, ended.err) == ([], "none.py: no such file\n")


@pytest.mark.parametrize(("to", "logged"), [("stderr", 0), ("syslog", 1)])
def test_where_the_configuration_sends_it_the_last_line_goes_too(
    syslogd: socket.socket, here: Path, to: str, logged: int
) -> None:
    with (here / "mailgate.toml").open("a") as file:
        file.write(f"to = '{to}'\n")
    ended = started(syslogd, "none.py", lost=to == "stderr")
    assert (ended.status, len(ended.log)) == (78, logged)


def test_without_a_systems_log_nothing_else_is_lost() -> None:
    assert started(None, "none.py").status == 78
    assert is_registered(started(None, "gate.py").answer)


# -- its descriptors -----------------------------------------------------------------------------

NOISY = """
import os, signal, sys
print("from a policy")
os.system("echo from a child; echo from a child >&2")
os.write(1, b"to stdout")
os.write(2, b"to stderr")
open("seen", "w").write(str(signal.getsignal(signal.SIGPIPE)))
"""


@pytest.mark.parametrize("streams", ["", ">&-", "2>&-", ">&- 2>&-"])
def test_nothing_but_the_protocol_reaches_smtpd(here: Path, gate: Path, streams: str) -> None:
    (here / "noisy.py").write_text(NOISY + gate.read_text())
    ended = started(None, "noisy.py", streams=streams)
    assert ended.status == 0
    assert is_registered(ended.answer)


def test_a_pipe_that_is_closed_is_no_end(here: Path, gate: Path) -> None:
    (here / "noisy.py").write_text(NOISY + gate.read_text())
    assert started(None, "noisy.py").status == 0
    assert (here / "seen").read_text() in ("1", "Handlers.SIG_IGN")


# -- root ----------------------------------------------------------------------------------------

RESOURCE = """
import os
from contextlib import asynccontextmanager

as_root = os.getuid()

@asynccontextmanager
async def opened():
    with open("/tmp/entered", "w") as file:
        file.write(f"{as_root} {os.getuid()} {os.listdir('/')}")
    yield

policy.resource(opened())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_is_for_importing_and_the_log_is_not_lost_with_it(
    syslogd: socket.socket, here: Path, gate: Path
) -> None:
    jail = here / "jail"
    (jail / "tmp").mkdir(parents=True)
    (jail / "tmp").chmod(0o1777)
    (here / "mailgate.toml").write_text(
        f"[opensmtpd52]\nuser = 'nobody'\nchroot = '{jail}'\n[log]\nlevel = 'warning'\n"
    )
    gate.write_text(gate.read_text() + RESOURCE)
    ended = started(syslogd, "gate.py", said=REGISTER + TORN)
    assert ended.status == 1
    assert [severity for severity, _ in lines(ended)] == [2]
    nobody = pwd.getpwnam("nobody").pw_uid
    assert (jail / "tmp/entered").read_text() == f"0 {nobody} ['tmp']"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is asked to be somebody else")
def test_a_user_that_is_not_there_is_told_where_somebody_looks(
    syslogd: socket.socket, here: Path
) -> None:
    (here / "mailgate.toml").write_text("[opensmtpd52]\nuser = '_nowhere'\n")
    ended = started(syslogd, "gate.py")
    assert (ended.status, ended.answer) == (78, b"")
    assert lines(ended) == [(2, "there is no user _nowhere here: set user in [opensmtpd52]")]


def test_a_configuration_in_the_current_folder_is_not_for_root(tmp_path: Path) -> None:
    (tmp_path / "mailgate.toml").write_text("[[policy]]\nuse = 'evil.py'\n")
    (tmp_path / "evil.py").write_text("raise SystemExit(3)\n")
    program = [sys.executable, "-c", SOURCE, "/nowhere/log"]
    ended = subprocess.run(
        [*program, "-d"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "evil" not in ended.stderr
    assert ended.returncode != 3


@pytest.mark.parametrize("words", [("-p", "milter"), ("-pmilter",), ("--protocol=milter",)])
def test_another_protocol_is_refused(gate: Path, words: tuple[str, ...]) -> None:
    ended = started(None, str(gate), *words, lost=False)
    assert (ended.status, ended.answer) == (2, b"")
    assert ended.err == "filter-mailgate: smtpd speaks opensmtpd52 here: leave -p out\n"


def test_what_a_policy_prints_is_not_lost(syslogd: socket.socket, gate: Path) -> None:
    gate.write_text("print('as it is', 'imported')\n" + gate.read_text())
    ended = started(syslogd, str(gate), "--log-level", "info")
    assert (6, "as it is imported") in lines(ended)
