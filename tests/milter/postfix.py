"""Postfix 3.7 with a milter, for tests: `smtpd.c`, `cleanup.c`, `milter8.c`."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import final

from mailgate_milter import wire
from mailgate_milter.wire import Command, MacroStage, Response
from tests.milter.mta import (
    HOST,
    OFFER,
    STAGES,
    Answer,
    Channel,
    Client,
    Failed,
    Mta,
    pieces,
    section_and_body,
)
from tests.milter.queued import Envelope, PostfixQueued, Unusable, params

REJECTED = b"550 5.7.1 Command rejected"
UNAVAILABLE = b"451 4.7.1 Service unavailable - try again later"
MISCONFIGURED = b"451 4.3.5 Server configuration problem - try again later"

_ID_DATE = b"20261121001820"


class Closing(Failed):
    """SHUTDOWN: the SMTP session is closed."""


@final
class Postfix(Mta):
    """One smtpd; it shares its connection to the filter with cleanup."""

    _takes_bdat = True
    _farewell = b"221 2.0.0 Bye"
    _standing = b""  # what every MAIL is answered: the filter has refused the client
    _defaults: Mapping[MacroStage, Sequence[str]] = {
        MacroStage.CONNECT: ("j", "daemon_name", "daemon_addr", "v", "_"),
        MacroStage.HELO: ("tls_version", "cipher", "cipher_bits", "cert_subject", "cert_issuer"),
        MacroStage.MAIL: (
            *("i", "auth_type", "auth_authen", "auth_author"),
            *("mail_addr", "mail_host", "mail_mailer"),
        ),
        MacroStage.RCPT: ("i", "rcpt_addr", "rcpt_host", "rcpt_mailer"),
        MacroStage.DATA: ("i",),
        MacroStage.EOH: ("i",),
        MacroStage.EOM: ("i",),
    }

    def __init__(
        self,
        open_channel: Callable[[], Awaitable[Channel]],
        client: Client | None = None,
        *,
        ids: Iterable[str] = (),
        offer: wire.Offer = OFFER,
        replaces_stray_cr: bool = True,
    ) -> None:
        """Begin before the client connects.

        ``replaces_stray_cr`` is cleanup_replace_stray_cr_lf, of releases from January 2024 on.
        """
        super().__init__(open_channel, client, ids=ids, offer=offer)
        self._replaces_stray_cr = replaces_stray_cr

    def _names(self, command: Command) -> Sequence[str] | None:
        if command not in STAGES:
            return ()
        stage = STAGES[command]
        return self._asked(stage) or self._defaults[stage]  # an empty list counts as none

    # -- the SMTP side ---------------------------------------------------------------------------

    async def connect(self) -> bytes:
        name = self.client.name or "unknown"
        self._symbols = {
            "j": HOST,
            "daemon_name": HOST,
            "daemon_addr": "127.0.0.1",
            "v": "Postfix 3.7.11",
            "_": f"{name} [{self.client.address}]",
            **self._client_symbols(name),
        }
        await self._negotiate()
        host = self.client.name or f"[{self.client.address}]"
        packet = wire.connect(
            host.encode(), self.client.family, self.client.port, self.client.address.encode()
        )
        reply = await self._event(Command.CONNECT, packet[5:])
        if reply.startswith(b"421"):
            self.ended = True
            return f"421 {HOST} Service unavailable - try again later\r\n".encode()
        if reply.startswith(b"5"):
            return f"554 {HOST} ESMTP not accepting connections\r\n".encode()
        return f"220 {HOST} ESMTP Postfix\r\n".encode()

    async def _hello(self, verb: str, name: bytes) -> bytes:
        reply = await self._event(Command.HELO, name + b"\0")
        if reply.startswith(b"421"):
            await self.end()
            return reply
        if self._helo:
            await self._abort()
        await self._reset()
        self._helo = name
        return f"250 {HOST}".encode() if verb == "HELO" else b"250 CHUNKING"

    async def _mail(self, path: bytes, arguments: Sequence[bytes]) -> bytes:
        if self._envelope is not None:
            return b"503 5.5.1 Error: nested MAIL command"
        self._envelope = Envelope(path, params(arguments))
        self._symbols |= {
            "mail_addr": path[1:-1].decode("utf-8", "surrogateescape"),
            "mail_host": "[127.0.0.1]:21222",
            "mail_mailer": "smtp",
        }
        data = b"\0".join((path, *arguments)) + b"\0"
        reply = self._standing or await self._event(Command.MAIL, data)
        if reply:
            await self._reset()
        return await self._said(reply or b"250 2.1.0 Ok")

    async def _rcpt(self, path: bytes, arguments: Sequence[bytes]) -> bytes:
        if self._envelope is None:
            return b"503 5.5.1 Error: need MAIL command"
        refusal = b""
        if path == b"<rejected@example.net>":
            refusal = b"554 5.7.1 %b: Recipient address rejected: Access denied" % path
            if not self.agreed.steps & wire.Step.RCPT_REJ:
                return refusal
        self._symbols |= {
            "rcpt_addr": path[1:-1].decode("utf-8", "surrogateescape"),
            "rcpt_host": "[127.0.0.1]:21222",
            "rcpt_mailer": "smtp",
        }
        if refusal:
            self._symbols |= {
                "rcpt_addr": "Recipient address rejected: Access denied",
                "rcpt_host": "5.7.1",
                "rcpt_mailer": "error",
            }
        data = b"\0".join((path, *arguments)) + b"\0"
        answered = await self._event(Command.RCPT, data)
        reply = refusal or answered  # what is said of a refused one has no effect
        if not reply:
            self._envelope.recipients[path] = params(arguments)
            if not self._id:
                self._id = self._symbols["i"] = next(self._ids)
        return await self._said(reply or b"250 2.1.5 Ok")

    async def _data(self) -> bytes:
        if self._envelope is None:
            return b"503 5.5.1 Error: need RCPT command"
        if not self._envelope.recipients:
            return b"554 5.5.1 Error: no valid recipients"
        reply = await self._event(Command.DATA)
        self._in_data = not reply
        return await self._said(reply or b"354 End data with <CR><LF>.<CR><LF>")

    async def _rset(self) -> bytes:
        await self._reset()
        return b"250 2.0.0 Ok"

    async def _other(self, verb: str, line: bytes) -> bytes:
        if verb == "NOOP":
            return b"250 2.0.0 Ok"
        if verb == "VRFY":
            return b"252 2.0.0 " + line.partition(b" ")[2]
        reply = await self._event(Command.UNKNOWN, verb.encode() + b"\0")
        return await self._said(reply or b"500 5.5.2 Error: command not recognized")

    async def _said(self, reply: bytes) -> bytes:
        """Give a reply; 421 ends the session."""
        if reply.startswith(b"421"):
            await self.end()
        return reply

    async def end(self) -> None:
        if self.ended:
            return
        self.ended = True
        if self._helo:
            await self._abort()
        await self._reset()
        await self._quit()

    async def _reset(self) -> None:
        """Forget the transaction; `mail_reset` of smtpd.c."""
        if self._envelope is not None:
            await self._abort()
        self._envelope, self._id = None, ""
        self._symbols.pop("i", None)

    async def _abort(self) -> None:
        await self._send(wire.packet(Command.ABORT))
        self._left_alone = self._dropped = False
        self._skipped = None

    # -- the message -----------------------------------------------------------------------------

    async def _content(self, text: bytes, bdat: int | None = None) -> bytes:
        envelope = self._envelope
        assert envelope is not None
        self._queued = queued = self._receive(envelope, text)
        reply = b"" if bdat is None else await self._event(Command.DATA)
        reply = reply or await self._ask_about(queued)
        if not reply:
            size = "" if bdat is None else f" {bdat} bytes"
            reply = f"250 2.0.0 Ok:{size} queued as {self._id}".encode()
            if not self._dropped:
                self._keep(queued)
        await self._reset()
        return await self._said(reply)

    def _receive(self, envelope: Envelope, text: bytes) -> PostfixQueued:
        text = re.sub(rb"(?<!\r)\n", b"\r\n", text)
        if self._replaces_stray_cr:
            text = re.sub(rb"\r(?!\n)", b" ", text)
        fields, body = section_and_body(text)
        protocol = "UTF8SMTP" if b"SMTPUTF8" in envelope.sender_params else "ESMTP"
        trace = (
            f"Received: from {self._helo.decode('latin-1')} (unknown [{self.client.address}])\n"
            f"\tby {HOST} (Postfix) with {protocol} id {self._id}"
        )
        names = {one.partition(b":")[0].strip().lower() for one in fields}
        supplied = [
            b"Message-Id: <%b.%b@mta.example.org>" % (_ID_DATE, self._id.encode()),
            b"Date: Sat, 21 Nov 2026 00:18:20 +0000 (UTC)",
            b"From: " + envelope.sender[1:-1],
        ]
        missing = [one for one in supplied if one.partition(b":")[0].lower() not in names]
        return PostfixQueued(envelope, trace.encode(), [*missing, *fields], body)

    async def _ask_about(self, queued: PostfixQueued) -> bytes:
        for name, value in queued.shown(bool(self.agreed.steps & wire.Step.HDR_LEADSPC)):
            reply = await self._event(Command.HEADER, name + b"\0" + value + b"\0")
            if reply:
                return reply
        reply = await self._event(Command.EOH)
        if reply:
            return reply
        for piece in pieces(queued.body):
            reply = await self._event(Command.BODY, piece)
            if reply:
                return reply
        return await self._event(Command.EOM)

    def _keep(self, queued: PostfixQueued) -> None:
        if queued.held is not None:
            self.held.append(queued)
        elif queued.envelope.recipients:
            self.delivered.append(queued)

    # -- the filter ------------------------------------------------------------------------------

    async def _event(self, command: Command, data: bytes = b"") -> bytes:
        """Ask the filter; return the reply for the client, empty where it goes on."""
        if self._failed:
            return UNAVAILABLE
        try:
            answer = await self._ask(command, data)
        except Closing:
            self._fail()
            self.ended = True
            return b"421 4.7.0 Server closing connection"
        except Failed:
            self._fail()
            return UNAVAILABLE
        except Unusable:
            self._fail()
            return MISCONFIGURED
        return b"" if answer is None else self._meant(command, answer)

    def _meant(self, command: Command, answer: Answer) -> bytes:
        about_client = command in (Command.CONNECT, Command.HELO)
        reply = {
            Response.REPLYCODE: answer.text,
            Response.REJECT: REJECTED,
            Response.TEMPFAIL: UNAVAILABLE,
        }.get(Response(answer.code), b"")
        if answer.code == Response.SKIP:
            self._skipped = command
        elif about_client and (reply or answer.code == Response.ACCEPT):
            self._standing = reply
            self._hang_up()
        elif answer.code in (Response.ACCEPT, Response.DISCARD) and not about_client:
            self._left_alone = True
            self._dropped = self._dropped or answer.code == Response.DISCARD
        return reply

    def _check_agreed(self, agreed: wire.Negotiated) -> None:
        if agreed.version > self._offer.version:
            raise Failed(f"version {agreed.version}")

    def _takes_progress(self, command: Command) -> bool:
        return True

    def _unknown(self, command: Command, code: int) -> None:
        if code == Response.SHUTDOWN:
            self.faults.append("SHUTDOWN: no other MTA knows it")
            raise Closing
        super()._unknown(command, code)

    def _extra_data(self) -> None:
        raise Failed("data behind an answer")

    def _second_body(self) -> None:
        raise Unusable("a body behind another edit")

    def _half_an_edit(self) -> None:
        raise Failed("half an edit")

    def _as_sent(self, text: bytes) -> bytes:
        class_ = re.match(rb"[45][0-9]{2}[- ](?:([245])\.[0-9]+\.[0-9]+)?", text)
        if class_ is None or (class_[1] is not None and class_[1] != text[:1]):
            raise Unusable("malformed reply")
        return re.sub(rb"%(.)", lambda found: b"%" if found[1] == b"%" else found[1], text)
