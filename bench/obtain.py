"""What the peers are made of: compiled programs, Debian packages, packages of the index.

Whatever cannot be had is left out of the tables; a line on stderr says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

MAILGATE = str(Path(sysconfig.get_path("scripts"), "mailgate"))
"""The command of this environment."""


def compiled(
    program: Path, sources: Sequence[Path], libraries: Sequence[str], packages: Sequence[str]
) -> bool:
    """Compile a C program, installing Debian packages first where that fails."""
    options = [f"-l{library}" for library in libraries]
    compiler = ["cc", "-O2", "-o", str(program), *map(str, sources), *options]
    return _runs(compiler) or (_installed(["gcc", "libc6-dev", *packages]) and _runs(compiler))


def imports(python: Path, module: str, package: str) -> bool:
    """Tell whether a Python has a module, installing its Debian package where it has not."""
    importing = [str(python), "-c", f"import {module}"]
    return _runs(importing) or (_installed([package]) and _runs(importing))


def environment(folder: Path, *projects: str) -> Path | None:
    """Make a virtual environment with projects of the package index; return its Python."""
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", *projects]
    if _runs([sys.executable, "-m", "venv", str(folder)]) and _runs(install):
        return python
    return None


def _installed(packages: Sequence[str]) -> bool:
    """Install Debian packages; only root can."""
    install = ["apt-get", "-qy", "install", "--no-install-recommends", *packages]
    if os.geteuid() != 0:
        return False
    return _runs(install) or (_runs(["apt-get", "update"]) and _runs(install))


def _runs(argv: Sequence[str]) -> bool:
    """Tell whether a command is there and succeeds."""
    if shutil.which(argv[0]) is None:
        return False
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0
