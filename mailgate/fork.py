"""A handler that forks leaves a copy of the server behind, and the copy must never act as it.

A child made by `os.fork` holds the protocol's descriptors and the event loop's, which it shares
with the server.  So in a child those descriptors lead nowhere, and it ends as soon as the
handler gives control back.  Programs started with `subprocess` are not touched by this: they
inherit none of these descriptors.
"""

from __future__ import annotations

import fcntl
import os

_STANDARD = 2  # the last of the standard streams


def adopt(fd: int) -> int:
    """Keep a descriptor from children; return it, or what takes its place.

    Never one of the standard streams, which a policy may have closed, and prints to: OSError
    where there is no other, and it is closed then.
    """
    if fd <= _STANDARD:
        standard, fd = fd, _above(fd)
        os.dup2(_null, standard)  # so that the next one does not come there, too
    keep_from_children(fd)
    return fd


def _open_null() -> int:
    """Open /dev/null, and not as a standard stream that is closed; now: a chroot may have none."""
    return _above(os.open(os.devnull, os.O_RDWR))


def _above(fd: int) -> int:
    """Return what takes the place of a descriptor, above the standard streams."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STANDARD + 1)
    finally:
        os.close(fd)


_private: set[int] = set()
_null = _open_null()
_child = False


def keep_from_children(fd: int) -> None:
    """Have a descriptor lead to /dev/null in every forked child."""
    _private.add(fd)


def close(fd: int) -> None:
    """Close a descriptor that was kept from children."""
    _private.discard(fd)  # first: a number that is free is soon another's
    os.close(fd)


def leave_if_child() -> None:
    """End this process at once if it is a forked copy of the server."""
    if _child:
        os._exit(0)


def _after_fork() -> None:
    global _child
    if not _private:  # not serving: tests and commands may fork as they like
        return
    _child = True
    for fd in _private:
        os.dup2(_null, fd)


os.register_at_fork(after_in_child=_after_fork)
