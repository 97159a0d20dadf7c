"""`mailgate run --workers`: what an administrator and an MTA see of several processes."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.core.cli.running import Command

PATIENT = 60.0
"""Seconds after which a test fails: nothing here takes long, but the machine may be loaded."""

GATE = """
import os
from mailgate import Message, Policy, Reject

os.write(1, f"loaded by {os.getpid()} of {os.getppid()}\\n".encode())


def policy(word: str = "none") -> Policy:
    os.write(1, f"word {word}\\n".encode())
    policy = Policy()

    @policy.mail
    async def check(message: Message) -> Reject | None:
        return None

    return policy
"""


def packet(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


OFFER = packet(struct.pack("!cIII", b"O", 6, 0x1FF, 0x1FFFFF))
"""OPTNEG as Postfix sends it, 17 octets: version 6, all actions, all steps."""

CONNECT = packet(b"Cclient.example\0" + b"4\x00\x19192.0.2.1\0")
MAIL = packet(b"M<sender@client.example>\0")

UP = "milter on unix:"
"""What a worker says when it serves."""


class Running:
    """`mailgate run -p milter`, and what its processes say."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        assert process.stdout is not None
        self.process = process
        self.path = path
        self.said = ""
        self._output = process.stdout

    def until(self, text: str, times: int = 1) -> None:
        """Wait until a text was said so many times."""
        end = time.monotonic() + PATIENT
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while self.said.count(text) < times:
                assert selector.select(end - time.monotonic()), self.said
                piece = os.read(self._output.fileno(), 65536)
                assert piece, self.said
                self.said += piece.decode()

    def workers(self) -> list[int]:
        """Return the workers so far, by what the policy says when they load it."""
        loaded = [line.split() for line in self.said.splitlines() if line.startswith("loaded by ")]
        return [int(pid) for _, _, pid, _, parent in loaded if int(parent) == self.process.pid]

    def wait(self) -> int:
        """Return the status at the end of the last process: only then is the pipe at its end."""
        said, _ = self.process.communicate(timeout=PATIENT)
        self.said += said.decode()
        return self.process.returncode

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; return the status."""
        self.process.send_signal(number)
        return self.wait()

    def stop(self) -> None:
        """End what a test that failed has left."""
        if self._output.closed:  # nobody is there any more
            return
        self.process.kill()
        for pid in self.workers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """Connect as an MTA does, and negotiate."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENT)
            client.connect(os.path.relpath(self.path))  # whatever the length of the whole path
            client.sendall(OFFER)
            answer = received(client)
            assert answer[:5] == struct.pack("!cI", b"O", 6)
            yield client

    def is_answered(self) -> bool:
        """Tell whether an MTA can negotiate."""
        with self.connected():
            return True


def received(client: socket.socket) -> bytes:
    """Return what the next packet has behind its length."""
    (length,) = struct.unpack("!I", client.recv(4, socket.MSG_WAITALL))
    return client.recv(length, socket.MSG_WAITALL)


Start = Callable[..., Running]


@pytest.fixture
def start(here: Path) -> Iterator[Start]:
    """Run `mailgate run -p milter` at a unix socket; what is left of it goes at the end."""
    started: list[Running] = []
    (here / "gate.py").write_text(GATE)

    def start(*arguments: str, **environment: str) -> Running:
        path = here / "s"
        command = ["run", "-p", "milter", "-l", f"unix:{path}", *arguments]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mailgate", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        started.append(Running(process, path))
        return started[-1]

    yield start
    for running in started:
        running.stop()


# -- usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["0", "257", "-1", "1.5", "two", "AUTO"])
def test_what_is_no_number_of_workers_is_refused(shell: Command, number: str) -> None:
    done = shell("run", "-p", "milter", "--workers", number, "gate.py")
    assert done.status == 2
    assert f"--workers takes a number from 1 to 256 or auto, not '{number}' " in done.err
    assert len(done.err.splitlines()) == 1


def test_workers_serve_one_protocol(shell: Command, here: Path) -> None:
    (here / "mailgate.toml").write_text("[milter]\n")
    done = shell("run", "--workers", "2", "gate.py")
    assert done.status == 2
    assert done.err.startswith("mailgate run: --workers goes with one protocol: name it with -p")
    assert len(done.err.splitlines()) == 1


def test_a_protocol_on_stdin_has_no_workers(program: Command, gate: Path) -> None:
    done = program("run", "-p", "opensmtpd", "--workers", "2", "gate.py")
    assert (done.status, done.out) == (78, "")
    assert done.err == "opensmtpd has one process only: leave --workers out\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_auto_is_one_for_each_processor(start: Start) -> None:
    processors = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(processors)})
        alone = start("--workers", "auto", "gate.py")
        alone.until("milter on unix:")
    finally:
        os.sched_setaffinity(0, processors)
    assert alone.end() == 0
    assert alone.workers() == []
    if len(processors) > 1:
        running = start("--workers", "auto", "gate.py")
        running.until(UP, len(processors))
        assert running.end() == 0
        assert len(running.workers()) == len(processors)


