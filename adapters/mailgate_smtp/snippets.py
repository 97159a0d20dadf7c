"""What the mail servers around the proxy have to be told: lines of their own configuration.

None is over 80 columns, unless an address is long.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from mailgate.adapter import Site, Snippet
from mailgate.errors import ConfigError
from mailgate.listen import Fd, Inet, Unix, parse
from mailgate.session import address_of
from mailgate_smtp.options import Listener, SmtpOptions, Target

# -- Postfix -------------------------------------------------------------------------------------

POSTFIX_QUEUE = "/var/spool/postfix"
"""Postfix's queue_directory, where nothing else is said: postconf(5)."""


def postfix(options: SmtpOptions, site: Site) -> Iterator[str]:
    """Yield lines of master.cf, or of main.cf where the first listener speaks LMTP.

    An smtpd before mailgate and one behind it: SMTPD_PROXY_README.
    """
    listener, address = _first(options)
    if listener.kind == "lmtp":
        yield "# Add to /etc/postfix/main.cf, then: postfix reload"
        yield from _transport(_of_postfix(address, site), options, site)
        return
    if listener.kind == "smtps":
        raise ConfigError(
            f"[smtp] listen: {listener} encrypts, and smtpd_proxy_filter cannot: name another "
            "address, such as --listen 127.0.0.1:10025"
        )
    if isinstance(address, Inet) and address.port == 25:
        raise ConfigError(
            "[smtp] listen: port 25 is that of the smtpd before mailgate: name another address, "
            "such as --listen 127.0.0.1:10025"
        )
    if options.identity in ("xclient", "proxy-v1", "proxy-v2"):
        raise ConfigError(
            f'[smtp] identity = "{options.identity}" makes Postfix judge every client twice, and '
            'refuse strangers the second time: write identity = "auto"'
        )
    back = _local(options, "smtp://127.0.0.1:10026")
    yield "# Add to /etc/postfix/master.cf, then: postfix reload"
    yield "# The first smtpd is in place of the line that begins with: smtp inet"
    yield "# (with postscreen: smtpd pass). It has every check, TLS and logins."
    yield "smtp inet n - n - - smtpd"
    yield f"  -o smtpd_proxy_filter={_of_postfix(address, site)}"
    yield "  # Longer than mailgate may take: [defaults] message_timeout,"
    yield "  # and [smtp.timeouts] upstream_dot for the second smtpd."
    yield f"  -o smtpd_proxy_timeout={_answer(options, site)}s"
    yield from _trust(options, address)
    yield from _second(options, site, back)


def _second(options: SmtpOptions, site: Site, back: Target) -> Iterator[str]:
    """Yield the smtpd that takes mail from mailgate."""
    network = "[::1]/128" if ":" in _literal(back.host) else "127.0.0.0/8"
    yield "# The second smtpd takes mail from mailgate, which the first has checked."
    yield f"{_spelt(_literal(back.host), back.port)} inet n - n - - smtpd"
    yield "  -o syslog_name=postfix/mailgate"
    if options.identity != "none":
        yield f"  -o smtpd_authorized_xforward_hosts={network}"
    yield f"  -o mynetworks={network}"
    yield "  -o smtpd_recipient_restrictions=permit_mynetworks,reject"
    for name in ("relay", "client", "helo", "sender", "data", "end_of_data"):
        yield f"  -o smtpd_{name}_restrictions="
    yield "  -o receive_override_options=no_unknown_recipient_checks"
    yield "  -o smtpd_sasl_auth_enable=no"
    if options.upstream_tls.mode == "off":
        yield "  -o smtpd_tls_security_level=none"
    yield "  # Longer than mailgate waits for a client, or for its policies."
    yield f"  -o smtpd_timeout={_silence(options, site)}s"


def _transport(place: str, options: SmtpOptions, site: Site) -> Iterator[str]:
    """Yield lines of main.cf that have Postfix deliver to mailgate by LMTP: lmtp(8)."""
    yield "# For mail of local users: mailbox_transport, in place of virtual_transport."
    yield f"virtual_transport = lmtp:{'' if place.startswith('unix:') else 'inet:'}{place}"
    yield "# Policies then see the client, not Postfix."
    yield "lmtp_send_xforward_command = yes"
    yield from _trust(options, _first(options)[1])
    yield "# Longer than mailgate may take: [defaults] message_timeout,"
    yield "# and [smtp.timeouts] upstream_dot."
    yield f"lmtp_data_done_timeout = {max(_answer(options, site), 600)}s"


