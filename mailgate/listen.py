"""Addresses to listen on: TCP, unix sockets, and sockets that a service manager passes.

    127.0.0.1:8891      a literal address; port 0 is one that the kernel chooses
    localhost:8891      a host name: every address of it that this machine has
    [::1]:8891          IPv6 has brackets; an IPv6 socket never takes IPv4 (IPV6_V6ONLY)
    *:8891              every interface, IPv4 and IPv6
    unix:/path          a unix socket; the path is absolute
    fd:3                a listening socket that was inherited: systemd passes 3 and those after it

A host is never left out: what speaks to a mail server trusts its peer, and ``:8891`` would open
it to the network in passing.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias, final

from mailgate import fork
from mailgate.errors import ConfigError

BACKLOG = 1024
"""Connections that may wait to be accepted; the kernel has a limit of its own (somaxconn)."""

FIRST_PASSED = 3
"""The first descriptor of socket activation: sd_listen_fds(3)."""


@final
@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect to a unix socket: its mode, and its owner and group where not our own.

    Owner and group are names or numbers.
    """

    mode: int = 0o660
    owner: str | None = None
    group: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Inet:
    """A TCP port of a host; ``*`` is every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@final
@dataclass(frozen=True, slots=True)
class Unix:
    """A unix socket at an absolute path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@final
@dataclass(frozen=True, slots=True)
class Fd:
    """A descriptor that the process was started with."""

    number: int

    def __str__(self) -> str:
        return f"fd:{self.number}"


Address: TypeAlias = Inet | Unix | Fd


# -- addresses as text ---------------------------------------------------------------------------


def parse(text: str) -> Address:
    """Return the address that a text means.  ConfigError names the way to write it."""
    if any(ord(char) < 33 or ord(char) == 127 for char in text):
        raise _unfit(text, "has a blank or a control character; mail servers take neither")
    scheme, colon, rest = text.partition(":")
    if scheme == "unix" and colon:
        return _unix(text, rest)
    if scheme == "fd" and colon:
        return _fd(text, rest)
    if scheme in _FOREIGN and colon:
        raise _unfit(text, _FOREIGN[scheme](rest))
    if text.startswith("/"):
        raise _unfit(text, f"write unix:{text}")
    if text == "systemd":
        raise _unfit(text, "write fd:3, the first socket that systemd passes")
    return _inet(text)


def _unfit(text: str, why: str) -> ConfigError:
    return ConfigError(f"address {text!r}: {why}")


def _as_sendmail(rest: str) -> str:
    """Say how a port is spelt here that Sendmail and OpenDKIM spell ``inet:8891@127.0.0.1``."""
    port, at, host = rest.removeprefix("//").partition("@")
    if at and host:
        return f"write {f'[{host}]' if ':' in host and host[0] != '[' else host}:{port}"
    return f"write {port}" if ":" in port else f"write 127.0.0.1:{port or 'PORT'}"


_FOREIGN: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(("inet", "inet6", "tcp"), _as_sendmail),
    "local": lambda rest: f"write unix:{rest}",
}
"""How other milters begin an address, and what to say of it."""


def _unix(text: str, path: str) -> Unix:
    if not path.startswith("/") or path.endswith("/"):
        name = path.strip("/") or "milter.sock"
        raise _unfit(text, f"write the whole path of a socket, such as unix:/run/mailgate/{name}")
    return Unix(path)


def _fd(text: str, number: str) -> Fd:
    if not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise _unfit(text, f"write the number of a descriptor, such as fd:{FIRST_PASSED}")
    return Fd(int(number))


def _inet(text: str) -> Inet:
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        host, colon, port = text[1:].partition("]:")
    elif ":" in host:
        raise _unfit(text, "an IPv6 address has brackets: write [ADDRESS]:PORT")
    if not colon:
        whole = f"127.0.0.1:{text}" if _is_port(text) else f"{text or 'HOST'}:PORT"
        raise _unfit(text, f"write {whole}")
    if not host:
        raise _unfit(text, f"no host: write 127.0.0.1:{port}, or *:{port} for every interface")
    if not _is_port(port):
        raise _unfit(text, f"the port is a number up to 65535, not {port!r}")
    return Inet(host, int(port))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535


