"""The checkout, installed where a mail server's unprivileged user can run it.

An MTA runs its filters as a user of its own, which sees neither a checkout nor a Python below
somebody's home folder. So the checkout is installed, as an admin would, into a virtual
environment of Debian's own Python in a folder that everyone may read.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from tests.interop import debian

PYTHON = "/usr/bin/python3"
_CHECKOUT = Path(__file__).parents[2]
_POLICIES = ("tests/interop/policies", "examples")


class Installation:
    """mailgate in a new virtual environment, and policies beside it: the tests', the examples."""

    def __init__(self, folder: Path) -> None:
        debian.require("apt-get", PYTHON)
        environment = folder / "venv"
        if not _has_venv():
            debian.install("python3-venv")
        debian.run(PYTHON, "-m", "venv", str(environment))
        debian.run(str(environment / "bin/pip"), "install", "--quiet", str(_CHECKOUT))
        self.program = environment / "bin/mailgate"
        self._folder = folder
        for name in _POLICIES:
            copy = folder / Path(name).name
            shutil.copytree(_CHECKOUT / name, copy, ignore=shutil.ignore_patterns("__pycache__"))
            copy.chmod(0o755)

    def policy(self, name: str) -> str:
        """Return what mailgate takes for the policy of this name.

        NAME is a test policy's file without .py, or `examples/...`, and may end in `:object`.
        """
        file, colon, attribute = name.partition(":")
        folder = self._folder if file.startswith("examples/") else self._folder / "policies"
        return f"{folder / file}.py{colon}{attribute}"

    def run(self, *policies: str, **settings: str) -> str:
        """Return the command line of an OpenSMTPD filter with these policies."""
        return shlex.join(self.command("opensmtpd", *policies, **settings))

    def command(self, protocol: str, *policies: str, **settings: str) -> list[str]:
        """Return the command that serves these policies."""
        names = [self.policy(name) for name in policies]
        pairs = [f"--set={key}={value}" for key, value in settings.items()]
        return [str(self.program), "run", "--protocol", protocol, *pairs, *names]


def _has_venv() -> bool:
    """Tell whether Debian's Python can make a virtual environment with pip in it."""
    try:
        debian.run(PYTHON, "-c", "import ensurepip, venv")
    except subprocess.CalledProcessError:
        return False
    return True
