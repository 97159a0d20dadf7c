"""Root is given up for good, and what comes later needs nothing that is out of reach then."""

from __future__ import annotations

import ast
import base64
import json
import os
import pwd
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mailgate
import mailgate_opensmtpd52

NOBODY = pwd.getpwnam("nobody")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

PROGRAM = """
import json, os, pwd, resource, socket, sys
from mailgate.errors import ConfigError
from mailgate_opensmtpd52.privileges import drop

def say(found):
    print(json.dumps(found))

{before}
try:
    drop(sys.argv[1], sys.argv[2])
except ConfigError as error:
    say(str(error))
    sys.exit(78)
{after}
"""
BECOME_NOBODY = "os.setresuid(*[pwd.getpwnam('nobody').pw_uid] * 3)"


def dropped(
    user: str, chroot: str | Path = "", after: str = "pass", before: str = "pass"
) -> tuple[int, Any]:
    """Give root up in a process of its own; return its exit status, and what it says."""
    source = PROGRAM.format(before=textwrap.dedent(before), after=textwrap.dedent(after))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", source, user, str(chroot)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout) if done.stdout else None


@pytest.fixture
def jail(tmp_path: Path) -> Path:
    """Make a folder to be `/`, with a place for big messages and nothing else."""
    (tmp_path / "jail/tmp").mkdir(parents=True)
    (tmp_path / "jail/tmp").chmod(0o1777)
    return tmp_path / "jail"


# -- who it is then ------------------------------------------------------------------------------


def test_root_is_given_up_for_good() -> None:
    status, found = dropped(
        "nobody",
        after="""
        failed = []
        for act in (lambda: os.setuid(0), lambda: os.seteuid(0), lambda: os.setgid(0),
                    lambda: os.setgroups([0]), lambda: open("/etc/shadow").close()):
            try:
                act()
            except PermissionError:
                failed.append(True)
        say([os.getresuid(), os.getresgid(), os.getgroups(), failed])
        """,
        before="os.setgroups([0, 1, 2])",
    )
    user, group = NOBODY.pw_uid, NOBODY.pw_gid
    assert (status, found) == (0, [[user] * 3, [group] * 3, [group], [True] * 5])


def test_every_thread_gives_it_up() -> None:
    """The log has one of its own, and policies may have started some."""
    status, found = dropped(
        "nobody",
        before="""
        import queue, threading
        go, said = queue.Queue(), queue.Queue()
        act = lambda: (go.get(), said.put(os.getresuid()))
        threading.Thread(target=act, daemon=True).start()
        """,
        after="go.put(None); say(said.get())",
    )
    assert (status, found) == (0, [NOBODY.pw_uid] * 3)


def test_root_stays_root_where_it_is_named() -> None:
    assert dropped("root", after="say(os.getresuid())") == (0, [0, 0, 0])


def test_without_the_user_the_remedy_is_said() -> None:
    said = "there is no user _nowhere here: set user in [opensmtpd52]"
    assert dropped("_nowhere") == (78, said)


def test_who_is_not_root_has_nothing_to_give_up() -> None:
    for user in ("_smtpd", "root", "nobody"):
        same = dropped(user, before=BECOME_NOBODY, after="say(os.getresuid())")
        assert same == (0, [NOBODY.pw_uid] * 3)


@pytest.mark.parametrize(
    ("user", "chroot", "said"),
    [
        ("daemon", "", "only root can become daemon: leave user in [opensmtpd52] out"),
        ("_nowhere", "", "there is no user _nowhere here: set user in [opensmtpd52]"),
        (
            *("_smtpd", "/tmp"),
            "chroot in [opensmtpd52] is for root only: smtpd starts filters as root",
        ),
    ],
)
def test_what_only_root_can_do_is_refused_to_others(user: str, chroot: str, said: str) -> None:
    assert dropped(user, chroot, before=BECOME_NOBODY) == (78, said)


# -- what it sees then ---------------------------------------------------------------------------


def test_a_chroot_is_all_there_is(jail: Path) -> None:
    after = "say([os.getcwd(), os.listdir('/'), os.path.exists('/etc/passwd'), os.geteuid()])"
    assert dropped("nobody", jail, after) == (0, ["/", ["tmp"], False, NOBODY.pw_uid])
    assert dropped("root", jail, after) == (0, ["/", ["tmp"], False, 0])


def test_a_chroot_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    status, said = dropped("nobody", tmp_path / "none")
    assert status == 78
    expected = f"'{tmp_path}/none' in [opensmtpd52] cannot be used: No such file or directory"
    assert said == f"chroot = {expected}"


def test_a_place_for_big_messages_is_looked_for_at_the_start(jail: Path) -> None:
    """One that root has found is none for the user."""
    (jail / "tmp").chmod(0o700)
    before = "import tempfile; tempfile.gettempdir()"
    said = (
        f"there is no place for big messages: have a folder tmp in {jail}, writable to this user"
    )
    assert dropped("nobody", jail, before=before) == (78, said)
    find = "import tempfile; say(tempfile.gettempdir())"
    assert dropped("root", jail, find, f"{before}\ntempfile.tempdir = '/nowhere'") == (0, "/tmp")


