"""Debian's Sendmail, run privately on a loopback port with a milter.

Its sendmail.cf is made by the package's own m4 files and can name every folder, so the package
is unpacked aside and run from there. It runs in a UTS namespace of its own: Sendmail waits for a
minute at its start where the host name has no dot.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.interop import debian
from tests.interop.relay import HOST, Queued, Relay

_CONFIGURATION = """\
divert(0)dnl
include(`m4/cf.m4')dnl
OSTYPE(`linux')dnl
define(`confDOMAIN_NAME', `@host@')dnl
define(`QUEUE_DIR', `@work@/queue')dnl
define(`STATUS_FILE', `@work@/status')dnl
define(`confPID_FILE', `@work@/pid')dnl
define(`confSERVICE_SWITCH_FILE', `@work@/switch')dnl
define(`HELP_FILE', `@work@/help')dnl
undefine(`ALIAS_FILE')dnl
define(`confTRUSTED_USER', `root')dnl
define(`confTO_IDENT', `0')dnl
define(`confDONT_PROBE_INTERFACES', `True')dnl
define(`confDONT_BLAME_SENDMAIL', `GroupReadableKeyFile,GroupWritableDirPathSafe,TrustStickyBit')dnl
define(`confBAD_RCPT_THROTTLE', `0')dnl
define(`confREFUSE_LA', `0')dnl
define(`confQUEUE_LA', `1000')dnl
define(`confDELAY_LA', `0')dnl
define(`SMART_HOST', `relay:[127.0.0.1]')dnl
define(`RELAY_MAILER_ARGS', `TCP $h @sink@')dnl
FEATURE(`no_default_msa')dnl
FEATURE(`promiscuous_relay')dnl
FEATURE(`accept_unqualified_senders')dnl
FEATURE(`accept_unresolvable_domains')dnl
FEATURE(`nocanonify')dnl
DAEMON_OPTIONS(`Name=MTA, Family=inet, Addr=127.0.0.1, Port=@port@')dnl
INPUT_MAIL_FILTER(`gate', `S=@milter@, F=T')dnl
@settings@
MAILER(`smtp')dnl
"""


class Trees(NamedTuple):
    """The unpacked packages: the program, and the m4 files of its configuration."""

    program: Path
    m4: Path


def unpacked(folder: Path) -> Trees:
    """Unpack Sendmail's packages below a folder, once for many servers."""
    debian.require("apt-get", "dpkg", "unshare")
    debian.require_host_name()
    if shutil.which("m4") is None:
        debian.install("m4")
    deb, tree = debian.unpack("sendmail-bin", folder)
    _, rules = debian.unpack("sendmail-cf", folder)
    program = tree / "usr/libexec/sendmail/sendmail"
    debian.install_libraries(deb, program)
    return Trees(program, rules / "usr/share/sendmail/cf")


class Sendmail(Relay):
    """A running Sendmail that asks a milter at ``unix:/path`` or ``127.0.0.1:port``.

    ``settings`` are further lines of the m4 source. Without an answer of the milter a message is
    deferred; Sendmail waits for each for 10 s, its default.
    """

    def __init__(self, trees: Trees, work: Path, milter: str, *settings: str) -> None:
        super().__init__(work)
        self._trees = trees
        self._milter = milter
        self._settings = settings

    def queue(self) -> list[Queued]:
        """Return the messages that are in the queue."""
        files = [*self._queue.glob("qf*"), *self._queue.glob("hf*")]
        return [Queued(file.name[2:], file.name.startswith("hf")) for file in files]

    def reason(self, message: Queued) -> str:
        """Return why a message is quarantined: the q line of its queue file."""
        text = (self._queue / f"hf{message.id}").read_text(errors="replace")
        found = re.search("(?m)^q(.*)$", text)
        assert found is not None, text
        return found[1]

    def log(self) -> str:
        """Return the SMTP dialogues so far: Sendmail itself logs to syslog alone."""
        file = self._work / "traffic.log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def _queue(self) -> Path:
        return self._work / "queue"

    def _prepare(self) -> None:
        """Fill the work folder: configuration and queue."""
        self._queue.mkdir(mode=0o700)
        (self._work / "switch").write_text("hosts files\naliases files\n")
        (self._work / "help").touch()
        source = self._work / "sendmail.mc"
        source.write_text(self._source())
        rules = self._trees.m4
        made = debian.run("m4", f"-D_CF_DIR_={rules}/", f"-I{rules}", str(source))
        configuration = self._work / "sendmail.cf"
        configuration.write_text(made)
        configuration.chmod(0o644)

    def _source(self) -> str:
        """Return the m4 source of sendmail.cf."""
        values = {
            "host": HOST,
            "work": str(self._work),
            "port": str(self.port),
            "sink": str(self.sink.port),
            "milter": _socket(self._milter),
            "settings": "\n".join(self._settings),
        }
        return re.sub("@([a-z]+)@", lambda name: values[name[1]], _CONFIGURATION)

    def _command(self) -> Sequence[str]:
        """Return the command that runs Sendmail in the foreground."""
        daemon = (
            *(str(self._trees.program), "-C", str(self._work / "sendmail.cf"), "-bD", "-q1m"),
            *("-X", str(self._work / "traffic.log")),
        )
        named = f'hostname {HOST} && exec "$@"'
        return "unshare", "--uts", "sh", "-c", named, "sh", *daemon

    def _environment(self) -> Mapping[str, str]:
        """Return the environment of Sendmail."""
        return {"LC_ALL": "C"}


def _socket(milter: str) -> str:
    """Return a milter's address as Sendmail writes it: local:PATH, or inet:PORT@HOST."""
    if milter.startswith("unix:"):
        return milter.replace("unix:", "local:", 1)
    host, _, port = milter.rpartition(":")
    return f"inet:{port}@{host}"
