"""What a mail server needs for TLS and for logins: a certificate, and a user with a password."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.interop import debian


class Certificate(NamedTuple):
    """A self-signed certificate and its key, each a file."""

    certificate: Path
    key: Path


def self_signed(folder: Path, name: str) -> Certificate:
    """Make a certificate for the host of this name, and for loopback."""
    if shutil.which("openssl") is None:
        debian.install("openssl")
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    debian.run(
        *("openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"),
        *("-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"),
        *("-keyout", str(made.key), "-out", str(made.certificate)),
    )
    return made


def users(folder: Path, realm: str, user: str, password: str) -> Path:
    """Make a folder with the SASL configuration of Postfix and Sendmail, who know one user."""
    debian.install("libsasl2-modules", "libsasl2-modules-db")
    deb, tree = debian.unpack("sasl2-bin", folder)
    program = tree / "usr/sbin/saslpasswd2"
    debian.install_libraries(deb, program)
    made = folder / "sasl"
    made.mkdir()
    database = made / "users"
    subprocess.run(
        [str(program), "-c", "-p", "-f", str(database), "-u", realm, user],
        check=True,
        input=password.encode(),
    )
    database.chmod(0o644)  # a mail server is not root when it looks a password up
    for server in ("smtpd", "Sendmail"):
        (made / f"{server}.conf").write_text(
            "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN\n"
            f"sasldb_path: {database}\n"
        )
    return made
