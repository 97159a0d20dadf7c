"""The ``[smtp]`` table and the tables in it."""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal, TypeAlias, final
from urllib.parse import unquote

from mailgate import listen
from mailgate.errors import ConfigError
from mailgate.limits import MIB
from mailgate.settings import Seconds
from mailgate.syntax import check_host_name

Network: TypeAlias = IPv4Network | IPv6Network
Kind: TypeAlias = Literal["smtp", "smtps", "lmtp"]

DEFAULT_UPSTREAM = "maildir:Maildir"


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """The ``[smtp.limits]`` table: what clients may cost, besides ``[limits]``.

    ``connections`` is of all clients, ``per_client`` of one address that is neither of this
    host nor trusted.  ``errors`` are those of a client before it is hung up on.  ``hops`` are
    Received fields of a message.  ``line`` (octets) is of its lines, without CRLF, and
    ``message`` (octets) of all of it.  ``memory`` (octets) is what all messages that are under
    way may take of it; what is over ``limits.memory`` of a message lies on disk.
    """

    connections: int = 500
    per_client: int = 20
    errors: int = 10
    hops: int = 50
    line: int = 65_535
    message: int = 50 * MIB
    memory: int = 256 * MIB

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name!r} must be above 0")
        if self.line > 65_535:
            raise ValueError("'line' must be at most 65535")


@final
@dataclass(frozen=True, slots=True)
class Timeouts:
    """The ``[smtp.timeouts]`` table.

    ``command`` is for a whole command line of a client, ``data`` for the next octets of its
    message; after a minute these have to come at ``rate`` octets a second, too.  ``connect`` is
    for a connection to the mail server behind, ``upstream`` for its answers, ``upstream_dot``
    for the one to the end of data.  ``drain`` is what messages under way have at SIGTERM.
    ``greeting`` is a wait before the greeting: who speaks in it is refused.
    """

    command: Seconds = 300.0
    data: Seconds = 180.0
    rate: int = 1024
    connect: Seconds = 10.0
    upstream: Seconds = 60.0
    upstream_dot: Seconds = 300.0
    drain: Seconds = 90.0
    greeting: Seconds = 0.0

    def __post_init__(self) -> None:
        for name in ("command", "data", "connect", "upstream", "upstream_dot", "drain"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name!r} must be above 0")


@final
@dataclass(frozen=True, slots=True)
class Pool:
    """The ``[smtp.pool]`` table: connections to the mail server behind.

    ``max`` at a time; one is closed when it was ``idle`` for so long, and after ``messages``.
    """

    max: int = 20
    idle: Seconds = 30.0
    messages: int = 100

    def __post_init__(self) -> None:
        if self.max < 1 or self.messages < 1:
            raise ValueError("'max' and 'messages' must be above 0")


@final
@dataclass(frozen=True, slots=True)
class TLS:
    """The ``[smtp.tls]`` table: encryption of the clients' connections.

    ``mode = "require"`` takes no MAIL without it.  The files are PEM, read again at SIGHUP.
    """

    cert: Path | None = None
    key: Path | None = None
    mode: Literal["offer", "require"] = "offer"

    def __post_init__(self) -> None:
        if self.cert is None and (self.key is not None or self.mode == "require"):
            raise ValueError("'cert' is missing: the PEM file of the certificate and its chain")

    def context(self) -> ssl.SSLContext | None:
        """Return what a handshake needs, or None without a certificate.

        ConfigError where the files cannot be used.
        """
        if self.cert is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"[smtp.tls]: {self.cert} cannot be used as a certificate"
                f"{f' with the key {self.key}' if self.key else ''}: {reason}"
            ) from None
        return context