# -- sockets -------------------------------------------------------------------------------------


@final
class _Listening(socket.socket):
    """A listening socket, and the path and file that were made for it."""

    made: tuple[str, tuple[int, int, int]] | None = None


def bind(texts: Sequence[str], access: Access = Access()) -> list[socket.socket]:
    """Return listening, non-blocking sockets for addresses; all of them, or ConfigError.

    Call it before there are threads: the umask, which is the whole process's, is changed for a
    moment.  Forked children do not keep the sockets.
    """
    addresses = [parse(text) for text in texts]
    if not addresses:
        raise ConfigError("no address to listen on")
    for at, address in enumerate(addresses):
        if address in addresses[:at]:
            raise ConfigError(f"cannot listen on {address}: it is named twice")
    _keep_what_was_passed()
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets += _bind(address, access)
    except BaseException:
        release(sockets)
        raise
    for each in sockets:
        fork.keep_from_children(each.fileno())
    return sockets


def name_of(listening: socket.socket) -> str:
    """Return the address of a listening socket, in the form of `parse`."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def release(sockets: Iterable[socket.socket]) -> None:
    """Close sockets; unlink the files that `bind` made for them and that are still theirs."""
    for each in sockets:
        # Unlinked first: as long as it listens nobody takes the path for a stale one.
        if isinstance(each, _Listening) and each.made is not None:
            path, made = each.made
            with suppress(OSError), _alone(path):
                if _file(path) == made:
                    os.unlink(path)
        each.close()


def _bind(address: Address, access: Access) -> list[_Listening]:
    try:
        if isinstance(address, Inet):
            return _bind_inet(address)
        if isinstance(address, Unix):
            return [_bind_unix(address.path, access)]
        return [_take(address.number)]
    except ConfigError as error:
        raise ConfigError(f"cannot listen on {address}: {error.message}") from None
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {_reason(error, address)}") from None


def _reason(error: OSError, address: Address) -> str:
    """Return what a refusal of the kernel means, and what to do about it."""
    if isinstance(address, Inet):
        reasons = {
            errno.EADDRINUSE: "in use: another mailgate? see ss -ltnp",
            errno.EADDRNOTAVAIL: "this machine does not have that address; see ip address",
            errno.EACCES: "permission denied: ports below 1024 are root's; take a higher one",
        }
    elif isinstance(address, Unix):
        folder = os.path.dirname(address.path)
        reasons = {
            errno.EACCES: f"permission denied: this user has to be able to write in {folder}",
            errno.EPERM: "only root gives a socket to another user, or to a group not its own",
            errno.ENOENT: f"no such directory: make {folder}",
            errno.EADDRINUSE: "in use: another program has just made it",
        }
    else:
        reasons = dict.fromkeys((errno.EBADF, errno.ENOTSOCK), _NOT_PASSED)
    return reasons.get(error.errno or 0) or error.strerror or str(error)


_NOT_PASSED = "no socket was passed there: start mailgate by a systemd .socket unit"


def _listen(each: _Listening) -> _Listening:
    each.setblocking(False)
    each.listen(BACKLOG)
    return each


# -- TCP -----------------------------------------------------------------------------------------


def _bind_inet(address: Inet) -> list[_Listening]:
    """Listen on every address of a host that this machine has."""
    found = _resolve(address)
    sockets: list[_Listening] = []
    absent: OSError | None = None
    for family, place in found:
        try:
            sockets.append(_bind_port(family, place))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                release(sockets)
                raise
            absent = error  # localhost is ::1, too, where the kernel has no IPv6
    if absent is not None and not sockets:
        raise absent
    return sockets


def _resolve(address: Inet) -> list[tuple[int, tuple[object, ...]]]:
    """Return the families and socket addresses of a host, each once."""
    hosts = ["0.0.0.0", "::"] if address.host == "*" else [address.host]  # noqa: S104
    try:
        found = [
            (family, place)
            for host in hosts
            for family, _, _, _, place in socket.getaddrinfo(
                host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        ]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no host name"
        raise ConfigError(f"{address.host!r} is not found: {reason}") from None
    return list(dict.fromkeys(found))


def _bind_port(family: int, place: tuple[object, ...]) -> _Listening:
    each = _Listening(family, socket.SOCK_STREAM)
    try:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # So that 0.0.0.0 and [::] can stand side by side, and no client is ::ffff:192.0.2.1.
            each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        each.bind(place)
        return _listen(each)
    except BaseException:
        each.close()
        raise


# -- unix sockets --------------------------------------------------------------------------------


def _bind_unix(path: str, access: Access) -> _Listening:
    """Make a unix socket, in place of one that nobody listens on.

    All of it happens under a lock.  Without one, a second process that starts now would find
    our socket bound and not yet listening, or would look at the stale one before we replace it
    and unlink ours after.  Binding elsewhere and renaming has the second fault, too, and `ss`
    would show the other name for ever.

    Nobody connects with wrong rights: the umask leaves exactly the mode that is wanted, and the
    socket refuses until it listens, which comes after its owner is set.
    """
    owner = _id(access.owner, "user", lambda name: pwd.getpwnam(name).pw_uid)
    group = _id(access.group, "group", lambda name: grp.getgrnam(name).gr_gid)
    each = _Listening(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _alone(path):
            _clear(path)
            before = os.umask(0o777 & ~access.mode)
            try:
                each.bind(path)
            finally:
                os.umask(before)
            each.made = path, _file(path)
            if (owner, group) != (-1, -1):
                os.chown(path, owner, group, follow_symlinks=False)
            return _listen(each)
    except BaseException as error:
        release([each])
        if isinstance(error, OSError) and error.errno is None:  # Python's own, before the kernel
            raise ConfigError("the path is too long for a socket: 107 octets on Linux") from None
        raise


def _file(path: str) -> tuple[int, int, int]:
    """Return what tells a file from a later one of its name, whose inode may be the same."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Be the only mailgate that makes or unlinks a socket at a path.

    The lock is a file beside it that only its owner opens.  (A directory can be locked as well,
    but by everybody who reads it.)  It is unlinked while it is held; so whoever waited for it
    looks whether it is still there.
    """
    folder, name = os.path.split(path)
    lock = os.path.join(folder, f".{name}.mailgate-lock")
    while True:
        with open(lock, "a", opener=_open_lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                try:
                    yield
                finally:
                    os.unlink(lock)
                return


def _open_lock(path: str, flags: int) -> int:
    # O_NONBLOCK: somebody may have put a FIFO there, whose open would wait for ever.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


def _clear(path: str) -> None:
    """Unlink a stale socket.  ConfigError for a live one, and for what is no socket."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a socket"
        raise ConfigError(f"it is {kind}, and stays: choose another path, or remove it")
    if _is_live(path):
        raise ConfigError(f"in use: another mailgate? see ss -xlp src {path}")
    os.unlink(path)


