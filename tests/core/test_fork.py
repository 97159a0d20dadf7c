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


def test_who_does_not_serve_may_fork() -> None:
    """A test of a policy, or a command: nothing has to be kept from its children."""
    protocol, log = serve(HANDLERS["returns"], serving=False)
    assert {"child to the protocol", "parent goes on: None"} <= set(protocol)
    assert log[0] == "child to the log"
