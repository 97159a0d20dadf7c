"""Ways past a policy, or to the end of smtpd, that were found once; each stays closed."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from mailgate import Address, Event, Message, Policy, Reject, Session
from mailgate.headers import decode_value
from mailgate.mime import TooComplex
from mailgate.testing import Mta, send
from tests.opensmtpd.lines import Client, handshake
from tests.opensmtpd.peer import process
from tests.opensmtpd.running import Outcome, converse, in_step

CLIENT = Client("7641df9771b4ed00")
OTHER = Client("7641df9771b4ed01")


def answers(outcome: Outcome, phase: str, client: Client = CLIENT) -> list[bytes]:
    """Return how the questions of a phase were answered, in order."""
    _, _, _, _, _, session, token, _ = client.question(phase).split(b"|")
    start = b"filter-result|%b|%b|" % (session, token)
    return [line.removeprefix(start) for line in outcome.lines() if line.startswith(start)]


def run(policy: Policy, *lines: bytes) -> Outcome:
    """Feed smtpd's lines as smtpd writes them: each when all before it is answered."""
    outcome = converse(in_step(handshake() + b"".join(lines)), policy)
    assert outcome.faults == []
    return outcome


# -- what ends the process -----------------------------------------------------------------------

ENDS = {
    "exit in a task": "asyncio.get_running_loop().create_task(leave())",
    "exit in a callback": "asyncio.get_running_loop().call_soon(sys.exit)",
    "exit while cleaning up": "\n    try:\n        await asyncio.sleep(60)\n    finally:\n"
    "        await asyncio.sleep(0)\n        sys.exit()",
    "every task cancelled": "[task.cancel() for task in asyncio.all_tasks()]",
    "the loop stopped": "asyncio.get_running_loop().stop()",
    "an exception that cannot be named": "raise Odd",
}
MODULE = """
import asyncio, sys
from mailgate import Message, Policy

policy = Policy()

class Nameless(type):
    __name__ = property(lambda cls: sys.exit())

class Odd(Exception, metaclass=Nameless): ...

async def leave(): sys.exit()

@policy.mail(timeout=0.2)
async def ends(message: Message):
    {}
"""


@pytest.mark.parametrize("act", ENDS.values(), ids=ENDS)
def test_a_policy_does_not_end_the_process(act: str, tmp_path: Path) -> None:
    policy = tmp_path / "ends.py"
    policy.write_text(MODULE.format(act))
    with process(policy) as filter:
        filter.peer.send(handshake())
        filter.peer.until_ready()
        for client in (CLIENT, OTHER):
            filter.peer.send(client.whole())
            filter.peer.settle()
        assert filter.peer.faults() == []
        assert filter.alive()
        assert filter.end() == 0


# -- refusals that were lost ---------------------------------------------------------------------


def test_data_said_twice_keeps_an_earlier_refusal() -> None:
    policy = Policy()

    @policy.mail
    async def fails(message: Message) -> None:
        raise ValueError

    @policy.data
    async def data(message: Message) -> Reject | None:
        return None

    begun = CLIENT.greeted() + CLIENT.mail() + CLIENT.began() + CLIENT.rcpt()
    outcome = run(policy, begun, CLIENT.data(), CLIENT.data(), CLIENT.commit())
    assert [answer[:10] for answer in answers(outcome, "data")] == [b"reject|451"] * 2
    assert [answer[:10] for answer in answers(outcome, "commit")] == [b"reject|451"]


def test_a_data_handler_that_looks_on_is_asked_when_lines_come_first() -> None:
    policy = Policy()

    @policy.data
    async def fails(message: Message) -> None:
        raise ValueError

    @policy.headers
    async def reads(message: Message) -> None:
        list(message.headers)

    late = CLIENT.report("tx-data", "3682b2ad", "ok")
    begun = CLIENT.greeted() + CLIENT.mail() + CLIENT.began() + CLIENT.rcpt()
    outcome = run(policy, begun, CLIENT.content(), late, CLIENT.commit())
    assert [answer[:10] for answer in answers(outcome, "commit")] == [b"reject|451"]


