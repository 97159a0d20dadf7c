"""Debian's Dovecot, run privately: LMTP on a loopback port and a unix socket, logins on another.

Its programs look for each other below /usr. So it runs in a mount namespace of its own, where the
unpacked packages lie over the system's /usr.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.interop import debian
from tests.interop.processes import eventually, free_port, listening, listening_at
from tests.interop.relay import HOST
from tests.interop.server import Server
from tests.interop.smtpd import Delivered

DOMAIN = "example.test"

_USER, _GROUP = "nobody", "nogroup"
_CONFIGURATION = """\
protocols = lmtp
listen = 127.0.0.1
hostname = {host}
base_dir = {work}/run
state_dir = {work}/state
log_path = {work}/dovecot.log
ssl = no
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 1
first_valid_gid = 1
mail_location = maildir:{work}/mail/%n
mail_plugins = quota
auth_mechanisms = plain login
lmtp_rcpt_check_quota = no
plugin {{
  quota = maildir:User quota
  quota_grace = 0
}}
passdb {{
  driver = passwd-file
  args = username_format=%n {work}/logins
}}
userdb {{
  driver = passwd-file
  args = username_format=%n {work}/accounts
  default_fields = uid={user} gid={group} home={work}/mail/%n
}}
userdb {{
  driver = passwd-file
  args = username_format=%d {work}/domains
  default_fields = uid={user} gid={group} home={work}/mail/%n
}}
service lmtp {{
  inet_listener lmtp {{
    port = {port}
  }}
  unix_listener lmtp {{
    mode = 0666
  }}
}}
service auth {{
  unix_listener auth-client {{
    mode = 0666
  }}
}}
"""

# What LMTP delivery puts on top of a message, with Delivered-To for a single recipient.
_TRACE = re.compile(
    rb"Return-Path: <(.*)>\n"
    rb"(?:Delivered-To: .*\n)?"
    rb"Received: .*\n\tby mta\.example\.org with LMTP\n(?:[ \t].*\n)*"
)


class Trees(NamedTuple):
    """The unpacked packages: the programs that are always there, and LMTP."""

    core: Path
    lmtp: Path


def unpacked(folder: Path) -> Trees:
    """Unpack Dovecot's packages below a folder, once for many servers."""
    debian.require("apt-get", "dpkg", "unshare", "nsenter", "mount")
    debian.require_overlays()
    deb, core = debian.unpack("dovecot-core", folder)
    # doveadm needs what all the others need together.
    debian.install_libraries(deb, core / "usr/bin/doveadm", beside=core / "usr/lib/dovecot")
    _, lmtp = debian.unpack("dovecot-lmtpd", folder)
    return Trees(core, lmtp)


class Dovecot(Server):
    """A running Dovecot that takes mail for anybody at example.test, each in a maildir.

    Other domains are unknown at RCPT. The mailbox of full@example.test is over quota: that is
    said at the end of a message. One user may log in: ann, whose password is `secret`.
    """

    def __init__(self, trees: Trees, work: Path) -> None:
        super().__init__(work)
        self.port = free_port()
        self.socket = work / "run/lmtp"
        self.auth = work / "run/auth-client"
        self.mail = work / "mail"
        self._trees = trees

    @property
    def url(self) -> str:
        """The address as an upstream of mailgate."""
        return f"lmtp://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Return what Dovecot has logged so far."""
        file = self._work / "dovecot.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def listens(self) -> bool:
        """Tell whether something listens everywhere, without connecting to it."""
        return listening(self.port) and listening_at(self.socket) and listening_at(self.auth)

    def delivered(self, count: int, timeout: float = 15) -> list[Delivered]:
        """Wait until the maildirs hold this many messages, and return them.

        More than the count are an error, as far as they have arrived.
        """
        eventually(lambda: len(list(self._files())) >= count, timeout)
        files = list(self._files())
        assert len(files) == count, f"{len(files)} messages, not {count}:\n{self.log()}"
        return [_read(file) for file in files]

    def forget(self) -> None:
        """Drop the messages that have been delivered so far."""
        for file in self._files():
            file.unlink()

    def read(self, user: str) -> bytes:
        """Return the only message of a user's maildir, which is given to Dovecot, as it reads it."""
        folder = self.mail / user
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, _USER, _GROUP)
        fetched = subprocess.run(
            [
                *("nsenter", "--mount", "--target", str(self.pid), "/usr/bin/doveadm"),
                *("-c", str(self._work / "dovecot.conf")),
                *("fetch", "-u", f"{user}@{DOMAIN}", "text", "all"),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ).stdout
        return fetched.removeprefix(b"text:\n")

    def _files(self) -> Iterator[Path]:
        """Return the messages in the maildirs, which have the names of the local parts."""
        return self.mail.glob("*/new/*")

    def _prepare(self) -> None:
        """Fill the work folder: configuration, accounts and mailboxes."""
        self.mail.mkdir()
        shutil.chown(self.mail, _USER, _GROUP)
        # user:password:uid:gid:comment:home:shell:settings, see Dovecot's AuthDatabase/PasswdFile
        (self._work / "logins").write_text("ann:{PLAIN}secret\n")
        (self._work / "accounts").write_text("full:::::::userdb_quota_rule=*:bytes=1\n")
        (self._work / "domains").write_text(f"{DOMAIN}:::::::\n")
        (self._work / "dovecot.conf").write_text(
            _CONFIGURATION.format(
                host=HOST, user=_USER, group=_GROUP, work=self._work, port=self.port
            )
        )

    def _command(self) -> Sequence[str]:
        """Return the command that runs Dovecot in the foreground."""
        namespace = ("unshare", "--mount", "--propagation", "private", "--")
        return *namespace, "sh", "-ec", self._script()

    def _environment(self) -> Mapping[str, str]:
        """Return the environment of Dovecot, which makes its own."""
        return {}

    def _script(self) -> str:
        """Return a shell script that lays the packages over /usr and becomes Dovecot."""
        layers = f"lowerdir={self._trees.core}/usr:{self._trees.lmtp}/usr:/usr"
        return (
            f"mount -t overlay overlay -o {layers} /usr\n"
            f"exec /usr/sbin/dovecot -F -c {self._work}/dovecot.conf"
        )


def _read(file: Path) -> Delivered:
    """Split a file of a maildir into the delivery's trace and the message."""
    raw = file.read_bytes()
    trace = _TRACE.match(raw)
    assert trace is not None, raw[:600]
    recipient = f"{file.parents[1].name}@{DOMAIN}"
    return Delivered(trace[1].decode(), recipient, raw[trace.end() :])
