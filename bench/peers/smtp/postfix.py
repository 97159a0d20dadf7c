"""Start a Postfix with a before-queue proxy: postfix.py TREE PORT UPSTREAM_PORT.

It runs from the unpacked package TREE, with configuration and queue in the current folder;
see SMTPD_PROXY_README. Of its services there are those only that smtpd asks: it has no queue.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# Accounts that every Debian has and nothing else uses stand in for postfix and postdrop.
_OWNER = "news"
_GROUP = "uucp"

_SIZE = 100 * 1024 * 1024  # octets a message may have; a tenth of that by default

# service, type, private, unprivileged, chroot, wakeup, maxproc, command: see master(5)
_MASTER = """\
127.0.0.1:{port} inet n - n - 0 smtpd
  -o smtpd_proxy_filter=127.0.0.1:{upstream}
rewrite  unix  - - n - - trivial-rewrite
proxymap unix  - - n - - proxymap
anvil    unix  - - n - 1 anvil
postlog  unix-dgram n - n - 1 postlogd
"""


def settings(folder: Path, tree: Path, libraries: Path) -> Iterator[tuple[str, str]]:
    """Return the lines of main.cf: see postconf(5)."""
    yield "compatibility_level", "3.6"
    yield "queue_directory", str(folder / "queue")
    yield "data_directory", str(folder / "data")
    yield "meta_directory", str(folder / "conf")
    yield "daemon_directory", str(libraries / "sbin")
    yield "command_directory", str(tree / "usr/sbin")
    yield "shlib_directory", str(libraries)
    yield "mail_owner", _OWNER
    yield "setgid_group", _GROUP
    yield "maillog_file", str(folder / "mail.log")
    yield "maillog_file_prefixes", str(folder)
    yield "import_environment", f"MAIL_CONFIG MAIL_LOGTAG LD_LIBRARY_PATH={libraries}"
    yield "export_environment", f"MAIL_CONFIG LD_LIBRARY_PATH={libraries}"
    yield "inet_protocols", "ipv4"
    yield "myhostname", "mta.example"
    yield "mydestination", ""
    yield "mynetworks", "127.0.0.0/8"
    yield "smtpd_relay_restrictions", "permit_mynetworks, reject"
    yield "smtpd_peername_lookup", "no"
    yield "smtpd_client_connection_count_limit", "0"
    yield "message_size_limit", str(_SIZE)
    yield "local_recipient_maps", ""
    yield "alias_maps", ""


def prepare(folder: Path, tree: Path, libraries: Path, ports: list[str]) -> None:
    """Make configuration and queue."""
    folder.chmod(0o755)
    configuration, queue, data = (folder / name for name in ("conf", "queue", "data"))
    for made in (configuration, queue, data, *(queue / n for n in ("private", "public", "pid"))):
        made.mkdir()
    for owned in (data, queue / "private", queue / "public"):
        shutil.chown(owned, _OWNER)
    port, upstream = ports
    lines = [f"{name} = {value}\n" for name, value in settings(folder, tree, libraries)]
    main = configuration / "main.cf"
    main.write_text("".join(lines))
    os.utime(main, (0, 0))  # Postfix waits where it is younger than two seconds
    (configuration / "master.cf").write_text(_MASTER.format(port=port, upstream=upstream))
    (configuration / "dynamicmaps.cf").touch()


if __name__ == "__main__":
    tree, here = Path(sys.argv[1]), Path.cwd()
    libraries = tree / "usr/lib/postfix"
    prepare(here, tree, libraries, sys.argv[2:])
    variables = {"MAIL_CONFIG": str(here / "conf"), "LD_LIBRARY_PATH": str(libraries)}
    master = str(libraries / "sbin/master")
    os.execve(master, [master, "-c", str(here / "conf"), "-d"], {**os.environ, **variables})
