"""Being root no more: smtpd starts its filters as root, and policies shall not run as that."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pkgutil
import pwd
import resource
import socket
import sys
import tempfile

from mailgate.errors import ConfigError

log = logging.getLogger(__name__)

USER = "_smtpd"

DESCRIPTORS = 65536
"""As many as are taken where root allows more: programs that policies start inherit the limit."""

_LATE = ("mailgate.mime", "concurrent.futures.thread", "tokenize", "zoneinfo", "idna")
"""What the library imports at first use; mailgate's own share is in it."""

_WHOLE = ("email", "encodings")
"""Packages any module of which may be wanted for what is in a message."""


def drop(user: str, chroot: str) -> None:
    """Become ``user`` for good, and have the folder ``chroot`` be ``/`` unless it is empty.

    ``"root"`` gives nothing up, and neither does who is not root.  Takes as many descriptors as
    there may be: a message under way has up to three.  Raises ConfigError.
    """
    _raise_limit()
    if os.geteuid() == 0:
        entry = _entry(user)
        _import_late(everything=chroot != "")
        if chroot:
            _enter(chroot)
        if entry.pw_uid != 0:
            _become(entry)
            log.debug("running as %s", user)
    else:
        _check_own(user, chroot)
    _check_spool(chroot)


def _raise_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # the kernel's own limit may be lower
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"there is no user {user} here: set user in [opensmtpd52]") from None


def _check_own(user: str, chroot: str) -> None:
    """Raise ConfigError where something was asked for that only root can do."""
    if chroot:
        raise ConfigError("chroot in [opensmtpd52] is for root only: smtpd starts filters as root")
    if user not in (USER, "root") and _entry(user).pw_uid != os.geteuid():
        raise ConfigError(f"only root can become {user}: leave user in [opensmtpd52] out")
    log.debug("not root: there is nothing to give up")


def _import_late(*, everything: bool) -> None:
    """Import what is imported at first use: by then the files may be out of reach.

    ``everything``: they will be, and so will the services that look names up.
    """
    for name in _LATE:
        importlib.import_module(name)
    if not everything:
        return
    whole = (*_WHOLE, "rich") if "rich" in sys.modules else _WHOLE
    for package in whole:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if not module.name.startswith("__"):
                with contextlib.suppress(ImportError):  # of another system
                    importlib.import_module(f"{package}.{module.name}")
    with contextlib.suppress(OSError):
        socket.getaddrinfo("localhost", None)  # loads what /etc/nsswitch.conf names
    with contextlib.suppress(ImportError, OSError):
        import ctypes

        ctypes.CDLL("libgcc_s.so.1")  # glibc loads it where a thread is ended, or aborts


def _enter(chroot: str) -> None:
    try:
        os.chroot(chroot)
        os.chdir("/")
    except OSError as error:
        raise ConfigError(
            f"chroot = {chroot!r} in [opensmtpd52] cannot be used: {error.strerror}"
        ) from None


def _become(entry: pwd.struct_passwd) -> None:
    """Become a user, and see that root cannot be had again."""
    user, group = entry.pw_uid, entry.pw_gid
    try:
        os.setgroups([group])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    except OSError as error:
        raise ConfigError(f"cannot become {entry.pw_name}: {error.strerror}") from None
    kept = (os.getresuid(), os.getresgid()) != ((user,) * 3, (group,) * 3)
    with contextlib.suppress(OSError):
        os.setuid(0)
        kept = True
    if kept:
        raise ConfigError(f"still root after becoming {entry.pw_name}: the system kept it")


def _check_spool(chroot: str) -> None:
    """Raise ConfigError where there is no folder for messages that are not kept in memory."""
    tempfile.tempdir = None  # what was found before may be out of reach by now
    try:
        tempfile.gettempdir()
    except OSError:
        place = f"tmp in {chroot}" if chroot else "that TMPDIR names"
        raise ConfigError(
            f"there is no place for big messages: have a folder {place}, writable to this user"
        ) from None
