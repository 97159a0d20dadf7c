"""Lines for the mail servers around the proxy, made from its options."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import pytest

from mailgate.adapter import Site, Snippet
from mailgate.chain import Defaults
from mailgate.errors import ConfigError
from mailgate_smtp.options import Pool, SmtpOptions, Timeouts, UpstreamTLS
from mailgate_smtp.snippets import POSTFIX_QUEUE, SNIPPETS, dovecot, exim, postfix

SITE = Site(Defaults())
BEFORE = SmtpOptions("127.0.0.1:10025", upstream="smtp://127.0.0.1:10026")
FRONT = SmtpOptions("0.0.0.0:25", upstream="smtp://127.0.0.1:10026", relay_domains=("a.example",))
DELIVERY = SmtpOptions(
    "lmtp:127.0.0.1:2424",
    upstream="lmtp+unix:/run/dovecot/lmtp",
    auth="dovecot:/run/dovecot/auth-mailgate",
)

each_server = pytest.mark.parametrize(
    ("snippet", "options"),
    [(postfix, BEFORE), (postfix, DELIVERY), (exim, FRONT), (dovecot, DELIVERY)],
    ids=["postfix", "postfix lmtp", "exim", "dovecot"],
)


def having(options: SmtpOptions, **changed: Any) -> SmtpOptions:
    """Return options with others in their place; checked as those of a configuration are."""
    return SmtpOptions(**{name: getattr(options, name) for name in options.__slots__} | changed)


def entries(options: SmtpOptions, site: Site = SITE) -> list[tuple[str, dict[str, str]]]:
    """Return the services of master.cf with their settings, as master(5) reads them.

    A line that begins with a blank goes on with the one before; one whose first other character
    is # is a comment, wherever it stands.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for line in postfix(options, site):
        if line.lstrip().startswith("#"):
            continue
        if line.startswith(" "):
            setting = re.fullmatch(r"  -o ([a-z_]+)=(\S*)", line)
            assert setting is not None, line
            found[-1][1][setting[1]] = setting[2]
        else:
            place, kind, *columns, command = line.split()
            assert (kind, len(columns), command) == ("inet", 5, "smtpd")
            found.append((place, {}))
    return found


def settings(lines: list[str]) -> dict[str, str]:
    """Return what main.cf or Exim's configuration has to say: a # begins a comment."""
    pairs = [line.partition(" = ") for line in lines if line[0] != "#"]
    assert all(equals for _, equals, _ in pairs), pairs
    return {name: value for name, _, value in pairs}


def seconds(text: str) -> int:
    """Return a span of time as Postfix and Exim write it."""
    assert text[-1] == "s"
    return int(text[:-1])


# -- Postfix -------------------------------------------------------------------------------------


def test_an_smtpd_stands_before_mailgate_and_one_behind() -> None:
    """The settings of the second one are those of SMTPD_PROXY_README."""
    (first, before), (second, behind) = entries(BEFORE)
    assert (first, second) == ("smtp", "127.0.0.1:10026")
    assert before["smtpd_proxy_filter"] == "127.0.0.1:10025"
    assert behind["smtpd_authorized_xforward_hosts"] == "127.0.0.0/8"
    assert behind["mynetworks"] == "127.0.0.0/8"
    assert behind["smtpd_recipient_restrictions"] == "permit_mynetworks,reject"
    assert behind["receive_override_options"] == "no_unknown_recipient_checks"
    for stage in ("relay", "client", "helo", "sender", "data"):
        assert behind[f"smtpd_{stage}_restrictions"] == ""
    assert "smtpd_proxy_filter" not in behind


@pytest.mark.parametrize(
    ("listen", "filter"),
    [
        ("127.0.0.1:10025", "127.0.0.1:10025"),
        ("[::1]:10025", "[::1]:10025"),
        ("*:10025", "127.0.0.1:10025"),
        ("[::]:10025", "[::1]:10025"),
        (f"unix:{POSTFIX_QUEUE}/mailgate/smtp.sock", "unix:mailgate/smtp.sock"),
        ("unix:/run/mailgate/smtp.sock", "unix:/run/mailgate/smtp.sock"),
    ],
)
def test_postfix_spells_addresses_otherwise(listen: str, filter: str) -> None:
    (_, before), _ = entries(having(BEFORE, listen=listen))
    assert before["smtpd_proxy_filter"] == filter


