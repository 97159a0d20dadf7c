"""A maildir as the next hop: mail ends here, or is kept here as quarantine.

The format is that of maildir(5) and https://cr.yp.to/proto/maildir.html.  A message is written
to ``tmp`` and moved to ``new``; it is accepted when both, file and folder, are on disk.  What a
crash leaves in ``tmp`` is for readers to clear away, after 36 hours.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from typing import final

from mailgate.errors import ConfigError
from mailgate.session import IPAddress
from mailgate.syntax import with_lf
from mailgate_smtp.hop import Features
from mailgate_smtp.wire import SYNTAX, Path, Reply, reply

log = logging.getLogger(__name__)

GATHERED = 1024 * 1024
"""Octets that are written at a time; a message of less is one trip to a thread."""

THREADS = 8
"""Messages that are written at a time: file systems sync several at the cost of one."""

SENDER_OK = reply(250, "2.1.0", "Sender ok")
RECIPIENT_OK = reply(250, "2.1.5", "Recipient ok")
GO_AHEAD = Reply(354, (b"End data with <CR><LF>.<CR><LF>",))
TOO_BIG = reply(552, "5.3.4", "Message too big")
NO_SPACE = reply(452, "4.3.1", "Insufficient system storage, try again later")
FAILED = reply(451, "4.3.0", "The message cannot be stored now, try again later")

_MAX_HOST = 128  # octets of a host name in a file name, which may have 255


# -- what is written -----------------------------------------------------------------------------

_ODD = re.compile(r"[^0-9A-Za-z._:\[\]-]")
_MAX_WORD = 255  # octets, as a domain: RFC 5321 4.5.3.1.2


def _word(text: str) -> str:
    """Return a name as it can stand in a Received field, whatever a client called itself."""
    return _ODD.sub("?", text[:_MAX_WORD]) or "unknown"


@final
@dataclass(frozen=True, slots=True)
class Trace:
    """What a Received field says of where a message comes from (RFC 5321 4.4).

    ``protocol`` is ``ESMTPS`` or another word of RFC 3848.  ``client`` is None for a local
    socket.
    """

    helo: str
    client: IPAddress | None
    protocol: str
    id: str

    def received(self, hostname: str, date: str) -> bytes:
        """Return the field, its last line without a line end."""
        source = ""
        if self.client is not None:
            tag = "IPv6:" if self.client.version == 6 else ""
            source = f" ([{tag}{self.client}])"
        return (
            f"Received: from {_word(self.helo)}{source}\n"
            f"\tby {_word(hostname)} with {_word(self.protocol)} id {_word(self.id)};\n"
            f"\t{date}"
        ).encode("ascii")


@final
class _Lines:
    """Content as it is sent, however it is cut, as lines of a file: LF, and no stuffed dots.

    A line end waits for what follows it.  The first one is that of the line before the content.
    """

    __slots__ = ("_tail", "octets")

    def __init__(self) -> None:
        self._tail = b"\r\n"
        # As RFC 1870 3 counts them: CRLF is two, stuffed dots are none.  The last line end is not
        # in it while it waits; the one before the content is, in its place.
        self.octets = 0

    def receive(self, piece: bytes) -> bytes:
        """Return what is sure by now."""
        window = self._tail + piece
        self._tail = next((end for end in (b"\r\n", b"\r") if window.endswith(end)), b"")
        window = window.removesuffix(self._tail).replace(b"\r\n.", b"\r\n")
        self.octets += len(window)
        return with_lf(window)

    def end(self) -> bytes:
        """Return the last line end."""
        return with_lf(self._tail)


# -- on disk -------------------------------------------------------------------------------------


@final
class Delivery:
    """A message on its way through ``tmp`` into ``new``.

    `spill`, `deliver` and `remove` run in threads, one at a time, and raise OSError; nothing of
    the message is left when they do.
    """

    __slots__ = ("_at", "_fd", "_folder", "_given_up", "_lock", "gathered", "name")

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        self.gathered = bytearray()  # and not written yet
        self._folder = folder
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._at: str | None = None  # where the file is
        self._given_up = False

    def give_up(self) -> None:
        """Have what is under way in a thread fail; `remove` has to follow."""
        self._given_up = True
        self.gathered = bytearray()

    def spill(self) -> None:
        """Write what was gathered."""
        with self._lock, self._all_or_nothing():
            self._write()

    def deliver(self) -> None:
        """Write the rest, and put the whole message into ``new``, to survive a crash."""
        with self._lock, self._all_or_nothing():
            os.fsync(self._write())
            self._close()
            self._check()
            os.rename(self._path("tmp"), self._path("new"))
            self._at = self._path("new")
            sync_folder(os.path.join(self._folder, "new"))

    def remove(self) -> None:
        """Take away what there is of it, delivered or not."""
        with self._lock:
            self._remove()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            self._check()
            yield
        except BaseException:
            self._remove()
            raise

    def _check(self) -> None:
        if self._given_up:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def _path(self, where: str) -> str:
        return os.path.join(self._folder, where, self.name)

    def _write(self) -> int:
        """Write what was gathered, and return the descriptor."""
        gathered, self.gathered = self.gathered, bytearray()
        if self._fd is None:
            path = self._path("tmp")
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._at = path
        with memoryview(gathered) as octets:
            written = 0
            while written < len(octets):
                written += os.write(self._fd, octets[written:])
        return self._fd

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)  # NFS tells here that a disk is full

    def _remove(self) -> None:
        with suppress(OSError):
            self._close()
        if self._at is not None:
            with suppress(OSError):  # whoever reads the maildir may have moved it
                os.unlink(self._at)
            self._at = None


def sync_folder(path: str) -> None:
    """Have the names in a folder survive a crash.  OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot do it to folders.
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(fd)


