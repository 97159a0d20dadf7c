"""The proxy that most people write with aiosmtpd: aiosmtpd_proxy.py PORT UPSTREAM_PORT.

A handler awaits aiosmtplib.send(), which makes a connection for each message.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aiosmtplib  # type: ignore[import-not-found]
from aiosmtpd.smtp import SMTP

_SIZE = 100 * 1024 * 1024  # octets a message may have, as behind Haraka
_HOST = "proxy.example"


class Relay:
    """Hands each message on, and answers when the server behind has it."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Send what has come; an error is answered by aiosmtpd, with 500."""
        await aiosmtplib.send(
            envelope.content,
            sender=envelope.mail_from,
            recipients=envelope.rcpt_tos,
            hostname="127.0.0.1",
            port=self._port,
            local_hostname=_HOST,
        )
        return "250 2.0.0 Ok"


async def serve(port: int, upstream: int) -> None:
    """Listen as aiosmtpd's controller does, with a longer queue."""
    relay, loop = Relay(upstream), asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(relay, data_size_limit=_SIZE, hostname=_HOST, loop=loop),
        "127.0.0.1",
        port,
        backlog=1024,
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(*map(int, sys.argv[1:])))
