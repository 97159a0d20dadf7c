"""The standard streams, taken for a protocol before any policy code is there."""

from __future__ import annotations

import errno
import fcntl
import os

from mailgate import fork
from mailgate.errors import ConfigError

_ABOVE = 64  # descriptors that policies and what they start may take for theirs


def take(*streams: int) -> list[int]:
    """Return private copies of standard streams; stdin becomes /dev/null, stdout stderr.

    What a policy prints would end the mail server, and a child process would inherit the rest.
    ConfigError where one of them is closed.
    """
    taken = [_copy(fd) for fd in streams]
    for fd in taken:
        fork.keep_from_children(fd)
    null = os.open(os.devnull, os.O_RDWR)  # maybe as one of them that was closed
    os.dup2(null, 0)
    try:
        os.dup2(2, 1)
    except OSError:
        os.dup2(null, 1)
    if null > 2:
        os.close(null)
    return taken


def occupy() -> None:
    """Have each standard stream that is closed lead to /dev/null.

    What is opened next would pass for it, and libuv aborts where it has to close one.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _copy(fd: int) -> int:
    for least in (_ABOVE, 3):  # RLIMIT_NOFILE may be lower
        try:
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
        except OSError as error:
            reason = (
                "is closed" if error.errno == errno.EBADF else f"cannot be used: {error.strerror}"
            )
    raise ConfigError(
        f"{('stdin', 'stdout', 'stderr')[fd]}, which the mail server speaks on, {reason}"
    )
