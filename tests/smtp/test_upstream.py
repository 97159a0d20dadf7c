"""The server behind the proxy: when it is connected to, for whom, and what when it is gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from mailgate import Message, Policy, Reject
from mailgate_smtp.options import Pool, SmtpOptions, Timeouts
from tests.core.asking import in_loop
from tests.hostile.cases import Act, Send, Wait
from tests.milter.running import LOOPS, run
from tests.smtp.client import Client
from tests.smtp.gate import gate
from tests.smtp.mta import OFFERS, Envelope, Mta, Script
from tests.smtp.running import proxied, serving

LETTER = b"Subject: x\r\n\r\nHello.\r\n"
BIG = LETTER * 500_000  # more than sockets hold: its end is not sent when the server is gone
MAIL, RCPT = b"MAIL FROM:<ann@client.example>", b"RCPT TO:<bob@example.org>"
OTHER = b"RCPT TO:<carol@example.org>"


def mails(mta: Mta) -> list[int]:
    """Return how many messages were begun on each connection."""
    return [
        sum(line.startswith(b"MAIL") for line in connection.commands)
        for connection in mta.connections
    ]


# -- a server that greets at once ---------------------------------------------------------------------


@contextmanager
def in_another_thread(messages: int) -> Iterator[Mta]:
    """Run a server in a loop of its own, which may speak before anybody listens."""
    mta, ready, done = Mta(), threading.Event(), threading.Event()

    async def serve() -> None:
        async with mta:
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield mta
    finally:
        done.set()
        thread.join()
    assert mta.faults == []
    assert len(mta.messages) == messages


@pytest.mark.parametrize("loop", LOOPS)
def test_a_greeting_that_is_there_at_once_is_read(loop: str) -> None:
    async def send(url: str) -> None:
        options = SmtpOptions(listen="127.0.0.1:0", pool=Pool(messages=1))
        async with serving(gate(), upstream=url, options=options) as running:
            client = await running.greeted()
            for _ in range(100):
                assert (await client.deliver(LETTER)).code == 250
        assert running.errors == []

    with in_another_thread(100) as mta:
        run(lambda: send(mta.url), loop)


# -- when it is connected to --------------------------------------------------------------------------


@in_loop
async def test_a_client_that_only_connects_costs_the_server_nothing() -> None:
    async with proxied() as (running, mta):
        client = await running.open()
        assert (await client.reply()).code == 220
        assert mta.connections == []


@in_loop
async def test_a_greeting_offers_what_the_server_does() -> None:
    offers = [b"SIZE 1000", b"8BITMIME", b"STARTTLS", b"AUTH PLAIN", b"XFROB", b"VRFY", b"ETRN"]
    async with proxied(mta=Mta(keywords=offers)) as (running, _):
        client = await running.open()
        await client.reply()
        said = (await client.say(b"EHLO x")).text
        assert [line[4:] for line in said.splitlines()[1:]] == [
            *(b"PIPELINING", b"SIZE 1000", b"8BITMIME", b"CHUNKING"),
        ]


@in_loop
async def test_the_greeting_of_the_server_is_the_proxy_s_where_that_is_wished() -> None:
    refuses: Script = [("connect", [Send(b"554-5.7.1 not you\r\n554 5.7.1 never\r\n")])]
    async with proxied(mta=Mta(refuses), connect="connect") as (running, _):
        client = await running.open()
        assert (await client.reply()).text == b"554-5.7.1 not you\r\n554 5.7.1 never\r\n"
        await client.until_ended()


@in_loop
async def test_the_server_sees_a_message_only_when_it_was_judged() -> None:
    policy = Policy("judge")

    @policy.message
    async def whole(message: Message) -> Reject | None:
        return Reject("no") if message.headers.get("Subject") == "bad" else None

    async with proxied(policy, connect="data") as (running, mta):
        client = await running.greeted()
        assert (await client.deliver(LETTER.replace(b"x", b"bad"))).code == 550
        assert mails(mta) in ([], [0])
        assert (await client.deliver(LETTER)).code == 250
        assert len(mta.messages) == 1


@pytest.mark.parametrize(
    ("replies", "code"),
    [
        ([b"250 ok\r\n", b"550 5.1.1 no\r\n"], 451),  # no honest reply for both of them
        ([b"550 5.1.1 no\r\n", b"550 5.1.1 no\r\n"], 550),
        ([b"450 4.2.0 later\r\n", b"550 5.1.1 no\r\n"], 451),
    ],
)
@in_loop
async def test_a_recipient_that_is_refused_late_is_a_reason_to_try_again(
    replies: list[bytes], code: int
) -> None:
    rows: Script = [("RCPT", [Send(reply)]) for reply in replies]
    async with proxied(mta=Mta(rows), connect="data") as (running, mta):
        client = await running.greeted(MAIL, RCPT, OTHER)
        assert (await client.data(LETTER)).code == code
        assert mta.messages == []


# -- one connection for many --------------------------------------------------------------------------


@in_loop
async def test_a_connection_is_used_again() -> None:
    async with proxied() as (running, mta):
        for _ in range(3):
            client = await running.greeted()
            for _ in range(3):
                assert (await client.deliver(LETTER)).code == 250
        assert mails(mta) == [9]


@in_loop
async def test_a_connection_ends_after_some_messages() -> None:
    async with proxied(pool=Pool(messages=2)) as (running, mta):
        client = await running.greeted()
        for _ in range(5):
            assert (await client.deliver(LETTER)).code == 250
        assert mails(mta) == [2, 2, 1]


@in_loop
async def test_a_connection_that_nobody_needs_is_closed() -> None:
    async with proxied(pool=Pool(idle=0.3)) as (running, mta):
        client = await running.greeted()
        assert (await client.deliver(LETTER)).code == 250
        for _ in range(400):
            if not mta.connections[0].open:
                break
            await asyncio.sleep(0.01)
        assert mta.connections[0].commands[-1] == b"QUIT"
        assert (await client.deliver(LETTER)).code == 250


@in_loop
async def test_connections_have_a_limit_and_the_next_client_waits() -> None:
    async with proxied(pool=Pool(max=1)) as (running, mta):
        first, second = await running.greeted(MAIL, RCPT, b"DATA"), await running.greeted()
        waiting = asyncio.create_task(second.deliver(LETTER))
        await asyncio.sleep(0.05)
        await first.send(LETTER + b".\r\n")
        assert (await first.reply()).code == 250
        assert (await waiting).code == 250
        assert len([one for one in mta.connections if one.open]) == 1


@in_loop
async def test_a_client_that_does_not_get_a_connection_is_told_to_try_later() -> None:
    busy: Script = [("RCPT", [Wait(2.0), Send(b"250 ok\r\n")])]
    timeouts = Timeouts(upstream=0.4)
    async with proxied(mta=Mta(busy), pool=Pool(max=1), timeouts=timeouts) as (running, _):
        first, second = await running.greeted(MAIL), await running.greeted()
        await first.send(RCPT + b"\r\n")
        reply = await second.say(MAIL)
        assert (reply.code, reply.text[4:7]) == (451, b"4.3")
        assert (await first.reply()).code == 451


@in_loop
async def test_an_idle_client_gives_up_the_connection_that_was_at_hand() -> None:
    async with proxied(pool=Pool(max=1), timeouts=Timeouts(upstream=3.0)) as (running, _):
        first, second = await running.greeted(), await running.greeted()
        assert (await first.deliver(LETTER)).code == 250
        assert (await first.say(MAIL)).code == 250
        assert (await second.deliver(LETTER)).code == 250


@in_loop
async def test_who_pipelines_messages_does_not_overtake_who_waits() -> None:
    async with proxied(pool=Pool(max=1), timeouts=Timeouts(upstream=3.0)) as (running, mta):
        first, second = await running.greeted(MAIL, RCPT, b"DATA"), await running.greeted()
        waiting = asyncio.create_task(second.deliver(b"Subject: second\r\n\r\nx\r\n"))
        await asyncio.sleep(0.1)
        again = b"\r\n".join([LETTER + b".", MAIL, RCPT, b"DATA", b""])
        await first.send(again + LETTER + b".\r\n")
        assert (await waiting).code == 250
        assert [(await first.reply()).code for _ in range(5)] == [250, 250, 250, 354, 250]
        assert [b"second" in message.content for message in mta.messages] == [False, True, False]


@in_loop
async def test_a_connection_that_needs_xclient_first_is_not_lost_to_the_pool() -> None:
    mta = Mta(keywords=[*OFFERS, b"XCLIENT NAME ADDR"])
    timeouts = Timeouts(upstream=2.0)
    async with proxied(mta=mta, identity="xclient", pool=Pool(max=1), timeouts=timeouts) as (
        running,
        _,
    ):
        client = await running.greeted()
        for _ in range(3):
            assert (await client.deliver(LETTER)).code == 250


@in_loop
async def test_the_messages_of_two_clients_are_not_mixed_up() -> None:
    async with proxied(pool=Pool(max=2)) as (running, mta):
        clients = [await running.greeted() for _ in range(8)]

        async def send(number: int, client: Client) -> None:
            for turn in range(5):
                recipient = b"to%d.%d@example.org" % (number, turn)
                assert (await client.deliver(LETTER + recipient + b"\r\n", recipient)).code == 250

        await asyncio.gather(*(send(number, client) for number, client in enumerate(clients)))
        assert len(mta.messages) == 40
        for message in mta.messages:
            (recipient,) = message.recipients
            assert message.content == LETTER + recipient.mailbox + b"\r\n"


# -- a connection that is lost ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["close", "reset"])
@in_loop
async def test_a_connection_that_was_closed_meanwhile_is_not_noticed(
    kind: Literal["close", "reset"],
) -> None:
    async with proxied() as (running, mta):
        client = await running.greeted()
        for _ in range(3):
            assert (await client.deliver(LETTER)).code == 250
            await mta.connections[-1].end()
        assert mails(mta) == [1, 1, 1]


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "body:1"])
@pytest.mark.parametrize("kind", ["close", "reset"])
@in_loop
async def test_a_message_is_sent_once_more_where_the_server_has_not_got_it(
    kind: Literal["close", "reset"], stage: str
) -> None:
    """The first connection is used already: it may have ended for any reason."""
    usual = {"DATA": [Send(b"354 go\r\n")], "body:1": []}.get(stage, [Send(b"250 ok\r\n")])
    rows: Script = [(stage, usual), (stage, [Act(kind)])]
    async with proxied(mta=Mta(rows, ())) as (running, mta):
        client = await running.greeted()
        assert (await client.deliver(LETTER)).code == 250
        assert (await client.deliver(BIG)).code == 250
        assert [len(message.content) for message in mta.messages] == [len(LETTER), len(BIG)]
        assert mails(mta) == [2, 1]


@pytest.mark.parametrize("kind", ["close", "reset"])
@in_loop
async def test_a_message_is_not_sent_again_behind_its_end(kind: Literal["close", "reset"]) -> None:
    rows: Script = [(".", [Act(kind)])]
    async with proxied(mta=Mta(rows, ())) as (running, mta):
        client = await running.greeted()
        assert (await client.deliver(LETTER)).text.startswith(b"451 4.4.2")
        assert mails(mta) == [1]
        assert (await client.deliver(LETTER)).code == 250


@in_loop
async def test_an_accepted_recipient_that_is_refused_the_second_time_is_not_lost() -> None:
    first: Script = [("body:1", [Act("close")])]
    second: Script = [("RCPT TO:<carol", [Send(b"550 5.1.1 no longer\r\n")])]
    async with proxied(mta=Mta(first, second)) as (running, mta):
        client = await running.greeted(MAIL, RCPT, OTHER)
        assert (await client.data(LETTER)).text.startswith(b"451 4.4.2")
        assert mta.messages == []


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "."])
@in_loop
async def test_a_server_that_closes_with_421_has_the_proxy_close_too(stage: str) -> None:
    text = b"421 4.3.2 going down\r\n"
    async with proxied(mta=Mta([(stage, [Send(text), Act("close")])])) as (running, mta):
        client = await running.greeted()
        assert (await client.deliver(LETTER)).text == text
        await client.until_ended()
        assert mta.messages == []


# -- other servers --------------------------------------------------------------------------------


@in_loop
async def test_commands_are_not_pipelined_where_that_was_not_offered() -> None:
    """As OpenSMTPD: one greeting, and it hangs up on pipelined commands."""
    policy = Policy("editor")

    @policy.message(needs={"add_recipient"})
    async def whole(message: Message) -> None:
        message.add_recipient("carol@example.org")

    mta = Mta(keywords=[b"8BITMIME", b"DSN"], greets_once=True)
    async with proxied(policy, mta=mta) as (running, _):
        client = await running.greeted()
        for _ in range(3):
            assert (await client.deliver(LETTER)).code == 250
        assert [list(message.recipients) for message in mta.messages] == [
            [Envelope(b"bob@example.org"), Envelope(b"carol@example.org")]
        ] * 3


@in_loop
async def test_mail_goes_to_the_next_server_where_the_first_one_is_gone() -> None:
    async with Mta([("connect", [Act("refuse")])]) as gone, Mta() as mta:
        options = SmtpOptions(listen="127.0.0.1:0", timeouts=Timeouts(connect=1.0))
        async with serving(gate(), upstream=(gone.url, mta.url), options=options) as running:
            client = await running.greeted()
            assert (await client.deliver(LETTER)).code == 250
        assert running.errors == []
        assert len(mta.messages) == 1


@in_loop
async def test_a_server_that_is_down_is_not_preferred_for_a_connection_that_it_kept() -> None:
    async with Mta((), [("connect", [Act("close")])]) as first, Mta() as second:
        options = SmtpOptions(listen="127.0.0.1:0")
        async with serving(gate(), upstream=(first.url, second.url), options=options) as running:
            one, other = await running.greeted(MAIL), await running.greeted()
            assert (await other.deliver(LETTER)).code == 250
            assert (await one.say(b"RSET")).code == 250
            assert (await other.deliver(LETTER)).code == 250
        assert (len(first.messages), len(second.messages)) == (0, 2)


@in_loop
async def test_a_greeting_offers_what_the_connection_at_hand_does() -> None:
    async with proxied(mta=Mta(keywords=[b"PIPELINING"])) as (running, mta):
        one = await running.greeted(MAIL)
        mta.keywords = OFFERS
        other = await running.greeted()
        assert (await other.deliver(LETTER)).code == 250
        assert (await one.say(b"RSET")).code == 250  # and the first connection is at hand
        assert (await other.deliver(LETTER)).code == 250
        assert b"8BITMIME" not in (await other.say(b"EHLO other.example.org")).text


@in_loop
async def test_the_first_of_several_servers_has_all_messages_while_it_is_up() -> None:
    async with Mta() as first, Mta() as second:
        options = SmtpOptions(listen="127.0.0.1:0")
        async with serving(gate(), upstream=(first.url, second.url), options=options) as running:
            client = await running.greeted()
            for _ in range(3):
                assert (await client.deliver(LETTER)).code == 250
        assert (mails(first), mails(second)) == ([3], [])


@in_loop
async def test_recipients_of_an_lmtp_server_come_one_at_a_time() -> None:
    async with proxied(mta=Mta(lmtp=True)) as (running, mta):
        client = await running.greeted(MAIL, RCPT)
        assert (await client.say(OTHER)).text.startswith(b"452 4.5.3")
        assert (await client.data(LETTER)).code == 250
        assert [list(message.recipients) for message in mta.messages] == [
            [Envelope(b"bob@example.org")]
        ]


@in_loop
async def test_lmtp_has_a_reply_for_each_recipient(tmp_path: Path) -> None:
    mixed = b"250 2.0.0 saved\r\n552 5.2.2 full\r\n250 2.0.0 saved, too\r\n"
    mta = Mta(
        [("RCPT TO:<nobody", [Send(b"550 5.1.1 who\r\n")]), (".", [Send(mixed)])],
        lmtp=True,
        path=tmp_path / "lmtp",
        keywords=OFFERS,
    )
    async with proxied(mta=mta, listen=f"lmtp:unix:{tmp_path / 'in'}") as (running, _):
        client = await running.open()
        assert [reply.code for reply in await client.begin(MAIL, RCPT, OTHER)] == [250] * 3
        assert (await client.say(b"RCPT TO:<nobody@example.org>")).code == 550
        assert (await client.say(b"RCPT TO:<dan@example.org>")).code == 250
        first = await client.data(LETTER)
        others = [await client.reply() for _ in range(2)]
        assert b"".join(reply.text for reply in (first, *others)) == mixed
        assert (await client.say(b"EHLO x")).code == 500
    assert [[one.mailbox for one in message.recipients] for message in mta.messages] == [
        [b"bob@example.org", b"dan@example.org"]
    ]


@in_loop
async def test_lmtp_without_a_recipient_has_one_reply() -> None:
    async with proxied(mta=Mta(lmtp=True), listen="lmtp:127.0.0.1:0") as (running, _):
        client = await running.open()
        await client.begin(MAIL)
        assert 500 <= (await client.say(b"DATA")).code <= 554  # RFC 2033 4.2: 503


@in_loop
async def test_a_last_chunk_that_is_refused_has_a_reply_for_each_recipient() -> None:
    """RFC 2033 4.3: whatever becomes of it."""
    policy = Policy("refuses")

    @policy.data
    async def data(message: Message) -> Reject:
        return Reject("not now")

    async with proxied(policy, mta=Mta(lmtp=True), listen="lmtp:127.0.0.1:0") as (running, _):
        client = await running.greeted(MAIL, RCPT, OTHER)
        await client.send(b"BDAT %d LAST\r\n%b" % (len(LETTER), LETTER))
        assert [(await client.reply()).code for _ in range(2)] == [550, 550]
        assert (await client.say(b"NOOP")).code == 250
