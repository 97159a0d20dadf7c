"""`mailgate run` as a process of its own, as a service manager runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from tests.interop.installation import Installation
from tests.interop.processes import eventually, listening, listening_at

Value: TypeAlias = "str | float | list[str] | Mapping[str, Value]"
Table: TypeAlias = Mapping[str, Value]

# The mail servers run as users of their own.
_SOCKET: Table = {"mode": "0666"}

_START = 15.0  # seconds until it must listen
_STOP = 15.0  # seconds until it must be gone


class Gate:
    """A running mailgate that listens at an address: ``unix:/path`` or ``127.0.0.1:port``.

    With the protocol `smtp` what is spoken there may stand before it, as in ``lmtp:unix:/path``.
    ``configuration`` is the text of its mailgate.toml; ``table`` is the protocol's own table.
    ``settings`` are those of the only policy.
    """

    def __init__(
        self,
        mailgate: Installation,
        address: str,
        *policies: str,
        protocol: str = "milter",
        configuration: str = "",
        table: Table | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="gate.", dir=mailgate.program.parents[2]))
        file = folder / "mailgate.toml"
        options = _toml({protocol: {**_SOCKET, **(table or {})}})
        file.write_text(f"{options}\n{configuration}\n")
        self._address = address
        self._log = folder / "log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [
                    *mailgate.command(protocol, *policies, **(settings or {})),
                    *("--listen", address, "--config", str(file)),
                ],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if not eventually(lambda: self.listens() or not self.alive(), _START) or not self.alive():
            self.kill()
            raise AssertionError(f"mailgate did not start:\n{self.log()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = self.stop()
        assert status == 0, self.log()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return int(self._address.rpartition(":")[2])

    def alive(self) -> bool:
        """Tell whether it runs."""
        return self._process.poll() is None

    def listens(self) -> bool:
        """Tell whether something listens at its address, without connecting to it."""
        scheme, _, place = self._address.rpartition(":")
        unix = scheme.endswith("unix")
        return listening_at(Path(place)) if unix else listening(int(place))

    def log(self) -> str:
        """Return what it has logged so far."""
        return self._log.read_text(errors="replace")

    def stop(self) -> int:
        """End it as a service manager does, and return its exit status."""
        self.tell(signal.SIGTERM)
        return self.wait(_STOP)

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.alive():
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Wait for its end and return its exit status; kill it where it stays."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"mailgate stayed:\n{self.log()}") from None

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._process.kill()
        self._process.wait()


def _toml(table: Table) -> str:
    """Return a table as TOML: its tables have a line each, and those in it stand in that line."""
    return "\n".join(f"{name} = {_written(value)}" for name, value in table.items())


def _written(value: Value) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_written(each)}' for name, each in value.items())} }}"
    return json.dumps(value)
