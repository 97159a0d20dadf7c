"""Debian's OpenSMTPD, run privately on a loopback port with filters attached.

smtpd runs in a mount namespace of its own, where /etc, /var, /usr and /run are overlays: its
users, spool, sockets and configuration exist only there and vanish with it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.interop import debian
from tests.interop.processes import below, eventually, free_port, listening, running

_USERS = {"opensmtpd": 64991, "opensmtpq": 64992, "vmail": 64993}
_OVERLAID = ("/etc", "/var", "/usr", "/run")
_START = 15.0  # seconds until the port must listen
_SETTLE = 0.3  # seconds smtpd must have survived: a filter that fails at once ends it
_STOP = 10.0  # seconds until smtpd must be gone, and then its filters

# smtpd's own trace on a delivered message: what the delivery agent puts on top, and the field
# that smtpd puts before the client's first line (a filter may put its own above that one).
_DELIVERY = re.compile(rb"(?:Return-Path: <(.*)>\n)?Delivered-To: (.*)\n")
_RECEIVED = re.compile(rb"(?m)^Received: .*\n\tby mx\.test \(OpenSMTPD\).*\n(?:[ \t].*\n)*")


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message as it lies in the maildir, smtpd's trace taken off.

    The content has line feeds alone as line ends, as a maildir has.
    """

    sender: str
    recipient: str
    content: bytes

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Split a maildir file into smtpd's trace and the message."""
        trace = _DELIVERY.match(raw)
        assert trace is not None, raw[:200]
        content, fields = _RECEIVED.subn(b"", raw[trace.end() :], count=1)
        assert fields == 1, raw[:600]
        sender = trace[1] or b""  # the null sender is not told
        return cls(sender.decode(), trace[2].decode(), content)


def unpacked(folder: Path) -> Path:
    """Unpack the opensmtpd package below a folder, once for many smtpds; return the tree."""
    debian.require("apt-get", "dpkg", "unshare", "mount")
    debian.require_overlays()
    deb, tree = debian.unpack("opensmtpd", folder)
    debian.install_libraries(deb, tree / "usr/sbin/smtpd")
    return tree


