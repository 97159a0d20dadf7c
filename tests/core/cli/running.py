"""What a command says when it is run."""

from __future__ import annotations

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


Command: TypeAlias = Callable[..., Done]
"""A way to run `mailgate`: see the fixtures `command`, `shell` and `program`."""
