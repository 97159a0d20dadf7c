"""A handler that forks leaves a copy of the server behind, and the copy must never act as it.

A child made by `os.fork` holds the protocol's descriptors and the event loop's, which it shares
with the server.  So in a child those descriptors lead nowhere, and it ends as soon as the
handler gives control back.  Programs started with `subprocess` are not touched by this: they
inherit none of these descriptors.
"""

from __future__ import annotations

import os

_private: set[int] = set()
_child = False


def keep_from_children(fd: int) -> None:
    """Have a descriptor lead to /dev/null in every forked child."""
    _private.add(fd)


def leave_if_child() -> None:
    """End this process at once if it is a forked copy of the server."""
    if _child:
        os._exit(0)


def _after_fork() -> None:
    global _child
    if not _private:  # not serving: tests and commands may fork as they like
        return
    _child = True
    null = os.open(os.devnull, os.O_RDWR)
    for fd in _private:
        os.dup2(null, fd)


os.register_at_fork(after_in_child=_after_fork)