@pytest.mark.parametrize(
    ("soft", "hard", "then"), [(64, 512, 512), (64, 900, 600), (700, 900, 700), (64, 64, 64)]
)
def test_there_are_as_many_descriptors_as_may_be(soft: int, hard: int, then: int) -> None:
    status, found = dropped(
        "nobody",
        before=f"""
        from mailgate_opensmtpd52 import privileges
        privileges.DESCRIPTORS = 600
        resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
        """,
        after="say(resource.getrlimit(resource.RLIMIT_NOFILE))",
    )
    assert (status, found) == (0, [then, hard])


# -- what it can do then -------------------------------------------------------------------------

WRITTEN = {
    "iso-8859-1": "grün",
    "iso-2022-jp": "漢字",
    "koi8-r": "почта",
    "gb18030": "邮件",
    "euc-kr": "메일",
    "windows-1252": "€ 5",
    "big5": "郵件",
    "mac-roman": "ﬁn",
}
"""A word in charsets that mail comes in; Python has a module for each, and loads it at its use."""

POLICY = """
import asyncio, logging
from mailgate import Message, Policy
from mailgate.content import Body
from mailgate.testing import send

logging.getLogger().addHandler(logging.NullHandler())
policy, seen = Policy("p"), {}

@policy.message
async def reads(message: Message) -> None:
    seen["fields"] = [message.headers[f"X-{name}"] for name in names]
    copy = message.parse()
    seen["text"] = copy.get_body(("plain",)).get_content().strip()
    copy["New"] = "grün"
    seen["copied"] = len(copy.as_bytes()) > 0
    message.replace(copy)
    seen["new"] = message.headers["New"]
    seen["domain"] = message.recipients[0].domain
    seen["user"] = await asyncio.to_thread(os.getuid)

@policy.message(on_error="continue")
def writes(message: Message) -> None:
    held = Body(0)
    held.append(bytes(message.body))
    seen["held"] = held.in_memory
    held.close()
    with message.open() as whole, open("/tmp/kept", "wb") as kept:
        kept.write(whole.read())
    raise OSError("shown with its traceback")
"""


def encoded(word: str, charset: str) -> str:
    """Return an encoded word (RFC 2047 2)."""
    return f"=?{charset}?b?{base64.b64encode(word.encode(charset)).decode()}?="


def test_policies_work_as_before_in_a_chroot(jail: Path) -> None:
    """There is no library to load anything from."""
    fields = "".join(f"X-{name}: {encoded(word, name)}\n" for name, word in WRITTEN.items())
    text = base64.b64encode("メール".encode("shift_jis")).decode()
    raw = (
        f"{fields}X-odd: =?x-unknown?b?eA==?=\nContent-Type: text/plain; charset=shift_jis\n"
        f"Content-Transfer-Encoding: base64\n\n{text}\n"
    )
    status, seen = dropped(
        "nobody",
        jail,
        before=f"{POLICY}\nnames, raw = {[*WRITTEN, 'odd']}, {raw.encode()!r}\n",
        after="say([send(policy, raw, to='x@bücher.example').accepted, seen])",
    )
    assert (status, seen[0]) == (0, True)
    *words, odd = seen[1].pop("fields")
    assert words == [*WRITTEN.values()]
    assert odd in ("x", "=?x-unknown?b?eA==?=")  # RFC 2047 6.2 leaves it open
    assert seen[1] == {
        "text": "メール",
        "copied": True,
        "new": "grün",
        "domain": "xn--bcher-kva.example",
        "user": NOBODY.pw_uid,
        "held": 0,
    }
    kept = jail / "tmp/kept"
    assert kept.stat().st_uid == NOBODY.pw_uid
    assert b"\r\n\r\n" in kept.read_bytes()


def test_a_thread_can_end_in_a_chroot(jail: Path) -> None:
    """Those of the interpreter do so at its end, and glibc wants to load a library for it."""
    after = """
    library, thread = ctypes.CDLL(None), ctypes.c_ulong()
    ending = ctypes.cast(library.pthread_exit, ctypes.c_void_p)
    assert library.pthread_create(ctypes.byref(thread), None, ending, None) == 0
    say(library.pthread_join(thread, None))
    """
    assert dropped("nobody", jail, after, "import ctypes") == (0, 0)


def imported_late() -> Iterator[str]:
    """Yield what functions of mailgate import while they serve."""
    packages = [Path(each.__file__ or "").parent for each in (mailgate, mailgate_opensmtpd52)]
    # These do so at the start, or in tests.
    starting = {"gateway", "logs", "privileges", "settings", "testing"}
    for path in (path for package in packages for path in package.glob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        inside = [n for f in ast.walk(tree) if isinstance(f, FUNCTIONS) for n in ast.walk(f)]
        for node in inside if path.stem not in starting else ():
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                ours = node.module == "mailgate"
                yield f"mailgate.{node.names[0].name}" if ours else str(node.module)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("chroot", [True, False])
def test_what_mailgate_imports_late_is_there_already(chroot: bool, jail: Path) -> None:
    """The files of a virtual environment in root's home are out of reach, too."""
    late = sorted(set(imported_late()))
    assert {"mailgate.mime", "idna", "tempfile"} < {*late}
    before = "import mailgate.gateway, mailgate_opensmtpd52"
    after = f"say([name for name in {late!r} if name not in sys.modules])"
    assert dropped("nobody", jail if chroot else "", after, before) == (0, [])
