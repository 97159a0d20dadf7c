"""What a client logs in with: the SASL mechanisms PLAIN (RFC 4616) and LOGIN, over RFC 4954.

The exchanges are aiosmtpd's.  Its challenges and its replies are replaced: it logs what it
cannot decode, and that may be a password.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias, cast, final

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from mailgate_smtp.wire import CommandError, reply

Challenge: TypeAlias = Callable[[bytes], Awaitable[bytes]]
"""Sends what stands behind ``334 ``, and returns the client's next line without its CRLF."""

MALFORMED = reply(501, "5.5.2", "The response is not one of this mechanism in base64")
CANCELLED = reply(501, "5.7.0", "Authentication cancelled")
UNKNOWN_MECHANISM = reply(504, "5.5.4", "Unrecognized authentication mechanism")
INVALID = reply(535, "5.7.8", "Authentication credentials invalid")


@final
@dataclass(frozen=True, slots=True)
class Credentials:
    """Who a client says it is, and what proves it; the password is never printed."""

    user: str
    password: str = field(repr=False)

    @property
    def plain(self) -> bytes:
        """The initial response of PLAIN that says the same."""
        return b64encode(f"\0{self.user}\0{self.password}".encode())


async def credentials(mechanism: str, initial: bytes | None, challenge: Challenge) -> Credentials:
    """Return what a client logs in with; ``initial`` is its initial response as it came.

    CommandError for a response that is none, an empty user or password, a cancelled exchange,
    another mechanism, and a client that wants to act for somebody else.
    """
    exchange = _Exchange(challenge)
    match mechanism.upper():
        case "PLAIN":
            response = await ask(challenge, b"") if initial is None else initial_response(initial)
            found = await exchange.auth_PLAIN(None, ["PLAIN", response.decode("latin-1")])
            actor = decode_response(response).partition(b"\0")[0]
        case "LOGIN":
            words = [] if initial is None else [initial_response(initial).decode("latin-1")]
            found = await exchange.auth_LOGIN(None, ["LOGIN", *words])
            actor = b""
        case _:
            raise CommandError(UNKNOWN_MECHANISM)
    user, password = cast(LoginPassword, found.auth_data)
    if actor not in (b"", user):
        raise CommandError(INVALID)  # RFC 4616 2: nobody here may act for another
    return Credentials(_text(user), _text(password))


async def ask(challenge: Challenge, prompt: bytes) -> bytes:
    """Return a client's response to a prompt in base64; CommandError where it cancels."""
    response = await challenge(prompt)
    if response == b"*":
        raise CommandError(CANCELLED)
    return response


def initial_response(word: bytes) -> bytes:
    """Return the initial response of an AUTH command, where ``=`` is the empty one (RFC 4954 4)."""
    return b"" if word == b"=" else word


def checked_response(response: bytes) -> bytes:
    """Return a response as it came: base64, ``=`` or ``*`` (RFC 4954 4).  CommandError."""
    if response not in (b"*", b"="):
        decode_response(response)
    return response


def decode_response(response: bytes) -> bytes:
    """Return what a response stands for; CommandError where it is not base64."""
    try:
        return b64decode(response, validate=True)
    except binascii.Error:
        raise CommandError(MALFORMED) from None


def _text(octets: bytes) -> str:
    """Return a user or a password as text; CommandError for one that RFC 4616 2 does not have."""
    if not octets or b"\0" in octets:
        raise CommandError(MALFORMED)
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise CommandError(MALFORMED) from None


@final
class _Exchange(SMTP):
    """aiosmtpd's mechanisms without its connection, which its constructor would make."""

    AuthLoginUsernameChallenge = "Username:"  # what other servers say; some clients look
    AuthLoginPasswordChallenge = "Password:"

    def __init__(self, challenge: Challenge) -> None:
        self._challenge = challenge

    async def challenge_auth(
        self,
        challenge: str | bytes,
        encode_to_b64: bool = True,
        log_client_response: bool = False,
    ) -> bytes:
        prompt = challenge.encode() if isinstance(challenge, str) else challenge
        return decode_response(await ask(self._challenge, b64encode(prompt)))

    async def push(self, status: str | bytes) -> NoReturn:
        """Refuse: the mechanisms reply only where a response is malformed."""
        raise CommandError(MALFORMED) from None

    def _authenticate(self, mechanism: str, auth_data: Any) -> AuthResult:
        return AuthResult(success=True, auth_data=auth_data)
