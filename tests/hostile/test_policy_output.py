"""What a careless or attacked policy returns and edits (policy-output.json), call by call.

`refuse-call` is an exception where the call is written; let through, the message gets the failure
verdict. `sanitise` is that, too, or an output without what the case forbids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from mailgate import Defer, Message, Policy, Quarantine, Reject, Verdict
from mailgate.errors import Misuse
from mailgate.stage import Capability
from mailgate.testing import MESSAGE, Mta, Outcome
from mailgate.verdict import Reply
from tests.hostile.cases import Case, load, value
from tests.opensmtpd.lines import Client, handshake
from tests.opensmtpd.running import converse

CASES = {case.id: case for case in load("policy-output") if case.call is not None}
REFUSALS = (ValueError, TypeError, Misuse)

# §4 of the API stands over a case where both speak of it; the reason is beside each.
VERDICTS = {
    "POL-016": "refuse-call",  # a refusal always has a text of its own: None is none
}

NOT_RUN = {
    "POL-056": "headers have no positions in our API: mail servers count them differently",
    "POL-057": "headers have no positions in our API: mail servers count them differently",
    "POL-058": "headers have no positions in our API: mail servers count them differently",
}

# -- from abstract calls to ours -----------------------------------------------------------------


def reject(message: Message, code: int, enhanced: str | None, text: str) -> Verdict:
    return Reject(text, code, enhanced or "")


def defer(message: Message, code: int, enhanced: str | None, text: str) -> Verdict:
    return Defer(text, code, enhanced or "")


def add_header(message: Message, name: str, content: str) -> None:
    message.headers.add(name, content)


def change_header(message: Message, name: str, at: int, content: str | None) -> None:
    assert content is None
    del message.headers[name]


def add_recipient(message: Message, address: str) -> None:
    message.add_recipient(address)


def remove_recipient(message: Message, address: str) -> None:
    message.remove_recipient(address)


def change_sender(message: Message, address: str) -> None:
    message.change_sender(address)


def append_footer(message: Message, text: str) -> None:
    message.body += text.encode() if text.isascii() else text  # type: ignore[operator]


def replace_body(message: Message, text: str) -> None:
    message.body = text.encode()


def quarantine(message: Message, reason: str) -> Verdict:
    return Quarantine(reason)


CALLS: Mapping[str, Callable[..., Verdict | None]] = {
    "reject": reject,
    "tempfail": defer,
    "add_header": add_header,
    "change_header": change_header,
    "add_recipient": add_recipient,
    "remove_recipient": remove_recipient,
    "change_sender": change_sender,
    "append_footer": append_footer,
    "replace_body": replace_body,
    "quarantine": quarantine,
}


def perform(call: Mapping[str, Any], message: Message) -> Verdict | None:
    """Make an abstract call."""
    if "repeat" in call:
        for _ in range(call["repeat"]):
            perform(call["call"], message)
        return None
    ((name, arguments),) = call.items()
    return CALLS[name](message, *value(arguments))


# -- the calls, made in a handler -----------------------------------------------------------------

RAW = MESSAGE.replace(b"rcpt@example.org", b"b@example.org")
ACTIONS: frozenset[Capability] = frozenset(
    {"change_sender", "add_recipient", "remove_recipient", "quarantine"}
)


class Attempt:
    """A policy that makes a call at the end of a message, and what came of the call."""

    def __init__(self, case: Case, needs: Collection[Capability] = ACTIONS) -> None:
        self.call = case.call or {}
        self.raised: Exception | None = None
        self.policy = Policy("hostile")
        if "change_sender" in self.call and "add_recipient" not in needs:
            self.policy.mail(needs={"change_sender"})(self.make)
        else:
            self.policy.message(needs=needs)(self.make)

    async def make(self, message: Message):  # type: ignore[no-untyped-def]  # it may answer
        try:
            return perform(self.call, message)
        except REFUSALS as error:
            self.raised = error
            raise


def run(attempt: Attempt) -> Outcome:
    """Send a message through a policy as in service: what it does wrongly is its own failure."""
    with Mta(attempt.policy, strict=False) as mta:
        mta.mail("a@example.org")
        mta.rcpt("b@example.org")
        mta.data(RAW)
        return mta.outcome


def parameters() -> list[ParameterSet]:
    """Return the cases; one that cannot be expressed is skipped with its reason."""
    return [
        pytest.param(
            case,
            id=name,
            marks=[pytest.mark.skip(reason=NOT_RUN[name])] if name in NOT_RUN else [],
        )
        for name, case in CASES.items()
    ]


@pytest.mark.parametrize("case", parameters())
def test_calls(case: Case) -> None:
    attempt = Attempt(case)
    outcome = run(attempt)

    verdict = VERDICTS.get(case.id, case.verdict)
    if verdict == "refuse-call" or (verdict == "sanitise" and attempt.raised is not None):
        assert attempt.raised is not None
        assert outcome.reply == "451 4.3.0 the mail policy failed, try again later"
        assert not outcome.changes
    else:
        assert attempt.raised is None
        check_output(case, outcome)


def smtp(reply: Reply) -> str:
    """Return a reply as SMTP writes it."""
    lines = reply.split("\n")
    last = len(lines) - 1
    return "".join(
        f"{line[:3]}{'-' if at < last else ' '}{line[4:]}\r\n" for at, line in enumerate(lines)
    )


def check_output(case: Case, outcome: Outcome) -> None:
    """See that what comes out is well-formed and has nothing in it that the case forbids."""
    reply, raw = smtp(outcome.reply), outcome.raw.decode("utf-8", "surrogateescape")
    assert reply.isascii()
    assert not re.search(r"[^ -~\r\n]|\r(?!\n)|(?<!\r)\n", reply)
    assert not re.search(r"\0|\r(?!\n)|(?<!\r)\n", raw)
    message = outcome.message
    assert message is not None
    envelope = f"MAIL FROM:<{message.sender}>\r\n" + "".join(
        f"RCPT TO:<{recipient}>\r\n" for recipient in message.recipients
    )
    for forbidden in case.expect.get("must_not", ()):
        for output in (reply, raw, envelope.replace("b@example.org", "")):
            assert forbidden not in output
    if "out" in case.expect:
        assert reply == case.expect["out"]
    check_effect(case, outcome, message)


def check_effect(case: Case, outcome: Outcome, message: Message) -> None:
    """See that a call did what it says."""
    call = value(case.call)
    match call:
        case {"reject": [code, *_]} | {"tempfail": [code, *_]}:
            assert outcome.reply.code == code
        case {"add_header": [name, content]}:
            assert outcome.reply.code == 250
            check_field(message, name, content)
        case {"add_recipient": [address]}:
            assert address.strip("<>") in message.recipients
        case {"remove_recipient": [address]}:
            assert message.recipients == ("b@example.org",)
        case {"change_sender": [address]}:
            assert message.sender == address.strip("<>")
        case {"append_footer": [text]}:
            lines = re.split(r"\r\n|\r|\n", text.rstrip("\r\n"))
            assert outcome.body.endswith("".join(f"{line}\r\n" for line in lines).encode())
        case {"replace_body": [text]}:
            assert outcome.body == text.encode() + b"\r\n"
        case {"quarantine": _}:
            assert isinstance(outcome.verdict, Quarantine)
            assert not re.search(r"[\r\n]", outcome.verdict.reason)


def check_field(message: Message, name: str, content: str) -> None:
    """See that one field was added, that it reads as given, and that its lines are short."""
    (read,) = message.headers.get_all(name)
    wanted = re.sub(r"\r?\n(?=[ \t])", "", content).strip()
    if content.isascii() and "=?" not in content:
        assert read == wanted
    (raw,) = message.headers.raw(name)
    assert raw.isascii()


# -- the same behind OpenSMTPD --------------------------------------------------------------------

CLIENT = Client("7641df9771b4ed00")


def possible(case: Case) -> bool:
    call = case.call or {}
    return case.id not in NOT_RUN and not call.keys() & {
        *("add_recipient", "remove_recipient", "quarantine")  # needs that are refused at start
    }


@pytest.mark.parametrize("case", [c for c in CASES.values() if possible(c)], ids=str)
def test_calls_behind_opensmtpd(case: Case) -> None:
    attempt = Attempt(case, needs=())
    lines = CLIENT.greeted() + CLIENT.mail()
    if "change_sender" not in attempt.call:
        lines += CLIENT.began() + CLIENT.rcpt() + CLIENT.data() + CLIENT.content(RAW)
        lines += CLIENT.commit()
    outcome = converse([handshake(), lines], attempt.policy)

    assert outcome.faults == []
    last = outcome.lines()[-1].split(b"|", 3)[3]
    if attempt.raised is not None:
        assert last == b"reject|451 4.3.0 the mail policy failed, try again later"
    elif case.id == "POL-105":  # a line that smtpd would choke on
        assert last == b"reject|554 5.6.0 a line is too long for this mail server's filters"
    elif attempt.call.keys() & {"reject", "tempfail"}:
        assert re.fullmatch(rb"reject\|[45]\d\d [45]\.\d+\.\d+ [ -~]+", last)
    elif "change_sender" in attempt.call:
        address = value(case.call)["change_sender"][0].strip("<>")
        assert last == f"rewrite|<{address}>".encode()
    else:
        assert last == b"proceed"


def test_every_call_has_a_test() -> None:
    names = {name for case in CASES.values() for name in case.call or {}} - {"repeat", "call"}
    assert names == CALLS.keys()
    assert NOT_RUN.keys() | VERDICTS.keys() <= CASES.keys()
    assert all(len(case.call or {}) in (1, 2) for case in CASES.values())