# -- options -------------------------------------------------------------------------------------


def test_options_reach_the_workers(start: Start) -> None:
    running = start("--workers", "2", "--set", "word=given", "--log-format", "json", "gate.py")
    running.until(UP, 2)
    assert running.end() == 0
    assert running.said.count("word given\n") == 3  # the one that keeps them loads it, too
    records = [json.loads(line) for line in running.said.splitlines() if line[0] == "{"]
    assert len([record for record in records if record["message"].startswith(UP)]) == 2


def test_the_configuration_reaches_the_workers(start: Start, here: Path) -> None:
    (here / "other.toml").write_text(
        "[[policy]]\nuse = 'gate.py'\nsettings = { word = 'configured' }\n"
        "[log]\nlevel = 'warning'\n[milter]\nmode = '0600'\n"
    )
    running = start("--workers", "2", "-c", "other.toml", "--log-level", "info")
    running.until(UP, 2)
    assert running.said.count("word configured\n") == 3
    assert running.path.stat().st_mode & 0o777 == 0o600
    assert running.end() == 0


def test_the_environment_may_say_how_many(start: Start) -> None:
    """Those of its workers are themselves alone."""
    running = start("gate.py", MAILGATE_RUN_WORKERS="2")
    running.until(UP, 2)
    assert running.end() == 0
    assert running.said.count("loaded by") == 3
    assert len(running.workers()) == 2


def test_a_policy_may_be_named_like_an_option(start: Start, here: Path) -> None:
    (here / "gate.py").rename(here / "-gate.py")
    running = start("--workers", "2", "--", "-gate.py")
    running.until(UP, 2)
    assert running.end() == 0


def test_a_module_of_the_current_folder_is_not_taken_for_another(start: Start, here: Path) -> None:
    """Nothing but policies is imported from where somebody happens to be."""
    (here / "queue.py").write_text("raise SystemExit('the wrong one')\n")
    running = start("--workers", "2", "gate.py")
    running.until(UP, 2)
    assert running.end() == 0
    assert "the wrong one" not in running.said


def test_policies_and_what_they_start_inherit_nothing(start: Start, here: Path) -> None:
    (here / "gate.py").write_text(
        "import os\n\n"
        "def is_inherited(fd):\n"
        "    try:\n"
        "        return os.get_inheritable(fd)\n"
        "    except OSError:\n"
        "        return False\n\n"
        "lifeline = os.environ.get('MAILGATE_LIFELINE')\n"
        "found = [fd for fd in range(3, 256) if is_inherited(fd)]\n"
        "os.write(1, f'found {lifeline} {found}\\n'.encode())\n" + GATE
    )
    running = start("--workers", "2", "gate.py")
    running.until(UP, 2)
    assert running.said.count("found None []\n") == 3
    assert running.end() == 0


@pytest.mark.parametrize("options", [["-v"], []])
def test_a_worker_shows_tracebacks_where_it_is_to(
    program: Command, here: Path, options: list[str]
) -> None:
    (here / "gate.py").write_text(
        "from contextlib import asynccontextmanager\nfrom mailgate import Message, Policy\n\n"
        "policy = Policy()\n\n@policy.mail\nasync def check(message: Message) -> None: ...\n\n"
        "@asynccontextmanager\nasync def broken():\n    raise OSError('no network')\n    yield\n\n"
        "policy.resource(broken())\n"
    )
    arguments = ("run", "-p", "milter", "--workers", "2", "-l", f"unix:{here}/s", "gate.py")
    done = program(*options, *arguments)
    assert done.status == 78
    assert ("Traceback" in done.err) == bool(options)


# -- policies ------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_policy_is_told_once(program: Command, here: Path) -> None:
    (here / "bad.py").write_text("import sys\nsys.exit('no')\n")
    socket = here / "s"
    done = program("run", "-p", "milter", "--workers", "4", "-l", f"unix:{socket}", "bad.py")
    assert (done.status, done.out) == (78, "")
    assert done.err == "bad.py:2: cannot be imported: SystemExit: no\n"
    assert [*here.iterdir()] == [here / "bad.py"]


def test_a_resource_that_no_worker_can_enter_ends_all(start: Start, here: Path) -> None:
    (here / "gate.py").write_text(
        GATE.replace("    @policy.mail", "    policy.resource(broken())\n\n    @policy.mail")
        + "\n\nfrom contextlib import asynccontextmanager\n\n"
        "@asynccontextmanager\nasync def broken():\n    raise OSError('no network')\n    yield\n"
    )
    running = start("--workers", "2", "gate.py")
    assert running.wait() == 78
    assert "cannot be entered: OSError: no network\n" in running.said
    assert not running.path.exists()