def test_another_queue_directory() -> None:
    options = having(BEFORE, listen="unix:/var/spool/other/mailgate/smtp.sock")
    (_, before), _ = entries(options, Site(Defaults(), "/var/spool/other"))
    assert before["smtpd_proxy_filter"] == "unix:mailgate/smtp.sock"


def test_the_second_smtpd_may_have_an_address_of_ipv6() -> None:
    _, (place, behind) = entries(having(BEFORE, upstream="smtp://[::1]:10026"))
    assert place == "[::1]:10026"
    assert behind["mynetworks"] == behind["smtpd_authorized_xforward_hosts"] == "[::1]/128"


def test_what_is_not_said_needs_no_leave() -> None:
    _, (_, behind) = entries(having(BEFORE, identity="none"))
    assert "smtpd_authorized_xforward_hosts" not in behind


def test_the_second_smtpd_encrypts_where_mailgate_wants_it() -> None:
    assert entries(BEFORE)[1][1]["smtpd_tls_security_level"] == "none"
    wanted = having(BEFORE, upstream_tls=UpstreamTLS("require"))
    assert "smtpd_tls_security_level" not in entries(wanted)[1][1]


@pytest.mark.parametrize(
    ("listen", "trusted", "said"),
    [
        ("127.0.0.1:10025", (), '#   trusted = ["127.0.0.1"]'),
        ("127.0.0.1:10025", ("10.0.0.0/8",), '#   trusted = ["127.0.0.1"]'),
        ("127.0.0.1:10025", ("127.0.0.0/8",), None),
        ("*:10025", ("127.0.0.1",), None),
        ("localhost:10025", ("127.0.0.1",), None),
        ("[::1]:10025", ("127.0.0.1",), '#   trusted = ["::1"]'),
        ("192.0.2.1:10025", ("127.0.0.1",), '#   trusted = ["192.0.2.1"]'),
        ("unix:/run/m.sock", ("127.0.0.1",), '#   trusted = ["unix"]'),
        ("unix:/run/m.sock", ("unix",), None),
    ],
)
def test_postfix_has_to_be_trusted(
    listen: str, trusted: tuple[str, ...], said: str | None
) -> None:
    lines = list(postfix(having(BEFORE, listen=listen, trusted=trusted), SITE))
    assert [line for line in lines if "trusted =" in line] == ([said] if said else [])