def _is_live(path: str) -> bool:
    """Tell whether a process has a socket: whether the kernel lets us as far as its queue."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except PermissionError:
            raise ConfigError(
                "it is another user's, and may be in use: see ss -xlp, or take another path"
            ) from None
        except OSError:  # EAGAIN: its queue is full; EPROTOTYPE: it is no stream
            return True
        return True


def _id(name: str | None, kind: str, known: Callable[[str], int]) -> int:
    """Return the number of a user or group, given by name or number; -1 (leave it) for None."""
    if name is None:
        return -1
    if name.isdecimal() and len(name) <= 9:
        return int(name)
    try:
        return known(name)
    except (KeyError, ValueError):
        raise ConfigError(f"there is no {kind} {name!r} here") from None


# -- inherited sockets ---------------------------------------------------------------------------


def _keep_what_was_passed() -> None:
    """Have no child inherit systemd's sockets, or take them for its own: sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return
    count = os.environ.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    for number in range(FIRST_PASSED, FIRST_PASSED + int(count) if count.isdecimal() else 0):
        with suppress(OSError):
            os.set_inheritable(number, False)


def _take(number: int) -> _Listening:
    """Return an inherited socket; ConfigError where it is not a listening stream."""
    each = _Listening(fileno=number)
    if each.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
        why = "it is no stream socket: the .socket unit has to say ListenStream="
    elif not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        why = "it does not listen: the .socket unit has to say Accept=no"
    else:
        each.set_inheritable(False)
        each.setblocking(False)
        return each
    each.detach()
    raise ConfigError(why)
