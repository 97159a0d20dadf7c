"""The contract's mail server: the proxy between a client and a mail server of these tests."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, final

from mailgate.chain import Defaults, Loaded, unmet
from mailgate.contract import Delivery, Mail
from mailgate_smtp.adapter import SmtpAdapter
from mailgate_smtp.options import SmtpOptions
from tests.milter.running import run
from tests.smtp.client import Client, Reply
from tests.smtp.mta import Mta
from tests.smtp.running import serving

# What a maildir has above the message: maildir(5) leaves Return-Path and the like to the MDA.
_TRACE = re.compile(
    rb"Return-Path: <(.*)>\n((?:Delivered-To: .*\n)*)Received: .*\n(?:[ \t].*\n)*", re.MULTILINE
)


class ProxyServer:
    """The `mailgate.contract.Server` of SMTP; the client comes from where the mail says it does."""

    lmtp: ClassVar[bool] = False
    chunks: ClassVar[bool] = False
    body: ClassVar[Literal["hold", "stream"]] = "hold"
    connect: ClassVar[Literal["connect", "mail", "data"]] = "mail"

    def deliver(self, policies: Sequence[Loaded], defaults: Defaults, mail: Mail) -> Delivery:
        with tempfile.TemporaryDirectory() as folder:
            return run(lambda: self._deliver(policies, defaults, mail, Path(folder)))

    async def _deliver(
        self, policies: Sequence[Loaded], defaults: Defaults, mail: Mail, folder: Path
    ) -> Delivery:
        options = self._options(policies, folder / "quarantine")
        async with (
            Mta(lmtp=self.lmtp) as mta,
            serving(*policies, upstream=mta, options=options, defaults=defaults) as running,
        ):
            client = await running.open()
            client.transport.write(b"PROXY TCP4 %b 127.0.0.1 5000 25\r\n" % mail.client.encode())
            code, text, refused = await self._converse(client, mail)
        assert mta.faults == []
        assert running.errors == []
        client.check()
        if code != 2:
            assert mta.messages == []
            return Delivery(code, text, refused)
        return _delivery(mta, folder / "quarantine", mail, refused)

    def _options(self, policies: Sequence[Loaded], quarantine: Path) -> SmtpOptions:
        return SmtpOptions(
            listen="lmtp:127.0.0.1:0" if self.lmtp else "127.0.0.1:0",
            trusted=("127.0.0.1",),
            proxy_protocol=True,
            open_relay=True,
            quarantine=f"maildir:{quarantine}",
            body=self.body,
            connect=self.connect,
        )

    async def _converse(self, client: Client, mail: Mail) -> tuple[int, str, list[str]]:
        """Say a mail up to the first refusal; return how it ended, and who was refused."""
        refused: list[str] = []
        reply = await client.reply()
        if reply.code == 220:
            reply = await _say(client, f"{'LHLO' if self.lmtp else 'EHLO'} {mail.helo}")
        if reply.code == 250:
            arguments = "".join(f" {name}={value}" for name, value in mail.params.items())
            reply = await _say(client, f"MAIL FROM:<{mail.sender}>{arguments}")
        if reply.code != 250:
            return *_ended(reply), refused
        for recipient in mail.recipients:
            reply = await _say(client, f"RCPT TO:<{recipient}>")
            if reply.code != 250:
                refused.append(recipient)
        accepted = len(mail.recipients) - len(refused)
        if accepted:
            reply = await self._send(client, mail.raw, accepted)
        if reply.code != 421:
            await client.send(b"QUIT\r\n")
        await client.until_ended()
        return *_ended(reply), refused

    async def _send(self, client: Client, raw: bytes, recipients: int) -> Reply:
        """Send the message; return the reply to it, or with LMTP those to each recipient."""
        if self.chunks:
            middle = len(raw) // 2
            await client.send(b"BDAT %d\r\n%b" % (middle, raw[:middle]))
            if (reply := await client.reply()).code != 250:
                return reply
            await client.send(b"BDAT %d LAST\r\n%b" % (len(raw) - middle, raw[middle:]))
            reply = await client.reply()
        else:
            reply = await client.data(re.sub(rb"(?m)^\.", b"..", raw))
        for _ in range(recipients - 1 if self.lmtp and reply.code != 421 else 0):
            assert (await client.reply()).code == reply.code
        return reply


@final
class LmtpServer(ProxyServer):
    """LMTP on both sides: a reply for each recipient."""

    lmtp = True


@final
class ChunkingServer(ProxyServer):
    """A client that sends its message by BDAT."""

    chunks = True


@final
class LateServer(ProxyServer):
    """The server behind is connected to when the message is there."""

    connect = "data"


@final
class StreamingServer(ProxyServer):
    """Messages are passed on as they come, where the policies allow that."""

    body = "stream"

    def _options(self, policies: Sequence[Loaded], quarantine: Path) -> SmtpOptions:
        options = super()._options(policies, quarantine)
        adapter = SmtpAdapter(options)
        missing = unmet(policies, adapter.capabilities)
        if not missing:
            return options
        assert adapter.remedies[missing[0].needs[0]] == 'set body = "hold" in [smtp]'
        return ProxyServer()._options(policies, quarantine)


async def _say(client: Client, line: str) -> Reply:
    return await client.say(line.encode())


def _ended(reply: Reply) -> tuple[int, str]:
    return reply.code // 100, reply.text.decode()


def _delivery(mta: Mta, quarantine: Path, mail: Mail, refused: Sequence[str]) -> Delivery:
    """Return what became of a message that was taken."""
    held = [path.read_bytes() for path in (quarantine / "new").glob("*")]
    if held:
        (file,) = held
        trace = _TRACE.match(file)
        assert trace is not None, file[:300]
        recipients = re.findall(rb"Delivered-To: (.*)\n", trace[2])
        return Delivery(
            raw=file[trace.end() :].replace(b"\n", b"\r\n"),
            refused=refused,
            sender=trace[1].decode(),
            params=mail.params,  # a maildir has no place for them
            recipients=[one.decode() for one in recipients],
            held=True,
        )
    if not mta.messages:
        return Delivery(sender=mail.sender, recipients=[], refused=refused)
    (message,) = mta.messages
    words = (word.decode().partition("=") for word in message.sender.words)
    return Delivery(
        raw=message.content,
        refused=refused,
        sender=message.sender.mailbox.decode(),
        params={name: value for name, _, value in words},
        recipients=[one.mailbox.decode() for one in message.recipients],
    )