# -- the next hop --------------------------------------------------------------------------------


@final
class Maildir:
    """A maildir that messages are delivered to."""

    def __init__(self, path: str, hostname: str, limit: int = 0) -> None:
        """Deliver to ``path`` as ``hostname``.

        ``limit`` is what SIZE announces, in octets of a message; 0 sets none (RFC 1870 4).
        """
        self.path = path
        self.hostname = hostname
        self.limit = limit
        self.features = Features(
            {
                b"PIPELINING": b"",
                b"SIZE": b"%d" % limit,
                b"8BITMIME": b"",
                b"ENHANCEDSTATUSCODES": b"",
                b"SMTPUTF8": b"",
            }
        )
        self._host = hostname[:_MAX_HOST].replace("/", r"\057").replace(":", r"\072")
        self._counter = itertools.count(1)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mailgate-maildir")

    def prepare(self) -> None:
        """Make the folders that are missing, but not the one above them.

        ConfigError where mail cannot be delivered.
        """
        parent = os.path.dirname(os.path.abspath(self.path))
        folders = [os.path.join(self.path, each) for each in ("tmp", "new", "cur")]
        remedy = f"let user {os.geteuid()} write there, or choose another path"
        try:
            if _make(self.path):
                with suppress(PermissionError):  # one may write into what one cannot list
                    sync_folder(parent)
            for folder in folders:
                _make(folder)
            sync_folder(self.path)
        except FileNotFoundError:
            problem = f"cannot be made: there is no folder {parent}; make it first"
            raise ConfigError(problem, file=self.path) from None
        except OSError as error:
            problem = f"cannot be made a maildir: {error.strerror}; {remedy}"
            raise ConfigError(problem, file=self.path) from None
        for folder in folders[:2]:
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise ConfigError(f"mail cannot be put there; {remedy}", file=folder)

    def close(self) -> None:
        """End the threads, when what they are at has ended."""
        self._threads.shutdown(wait=False)

    def open(self, trace: Trace) -> MaildirHop:
        """Return a next hop for messages of one origin."""
        return MaildirHop(self, trace)

    def begin(self) -> Delivery:
        """Begin to deliver a message, under a name that no other one has."""
        seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
        unique = f"M{micros:06}P{os.getpid()}Q{next(self._counter)}R{secrets.token_hex(8)}"
        return Delivery(self.path, f"{seconds}.{unique}.{self._host}")

    async def run(self, step: Callable[[], None]) -> None:
        """Take a step of a delivery in a thread; raises what it raises."""
        await asyncio.get_running_loop().run_in_executor(self._threads, step)

    def drop(self, delivery: Delivery) -> None:
        """Have nothing left of a message, soon."""
        delivery.give_up()
        with suppress(RuntimeError):  # no thread can be started now: it is queued all the same
            self._threads.submit(delivery.remove)


