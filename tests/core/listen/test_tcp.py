"""TCP sockets: which addresses they have, and what is refused."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mailgate import fork, listen
from tests.core.listen.connecting import Bind, is_answered, refused


def test_a_socket_listens_without_blocking_and_children_do_not_keep_it(bind: Bind) -> None:
    (each,) = bind("127.0.0.1:0")
    assert each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert not each.getblocking()
    assert not each.get_inheritable()
    assert each.fileno() in fork._private
    assert is_answered(each)


def test_a_released_socket_is_closed(bind: Bind) -> None:
    (each,) = bind("127.0.0.1:0")
    listen.release([each])
    assert each.fileno() == -1
    listen.release([each])


GETADDRINFO = socket.getaddrinfo


def with_names(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Have every name resolve to these literal addresses."""

    def resolve(host: str, port: int, **how: int) -> list[object]:
        return [found for each in hosts for found in GETADDRINFO(each, port, **how)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_every_address_of_a_name_is_listened_on(
    bind: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_names(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.1")
    bound = bind("mx.example.org:0")
    assert [each.getsockname()[0] for each in bound] == ["127.0.0.1", "127.0.0.2"]


def test_an_address_of_a_name_that_another_machine_has_is_left_out(
    bind: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 1112 4 reserves 240.0.0.0/4: it is no machine's."""
    with_names(monkeypatch, "240.0.0.1", "127.0.0.1")
    assert [each.getsockname()[0] for each in bind("mx.example.org:0")] == ["127.0.0.1"]


def test_a_name_that_is_another_machines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_names(monkeypatch, "240.0.0.1", "240.0.0.2")
    assert "this machine does not have that address" in refused("mx.example.org:8891")


def test_a_name_with_an_address_in_use_is_refused_as_a_whole(
    bind: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    (taken,) = bind("127.0.0.1:0")
    port = taken.getsockname()[1]
    with_names(monkeypatch, "127.0.0.2", "127.0.0.1")
    assert "in use" in refused(f"mx.example.org:{port}")
    with_names(monkeypatch, "127.0.0.2")
    assert [each.getsockname() for each in bind(f"mx.example.org:{port}")] == [("127.0.0.2", port)]


def needs_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


def test_every_interface_is_two_sockets_that_share_a_port(bind: Bind) -> None:
    needs_ipv6()
    (free,) = bind("127.0.0.1:0")
    port = free.getsockname()[1]
    listen.release([free])
    bound = bind(f"*:{port}")
    assert [each.getsockname()[:2] for each in bound] == [("0.0.0.0", port), ("::", port)]
    assert bound[1].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_ipv6_has_brackets(bind: Bind) -> None:
    needs_ipv6()
    (each,) = bind("[::1]:0")
    assert each.getsockname()[0] == "::1"
    assert is_answered(each)


def test_a_port_in_use_is_refused(bind: Bind) -> None:
    (each,) = bind("127.0.0.1:0")
    address = f"127.0.0.1:{each.getsockname()[1]}"
    line = f"cannot listen on {address}: in use: another mailgate? see ss -ltnp"
    assert refused(address) == line


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("240.0.0.1:8891", "this machine does not have that address; see ip address"),
        ("no-such-host.invalid:8891", "'no-such-host.invalid' is not found: "),
        ("a..b:8891", "'a..b' is not found: "),
    ],
)
def test_a_host_that_is_not_here_is_refused(text: str, why: str) -> None:
    assert refused(text).startswith(f"cannot listen on {text}: {why}")


def test_a_privileged_port_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: socket.socket, place: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", denied)
    assert "permission denied: ports below 1024 are root's" in refused("127.0.0.1:25")


def test_it_is_all_addresses_or_none(bind: Bind, path: Path) -> None:
    refused(f"unix:{path}", "240.0.0.1:8891")
    assert not list(path.parent.iterdir())
    assert refused() == "no address to listen on"
    twice = refused(f"unix:{path}", f"unix:{path}")
    assert twice == f"cannot listen on unix:{path}: it is named twice"