# -- another envelope than the one that is delivered ---------------------------------------------


def test_a_rewrite_of_a_refused_recipient_is_not_the_next_ones() -> None:
    asked: list[str] = []
    policy = Policy()

    @policy.rcpt
    async def rcpt(message: Message, recipient: Address) -> Reject | None:
        asked.append(recipient)
        return None

    def decided(*words: str) -> bytes:
        return CLIENT.report("filter-response", "rcpt-to", *words)

    def told(result: str, address: str) -> bytes:
        return CLIENT.report("tx-rcpt", "3682b2ad", result, address)

    begun = CLIENT.greeted() + CLIENT.mail() + CLIENT.began()
    first = decided("rewrite", "<gone@example.org>") + told("permfail", "alias@example.org")
    second = decided("junk") + told("ok", "victim@example.org")
    run(policy, begun, first, second)
    assert asked == ["victim@example.org"]


def test_a_sender_that_a_later_filter_refused_is_forgotten() -> None:
    asked: list[str] = []
    policy = Policy()

    @policy.mail
    async def mail(message: Message) -> Reject | None:
        asked.append(message.sender)
        return None

    refused = CLIENT.report("filter-response", "mail-from", "reject", "550 no")
    junked = CLIENT.report("filter-response", "mail-from", "junk")
    again = CLIENT.report("tx-begin", "3682b2ae") + CLIENT.report(
        "tx-mail", "3682b2ae", "ok", "bad@example.org"
    )
    run(policy, CLIENT.greeted(), CLIENT.mail(b"good@example.org"), refused, junked, again)
    assert asked == ["good@example.org", "bad@example.org"]


# -- one client and the others -------------------------------------------------------------------


def test_outgoing_sessions_end() -> None:
    closed: list[str] = []
    policy = Policy()

    @policy.event
    async def event(session: Session, event: Event) -> None: ...

    @policy.close
    async def close(session: Session) -> None:
        closed.append(session.direction)

    def outgoing(number: int) -> bytes:
        line = b"report|0.7|1.0|smtp-out|%b|%016x%b\n"
        begin = line % (b"link-connect", number, b"|h|pass|192.0.2.1:25|192.0.2.2:1")
        return begin + line % (b"link-disconnect", number, b"")

    many = b"".join(map(outgoing, range(5000)))  # more than there may be at a time
    outcome = converse([handshake(), many, CLIENT.whole() + CLIENT.gone()], policy)
    assert outcome.faults == []
    assert b"reject" not in outcome.output
    assert b"disconnect|" not in outcome.output
    assert closed == ["in"]


def test_how_a_message_ended_is_heard_though_its_client_leaves() -> None:
    heard: list[str] = []
    policy = Policy()

    @policy.done
    async def done(message: Message) -> None:
        await asyncio.sleep(0.01)
        heard.append(message.outcome.result if message.outcome is not None else "")

    converse([handshake(), CLIENT.whole() + CLIENT.gone()], policy)
    assert heard == ["accepted"]


def test_many_mbox_lines_cost_no_more_than_others() -> None:
    """Each was held against the whole section before it: 64 KiB took two seconds."""
    policy = Policy()

    @policy.headers
    async def reads(message: Message) -> None:
        list(message.headers)

    begun = CLIENT.greeted() + CLIENT.mail() + CLIENT.began() + CLIENT.rcpt()
    lines = CLIENT.content(b"From : x\r\n" * 30_000 + b"\r\nbody\r\n")
    outcome = converse([handshake(), begun + lines + CLIENT.commit()], policy)
    assert outcome.faults == []
    assert answers(outcome, "commit") == [b"reject|552 5.3.4 the header section is too big"]


# -- content -------------------------------------------------------------------------------------


