"""Any session of any client, with a server that may fail at any point.

Whatever is said, however it is cut: one reply for each command, nothing odd to the server, no
fault of our own, and what was acknowledged has arrived.
"""

from __future__ import annotations

import asyncio
from typing import Literal, NamedTuple

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mailgate_smtp.options import SmtpOptions, Timeouts
from tests.hostile.cases import Act, Send, Step
from tests.smtp.client import END
from tests.smtp.cutting import cut
from tests.smtp.gate import gate
from tests.smtp.mta import OFFERS, Mta, Script
from tests.smtp.running import serving

LINES = (
    *(
        b"EHLO c.example",
        b"HELO c.example",
        b"LHLO c.example",
        b"RSET",
        b"NOOP",
        b"VRFY a",
        b"QUIT",
    ),
    *(b"MAIL FROM:<a@x.example>", b"MAIL FROM:<> SIZE=100", b"MAIL FROM:<blocked@x.example>"),
    *(b"RCPT TO:<b@y.example>", b"RCPT TO:<c@y.example>", b"RCPT TO:<>", b"DATA", b"DATA now"),
    *(b"STARTTLS", b"AUTH PLAIN", b"XCLIENT ADDR=192.0.2.1", b"FROB", b"", b"BDAT x", b"\0"),
)
CONTENTS = (
    *(b"", b"Subject: x\r\n\r\nHello.\r\n", b"..\r\n", b"Subject: reject-me\r\n\r\n", b"a\nb\r\n"),
    *(b"no header\r\n", b"\r\n", b"x" * 2000 + b"\r\n", b"Subject: x\r\n" * 2000),
)
MESSAGE = (b"MAIL FROM:<a@x.example>", b"RCPT TO:<b@y.example>", b"RCPT TO:<c@y.example>")


def chunk(content: bytes, last: bytes) -> bytes:
    return b"BDAT %d%b\r\n%b" % (len(content), last, content)


said = st.one_of(
    st.sampled_from([line + b"\r\n" for line in LINES]),
    st.sampled_from([b"DATA\r\n" + content + b".\r\n" for content in CONTENTS]),
    st.builds(chunk, st.sampled_from(CONTENTS), st.sampled_from([b"", b" LAST"])),
    st.sampled_from(CONTENTS).map(
        lambda content: b"\r\n".join((*MESSAGE, b"DATA", content)) + b".\r\n"
    ),
    st.sampled_from(CONTENTS).map(
        lambda content: b"".join(line + b"\r\n" for line in MESSAGE) + chunk(content, b" LAST")
    ),
)
sessions = st.lists(said, max_size=12).map(b"".join)

steps: st.SearchStrategy[list[Step]] = st.sampled_from(
    [
        *([Send(b"250 2.0.0 ok\r\n")], [Send(b"354 go\r\n")], [Send(b"250-a\r\n250 b\r\n")]),
        *([Send(b"451 4.3.0 later\r\n")], [Send(b"550-5.7.1 no\r\n550 5.7.1 never\r\n")]),
        *([Send(b"421 4.3.2 bye\r\n"), Act("close")], [Act("close")], [Act("reset")]),
        *([Send(b"250 ok\r\n250 more\r\n")], [Send(b"rubbish\r\n")], [Send(b"250-half\r\n")]),
    ]
)
hang_ups: st.SearchStrategy[list[Step]] = st.sampled_from([[Act("close")], [Act("reset")]])
verbs = st.sampled_from(["connect", "EHLO", "LHLO", "MAIL", "RCPT", "DATA", ".", "RSET"])
# A reply that comes before the end of data, and is read behind it, is taken for the one to it.
rows = st.one_of(st.tuples(verbs, steps), st.tuples(st.just("body:1"), hang_ups))
scripts = st.lists(st.lists(rows, max_size=3), max_size=2)


class House(NamedTuple):
    """How the proxy is set up, and what its server offers."""

    listen: Literal["127.0.0.1:0", "lmtp:127.0.0.1:0"] = "127.0.0.1:0"
    lmtp: bool = False
    body: Literal["hold", "stream"] = "hold"
    connect: Literal["connect", "mail", "data"] = "mail"
    pipelines: bool = True


houses = st.builds(
    House,
    listen=st.sampled_from(["127.0.0.1:0", "lmtp:127.0.0.1:0"]),
    lmtp=st.booleans(),
    body=st.sampled_from(["hold", "stream"]),
    connect=st.sampled_from(["connect", "mail", "data"]),
    pipelines=st.booleans(),
)


async def play(house: House, scripts: list[Script], session: bytes, sizes: list[int]) -> None:
    """Say a session, with a greeting before it; check what came of it."""
    options = SmtpOptions(
        listen=house.listen,
        body=house.body,
        connect=house.connect,
        timeouts=Timeouts(connect=2.0, upstream=0.2, upstream_dot=0.2),
    )
    keywords = OFFERS if house.pipelines else (b"8BITMIME",)
    policy = gate(whole=house.body == "hold")
    async with (
        Mta(*scripts, (), lmtp=house.lmtp, keywords=keywords) as mta,
        serving(policy, upstream=mta, options=options) as running,
    ):
        client = await running.open()
        greeting = b"LHLO c.example\r\n" if client.lmtp else b"EHLO c.example\r\n"
        for piece in cut(greeting + session, sizes):
            await client.send(piece)
        await client.sync(10.0)
        await asyncio.sleep(0)
        found = client.check()
        assert found.owed == 0 or client.ended
    assert running.errors == []
    assert mta.faults == []
    told = [reply.code for command, reply in found.exchanges if command == END]
    taken = sum(len(one.recipients) if client.lmtp else 1 for one in mta.messages)
    assert told.count(250) <= taken


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(houses, scripts, sessions, st.lists(st.integers(1, 60), max_size=20))
@example(House(), [], b"".join(line + b"\r\n" for line in (*MESSAGE, b"DATA")) + b".\r\n", [])
def test_any_session(
    house: House, scripts: list[Script], session: bytes, sizes: list[int]
) -> None:
    asyncio.run(play(house, scripts, session, sizes))
