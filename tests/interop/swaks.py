"""Debian's swaks: an SMTP and LMTP client that is not ours, with TLS and logins."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.interop import debian

# How swaks ends: see EXIT CODES in swaks(1).
SENT = 0
LOGIN_REFUSED = 28


class Talk(NamedTuple):
    """One session: the exit status, and its lines as swaks prints them."""

    status: int
    transcript: str

    def replies(self, code: int) -> list[str]:
        """Return the texts of the replies with this code."""
        return re.findall(rf"(?m)^<\S+ +{code} (.*)$", self.transcript)


class Swaks:
    """The unpacked program."""

    def __init__(self, folder: Path) -> None:
        debian.require("apt-get", "dpkg")
        debian.install("libnet-ssleay-perl")
        _, tree = debian.unpack("swaks", folder)
        self._program = tree / "usr/bin/swaks"

    def send(
        self,
        port: int,
        content: bytes,
        *options: str,
        sender: str = "alice@example.org",
        to: str = "bob@example.test",
    ) -> Talk:
        """Send a message to recipients, separated by commas, with further options of swaks(1)."""
        ended = subprocess.run(
            [
                *(str(self._program), "--server", "127.0.0.1", "--port", str(port), *options),
                *("--ehlo", "client.example.org", "--from", sender, "--to", to),
                *("--data", "-", "--no-data-fixup"),
            ],
            check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
            input=re.sub(rb"(?m)^\.", b"..", content) + b".",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        return Talk(ended.returncode, ended.stdout.decode(errors="replace"))
