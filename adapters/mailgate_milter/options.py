"""The ``[milter]`` table, and what it says of the mail servers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, final

from mailgate import listen
from mailgate.settings import Seconds

PATIENCE = {"postfix": math.inf, "sendmail": 8.0}
"""Seconds for the answer to a command: Sendmail reads for 10 s, and takes no PROGRESS before
the end of a message.  Postfix waits longer than any policy by default may take.
"""


@final
@dataclass(frozen=True, slots=True)
class MilterOptions:
    """The ``[milter]`` table.

    ``listen`` is one address or several; ``mode`` (octal digits), ``owner`` and ``group`` are
    of the unix sockets among them.  ``mta = "sendmail"`` keeps answers within the 10 s that
    Sendmail waits for one.  ``idle_timeout`` (seconds) closes silent connections: an MTA is
    silent while a slow client uploads.
    """

    listen: str | tuple[str, ...] = "127.0.0.1:8891"
    mode: str = "0660"
    owner: str | None = None
    group: str | None = None
    mta: Literal["postfix", "sendmail"] = "postfix"
    idle_timeout: Seconds = 7210.0

    def __post_init__(self) -> None:
        if not self.idle_timeout > 0:
            raise ValueError("'idle_timeout' must be above 0")
        for address in self.addresses:
            listen.parse(address)
        if not re.fullmatch("0?[0-7]{3}", self.mode):
            raise ValueError(f"'mode' must be octal digits such as \"0660\", not {self.mode!r}")

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self.listen,) if isinstance(self.listen, str) else self.listen
