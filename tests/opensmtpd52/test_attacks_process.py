"""Holes that were found in the adapter as a process, and stay closed."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from textwrap import dedent

import pytest

from tests.core.asking import in_loop
from tests.opensmtpd import everything
from tests.opensmtpd52.client import Client, Way, without_trace
from tests.opensmtpd52.frames import PIPE, REGISTER, Death, Speech, frame, open_descriptors
from tests.opensmtpd52.running import CONFIG, Program, begun, program, until
from tests.opensmtpd52.smtpd import PATIENCE

MAIL = b"Subject: x\r\n\r\nbody\r\n"
EVERYTHING = Path(everything.__file__)
SOON = 5.0
"""Seconds: less than the child of a handler lives."""


def written(folder: Path, source: str) -> Path:
    """Write a policy; return its file."""
    file = folder / "gate.py"
    file.write_text(dedent(source))
    return file


# -- descriptors -----------------------------------------------------------------------------------


@contextmanager
def no_room(pid: int) -> Iterator[None]:
    """Have a process get no more descriptors than it has."""
    before, there = resource.prlimit(pid, resource.RLIMIT_NOFILE), open_descriptors(pid)
    free = next(number for number in count() if number not in there)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def at_data(running: Program) -> tuple[Client, Way]:
    """Return a client whose message is about to get its way."""
    client = await begun(running)
    await client.rcpt()
    assert (await running.smtpd.ask(client.session, "DATA")).status == 0
    return client, Way(running.smtpd)


async def delivered(client: Client, way: Way, fd: int) -> bytes:
    """Send a message into a way that has been made; return what comes out of it."""
    way.end()  # the sink: the filter has it
    way.writing, client.way = fd, way
    os.set_blocking(fd, False)
    await client.send(MAIL)
    assert (await client.end())[:3] == "250"
    return client.delivered.pop()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process")
@in_loop
async def test_a_descriptor_that_is_lost_gives_nobody_anothers_sink() -> None:
    """A read may end inside a frame, whose descriptor has come with its first octets."""
    async with program(EVERYTHING) as running:
        (link,), smtpd = running.smtpd.chain, running.smtpd
        (one, lost), (two, way) = await at_data(running), await at_data(running)
        answers = [smtpd.expect("PIPE", c.session, link, "PIPE") for c in (one, two)]
        first, second = (
            frame(PIPE, smtpd.speech.pipe(client.session), flags=1) for client in (one, two)
        )
        with no_room(running.processes[0].pid):
            await link.raw(first[:10], [lost.writing])
            await until(lambda: "a descriptor is lost" in running.stderr())
        await link.raw(first[10:])
        await link.raw(second, [way.writing])
        assert await smtpd.in_time(answers[0], "PIPE") == -1
        fd = await smtpd.in_time(answers[1], "PIPE")
        assert isinstance(fd, int)
        assert await delivered(two, way, fd) == MAIL
        assert lost.received == b""
        lost.close()
        assert await running.end() == [0]


@in_loop
async def test_a_fork_holds_no_sink_of_another_session(tmp_path: Path) -> None:
    """smtpd waits for the end of the sink before it answers its client."""
    policy = written(
        tmp_path,
        """
        import os, time
        from mailgate import Address, Message, Policy

        policy = Policy("forks")

        @policy.rcpt
        async def rcpt(message: Message, recipient: Address) -> None:
            if recipient.local == "fork" and os.fork() == 0:
                time.sleep(60)
                os._exit(0)

        @policy.headers
        async def headers(message: Message) -> None: ...
        """,
    )
    async with program(policy) as running:
        forking, (client, way) = await begun(running), await at_data(running)
        (link,), smtpd = running.smtpd.chain, running.smtpd
        # One write has both: the handler forks with the sink received, and not yet in use.
        asking = asyncio.create_task(forking.rcpt("fork@example.org"))
        piping = asyncio.create_task(smtpd.pipe(client.session, link, os.dup(way.writing)))
        async with asyncio.timeout(SOON):
            assert await delivered(client, way, await piping) == MAIL
        assert (await asking)[:3] == "250"
        running.check()


@in_loop
async def test_closed_standard_streams_are_no_way_into_a_message(tmp_path: Path) -> None:
    """A library that makes a daemon may close them; what is next opened has their numbers."""
    policy = written(
        tmp_path,
        """
        import contextlib, logging, os
        from mailgate import Message, Policy, Session

        policy = Policy("closes")

        @policy.connect
        async def connect(session: Session) -> None:
            for fd in (0, 1, 2):
                with contextlib.suppress(OSError):
                    os.close(fd)

        @policy.headers
        async def headers(message: Message) -> None:
            logging.getLogger("closes").error("logged")
            for fd in (0, 1, 2):
                with contextlib.suppress(OSError):
                    os.write(fd, b"written")
            with contextlib.suppress(OSError):
                print("printed", flush=True)

        @policy.message
        async def message(message: Message) -> None: ...
        """,
    )
    async with program(policy) as running:
        for _ in range(5):
            assert without_trace(await running.served()) == MAIL
        running.check()


# -- the end ---------------------------------------------------------------------------------------


@in_loop
async def test_who_cancels_everything_again_and_again_keeps_no_process(tmp_path: Path) -> None:
    policy = written(
        tmp_path,
        """
        import asyncio
        from mailgate import Policy, Session

        policy = Policy("cancels")
        storms = []

        async def storm() -> None:
            while True:
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                await asyncio.sleep(0)

        @policy.connect
        async def connect(session: Session) -> None:
            if not storms:
                storms.append(asyncio.create_task(storm()))
        """,
    )
    async with program(policy) as running:
        for _ in range(3):
            await running.served()
        running.check()
        assert await running.end() == [0]


@in_loop
async def test_a_fault_of_ours_has_its_own_exit_status(tmp_path: Path) -> None:
    policy = written(
        tmp_path,
        """
        from mailgate import Policy, Session
        from mailgate.engine import Engine

        policy = Policy("breaks")

        @policy.connect
        async def connect(session: Session) -> None: ...

        def fail(engine: Engine, session: Session) -> None:
            raise RuntimeError("of ours")

        Engine.converse = fail
        """,
    )
    async with program(policy) as running:
        with pytest.raises(Death):
            await Client(running.smtpd).connect()
        assert await running.end() == [70]
        assert "internal error: RuntimeError: of ours" in running.stderr()


# -- the start -------------------------------------------------------------------------------------


def run(folder: Path, stdin: socket.socket, script: str) -> subprocess.CompletedProcess[str]:
    """Run a filter to its end; ``script`` is how a shell starts its command line ``$@``."""
    config = folder / "mailgate.toml"
    config.write_text(CONFIG)
    return subprocess.run(
        [
            *("/bin/sh", "-c", script, "sh", sys.executable, "-m", "mailgate"),
            *("run", "-p", "opensmtpd52", "--config", str(config), str(EVERYTHING)),
        ],
        stdin=stdin.fileno(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(
    "script",
    ['ulimit -n 40; exec "$@"', 'exec "$@" >&-', 'exec "$@" 2>&-', 'exec "$@" >&- 2>&-'],
)
def test_what_is_scarce_at_the_start_is_no_hindrance(tmp_path: Path, script: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frame(REGISTER, Speech().register()))
        ours.shutdown(socket.SHUT_WR)
        done = run(tmp_path, theirs, script)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert ours.recv(100)[16:] == Speech().s32(-1) + Speech().s32(0)


def unconnected(kind: str) -> socket.socket:
    if kind == "a sequence of packets":
        one, other = socket.socketpair(type=socket.SOCK_SEQPACKET)
        other.close()
        return one
    made = socket.socket(type=socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_STREAM)
    if kind != "alone":
        made.bind(("127.0.0.1", 0))
    if kind == "listening":
        made.listen()
    return made


@pytest.mark.parametrize("kind", ["listening", "datagrams", "alone", "a sequence of packets"])
def test_a_socket_that_leads_to_no_smtpd_is_told(tmp_path: Path, kind: str) -> None:
    with unconnected(kind) as stdin:
        done = run(tmp_path, stdin, 'exec "$@"')
    assert (done.returncode, done.stdout) == (78, "")
    (line,) = done.stderr.splitlines()
    assert "opensmtpd52 speaks on a socket as stdin" in line


def test_a_closed_stdin_is_told(tmp_path: Path) -> None:
    with socket.socket() as unused:
        done = run(tmp_path, unused, 'exec "$@" <&-')
    assert (done.returncode, done.stdout) == (78, "")
    (line,) = done.stderr.splitlines()
    assert "stdin, which the mail server speaks on, is closed" in line
