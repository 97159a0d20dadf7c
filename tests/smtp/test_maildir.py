"""A maildir as the next hop: real folders, real full disks, and readers of the standard library.

Quoting for the wire is smtplib's, reading back is mailbox's; neither knows of this code.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mailbox
import os
import signal
import smtplib
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from mailgate.errors import ConfigError
from mailgate_smtp import wire
from mailgate_smtp.hop import NextHop
from mailgate_smtp.maildir import Maildir, Trace, sync_folder
from mailgate_smtp.wire import parse_path
from tests.core.asking import in_loop

PATIENCE = 20.0  # seconds until a missing answer is a failure: a loaded machine is slow
TRACE = Trace("client.example", ip_address("192.0.2.1"), "ESMTPS", "5f3a")
TEXT = "From: ann@client.example\nSubject: a test\n\n.one\n..two\n\n.\nthe end\n"
BIG = b"x" * 76 + b"\r\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Maildir"


@pytest.fixture
def maildir(path: Path) -> Maildir:
    """Return an empty maildir."""
    made = Maildir(str(path), "mx.example.org")
    made.prepare()
    return made


def quoted(text: str) -> bytes:
    """Return a text as DATA sends it."""
    return smtplib.quotedata(text).encode()


async def begin(hop: NextHop) -> None:
    """Take a message up to the reply 354."""
    sender = parse_path(b"FROM:<ann@client.example>", b"FROM")
    assert [reply.code for reply in await hop.envelope(sender, ())] == [250]
    assert (await hop.rcpt(parse_path(b"TO:<bob@example.org>", b"TO"))).code == 250
    assert (await hop.data()).code == 354


async def deliver(hop: NextHop, *pieces: bytes) -> wire.Reply:
    """Send a message to one recipient, and return the reply to its end."""
    await begin(hop)
    for piece in pieces:
        await hop.write(piece)
    (answer,) = await hop.end()
    return answer


def files(path: Path, *folders: str) -> list[Path]:
    """Return the files in some folders of a maildir, or in all of them."""
    return [each for name in folders or ("tmp", "new", "cur") for each in (path / name).iterdir()]


def content_of(path: Path) -> bytes:
    """Return the only file in a maildir, without what the delivery added to it."""
    (found,) = files(path)
    lines = found.read_bytes().splitlines(keepends=True)
    return b"".join(lines[5:])  # Return-Path, Delivered-To, and a Received field of three lines


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what happens next is a thread's
            await asyncio.sleep(0.01)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def is_folder(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


# -- what is in the file -------------------------------------------------------------------------


@in_loop
async def test_a_message_comes_back_as_it_was_sent(maildir: Maildir, path: Path) -> None:
    answer = await deliver(maildir.open(TRACE), quoted(TEXT))
    assert answer.code == 250
    (message,) = mailbox.Maildir(path)
    assert message["Subject"] == "a test"
    assert message.get_payload() == ".one\n..two\n\n.\nthe end\n"


@pytest.mark.parametrize("sender", [b"ann@client.example", b""])
@in_loop
async def test_one_file_is_for_all_recipients(maildir: Maildir, path: Path, sender: bytes) -> None:
    hop = maildir.open(TRACE)
    recipients = [parse_path(b"TO:<%b@example.org>" % each, b"TO") for each in (b"bob", b"cleo")]
    answers = await hop.envelope(parse_path(b"FROM:<%b>" % sender, b"FROM"), recipients)
    assert [reply.code for reply in answers] == [250, 250, 250]
    await hop.data()
    await hop.write(quoted(TEXT))
    assert [reply.code for reply in await hop.end()] == [250]
    (message,) = mailbox.Maildir(path)
    assert message.keys()[:4] == ["Return-Path", "Delivered-To", "Delivered-To", "Received"]
    assert message["Return-Path"] == f"<{sender.decode()}>"
    assert message.get_all("Delivered-To") == ["bob@example.org", "cleo@example.org"]


@pytest.mark.parametrize(
    ("client", "source"),
    [("192.0.2.1", " ([192.0.2.1])"), ("2001:db8::1", " ([IPv6:2001:db8::1])"), (None, "")],
)
@in_loop
async def test_the_received_field_is_that_of_rfc_5321(
    maildir: Maildir, path: Path, client: str | None, source: str
) -> None:
    before = int(time.time())
    address = ip_address(client) if client else None
    await deliver(maildir.open(Trace("six.example", address, "ESMTPS", "5f3a")), quoted(TEXT))
    (message,) = mailbox.Maildir(path)
    stamp, _, date = message["Received"].replace("\n\t", " ").rpartition("; ")
    assert stamp == f"from six.example{source} by mx.example.org with ESMTPS id 5f3a"
    assert before <= parsedate_to_datetime(date).timestamp() <= time.time()


@pytest.mark.parametrize("helo", ["a\r\nX-Evil: 1", "a (b", "ü" * 5000, "", "\udcff"])
def test_a_greeting_cannot_break_the_received_field(helo: str) -> None:
    lines = Trace(helo, None, "SMTP", "1").received("mx", "now").split(b"\n")
    assert len(lines) == 3
    assert all(len(line) <= 998 and line.isascii() for line in lines)
    assert len(lines[0].split()) == 3  # Received: from NAME


@pytest.mark.parametrize("at", range(len(quoted(TEXT)) + 1))
def test_dots_are_dropped_wherever_pieces_are_cut(maildir: Maildir, path: Path, at: int) -> None:
    octets = quoted(TEXT)
    asyncio.run(deliver(maildir.open(TRACE), octets[:at], octets[at:]))
    assert content_of(path) == TEXT.encode()


@in_loop
async def test_dots_are_dropped_from_single_octets(maildir: Maildir, path: Path) -> None:
    odd = bytes(octet for octet in range(256) if octet not in b"\r\n")
    octets = quoted(TEXT) + odd + b"\r\n"
    await deliver(maildir.open(TRACE), *(octets[at : at + 1] for at in range(len(octets))))
    assert content_of(path) == TEXT.encode() + odd + b"\n"


@in_loop
async def test_a_message_may_begin_with_a_dot_or_be_empty(maildir: Maildir, path: Path) -> None:
    hop = maildir.open(TRACE)
    await deliver(hop, quoted(".\n"))
    assert content_of(path) == b".\n"
    files(path)[0].unlink()
    await deliver(hop)
    assert content_of(path) == b""


# -- names and folders ---------------------------------------------------------------------------


@in_loop
async def test_messages_delivered_at_a_time_have_names_of_their_own(
    maildir: Maildir, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)

    async def client(first: int) -> list[str]:
        hop = maildir.open(TRACE)
        texts = [b"Subject: %d\r\n\r\n" % number for number in range(first, first + 2)]
        return [str(await deliver(hop, text)) for text in texts]

    answers = await asyncio.gather(*(client(2 * each) for each in range(200)))
    subjects = [message["Subject"] for message in mailbox.Maildir(path)]
    assert sorted(subjects, key=int) == [str(number) for number in range(400)]
    told = {text.removeprefix("250 2.0.0 Delivered as ") for pair in answers for text in pair}
    assert told == {file.name for file in files(path)}
    assert all(len(each.get_all("Delivered-To", [])) == 1 for each in mailbox.Maildir(path))


@in_loop
async def test_a_host_name_cannot_break_a_file_name(path: Path) -> None:
    maildir = Maildir(str(path), "a/b:c" + "d" * 300)
    maildir.prepare()
    assert (await deliver(maildir.open(TRACE), quoted(TEXT))).code == 250
    (file,) = files(path, "new")
    assert file.name.split(".", 2)[2].startswith(r"a\057b\072cd")


@in_loop
async def test_a_message_is_for_its_owner_only(maildir: Maildir, path: Path) -> None:
    await deliver(maildir.open(TRACE), quoted(TEXT))
    found = [path, *(path / name for name in ("tmp", "new", "cur")), *files(path)]
    assert [stat.S_IMODE(each.stat().st_mode) for each in found] == [0o700] * 4 + [0o600]


def test_what_is_in_a_maildir_is_left_alone(maildir: Maildir, path: Path) -> None:
    path.chmod(0o750)
    (path / "tmp" / "old").write_bytes(b"of another delivery")
    (path / "cur").rmdir()
    maildir.prepare()
    assert asyncio.run(deliver(maildir.open(TRACE), quoted(TEXT))).code == 250
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert files(path, "tmp", "cur") == [path / "tmp" / "old"]


def test_a_missing_parent_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Maildir(str(tmp_path / "a" / "b"), "mx").prepare()
    assert str(caught.value) == (
        f"{tmp_path}/a/b: cannot be made: there is no folder {tmp_path}/a; make it first"
    )


@pytest.mark.parametrize("name", ["Maildir", "Maildir/new"])
def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path, path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="Maildir: cannot be made a maildir: Not a directory; "):
        Maildir(str(path), "mx").prepare()


# -- what is promised ----------------------------------------------------------------------------


@in_loop
async def test_the_features_are_those_that_it_has(maildir: Maildir) -> None:
    hop: NextHop = maildir.open(TRACE)
    offered = b"SIZE 8BITMIME SMTPUTF8 PIPELINING ENHANCEDSTATUSCODES"
    assert set(hop.features) == set(offered.split())
    assert hop.features.size == 0
    assert not hop.answers_each


@in_loop
async def test_a_size_over_the_limit_is_refused_at_mail(path: Path) -> None:
    hop = Maildir(str(path), "mx", limit=1000).open(TRACE)
    assert hop.features.size == 1000
    for size, code in ((b"=1000", 250), (b"=1001", 552), (b"", 501), (b"=1k", 501)):
        sender = parse_path(b"FROM:<ann@client.example> SIZE" + size, b"FROM")
        assert [reply.code for reply in await hop.envelope(sender, [])] == [code]


@pytest.mark.parametrize(("octets", "code"), [(1000, 250), (1001, 552)])
@in_loop
async def test_a_message_over_the_limit_is_refused_at_its_end(
    path: Path, octets: int, code: int
) -> None:
    maildir = Maildir(str(path), "mx", limit=1000)
    maildir.prepare()
    content = b"..\r\n" + b"x" * (octets - 5) + b"\r\n"  # RFC 1870 3: a stuffed dot is not counted
    hop = maildir.open(TRACE)
    assert (await deliver(hop, content[:500], content[500:])).code == code
    assert len(files(path, "new")) == (code == 250)
    assert files(path, "tmp") == []


@in_loop
async def test_a_message_is_accepted_when_file_and_folder_are_on_disk(
    maildir: Maildir, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(fd: int) -> None:
        steps.append("folder" if is_folder(fd) else f"file of {os.fstat(fd).st_size}")
        fsync(fd)

    def renamed(old: str, new: str) -> None:
        steps.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    assert (await deliver(maildir.open(TRACE), quoted(TEXT))).code == 250
    (file,) = files(path, "new")
    assert steps == [f"file of {file.stat().st_size}", "rename", "folder"]


@in_loop
async def test_a_big_message_is_written_as_it_comes(maildir: Maildir, path: Path) -> None:
    hop = maildir.open(TRACE)
    await begin(hop)
    for _ in range(50):
        await hop.write(BIG * 1000)
    (file,) = files(path)
    assert file.parent.name == "tmp"
    assert file.stat().st_size > 2 * 1024 * 1024
    assert [reply.code for reply in await hop.end()] == [250]
    assert content_of(path) == BIG.replace(b"\r\n", b"\n") * 50_000


# -- given up ------------------------------------------------------------------------------------


class Held(NamedTuple):
    """A disk that stops at a sync until it is told to go on."""

    reached: threading.Event
    go_on: threading.Event
    in_new: threading.Event  # whether the message was moved


@pytest.fixture(params=["tmp", "new"])
def held(
    request: pytest.FixtureRequest, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Held]:
    """Return a disk that stops when the whole message is in ``tmp``, or in ``new``."""
    disk = Held(threading.Event(), threading.Event(), threading.Event())
    fsync = os.fsync

    def stopping(fd: int) -> None:
        if is_folder(fd):
            disk.in_new.set()
        if is_folder(fd) == (request.param == "new"):
            disk.reached.set()
            assert disk.go_on.wait(PATIENCE)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", stopping)
    yield disk
    disk.go_on.set()


@in_loop
async def test_a_message_given_up_leaves_nothing(maildir: Maildir, path: Path) -> None:
    hop = maildir.open(TRACE)
    await begin(hop)
    await hop.write(BIG * 20_000)
    assert len(files(path, "tmp")) == 1
    hop.abort()
    await until(lambda: not files(path))
    await hop.write(BIG * 20_000)
    assert [reply.code for reply in await hop.end()] == [451]
    assert files(path) == []
    await begin(hop)
    await hop.write(BIG * 20_000)
    assert len(files(path, "tmp")) == 1
    await hop.reset()
    await until(lambda: not files(path))


@in_loop
async def test_a_delivery_is_withdrawn_when_it_is_aborted(
    maildir: Maildir, path: Path, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    hop = maildir.open(TRACE)
    ending = asyncio.create_task(deliver(hop, quoted(TEXT)))
    await until(held.reached.is_set)
    in_new = held.in_new.is_set()
    assert len(files(path, "new")) == in_new
    hop.abort()
    held.go_on.set()
    assert (await ending).code == 451
    await until(lambda: not files(path))
    assert held.in_new.is_set() == in_new
    assert lines_of(caplog) == []


@in_loop
async def test_a_delivery_is_withdrawn_when_it_is_cancelled(
    maildir: Maildir, path: Path, held: Held
) -> None:
    hops = [maildir.open(TRACE) for _ in range(50)]  # more than there are threads
    endings = [asyncio.create_task(deliver(hop, quoted(TEXT))) for hop in hops]
    await until(held.reached.is_set)
    for ending in endings:
        ending.cancel()
    await asyncio.wait(endings)
    assert all(ending.cancelled() for ending in endings)
    held.go_on.set()
    await until(lambda: not files(path))
    assert [(await hop.end())[0].code for hop in hops] == [451] * 50
    assert (await deliver(hops[0], quoted(TEXT))).code == 250
    assert len(files(path)) == 1


@in_loop
async def test_a_slow_disk_does_not_hold_up_the_loop(
    maildir: Maildir, path: Path, held: Held
) -> None:
    ending = asyncio.create_task(deliver(maildir.open(TRACE), quoted(TEXT)))
    await until(held.reached.is_set)  # the loop runs, and the disk stands still
    assert not ending.done()
    held.go_on.set()
    assert (await ending).code == 250


# -- failures ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "mailgate-test", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount program")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no file system can be mounted: {error.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("lines", [1000, 100_000], ids=["at once", "in pieces"])
@in_loop
async def test_a_full_disk_puts_mail_off(
    small_disk: Path, caplog: pytest.LogCaptureFixture, lines: int
) -> None:
    path = small_disk / "Maildir"
    maildir = Maildir(str(path), "mx")
    maildir.prepare()
    hop = maildir.open(TRACE)
    answer = await deliver(hop, *[BIG * 500] * (lines // 500))
    assert str(answer).startswith("452 4.3.1 ")
    told = f"message 5f3a is put off: maildir {path}: No space left on device"
    assert lines_of(caplog) == [told]
    assert files(path) == []
    assert (await deliver(hop, quoted(TEXT))).code == 250


def test_a_read_only_file_system_puts_mail_off(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maildir = Maildir(str(small_disk / "Maildir"), "mx")
    maildir.prepare()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    answer = asyncio.run(deliver(maildir.open(TRACE), quoted(TEXT)))
    assert str(answer).startswith("451 4.3.0 ")
    assert [line.rpartition(": ")[2] for line in lines_of(caplog)] == ["Read-only file system"]
    with pytest.raises(ConfigError, match="mail cannot be put there; let user 0 write there"):
        maildir.prepare()


@in_loop
async def test_a_maildir_that_is_gone_puts_mail_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await deliver(Maildir(f"{tmp_path}/gone", "mx").open(TRACE), quoted(TEXT))
    assert str(answer).startswith("451 4.3.0 ")
    told = f"message 5f3a is put off: maildir {tmp_path}/gone: No such file or directory"
    assert lines_of(caplog) == [told]


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT])
@in_loop
async def test_a_folder_that_cannot_be_synced_keeps_no_message(
    maildir: Maildir, path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def failing(fd: int) -> None:
        if is_folder(fd):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    answer = await deliver(maildir.open(TRACE), quoted(TEXT))
    assert answer.code == (452 if number == errno.EDQUOT else 451)
    assert files(path) == []


@in_loop
async def test_a_system_without_a_thread_to_give_puts_mail_off(
    maildir: Maildir,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    hop = maildir.open(TRACE)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        assert (await deliver(hop, quoted(TEXT))).code == 451
    assert [line.rpartition(": ")[2] for line in lines_of(caplog)] == ["can't start new thread"]
    assert (await deliver(hop, quoted(TEXT))).code == 250
    assert len(mailbox.Maildir(path)) == 1  # the one put off does not come later


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="no file system here cannot sync folders")
def test_a_file_system_that_cannot_sync_folders_is_taken_as_it_is() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(fd)
    os.close(fd)
    sync_folder("/proc")


# -- other processes -----------------------------------------------------------------------------

CHILD = """
import asyncio, os, resource, sys
from mailgate.errors import ConfigError
from mailgate_smtp.maildir import Maildir, Trace
from mailgate_smtp.wire import parse_path

