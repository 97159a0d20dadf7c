"""Log lines that nobody outside can forge, and that are never in the way of mail."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import os
import pty
import queue
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailgate import logs
from mailgate.logs import MAX_TRACEBACK, Format, Syslog, To, configure, fields, trouble

# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("plain", "plain"),
        (5, "5"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('a"b', '"a\\"b"'),
        ("a\nb", '"a\\nb"'),
        ("a\x1b[31m", '"a\\u001b[31m"'),
        ("\u2028", '"\\u2028"'),
        ("\udc80", '"\\udc80"'),
        ("grün", "grün"),
    ],
)
def test_a_value_is_one_word(value: object, word: str) -> None:
    assert fields(key=value) == f"key={word}"


def test_what_is_not_known_is_left_out() -> None:
    assert fields(a=1, b=None, c="x") == "a=1 c=x"


@given(st.text(max_size=20), st.text(max_size=20))
@example('x" verdict=accept', "\r\n")
def test_no_value_breaks_out_of_its_word(one: str, other: str) -> None:
    line = fields(one=one, other=other)
    assert line.isprintable()
    start, _, end = line.partition(" other=")
    assert read_back(start.removeprefix("one=")) == one
    assert read_back(end) == other or " other=" in one


def read_back(word: str) -> str:
    return str(json.loads(word)) if word.startswith('"') else word


# -- lines ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the root logger as it was."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


Logged = Callable[[Format, Callable[[], None]], list[str]]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Logged:
    """Return the lines that reach stderr while something runs."""

    def run(format: Format, act: Callable[[], None]) -> list[str]:
        stderr = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stderr)
        listener = configure("info", format)
        act()
        listener.stop()
        return stderr.getvalue().splitlines()

    return run


LOG = logging.getLogger("policy")


def test_a_line_has_its_level_and_no_time(logged: Logged) -> None:
    """smtpd and the journal add the time themselves."""
    assert logged("text", lambda: LOG.warning("hello %s", "you")) == ["warning: hello you"]


def test_levels_below_the_configured_one_are_silent(logged: Logged) -> None:
    assert logged("text", lambda: LOG.debug("hello")) == []


@pytest.mark.parametrize("format", get_args(Format))
def test_control_characters_are_escaped(logged: Logged, format: Format) -> None:
    (line,) = logged(format, lambda: LOG.info("a\x1b[31m\0\x7f\x9bb\tc\udc80"))
    assert "\x1b" not in line
    assert line.replace("\t", "").isprintable()


@pytest.mark.parametrize("format", ["text", "json"])
def test_nothing_in_a_message_passes_for_another_record(logged: Logged, format: Format) -> None:
    text = "first\nerror: forged\r\x0bmore\x85and\u2028more"
    lines = logged(format, lambda: LOG.info(text))
    if format == "json":
        (line,) = lines
        assert json.loads(line)["message"] == text
    else:
        assert all(line.startswith("info: ") for line in lines)
        assert "".join(line.removeprefix("info: ") for line in lines).startswith("firsterror")


def test_json_is_one_object_a_record(logged: Logged) -> None:
    def act() -> None:
        try:
            raise ValueError("no\nreally")
        except ValueError:
            LOG.exception("failed")

    (line,) = logged("json", act)
    record = json.loads(line)
    assert record.keys() == {"time", "level", "logger", "message"}
    assert (record["level"], record["logger"]) == ("error", "policy")
    assert record["message"].startswith("failed\nTraceback")
    assert record["message"].endswith("ValueError: no\nreally")


def test_the_journal_is_told_the_priority() -> None:
    """sd-daemon(3); JOURNAL_STREAM names the device and inode of stderr (systemd.exec(5))."""
    source = """
        import logging, os
        from mailgate.logs import configure
        stat = os.fstat(2)
        os.environ["JOURNAL_STREAM"] = f"{stat.st_dev}:{stat.st_ino}"
        listener = configure("debug", "auto")
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(logging, level)("a\\nb" if level == "info" else level)
        logging.log(35, "between")
        listener.stop()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr.splitlines() == [
        *("<7>debug", "<6>a", "<6>b", "<4>warning", "<3>error", "<2>critical", "<5>between")
    ]


