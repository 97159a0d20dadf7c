"""`mailgate run -p smtp`: --upstream, and what `make run` shows."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.core.cli.running import Command
from tests.core.pigeon import install
from tests.interop.processes import free_port

EXAMPLES = Path(__file__).parents[3] / "examples"


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Run `mailgate run -p smtp` until it says where it listens; end it as Ctrl-C does."""
    command = [sys.executable, "-m", "mailgate", "run", "-p", "smtp", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            yield process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def send(port: int, name: str) -> subprocess.CompletedProcess[str]:
    """Send a message of the examples as `make run` says."""
    server = ("--server", f"127.0.0.1:{port}")
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "send.py"), str(EXAMPLES / "messages" / name), *server],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_gateway_of_make_run(here: Path) -> None:
    port = free_port()
    policies = [str(EXAMPLES / f"{name}/{name}.py") for name in ("attachments", "footer")]
    with serving("-l", f"127.0.0.1:{port}", "-u", "maildir:Maildir", *policies) as said:
        assert said == f"info: smtp on 127.0.0.1:{port}, mail goes to maildir:Maildir\n"
        taken, refused = send(port, "invoice.eml"), send(port, "program.eml")
    assert (taken.returncode, taken.stdout[:4]) == (0, "250 ")
    assert (refused.returncode, refused.stdout) == (
        1,
        "550 5.7.1 we take no attachments named *.exe\n",
    )
    (message,) = (here / "Maildir/new").iterdir()
    assert b"\nX-Footer: added\n" in message.read_bytes()


def test_where_nobody_listens_the_message_is_not_sent() -> None:
    done = send(free_port(), "invoice.eml")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1


def test_several_upstreams_and_not_the_one_of_the_file(here: Path, gate: Path) -> None:
    (here / "mailgate.toml").write_text("[smtp]\nupstream = 'smtp://127.0.0.1:1'\n")
    urls = ("-u", "lmtp+unix:/run/lmtp", "--upstream", "maildir:held")
    with serving("-l", f"127.0.0.1:{free_port()}", *urls, "gate.py") as said:
        assert said.endswith(", mail goes to lmtp+unix:/run/lmtp, maildir:held\n")


def test_the_environment_has_upstreams_too(
    here: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILGATE_RUN_UPSTREAM", "maildir:a maildir:b")
    with serving("-l", f"127.0.0.1:{free_port()}", "gate.py") as said:
        assert said.endswith(", mail goes to maildir:a, maildir:b\n")


@pytest.mark.parametrize("protocol", ["milter", "opensmtpd"])
def test_a_protocol_without_upstreams_says_so(shell: Command, gate: Path, protocol: str) -> None:
    done = shell("run", "-p", protocol, "-u", "maildir:Maildir", "gate.py")
    assert (done.status, done.out) == (2, "")
    said = f"mailgate run: {protocol} has no server to pass mail on to; --upstream is for smtp"
    assert done.err.startswith(said)


def test_so_does_one_of_a_third_party(
    shell: Command, gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    done = shell("run", "-p", "pigeon", "-u", "maildir:Maildir", "gate.py")
    assert done.status == 2
    assert "pigeon has no server to pass mail on to; --upstream is for smtp" in done.err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:25", "--upstream: upstream '127.0.0.1:25': write smtp://127.0.0.1:25, "),
        ("lmtp+unix:lmtp", "--upstream: upstream 'lmtp+unix:lmtp': write lmtp+unix:/PATH"),
        ("smtp://mx:70000", "--upstream: upstream 'smtp://mx:70000': the port is a number"),
    ],
)
def test_what_is_no_url_is_one_line(program: Command, gate: Path, url: str, said: str) -> None:
    done = program("run", "-p", "smtp", "-u", url, "gate.py")
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--listen", "--upstream"])
def test_an_address_goes_with_a_protocol(shell: Command, gate: Path, flag: str) -> None:
    done = shell("run", flag, "smtp:127.0.0.1:25", "gate.py")
    assert (done.status, done.out) == (2, "")
    assert f"{flag} goes with one protocol: name it with -p" in done.err


@pytest.mark.parametrize(
    ("kind", "address"), [("listen", "lmtp:127.0.0.1"), ("listen", "smtps:inet:465")]
)
def test_what_is_spoken_stands_before_an_address(
    shell: Command, gate: Path, kind: str, address: str
) -> None:
    done = shell("run", "-p", "smtp", f"--{kind}", address, "gate.py")
    assert (done.status, done.out) == (2, "")
    assert f"--{kind}: address '{address.partition(':')[2]}': write " in done.err


def test_an_open_relay_does_not_start(program: Command, gate: Path) -> None:
    done = program("run", "-p", "smtp", "-l", "*:0", "-u", "smtp://127.0.0.1:25", "gate.py")
    assert (done.status, done.out) == (78, "")
    assert "is open to others, and the upstream would take them for this host" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("proxy_protocol = true\ntrusted = ['127.0.0.1']", "is open to others, and the upstream"),
        ("trusted = ['0.0.0.0/0']", "[smtp]: 'trusted' must not be everybody"),
        ('hostname = "a\\r\\nb"', "[smtp]: 'hostname' must be a host name, not 'a\\r\\nb'"),
        (
            "relay_domains = ['']",
            "[smtp]: 'relay_domains' are domains such as example.org, not ''",
        ),
    ],
)
def test_what_would_let_anybody_in_does_not_start(
    program: Command, gate: Path, lines: str, said: str
) -> None:
    table = f"[smtp]\nlisten = '127.0.0.1:0'\nupstream = 'smtp://127.0.0.1:25'\n{lines}\n"
    Path("mailgate.toml").write_text(table)
    done = program("run", "-p", "smtp", "gate.py")
    assert (done.status, done.out) == (78, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1