def _of_postfix(address: Inet | Unix, site: Site) -> str:
    """Return where Postfix finds mailgate; a path below its queue is told relative to that."""
    if isinstance(address, Inet):
        return _spelt(_host(address), address.port)
    return f"unix:{_below(address.path, site.queue_directory or POSTFIX_QUEUE)}"


def _trust(options: SmtpOptions, address: Inet | Unix) -> Iterator[str]:
    """Yield what lets Postfix connect, and what has mailgate believe it who the client is."""
    if isinstance(address, Unix):
        mode = int(options.mode, 8)
        if not mode & 0o002 and not (mode & 0o020 and options.group == "postfix"):
            yield '# Postfix connects as the user postfix: write [smtp] group = "postfix".'
        trusted, peer = "unix" in options.trusted, "unix"
    else:
        peer = _literal(_host(address))  # who connects to an own address comes from there
        trusted = _is_literal(peer) and any(ip_address(peer) in n for n in options.networks)
    if not trusted:
        yield "# Policies see Postfix as the client unless [smtp] has this line:"
        yield f'#   trusted = ["{peer}"]'


# -- Exim ----------------------------------------------------------------------------------------


def exim(options: SmtpOptions, site: Site) -> Iterator[str]:
    """Yield main options of Exim: "Main configuration" and "Proxies" in its specification."""
    if options.identity in ("xclient", "xforward"):
        raise ConfigError(
            f'[smtp] identity = "{options.identity}": Exim does not take it; write "proxy-v1" '
            '(exim4-daemon-heavy), or "none"'
        )
    target = _local(options, "smtp://127.0.0.1:10026")
    host = _literal(target.host)
    separator = "<; " if ":" in host else ""
    yield "# Add to the main section of Exim's configuration, then restart Exim."
    yield "# mailgate listens where Exim did; Exim takes mail from this host alone."
    yield f"local_interfaces = {separator}{_dotted(host, target.port)}"
    if options.identity in ("proxy-v1", "proxy-v2"):
        yield "# mailgate tells the client's address in a PROXY header, which Debian's"
        yield "# exim4-daemon-heavy understands and exim4-daemon-light does not."
        yield f"hosts_proxy = {separator}{host}"
    else:
        yield "# Every client is this host to Exim, which must not relay for it. In place"
        yield "# of the line that is there (Debian: MAIN_RELAY_NETS = :):"
        yield "#   hostlist relay_from_hosts = :"
        if not options.relay_domains:
            yield "# And mailgate takes mail for your domains alone, with [smtp]"
            yield '#   relay_domains = ["example.org"]'
        yield "# One connection has many messages: each is to be delivered at once."
        yield "smtp_accept_queue_per_connection = 0"
    yield f"# Room for mailgate's connections, [smtp.pool] max = {options.pool.max}."
    yield f"smtp_accept_max = {options.pool.max + 20}"
    yield "# Longer than mailgate waits for a client, or for its policies."
    yield f"smtp_receive_timeout = {_silence(options, site)}s"


def _dotted(host: str, port: int) -> str:
    """Return an address of ``local_interfaces``: IPv6 has brackets, IPv4 may do without."""
    return f"[{host}]:{port}" if ":" in host else f"{host}.{port}"


# -- Dovecot -------------------------------------------------------------------------------------


DOVECOT_BASE = "/run/dovecot"
"""Dovecot's base_dir, where nothing else is said; it warns of a path that begins with it."""


def dovecot(options: SmtpOptions, site: Site) -> Iterator[str]:
    """Yield settings of Dovecot 2.3: where it takes mail by LMTP, and checks logins."""
    target = next((each for each in options.targets if each.lmtp), None)
    if target is None and options.dovecot is None:
        raise ConfigError(
            f"[smtp] upstream: {options.targets[0]} is not LMTP, and auth is not Dovecot's: write "
            'upstream = "lmtp+unix:/run/dovecot/lmtp", or auth = "dovecot:/run/dovecot/..."'
        )
    yield "# Add to /etc/dovecot/local.conf, then restart Dovecot."
    if target is not None:
        yield from _lmtp(options, target)
    if options.dovecot is not None:
        yield "service auth {"
        yield f"  unix_listener {_below(options.dovecot, DOVECOT_BASE)} {{"
        yield from _rights()
        yield "  }"
        yield "}"
    for listener in options.listeners:
        if listener.kind == "lmtp" and not isinstance(parse(listener.address), Fd):
            yield "# Postfix delivers to mailgate with these lines of main.cf:"
            address = _of_postfix(_known(listener), site)
            yield from (f"#   {line}" for line in _transport(address, options, site))
            break