@pytest.mark.parametrize(
    ("mode", "group", "said"),
    [
        ("0660", None, True),
        ("0600", "postfix", True),
        ("0660", "postfix", False),
        ("0666", None, False),
    ],
)
def test_what_lets_postfix_connect_is_said(mode: str, group: str | None, said: bool) -> None:
    options = having(BEFORE, listen="unix:/run/m.sock", mode=mode, group=group)
    assert any('group = "postfix"' in line for line in postfix(options, SITE)) is said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"listen": "smtps:127.0.0.1:465"}, "smtpd_proxy_filter cannot"),
        ({"listen": "0.0.0.0:25"}, "port 25 is that of the smtpd before mailgate"),
        ({"identity": "xclient"}, 'write identity = "auto"'),
        ({"identity": "proxy-v2"}, 'write identity = "auto"'),
        ({"upstream": "smtp://mx.example.org:25"}, "is not on this machine"),
        ({"upstream": "smtp://192.0.2.1:25"}, "is not on this machine"),
        ({"upstream": "maildir:/var/mail/all"}, 'another server: write "smtp://127.0.0.1:10026"'),
    ],
)
def test_what_postfix_cannot_be_told(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        list(postfix(having(BEFORE, **changed), SITE))


def test_postfix_delivers_to_an_lmtp_listener() -> None:
    assert settings(list(postfix(DELIVERY, SITE))) == {
        "virtual_transport": "lmtp:inet:127.0.0.1:2424",
        "lmtp_send_xforward_command": "yes",
        "lmtp_data_done_timeout": "600s",
    }
    at_socket = having(DELIVERY, listen=f"lmtp:unix:{POSTFIX_QUEUE}/mailgate/lmtp.sock")
    told = settings(list(postfix(at_socket, SITE)))
    assert told["virtual_transport"] == "lmtp:unix:mailgate/lmtp.sock"


# -- Exim ----------------------------------------------------------------------------------------


def test_exim_takes_mail_of_this_host_alone() -> None:
    assert settings(list(exim(FRONT, SITE))) == {
        "local_interfaces": "127.0.0.1.10026",
        "smtp_accept_queue_per_connection": "0",
        "smtp_accept_max": "40",
        "smtp_receive_timeout": "360s",
    }


def test_colons_in_an_address_do_not_divide_a_list_of_exim() -> None:
    """ "Changing list separators" in its specification."""
    options = having(FRONT, upstream="smtp://[::1]:10026", identity="proxy-v1")
    told = settings(list(exim(options, SITE)))
    assert told["local_interfaces"] == "<; [::1]:10026"
    assert told["hosts_proxy"] == "<; ::1"


def test_exim_without_an_identity_must_not_relay_for_this_host() -> None:
    lines = list(exim(FRONT, SITE))
    assert "#   hostlist relay_from_hosts = :" in lines
    assert not any("hosts_proxy" in line for line in lines)


def test_who_takes_mail_for_any_domain_is_told_of_it() -> None:
    remedy = '#   relay_domains = ["example.org"]'
    assert remedy not in exim(FRONT, SITE)
    assert remedy in exim(having(FRONT, relay_domains=()), SITE)


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
def test_exim_is_told_the_client_by_a_proxy_header(identity: str) -> None:
    lines = list(exim(having(FRONT, identity=identity), SITE))
    assert settings(lines)["hosts_proxy"] == "127.0.0.1"
    assert not any("relay" in line for line in lines)


def test_exim_has_room_for_the_pool() -> None:
    """Its own smtp_accept_max is 20, which is all that the pool may take."""
    told = settings(list(exim(having(FRONT, pool=Pool(max=200)), SITE)))
    assert int(told["smtp_accept_max"]) > 200


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"identity": "xclient"}, 'Exim does not take it; write "proxy-v1"'),
        ({"identity": "xforward"}, 'Exim does not take it; write "proxy-v1"'),
        ({"upstream": "smtp://mx.example.org:25"}, "is not on this machine"),
        ({"upstream": "lmtp+unix:/run/lmtp"}, 'another server: write "smtp://127.0.0.1:10026"'),
    ],
)
def test_what_exim_cannot_be_told(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        list(exim(having(FRONT, **changed), SITE))


# -- Dovecot -------------------------------------------------------------------------------------


def sections(options: SmtpOptions) -> list[str]:
    """Return Dovecot's settings one a line, each behind the sections that it is in."""
    found, within = [], list[str]()
    for line in map(str.strip, dovecot(options, SITE)):
        if line.endswith("{"):
            within.append(line.removesuffix(" {"))
            found.append(": ".join(within))
        elif line == "}":
            within.pop()
        elif not line.startswith("#"):
            found.append(": ".join([*within, line]))
    assert not within
    return found


def test_dovecot_listens_where_mailgate_delivers_and_asks() -> None:
    assert sections(DELIVERY) == [
        "service lmtp",
        "service lmtp: unix_listener lmtp",
        "service lmtp: unix_listener lmtp: mode = 0660",
        "service auth",
        "service auth: unix_listener auth-mailgate",
        "service auth: unix_listener auth-mailgate: mode = 0660",
    ]


def test_a_socket_outside_dovecots_folder_has_its_whole_path() -> None:
    options = having(DELIVERY, upstream="lmtp+unix:/run/mail/lmtp")
    assert "service lmtp: unix_listener /run/mail/lmtp" in sections(options)


def test_dovecot_may_only_check_logins() -> None:
    options = having(BEFORE, auth="dovecot:/run/dovecot/auth-mailgate")
    assert {line.partition(": ")[0] for line in sections(options)} == {"service auth"}


@pytest.mark.parametrize(
    ("identity", "more"),
    [
        ("none", []),
        ("auto", []),
        ("xclient", ["login_trusted_networks = 127.0.0.1"]),
        ("proxy-v2", ["haproxy_trusted_networks = 127.0.0.1"]),
    ],
)
def test_dovecot_at_a_port(identity: str, more: list[str]) -> None:
    options = having(DELIVERY, upstream="lmtp://localhost:24", identity=identity, auth="none")
    listener = "service lmtp: inet_listener lmtp"
    haproxy = [f"{listener}: haproxy = yes"] if identity == "proxy-v2" else []
    assert sections(options) == [
        "service lmtp",
        listener,
        f"{listener}: address = 127.0.0.1",
        f"{listener}: port = 24",
        *haproxy,
        *more,
    ]


def test_what_xclient_costs_is_said_where_nobody_asked_for_it() -> None:
    options = having(DELIVERY, upstream="lmtp://127.0.0.1:24")
    assert "#   login_trusted_networks = 127.0.0.1" in dovecot(options, SITE)


def test_postfix_before_dovecot_is_told_in_comments() -> None:
    lines = list(dovecot(DELIVERY, SITE))
    assert "#   virtual_transport = lmtp:inet:127.0.0.1:2424" in lines
    for unknown in ("127.0.0.1:2525", "lmtp:fd:3"):
        lines = list(dovecot(having(DELIVERY, listen=unknown), SITE))
        assert not any("virtual_transport" in line for line in lines)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"upstream": "smtp://127.0.0.1:25", "auth": "none"}, "is not LMTP"),
        ({"identity": "xclient"}, "Dovecot takes it at a port only"),
        (
            {"upstream": "lmtp://127.0.0.1:24", "identity": "xforward"},
            'Dovecot does not take it; write "xclient" or "none"',
        ),
        ({"upstream": "lmtp://mail.example.org:24"}, "is not on this machine"),
    ],
)
def test_what_dovecot_cannot_be_told(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        list(dovecot(having(DELIVERY, **changed), SITE))


# -- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "message_timeout", "dot"),
    [(20, 240, 300), (5, 10, 20), (90, 900, 600), (400, 1, 1)],
)
def test_a_server_waits_longer_than_mailgate(
    timeout: float, message_timeout: float, dot: float
) -> None:
    site = Site(Defaults(timeout, message_timeout))
    times = Timeouts(upstream_dot=dot, command=7, data=8)
    (_, before), (_, behind) = entries(having(BEFORE, timeouts=times), site)
    assert seconds(before["smtpd_proxy_timeout"]) > message_timeout + dot
    assert seconds(before["smtpd_proxy_timeout"]) > timeout + times.connect
    assert seconds(behind["smtpd_timeout"]) > max(timeout, message_timeout, 8)
    told = settings(list(postfix(having(DELIVERY, timeouts=times), site)))
    assert seconds(told["lmtp_data_done_timeout"]) > message_timeout + dot
    told = settings(list(exim(having(FRONT, timeouts=times), site)))
    assert seconds(told["smtp_receive_timeout"]) > max(timeout, message_timeout, 8)


