"""A handler that forks leaves a copy of the server behind; the copy ends, and speaks to nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

SERVER = """
import asyncio, os, sys
from mailgate import Policy, Reject
from mailgate.address import Address
from mailgate.engine import Engine
from mailgate.chain import Loaded
from mailgate.fork import keep_from_children
from mailgate.session import Session

protocol, log = int(sys.argv[1]), int(sys.argv[2])
if {serving}:
    keep_from_children(protocol)
policy = Policy("p")
children = []

def fork():
    child = os.fork()
    if child:
        children.append(child)
        return
    os.write(protocol, b"child to the protocol\\n")
    os.write(log, b"child to the log\\n")

@policy.mail
{handler}

async def main():
    conversation = Engine([Loaded(policy, "p")], None).converse(Session("s", "test"))
    verdict = await conversation.mail(Address("a@b.example"))
    who = "parent" if children else "child"
    os.write(protocol, f"{{who}} goes on: {{verdict}}\\n".encode())
    for child in children:
        _, status = os.waitpid(child, 0)
        os.write(log, f"child ended with {{os.waitstatus_to_exitcode(status)}}\\n".encode())

asyncio.run(main())
"""

HANDLERS = {
    "returns": """
        async def handler(message):
            fork()
    """,
    "answers": """
        async def handler(message):
            fork()
            return Reject("no") if not children else None
    """,
    "raises": """
        async def handler(message):
            fork()
            if not children: raise ValueError
    """,
    "waits": """
        async def handler(message):
            fork()
            await asyncio.sleep(0)
    """,
    "waits before": """
        async def handler(message):
            await asyncio.sleep(0)
            fork()
            await asyncio.sleep(0)
    """,
    "exits": """
        async def handler(message):
            fork()
            if not children: sys.exit(0)
    """,
    "in a thread": """
        def handler(message):
            fork()
    """,
    "raises in a thread": """
        def handler(message):
            fork()
            if not children: raise SystemExit(1)
    """,
}


def serve(handler: str, *, serving: bool = True) -> tuple[list[str], list[str]]:
    """Run a server whose handler forks; return the lines on its protocol and in its log."""
    ends = os.pipe(), os.pipe()
    source = SERVER.format(handler=textwrap.dedent(handler).strip(), serving=serving)
    (_, protocol), (_, log) = ends
    done = subprocess.run(
        [sys.executable, "-c", source, str(protocol), str(log)],
        pass_fds=(protocol, log),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    lines = []
    for read, write in ends:
        os.close(write)
        with open(read) as file:
            lines.append(file.read().splitlines())
    return lines[0], lines[1]


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_a_forked_child_does_not_go_on_as_the_server(handler: str) -> None:
    protocol, log = serve(handler)
    assert protocol == ["parent goes on: None"]
    assert log == ["child to the log", "child ended with 0"]


ADOPT = """
import os, resource, sys
from mailgate import fork

def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
"""


def adopt(source: str, script: str = 'exec "$@"') -> None:
    """Run what makes assertions; ``script`` is how a shell starts it."""
    command = [sys.executable, "-c", ADOPT + textwrap.dedent(source)]
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *command], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("closed", [0, 1])
def test_what_is_adopted_is_no_standard_stream(closed: int) -> None:
    """A policy may close one, and print to whatever has its number then."""
    adopt(
        f"""
        os.close({closed})
        read, write = os.pipe()
        assert {closed} in (read, write)
        read, write = fork.adopt(read), fork.adopt(write)
        assert min(read, write) > 2
        assert os.path.samestat(os.fstat({closed}), os.stat(os.devnull))
        assert not os.get_inheritable(read) and not os.get_inheritable(write)
        os.write(write, b"x")
        assert os.read(read, 2) == b"x"
        if os.fork() == 0:
            os._exit(os.write(write, b"from a child"))
        os.wait()
        fork.close(write)
        assert os.read(read, 100) == b""
        """
    )


def test_what_cannot_be_adopted_is_closed() -> None:
    adopt(
        """
        os.close(0)
        assert os.open(os.devnull, os.O_RDONLY) == 0
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        try:
            fork.adopt(0)
        except OSError:
            assert not is_open(0)
        else:
            sys.exit("there was room")
        """
    )


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_standard_stream_stays_closed(closed: str) -> None:
    """Whoever is to speak on it finds out, and speaks to nobody else."""
    numbers = [number for number in range(3) if str(number) in closed]
    adopt(f"assert not any(map(is_open, {numbers}))", f'exec "$@" {closed}')


def test_who_does_not_serve_may_fork() -> None:
    """A test of a policy, or a command: nothing has to be kept from its children."""
    protocol, log = serve(HANDLERS["returns"], serving=False)
    assert {"child to the protocol", "parent goes on: None"} <= set(protocol)
    assert log[0] == "child to the log"
