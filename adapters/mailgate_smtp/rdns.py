"""Reverse DNS of a client, confirmed by the name's own addresses (RFC 8601 3).

The system's resolver is asked, off the event loop, and only where a policy wants to know.
"""

from __future__ import annotations

import asyncio
import socket

from mailgate.session import IPAddress, address_of

PATIENCE = 5.0
"""Seconds that both questions may take together; then nothing is known."""


async def look_up(address: IPAddress) -> tuple[str | None, bool | None]:
    """Return the name of an address, and whether the name has that address.

    Both are None where the resolver did not answer; the name is None where there is none.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE):
            name, _ = await loop.getnameinfo((str(address), 0), socket.NI_NAMEREQD)
            found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return None, False if error.errno == socket.EAI_NONAME else None
    except (OSError, UnicodeError, TimeoutError):
        return None, None
    return name, any(address_of(str(place[0])) == address for *_, place in found)
