"""An smtpd for tests: it plays whole sessions, in the order of lka_filter.c, and delivers.

Only what the filter registers is sent, questions wait for their answers, and any line that
would end the real smtpd fails the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import final

from mailgate.chain import Defaults, Loaded
from mailgate.contract import Delivery, Mail
from mailgate.engine import Engine
from mailgate_opensmtpd.filter import Filter
from mailgate_opensmtpd.registration import CAPABILITIES
from tests.oracles import OpensmtpdOracle

SESSION = b"7641df9771b4ed00"
MSGID = "98775924"
TRACE = (
    b"Received: from client.example (client.example [192.0.2.1])",
    b"\tby mx.example (OpenSMTPD) with ESMTP id 98775924;",
    b"\tSat, 21 Nov 2026 10:00:00 +0000 (UTC)",
)


class Refused(Exception):
    """A command was refused: the reply text."""


@final
class Wire:
    """Both directions of the filter's pipe, in memory."""

    def __init__(self) -> None:
        self.oracle = OpensmtpdOracle()
        self.registered: set[str] = set()
        self._to_filter: asyncio.Queue[bytes] = asyncio.Queue()
        self._answers: asyncio.Queue[str] = asyncio.Queue()
        self._lines: list[bytes] = []
        self.ready = asyncio.Event()
        self._dot = asyncio.Event()
        self._rest = b""

    async def read(self) -> bytes:
        return await self._to_filter.get()

    def write(self, data: bytes) -> None:
        self.oracle.wrote(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            kind, _, rest = line.partition(b"|")
            if kind == b"register":
                self.registered.add(rest.decode())
                if rest == b"ready":
                    self.ready.set()
            elif kind == b"filter-result":
                self._answers.put_nowait(rest.split(b"|", 2)[2].decode("utf-8"))
            elif rest.split(b"|", 2)[2] == b".":
                self._dot.set()
            else:
                self._lines.append(rest.split(b"|", 2)[2])

    def send(self, line: bytes) -> None:
        if line:
            self.oracle.asked(line + b"\n")
        self._to_filter.put_nowait(line + b"\n" if line else b"")

    def report(self, event: str, *fields: str) -> None:
        if f"report|smtp-in|{event}" in self.registered:
            text = "|".join(
                ["report|0.7|1795219047.468262|smtp-in", event, SESSION.decode(), *fields]
            )
            self.send(text.encode())

    async def ask(self, phase: str, parameter: str = "") -> tuple[str, str]:
        """Ask for a phase; return decision and parameter, proceed where it is not registered."""
        if f"filter|smtp-in|{phase}" not in self.registered:
            return "proceed", ""
        token = f"{sum(phase.encode()):016x}"
        self.send(
            f"filter|0.7|1795219047.468309|smtp-in|{phase}|{SESSION.decode()}|{token}|{parameter}".encode()
        )
        async with asyncio.timeout(10):
            decision, _, rest = (await self._answers.get()).partition("|")
        self.report("filter-response", phase, decision, *([rest] if rest else []))
        if decision in ("reject", "disconnect"):
            raise Refused(rest)
        return decision, rest

    async def message(self, lines: Sequence[bytes]) -> list[bytes]:
        """Send message lines and a dot; return what comes back, as smtpd would write it."""
        if "filter|smtp-in|data-line" not in self.registered:
            return [*lines]
        start = (
            b"filter|0.7|1795219047.475545|smtp-in|data-line|" + SESSION + b"|82742f0304d5a29a|"
        )
        for line in [*lines, b"."]:
            self.send(start + line)
        async with asyncio.timeout(10):
            await self._dot.wait()
        return self._lines


@final
class SmtpdServer:
    """The `mailgate.contract.Server` of the filter protocol."""

    def deliver(self, policies: Sequence[Loaded], defaults: Defaults, mail: Mail) -> Delivery:
        return asyncio.run(self._deliver(policies, defaults, mail))

    async def _deliver(
        self, policies: Sequence[Loaded], defaults: Defaults, mail: Mail
    ) -> Delivery:
        engine = Engine(policies, CAPABILITIES, defaults=defaults)
        async with _filter(engine) as wire:
            try:
                return await _converse(wire, mail)
            except Refused as refused:
                reply = str(refused)
                wire.report("link-disconnect")
                return Delivery(int(reply[0]), reply)


@asynccontextmanager
async def _filter(engine: Engine) -> AsyncIterator[Wire]:
    wire = Wire()
    running = asyncio.create_task(Filter(engine, "reject", wire.read, wire.write).run())
    for line in ("smtpd-version|7.8.0", "protocol|0.7", "subsystem|smtp-in", "ready"):
        wire.send(f"config|{line}".encode())
    await wire.ready.wait()
    yield wire
    wire.send(b"")
    await running
    assert wire.oracle.ended() == []


async def _converse(wire: Wire, mail: Mail) -> Delivery:
    wire.report("link-connect", "client.example", "pass", f"{mail.client}:4321", "192.0.2.9:25")
    await wire.ask("connect", f"client.example|{mail.client}")
    wire.report("protocol-client", f"EHLO {mail.helo}")
    await wire.ask("ehlo", mail.helo)
    wire.report("link-identify", "EHLO", mail.helo)
    sender, params = await _path(wire, "MAIL FROM", "mail-from", mail.sender, mail.params)
    wire.report("tx-begin", MSGID)
    wire.report("tx-mail", MSGID, "ok", mail.sender)
    taken, refused, reply = await _recipients(wire, mail)
    if not taken:
        return Delivery(int(reply[0]), reply, refused)
    wire.report("protocol-client", "DATA")
    await wire.ask("data")
    wire.report("tx-data", MSGID, "ok")
    stuffed = [b"." + line if line.startswith(b".") else line for line in mail.raw.split(b"\r\n")]
    back = await wire.message([*TRACE, *stuffed[:-1]])
    wire.report("protocol-client", ".")
    await wire.ask("commit")
    wire.report("tx-commit", MSGID, "4711")
    wire.report("tx-reset", MSGID)
    wire.report("link-disconnect")
    return Delivery(
        raw=_delivered(back), refused=refused, sender=sender, params=params, recipients=taken
    )


async def _recipients(wire: Wire, mail: Mail) -> tuple[list[str], list[str], str]:
    taken, refused, reply = [], [], ""
    for recipient in mail.recipients:
        try:
            taken.append((await _path(wire, "RCPT TO", "rcpt-to", recipient))[0])
            wire.report("tx-rcpt", MSGID, "ok", recipient)
        except Refused as text:
            reply = str(text)
            refused.append(recipient)
            wire.report("tx-rcpt", MSGID, "permfail", recipient)
    return taken, refused, reply


async def _path(
    wire: Wire, command: str, phase: str, address: str, params: Mapping[str, str] | None = None
) -> tuple[str, dict[str, str]]:
    """Send MAIL or RCPT; return the address and the parameters that the server goes on with."""
    arguments = "".join(f" {name}={value}" for name, value in (params or {}).items())
    wire.report("protocol-client", f"{command}:<{address}>{arguments}")
    decision, parameter = await wire.ask(phase, address)
    if decision != "rewrite":
        return address, dict(params or {})
    assert parameter.startswith("<"), "smtpd answers 553"
    path, _, rest = parameter.partition(">")
    pairs = (argument.partition("=") for argument in rest.split())
    return path.removeprefix("<"), {name: value for name, _, value in pairs}


def _delivered(lines: Sequence[bytes]) -> bytes:
    """Return the message without its stuffing and without smtpd's own field."""
    plain = [line[1:] if line.startswith(b".") else line for line in lines]
    at = next(n for n, line in enumerate(plain) if line == TRACE[0])
    assert plain[at : at + 3] == list(TRACE), "smtpd's own field was touched"
    return b"".join(line + b"\r\n" for line in plain[:at] + plain[at + 3 :])