def on_terminal(source: str) -> bytes:
    """Run a program whose stderr is a terminal; return what it writes there."""
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(source)],
            stderr=theirs,
            timeout=30,
            check=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"},
        )
    finally:
        os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 65536):
            written += piece
    except OSError:  # EIO: the other end is closed
        pass
    os.close(ours)
    return written


def test_a_terminal_is_not_driven_by_what_is_logged() -> None:
    written = on_terminal(
        """
        import logging
        from mailgate.logs import configure
        listener = configure("info", "auto")
        logging.error("subject \\x1b]0;owned\\x07 \\x1b[2J \\x9b2J [bold]x[/bold]")
        listener.stop()
        """
    )
    uncoloured = re.sub(rb"\x1b\[[0-9;]*m", b"", written)
    assert b"subject" in uncoloured
    assert b"[bold]x[/bold]" in uncoloured
    assert b"\x1b" not in uncoloured
    assert b"\x07" not in uncoloured
    assert "\x9b".encode() not in uncoloured


# -- the system's log ----------------------------------------------------------------------------

MAIL = 2 << 3
"""The facility mail (RFC 5424 6.2.1); a priority is facility and severity."""


@pytest.fixture
def syslogd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen where the system's log does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.settimeout(20)
        monkeypatch.setattr(logs, "SYSLOG", str(tmp_path / "log"))
        yield listening