class OpenSMTPD:
    """A running smtpd with a chain of filters, each a command line.

    The filters run as smtpd's unprivileged user: program, interpreter and files must be
    reachable by everyone. The work folder must not be below an overlaid one. ``options`` are
    further ones of smtpd(8).
    """

    def __init__(self, tree: Path, work: Path, *filters: str, options: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.maildir = work / "maildir"
        self._tree = tree
        self._work = work
        self._filters = filters
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start smtpd and wait until it listens, without connecting to it.

        Its first banner comes when every filter has registered.
        """
        self._prepare()
        with open(self._work / "smtpd.log", "wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "-m", "--propagation", "private", "--", "sh", "-ec", self._script()],
                cwd=self._work,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o022,
            )
        up = eventually(lambda: listening(self.port) or not self.alive(), _START)
        time.sleep(_SETTLE)
        if not up or not self.alive():
            self.stop()
            raise AssertionError(f"smtpd did not start:\n{self.log()}")

    def stop(self) -> list[int]:
        """End smtpd; return the filters that outlived it and had to be killed.

        smtpd sends its filters no signal: they leave at the end of their input.
        """
        assert self._process is not None
        filters = self.filters()
        if self.alive():
            self._process.terminate()
            try:
                self._process.wait(_STOP)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        eventually(lambda: not any(map(running, filters)), _STOP)
        left = [pid for pid in filters if running(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return left

    def alive(self) -> bool:
        """Tell whether smtpd runs: one bad line of a filter, or its exit, ends it."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return smtpd's log so far; it holds what the filters wrote to stderr."""
        return (self._work / "smtpd.log").read_text(errors="replace")

    def filters(self) -> list[int]:
        """Return the ids of the filters' processes."""
        assert self._process is not None
        return [p.pid for p in below(self._process.pid) if p.name not in ("smtpd", "sh")]

    def delivered(self, count: int, timeout: float = 15) -> list[Delivered]:
        """Wait until the maildir holds this many messages, and return them.

        A message lands there a moment after its 250. More than the count are an error, as
        far as they have arrived.
        """
        new = self.maildir / "new"
        eventually(lambda: len(list(new.glob("*"))) >= count, timeout)
        files = list(new.glob("*"))
        assert len(files) == count, f"{len(files)} messages, not {count}:\n{self.log()}"
        return [Delivered.read(file.read_bytes()) for file in files]

    def forget(self) -> None:
        """Drop the messages that have been delivered so far."""
        for file in (self.maildir / "new").glob("*"):
            file.unlink()

    def _prepare(self) -> None:
        """Fill the work folder."""
        self.maildir.mkdir(parents=True)
        self._work.chmod(0o755)
        os.chown(self.maildir, _USERS["vmail"], _USERS["vmail"])
        configuration = self._work / "smtpd.conf"
        configuration.write_text(self._configuration())
        configuration.chmod(0o600)

    def _configuration(self) -> str:
        """Return smtpd.conf: any mail for anybody goes to the one maildir."""
        names = [f"filter{n}" for n, _ in enumerate(self._filters)]
        lines = ['table everybody { "@" = "vmail" }']
        for name, command in zip(names, self._filters, strict=True):
            lines.append(f"filter {name} proc-exec {_quoted(command)}")
        chain = "".join(names)
        if len(names) > 1:
            chain = "every"
            lines.append(f"filter every chain {{ {', '.join(names)} }}")
        attached = f" filter {chain}" if chain else ""
        maildir = _quoted(str(self.maildir))
        lines += [
            f"listen on 127.0.0.1 port {self.port} hostname mx.test{attached}",
            f"action deliver maildir {maildir} virtual <everybody>",
            "match from any for any action deliver",
        ]
        return "\n".join(lines) + "\n"

    def _script(self) -> str:
        """Return a shell script that makes the namespace smtpd's home and becomes smtpd."""
        users = [
            f"{name}:x:{number}:{number}::/var/lib/opensmtpd/empty:/usr/sbin/nologin\n"
            for name, number in _USERS.items()
        ]
        groups = [f"{name}:x:{number}:\n" for name, number in _USERS.items()]
        steps = (
            *self._mounts(),
            f"sed -E -i '/^({'|'.join(_USERS)}):/d' /etc/passwd /etc/group",
            f"printf %s {shlex.quote(''.join(users))} >> /etc/passwd",
            f"printf %s {shlex.quote(''.join(groups))} >> /etc/group",
            "echo mx.test > /etc/mailname",
            "mkdir -p /var/lib/opensmtpd/empty /var/spool/smtpd",
            "rm -rf /var/spool/smtpd/* /run/smtpd.sock",
            "chown 0:0 /var/lib/opensmtpd/empty /var/spool/smtpd",
            "chmod 755 /var/lib/opensmtpd/empty",
            "chmod 711 /var/spool/smtpd",
            "chgrp opensmtpq /usr/sbin/smtpctl",
            "chmod 2755 /usr/sbin/smtpctl",
            f"exec /usr/sbin/smtpd -d -v -f {self._work}/smtpd.conf {shlex.join(self._options)}",
        )
        return "\n".join(steps)

    def _mounts(self) -> Iterator[str]:
        """Return the lines that lay overlays over the system, the package's files in them."""
        layers = self._work / "layers"
        yield f"mkdir {layers}"
        yield f"mount -t tmpfs -o mode=755 tmpfs {layers}"
        for folder in _OVERLAID:
            upper, work = f"{layers}{folder}.upper", f"{layers}{folder}.work"
            ours = f"{self._tree}{folder}"
            lower = f"{ours}:{folder}" if Path(ours).is_dir() else folder
            options = f"lowerdir={lower},upperdir={upper},workdir={work}"
            yield f"mkdir {upper} {work}"
            yield f"mount -t overlay overlay -o {options} {folder}"


def _quoted(value: str) -> str:
    """Quote a string for smtpd.conf, where a backslash escapes nothing but a quote."""
    return '"' + value.replace('"', '\\"') + '"'
