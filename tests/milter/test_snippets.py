"""Lines for Postfix and Sendmail, made from the options of the milter."""

from __future__ import annotations

import math
import re
from typing import Literal

import pytest

from mailgate.adapter import Site, Snippet
from mailgate.chain import Defaults
from mailgate.errors import ConfigError
from mailgate_milter.adapter import MilterOptions
from mailgate_milter.snippets import POSTFIX_QUEUE, SNIPPETS, postfix, sendmail

SITE = Site(Defaults())

each_server = pytest.mark.parametrize("snippet", SNIPPETS.values(), ids=SNIPPETS)


def settings(options: MilterOptions, site: Site = SITE) -> dict[str, str]:
    """Return the settings of main.cf: a line that begins with # is a comment (postconf(5))."""
    pairs = [line.partition(" = ") for line in postfix(options, site) if line[0] != "#"]
    assert all(equals for _, equals, _ in pairs), pairs
    return {name: value for name, _, value in pairs}


def seconds(text: str) -> int:
    """Return a span of time as Postfix and Sendmail write it."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def filter_of(options: MilterOptions, site: Site = SITE) -> tuple[str, str, dict[str, int]]:
    """Return S=, F= and T= of what is no comment in sendmail.mc."""
    text = "\n".join(line for line in sendmail(options, site) if not line.startswith("dnl "))
    found = re.fullmatch(r"INPUT_MAIL_FILTER\(`mailgate',\s+`S=(\S+), F=(.), T=(\S+)'\)dnl", text)
    assert found is not None, text
    spans = dict(span.split(":") for span in found[3].split(";"))
    return found[1], found[2], {name: seconds(span) for name, span in spans.items()}


# -- Postfix -------------------------------------------------------------------------------------


def test_postfix_without_a_configuration() -> None:
    assert settings(MilterOptions()) == {
        "smtpd_milters": "inet:127.0.0.1:8891",
        "non_smtpd_milters": "$smtpd_milters",
        "milter_default_action": "tempfail",
        "milter_protocol": "6",
        "milter_connect_timeout": "30s",
        "milter_command_timeout": "30s",
        "milter_content_timeout": "300s",
    }


@pytest.mark.parametrize(
    ("listen", "milter"),
    [
        ("127.0.0.1:8891", "inet:127.0.0.1:8891"),
        ("mx.example.org:8891", "inet:mx.example.org:8891"),
        ("[::1]:8891", "inet:[::1]:8891"),
        ("*:8891", "inet:127.0.0.1:8891"),
        ("0.0.0.0:8891", "inet:127.0.0.1:8891"),
        ("[::]:8891", "inet:[::1]:8891"),
        (f"unix:{POSTFIX_QUEUE}/mailgate/milter.sock", "unix:mailgate/milter.sock"),
        ("unix:/run/mailgate/milter.sock", "unix:/run/mailgate/milter.sock"),
        (f"unix:{POSTFIX_QUEUE}-in/milter.sock", f"unix:{POSTFIX_QUEUE}-in/milter.sock"),
    ],
)
def test_postfix_spells_addresses_otherwise(listen: str, milter: str) -> None:
    assert settings(MilterOptions(listen))["smtpd_milters"] == milter


def test_another_queue_directory() -> None:
    site = Site(Defaults(), "/var/spool/other")
    options = MilterOptions("unix:/var/spool/other/m.sock")
    assert settings(options, site)["smtpd_milters"] == "unix:m.sock"


def test_a_socket_outside_the_queue_needs_no_chroot() -> None:
    remedy = "#   postconf -F smtp/inet/chroot=n cleanup/unix/chroot=n"
    assert remedy in postfix(MilterOptions("unix:/run/mailgate/milter.sock"), SITE)
    assert remedy not in postfix(MilterOptions(f"unix:{POSTFIX_QUEUE}/m.sock"), SITE)


@pytest.mark.parametrize(
    ("mode", "group", "said"),
    [
        ("0660", None, '[milter] group = "postfix"'),
        ("0660", "mail", "usermod --append --groups mail postfix"),
        ("0600", None, 'Its mode 0600 keeps Postfix out: write [milter] mode = "0660"'),
    ],
)
def test_what_lets_postfix_connect_is_said(mode: str, group: str | None, said: str) -> None:
    options = MilterOptions(f"unix:{POSTFIX_QUEUE}/m.sock", mode, group=group)
    assert said in "\n".join(postfix(options, SITE))


@pytest.mark.parametrize(
    "options",
    [
        MilterOptions(f"unix:{POSTFIX_QUEUE}/m.sock", mode="0666"),
        MilterOptions(f"unix:{POSTFIX_QUEUE}/m.sock", group="postfix"),
        MilterOptions("127.0.0.1:8891"),
    ],
    ids=["mode", "group", "port"],
)
def test_nothing_is_said_where_postfix_can_connect(options: MilterOptions) -> None:
    assert "connects as" not in "\n".join(postfix(options, SITE))


# -- Sendmail ------------------------------------------------------------------------------------


def test_sendmail_without_a_configuration() -> None:
    spans = {"C": 30, "S": 10, "R": 30, "E": 300}
    assert filter_of(MilterOptions()) == ("inet:8891@127.0.0.1", "T", spans)


@pytest.mark.parametrize(
    ("listen", "milter"),
    [
        ("127.0.0.1:8891", "inet:8891@127.0.0.1"),
        ("mx.example.org:8891", "inet:8891@mx.example.org"),
        ("[::1]:8891", "inet6:8891@::1"),
        ("*:8891", "inet:8891@127.0.0.1"),
        ("unix:/run/mailgate/milter.sock", "local:/run/mailgate/milter.sock"),
    ],
)
def test_sendmail_spells_addresses_otherwise(listen: str, milter: str) -> None:
    assert filter_of(MilterOptions(listen))[0] == milter


@pytest.mark.parametrize("timeout", [5, 20, math.inf])
def test_the_preset_for_sendmail_needs_no_longer_time(timeout: float) -> None:
    """Sendmail's own R is 10 s: libmilter/README."""
    site = Site(Defaults(timeout=timeout))
    assert filter_of(MilterOptions(mta="sendmail"), site)[2]["R"] == 10


