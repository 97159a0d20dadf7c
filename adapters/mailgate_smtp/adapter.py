"""The SMTP adapter: sockets that clients connect to, and the mail server behind."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from typing import final

from mailgate import listen
from mailgate.chain import UNKNOWN_VERBS, Capabilities, Interest
from mailgate.engine import Engine
from mailgate.errors import ConfigError
from mailgate.stage import MESSAGE_STAGES, Stage
from mailgate_smtp.maildir import Maildir
from mailgate_smtp.options import Kind, SmtpOptions, parse_target
from mailgate_smtp.server import SmtpServer
from mailgate_smtp.snippets import SNIPPETS

log = logging.getLogger(__name__)

__all__ = ["CAPABILITIES", "SmtpAdapter", "SmtpOptions"]

_FACTS = frozenset({"rdns", "tls"})
_MESSAGE_FACTS = _FACTS | {"auth", "params"}
_EDITS = frozenset(
    {
        *("change_sender", "change_recipient", "add_recipient", "remove_recipient"),
        *("quarantine", "discard"),
    }
)
_VERBS = frozenset({"NOOP", "RSET", "QUIT", "VRFY", "EXPN", "HELP", "ETRN", UNKNOWN_VERBS})

CAPABILITIES: Capabilities = {
    Stage.CONNECT: frozenset({"rdns"}),
    Stage.HELO: _FACTS | {"change_helo"},
    Stage.STARTTLS: frozenset({"rdns"}),
    Stage.AUTH: _FACTS | {"authenticate", "credentials"},
    **dict.fromkeys(MESSAGE_STAGES, _MESSAGE_FACTS | _EDITS),
    Stage.COMMAND: _FACTS | {"auth"} | _VERBS,
    Stage.EVENT: _MESSAGE_FACTS,
    Stage.DONE: _MESSAGE_FACTS,
    Stage.CLOSE: _MESSAGE_FACTS,
}
"""What the proxy can do at each stage."""

_STREAMED = (Stage.HEADERS, Stage.BODY)
_HOLD = 'set body = "hold" in [smtp]'


@final
class SmtpAdapter:
    """Speaks SMTP and LMTP to clients, and to the server that their mail goes to."""

    name = "smtp"
    summary = "any mail server, as an SMTP or LMTP proxy in front of it"
    on_stdin = False
    capabilities: Capabilities = CAPABILITIES
    remedies: Mapping[str, str] = {}
    Options = SmtpOptions
    snippets = SNIPPETS

    def __init__(self, options: SmtpOptions | None = None) -> None:
        self._options = options or SmtpOptions()
        self.capabilities, self.remedies = _as_set_up(self._options)
        self._sockets: list[tuple[Kind, socket.socket]] = []
        self._tls: ssl.SSLContext | None = None
        self._quarantine: Maildir | None = None
        self._server: SmtpServer | None = None

    def claim(self) -> None:
        """Listen, and see that certificates and maildirs can be used."""
        options = self._options
        self._tls = options.tls.context()
        self._read_ca()
        for target in options.targets:
            if target.kind == "maildir":
                Maildir(target.path or "", options.name).prepare()
        if options.quarantine is not None:
            path = parse_target(options.quarantine).path
            self._quarantine = Maildir(path or "", options.name)
            self._quarantine.prepare()
        if not options.listeners:
            raise ConfigError(
                "[smtp]: 'listen' is empty: write an address, such as 127.0.0.1:2525"
            )
        access = listen.Access(int(options.mode, 8), options.owner, options.group)
        for listener in options.listeners:
            if listener.kind == "smtps" and self._tls is None:
                self.release()
                raise ConfigError(f"{listener}: smtps needs a certificate: cert in [smtp.tls]")
            try:
                self._sockets += [
                    (listener.kind, each) for each in listen.bind([listener.address], access)
                ]
            except BaseException:
                self.release()
                raise
        try:
            _check_relay(options, [each for _, each in self._sockets])
        except BaseException:
            self.release()
            raise

    def descriptors(self) -> Mapping[int, str]:
        """Return the listening sockets, and how a worker takes each of them over."""
        return {
            each.fileno(): f"fd:{each.fileno()}"
            if kind == "smtp"
            else f"{kind}:fd:{each.fileno()}"
            for kind, each in self._sockets
        }

    def release(self) -> None:
        """Stop listening, and take the socket files away."""
        listen.release([each for _, each in self._sockets])
        self._sockets.clear()

    def confine(self) -> None:
        """Do nothing: the service manager says who we are."""

    async def serve(self, engine: Engine) -> None:
        """Serve until `drain`."""
        options = self._options
        self._server = server = SmtpServer(
            engine, options, tls=self._tls, quarantine=self._quarantine
        )
        names = ", ".join(
            listen.name_of(each) if kind == "smtp" else f"{kind}:{listen.name_of(each)}"
            for kind, each in self._sockets
        )
        log.info("smtp on %s, mail goes to %s", names, ", ".join(map(str, options.targets)))
        if options.upstream is None:
            log.warning("no upstream is set: mail is delivered to the maildir ./Maildir")
        if options.auth != "none" and self._tls is None and not options.auth_without_tls:
            log.warning("auth = %r: AUTH is not offered without cert in [smtp.tls]", options.auth)
        try:
            await server.serve([(each, server.factory(kind)) for kind, each in self._sockets])
        finally:
            self.release()

    def accepts(self, interest: Interest) -> str | None:
        """Take any other policies that can be served at all."""
        return None

    def _read_ca(self) -> None:
        tls = self._options.upstream_tls
        if tls.mode != "off" or any(target.implicit_tls for target in self._options.targets):
            tls.refresh()

    def refresh(self) -> None:
        """Read the certificates anew."""
        self._read_ca()
        tls = self._options.tls.context()
        if self._server is not None:
            self._server.tls = tls

    async def drain(self) -> None:
        """Take no new connections, let messages under way end, then end."""
        if self._server is not None:
            self._server.stop_listening()
            self.release()
            await self._server.drain()


def _as_set_up(options: SmtpOptions) -> tuple[Capabilities, Mapping[str, str]]:
    """Return what the proxy can do with its options, and what to set for the rest."""
    can = dict(CAPABILITIES)
    remedies: dict[str, str] = {}
    if options.quarantine is None:
        can = {stage: here - {"quarantine"} for stage, here in can.items()}
        remedies["quarantine"] = 'set quarantine = "maildir:PATH" in [smtp]'
    if options.auth == "none":
        can[Stage.AUTH] -= {"authenticate"}
        remedies["authenticate"] = 'set auth = "policy" in [smtp]'
    if options.body == "stream":
        # The envelope is said by then, and there is no whole message to look at or to keep.
        can = {stage: here - {"quarantine"} for stage, here in can.items()}
        can |= {stage: can[stage] - _EDITS | {"discard"} for stage in _STREAMED}
        del can[Stage.MESSAGE]
        remedies |= dict.fromkeys([*_EDITS, f"the stage {Stage.MESSAGE}"], _HOLD)
    return can, remedies


def _is_public(listening: socket.socket) -> bool:
    if listening.family == socket.AF_UNIX:
        return False
    return not ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def _check_relay(options: SmtpOptions, sockets: list[socket.socket]) -> None:
    """Raise ConfigError for what would relay anybody's mail to anywhere.

    The server behind sees every client come from the proxy's own address, which it trusts.  A
    load balancer that sends PROXY headers brings the clients of others to a loopback address.
    """
    public = [
        name
        for each in sockets
        if options.proxy_protocol or _is_public(each)
        for name in [listen.name_of(each)]
    ]
    closed = (
        options.identity in ("xclient", "proxy-v1", "proxy-v2")
        or options.relay_domains
        or options.auth_required
        or all(target.kind in ("maildir", "lmtp") for target in options.targets)
    )
    if public and not closed and not options.open_relay:
        raise ConfigError(
            f"{public[0]} is open to others, and the upstream would take them for this host: an "
            'open relay; set identity = "xclient" or "proxy-v1", relay_domains, auth_required, '
            "or open_relay = true in [smtp] where it is meant"
        )