@contextmanager
def stderr_at(path: str) -> Iterator[None]:
    """Have descriptor 2 lead elsewhere."""
    kept, other = os.dup(2), os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(other, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(other)


def sent(listening: socket.socket, act: Callable[[], None], **options: Any) -> list[bytes]:
    """Return the datagrams that the system's log gets while something runs."""
    listener = configure(**{"to": "syslog", **options})
    act()
    LOG.critical("the end")
    listener.stop()
    (handler,) = listener.handlers
    handler.close()
    found = []
    while b"the end" not in (datagram := listening.recv(65536)):
        found.append(datagram)
    return found


def test_the_systems_log_gets_each_line_with_its_severity(syslogd: socket.socket) -> None:
    """As syslog(3) sends it, but for the time, which the receiver has too."""

    def act() -> None:
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(LOG, level)(f"{level}ly\nsaid" if level == "info" else level)

    name = f"filter-mailgate[{os.getpid()}]: "
    said = [
        *((7, "debug"), (6, "infoly"), (6, "said"), (4, "warning"), (3, "error")),
        (2, "critical"),
    ]
    assert sent(syslogd, act, level="debug", program="filter-mailgate") == [
        f"<{MAIL | severity}>{name}{line}".encode() for severity, line in said
    ]


@pytest.mark.parametrize(
    ("format", "start"), [("text", b"info: "), ("json", b'{"time": '), ("auto", b"a ")]
)
def test_what_is_sent_has_the_format_that_was_asked_for(
    syslogd: socket.socket, format: Format, start: bytes
) -> None:
    (datagram,) = sent(syslogd, lambda: LOG.info("a \x1b \udc80 ü"), format=format)
    _, _, line = datagram.partition(b"]: ")
    assert line.startswith(start)
    assert line.decode().isprintable()


def test_nobody_sees_what_goes_nowhere() -> None:
    assert not logs.stderr_is_lost()
    with stderr_at(os.devnull):
        assert logs.stderr_is_lost()
    with stderr_at("/dev/zero"):
        assert not logs.stderr_is_lost()
    closed = (
        f"exec {sys.executable} -c 'from mailgate import logs; print(logs.stderr_is_lost())' 2>&-"
    )
    done = subprocess.run(closed, shell=True, stdout=subprocess.PIPE, timeout=30, check=True)
    assert done.stdout == b"True\n"


@pytest.mark.parametrize(
    ("path", "to", "used"),
    [
        (os.devnull, "auto", True),
        ("file", "auto", False),
        (os.devnull, "stderr", False),
        ("file", "syslog", True),
    ],
)
def test_the_systems_log_is_for_what_nobody_would_see(
    syslogd: socket.socket, tmp_path: Path, path: str, to: To, used: bool
) -> None:
    with stderr_at(str(tmp_path / path)):
        listener = configure("info", "auto", to)
        listener.stop()
    (handler,) = listener.handlers
    handler.close()
    assert isinstance(handler, Syslog) is used


def test_without_a_systems_log_the_log_stays_where_it_is(
    logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SYSLOG", str(tmp_path / "none"))
    assert logs.syslog("mailgate") is None
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    listener = configure("info", "text", "syslog")
    LOG.info("said")
    listener.stop()
    warned = f"warning: there is no {tmp_path}/none: the log goes to stderr"
    assert stderr.getvalue().splitlines() == [warned, "info: said"]
    with stderr_at(os.devnull):
        assert logged("text", lambda: LOG.info("said")) == ["info: said"]


def test_a_systems_log_that_is_started_anew_is_found(
    syslogd: socket.socket, tmp_path: Path
) -> None:
    """What is said while there is none is lost, and harms nobody."""
    made = logs.syslog("mailgate")
    assert made is not None
    syslogd.close()
    (tmp_path / "log").unlink()
    made.say("lost")
    made.say("lost, too")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as anew:
        anew.bind(str(tmp_path / "log"))
        anew.settimeout(20)
        made.say("found")
        made.close()
        assert anew.recv(65536).endswith(b": found")


def test_a_line_that_is_too_long_for_the_systems_log_is_cut(syslogd: socket.socket) -> None:
    (datagram,) = sent(syslogd, lambda: LOG.info("x" * (1 << 20)))
    assert len(datagram) == 8192


def test_a_last_line_is_sent_at_once(syslogd: socket.socket) -> None:
    """After the thread that writes has ended."""
    made = logs.syslog("mailgate")
    assert made is not None
    made.say("out of mice")
    made.close()
    assert syslogd.recv(65536) == f"<{MAIL | 2}>mailgate[{os.getpid()}]: out of mice".encode()


# -- never in the way ----------------------------------------------------------------------------


def test_a_blocked_log_drops_records_and_says_so() -> None:
    records: queue.Queue[logging.LogRecord] = queue.Queue(2)
    handler = logs._Dropping(records)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for number in range(5):
        LOG.error("%d", number)  # nobody takes anything: this would block, or raise
    assert handler.dropped == 3
    assert [records.get_nowait().getMessage() for _ in range(2)] == ["0", "1"]
    LOG.error("5")
    assert [records.get_nowait().getMessage() for _ in range(2)] == [
        "5",
        "3 log records were dropped",
    ]
    assert handler.dropped == 0


def test_a_record_that_cannot_be_formatted_harms_nobody(logged: Logged) -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError

    def act() -> None:
        LOG.info("%d", "no number")
        LOG.info("%s", Odd())
        LOG.info("after")

    assert logged("text", act)[-1] == "info: after"


# -- failures of handlers ------------------------------------------------------------------------


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def failure(error: BaseException, caplog: pytest.LogCaptureFixture) -> str:
    trouble(LOG, raised(error), "gate.check", "mail", "4F2A")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    return record.getMessage()


def test_a_failure_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    first, *rest = failure(KeyError("x"), caplog).splitlines()
    assert first == "error=KeyError by=gate.check stage=mail id=4F2A"
    assert rest[0] == "Traceback (most recent call last):"
    assert any("in raised" in line for line in rest)
    assert rest[-1] == "KeyError: 'x'"


def test_a_long_failure_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    text = failure(ValueError("x" * 10 * MAX_TRACEBACK), caplog)
    assert len(text) < MAX_TRACEBACK + 200
    assert text.endswith("... (cut)")


def test_a_failure_that_cannot_be_shown_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise SystemExit

        __repr__ = __str__

        @property
        def __notes__(self) -> list[str]:  # type: ignore[override]
            raise SystemExit

    assert failure(Odd(), caplog).startswith("error=Odd by=gate.check stage=mail id=4F2A\n")


def test_a_log_that_nobody_reads_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "_LAST_WORDS", 0.05)
    taken = threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            taken.wait()

    records: queue.Queue[logging.LogRecord] = queue.Queue()
    records.put(logging.makeLogRecord({"msg": "a line"}))
    listener = logging.handlers.QueueListener(records, Stuck())
    listener.start()
    assert not logs.stop(listener)
    taken.set()


def test_what_is_left_of_the_log_is_written_at_the_end() -> None:
    lines: list[str] = []

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    records: queue.Queue[logging.LogRecord] = queue.Queue()
    listener = logging.handlers.QueueListener(records, Slow())
    for number in range(3):
        records.put(logging.makeLogRecord({"msg": f"line {number}"}))
    listener.start()
    assert logs.stop(listener)
    assert lines == ["line 0", "line 1", "line 2"]
