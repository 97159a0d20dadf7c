"""What the peers are made of: compiled programs, Debian packages, packages of PyPI and npm.

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


def environment(folder: Path, *projects: str, module: str = "sys") -> Path | None:
    """Make a virtual environment with projects of the package index; return its Python.

    None too where it cannot import the module: old projects do not run on a new Python.
    """
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", *projects]
    importing = [str(python), "-c", f"import {module}"]
    if _runs([sys.executable, "-m", "venv", str(folder)]) and _runs(install) and _runs(importing):
        return python
    return None


def unpacked(folder: Path, package: str, program: str, beside: str) -> Path | None:
    """Unpack a Debian package, which starts nothing; return the tree.

    Libraries that a program of it lacks are installed; its own are in the folder BESIDE.
    """
    folder.mkdir()
    # The user that apt-get downloads as may not write into a private folder.
    download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
    if not _runs(download, folder) and not (_updated() and _runs(download, folder)):
        return None
    deb, tree = next(folder.glob("*.deb")), folder / "tree"
    if not _runs(["dpkg", "-x", str(deb), str(tree)]):
        return None
    linked = _output(["env", f"LD_LIBRARY_PATH={tree / beside}", "ldd", str(tree / program)])
    depends = _output(["dpkg-deb", "-f", str(deb), "Depends"]).split(", ")
    lacking = [entry.split()[0] for entry in depends if entry.startswith("lib")]
    return tree if "not found" not in linked or _installed(lacking) else None


def node_modules(folder: Path, package: str, day: str) -> Path | None:
    """Install a package of npm as it was on a day, with what it needed then; return the folder.

    The newest of everything do not always fit each other.
    """
    folder.mkdir()
    install = ["npm", "install", "--no-audit", "--no-fund", "--omit=dev", "--omit=optional"]
    if _runs([*install, "--prefix", str(folder), f"--before={day}", package], folder):
        return folder / "node_modules"
    return None


def _installed(packages: Sequence[str]) -> bool:
    """Install Debian packages; only root can."""
    install = ["apt-get", "-qy", "install", "--no-install-recommends", *packages]
    if os.geteuid() != 0:
        return False
    return _runs(install) or (_updated() and _runs(install))


def _updated() -> bool:
    """Fetch the lists of Debian packages."""
    return _runs(["apt-get", "update"])


def _runs(argv: Sequence[str], folder: Path | None = None) -> bool:
    """Tell whether a command is there and succeeds."""
    if shutil.which(argv[0]) is None:
        return False
    return subprocess.run(argv, check=False, capture_output=True, cwd=folder).returncode == 0


def _output(argv: Sequence[str]) -> str:
    """Return what a command prints."""
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout
