"""Sendmail 8.17 with a milter, for tests: `srvrsmtp.c`, `milter.c`; ``F=T``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import final

from mailgate_milter import wire
from mailgate_milter.wire import Command, MacroStage, Response
from tests.milter.mta import HOST, STAGES, Answer, Failed, Mta, pieces, section_and_body
from tests.milter.queued import Envelope, SendmailQueued, params

LATER = b"451 4.3.2 Please try again later"


class Misread(Failed):
    """An answer that is none: it is noticed at the next command."""


@final
class Sendmail(Mta):
    """One sendmail process with one client."""

    _farewell = f"221 2.0.0 {HOST} closing connection".encode()
    _every = b""  # what every command of a transaction is answered
    _defaults: Mapping[MacroStage, Sequence[str]] = {
        MacroStage.CONNECT: ("j", "_", "daemon_name", "if_name", "if_addr"),
        MacroStage.HELO: ("tls_version", "cipher", "cipher_bits", "cert_subject", "cert_issuer"),
        MacroStage.MAIL: (
            *("i", "auth_type", "auth_authen", "auth_ssf", "auth_author"),
            *("mail_mailer", "mail_host", "mail_addr"),
        ),
        MacroStage.RCPT: ("rcpt_mailer", "rcpt_host", "rcpt_addr"),
        MacroStage.EOM: ("msg_id",),
    }
    _in_message = False  # the filter has been told of a message that has not ended

    def _names(self, command: Command) -> Sequence[str] | None:
        if command in (Command.HEADER, Command.BODY, Command.UNKNOWN):
            return None
        stage = STAGES[command]
        asked = self._asked(stage)
        return (self._defaults.get(stage) if asked is None else asked) or None

    # -- the SMTP side ---------------------------------------------------------------------------

    async def connect(self) -> bytes:
        name = self.client.name or f"[{self.client.address}]"
        self._symbols = {
            "j": HOST,
            "daemon_name": "MTA",
            "if_name": "localhost",
            "_": f"{name} [{self.client.address}]",
            **self._client_symbols(name),
        }
        await self._negotiate()
        address = self.client.address
        if self.client.family == "6":
            address = f"IPv6:{address}"
        packet = wire.connect(
            name.encode(), self.client.family, self.client.port, address.encode()
        )
        answer = await self._event(Command.CONNECT, packet[5:])
        banner = f"220 {HOST} ESMTP Sendmail 8.17.1.9/8.17.1.9; Sat, 21 Nov 2026 00:18:39 GMT\r\n"
        if answer is None:
            return banner.encode()
        if answer.text.startswith(b"421"):
            self.ended = True
            await self._quit()
            return f"421 4.7.0 {HOST} closing connection\r\n".encode()
        if answer.code in (Response.ACCEPT, Response.DISCARD):
            await self._quit()
        elif answer.code == Response.TEMPFAIL or answer.text.startswith(b"4"):
            await self._give_up()
        elif answer.code in (Response.REJECT, Response.REPLYCODE):
            self._every = b"550 5.0.0 Command rejected"
            await self._quit()
            banner = f"554 {HOST} ESMTP not accepting messages\r\n"
        return banner.encode()

    async def _give_up(self) -> None:
        """Do without a filter that has deferred the client: every MAIL is deferred."""
        self._failed = True
        await self._quit()

    async def _hello(self, verb: str, name: bytes) -> bytes:
        await self._abort()
        self._envelope = None
        self._helo = name
        answer = None if self._failed else await self._event(Command.HELO, name + b"\0")
        if answer is not None:
            if answer.text.startswith(b"421"):
                await self.end()
                return answer.text
            await self._greeted(answer)
        return b"250 HELP"

    async def _greeted(self, answer: Answer) -> None:
        if answer.code == Response.ACCEPT:
            await self._quit()
        elif answer.code == Response.TEMPFAIL or answer.text.startswith(b"4"):
            await self._give_up()
        elif answer.code in (Response.REJECT, Response.REPLYCODE):
            self._every = answer.text or b"550 5.0.0 Command rejected"
            await self._quit()

    async def _mail(self, path: bytes, arguments: Sequence[bytes]) -> bytes:
        if self._every:
            return self._every
        if self._envelope is not None:
            return b"503 5.5.0 Sender already specified"
        if b"SMTPUTF8" in arguments:
            return b"555 5.5.4 SMTPUTF8 parameter unrecognized"
        if self._failed:
            return LATER
        address = path[1:-1].decode("utf-8", "surrogateescape")
        self._left_alone = self._dropped = False
        self._symbols |= {
            "i": next(self._ids),
            "mail_mailer": "relay" if address else "local",
            "mail_host": "[127.0.0.1]" if address else "",
            "mail_addr": address,
        }
        self._in_message = True
        data = b"\0".join((path, *arguments)) + b"\0"
        answer = await self._event(Command.MAIL, data)
        reply = self._refusal(answer, b"550 5.7.1 %b... Command rejected" % path)
        if reply:
            self._in_message = False
            return await self._said(reply)
        self._envelope = Envelope(path, params(arguments))
        return b"250 2.1.0 %b... Sender ok" % path

    async def _rcpt(self, path: bytes, arguments: Sequence[bytes]) -> bytes:
        if self._every:
            return self._every
        if self._envelope is None:
            return b"503 5.0.0 Need MAIL before RCPT"
        if path == b"<rejected@example.net>":
            return b"550 5.7.1 %b... no such user here" % path
        unknown = path == b"<nosuch@mta.example.org>"
        self._symbols |= {
            "rcpt_mailer": "error" if unknown else "relay",
            "rcpt_host": "5.1.1" if unknown else "[127.0.0.1]",
            "rcpt_addr": (
                "550 5.1.1 User unknown"
                if unknown
                else path[1:-1].decode("utf-8", "surrogateescape")
            ),
        }
        answer = None
        if not unknown or self.agreed.steps & wire.Step.RCPT_REJ:
            answer = await self._event(Command.RCPT, b"\0".join((path, *arguments)) + b"\0")
        if unknown:
            return b"550 5.1.1 %b... User unknown" % path
        reply = self._refusal(answer, b"550 5.7.1 %b... Command rejected" % path)
        if not reply:
            self._envelope.recipients[path] = params(arguments)
            if answer is not None and answer.code == Response.DISCARD:
                await self._abort()
        return await self._said(reply or b"250 2.1.5 %b... Recipient ok" % path)

    async def _data(self) -> bytes:
        if self._every:
            return self._every
        if self._envelope is None:
            return b"503 5.0.0 Need MAIL command"
        if not self._envelope.recipients:
            return b"503 5.0.0 Need RCPT (recipient)"
        answer = await self._event(Command.DATA)
        reply = self._refusal(answer, b"554 5.7.1 Command rejected")
        self._in_data = not reply
        if reply:
            self._in_message, self._envelope = False, None
        return await self._said(reply or b"354 End data with <CR><LF>.<CR><LF>")

    async def _rset(self) -> bytes:
        await self._abort()
        self._envelope = None
        return b"250 2.0.0 Reset state"

    async def _other(self, verb: str, line: bytes) -> bytes:
        match verb:
            case "NOOP":
                return b"250 2.0.0 OK"
            case "HELP":
                return b"214 2.0.0 End of HELP info"
            case "VRFY":
                return b"550 5.1.1 %b... User unknown" % line.partition(b" ")[2]
        answer = await self._event(Command.UNKNOWN, line + b"\0")
        reply = self._refusal(answer, b"550 5.7.1 Command rejected")
        return await self._said(reply or b'500 5.5.1 Command unrecognized: "%b"' % line)

    async def _said(self, reply: bytes) -> bytes:
        """Give a reply; 421 ends the session."""
        if reply.startswith(b"421"):
            await self.end()
        return reply

    async def end(self) -> None:
        if self.ended:
            return
        self.ended = True
        if self._in_data:  # the client has gone: no word to the filter
            self._hang_up()
        else:
            await self._quit()

    async def _abort(self) -> None:
        if self._in_message and (self._dropped or not self._left_alone):
            await self._send(wire.packet(Command.ABORT))
        self._in_message = False

    # -- the message -----------------------------------------------------------------------------

    async def _content(self, text: bytes, bdat: int | None = None) -> bytes:
        envelope = self._envelope
        assert envelope is not None
        if re.search(rb"(?<!\r)\n", text):
            self._hang_up()
            self.ended = True
            return b"421 4.5.0 Bare linefeed (LF) not allowed"
        fields, body = section_and_body(text)
        own_id = f"<202611210018.{self._symbols['i']}@{HOST}>"
        supplied = {
            b"Date": b" Sat, 21 Nov 2026 00:18:22 GMT",
            b"From": b" " + envelope.sender[1:-1],
            b"Message-Id": b" " + own_id.encode(),
        }
        queued = SendmailQueued(envelope, self._trace(), fields, body or b"", supplied)
        self._queued = queued
        ids = [one for one in fields if one.lower().startswith(b"message-id:")]
        self._symbols["msg_id"] = (
            ids[0].partition(b":")[2].strip().decode("latin-1") if ids else own_id
        )
        reply = await self._ask_about(queued)
        self._in_message = False
        self._envelope = None
        if not reply and not self._dropped:
            self._keep(queued)
        done = f"250 2.0.0 {self._symbols['i']} Message accepted for delivery".encode()
        return await self._said(reply or done)

    def _trace(self) -> bytes:
        helo = self._helo.decode("latin-1")
        return (
            f"Received: from {helo} (localhost [{self.client.address}])\n"
            f"\tby {HOST} (8.17.1.9/8.17.1.9) with ESMTP id {self._symbols['i']}"
        ).encode()

    async def _ask_about(self, queued: SendmailQueued) -> bytes:
        rejected = b"554 5.7.1 Command rejected"
        skipped = False
        for name, value in queued.shown(bool(self.agreed.steps & wire.Step.HDR_LEADSPC)):
            answer = await self._event(Command.HEADER, name + b"\0" + value + b"\0")
            skipped = skipped or (answer is not None and answer.code == Response.SKIP)
            reply = self._refusal(answer, rejected)
            if reply:
                return reply
        reply = self._refusal(await self._event(Command.EOH), rejected)
        if reply:
            return reply
        for piece in pieces(b"" if skipped else queued.body):
            answer = await self._event(Command.BODY, piece)
            reply = self._refusal(answer, rejected)
            if reply:
                return reply
            if answer is not None and answer.code == Response.SKIP:
                break
        return self._refusal(await self._event(Command.EOM), rejected)

    def _keep(self, queued: SendmailQueued) -> None:
        if queued.held is not None:
            self.held.append(queued)
        elif queued.envelope.recipients:
            self.delivered.append(queued)

    # -- the filter ------------------------------------------------------------------------------

    async def _event(self, command: Command, data: bytes = b"") -> Answer | None:
        """Ask the filter; None where it goes on, TEMPFAIL where it has failed."""
        if self._failed:
            return Answer(Response.TEMPFAIL)
        try:
            answer = await self._ask(command, data)
        except Misread:
            self._fail()
            return None
        except Failed:
            self._fail()
            return Answer(Response.TEMPFAIL)
        if answer is None or answer.code == Response.CONTINUE:
            return None
        if answer.code == Response.SKIP and command is Command.RCPT:
            self._left_alone = True
        if answer.code in (Response.ACCEPT, Response.DISCARD):
            self._left_alone = True
            self._dropped = self._dropped or answer.code == Response.DISCARD
        return answer

    @staticmethod
    def _refusal(answer: Answer | None, rejected: bytes) -> bytes:
        """Return the reply for the client, empty where it goes on."""
        if answer is None:
            return b""
        match answer.code:
            case Response.REPLYCODE:
                return answer.text or rejected
            case Response.REJECT:
                return rejected
            case Response.TEMPFAIL:
                return LATER
        return b""

    def _check_agreed(self, agreed: wire.Negotiated) -> None:
        if agreed.version < 2 or agreed.steps & ~self._offer.steps:
            raise Failed("an offer that was not made")

    def _takes_progress(self, command: Command) -> bool:
        return command is Command.EOM

    def _unknown(self, command: Command, code: int) -> None:
        self.faults.append(f"{chr(code)!a} as answer to {command.name}")
        if code == Response.CONN_FAIL or command in (Command.HEADER, Command.EOM):
            raise Failed
        raise Misread

    def _extra_data(self) -> None:
        pass

    def _second_body(self) -> None:
        pass

    def _half_an_edit(self) -> None:
        pass

    def _as_sent(self, text: bytes) -> bytes:
        if not re.match(rb"[45][0-9]{2}", text) or b"%" in text.replace(b"%%", b""):
            return b""  # the caller says "Command rejected"
        found = re.match(rb"([45])[0-9]{2} (?![245]\.[0-9]+\.[0-9]+ )", text)
        if found is not None:
            text = text[:4] + found[1] + b".0.0 " + text[4:]
        return text.replace(b"%%", b"%")