def test_a_policy_that_keeps_a_thread_keeps_nobody(start: Start, here: Path) -> None:
    keeps = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    (here / "gate.py").write_text(keeps + GATE)
    running = start("--workers", "2", "gate.py")
    running.until(UP, 2)
    assert running.end() == 0


def test_a_reload_is_for_all(start: Start) -> None:
    running = start("--workers", "2", "gate.py")
    running.until(UP, 2)
    running.process.send_signal(signal.SIGHUP)
    running.until("reloaded: gate", 2)
    assert running.end() == 0
    assert "ended with" not in running.said


# -- life and death ------------------------------------------------------------------------------


def test_an_mta_is_answered_whoever_dies(start: Start) -> None:
    running = start("--workers", "2", "gate.py")
    running.until(UP, 2)
    with running.connected(), running.connected():
        first, second = running.workers()
        os.kill(first, signal.SIGKILL)
        running.until(f"worker {first} ended with signal 9")
        assert running.is_answered()
        running.until(UP, 3)
        os.kill(second, signal.SIGKILL)
        running.until(f"worker {second} ended with signal 9")
        assert running.is_answered()
    assert running.end() == 0
    assert not running.path.exists()


def test_those_that_serve_outlive_a_policy_that_is_broken_by_now(start: Start, here: Path) -> None:
    running = start("--workers", "2", "gate.py")
    running.until(UP, 2)
    (here / "gate.py").write_text("policy = (\n")
    running.process.send_signal(signal.SIGHUP)
    running.until("reload refused, the old policies go on", 2)
    os.kill(running.workers()[0], signal.SIGKILL)
    running.until("ended with status 78; another start in")
    assert running.is_answered()
    (here / "gate.py").write_text(GATE)
    running.until(UP, 3)
    assert running.end() == 0


def test_ctrl_c_reaches_all_at_once(start: Start) -> None:
    """A terminal tells every process in the foreground; none is started again for that."""
    running = start("--workers", "2", "gate.py")
    running.until(UP, 2)
    for pid in [running.process.pid, *running.workers()]:
        os.kill(pid, signal.SIGINT)
    assert running.wait() == 0
    assert len(running.workers()) == 2
    assert "Traceback" not in running.said
    assert not running.path.exists()


def test_nobody_listens_while_messages_under_way_end(start: Start) -> None:
    """An MTA that connects now is refused, and need not wait for an answer."""
    running = start("--workers", "2", "gate.py")
    running.until(UP, 2)
    with running.connected() as client:
        client.sendall(CONNECT + MAIL)
        assert received(client) == b"c"
        running.process.terminate()
        end = time.monotonic() + PATIENT
        while running.path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert running.process.poll() is None
        with pytest.raises(FileNotFoundError):
            running.is_answered()
    assert running.wait() == 0


def test_they_end_with_the_one_that_keeps_them(start: Start) -> None:
    running = start("--workers", "2", "gate.py")
    running.until(UP, 2)
    with running.connected():
        assert running.end(signal.SIGKILL) == -signal.SIGKILL
    assert running.said.count("the process that started this worker is gone") == 2


# -- the first moments ---------------------------------------------------------------------------

SLOW = """
import os, time

if "MAILGATE_LIFELINE" in os.environ:
    parent = os.getppid()
    os.write(1, f"begins {os.getpid()}\\n".encode())
    while not os.path.exists("go") and os.getppid() == parent:
        time.sleep(0.01)
"""
"""A sitecustomize (see the documentation of `site`): Python takes its time to start workers."""


@pytest.fixture
def slow(start: Start, tmp_path: Path) -> Running:
    """Run two workers that begin with mailgate when there is a file ``go``."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW)
    running = start("--workers", "2", "gate.py", PYTHONPATH=str(tmp_path / "site"))
    running.until("begins ", 2)
    return running


def test_a_worker_that_has_not_begun_is_not_killed_by_a_reload(slow: Running, here: Path) -> None:
    begun = [line.split()[1] for line in slow.said.splitlines() if line.startswith("begins ")]
    for pid in begun:
        os.kill(int(pid), signal.SIGHUP)  # as the one that keeps them passes it on
    (here / "go").touch()
    slow.until(UP, 2)
    assert slow.end() == 0
    assert "ended with" not in slow.said


def test_a_worker_that_has_not_begun_can_be_ended(slow: Running) -> None:
    assert slow.end() == 0
    assert slow.workers() == []
    assert not slow.path.exists()


def test_a_worker_that_has_not_begun_finds_out_that_it_is_alone(slow: Running) -> None:
    assert slow.end(signal.SIGKILL) == -signal.SIGKILL
    assert slow.said.count("the process that started this worker is gone") == 2
