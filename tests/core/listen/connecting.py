"""What the tests of sockets ask of one: whether it is answered, and why it is refused."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

import pytest

from mailgate import listen
from mailgate.errors import ConfigError
from mailgate.listen import Access

OURS = Access()


class Bind(Protocol):
    """Binds addresses; what is left of them goes at the end of the test."""

    def __call__(self, *texts: str, access: Access = ...) -> Sequence[socket.socket]: ...


def refused(*texts: str, access: Access = OURS) -> str:
    """Return the one line that refuses addresses."""
    with pytest.raises(ConfigError) as caught:
        listen.release(listen.bind(texts, access))
    line = str(caught.value)
    assert "\n" not in line
    return line


def is_answered(each: socket.socket) -> bool:
    """Tell whether a client can connect."""
    with socket.socket(each.family) as client:
        client.settimeout(20)
        try:
            client.connect(each.getsockname())
        except ConnectionRefusedError:
            return False
        return True
