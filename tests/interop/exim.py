"""Debian's Exim, run privately on a loopback port, with a sink to deliver to.

Its configuration can name every folder, but the name of its user is built in. So it is unpacked
aside and runs in a mount namespace of its own where that user exists, as that user from its start.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tests.interop import debian
from tests.interop.credentials import Certificate
from tests.interop.processes import free_port
from tests.interop.relay import HOST, Queued, Relay

_USER = 64994

# Received is written as the other relays write it: `Relay.arrived` takes it off.
_CONFIGURATION = """\
primary_hostname = @host@
exim_path = @program@
spool_directory = @work@/spool
log_file_path = @work@/log/%slog
pid_file_path = @work@/spool/pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = @ports@
deliver_drop_privilege
keep_environment =
host_lookup =
rfc1413_hosts =
smtp_accept_max = 250
smtp_accept_queue_per_connection = 0
message_size_limit = 64M
dsn_advertise_hosts = *
acl_smtp_rcpt = rcpt
acl_smtp_data = data
log_selector = +proxy +smtp_protocol_error +smtp_syntax_error
received_header_text = Received: from $sender_helo_name ([$sender_host_address]:$sender_host_port)\
\\n\\tby $primary_hostname (Exim $version_number)\\n\\twith $received_protocol id $message_exim_id
@settings@

begin acl
rcpt:
  deny   recipients = lines@steered.example
         message    = 5.1.1 first line of three\\nsecond line\\nlast line
  defer  recipients = defer@steered.example
         message    = 4.3.0 come back later
  defer  recipients = gone@steered.example
         message    = 421 4.3.2 gone
  drop   recipients = drop@steered.example
         message    = 5.3.2 going away
  accept control    = dkim_disable_verify
data:
  deny   condition  = ${if eq{$h_X-Steer:}{reject}}
         message    = 5.7.1 content rejected\\nsecond line of the reason
  defer  condition  = ${if eq{$h_X-Steer:}{defer}}
         message    = 4.7.1 content deferred
  drop   condition  = ${if eq{$h_X-Steer:}{drop}}
         message    = 5.3.2 going away
  accept

begin routers
everything:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = sink

begin transports
sink:
  driver = smtp
  port = @sink@

begin retry
* * F,1h,1m

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{{eq{$auth2}{ann}}{eq{$auth3}{secret}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if and{{eq{$auth1}{ann}}{eq{$auth2}{secret}}}}
  server_set_id = $auth1
"""

_SCRIPT = """\
for file in passwd group
do
    sed '/^Debian-exim:/d' /etc/$file > $file
done
echo "Debian-exim:x:{user}:{user}::/nonexistent:/usr/sbin/nologin" >> passwd
echo "Debian-exim:x:{user}:" >> group
mount --bind passwd /etc/passwd
mount --bind group /etc/group
exec setpriv --reuid={user} --regid={user} --clear-groups "$@"
"""


def unpacked(folder: Path, build: Literal["light", "heavy"] = "heavy") -> Path:
    """Unpack a build of Exim below a folder, once for many servers; return the program.

    Only the heavy one knows the PROXY protocol.
    """
    debian.require("apt-get", "dpkg", "unshare", "nsenter", "mount", "setpriv")
    debian.require_overlays()
    deb, tree = debian.unpack(f"exim4-daemon-{build}", folder)
    program = tree / "usr/sbin/exim4"
    debian.install_libraries(deb, program)
    program.chmod(0o755)  # without set-user-id it stays the user that it is started as
    return program


class Exim(Relay):
    """A running Exim that knows one user: ann, whose password is `secret`.

    The recipients lines@, defer@, gone@ (421) and drop@ (which hangs up) of steered.example are
    refused, and so is a message with `X-Steer: reject`, `defer` or `drop`. ``settings`` are
    further main options; with a certificate STARTTLS is offered.
    """

    def __init__(
        self, program: Path, work: Path, *, certificate: Certificate | None = None, **settings: str
    ) -> None:
        super().__init__(work)
        self.tls_port = free_port()
        self._program = program
        self._certificate = certificate
        self._settings = settings

    def queue(self) -> list[Queued]:
        """Return the messages that are in the queue."""
        files = (self._work / "spool/input").glob("**/*-H")
        return [Queued(file.name.removesuffix("-H"), held=False) for file in files]

    def deliver(self) -> None:
        """Deliver what is in the queue: Exim looks once by itself, when it has taken a message."""
        debian.run(
            *("nsenter", "--mount", "--target", str(self.pid), "--"),
            *("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"),
            *(str(self._program), "-C", str(self._work / "exim.conf"), "-qf"),
        )

    def log(self) -> str:
        """Return what Exim has logged so far."""
        files = sorted((self._work / "log").glob("*log"))
        return "".join(file.read_text(errors="replace") for file in files)

    def _prepare(self) -> None:
        """Fill the work folder: configuration, queue and log."""
        for name in ("spool", "log"):
            folder = self._work / name
            folder.mkdir()
            shutil.chown(folder, _USER, _USER)
        (self._work / "exim.conf").write_text(self._configuration())

    def _configuration(self) -> str:
        """Return exim.conf: any mail for anybody goes to the sink."""
        settings = {**self._tls(), **self._settings}
        values = {
            "host": HOST,
            "program": str(self._program),
            "work": str(self._work),
            "ports": f"{self.port} : {self.tls_port}",
            "sink": str(self.sink.port),
            "settings": "\n".join(f"{name} = {value}" for name, value in settings.items()),
        }
        return re.sub("@([a-z]+)@", lambda name: values[name[1]], _CONFIGURATION)

    def _tls(self) -> dict[str, str]:
        """Return the options of TLS; Exim reads the key as its own user."""
        if self._certificate is None:
            return {"tls_advertise_hosts": ""}
        key = self._work / "key.pem"
        shutil.copyfile(self._certificate.key, key)
        shutil.chown(key, _USER)
        key.chmod(0o600)
        return {
            "tls_on_connect_ports": str(self.tls_port),
            "tls_certificate": str(self._certificate.certificate),
            "tls_privatekey": str(key),
        }

    def _command(self) -> Sequence[str]:
        """Return the command that runs Exim in the foreground."""
        daemon = (str(self._program), "-C", str(self._work / "exim.conf"), "-bdf")
        namespace = ("unshare", "--mount", "--propagation", "private", "--")
        return *namespace, "sh", "-ec", _SCRIPT.format(user=_USER), "sh", *daemon

    def _environment(self) -> Mapping[str, str]:
        """Return the environment of Exim, which keeps none of it."""
        return {}
