"""Whatever a policy does wrong: smtpd lives, each query has one answer, the next mail passes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.core.asking import in_loop
from tests.opensmtpd import everything
from tests.opensmtpd52 import misbehaving
from tests.opensmtpd52.client import Client, without_trace
from tests.opensmtpd52.frames import REGISTER, Speech, frame
from tests.opensmtpd52.misbehaving import DEEDS, WAITS
from tests.opensmtpd52.running import CONFIG, Program, kill, program, start
from tests.opensmtpd52.smtpd import PATIENCE

MISBEHAVING = Path(misbehaving.__file__)
EVERYTHING = Path(everything.__file__)
DEADLINES = "[defaults]\ntimeout = 0.4\nmessage_timeout = 0.4\n"
MAIL = b"Subject: x\r\n\r\nbody\r\n"
FAILED = "451 4.3.0 the mail policy failed, try again later"

REPLIES = {
    **dict.fromkeys(("answers_text", "answers_a_class", "answers_true"), FAILED),
    **dict.fromkeys(("raises", "odd", "exits", "interrupts", "recurses"), FAILED),
    **dict.fromkeys(("hangs", "hangs_on", "sleeps", "answers_a_bad_verdict"), FAILED),
    "answers_none_ascii": "550 5.7.1 caf? ? ?",
}
"""What the client hears; where nothing is said here, its mail is taken."""

OF_THE_LOOP = {"stops_the_loop", "cancels_everything"}
"""In a thread they find none."""

STAGES: dict[str, list[str]] = {
    **{stage: [*DEEDS, *WAITS] for stage in ("helo", "mail", "headers")},
    **{
        stage: [deed for deed in (*DEEDS, "sleeps") if deed not in OF_THE_LOOP]
        for stage in ("rcpt", "message")
    },
}
TAKEN = "250 2.0.0: 98775924 Message accepted for delivery"


async def mailed(running: Program, word: str) -> str:
    """Send a mail with which something goes wrong; return the first refusal, or the end."""
    client = Client(running.smtpd)
    await client.connect()
    reply = await client.greet(word)
    if reply[0] == "2":
        reply = await client.mail(f"{word}@client.example")
    if reply[0] == "2":
        reply = await client.rcpt()
    if reply[0] == "2":
        reply = await client.message(MAIL)
    if reply[0] == "2":
        assert [without_trace(one) for one in client.delivered] == [MAIL]
    if not client.closed:
        await client.quit()
    return reply


def check_reply(deed: str, reply: str) -> None:
    if deed == "cancels_everything":
        assert reply in (FAILED, TAKEN)
    elif deed == "answers_much":
        assert reply.startswith("550 5.7.1 long words long")
        assert reply.endswith("...")
        assert len(reply) == len("550 ") + 500
    else:
        assert reply == REPLIES.get(deed, TAKEN), deed


@pytest.mark.parametrize("stage", STAGES)
@in_loop
async def test_the_mail_server_outlives_it(stage: str) -> None:
    """One deed after the other, with a session beside them that has nothing to do with it."""
    async with program(MISBEHAVING, config=DEADLINES) as running:
        beside = Client(running.smtpd)
        await beside.connect()
        await beside.greet()
        for deed in STAGES[stage]:
            check_reply(deed, await mailed(running, f"{stage}-{deed}"))
            assert [(await beside.mail())[:3], (await beside.rcpt())[:3]] == ["250", "250"]
            assert (await beside.message(MAIL))[:3] == "250", deed
            assert running.smtpd.dead == "", deed
            assert running.smtpd.faults == [], deed
        await running.served()
        assert running.processes[0].poll() is None
        assert await running.end() == [0]


# -- starting --------------------------------------------------------------------------------------


def started(policy: Path) -> tuple[int, str, bytes]:
    """Start a filter and say REGISTER; return how it ended, its stderr, and what it said."""
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log, ours:
        config = Path(folder) / "mailgate.toml"
        config.write_text(CONFIG)
        process = start(theirs, policy, config, log)
        try:
            ours.sendall(frame(REGISTER, Speech().register()))
            ours.settimeout(PATIENCE)
            said = b""
            with contextlib.suppress(ConnectionResetError):  # it has ended without reading
                said = ours.recv(1000)
                ours.shutdown(socket.SHUT_WR)
            status = process.wait(PATIENCE)
        finally:
            kill(process)
        log.seek(0)
        return status, log.read().decode(), said


def test_a_policy_that_prints_as_it_is_loaded_is_heard_by_nobody(tmp_path: Path) -> None:
    policy = tmp_path / "prints.py"
    policy.write_text(
        "import os\n"
        "from mailgate import Policy\n"
        "print('printed')\n"
        "os.write(1, b'written')\n"
        "policy = Policy('prints')\n"
        "@policy.mail\n"
        "async def mail(message) -> None: ...\n"
    )
    status, stderr, said = started(policy)
    assert status == 0, stderr
    assert said[16:] == Speech().s32(0x3FF) + Speech().s32(0)
    assert "printed" in stderr


def test_a_policy_that_cannot_be_served_is_told_by_name(tmp_path: Path) -> None:
    """smtpd does not listen before its filters have registered, and ends with one that does not."""
    policy = tmp_path / "envelope.py"
    policy.write_text(
        "from mailgate import Message, Policy\n"
        "policy = Policy('envelope')\n"
        "@policy.mail(needs={'change_sender'})\n"
        "async def change(message: Message) -> None:\n"
        "    message.change_sender('x@example.org')\n"
    )
    status, stderr, said = started(policy)
    assert (status, said) == (78, b"")
    (line,) = stderr.splitlines()
    assert "envelope.py:3: change needs change_sender" in line


def test_a_policy_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    policy = tmp_path / "broken.py"
    policy.write_text("this is no Python\n")
    status, stderr, said = started(policy)
    assert (status, said) == (78, b"")
    assert len(stderr.splitlines()) == 1
    assert "Traceback" not in stderr


@in_loop
async def test_a_signal_does_not_end_it() -> None:
    async with program(EVERYTHING) as running:
        for number in (1, 13, 15):
            running.processes[0].send_signal(number)
            await running.served()
        running.check()
        assert await running.end() == [0]


@in_loop
async def test_it_ends_with_smtpd_whatever_is_under_way() -> None:
    async with program(EVERYTHING) as running:
        client = Client(running.smtpd)
        await client.connect()
        await client.greet()
        asking = asyncio.create_task(client.mail("slow@client.example"))
        other = Client(running.smtpd)
        await other.connect()
        await other.greet()
        await other.mail()
        await other.rcpt()
        await other.data()
        await other.send(b"half a mess")
        assert await running.end() == [0]
        asking.cancel()
        assert "Traceback" not in running.stderr()


def test_a_stdin_that_is_no_socket_is_told(tmp_path: Path) -> None:
    config = tmp_path / "mailgate.toml"
    config.write_text(CONFIG)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mailgate", "run", "-p", "opensmtpd52"),
            *("--config", str(config), str(EVERYTHING)),
        ],
        input=b"",
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 78
    assert done.stdout == b""
    assert len(done.stderr.splitlines()) == 1
