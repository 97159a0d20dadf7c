"""What clients may cost: time, connections, memory, errors; and what is done when it ends."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Literal

import pytest

from mailgate import Message, Policy, Reject, Session
from mailgate.chain import Defaults
from mailgate.limits import Limits as CoreLimits
from mailgate_smtp import connection
from mailgate_smtp.options import Limits, Timeouts
from tests.core.asking import in_loop
from tests.hostile.cases import Act, Kind, Send, Wait
from tests.milter.running import LOOPS, PATIENCE, run
from tests.smtp.client import Client
from tests.smtp.gate import gate
from tests.smtp.mta import Mta, Script
from tests.smtp.running import proxied

LETTER = b"Subject: x\r\n\r\nHello.\r\n"
MAIL, RCPT = b"MAIL FROM:<ann@client.example>", b"RCPT TO:<bob@example.org>"


async def last(client: Client) -> bytes:
    """Wait until the proxy hangs up; return the last reply."""
    await client.until_ended()
    return client.check().exchanges[-1].reply.text


# -- time -----------------------------------------------------------------------------------------

SOON = Timeouts(command=0.4, data=0.4, upstream=5.0, upstream_dot=5.0)
TIMEOUT = b"421 4.4.2 Timeout: closing the connection\r\n"


@pytest.mark.parametrize("octets", [b"", b"NO", b"MAIL FROM:<a@x.example>\r\nRCPT"])
@in_loop
async def test_a_client_that_says_no_more_is_told_and_given_up(octets: bytes) -> None:
    async with proxied(timeouts=SOON) as (running, mta):
        client = await running.greeted()
        await client.send(octets)
        assert await last(client) == TIMEOUT
        assert mta.messages == []


@in_loop
async def test_octets_of_a_command_do_not_prolong_its_time() -> None:
    async with proxied(timeouts=SOON) as (running, _):
        client = await running.greeted()
        while not client.ended:
            await client.send(b"N")
            await asyncio.sleep(0.05)
        assert await last(client) == TIMEOUT


@in_loop
async def test_the_time_of_a_command_begins_behind_the_reply_to_a_line_that_is_too_long() -> None:
    async with proxied(timeouts=Timeouts(command=1.0)) as (running, _):
        client = await running.greeted()
        await asyncio.sleep(0.8)
        assert (await client.say(b"N" * 5000)).code == 500
        await asyncio.sleep(0.5)
        assert (await client.say(b"NOOP")).code == 250


@in_loop
async def test_a_message_that_stops_is_given_up() -> None:
    async with proxied(timeouts=SOON) as (running, mta):
        client = await running.greeted(MAIL, RCPT, b"DATA")
        await client.send(LETTER)
        assert await last(client) == TIMEOUT
        assert mta.messages == []


@in_loop
async def test_a_message_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WARM_UP", 0.3)
    async with proxied(timeouts=SOON) as (running, mta):
        client = await running.greeted(MAIL, RCPT, b"DATA")
        while not client.ended:
            await client.send(b"a")
            await asyncio.sleep(0.02)
        assert await last(client) == TIMEOUT
        assert mta.messages == []


@in_loop
async def test_an_upload_may_take_longer_than_a_command() -> None:
    async with proxied(timeouts=SOON) as (running, mta):
        client = await running.greeted(MAIL, RCPT, b"DATA")
        for _ in range(12):
            await client.send(LETTER)
            await asyncio.sleep(0.1)
        await client.send(b".\r\n")
        assert (await client.reply()).code == 250
        assert mta.messages[0].content == LETTER * 12


@in_loop
async def test_a_policy_may_take_longer_than_a_command() -> None:
    policy = Policy("slow")

    @policy.rcpt
    async def rcpt(message: Message, recipient: object) -> None:
        await asyncio.sleep(1.0)

    @policy.message
    async def whole(message: Message) -> None:
        await asyncio.sleep(1.0)

    async with proxied(policy, timeouts=SOON) as (running, mta):
        client = await running.greeted()
        assert (await client.deliver(LETTER)).code == 250
        assert len(mta.messages) == 1


@in_loop
async def test_a_server_may_take_longer_than_a_command() -> None:
    rows: Script = [
        ("RCPT", [Wait(0.8), Send(b"250 ok\r\n")]),
        (".", [Wait(0.8), Send(b"250 ok\r\n")]),
    ]
    async with proxied(mta=Mta(rows), timeouts=SOON) as (running, mta):
        client = await running.greeted()
        assert (await client.deliver(LETTER)).code == 250
        assert len(mta.messages) == 1


@in_loop
async def test_a_policy_that_takes_too_long_is_a_reason_to_try_later() -> None:
    policy = Policy("stuck")

    @policy.message
    async def whole(message: Message) -> None:
        await asyncio.sleep(60)

    defaults = Defaults(timeout=0.3, message_timeout=0.3)
    async with proxied(policy, defaults=defaults) as (running, mta):
        client = await running.greeted()
        reply = await client.deliver(LETTER)
        assert reply.text == b"451 4.3.0 the mail policy failed, try again later\r\n"
        assert mta.messages == []
        assert (await client.say(b"NOOP")).code == 250


@in_loop
async def test_who_speaks_before_the_greeting_is_refused() -> None:
    async with proxied(timeouts=Timeouts(greeting=0.3)) as (running, _):
        hasty, polite = await running.open(), await running.open()
        await hasty.send(b"EHLO x\r\n")
        await hasty.until_ended()
        assert bytes(hasty.said).startswith(b"554 5.5.1 ")
        await polite.begin()


# -- numbers --------------------------------------------------------------------------------------


@in_loop
async def test_connections_have_a_limit() -> None:
    async with proxied(limits=Limits(connections=2)) as (running, _):
        first, _second = await running.greeted(), await running.greeted()
        assert await last(await running.open()) == b"421 4.7.0 Too many connections\r\n"
        assert (await first.say(b"QUIT")).code == 221
        await first.until_ended()
        for _ in range(100):  # until it is forgotten
            client = await running.open()
            if (await client.reply()).code == 220:
                break
        assert (await client.say(b"EHLO x")).code == 250


@in_loop
async def test_one_address_has_a_limit_of_its_own() -> None:
    async with proxied(
        limits=Limits(per_client=2), proxy_protocol=True, open_relay=True, trusted=("127.0.0.1",)
    ) as (running, _):

        async def connect(address: str) -> int:
            client = await running.open()
            client.transport.write(f"PROXY TCP4 {address} 127.0.0.1 5000 25\r\n".encode())
            return (await client.reply()).code

        assert [await connect("192.0.2.1") for _ in range(3)] == [220, 220, 421]
        assert await connect("192.0.2.2") == 220


@pytest.mark.parametrize("line", [b"FROB", b"", b"RCPT TO:<a@x.example>", b"MAIL FROM:a", b"\0"])
@in_loop
async def test_errors_have_a_limit(line: bytes) -> None:
    async with proxied(limits=Limits(errors=3)) as (running, _):
        client = await running.greeted()
        codes = [(await client.say(line)).code for _ in range(4)]
        assert codes == [codes[0]] * 4
        assert 500 <= codes[0] <= 503
        assert await last(client) == b"421 4.7.0 Too many errors\r\n"


@in_loop
async def test_commands_that_bring_nothing_on_have_a_limit() -> None:
    async with proxied() as (running, _):
        client = await running.greeted()
        await client.send(b"NOOP\r\nRSET\r\n" * 5_000)
        assert await last(client) == b"421 4.7.0 Too many errors\r\n"
        assert len(client.check().exchanges) <= 105


@in_loop
async def test_a_message_of_too_many_octets_is_refused() -> None:
    async with proxied(limits=Limits(message=1000)) as (running, mta):
        client = await running.greeted()
        assert b"SIZE 1000\r\n" in (await client.say(b"EHLO x")).text
        assert (await client.say(MAIL + b" SIZE=1001")).text.startswith(b"552 5.3.4")
        assert (await client.deliver(b"x" * 998 + b"\r\n")).code == 250
        assert (await client.deliver(b"x" * 999 + b"\r\n")).text.startswith(b"552 5.3.4")
        assert len(mta.messages) == 1


@in_loop
async def test_the_server_s_limit_counts_where_it_is_lower() -> None:
    async with proxied(mta=Mta(keywords=[b"SIZE 500"])) as (running, _):
        client = await running.greeted()
        assert b"SIZE 500\r\n" in (await client.say(b"EHLO x")).text
        assert (await client.say(MAIL + b" SIZE=501")).text.startswith(b"552 5.3.4")


@in_loop
async def test_recipients_have_a_limit() -> None:
    async with proxied(core=CoreLimits(recipients=2)) as (running, mta):
        client = await running.greeted(MAIL, RCPT, RCPT)
        assert (await client.say(RCPT)).text.startswith(b"452 4.5.3")
        assert (await client.data(LETTER)).code == 250
        assert len(mta.messages[0].recipients) == 2


@in_loop
async def test_a_message_that_goes_round_in_circles_is_refused() -> None:
    async with proxied(limits=Limits(hops=3)) as (running, mta):
        client = await running.greeted()
        field = b"Received: from a\r\n\tby b\r\n"
        assert (await client.deliver(field * 3 + LETTER)).code == 250
        assert (await client.deliver(field * 4 + LETTER)).text.startswith(b"554 5.4.6")
        assert len(mta.messages) == 1


@pytest.mark.parametrize(("lines", "code"), [(90, 250), (100, 552), (101, 552), (5000, 552)])
@in_loop
async def test_a_header_section_has_ten_lines_for_each_field(lines: int, code: int) -> None:
    """What stands behind that is no body: a policy would not see those fields."""
    section = b"X: y\r\n" + b" y\r\n" * lines + b"Subject: hidden\r\n\r\nHello.\r\n"
    async with proxied(core=CoreLimits(fields=10)) as (running, _):
        client = await running.greeted()
        assert (await client.deliver(section)).code == code


@in_loop
async def test_messages_under_way_share_an_amount_of_memory() -> None:
    async with proxied(limits=Limits(memory=100_000)) as (running, _):
        first, second = await running.greeted(MAIL, RCPT, b"DATA"), await running.greeted()
        await first.send(LETTER + b"x" * 998 + b"\r\n" + b"0123456789\r\n" * 10_000)
        for _ in range(100):
            reply = await second.deliver(LETTER)
            if reply.code != 250:
                break
            await asyncio.sleep(0.01)
        assert reply.text.startswith(b"452 4.3.1")
        assert (await second.say(b"RSET")).code == 250
        await first.send(b".\r\n")
        assert (await first.reply()).code == 250
        assert (await second.deliver(LETTER)).code == 250


# -- replies that are not read ------------------------------------------------------------------------


@in_loop
async def test_ten_thousand_pipelined_commands_have_a_reply_each() -> None:
    async with proxied() as (running, mta):
        client = await running.greeted(MAIL)
        given = asyncio.create_task(client.send((RCPT + b"\r\n") * 10_000))
        codes = [(await client.reply()).code for _ in range(10_000)]
        await given
        assert codes == [250] * 1000 + [452] * 9000
        assert (await client.data(LETTER)).code == 250
        assert len(mta.messages[0].recipients) == 1000


@in_loop
async def test_nothing_is_read_of_a_client_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "STALLED", 0.5)
    async with proxied(timeouts=Timeouts(command=1.0)) as (running, _):
        client, other = await running.greeted(MAIL, RCPT), await running.greeted()
        client.transport.pause_reading()
        sent = asyncio.create_task(client.send((RCPT + b"\r\n") * 200_000))
        assert (await other.deliver(LETTER)).code == 250
        for _ in range(int(PATIENCE / 0.01)):
            if running.engine.sessions == 1:
                break
            await asyncio.sleep(0.01)
        assert running.engine.sessions == 1  # the other one's
        client.close()
        sent.cancel()


@pytest.mark.parametrize("loop", LOOPS)
def test_what_one_turn_answers_is_written_at_its_end(loop: str) -> None:
    """Whoever is asked about second, the other client has not got its reply by then."""
    policy, clients, seen = Policy("looks"), dict[str, socket.socket](), list[bool]()

    @policy.helo
    async def helo(session: Session) -> None:
        other = next(client for name, client in clients.items() if name != session.helo)
        seen.append(bool(select.select([other], [], [], 0)[0]))

    async def test() -> None:
        async with proxied(policy) as (running, _):
            loop = asyncio.get_running_loop()
            for name in ("one.example", "other.example"):
                clients[name] = client = socket.create_connection(("127.0.0.1", running.port))
                client.setblocking(False)
                assert (await loop.sock_recv(client, 1000)).startswith(b"220 ")
            for name, client in clients.items():
                client.send(b"HELO %b\r\n" % name.encode())
            for client in clients.values():
                assert (await loop.sock_recv(client, 1000)).startswith(b"250 ")
                client.close()

    run(test, loop)
    assert seen == [False, False]


# -- the end --------------------------------------------------------------------------------------


@in_loop
async def test_who_is_idle_at_the_end_is_told() -> None:
    async with proxied() as (running, _):
        client = await running.greeted()
        await running.stop()
        assert await last(client) == b"421 4.3.2 Service shutting down\r\n"


@in_loop
async def test_a_message_under_way_is_taken_at_the_end_and_no_other() -> None:
    async with proxied() as (running, mta):
        client = await running.greeted(MAIL, RCPT, b"DATA")
        stopping = asyncio.create_task(running.stop())
        await client.send(LETTER)
        await asyncio.sleep(0.1)
        with pytest.raises(ConnectionRefusedError):
            await running.open()
        await client.send(b".\r\n")
        assert (await client.reply()).code == 250
        assert (await client.say(MAIL)).text.startswith(b"421 4.3.2")
        await client.until_ended()
        await stopping
        assert len(mta.messages) == 1


@pytest.mark.parametrize("body", ["hold", "stream"])
@in_loop
async def test_a_message_that_does_not_end_is_not_taken_at_the_end(
    body: Literal["hold", "stream"],
) -> None:
    async with proxied(gate(whole=False), body=body, timeouts=Timeouts(drain=0.5)) as (
        running,
        mta,
    ):
        client = await running.greeted(MAIL, RCPT, b"DATA")
        await client.send(LETTER)
        await running.stop()
        await client.until_ended()
        assert mta.messages == []
        assert not any(one.refused.endswith(b"\r\n.\r\n") for one in mta.connections)


# -- a client that is gone ------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["hold", "stream"])
@pytest.mark.parametrize("act", ["close", "reset", "half_close"])
@in_loop
async def test_a_message_whose_client_is_gone_before_its_end_is_not_taken(
    act: Kind, body: Literal["hold", "stream"]
) -> None:
    async with proxied(gate(whole=False), body=body) as (running, mta):
        client = await running.greeted(MAIL, RCPT, b"DATA")
        await client.send(LETTER + b".\r")
        await client.play([Act(act)])
        await running.settle()
        assert mta.messages == []
        assert not any(one.refused.endswith(b"\r\n.\r\n") for one in mta.connections)


@pytest.mark.parametrize("act", ["close", "reset", "half_close"])
@in_loop
async def test_a_message_whose_client_is_gone_behind_its_end_is_taken_once(act: Kind) -> None:
    slow: Script = [(".", [Wait(0.5), Send(b"250 2.0.0 queued\r\n")])]
    async with proxied(mta=Mta(slow)) as (running, mta):
        client = await running.greeted(MAIL, RCPT, b"DATA")
        await client.send(LETTER + b".\r\n")
        for _ in range(200):
            if any(one.refused for one in mta.connections):
                break
            await asyncio.sleep(0.01)
        await client.play([Act(act)])
        await running.settle()
        assert len(mta.messages) == 1
        if act == "half_close":
            assert client.check().exchanges[-1].reply.text == b"250 2.0.0 queued\r\n"


@in_loop
async def test_a_refused_message_takes_no_memory_with_it() -> None:
    policy = Policy("refuses")

    @policy.headers
    async def headers(message: Message) -> Reject:
        return Reject("no")

    async with proxied(policy, limits=Limits(memory=1_000_000)) as (running, _):
        client = await running.greeted()
        for _ in range(5):
            assert (await client.deliver(LETTER + b"x\r\n" * 300_000)).code == 550
