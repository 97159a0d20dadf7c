"""AUTH (RFC 4954): who checks a login, and what the policies say to it."""

from __future__ import annotations

import logging
import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Awaitable
from typing import NamedTuple, Protocol, final

from mailgate.engine import Conversation
from mailgate.session import Attempt
from mailgate.verdict import Authenticated, Disconnect, refuses
from mailgate_smtp import replies
from mailgate_smtp.dovecot import Dovecot
from mailgate_smtp.hop import HopError
from mailgate_smtp.house import House
from mailgate_smtp.relay import Relay
from mailgate_smtp.sasl import Credentials, checked_response, credentials
from mailgate_smtp.upstream import Upstream
from mailgate_smtp.wire import SYNTAX, CommandError, Reply

log = logging.getLogger(__name__)

_MECHANISM = re.compile(rb"[A-Za-z0-9_-]{1,20}")  # RFC 4422 3.1

OWN = (b"PLAIN", b"LOGIN")
"""Mechanisms that show the proxy user and password."""


class Asks(Protocol):
    """The client's end of a login."""

    @property
    def tls(self) -> object | None: ...

    def challenge(self, text: bytes) -> Awaitable[bytes]:
        """Send 334 with a text, and return the client's next line."""


@final
class Outcome(NamedTuple):
    """What came of a login: ``user`` is who is logged in by it, None for nobody."""

    reply: Reply
    user: str | None = None
    closes: bool = False


@final
class Login:
    """The logins that one client tries."""

    def __init__(self, house: House, client: Asks, relay: Relay) -> None:
        self._house = house
        self._mode = house.options.auth
        self._client = client
        self._relay = relay

    @property
    def allowed(self) -> bool:
        """Tell whether a password may come over this connection."""
        return self._client.tls is not None or self._house.options.auth_without_tls

    async def mechanisms(self) -> bytes:
        """Return what is offered, divided by blanks; empty for nothing.

        CommandError where Dovecot cannot be asked.
        """
        if self._mode == "none":
            return b""
        if self._mode == "passthrough":
            return self._house.route.known[b"AUTH"]
        if self._house.dovecot is None:
            return b" ".join(OWN)
        return " ".join(await self._house.dovecot.mechanisms()).encode("ascii", "replace")

    async def attempt(self, conversation: Conversation, argument: bytes) -> Outcome:
        """Go through one login."""
        mechanism, _, initial = argument.partition(b" ")
        if self._mode == "none":
            return Outcome(replies.NOT_IMPLEMENTED)
        if not self.allowed:
            return Outcome(replies.LOGIN_NEEDS_TLS)
        if not _MECHANISM.fullmatch(mechanism) or b" " in initial:
            return Outcome(SYNTAX)
        try:
            if mechanism.upper() not in (await self.mechanisms()).upper().split():
                return Outcome(replies.NO_MECHANISM)
            return await self._attempt(
                conversation, mechanism.decode("ascii").upper(), initial or None
            )
        except CommandError as error:
            return Outcome(error.reply)

    async def _attempt(
        self, conversation: Conversation, mechanism: str, initial: bytes | None
    ) -> Outcome:
        known: Credentials | None = None
        shown = mechanism.encode("ascii") in OWN
        if shown and self._mode != "passthrough":
            known = await credentials(mechanism, initial, self._client.challenge)
        elif mechanism == "PLAIN":
            known = _peek(initial)
        verdict = await conversation.auth(
            Attempt(mechanism, known and known.user, known and known.password)
        )
        if refuses(verdict):
            return Outcome(replies.refusal(verdict), closes=type(verdict) is Disconnect)
        if type(verdict) is Authenticated:
            return Outcome(replies.LOGIN_OK, verdict.user)
        if self._mode == "passthrough":
            return await self._pass_through(mechanism, initial, known)
        if self._house.dovecot is None:
            return Outcome(replies.LOGIN_FAILED)
        user = await self._ask(self._house.dovecot, conversation, mechanism, initial, known)
        return Outcome(replies.LOGIN_OK, user)

    async def _pass_through(
        self, mechanism: str, initial: bytes | None, known: Credentials | None
    ) -> Outcome:
        """Have the server behind decide, on a connection that is this client's from then on."""
        if initial is not None:
            checked_response(initial)
        try:
            hop = await self._relay.ready()
            self._relay.pin(True)
            assert isinstance(hop, Upstream)  # noqa: S101  # the options want a mail server
            answer, first = await self._exchange(hop, mechanism, initial)
        except HopError as error:
            log.warning("AUTH: %s", error)
            self._give_up()
            return Outcome(replies.LOGIN_DEFERRED)
        except BaseException:  # the server still waits for a response: nobody else may get there
            self._give_up()
            raise
        if answer.code != 235:
            self._give_up()  # the server counts failures
            refuses_login = answer.code // 100 in (4, 5)
            known_answer = answer if refuses_login else replies.LOGIN_DEFERRED
            return Outcome(known_answer, closes=answer.code == 421)
        hop.logged_in = True
        return Outcome(answer, known.user if known is not None else _user_of(mechanism, first))

    async def _exchange(
        self, hop: Upstream, mechanism: str, initial: bytes | None
    ) -> tuple[Reply, bytes | None]:
        """Pass challenges and responses on; return the last reply, and the first response."""
        line = b"AUTH " + mechanism.encode("ascii")
        answer = await hop.command(line if initial is None else line + b" " + initial)
        first = initial
        while answer.code == 334:
            response = checked_response(await self._client.challenge(answer.lines[0]))
            first = first or response
            answer = await hop.command(response)
        return answer, first

    def _give_up(self) -> None:
        self._relay.pin(False)
        self._relay.abort()

    async def _ask(
        self,
        dovecot: Dovecot,
        conversation: Conversation,
        mechanism: str,
        initial: bytes | None,
        known: Credentials | None,
    ) -> str:
        """Have Dovecot decide, and return the user.  CommandError."""
        if known is not None:
            mechanism, initial = "PLAIN", known.plain
        session = conversation.session
        return await dovecot.authenticate(
            mechanism,
            initial,
            self._client.challenge,
            secured=self._client.tls is not None,
            client=str(session.client or ""),
            client_port=session.client_port,
            server=str(session.server or ""),
            server_port=session.server_port,
        )


def _decoded(response: bytes | None) -> bytes:
    try:
        return b64decode(response or b"", validate=True)
    except NotBase64:
        return b""


def _peek(initial: bytes | None) -> Credentials | None:
    """Return what an initial response of PLAIN shows, where there is one."""
    parts = _decoded(initial).split(b"\0")
    if len(parts) != 3:
        return None
    return Credentials(parts[1].decode("utf-8", "replace"), parts[2].decode("utf-8", "replace"))


def _user_of(mechanism: str, first: bytes | None) -> str:
    """Return the user that a first response names, as far as the mechanism shows it."""
    octets = _decoded(first)
    if mechanism == "PLAIN":
        octets = octets.split(b"\0")[1] if octets.count(b"\0") == 2 else b""
    elif mechanism.startswith("SCRAM-") or mechanism in ("XOAUTH2", "OAUTHBEARER"):
        fields = octets.replace(b"\x01", b",").split(b",")
        named = [each[each.index(b"=") + 1 :] for each in fields if _names_user(each)]
        octets = named[0] if named else b""
    elif mechanism != "LOGIN":
        octets = b""
    return octets.decode("utf-8", "replace") or "unknown"


def _names_user(field: bytes) -> bool:
    return field.startswith((b"n=", b"a=", b"user="))
