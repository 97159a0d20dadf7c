"""What a mail server has to be told of a milter: lines of its own configuration.

None is over 80 columns, unless an address is long.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping

from mailgate.adapter import Site, Snippet
from mailgate.errors import ConfigError
from mailgate.listen import Address, Fd, Inet, Unix, parse
from mailgate_milter.options import PATIENCE, MilterOptions

# -- Postfix -------------------------------------------------------------------------------------

POSTFIX_QUEUE = "/var/spool/postfix"
"""Postfix's queue_directory, where nothing else is said: postconf(5)."""


def postfix(options: MilterOptions, site: Site) -> Iterator[str]:
    """Yield lines of main.cf: postconf(5), MILTER_README."""
    defaults = site.defaults
    address, others = _addresses(options)
    yield "# Add to /etc/postfix/main.cf, then: postfix reload"
    if isinstance(address, Inet):
        yield f"smtpd_milters = inet:{Inet(_host(address), address.port)}"
    else:
        yield from _below(address.path, site.queue_directory or POSTFIX_QUEUE)
        yield from _rights(int(options.mode, 8), options.group)
    yield "# Mail of local programs, too; for SMTP alone leave this out."
    yield "non_smtpd_milters = $smtpd_milters"
    yield "# While mailgate does not answer, mail waits; nothing passes unseen."
    yield "milter_default_action = tempfail"
    yield "milter_protocol = 6"
    yield f"# Longer than mailgate may take: [defaults] timeout = {defaults.timeout:g},"
    yield f"# message_timeout = {defaults.message_timeout:g}."
    yield "milter_connect_timeout = 30s"
    yield f"milter_command_timeout = {_longer(defaults.timeout, 10, 30)}s"
    yield f"milter_content_timeout = {_longer(defaults.message_timeout, 60, 300)}s"
    yield from _enough("#", others)


def _below(path: str, queue: str) -> Iterator[str]:
    """Yield a unix socket: a chrooted process takes even an absolute path from the queue."""
    relative = os.path.relpath(path, queue)
    if not relative.startswith(".."):
        yield f"# The path begins in {queue}:"
        yield "# smtpd and cleanup are there, chrooted or not."
        yield f"smtpd_milters = unix:{relative}"
        return
    yield f"# The socket is outside {queue}:"
    yield "# what connects to it must not be chrooted."
    yield '# The column "chroot" of master.cf has to be n; Debian has y:'
    yield "#   postconf -F smtp/inet/chroot=n cleanup/unix/chroot=n"
    yield f"smtpd_milters = unix:{path}"


def _rights(mode: int, group: str | None) -> Iterator[str]:
    """Yield what lets the user postfix connect to a unix socket."""
    if mode & 0o002 or (mode & 0o020 and group == "postfix"):
        return
    if not mode & 0o020:
        yield f'# Its mode {mode:04o} keeps Postfix out: write [milter] mode = "0660".'
    if group is None:
        yield '# Postfix connects as the user postfix: write [milter] group = "postfix",'
        yield "# or, where systemd makes the socket, SocketGroup=postfix."
    elif group != "postfix":
        yield "# Postfix connects as the user postfix:"
        yield f"#   usermod --append --groups {group} postfix"


# -- Sendmail ------------------------------------------------------------------------------------


def sendmail(options: MilterOptions, site: Site) -> Iterator[str]:
    """Yield lines of sendmail.mc: libmilter/README of Sendmail.

    m4 drops the blanks before an argument, a line end among them: so a long line is two.
    """
    defaults = site.defaults
    address, others = _addresses(options)
    yield "dnl Add to /etc/mail/sendmail.mc, then: make -C /etc/mail, and restart Sendmail"
    yield "dnl F=T: while mailgate does not answer, mail waits; nothing passes unseen."
    patience = PATIENCE["sendmail"]
    read = _longer(patience, 2, 10)
    if options.mta == "sendmail":
        yield f'dnl R: [milter] mta = "sendmail" has mailgate answer within {patience:g} seconds.'
    else:
        yield f"dnl R: longer than mailgate may take, [defaults] timeout = {defaults.timeout:g}."
        yield f'dnl With [milter] mta = "sendmail" it answers within {patience:g} seconds:'
        yield f"dnl R:{read}s is enough."
        read = _longer(defaults.timeout, 10, read)
    yield f"dnl E: longer than [defaults] message_timeout = {defaults.message_timeout:g}."
    end = _span(_longer(defaults.message_timeout, 60, 300))
    yield "INPUT_MAIL_FILTER(`mailgate',"
    yield f"    `S={_socket(address)}, F=T, T=C:30s;S:10s;R:{read}s;E:{end}')dnl"
    yield "dnl Filters are asked in the order of their lines; to have another order,"
    yield "dnl write after all of them:"
    yield "dnl define(`confINPUT_MAIL_FILTERS', `mailgate, other')dnl"
    yield from _enough("dnl", others)


def _socket(address: Inet | Unix) -> str:
    if isinstance(address, Unix):
        return f"local:{address.path}"
    host = _host(address)  # brackets: Sendmail connects to nothing
    return f"{'inet6' if ':' in host else 'inet'}:{address.port}@{host}"


def _span(seconds: int) -> str:
    return f"{seconds}s" if seconds % 60 else f"{seconds // 60}m"


# -- both ----------------------------------------------------------------------------------------


def _addresses(options: MilterOptions) -> tuple[Inet | Unix, list[Address]]:
    """Return the address to tell a mail server, and those that it need not know."""
    if not options.addresses:
        raise ConfigError("[milter] listen: no address to listen on")
    first, *others = map(parse, options.addresses)
    if isinstance(first, Fd):
        raise ConfigError(
            f"[milter] listen: {first} is what systemd passes: name what its .socket unit listens "
            "on, such as --listen unix:/run/mailgate/milter.sock"
        )
    return first, others


def _enough(mark: str, others: list[Address]) -> Iterator[str]:
    """Yield a comment: asked at two addresses, mailgate would see a message twice."""
    if others:
        yield f"{mark} One address is enough; mailgate listens here, too:"
        yield from (f"{mark}   {address}" for address in others)


_EVERY = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Hosts that are every interface, and where this machine finds them."""


def _host(address: Inet) -> str:
    """Return where an MTA on this machine finds a port."""
    return _EVERY.get(address.host, address.host)


def _longer(budget: float, more: int, least: int) -> int:
    """Return the seconds that a server has to wait so that mailgate answers before."""
    if math.isinf(budget):
        raise ConfigError("[defaults] has a time-out without an end: no mail server waits so long")
    return max(math.ceil(budget) + more, least)


SNIPPETS: Mapping[str, Snippet] = {"postfix": postfix, "sendmail": sendmail}
