"""Log lines: key=value, never more than one line each, never in the way of mail."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import logging.handlers
import os
import queue
import socket
import stat
import sys
import threading
import traceback
from typing import Literal, TypeAlias, final

Format: TypeAlias = Literal["auto", "text", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]
To: TypeAlias = Literal["auto", "stderr", "syslog"]

SYSLOG = "/dev/log"
MAX_TRACEBACK = 64 * 1024
_QUEUE = 10_000
_LAST_WORDS = 1.0  # seconds
_MAIL = 2 << 3  # the facility (RFC 5424 6.2.1)
_LONGEST = 8192  # octets of a line that daemons take
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


def fields(**facts: object) -> str:
    """Return facts as ``key=value`` words; what a client chose cannot break out of its word."""
    return " ".join(f"{key}={_word(value)}" for key, value in facts.items() if value is not None)


def _word(value: object) -> str:
    text = str(value)
    if text.isprintable() and not any(c in text for c in ' "='):
        return text or '""'
    return json.dumps(text)  # escapes control characters, and keeps to one line


def trouble(log: logging.Logger, error: BaseException, by: str, stage: object, id: str) -> None:
    """Log a handler's failure with its traceback, cut at 64 KiB."""
    name = "an exception"
    try:
        name = str(type(error).__name__)
        frames = "".join(traceback.format_exception(error))
    except BaseException:  # formatting runs the policy's own __str__, and even its metaclass
        frames = f"{name} that cannot be shown"
    if len(frames) > MAX_TRACEBACK:
        frames = frames[:MAX_TRACEBACK] + "... (cut)"
    log.error("%s\n%s", fields(error=name, by=by, stage=stage, id=id), frames)


class _Lines(logging.Formatter):
    """One record as lines that hold no control character."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        prefix = self.prefix(record)
        return "\n".join(prefix + _printable(line) for line in text.splitlines())

    def prefix(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: "


class _Bare(_Lines):
    """Lines for what adds the level itself, and may let control characters pass: rich, syslog."""

    def prefix(self, record: logging.LogRecord) -> str:
        return ""


class _Journal(_Lines):
    """Lines with the priority that systemd reads: see sd-daemon(3)."""

    def prefix(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITY.get(record.levelname, 5)}>"


class _Json(logging.Formatter):
    """One record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": record.created,
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": super().format(record),
            }
        )


def _printable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)


class _Dropping(logging.handlers.QueueHandler):
    """Hands records to a writing thread, and drops them while that one cannot keep up."""

    def __init__(self, records: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(records)
        self.dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1
            return
        if self.dropped:
            dropped, self.dropped = self.dropped, 0
            logging.getLogger(__name__).warning("%d log records were dropped", dropped)


@final
class Syslog(logging.Handler):
    """Sends each line of a record to the system's log, in the form of syslog(3).

    It is connected when it is made, and stays so in a chroot.  What cannot be sent is lost.
    """

    def __init__(self, program: str, formatter: logging.Formatter) -> None:
        """Connect; ``program`` is the name in front of each line.  Raises OSError."""
        super().__init__()
        self.setFormatter(formatter)
        self._name = f"{program}[{os.getpid()}]"
        self._socket = _connected()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self.format(record).splitlines()
        except Exception:
            self.handleError(record)
            return
        priority = _MAIL | _PRIORITY.get(record.levelname, 5)
        for line in lines:
            self._send(f"<{priority}>{self._name}: {line}".encode()[:_LONGEST])

    def _send(self, datagram: bytes) -> None:
        """Send a datagram, to a log that was started anew where the old one is gone."""
        try:
            self._socket.send(datagram)
        except OSError:
            with contextlib.suppress(OSError):
                anew = _connected()
                self._socket.close()
                self._socket = anew
                anew.send(datagram)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def say(self, line: str) -> None:
        """Send one line at level critical, past all threads: the process ends."""
        self.handle(logging.makeLogRecord({"levelname": "CRITICAL", "msg": line}))


@final
class Printed(io.TextIOBase):
    """A stream whose lines go to the log: for what policies print where nobody sees stderr."""

    def __init__(self) -> None:
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > _LONGEST:
            lines.append(self._rest)
            self._rest = ""
        for line in lines:
            logging.getLogger("print").info("%s", line)
        return len(text)


def _connected() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.connect(SYSLOG)
    except OSError:
        made.close()
        raise
    return made


def syslog(program: str, format: Format = "auto") -> Syslog | None:
    """Return the system's log, or None where there is none."""
    formatters = {"auto": _Bare, "text": _Lines, "json": _Json}
    try:
        return Syslog(program, formatters[format]())
    except OSError:
        return None


def stderr_is_lost() -> bool:
    """Tell whether nobody sees stderr: it is /dev/null, as a daemon has it, or closed."""
    try:
        ours, null = os.fstat(2), os.stat(os.devnull)
    except OSError:
        return True
    return stat.S_ISCHR(ours.st_mode) and ours.st_rdev == null.st_rdev


def configure(
    level: Level = "info", format: Format = "auto", to: To = "auto", program: str = "mailgate"
) -> logging.handlers.QueueListener:
    """Send all logging somewhere through a thread of its own; ``stop()`` what is returned.

    A blocked stderr then costs records, never mail.  ``format`` "auto": rich on a terminal,
    priorities for the journal, plain lines elsewhere (OpenSMTPD adds time and name itself).
    ``to`` "auto": stderr; where that is lost the system's log, in which ``program`` has its name.
    """
    records: queue.Queue[logging.LogRecord] = queue.Queue(_QUEUE)
    root = logging.getLogger()
    root.handlers[:] = [_Dropping(records)]
    root.setLevel(level.upper())
    logging.raiseExceptions = False
    handler: logging.Handler | None = None
    if to == "syslog" or (to == "auto" and stderr_is_lost()):
        handler = syslog(program, format)
        if handler is None and to == "syslog":
            logging.getLogger(__name__).warning("there is no %s: the log goes to stderr", SYSLOG)
    listener = logging.handlers.QueueListener(records, handler or _stderr_handler(format))
    listener.start()
    return listener


def stop(listener: logging.handlers.QueueListener) -> bool:
    """Write what is left; False where nobody takes it within a second."""
    stopping = threading.Thread(target=listener.stop, daemon=True)
    stopping.start()
    stopping.join(_LAST_WORDS)
    return not stopping.is_alive()


def _stderr_handler(format: Format) -> logging.Handler:
    if format == "auto" and sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        terminal: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False)
        terminal.setFormatter(_Bare())
        return terminal
    handler = logging.StreamHandler(sys.stderr)
    if format == "json":
        handler.setFormatter(_Json())
    elif format == "auto" and _is_journal():
        handler.setFormatter(_Journal())
    else:
        handler.setFormatter(_Lines())
    return handler


def _is_journal() -> bool:
    """Tell whether stderr is the journal's stream (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        stat = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
