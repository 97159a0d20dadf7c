"""Debian's Postfix, run privately on loopback ports with a milter or before a filter.

Its configuration can name every folder and user, so it needs no namespace: the package is
unpacked aside and run from there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.interop import debian
from tests.interop.processes import free_port
from tests.interop.relay import HOST, Queued, Relay

# Accounts that every Debian has and nothing else uses stand in for postfix and postdrop. Postfix
# asks only that nobody shares them.
_OWNER = "news"
_GROUP = "uucp"

_QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming"),
    *("private", "saved", "trace", "maildrop", "public", "pid"),
)

# service, type, private, unprivileged, chroot, wakeup, maxproc, command: see master(5)
_MASTER = """\
pickup   unix  n - n 60    1 pickup
cleanup  unix  n - n -     0 cleanup
qmgr     unix  n - n 300   1 qmgr
tlsmgr   unix  - - n 1000? 1 tlsmgr
rewrite  unix  - - n -     - trivial-rewrite
bounce   unix  - - n -     0 bounce
defer    unix  - - n -     0 bounce
trace    unix  - - n -     0 bounce
flush    unix  n - n 1000? 0 flush
proxymap unix  - - n -     - proxymap
smtp     unix  - - n -     - smtp
showq    unix  n - n -     - showq
error    unix  - - n -     - error
retry    unix  - - n -     - error
discard  unix  - - n -     - discard
anvil    unix  - - n -     1 anvil
postlog  unix-dgram n - n - 1 postlogd
"""


def unpacked(folder: Path) -> Path:
    """Unpack the postfix package below a folder, once for many servers; return the tree."""
    debian.require("apt-get", "dpkg")
    deb, tree = debian.unpack("postfix", folder)
    libraries = tree / "usr/lib/postfix"
    debian.install_libraries(deb, libraries / "sbin/smtpd", beside=libraries)
    return tree


class Postfix(Relay):
    """A running Postfix, which asks a milter about SMTP and about local mail where there is one.

    ``milter`` is an address as mailgate takes it: ``unix:/path`` or ``127.0.0.1:port``. It need
    not listen: without its answer a message is deferred. ``settings`` are further lines of
    main.cf, ``sasl`` is a folder with SASL's configuration.
    """

    def __init__(
        self,
        tree: Path,
        work: Path,
        milter: str | None = None,
        *,
        sasl: Path | None = None,
        **settings: str,
    ) -> None:
        super().__init__(work)
        self._tree = tree
        self._milter = milter
        self._sasl = sasl
        self._libraries = tree / "usr/lib/postfix"
        self._settings = settings

    def submit(self, content: bytes, sender: str, *recipients: str) -> None:
        """Give a message to the `sendmail` command, as local programs do."""
        self._run("sendmail", "-i", "-f", sender, "--", *recipients, given=content)

    def queue(self) -> list[Queued]:
        """Return the messages that are in the queue."""
        lines = self._run("postqueue", "-j").splitlines()
        entries = [json.loads(line) for line in lines]
        return [Queued(e["queue_id"], e["queue_name"] == "hold") for e in entries]

    def log(self) -> str:
        """Return what Postfix has logged so far."""
        file = self._work / "mail.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def _prepare(self) -> None:
        """Fill the work folder: configuration, queues and the folder of caches."""
        configuration, queue, data = (self._work / n for n in ("conf", "queue", "data"))
        for folder in (configuration, queue, data):
            folder.mkdir()
        shutil.chown(data, _OWNER)
        for name in _QUEUES:
            (queue / name).mkdir()
            shutil.chown(queue / name, "root" if name == "pid" else _OWNER)
        for name, mode in (("maildrop", 0o1730), ("public", 0o2710)):
            shutil.chown(queue / name, _OWNER, _GROUP)
            (queue / name).chmod(mode)
        settings = {**dict(self._main()), **self._settings}
        main = configuration / "main.cf"
        main.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        os.utime(main, (0, 0))  # Postfix waits where it is younger than two seconds
        (configuration / "master.cf").write_text("\n".join((*self._smtpds(), _MASTER)))
        if self._sasl is not None:  # Debian's Postfix looks nowhere else
            (configuration / "sasl").symlink_to(self._sasl)
        (configuration / "dynamicmaps.cf").touch()
        (configuration / "postfix-files").touch()

    def _smtpds(self) -> Iterator[str]:
        """Return the lines of master.cf for what listens."""
        yield f"127.0.0.1:{self.port} inet n - n - - smtpd"

    def _main(self) -> Iterator[tuple[str, str]]:
        """Return the settings of main.cf: see postconf(5)."""
        yield "compatibility_level", "3.6"
        yield from self._places()
        yield "inet_interfaces", "127.0.0.1"
        yield "inet_protocols", "ipv4"
        yield "myhostname", HOST
        yield "mydestination", ""
        yield "mynetworks", "0.0.0.0/0, [::]/0"
        yield "relayhost", f"[127.0.0.1]:{self.sink.port}"
        yield "disable_dns_lookups", "yes"
        yield "smtp_host_lookup", "native"
        yield "smtp_tls_security_level", "none"
        yield "smtpd_relay_restrictions", "permit_mynetworks, reject"
        yield "smtpd_client_connection_count_limit", "0"
        yield "default_database_type", "hash"
        for name in ("alias_maps", "alias_database", "local_recipient_maps"):
            yield name, ""
        if self._milter is None:
            return
        milter = self._milter if self._milter.startswith("unix:") else f"inet:{self._milter}"
        yield "smtpd_milters", milter
        yield "non_smtpd_milters", milter
        yield "milter_default_action", "tempfail"

    def _places(self) -> Iterator[tuple[str, str]]:
        """Return the settings that name folders, users and the environment."""
        yield "queue_directory", str(self._work / "queue")
        yield "data_directory", str(self._work / "data")
        yield "meta_directory", str(self._work / "conf")
        yield "daemon_directory", str(self._libraries / "sbin")
        yield "command_directory", str(self._tree / "usr/sbin")
        yield "shlib_directory", str(self._libraries)
        yield "mail_owner", _OWNER
        yield "setgid_group", _GROUP
        yield "maillog_file", str(self._work / "mail.log")
        yield "maillog_file_prefixes", str(self._work)
        loader = f"LD_LIBRARY_PATH={self._libraries}"
        yield "import_environment", f"MAIL_CONFIG MAIL_LOGTAG TZ LANG=C {loader}"
        yield "export_environment", f"MAIL_CONFIG TZ LANG {loader}"

    def _command(self) -> Sequence[str]:
        """Return the command that runs Postfix in the foreground."""
        return str(self._libraries / "sbin/master"), "-c", str(self._work / "conf"), "-d"

    def _environment(self) -> Mapping[str, str]:
        """Return the environment of Postfix's programs."""
        return {
            "MAIL_CONFIG": str(self._work / "conf"),
            "LD_LIBRARY_PATH": str(self._libraries),
        }

    def _run(self, command: str, *arguments: str, given: bytes = b"") -> str:
        """Run one of Postfix's commands and return what it printed."""
        return subprocess.run(
            [str(self._tree / "usr/sbin" / command), *arguments],
            check=True,
            cwd=self._work,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **self._environment()},
            input=given,
            stdout=subprocess.PIPE,
            timeout=30,
        ).stdout.decode()


class BeforeQueue(Postfix):
    """A running Postfix that has a filter look at mail before it is in the queue.

    Its first smtpd, at ``port``, passes SMTP on to ``filter``, which gives it back to the
    second, at ``back``: see SMTPD_PROXY_README. The second one believes what a local client says
    with XFORWARD and XCLIENT, and alone refuses the recipient unknown@example.test.
    """

    def __init__(self, tree: Path, work: Path, filter: str, **settings: str) -> None:
        super().__init__(tree, work, sasl=None, **settings)
        self.back = free_port()
        self._filter = filter

    def _smtpds(self) -> Iterator[str]:
        """Return the lines of master.cf for what listens."""
        for line in super()._smtpds():
            yield f"{line} -o smtpd_proxy_filter={self._filter}"
        yield f"127.0.0.1:{self.back} inet n - n - - smtpd -o syslog_name=postfix/back"
        for name in ("smtpd_authorized_xforward_hosts", "smtpd_authorized_xclient_hosts"):
            yield f"  -o {name}=127.0.0.0/8"
        table = "inline:{{unknown@example.test = 550 5.1.1 not behind}}"
        yield f"  -o {{smtpd_recipient_restrictions = check_recipient_access {table}}}"
