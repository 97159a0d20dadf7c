"""Messages on their way: every octet comes back, and edits change what they name only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailgate.limits import Limits
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.verdict import Reject
from tests.core.asking import in_loop
from tests.opensmtpd import everything
from tests.opensmtpd52.client import ENTER, TRACE, Client, without_trace
from tests.opensmtpd52.policies import reads, streams
from tests.opensmtpd52.running import Running, begun, program, serving


def nothing() -> Policy:
    """Return a policy that reads no content."""
    return Policy("nothing")


def looks() -> Policy:
    """Return a policy that looks at the header fields."""
    policy = Policy("looks")

    @policy.headers
    async def headers(message: Message) -> None:
        message.headers.get("Subject")

    return policy


READERS = pytest.mark.parametrize("make", [nothing, looks, streams, reads])


def as_smtpd_has_it(raw: bytes) -> bytes:
    """Return a message as smtpd delivers it: a bare LF ends a line, too."""
    lines = raw.replace(b"\r\n", b"\n").split(b"\n")
    ended = lines[:-1] if lines[-1] == b"" else lines
    return b"".join(line + b"\r\n" for line in ended)


async def sent(running: Running, raw: bytes, *, eom_first: bool = False) -> str:
    """Send a message; return the reply."""
    client = await begun(running)
    client.eom_first = eom_first
    await client.rcpt()
    reply = await client.message(raw)
    running.delivered = [without_trace(one) for one in client.delivered]
    await client.quit()
    return reply


# -- as it came ----------------------------------------------------------------------------------

ODD = {
    "empty": b"",
    "an empty line": b"\r\n",
    "empty lines": b"\r\n\r\n\r\n",
    "no blank line": b"Subject: x\r\nTo: y\r\n",
    "no header": b"\r\nbody\r\n",
    "no field at all": b"just a line\r\nand one more\r\n",
    "a field, then none": b"Subject: x\r\njust a line\r\n",
    "no body": b"Subject: x\r\n\r\n",
    "an mbox line": b"From ann Sat Nov 21 10:00:00 2026\r\nSubject: x\r\n\r\nbody\r\n",
    "folds": b"Subject: x\r\n y\r\n\tz\r\n\r\nbody\r\n",
    "a fold first": b" x\r\nSubject: y\r\n\r\nbody\r\n",
    "dots": b"Subject: x\r\n\r\n.\r\n..\r\n.x\r\n",
    "bare LF": b"Subject: x\n\nbody\nmore\r\n",
    "bare CR": b"Subject: x\ry\r\n\r\na\rb\r\n\rc\r\nd\r\r\n\r\r\n",
    "CR at the very end": b"Subject: x\r\n\r\nbody\r\r\n",
    "eight bits": b"Subject: caf\xe9\r\n\r\n\xff\xfe\x80\r\n",
    "no end of line": b"Subject: x\r\n\r\nbody",
    "blanks at the end": b"Subject: x \t\r\n\r\nbody \t\r\n \r\n",
    "a long line": b"Subject: x\r\n\r\n" + b"y" * 2047 + b"\r\n",
    "a very long line": b"Subject: x\r\n\r\n" + b"y" * 200_000 + b"\r\n",
    "a received field of the client": b"Received: from a (OpenSMTPD)\r\nSubject: x\r\n\r\nbody\r\n",
    "control characters": b"Subject: \x01\x0b\x7f\r\n\r\n\x0c\x1b[31m\x85\r\n",
}


@pytest.mark.parametrize("eom_first", [False, True])
@pytest.mark.parametrize("raw", ODD.values(), ids=ODD)
@READERS
@in_loop
async def test_every_octet_comes_back(
    make: Callable[[], Policy], raw: bytes, eom_first: bool
) -> None:
    async with serving([make()]) as running:
        assert (await sent(running, raw, eom_first=eom_first))[:3] == "250"
        assert running.delivered == [as_smtpd_has_it(raw)]
        running.check()


pieces = st.sampled_from(
    [
        b"\r",
        b"\n",
        b"\r\n",
        b"a",
        b": ",
        b" ",
        b"\t",
        b"From ",
        b"Subject: x",
        b".",
        b"\xe9",
        b"\0",
    ]
)
messages = st.lists(pieces, max_size=40).map(b"".join).map(lambda raw: raw.replace(b"\0", b""))


@pytest.mark.parametrize("make", [looks, streams, reads])
@settings(max_examples=60, deadline=None)
@given(raw=messages, seed=st.integers(0, 1000))
@example(raw=b"\r\r\n\r\n\n\r", seed=1)
def test_any_message_comes_back(make: Callable[[], Policy], raw: bytes, seed: int) -> None:
    async def send() -> None:
        async with serving([make()], seed=seed) as running:
            client = await begun(running)
            client.pieces = lambda left: running.smtpd.random.randrange(1, 9)
            await client.rcpt()
            assert (await client.message(raw))[:3] == "250"
            assert client.delivered == [as_smtpd_has_it(TRACE + raw)]
            running.check()

    asyncio.run(send())


# -- edited --------------------------------------------------------------------------------------

MAIL = (
    b"From: Ann <ann@client.example>\r\n"
    b"Subject: folded\r\n over two lines\r\n"
    b"X-Mailer: one\r\n"
    b"x-mailer: two\r\n"
    b"\r\n"
    b"first line \r\n"
    b".a dot, caf\xe9 and a bare\rCR\r\n"
    b"last line\r\n"
)
HEAD, BODY = MAIL.split(b"\r\n\r\n", 1)
HEAD += b"\r\n"
BODY = b"\r\n" + BODY


def add(message: Message) -> None:
    message.headers.add("X-Added", "at the bottom")


def prepend(message: Message) -> None:
    message.headers.prepend("X-Added", "on top")


def change(message: Message) -> None:
    message.headers["Subject"] = "changed"


def remove(message: Message) -> None:
    del message.headers["X-Mailer"]


def several(message: Message) -> None:
    prepend(message)
    change(message)
    remove(message)
    message.headers.add("X-Last", "caf\u00e9")


def replace_body(message: Message) -> None:
    message.body = b"another\r\n"


def empty_body(message: Message) -> None:
    message.body = b""


def footer(message: Message) -> None:
    message.body += b"-- \nfooter\n"


def banner(message: Message) -> None:
    message.body = b"a banner\r\n" + message.body


def both(message: Message) -> None:
    change(message)
    footer(message)


IN_HEADERS: dict[Callable[[Message], None], bytes] = {
    add: HEAD + b"X-Added: at the bottom\r\n" + BODY,
    prepend: b"X-Added: on top\r\n" + HEAD + BODY,
    change: HEAD.replace(b"folded\r\n over two lines", b"changed") + BODY,
    remove: HEAD.replace(b"X-Mailer: one\r\nx-mailer: two\r\n", b"") + BODY,
    several: b"X-Added: on top\r\n"
    + HEAD.replace(b"folded\r\n over two lines", b"changed").replace(
        b"X-Mailer: one\r\nx-mailer: two\r\n", b"X-Last: =?utf-8?b?Y2Fmw6k=?=\r\n"
    )
    + BODY,
}
IN_MESSAGE = IN_HEADERS | {
    replace_body: HEAD + b"\r\nanother\r\n",
    empty_body: HEAD + b"\r\n",
    footer: HEAD + BODY + b"-- \r\nfooter\r\n",
    banner: HEAD + b"\r\na banner\r\n" + BODY[2:],
    both: HEAD.replace(b"folded\r\n over two lines", b"changed") + BODY + b"-- \r\nfooter\r\n",
}


@pytest.mark.parametrize("version", [52, 51, 50])
@pytest.mark.parametrize("edit", IN_HEADERS, ids=lambda edit: edit.__name__)
@in_loop
async def test_header_fields_are_edited_as_a_message_passes(
    edit: Callable[[Message], None], version: int
) -> None:
    policy = Policy("edits")

    @policy.headers
    async def headers(message: Message) -> None:
        edit(message)

    async with serving([policy], version=version) as running:
        assert (await sent(running, MAIL))[:3] == "250"
        assert running.delivered == [IN_HEADERS[edit]]
        running.check()


@pytest.mark.parametrize("version", [52, 51, 50])
@pytest.mark.parametrize("edit", IN_MESSAGE, ids=lambda edit: edit.__name__)
@in_loop
async def test_a_message_that_is_held_is_edited(
    edit: Callable[[Message], None], version: int
) -> None:
    policy = Policy("edits")

    @policy.message
    async def message(message: Message) -> None:
        edit(message)

    async with serving([policy], version=version) as running:
        assert (await sent(running, MAIL))[:3] == "250"
        assert running.delivered == [IN_MESSAGE[edit]]
        running.check()


@pytest.mark.parametrize("raw", [b"", b"\r\n", b"no header\r\n", b"\r\nbody\r\n"])
@in_loop
async def test_a_field_is_added_where_there_is_none(raw: bytes) -> None:
    policy = Policy("edits")

    @policy.headers
    async def headers(message: Message) -> None:
        message.headers.add("X-Added", "yes")

    async with serving([policy]) as running:
        client = await begun(running)
        await client.rcpt()
        assert (await client.message(raw))[:3] == "250"
        assert without_trace(client.delivered[0]) == b"X-Added: yes\r\n" + raw
        running.check()


# -- big, and slow ---------------------------------------------------------------------------------

BIG = b"Subject: big\r\n\r\n" + b"0123456789 " * 80 + b"\r\n" * 2 + b"a line\r\n" * 600_000
"""5 MB: more than every buffer on the way takes."""


@READERS
@in_loop
async def test_a_message_larger_than_every_buffer(make: Callable[[], Policy]) -> None:
    async with serving([make()]) as running:
        for eom_first in (False, True):
            assert (await sent(running, BIG, eom_first=eom_first))[:3] == "250"
            assert running.delivered == [BIG]
        running.check()


@pytest.mark.parametrize("make", [looks, streams])
@in_loop
async def test_a_sink_that_is_not_read_holds_up_its_message_only(
    make: Callable[[], Policy],
) -> None:
    async with serving([make()]) as running:
        client = await begun(running)
        await client.rcpt()
        assert await client.data() == ENTER
        way = client.way
        assert way is not None
        way.deafen()
        sending = asyncio.create_task(client.send(BIG))
        taken = -1
        while taken != way.taken:
            taken = way.taken
            await running.served()
            await asyncio.sleep(0.05)
        assert taken < 2 << 20  # the rest waits at smtpd
        assert not sending.done()
        way.listen()
        await sending
        assert (await client.end())[:3] == "250"
        assert without_trace(client.delivered[0]) == BIG
        running.check()


@in_loop
async def test_a_held_message_waits_for_its_sink() -> None:
    async with serving([reads()]) as running:
        client = await begun(running)
        await client.rcpt()
        await client.data()
        way = client.way
        assert way is not None
        await client.send(BIG)
        way.deafen()
        ending = asyncio.create_task(client.end())
        for _ in range(3):
            await running.served()
        assert not ending.done()
        way.listen()
        assert (await ending)[:3] == "250"
        assert without_trace(client.delivered[0]) == BIG
        running.check()


@in_loop
async def test_a_sink_that_blocks_does_not_block_us() -> None:
    async with program(Path(everything.__file__)) as running:
        running.smtpd.sinks_block = True
        client = await begun(running)
        await client.rcpt()
        await client.data()
        way = client.way
        assert way is not None
        await client.send(BIG)
        way.deafen()
        ending = asyncio.create_task(client.end())
        await running.served()
        way.listen()
        assert (await ending)[:3] == "250"
        assert without_trace(client.delivered[0]) == BIG
        running.check()


@in_loop
async def test_a_client_that_goes_while_its_sink_is_not_read() -> None:
    for make in (looks, reads):
        async with serving([make()]) as running:
            client = await begun(running)
            await client.rcpt()
            await client.data()
            assert client.way is not None
            client.way.deafen()
            sending = asyncio.create_task(client.send(BIG))
            await asyncio.sleep(0.05)
            client.vanish()
            sending.cancel()
            await running.served()
            running.check()


@pytest.mark.parametrize("event", ["ROLLBACK", "DISCONNECT"])
@pytest.mark.parametrize("make", [looks, reads])
@in_loop
async def test_nobody_waits_for_the_sink_of_what_is_over(
    make: Callable[[], Policy], event: str
) -> None:
    """EOM is answered, once and soon, though smtpd has no use for it any more."""
    async with serving([make()]) as running:
        client = await begun(running)
        client.eom_first = True
        await client.rcpt()
        await client.data()
        assert client.way is not None
        client.way.deafen()
        sending = asyncio.create_task(client.send(BIG))
        await asyncio.sleep(0.05)
        ending = asyncio.create_task(client.end())
        await asyncio.sleep(0.05)
        running.smtpd.event(client.session, event)
        async with asyncio.timeout(5):
            assert (await ending)[:3] == "451"
        sending.cancel()
        await running.served()
        assert running.smtpd.dead == ""


@in_loop
async def test_a_slow_reader_of_a_body_holds_up_its_message_only() -> None:
    policy, gate = Policy("slow"), asyncio.Event()

    @policy.body
    async def body(message: Message, piece: bytes) -> None:
        if len(piece) > 1000:
            await gate.wait()

    async with serving([policy]) as running:
        client = await begun(running)
        await client.rcpt()
        await client.data()
        sending = asyncio.create_task(client.send(BIG))
        for _ in range(3):
            await running.served()
        assert not sending.done()
        gate.set()
        await sending
        assert (await client.end())[:3] == "250"
        assert without_trace(client.delivered[0]) == BIG
        running.check()


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["headers", "body", "message"])
@pytest.mark.parametrize("raw", [MAIL, BIG], ids=["small", "big"])
@pytest.mark.parametrize("eom_first", [False, True])
@in_loop
async def test_a_message_that_is_refused_is_taken_to_its_end(
    stage: str, raw: bytes, eom_first: bool
) -> None:
    """smtpd has no way to hear of it before EOM, and must not find its pipe closed."""
    policy = Policy("refuses")
    if stage == "headers":

        @policy.headers
        async def headers(message: Message) -> Reject:
            return Reject("early", 552, "5.3.4")

    elif stage == "body":

        @policy.body
        async def body(message: Message, piece: bytes) -> Reject:
            return Reject("early", 552, "5.3.4")

    else:

        @policy.message
        async def message(message: Message) -> Reject:
            return Reject("early", 552, "5.3.4")

    async with serving([policy]) as running:
        assert await sent(running, raw, eom_first=eom_first) == "552 5.3.4 early"
        assert running.delivered == []
        running.check()


@in_loop
async def test_a_message_over_the_limit_is_refused() -> None:
    async with serving([reads()], limits=Limits(message=1 << 20, memory=1 << 16)) as running:
        reply = await sent(running, BIG)
        assert reply == "451 4.3.4 the message is too big for the mail policy"
        await running.served()
        running.check()


@in_loop
async def test_a_message_over_the_limit_may_pass_unseen() -> None:
    limits = Limits(message=1 << 20, memory=1 << 16, oversize="continue")
    async with serving([reads()], limits=limits) as running:
        assert (await sent(running, BIG))[:3] == "250"
        assert running.delivered == [BIG]
        running.check()


@in_loop
async def test_a_header_over_the_limit_is_refused() -> None:
    raw = b"".join(b"X-%d: x\r\n" % number for number in range(2000)) + b"\r\nbody\r\n"
    async with serving([reads()]) as running:
        assert await sent(running, raw) == "552 5.3.4 the header section is too big"
        await running.served()
        running.check()


@in_loop
async def test_the_next_message_of_a_session_is_another_one() -> None:
    policy = Policy("mixed")

    @policy.message
    async def message(message: Message) -> Reject | None:
        if message.headers.get("Subject") == "spam":
            return Reject("spam")
        message.body += b"checked\r\n"
        return None

    async with serving([policy]) as running:
        client: Client = await begun(running)
        await client.rcpt()
        assert await client.message(b"Subject: spam\r\n\r\nbody\r\n") == "550 5.7.1 spam"
        await client.mail()
        await client.rcpt()
        assert (await client.message(b"Subject: ham\r\n\r\nbody\r\n"))[:3] == "250"
        assert without_trace(client.delivered[0]).endswith(b"body\r\nchecked\r\n")
        running.check()
