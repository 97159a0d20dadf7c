"""PLAIN and LOGIN: what RFC 4616 and RFC 4954 say of them, and that nobody else hears it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from base64 import b64encode
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate_smtp.sasl import Credentials, credentials
from mailgate_smtp.wire import CommandError


class Client:
    """Answers challenges with these lines, and keeps what it was asked."""

    def __init__(self, *lines: bytes) -> None:
        self.lines = list(lines)
        self.asked: list[bytes] = []

    async def __call__(self, prompt: bytes) -> bytes:
        self.asked.append(prompt)
        return self.lines.pop(0)


def log_in(mechanism: str, initial: bytes | None, client: Client | None = None) -> Credentials:
    return asyncio.run(credentials(mechanism, initial, client or Client()))


def refusal(mechanism: str, initial: bytes | None, *lines: bytes) -> str:
    """Return the code and the enhanced code of a refusal."""
    with pytest.raises(CommandError) as caught:
        log_in(mechanism, initial, Client(*lines))
    reply = caught.value.reply
    return f"{reply.code} {reply.lines[0].split()[0].decode()}"


TIM = Credentials("tim", "tanstaaftanstaaf")

# -- PLAIN ---------------------------------------------------------------------------------------


def test_the_example_of_rfc_4954() -> None:
    """4.1: an initial response."""
    assert log_in("PLAIN", b"dGVzdAB0ZXN0ADEyMzQ=") == Credentials("test", "1234")


def test_the_example_of_rfc_4616() -> None:
    """4: tim, after an empty challenge."""
    client = Client(b64encode(b"\0tim\0tanstaaftanstaaf"))
    assert log_in("PLAIN", None, client) == TIM
    assert client.asked == [b""]


def test_nobody_acts_for_somebody_else() -> None:
    """RFC 4616 4, the second example: Kurt is not authorized to act as Ursel."""
    response = b64encode(b"Ursel\0Kurt\0xipj3plmq")
    assert refusal("PLAIN", response) == "535 5.7.8"
    assert refusal("PLAIN", None, response) == "535 5.7.8"


def test_a_client_may_act_for_itself() -> None:
    assert log_in("PLAIN", b64encode(b"Kurt\0Kurt\0xipj3plmq")).user == "Kurt"


def test_a_user_and_a_password_are_utf8() -> None:
    response = b64encode("\0j\u00fcrgen\0stra\u00dfe \u20ac".encode())
    assert log_in("PLAIN", response) == Credentials("j\u00fcrgen", "stra\u00dfe \u20ac")
    assert refusal("PLAIN", b64encode(b"\0j\xfcrgen\0x")) == "501 5.5.2"
    assert refusal("PLAIN", b64encode(b"\0x\0stra\xdfe")) == "501 5.5.2"


@pytest.mark.parametrize(
    "message", [b"", b"tim", b"\0tim", b"\0tim\0a\0b", b"\0\0secret", b"\0tim\0", b"\0\0"]
)
def test_a_message_of_another_form_is_refused(message: bytes) -> None:
    """RFC 4616 2: two NULs; neither the user nor the password is empty."""
    assert refusal("PLAIN", b64encode(message) or b"=") == "501 5.5.2"
    assert refusal("PLAIN", None, b64encode(message)) == "501 5.5.2"


# -- LOGIN ---------------------------------------------------------------------------------------

USERNAME, PASSWORD = b"VXNlcm5hbWU6", b"UGFzc3dvcmQ6"  # as Postfix, Exim and Dovecot ask


def test_login_asks_for_both() -> None:
    client = Client(b"dGlt", b64encode(b"tanstaaftanstaaf"))
    assert log_in("LOGIN", None, client) == TIM
    assert client.asked == [USERNAME, PASSWORD]


def test_login_takes_the_user_with_the_command() -> None:
    client = Client(b64encode(b"tanstaaftanstaaf"))
    assert log_in("LOGIN", b"dGlt", client) == TIM
    assert client.asked == [PASSWORD]


@pytest.mark.parametrize("user", [b"", b"a\0b", b"\xff"])
def test_login_refuses_a_user_that_plain_cannot_have(user: bytes) -> None:
    assert refusal("LOGIN", b64encode(user) or b"=", b"eA==") == "501 5.5.2"
    assert refusal("LOGIN", None, b64encode(user), b"eA==") == "501 5.5.2"


@pytest.mark.parametrize("password", [b"", b"a\0b", b"\xff"])
def test_login_refuses_a_password_that_plain_cannot_have(password: bytes) -> None:
    assert refusal("LOGIN", b"dGlt", b64encode(password)) == "501 5.5.2"


# -- both ----------------------------------------------------------------------------------------

NOT_BASE64 = [
    *(b"=====", b"!", b"dGlt dGlt", b"dGl", b"dGlt\0", b"dGlt\r", b" dGlt", b"\xff\xfe"),
    b"MAIL FROM:<evil@example.org>",
]


@pytest.mark.parametrize("line", NOT_BASE64)
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_what_is_not_base64_is_refused(mechanism: str, line: bytes) -> None:
    assert refusal(mechanism, line) == "501 5.5.2"
    assert refusal(mechanism, None, line) == "501 5.5.2"


def test_an_equals_sign_is_empty_only_with_the_command() -> None:
    """RFC 4954 4."""
    client = Client()
    with pytest.raises(CommandError):
        log_in("PLAIN", b"=", client)
    assert client.asked == []
    assert refusal("LOGIN", b"dGlt", b"=") == "501 5.5.2"


@pytest.mark.parametrize(
    ("mechanism", "initial", "lines"),
    [
        ("PLAIN", None, [b"*"]),
        ("LOGIN", None, [b"*"]),
        ("LOGIN", None, [b"dGlt", b"*"]),
        ("LOGIN", b"dGlt", [b"*"]),
    ],
)
def test_a_client_may_cancel(mechanism: str, initial: bytes | None, lines: list[bytes]) -> None:
    """RFC 4954 4: "*" alone, answered by 501."""
    assert refusal(mechanism, initial, *lines) == "501 5.7.0"


def test_a_mechanism_is_named_in_any_case() -> None:
    assert log_in("plain", b"dGVzdAB0ZXN0ADEyMzQ=").user == "test"
    assert log_in("Login", b"dGlt", Client(b"eA==")).user == "tim"


@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "", "PLAIN ", "XOAUTH2"])
def test_another_mechanism_is_refused(mechanism: str) -> None:
    assert refusal(mechanism, None) == "504 5.5.4"


@given(
    st.sampled_from(["PLAIN", "LOGIN"]),
    st.none() | st.binary(max_size=60) | st.binary(max_size=60).map(b64encode),
    st.lists(st.binary(max_size=60) | st.binary(max_size=60).map(b64encode), min_size=2),
)
def test_any_octets_are_credentials_or_refused(
    mechanism: str, initial: bytes | None, lines: Sequence[bytes]
) -> None:
    with contextlib.suppress(CommandError):
        found = log_in(mechanism, initial, Client(*lines))
        assert found.user
        assert "\0" not in found.user + found.password
        (found.user + found.password).encode("utf-8")


WORDS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)


@given(WORDS, WORDS)
def test_every_user_and_password_gets_through(user: str, password: str) -> None:
    plain = b64encode(f"\0{user}\0{password}".encode())
    login = [b64encode(user.encode()), b64encode(password.encode())]
    assert log_in("PLAIN", plain) == log_in("LOGIN", None, Client(*login))
    assert log_in("PLAIN", plain) == Credentials(user, password)


# -- secrets -------------------------------------------------------------------------------------


def test_a_password_is_not_printed() -> None:
    assert "tanstaaf" not in f"{TIM!r} {TIM}"


SECRETS = ["swordfish", "c3dvcmRmaXNo", "AHRpbQBzd29yZGZpc2g="]


@pytest.mark.parametrize(
    ("mechanism", "initial", "lines"),
    [
        ("PLAIN", b"AHRpbQBzd29yZGZpc2g=", []),
        ("PLAIN", None, [b"AHRpbQBzd29yZGZpc2g="]),
        ("LOGIN", b"dGlt", [b"c3dvcmRmaXNo"]),
        ("PLAIN", b"swordfish", []),  # a client that does not encode
        ("PLAIN", None, [b"swordfish!"]),
        ("LOGIN", b"dGlt", [b"swordfish!"]),
        ("LOGIN", b"dGlt", [b64encode(b"swordfish\xff")]),
        ("PLAIN", b64encode(b"Ursel\0Kurt\0swordfish"), []),
        ("PLAIN", b64encode(b"swordfish"), []),
    ],
)
def test_no_log_has_a_secret(
    mechanism: str, initial: bytes | None, lines: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = ""
    try:
        log_in(mechanism, initial, Client(*lines))
    except CommandError as error:
        logging.getLogger("test").exception("refused")
        said = str(error)
    for secret in (*SECRETS, *(line.decode() for line in lines)):
        assert secret not in caplog.text
        assert secret not in said
