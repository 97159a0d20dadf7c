"""The SMTP proxies of the table: who takes part, and how each is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench.obtain import MAILGATE, environment, node_modules

HERE = Path(__file__).parent
DIRECT = "direct"

PEERS = {
    "postfix": "Postfix's smtpd with smtpd_proxy_filter",
    "haraka-proxy": "Haraka, queue/smtp_proxy",
    "haraka-forward": "Haraka, queue/smtp_forward",
    "aiosmtpd": "aiosmtpd with aiosmtplib",
    "slimta": "python-slimta, ProxyQueue",
    "mailgate": "mailgate, empty policy",
    "mailgate-2": "mailgate, 2 workers",
}
"""Who can take part beside DIRECT, which is no proxy at all."""

_HARAKA = ("Haraka@3.1.1", "2026-04-01")  # with what it needs as it was that day
_AIOSMTPD = ("aiosmtpd", "aiosmtplib")
_SLIMTA = ("python-slimta", "zope.interface<6.3", "zope.event<5", "setuptools<66", "gevent<25")


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that this machine can run.

    ``argv`` is made of the port to listen on and of the port to hand mail on to; None: no proxy.
    """

    name: str
    argv: Callable[[int, int], list[str]] | None = None


def peers(names: Collection[str], folder: Path, postfix: Path) -> Iterator[Peer]:
    """Return DIRECT and those of the named peers that can be had; name the others on stderr.

    ``postfix`` is the tree of Postfix's Debian package.
    """
    yield Peer(DIRECT)
    if "postfix" in names:
        yield from _postfix(postfix) or _without("Postfix (root: it changes its user)")
    if kinds := [kind for kind in ("proxy", "forward") if f"haraka-{kind}" in names]:
        yield from _haraka(folder, kinds) or _without("Haraka (npm)")
    for name, module, projects in (
        ("aiosmtpd", "aiosmtpd, aiosmtplib", _AIOSMTPD),
        ("slimta", "slimta.edge.smtp", _SLIMTA),
    ):
        if name in names:
            python = environment(folder / name, *projects, module=module)
            yield from (
                _without(f"{PEERS[name]} (PyPI)")
                if python is None
                else [_started(name, python, f"{name}_proxy.py")]
            )
    for workers, name in ((1, "mailgate"), (2, "mailgate-2")):
        if name in names:
            yield Peer(name, _mailgate(workers))


def _without(peer: str) -> list[Peer]:
    """Say who is missing."""
    click.echo(f"no {peer} to compare with", err=True)
    return []


def _postfix(tree: Path) -> list[Peer]:
    """Return Postfix, which only root can run."""
    return [] if os.geteuid() != 0 else [_started("postfix", sys.executable, "postfix.py", tree)]


def _haraka(folder: Path, kinds: Sequence[str]) -> list[Peer]:
    """Return Haraka, with one or both of its ways to hand mail on."""
    modules = node_modules(folder / "haraka", *_HARAKA)
    if modules is None:
        return []
    return [
        _started(f"haraka-{kind}", sys.executable, "haraka.py", modules, kind) for kind in kinds
    ]


def _mailgate(workers: int) -> Callable[[int, int], list[str]]:
    """Return mailgate."""

    def argv(port: int, upstream: int) -> list[str]:
        command = [MAILGATE, "run", "--protocol", "smtp", "--listen", f"127.0.0.1:{port}"]
        command += ["--upstream", f"smtp://127.0.0.1:{upstream}", "--workers", str(workers)]
        return [*command, str(HERE / "policies" / "smtp_empty.py")]

    return argv


def _started(name: str, python: str | Path, script: str, *arguments: str | Path) -> Peer:
    """Return a peer that a script among the peers is, or becomes."""
    command = [str(part) for part in (python, HERE / "peers" / "smtp" / script, *arguments)]
    return Peer(name, lambda port, upstream: [*command, str(port), str(upstream)])