@final
@dataclass(frozen=True, slots=True)
class UpstreamTLS:
    """The ``[smtp.upstream_tls]`` table: encryption towards the mail server behind.

    ``try`` encrypts where STARTTLS is offered, whoever has the certificate; ``require`` verifies
    it, too, and does not go without.  ``smtps://`` is always verified, a unix socket never is.  ``ca`` is a PEM file of those who may have signed it;
    without one, the system's.
    """

    mode: Literal["off", "try", "require"] = "off"
    ca: Path | None = None

    def context(self, *, verify: bool) -> ssl.SSLContext:
        """Return what a handshake needs, the same each time until `refresh`.

        ConfigError where ``ca`` cannot be read.
        """
        return _upstream_context(self.ca, verify)

    def refresh(self) -> None:
        """Read ``ca`` anew.  ConfigError, and what was read before stays."""
        _upstream_context.__wrapped__(self.ca, True)
        _upstream_context.cache_clear()
        self.context(verify=True)


@cache  # the system's certificates take some 20 ms
def _upstream_context(ca: Path | None, verify: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"[smtp.upstream_tls]: {ca} cannot be used: {reason}") from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@final
@dataclass(frozen=True, slots=True)
class Target:
    """An upstream: a server, or a maildir.

    ``host`` and ``port``, or ``path`` of a unix socket or of a maildir.
    """

    kind: Literal["smtp", "smtps", "lmtp", "maildir"]
    host: str = ""
    port: int = 0
    path: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def lmtp(self) -> bool:
        return self.kind == "lmtp"

    @property
    def implicit_tls(self) -> bool:
        return self.kind == "smtps"

    def __str__(self) -> str:
        if self.kind == "maildir":
            return f"maildir:{self.path}"
        if self.path is not None:
            return f"lmtp+unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"


_URL = re.compile(
    r"(smtps?|lmtp)://(?:([^:@/]+):([^@/]*)@)?(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s]+)(?::([0-9]{1,5}))?/?"
)
_PORTS = {"smtp": 25, "smtps": 465, "lmtp": 24}


def parse_target(text: str) -> Target:
    """Return the upstream that a URL means.  ConfigError names the way to write it."""
    scheme, _, rest = text.partition(":")
    if scheme == "maildir" and rest:
        return Target("maildir", path=rest.removeprefix("//") if rest.startswith("///") else rest)
    if scheme == "lmtp+unix":
        path = rest.removeprefix("//")
        if not path.startswith("/"):
            raise ConfigError(f"upstream {text!r}: write lmtp+unix:/PATH, a whole path")
        return Target("lmtp", path=path)
    found = _URL.fullmatch(text)
    if found is None:
        meant = f"smtp://{text}" if re.fullmatch(r"[^:/\s]+:[0-9]+", text) else "smtp://HOST:PORT"
        raise ConfigError(
            f"upstream {text!r}: write {meant}, smtps://, lmtp://, lmtp+unix:/PATH or maildir:PATH"
        )
    kind, user, password, host, port = found.groups()
    number = int(port) if port else _PORTS[kind]
    if not 0 < number <= 65535:
        raise ConfigError(f"upstream {text!r}: the port is a number up to 65535")
    return Target(
        kind,  # type: ignore[arg-type]
        host.strip("[]"),
        number,
        user=unquote(user) if user else None,
        password=unquote(password) if user else None,
    )


@final
@dataclass(frozen=True, slots=True)
class Listener:
    """An address to listen on, and what is spoken there."""

    kind: Kind
    address: str

    @classmethod
    def parse(cls, text: str) -> Listener:
        """Return what ``[smtps:|lmtp:]ADDRESS`` means.  ConfigError."""
        for kind in _PREFIXES:
            if text.startswith(f"{kind}:"):
                return cls(kind, _checked(text.removeprefix(f"{kind}:")))
        return cls("smtp", _checked(text.removeprefix("smtp:")))

    def __str__(self) -> str:
        return self.address if self.kind == "smtp" else f"{self.kind}:{self.address}"


_PREFIXES: tuple[Kind, ...] = ("smtps", "lmtp")


def _checked(address: str) -> str:
    listen.parse(address)
    return address