def _make(folder: str) -> bool:
    """Make a folder unless it is there, and tell whether it was made.  OSError."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        return False
    return True


@final
class MaildirHop:
    """Delivers messages into a maildir, one at a time; see `NextHop`.

    Each is one file, however many its recipients are.  What goes wrong with it is a reply of
    `end`; nothing here raises HopError.
    """

    __slots__ = (
        "_delivery",
        "_failure",
        "_lines",
        "_maildir",
        "_recipients",
        "_sender",
        "_trace",
    )

    answers_each = False

    def __init__(self, maildir: Maildir, trace: Trace) -> None:
        self._maildir = maildir
        self._trace = trace
        self._begin(b"")

    def _begin(self, sender: bytes) -> None:
        self._sender = sender
        self._recipients: list[bytes] = []
        self._lines = _Lines()
        self._delivery: Delivery | None = None
        self._failure: Reply | None = None

    @property
    def features(self) -> Features:
        """What a server offers that is a maildir."""
        return self._maildir.features

    async def rcpt(self, path: Path) -> Reply:
        """Add a recipient."""
        self._recipients.append(path.mailbox)
        return RECIPIENT_OK

    async def envelope(self, sender: Path, recipients: Sequence[Path]) -> Sequence[Reply]:
        """Begin a message with its recipients, unless it is said to be too big."""
        size = sender.parameters.get(b"SIZE", b"0")
        if size is None or not size.isdigit():
            return [SYNTAX]
        if self._is_too_big(int(size)):
            return [TOO_BIG]
        self._begin(sender.mailbox)
        return [SENDER_OK, *[await self.rcpt(path) for path in recipients]]

    async def data(self) -> Reply:
        """Begin the file with what a final delivery adds (RFC 5321 4.4)."""
        self._delivery = self._maildir.begin()
        self._delivery.gathered += b"".join(
            (
                b"Return-Path: <%b>\n" % self._sender,
                *(b"Delivered-To: %b\n" % each for each in self._recipients),
                self._trace.received(self._maildir.hostname, formatdate(localtime=True)),
            )
        )
        return GO_AHEAD

    async def write(self, piece: bytes) -> None:
        """Take some of the content; it waits where there is enough of it for the disk."""
        delivery = self._delivery
        if delivery is None:  # given up
            return
        delivery.gathered += self._lines.receive(piece)
        if self._is_too_big(self._lines.octets):
            self._fail(TOO_BIG)
        elif len(delivery.gathered) >= GATHERED:
            await self._run(delivery.spill)

    async def end(self) -> Sequence[Reply]:
        """Deliver the message: 250 where it is on disk to stay."""
        delivery = self._delivery
        if delivery is not None:
            delivery.gathered += self._lines.end()
            await self._run(delivery.deliver)
            if self._delivery is delivery:  # not given up meanwhile
                self._delivery = None
                return (reply(250, "2.0.0", f"Delivered as {delivery.name}"),)
        return (self._failure or FAILED,)

    async def reset(self) -> None:
        """Give up the message."""
        self.abort()

    def release(self) -> None:
        """Do nothing: there is no connection."""

    def abort(self) -> None:
        """Give up the message: nothing is left of it, even where it was just delivered."""
        self._fail(FAILED)

    async def _run(self, step: Callable[[], None]) -> None:
        """Take a step; where it fails or is cancelled, the message is given up."""
        try:
            await self._maildir.run(step)
        except (OSError, RuntimeError) as error:  # no space, or no thread
            if self._delivery is not None:
                path, cause = self._maildir.path, getattr(error, "strerror", None) or error
                log.error("message %s is put off: maildir %s: %s", self._trace.id, path, cause)
            self._fail(_reply_for(error))
        except asyncio.CancelledError:
            self.abort()
            raise

    def _fail(self, answer: Reply) -> None:
        """Give up the message, if one is under way, and say at its end why."""
        delivery, self._delivery = self._delivery, None
        if delivery is not None:
            self._failure = answer
            self._maildir.drop(delivery)

    def _is_too_big(self, octets: int) -> bool:
        return 0 < self._maildir.limit < octets


def _reply_for(error: Exception) -> Reply:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return NO_SPACE if full else FAILED