async def deliver(maildir, pieces):
    hop = maildir.open(Trace("client.example", None, "ESMTP", "1"))
    await hop.envelope(parse_path(b"FROM:<>", b"FROM"), ())
    await hop.rcpt(parse_path(b"TO:<bob@example.org>", b"TO"))
    await hop.data()
    for piece in pieces:
        await hop.write(piece)
    (reply,) = await hop.end()
    print(reply, flush=True)

async def deliver_for_ever():
    while True:
        await asyncio.gather(*(deliver(maildir, [LINES * 5000] * 8) for _ in range(4)))

maildir = Maildir(sys.argv[1], "mx")
LINES = b"x" * 78 + b"\\r\\n"
"""


def child(code: str, path: Path) -> subprocess.Popen[str]:
    """Start a process that delivers into a maildir."""
    command = [sys.executable, "-c", CHILD + code, path.name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=path.parent)


def said_by(code: str, path: Path) -> list[str]:
    """Run a process to its end, and return what it said."""
    with child(code, path) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return out.splitlines()


def test_a_limit_on_file_sizes_puts_mail_off(maildir: Maildir, path: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
    (said,) = said_by(limit + "asyncio.run(deliver(maildir, [LINES * 1000]))", path)
    assert said.startswith("451 4.3.0 ")
    assert files(path) == []


def test_a_folder_of_another_user_is_told_at_the_start(maildir: Maildir, path: Path) -> None:
    if os.geteuid() == 0:  # who writes everywhere, so the child is somebody else
        user, become = 65534, "os.setgroups([]); os.setresuid(65534, 65534, 65534)"
        for folder in (path.parent, path, path / "tmp"):
            folder.chmod(0o755)
    else:
        user, become = os.geteuid(), "pass"
        (path / "tmp").chmod(0o500)
    code = (
        f"{become}\n"
        "try:\n    maildir.prepare()\nexcept ConfigError as error:\n    print(error)\n"
        "asyncio.run(deliver(maildir, [LINES]))\n"
    )
    told, answer = said_by(code, path)
    remedy = f"mail cannot be put there; let user {user} write there, or choose another path"
    assert told == f"Maildir/tmp: {remedy}"
    assert answer.startswith("451 4.3.0 ")
    assert files(path, "tmp") == []


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1])
def test_a_killed_process_leaves_whole_messages(
    maildir: Maildir, path: Path, delay: float
) -> None:
    with child("asyncio.run(deliver_for_ever())", path) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        said = [first, *process.stdout.readlines()]
    accepted = {line.split()[-1] for line in said if line.endswith("\n")}
    found = files(path, "new")
    assert accepted
    assert accepted <= {file.name for file in found}
    content = (b"x" * 78 + b"\n") * 40_000
    assert all(file.read_bytes().endswith(b"\n" + content) for file in found)
