"""Log lines: key=value, never more than one line each, never in the way of mail."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import queue
import sys
import traceback
from typing import Literal, TypeAlias

Format: TypeAlias = Literal["auto", "text", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]

MAX_TRACEBACK = 64 * 1024
_QUEUE = 10_000
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


class _Terminal(_Lines):
    """Lines for rich, which adds time and level and lets control characters pass."""

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


def configure(level: Level = "info", format: Format = "auto") -> logging.handlers.QueueListener:
    """Send all logging to stderr through a thread of its own; ``stop()`` what is returned.

    A blocked stderr then costs records, never mail.  ``auto``: rich on a terminal, priorities
    for the journal, plain lines elsewhere (OpenSMTPD adds time and name itself).
    """
    records: queue.Queue[logging.LogRecord] = queue.Queue(_QUEUE)
    root = logging.getLogger()
    root.handlers[:] = [_Dropping(records)]
    root.setLevel(level.upper())
    logging.raiseExceptions = False
    listener = logging.handlers.QueueListener(records, _stderr_handler(format))
    listener.start()
    return listener


def _stderr_handler(format: Format) -> logging.Handler:
    if format == "auto" and sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        terminal: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False)
        terminal.setFormatter(_Terminal())
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
    stat = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
