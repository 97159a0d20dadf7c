"""The table's filters on kilter: kilter_filter.py null|real|every unix:PATH|HOST:PORT.

What its decorators do not name is negotiated away.  Two events are asked for that the filters
do not look at: without MAIL kilter does not see that a message ends, and does not start the
filter for the next one; without the end of the header it takes the first piece of the body for
that.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

import sys

import anyio  # type: ignore[import-not-found]
from kilter.protocol import Accept, Header, ProtocolFlags  # type: ignore[import-not-found]
from kilter.service import END, Runner, Session, options  # type: ignore[import-not-found]


async def read_recipients(session: Session) -> None:
    """Look at each recipient, as they come."""
    async for _recipient in session.envelope_recipients():
        pass


@options.examine_sender()
@options.examine_recipients(can_respond=True)
async def null(session: Session) -> Accept:
    """Answer at RCPT and at the end of the message."""
    await read_recipients(session)
    return Accept()


@options.examine_sender()
@options.examine_recipients(can_respond=True)
@options.examine_headers(can_add=True)
@options.modify_flags(unset_options=ProtocolFlags.NO_END_OF_HEADERS)
@options.examine_body()
async def real(session: Session) -> Accept:
    """Read header and body, and add a field with the length of the body."""
    await read_recipients(session)
    await session.headers.collect()
    length = 0
    async with session.body as pieces:
        async for piece in pieces:
            length += len(piece)
    await session.headers.insert(Header("X-Length", str(length).encode()), END)
    return Accept()


@options.responds_to_connect()
@options.examine_helo(can_respond=True)
@options.examine_sender(can_respond=True)
@options.examine_recipients(can_respond=True)
@options.examine_headers(can_respond=True)
@options.examine_body(can_respond=True)
async def every(session: Session) -> Accept:
    """Answer every event."""
    await session.helo()
    await session.envelope_from()
    await read_recipients(session)
    await session.headers.collect()
    async with session.body as pieces:
        async for _piece in pieces:
            pass
    return Accept()


async def serve(work: str, address: str) -> None:
    """Serve one of them."""
    if address.startswith("unix:"):
        listener = await anyio.create_unix_listener(address[5:], backlog=1024)
    else:
        host, _, port = address.rpartition(":")
        listener = await anyio.create_tcp_listener(
            local_host=host, local_port=int(port), backlog=1024
        )
    await listener.serve(Runner({"null": null, "real": real, "every": every}[work]))


if __name__ == "__main__":
    anyio.run(serve, *sys.argv[1:])
