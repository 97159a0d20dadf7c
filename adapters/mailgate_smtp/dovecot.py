"""Logins that Dovecot checks, over its authentication socket.

What a client sends gets to Dovecot as base64 only.
"""

from __future__ import annotations

import asyncio
import logging
import re
from base64 import b64encode
from typing import final

from mailgate.session import address_of
from mailgate_smtp.dovecot_socket import Answer, Connection, Failure, connect
from mailgate_smtp.sasl import (
    INVALID,
    UNKNOWN_MECHANISM,
    Challenge,
    ask,
    decode_response,
    initial_response,
)
from mailgate_smtp.wire import CommandError, reply

log = logging.getLogger(__name__)

UNAVAILABLE = reply(454, "4.7.0", "Temporary authentication failure")

_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")


@final
class Dovecot:
    """The logins of one Dovecot, all on one connection that is opened when it is needed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()

    async def mechanisms(self) -> tuple[str, ...]:
        """Return the SASL mechanisms that clients may use, in Dovecot's order.

        CommandError where it cannot be asked.
        """
        return (await self._connected()).mechanisms

    async def authenticate(
        self,
        mechanism: str,
        initial: bytes | None,
        challenge: Challenge,
        *,
        secured: bool,
        client: str,
        client_port: int,
        server: str,
        server_port: int,
    ) -> str:
        """Have Dovecot check a login, and return the name of the user.

        CommandError where it is refused, cancelled or malformed, and where Dovecot fails.
        """
        words = [mechanism.upper().encode("ascii", "replace"), b"service=smtp", b"nologin"]
        words += _end(b"r", client, client_port) + _end(b"l", server, server_port)
        if secured:
            words.append(b"secured")
        if initial is not None:
            response = b64encode(decode_response(initial_response(initial)))
            words.append(b"resp=" + (response or b"="))  # the last one, whatever else comes
        connection = await self._connected()
        if mechanism.upper() not in connection.mechanisms:
            raise CommandError(UNKNOWN_MECHANISM)  # Dovecot would hang up
        request = connection.begin()
        try:
            answer = await request.say(b"AUTH", *words)
            while answer.command == b"CONT":
                response = decode_response(await ask(challenge, _prompt(answer)))
                answer = await request.say(b"CONT", b64encode(response))
            if answer.command == b"OK":
                return answer.user
        except Failure as failure:
            raise self._unavailable(failure) from None
        finally:
            request.end()
        temporary = not {b"temp", b"code=temp_fail"}.isdisjoint(answer.words)
        raise CommandError(UNAVAILABLE if temporary else INVALID)

    def close(self) -> None:
        """Hang up; logins under way fail."""
        if self._connection is not None:
            self._connection.fail("the proxy ends")

    async def _connected(self) -> Connection:
        async with self._opening:
            if self._connection is None or self._connection.failure:
                try:
                    self._connection = await connect(self._path)
                except Failure as failure:
                    raise self._unavailable(failure) from None
            return self._connection

    def _unavailable(self, failure: Failure) -> CommandError:
        log.warning("no logins by Dovecot at %s: %s", self._path, failure)
        return CommandError(UNAVAILABLE)


def _end(side: bytes, address: str, port: int) -> list[bytes]:
    """Return the parameters for one end of the client's connection, as far as it is known."""
    text = address.partition("%")[0]  # a zone is ours alone
    if address_of(text) is None:
        return []
    return [side + b"ip=" + text.encode("ascii"), side + b"port=%d" % port]


def _prompt(answer: Answer) -> bytes:
    """Return what a client is asked, in base64 as Dovecot sends it."""
    prompt = answer.words[0] if answer.words else b""
    if not _BASE64.fullmatch(prompt):
        raise Failure("its challenge is not base64")
    return prompt
