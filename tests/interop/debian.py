"""What the interop tests take from Debian: packages unpacked aside, and a few installed ones.

A mail server is downloaded and unpacked, never installed, so the machine gets no daemon, no
user and no spool. What a machine cannot give is told as Unavailable, in one sentence.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


class Unavailable(Exception):
    """Say in one sentence why this machine cannot run a test."""


def run(*argv: str, cwd: Path | None = None) -> str:
    """Run a command to its end and return what it printed.

    A failure raises CalledProcessError with the command's own words as a note: the default
    message has only the exit status.
    """
    try:
        return subprocess.run(
            argv,
            check=True,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            umask=0o022,
        ).stdout
    except subprocess.CalledProcessError as error:
        error.add_note((error.stdout + error.stderr).strip())
        raise


def require(*commands: str) -> None:
    """Refuse to go on without root and these commands."""
    if os.geteuid() != 0:
        raise Unavailable("a private mail server needs root: its processes change their user")
    for command in commands:
        if shutil.which(command) is None:
            raise Unavailable(f"the command '{command}' is not installed")


def require_overlays() -> None:
    """Refuse to go on where a mount namespace cannot be made, as in many containers."""
    script = (
        "mount -t tmpfs tmpfs /tmp && mkdir /tmp/upper /tmp/work && mount -t overlay overlay "
        "-o lowerdir=/etc,upperdir=/tmp/upper,workdir=/tmp/work /etc"
    )
    try:
        run("unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script)
    except subprocess.CalledProcessError as error:
        raise Unavailable(
            f"no overlay can be mounted in a private namespace here: {error.stderr.strip()}"
        ) from error


def require_host_name() -> None:
    """Refuse to go on where a process cannot be given a host name of its own."""
    try:
        run("unshare", "--uts", "--", "hostname", "mta.example.org")
    except subprocess.CalledProcessError as error:
        raise Unavailable(
            f"no host name can be set in a private namespace here: {error.stderr.strip()}"
        ) from error


def unpack(package: str, folder: Path) -> tuple[Path, Path]:
    """Download a package and unpack it; return its .deb and the unpacked tree."""
    debs, tree = folder / "debs", folder / package
    debs.mkdir(exist_ok=True)
    _apt("download", package, cwd=debs)
    deb = next(debs.glob(f"{package}_*.deb"))
    run("dpkg", "-x", str(deb), str(tree))
    return deb, tree


def install_libraries(deb: Path, program: Path, beside: Path | None = None) -> None:
    """Install the shared libraries that an unpacked program lacks; none starts anything.

    Those of its own package are looked for in the folder BESIDE.
    """
    if "not found" not in run("env", f"LD_LIBRARY_PATH={beside or ''}", "ldd", str(program)):
        return
    depends = run("dpkg-deb", "-f", str(deb), "Depends").split(", ")
    install(*(entry.split()[0] for entry in depends if entry.startswith("lib")))


def install(*packages: str) -> None:
    """Install packages of the distribution, without what they recommend."""
    _apt("-y", "install", "--no-install-recommends", *packages)


def _apt(*arguments: str, cwd: Path | None = None) -> None:
    """Run apt-get; where it fails, fetch the package lists and try once more.

    A clean machine has no lists yet, and old ones name files that the mirror has dropped.
    """
    settings: Sequence[str] = (
        "-q",
        "-o",
        "APT::Sandbox::User=root",  # the sandbox user cannot write into a folder of root
        "-o",
        "DPkg::Lock::Timeout=300",
    )
    command = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *settings)
    try:
        run(*command, *arguments, cwd=cwd)
    except subprocess.CalledProcessError:
        try:
            run(*command, "update")
            run(*command, *arguments, cwd=cwd)
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise Unavailable(f"apt-get {' '.join(arguments)} failed: {reason[0]}") from error