def _lmtp(options: SmtpOptions, target: Target) -> Iterator[str]:
    """Yield the listener that mailgate delivers to, and what it may say there."""
    yield "# LMTP is a package of its own on Debian: dovecot-lmtpd."
    if target.path is not None:
        if options.identity not in ("auto", "none"):
            raise ConfigError(
                f'[smtp] identity = "{options.identity}": Dovecot takes it at a port only; write '
                'upstream = "lmtp://127.0.0.1:24", or identity = "none"'
            )
        yield "service lmtp {"
        yield f"  unix_listener {_below(target.path, DOVECOT_BASE)} {{"
        yield from _rights()
        yield "  }"
        yield "}"
        return
    if options.identity == "xforward":
        raise ConfigError(
            '[smtp] identity = "xforward": Dovecot does not take it; write "xclient" or "none"'
        )
    host = _literal(_here(target, "lmtp://127.0.0.1:24").host)
    haproxy = options.identity in ("proxy-v1", "proxy-v2")
    yield "service lmtp {"
    yield "  inet_listener lmtp {"
    yield "    # Dovecot 2.4: listen"
    yield f"    address = {host}"
    yield f"    port = {target.port}"
    if haproxy:
        yield "    haproxy = yes"
    yield "  }"
    yield "}"
    if haproxy:
        yield f"haproxy_trusted_networks = {host}"
    elif options.identity == "xclient":
        yield "# mailgate says by XCLIENT who the client is."
        yield f"login_trusted_networks = {host}"
    elif options.identity == "auto":
        yield "# With this line mailgate says by XCLIENT who the client is; then every"
        yield "# message has a connection of its own:"
        yield f"#   login_trusted_networks = {host}"


def _rights() -> Iterator[str]:
    yield "    mode = 0660"
    yield "    # Who runs mailgate has to be in this group:"
    yield "    #group = mailgate"


# -- all of them ---------------------------------------------------------------------------------


def _first(options: SmtpOptions) -> tuple[Listener, Inet | Unix]:
    """Return the listener that a mail server is told of."""
    if not options.listeners:
        raise ConfigError("[smtp] listen: no address to listen on")
    listener = options.listeners[0]
    return listener, _known(listener)


def _known(listener: Listener) -> Inet | Unix:
    address = parse(listener.address)
    if isinstance(address, Fd):
        raise ConfigError(
            f"[smtp] listen: {listener} is what systemd passes: name what its .socket unit listens "
            "on, such as --listen 127.0.0.1:10025"
        )
    return address


def _local(options: SmtpOptions, remedy: str) -> Target:
    """Return the SMTP server behind mailgate, which has to be on this machine."""
    for target in options.targets:
        if target.kind == "smtp":
            return _here(target, remedy)
    raise ConfigError(f'[smtp] upstream: {options.targets[0]} is another server: write "{remedy}"')


def _here(target: Target, remedy: str) -> Target:
    host = _literal(target.host)
    if _is_literal(host) and ip_address(host).is_loopback:
        return target
    raise ConfigError(
        f"[smtp] upstream: {target} is not on this machine; what is told here is for one that "
        f'is, such as "{remedy}"'
    )


def _is_literal(host: str) -> bool:
    return address_of(host) is not None


def _below(path: str, folder: str) -> str:
    """Return a path relative to a folder that it is in, else the whole path."""
    relative = os.path.relpath(path, folder)
    return path if relative.startswith("..") else relative


def _literal(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host


_EVERY = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Hosts that are every interface, and where this machine finds them."""


def _host(address: Inet) -> str:
    """Return where a mail server on this machine finds a port."""
    return _EVERY.get(address.host, address.host)


def _spelt(host: str, port: int) -> str:
    return str(Inet(host, port))


def _answer(options: SmtpOptions, site: Site) -> int:
    """Return the seconds that who is before mailgate has to wait for an answer."""
    timeouts, defaults = options.timeouts, site.defaults
    at_rcpt = defaults.timeout + timeouts.connect + timeouts.upstream
    return _whole(max(at_rcpt, defaults.message_timeout + timeouts.upstream_dot)) + 10


def _silence(options: SmtpOptions, site: Site) -> int:
    """Return the seconds that who is behind mailgate has to wait for a command."""
    timeouts, defaults = options.timeouts, site.defaults
    waits = (timeouts.command, timeouts.data, defaults.timeout, defaults.message_timeout)
    return _whole(max(waits)) + 60


def _whole(seconds: float) -> int:
    if math.isinf(seconds):
        raise ConfigError("a time-out is without an end: no mail server waits so long")
    return math.ceil(seconds)


SNIPPETS: Mapping[str, Snippet] = {"dovecot": dovecot, "exim": exim, "postfix": postfix}
