"""`mailgate snippet`: whose lines are printed, and what they are made from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mailgate.adapter import Site
from mailgate.cli import snippet
from tests.core.cli.running import Command
from tests.core.pigeon import Loft, Pigeon, install

CONTRIB = Path(__file__).parents[3] / "contrib"


def columbia(options: Loft, site: Site) -> Iterator[str]:
    yield f"place {options.place}"
    yield f"wait {site.defaults.timeout:g}"
    yield f"queue {site.queue_directory}"


@pytest.fixture
def pigeon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a third party's adapter with lines for two servers, one of them ours as well."""
    install(tmp_path, monkeypatch)
    monkeypatch.setattr(Pigeon, "snippets", {"columbia": columbia, "postfix": columbia})


@pytest.mark.usefixtures("pigeon")
def test_a_third_partys_adapter_has_snippets(command: Command, here: Path) -> None:
    assert command("snippet", "columbia").lines == ["place roof", "wait 20", "queue None"]
    (here / "mailgate.toml").write_text("[pigeon]\nplace = 'garden'\n\n[defaults]\ntimeout = 5\n")
    done = command("snippet", "columbia", "--queue-directory", "/var/spool/columbia")
    assert (done.status, done.lines) == (
        0,
        ["place garden", "wait 5", "queue /var/spool/columbia"],
    )


@pytest.mark.usefixtures("pigeon")
def test_a_server_that_speaks_several_protocols(shell: Command) -> None:
    done = shell("snippet", "postfix")
    assert (done.status, done.out) == (2, "")
    assert "say which protocol postfix speaks: -p milter or -p pigeon or -p smtp" in done.err
    assert shell("snippet", "postfix", "-p", "pigeon").out.startswith("place roof\n")
    assert "smtpd_milters = " in shell("snippet", "postfix", "-p", "milter").out


def test_a_protocol_that_the_server_does_not_speak(shell: Command) -> None:
    done = shell("snippet", "postfix", "-p", "opensmtpd")
    assert (done.status, done.out) == (2, "")
    assert "say which protocol postfix speaks: -p milter or -p smtp" in done.err


def test_an_unknown_server_names_those_that_there_are(shell: Command) -> None:
    done = shell("snippet", "qmail")
    assert (done.status, done.out) == (2, "")
    assert "no snippet for 'qmail'; there are: dovecot, exim, postfix, sendmail" in done.err


@pytest.mark.usefixtures("pigeon")
def test_a_shell_can_complete_the_servers() -> None:
    (mta,) = [each for each in snippet.command.params if each.name == "mta"]
    offered = mta.shell_complete(click.Context(snippet.command), "")
    assert [each.value for each in offered] == [
        "columbia",
        "dovecot",
        "exim",
        "postfix",
        "sendmail",
    ]


@pytest.mark.usefixtures("pigeon")
def test_who_listens_nowhere_takes_no_address(shell: Command) -> None:
    done = shell("snippet", "columbia", "--listen", "127.0.0.1:8891")
    assert (done.status, done.out) == (2, "")
    assert "pigeon has no address to listen on; --listen is for milter, smtp" in done.err


def test_listen_goes_before_the_configuration(command: Command, here: Path) -> None:
    (here / "other.toml").write_text("[milter]\nlisten = '127.0.0.1:1'\n")
    words = ("snippet", "postfix", "-p", "milter", "-c", "other.toml")
    assert "smtpd_milters = inet:127.0.0.1:1" in command(*words).lines
    assert "smtpd_milters = inet:127.0.0.1:2" in command(*words, "-l", "127.0.0.1:2").lines


def test_upstream_goes_before_the_configuration(command: Command, here: Path) -> None:
    (here / "mailgate.toml").write_text("[smtp]\nupstream = 'smtp://127.0.0.1:1'\n")
    assert "local_interfaces = 127.0.0.1.1" in command("snippet", "exim").lines
    done = command("snippet", "exim", "-u", "smtp://127.0.0.1:2")
    assert "local_interfaces = 127.0.0.1.2" in done.lines


@pytest.mark.parametrize(
    ("table", "start"), [("milter", "smtpd_milters = "), ("smtp", "smtp inet n - n - - smtpd")]
)
def test_the_protocol_that_has_a_table_is_meant(
    command: Command, here: Path, table: str, start: str
) -> None:
    """Postfix speaks both."""
    keys = "listen = '127.0.0.1:10025'\nupstream = 'smtp://127.0.0.1:10026'\n"
    (here / "mailgate.toml").write_text(f"[{table}]\n{keys if table == 'smtp' else ''}")
    done = command("snippet", "postfix")
    assert done.status == 0
    assert any(line.startswith(start) for line in done.lines)


def test_another_queue_directory(command: Command) -> None:
    done = command(
        *("snippet", "postfix", "-p", "milter", "--queue-directory", "/var/spool/other"),
        *("-l", "unix:/var/spool/other/m.sock"),
    )
    assert "smtpd_milters = unix:m.sock" in done.lines


@pytest.mark.parametrize("listen", ["nowhere", "unix:relative"])
def test_what_is_no_address_is_one_line(shell: Command, here: Path, listen: str) -> None:
    (here / "mailgate.toml").write_text(f"[milter]\nlisten = {listen!r}\n")
    done = shell("snippet", "postfix", "-p", "milter")
    assert (done.status, done.out) == (78, "")
    assert f"address '{listen}': write " in done.err


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
def test_what_systemd_passes_has_to_be_named(
    shell: Command, command: Command, here: Path, mta: str
) -> None:
    (here / "mailgate.toml").write_text("[milter]\nlisten = 'fd:3'\n")
    done = shell("snippet", mta, "-p", "milter")
    assert (done.status, done.out) == (78, "")
    assert "fd:3 is what systemd passes" in done.err
    assert "--listen unix:/run/mailgate/milter.sock" in done.err
    words = ("snippet", mta, "-p", "milter", "-l", "unix:/run/mailgate/milter.sock")
    assert command(*words).status == 0


MILTER = "unix:/var/spool/postfix/mailgate/milter.sock"


@pytest.mark.parametrize(
    ("file", "words", "table"),
    [
        ("postfix/main.cf", ("postfix", "-p", "milter", "-l", MILTER), ""),
        ("postfix/master.cf", ("postfix", "-p", "smtp"), "contrib/postfix"),
        ("exim/exim.conf", ("exim",), "contrib/exim"),
        ("dovecot/local.conf", ("dovecot",), "contrib/dovecot"),
        (
            "sendmail/sendmail.mc",
            ("sendmail", "-l", "unix:/run/mailgate/milter.sock"),
            "[milter]\nmta = 'sendmail'\n",
        ),
    ],
)
def test_the_files_of_contrib_are_what_is_printed(
    command: Command, here: Path, file: str, words: tuple[str, ...], table: str
) -> None:
    """Those of the proxy go by the table that the README beside them has."""
    if table.startswith("contrib/"):
        readme = (CONTRIB.parent / table / "README.md").read_text()
        found = re.search(r"(?m)^    \[smtp\]\n(?:    .+\n)+", readme)
        assert found is not None
        table = found[0]
    (here / "mailgate.toml").write_text(table)
    assert command("snippet", *words).out == (CONTRIB / file).read_text()
