"""Start Haraka as a proxy: haraka.py NODE_MODULES forward|proxy PORT UPSTREAM_PORT.

Its plugin queue/smtp_forward hands a message on when the whole of it is there;
queue/smtp_proxy passes each command on as it comes. The configuration is made in the current
folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_SIZE = 100 * 1024 * 1024  # octets a message may have; a quarter of that by default


def configure(folder: Path, plugin: str, port: str, upstream: str) -> None:
    """Write what differs from the configuration that Haraka makes for a new installation."""
    files = {
        "smtp.ini": f"listen=127.0.0.1:{port}\nnodes=0\ndaemonize=false\n",
        "plugins": f"rcpt_to.in_host_list\nqueue/{plugin}\n",
        "host_list": "y.example\n",
        "log.ini": "[main]\nlevel=ERROR\n",
        f"{plugin}.ini": f"host=127.0.0.1\nport={upstream}\nenable_tls=false\n",
    }
    connection = folder / "connection.ini"
    limits = connection.read_text()
    files[connection.name] = re.sub(r"(?m)^bytes=.*$", f"bytes={_SIZE}", limits)
    for name, text in files.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    modules, kind, port, upstream = sys.argv[1:]
    command = ["node", f"{modules}/Haraka/bin/haraka"]
    here = Path.cwd()
    subprocess.run([*command, "-i", str(here)], check=True, stdout=subprocess.DEVNULL)
    configure(here / "config", f"smtp_{kind}", port, upstream)
    os.execvp("node", [*command, "-c", str(here)])
