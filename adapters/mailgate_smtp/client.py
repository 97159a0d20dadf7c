"""Who a client is, by itself and as a trusted peer says, and the conversation about it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Protocol, final

from mailgate.engine import Conversation, Engine
from mailgate.session import TLS, Event, Session
from mailgate.stage import Stage
from mailgate.verdict import Verdict
from mailgate_smtp.identity import Identity
from mailgate_smtp.maildir import Trace
from mailgate_smtp.rdns import look_up

_serial = itertools.count(1)
_process = os.urandom(4).hex()


def _new_id() -> str:
    return f"{_process}{next(_serial):08x}"


class Seen(Protocol):
    """What the connection of a client shows, and what it wants to hear."""

    @property
    def tls(self) -> TLS | None:
        """The encryption, None where there is none."""

    def on_wait(self) -> None:
        """Hear that a handler waits."""


@final
class Client:
    """One client.  ``trusted`` is a peer that may say whose mail it brings.

    The policies are asked about whom it names, so nobody is asked before its first message.
    ``identity`` holds for one message; it begins as what XCLIENT and the greeting say, and that
    as the connection's own address.
    """

    def __init__(self, engine: Engine, seen: Seen, peer: Identity, *, lmtp: bool, trusted: bool):
        self.trusted = trusted
        self.conversation: Conversation | None = None
        self.identity = peer  # for one message as the peer says by XFORWARD
        self._named = peer  # as it says by XCLIENT, or greets
        self._peer = peer
        self._about: Identity | None = None  # whom the policies were asked about
        self._engine = engine
        self._seen = seen
        self._lmtp = lmtp
        self._id = _new_id()

    # -- what it says ----------------------------------------------------------------------------

    def greets(self, name: str, *, esmtp: bool) -> None:
        """Take a greeting."""
        attributes = {b"HELO": name, b"PROTO": "ESMTP" if esmtp else "SMTP"}
        self.identity = self._named = self.identity.updated(attributes)

    def becomes(self, attributes: Mapping[bytes, str | None]) -> None:
        """Take what XCLIENT says: from now on this is another client, and nobody is logged in."""
        forgotten: dict[bytes, str | None] = {b"LOGIN": None}
        self.identity = self._named = self._named.updated({**forgotten, **attributes})

    def forwards(self, attributes: Mapping[bytes, str | None]) -> None:
        """Take what XFORWARD says of the next message."""
        self.identity = self.identity.updated(attributes)

    def ends_message(self) -> None:
        """Forget what was forwarded: it holds for one message."""
        self.identity = self._named

    def starts_tls(self) -> None:
        """Forget what was said unencrypted (RFC 3207 4.2)."""
        self.identity = self._named = self._peer
        if self.conversation is not None:
            self.conversation.session.learn(tls=self._seen.tls, helo="", esmtp=None, user=None)

    def logs_in(self, user: str) -> None:
        """Take the user of a login."""
        self.identity = self._named = self._named.updated({b"LOGIN": user})
        self._about = self.identity
        if self.conversation is not None:
            self.conversation.session.learn(user=user)

    @property
    def user(self) -> str | None:
        """Who is logged in."""
        return self.identity.login

    @property
    def trace(self) -> Trace:
        """What a Received field says of it; the word is of RFC 3848."""
        identity, conversation = self.identity, self.conversation
        word = "LMTP" if self._lmtp else "ESMTP" if identity.protocol != "SMTP" else "SMTP"
        if word != "SMTP":
            word += "S" if self._seen.tls is not None else ""
            word += "A" if identity.login is not None else ""
        message = conversation.message if conversation is not None else None
        return Trace(identity.helo, identity.address, word, message.id if message else self._id)

    # -- what the policies say to it -------------------------------------------------------------

    async def meet(self) -> Verdict | None:
        """Begin the conversation, and ask about the connection."""
        if self.conversation is not None:
            await self.conversation.close()
            self._id = _new_id()  # the messages of another client are others
        identity = self._about = self.identity
        session = Session(
            self._id,
            "smtp",
            client=identity.address,
            client_port=identity.port,
            local_socket=identity.address is None and self._peer.address is None,
            server=identity.server,
            server_port=identity.server_port,
            rdns=identity.name,
            rdns_verified=True if identity.name is not None else None,
            tls=self._seen.tls,
            user=identity.login,
        )
        self.conversation = conversation = self._engine.converse(session, self._seen.on_wait)
        wanted = "rdns" in conversation.interest.uses and identity.name is None
        if wanted and identity.address is not None:
            name, verified = await look_up(identity.address)
            session.learn(rdns=name, rdns_verified=verified)
        await self.tell("connect", rdns=session.rdns or "", src=str(session.client or ""))
        return await conversation.connect()

    async def hello(self, name: str, *, esmtp: bool) -> Verdict | None:
        """Ask about a greeting; a policy may have changed the name then."""
        conversation = await self.known()
        await self.tell("helo", identity=name)
        verdict = await conversation.helo(name, esmtp)
        if conversation.session.helo != self.identity.helo:
            self.identity = self._named = self.identity.updated(
                {b"HELO": conversation.session.helo}
            )
        self._about = self.identity
        return verdict

    async def known(self) -> Conversation:
        """Return the conversation about whom the next message is from.

        What is refused about a client that was forwarded is answered at MAIL.
        """
        conversation = self.conversation
        if conversation is None or (self.trusted and self._about != self.identity):
            await self.meet()
            conversation = self.conversation
            assert conversation is not None  # noqa: S101  # `meet` makes it
            if self.identity.helo:
                await conversation.helo(self.identity.helo, self.identity.protocol != "SMTP")
        return conversation

    @property
    def watched(self) -> bool:
        """Tell whether anybody looks on."""
        conversation = self.conversation
        return conversation is not None and Stage.EVENT in conversation.interest.asked

    async def tell(self, name: str, **fields: str) -> None:
        """Show what happens to those who look on."""
        if self.conversation is not None and self.watched:
            await self.conversation.event(Event(name, fields))

    async def close(self, given_up: str = "") -> None:
        """Say that it is gone; ``given_up`` is why we have ended it."""
        if self.conversation is not None:
            if given_up:
                await self.tell("timeout", reason=given_up)
            await self.tell("disconnect")
            await self.conversation.close()