# -- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "message_timeout"), [(20, 240), (5, 10), (45, 240), (20.5, 900), (29, 299)]
)
def test_a_server_waits_longer_than_mailgate(timeout: float, message_timeout: float) -> None:
    site = Site(Defaults(timeout, message_timeout))
    told = settings(MilterOptions(), site)
    assert seconds(told["milter_command_timeout"]) > timeout
    assert seconds(told["milter_content_timeout"]) > message_timeout
    spans = filter_of(MilterOptions(), site)[2]
    assert spans["R"] > timeout
    assert spans["E"] > message_timeout


@each_server
@pytest.mark.parametrize(
    "defaults",
    [Defaults(timeout=math.inf), Defaults(message_timeout=math.inf)],
    ids=["timeout", "message_timeout"],
)
def test_no_server_waits_for_ever(snippet: Snippet, defaults: Defaults) -> None:
    site = Site(defaults)
    with pytest.raises(ConfigError, match="no mail server waits so long"):
        list(snippet(MilterOptions(), site))


@each_server
def test_one_of_several_addresses_is_enough(snippet: Snippet) -> None:
    """With two of them an MTA would ask mailgate twice."""
    *lines, said, last = snippet(MilterOptions(("[::1]:8891", "unix:/run/m.sock")), SITE)
    assert sum("8891" in line for line in lines) == 1
    assert "One address is enough" in said
    assert last.endswith("unix:/run/m.sock")
    assert said.startswith(("# ", "dnl "))
    assert last.startswith(("# ", "dnl "))


@each_server
def test_no_address_and_an_inherited_socket_are_refused(snippet: Snippet) -> None:
    with pytest.raises(ConfigError, match=r"^\[milter\] listen: no address to listen on$"):
        list(snippet(MilterOptions(()), SITE))
    with pytest.raises(ConfigError, match=r"^\[milter\] listen: fd:3 is what systemd passes"):
        list(snippet(MilterOptions("fd:3"), SITE))


@each_server
@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
@pytest.mark.parametrize("group", [None, "mailgate"])
@pytest.mark.parametrize("path", ["/run/mailgate/milter.sock", f"{POSTFIX_QUEUE}/m.sock"])
def test_the_lines_fit_a_terminal(
    snippet: Snippet, mta: Literal["postfix", "sendmail"], group: str | None, path: str
) -> None:
    listen = (f"unix:{path}", "[2001:db8::8891]:8891")
    options = MilterOptions(listen, "0600", group=group, mta=mta)
    assert max(map(len, snippet(options, Site(Defaults(90.25, 1234.5))))) <= 80