def test_a_word_before_the_body_joins_its_first_line() -> None:
    policy = Policy()

    @policy.message
    async def mark(message: Message) -> None:
        message.body = b"[EXTERNAL] " + message.body

    assert send(policy, b"Subject: x\n\nhello\nthere\n").body == b"[EXTERNAL] hello\r\nthere\r\n"


def test_an_edited_copy_makes_no_part_of_a_control_character() -> None:
    hidden = b"X-A: q\x0b\x0bhello\x0b--bb\x0bContent-Type: x/y; name=evil.exe\x0b\x0bMZ\r\n"
    raw = (
        b"Content-Type: multipart/mixed; boundary=bb\r\n\r\n"
        b"--bb\r\nContent-Type: text/plain\r\n" + hidden + b"\r\nhi\r\n--bb--\r\n"
    )
    policy = Policy()

    @policy.message
    async def edits(message: Message) -> None:
        mail = message.parse()
        mail.add_attachment("a text")
        message.replace(mail)

    outcome = send(policy, raw)
    assert outcome.reply.startswith("451 4.3.0")  # it cannot be written, and says so


@pytest.mark.parametrize("boundary", ['"a b"', "utf-8''a%62"])
def test_parts_are_counted_whatever_the_boundary(boundary: str) -> None:
    star = "*" if "''" in boundary else ""
    written = boundary.strip('"').replace("utf-8''", "").replace("%62", "b").encode()
    head = f"Content-Type: multipart/mixed; boundary{star}={boundary}\r\n\r\n".encode()
    found: list[int] = []
    policy = Policy()

    @policy.message
    async def looks(message: Message) -> None:
        mail = message.parse()
        found.append(sum(1 for _ in mail.walk()))
        assert any(isinstance(defect, TooComplex) for defect in mail.defects)

    outcome = send(policy, head + (b"--" + written + b"\r\n\r\nx\r\n") * 5000)
    assert outcome.accepted
    assert found == [1]


@pytest.mark.parametrize("charset", ["unicode/escape", "unicode_escape", "raw-unicode-escape"])
def test_no_spelling_of_a_codec_runs_escapes(charset: str) -> None:
    assert "A" not in decode_value(f"=?{charset}?Q?=5Cu0041?=".encode())


def test_a_plain_thread_edits_nothing_in_service() -> None:
    failures: list[BaseException] = []
    policy = Policy()

    @policy.message
    async def leaves(message: Message) -> None:
        def edit() -> None:
            try:
                message.headers["X-Late"] = "1"
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=edit)
        thread.start()
        thread.join()

    with Mta(policy, strict=False) as mta:
        mta.mail("a@b.example")
        mta.rcpt("c@d.example")
        assert mta.data().code == 250
    assert [type(error).__name__ for error in failures] == ["TooLate"]


def test_empty_lines_are_given_back_piece_by_piece(tmp_path: Path) -> None:
    """Each is answered with fifty octets; all at once that was 25 times the message, twice."""
    policy = tmp_path / "whole.py"
    policy.write_text(WHOLE)
    begun = CLIENT.greeted() + CLIENT.mail() + CLIENT.began() + CLIENT.rcpt() + CLIENT.data()
    empty = CLIENT.question("data-line")
    with process(policy, kept=1 << 16) as filter:
        filter.peer.send(handshake())
        filter.peer.until_ready()
        before = filter.peak()
        filter.peer.send(begun + CLIENT.question("data-line", b"Subject: x") + empty)
        for _ in range(100):
            filter.peer.send(empty * 10_000)
        filter.peer.send(CLIENT.question("data-line", b".") + CLIENT.commit())
        filter.peer.settle()
        assert filter.peer.faults() == []
        assert filter.peak() - before < 40 << 20


WHOLE = """
from mailgate import Message, Policy

policy = Policy()

@policy.message
async def reads(message: Message) -> None:
    message.size
"""
