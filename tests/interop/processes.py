"""What the interop tests ask the kernel about the processes and ports of a mail server."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_PORTS = iter(random.sample(range(16_384, 32_768), 16_384))  # Linux hands out those above


class Process(NamedTuple):
    """A process as /proc shows it."""

    pid: int
    name: str
    state: str
    parent: int

    @property
    def running(self) -> bool:
        """Tell whether it runs: a zombie only waits to be seen by its parent."""
        return self.state not in "ZX"


def process(pid: int) -> Process | None:
    """Look a process up; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(") ")  # a name may hold anything
    state, parent = rest.split()[:2]
    return Process(pid, name, state, int(parent))


def running(pid: int) -> bool:
    """Tell whether a process runs."""
    found = process(pid)
    return found is not None and found.running


def below(pid: int) -> Iterator[Process]:
    """Return all running processes that descend from one, itself left out."""
    everything = [process(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")]
    parents = {pid}
    # A parent may have a higher number than its child once numbers have wrapped, so look
    # again until a pass finds nothing new.
    while found := [p for p in everything if p and p.parent in parents and p.pid not in parents]:
        parents.update(p.pid for p in found)
        yield from (p for p in found if p.running)


def working_in(folder: Path) -> list[int]:
    """Return the running processes whose current folder is this one or lies below it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            current = (entry / "cwd").readlink()
        except OSError:  # it has ended, or is a zombie
            continue
        if current.is_relative_to(folder):
            found.append(int(entry.name))
    return found


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds; return whether it came to."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def free_port() -> int:
    """Return a loopback port that nothing listens on, another one at each call.

    It is below those that the kernel hands out, so nobody else gets it by chance meanwhile.
    """
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def listening(port: int) -> bool:
    """Tell whether something listens on a port, without connecting to it."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        if local.endswith(f":{port:04X}") and state == "0A":
            return True
    return False


def listening_at(path: Path) -> bool:
    """Tell whether something listens at a unix socket, without connecting to it."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        _, _, _, flags, _, _, *address = line.split(maxsplit=7)
        if address[1:] == [str(path)] and int(flags, 16) & 0x10000:  # SO_ACCEPTCON
            return True
    return False