@pytest.mark.parametrize(
    ("snippet", "options"), [(postfix, BEFORE), (postfix, DELIVERY), (exim, FRONT)]
)
def test_no_server_waits_for_ever(snippet: Snippet, options: SmtpOptions) -> None:
    with pytest.raises(ConfigError, match="no mail server waits so long"):
        list(snippet(options, Site(Defaults(message_timeout=math.inf))))


@pytest.mark.parametrize("listen", [(), "fd:3", "lmtp:fd:3"])
def test_postfix_is_told_an_address(listen: str | tuple[str, ...]) -> None:
    said = "no address to listen on" if not listen else "is what systemd passes: name"
    with pytest.raises(ConfigError, match=rf"^\[smtp\] listen: .*{said}"):
        list(postfix(having(BEFORE, listen=listen), SITE))


@each_server
@pytest.mark.parametrize("identity", ["auto", "none"])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_the_lines_fit_a_terminal(
    snippet: Snippet, options: SmtpOptions, identity: Literal["auto", "none"], host: str
) -> None:
    if not options.targets[0].lmtp:
        options = having(options, upstream=f"smtp://{host}:10026")
    options = having(options, identity=identity, pool=Pool(max=10_000), relay_domains=())
    assert max(map(len, snippet(options, Site(Defaults(90.25, 1234.5))))) <= 80


def test_each_server_has_its_lines() -> None:
    assert set(SNIPPETS) == {"dovecot", "exim", "postfix"}
