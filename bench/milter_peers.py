"""The milters of the table: who takes part, how each is started, and what it cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from bench.obtain import MAILGATE, compiled, environment, imports

HERE = Path(__file__).parent
FULL, LEAN = "libmilter, C", "libmilter, lean"

WORKS = {
    "null": "nothing looked at, RCPT and end of message answered",
    "real": "header and body read, one header field added",
    "every": "every event answered",
}
"""What the filters do.  Those with all callbacks answer every event in each of them."""

TRANSPORTS = ("unix", "tcp")


@dataclass(frozen=True, slots=True)
class Peer:
    """A milter that this machine can run.

    ``argv`` is made of the work and of an address, unix:PATH or IPV4:PORT.
    """

    name: str
    argv: Callable[[str, str], list[str]]
    works: tuple[str, ...] = tuple(WORKS)
    transports: tuple[str, ...] = TRANSPORTS
    edits_again: bool = True
    """Edits the second message of a connection as it does the first."""
    processes: int = 1
    """Workers; the memory of connections is measured where there is one."""

    def can(self, work: str, transport: str, kept: int) -> bool:
        """Tell whether it can do a work, with so many messages on a connection."""
        again = self.edits_again or kept == 1 or work != "real"
        return work in self.works and transport in self.transports and again


def peers(folder: Path) -> Iterator[Peer]:
    """Return the peers that can be had, then mailgate; name the others on stderr."""
    yield from _libmilter(folder) or _without("libmilter (Debian: gcc, libmilter-dev)")
    yield from _pymilter() or _without("pymilter (Debian: python3-milter)")
    for found, project in ((_purepythonmilter, "purepythonmilter"), (_kilter, "kilter.service")):
        python = environment(folder / project, project)
        yield from _without(f"{project} (PyPI)") if python is None else found(str(python))
    yield Peer("mailgate", _mailgate(1))
    yield Peer("mailgate, 2 workers", _mailgate(2), processes=2)


def _without(peer: str) -> list[Peer]:
    """Say who is missing."""
    click.echo(f"no {peer} to compare with", err=True)
    return []


def _libmilter(folder: Path) -> list[Peer]:
    """Return the filters in C."""
    program = folder / "libmilter_filter"
    source = HERE / "peers" / "milter" / "libmilter_filter.c"
    if not compiled(program, [source], ["milter", "pthread"], ["libmilter-dev"]):
        return []
    return _full_and_lean(FULL, LEAN, [str(program)])


def _pymilter() -> list[Peer]:
    """Return the filters on Debian's Python, for which Debian has compiled pymilter."""
    python = Path("/usr/bin/python3")
    script = str(HERE / "peers" / "milter" / "pymilter_filter.py")
    if not imports(python, "Milter", "python3-milter"):
        return []
    return _full_and_lean("pymilter", "pymilter, lean", [str(python), script])


def _full_and_lean(full: str, lean: str, command: list[str]) -> list[Peer]:
    """Return a filter with all callbacks, and with those only that it needs."""

    def argv(callbacks: str) -> Callable[[str, str], list[str]]:
        return lambda work, address: [*command, callbacks, work, _colon_first(address)]

    return [Peer(full, argv("full")), Peer(lean, argv("lean"), works=("null", "real"))]


def _purepythonmilter(python: str) -> list[Peer]:
    """Return purepythonmilter, which would repeat the edit of a connection's first message."""
    script = str(HERE / "peers" / "milter" / "purepythonmilter_filter.py")
    return [
        Peer(
            "purepythonmilter",
            lambda work, address: [python, script, work, address.rpartition(":")[2]],
            transports=("tcp",),
            edits_again=False,
        )
    ]


def _kilter(python: str) -> list[Peer]:
    """Return kilter; without -O it makes a line of log of each packet."""
    script = str(HERE / "peers" / "milter" / "kilter_filter.py")
    return [Peer("kilter", lambda work, address: [python, "-O", script, work, address])]


def _mailgate(workers: int) -> Callable[[str, str], list[str]]:
    """Return mailgate; libmilter's threads have all processors without being told."""

    def argv(work: str, address: str) -> list[str]:
        policy = HERE / "policies" / f"milter_{work}.py"
        command = [MAILGATE, "run", "--protocol", "milter", "--listen", address]
        return [*command, "--workers", str(workers), str(policy)]

    return argv


def _colon_first(address: str) -> str:
    """Return an address as libmilter writes it: unix:PATH or inet:PORT@HOST."""
    host, _, port = address.rpartition(":")
    return address if host == "unix" else f"inet:{port}@{host}"
