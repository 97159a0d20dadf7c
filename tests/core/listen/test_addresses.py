"""Addresses as text: what is one, and how to write what is none."""

from __future__ import annotations

import pytest

from mailgate.errors import ConfigError
from mailgate.listen import Address, Fd, Inet, Unix, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8891", Inet("127.0.0.1", 8891)),
        ("localhost:0", Inet("localhost", 0)),
        ("[::1]:65535", Inet("::1", 65535)),
        ("[fe80::1%eth0]:8891", Inet("fe80::1%eth0", 8891)),
        ("*:8891", Inet("*", 8891)),
        ("unix:/run/mailgate/milter.sock", Unix("/run/mailgate/milter.sock")),
        ("unix:/run/a:b", Unix("/run/a:b")),
        ("fd:3", Fd(3)),
    ],
)
def test_an_address_is_text_and_back(text: str, address: Address) -> None:
    assert parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("inet:8891@127.0.0.1", "write 127.0.0.1:8891"),
        ("inet6:8891@::1", "write [::1]:8891"),
        ("inet6:8891@[::1]", "write [::1]:8891"),
        ("inet:127.0.0.1:8891", "write 127.0.0.1:8891"),
        ("inet:8891", "write 127.0.0.1:8891"),
        ("tcp:localhost:8891", "write localhost:8891"),
        ("local:/run/milter.sock", "write unix:/run/milter.sock"),
        ("/run/milter.sock", "write unix:/run/milter.sock"),
        ("systemd", "write fd:3, the first socket that systemd passes"),
        ("8891", "write 127.0.0.1:8891"),
        (":8891", "no host: write 127.0.0.1:8891, or *:8891 for every interface"),
        ("localhost", "write localhost:PORT"),
        ("", "write HOST:PORT"),
        ("localhost:", "the port is a number up to 65535, not ''"),
        ("localhost:smtp", "the port is a number up to 65535, not 'smtp'"),
        ("localhost:65536", "the port is a number up to 65535, not '65536'"),
        ("localhost:-1", "the port is a number up to 65535, not '-1'"),
        ("localhost:\u0663", "the port is a number up to 65535, not '\u0663'"),
        ("localhost:" + "1" * 5000, "the port is a number up to 65535, not '1"),
        ("::1", "an IPv6 address has brackets: write [ADDRESS]:PORT"),
        ("::1:8891", "an IPv6 address has brackets: write [ADDRESS]:PORT"),
        ("[::1]", "write [::1]:PORT"),
        ("[]:8891", "no host: write 127.0.0.1:8891, or *:8891 for every interface"),
        ("unix:milter.sock", "the whole path of a socket, such as unix:/run/mailgate/milter.sock"),
        ("unix:", "the whole path of a socket, such as unix:/run/mailgate/milter.sock"),
        ("unix:/run/", "the whole path of a socket, such as unix:/run/mailgate/run"),
        ("unix:/run/a\0b", "has a blank or a control character"),
        ("127.0.0.1:8891 ", "has a blank or a control character"),
        ("fd:", "write the number of a descriptor, such as fd:3"),
        ("fd:-1", "write the number of a descriptor, such as fd:3"),
        ("fd:three", "write the number of a descriptor, such as fd:3"),
    ],
)
def test_what_is_no_address_is_told_how_to_be_written(text: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"address {text!r}: ")
    assert remedy in str(caught.value)
