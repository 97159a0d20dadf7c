"""What a command says when it is run."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit status."""

    status: int
    out: str
    err: str = ""

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def on_terminal(*arguments: str, **environment: str) -> str:
    """Return what a Python program shows on a terminal of 40 columns, escapes and all."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdout=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "40", **environment},
    ) as program:
        os.close(theirs)
        shown = b""
        while piece := _read(ours):
            shown += piece
    os.close(ours)
    assert program.returncode == 0
    return shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # what Linux says where the other side is closed
        return b""


def plain(shown: str) -> str:
    """Return what a terminal shows without what sets its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


Command: TypeAlias = Callable[..., Done]
"""A way to run `mailgate`: see the fixtures `command`, `shell` and `program`."""