@final
@dataclass(frozen=True, slots=True)
class SmtpOptions:
    """The ``[smtp]`` table; docs/adapters/smtp.md explains each key."""

    listen: str | tuple[str, ...] = "127.0.0.1:2525"
    mode: str = "0660"
    owner: str | None = None
    group: str | None = None
    upstream: str | tuple[str, ...] | None = None
    connect: Literal["connect", "mail", "data"] = "mail"
    identity: Literal["auto", "xforward", "xclient", "proxy-v1", "proxy-v2", "none"] = "auto"
    trusted: tuple[str, ...] = ()
    accept: tuple[Literal["xclient", "xforward"], ...] = ("xclient", "xforward")
    proxy_protocol: bool = False
    line_ends: Literal["refuse", "normalise"] = "refuse"
    body: Literal["hold", "stream"] = "hold"
    auth: str = "none"
    auth_without_tls: bool = False
    auth_required: bool = False
    relay_domains: tuple[str, ...] = ()
    open_relay: bool = False
    quarantine: str | None = None
    hostname: str | None = None
    banner: str = "{hostname} ESMTP"
    received: bool = False
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    pool: Pool = Pool()
    tls: TLS = TLS()
    upstream_tls: UpstreamTLS = UpstreamTLS()

    def __post_init__(self) -> None:
        if len(set(self.listeners)) < len(self.listeners):
            raise ValueError("'listen' names an address twice")
        if not self.targets:
            raise ValueError("'upstream' is empty: write where mail goes, smtp://HOST:PORT")
        if not re.fullmatch("0?[0-7]{3}", self.mode):
            raise ValueError(f"'mode' must be octal digits such as \"0660\", not {self.mode!r}")
        if not re.fullmatch(r"none|passthrough|policy|dovecot:/.+", self.auth):
            raise ValueError(
                "'auth' must be 'none', 'passthrough', 'policy' or 'dovecot:/PATH' of its socket"
            )
        if not self.banner.isascii() or not self.banner.isprintable():
            raise ValueError("'banner' must be printable ASCII")
        if self.quarantine is not None and not self.quarantine.startswith("maildir:"):
            raise ValueError(f"'quarantine' must be maildir:PATH, not {self.quarantine!r}")
        if self.auth_required and self.auth == "none":
            raise ValueError("'auth_required' needs 'auth': who checks a login?")
        if self.proxy_protocol and not self.trusted:
            raise ValueError("'proxy_protocol' needs 'trusted': the addresses that may send it")
        if self.auth == "passthrough" and any(t.kind == "maildir" for t in self.targets):
            raise ValueError("'auth' = \"passthrough\" needs a mail server as 'upstream'")
        if self.proxy_protocol and any(each.kind == "smtps" for each in self.listeners):
            raise ValueError("'proxy_protocol' and a listener with 'smtps:' do not go together")
        for domain in self.relay_domains:
            if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", domain):
                raise ValueError(
                    f"'relay_domains' are domains such as example.org, not {domain!r}"
                )
        if any(network.prefixlen == 0 for network in self.networks):
            raise ValueError("'trusted' must not be everybody: anybody could log in by XCLIENT")
        try:
            check_host_name(self.name)
        except ValueError:
            raise ValueError(f"'hostname' must be a host name, not {self.name!r}") from None

    @property
    def listeners(self) -> tuple[Listener, ...]:
        return tuple(Listener.parse(text) for text in _several(self.listen))

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(
            parse_target(text)
            for text in _several(DEFAULT_UPSTREAM if self.upstream is None else self.upstream)
        )

    @property
    def networks(self) -> tuple[Network, ...]:
        """The trusted peers."""
        try:
            return tuple(ip_network(text) for text in self.trusted if text != "unix")
        except ValueError as error:
            raise ValueError(
                f"'trusted' must be addresses and networks, or 'unix': {error}"
            ) from None

    @property
    def connects_at_once(self) -> bool:
        """Tell whether a client is greeted only where the next hop has greeted."""
        return self.connect == "connect" and self.targets[0].kind != "maildir"

    @property
    def dovecot(self) -> str | None:
        """The path of Dovecot's authentication socket, where that checks logins."""
        return self.auth.removeprefix("dovecot:") if self.auth.startswith("dovecot:") else None

    @property
    def greeting(self) -> str:
        """The text of the greeting."""
        return self.banner.replace("{hostname}", self.name)

    @property
    def name(self) -> str:
        """What the proxy calls itself."""
        return self.hostname or _this_host()


@cache
def _this_host() -> str:
    return socket.gethostname() or "localhost"


def _several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value
