"""Verdicts are right where they are made, or not made at all."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailgate.address import Address
from mailgate.verdict import (
    Accept,
    Authenticated,
    Defer,
    Discard,
    Disconnect,
    Quarantine,
    Refusal,
    Reject,
    Reply,
    Verdict,
    refuses,
    verb,
)

Maker = Callable[..., Refusal]
REFUSALS: list[Maker] = [Reject, Defer, Disconnect]
REASONS: list[Callable[[str], Verdict]] = [Discard, Quarantine, Authenticated]
CONTROLS = [*map(chr, range(9)), *map(chr, range(11, 32)), "\x7f"]


@pytest.mark.parametrize(
    ("verdict", "reply"),
    [
        (Reject("no"), "550 5.7.1 no"),
        (Defer("later"), "451 4.7.1 later"),
        (Disconnect("bye"), "421 4.7.1 bye"),
        (Reject("no such user", 551, "5.1.6"), "551 5.1.6 no such user"),
        (Defer("full", 452, "4.2.2"), "452 4.2.2 full"),
        (Disconnect("never again", 554), "554 5.7.1 never again"),
    ],
)
def test_a_refusal_is_a_reply(verdict: Refusal, reply: str) -> None:
    assert verdict.reply == reply


def test_the_enhanced_status_follows_the_code() -> None:
    assert Reject("no").enhanced == "5.7.1"
    assert Defer("no").enhanced == "4.7.1"
    assert Disconnect("no", 450).enhanced == "4.7.1"
    assert Disconnect("no", 550).enhanced == "5.7.1"


@pytest.mark.parametrize(
    ("maker", "code"),
    [
        *((Reject, code) for code in (0, -550, 55, 250, 354, 450, 600, 5500)),
        *((Defer, code) for code in (45, 250, 354, 399, 500, 550)),
        *((Disconnect, code) for code in (221, 250, 354, 399, 600)),
    ],
)
def test_a_code_of_another_class_is_refused(maker: Maker, code: int) -> None:
    with pytest.raises(ValueError, match=rf"wants a [45]xx.* code, not {code}"):
        maker("no", code)


def test_421_closes_the_connection_so_it_is_a_disconnect() -> None:
    with pytest.raises(ValueError, match="return Disconnect"):
        Defer("bye", 421)


@pytest.mark.parametrize(
    "enhanced",
    [
        *("4.7.1", "2.0.0", "5.7", "5.7.1.1", "5..1", "5.7.1000", "5.7.x", " 5.7.1", "5.7.1\n"),
        *("5.07.1", "5.7.01", "5.\u0667.1", "5.7.\uff11"),
    ],
)
def test_an_enhanced_status_has_the_form_and_class_of_rfc_3463(enhanced: str) -> None:
    with pytest.raises(ValueError, match="does not go with 550"):
        Reject("no", enhanced=enhanced)


@pytest.mark.parametrize("maker", [*REFUSALS, *REASONS])
@pytest.mark.parametrize("text", ["", " ", "\n", " \r\n\t"])
def test_a_text_says_something(maker: Callable[[str], Verdict], text: str) -> None:
    with pytest.raises(ValueError, match="needs a text"):
        maker(text)


@pytest.mark.parametrize("maker", [*REFUSALS, *REASONS])
@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_control_characters_are_refused(maker: Callable[[str], Verdict], control: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        maker(f"a{control}b")


@pytest.mark.parametrize("maker", REFUSALS)
@pytest.mark.parametrize(
    "arguments",
    [(5,), (None,), (b"no",), ("no", "550"), ("no", 550.0), ("no", True), ("no", 550, 5)],
    ids=repr,
)
def test_parts_of_another_type_are_refused(maker: Maker, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        maker(*arguments)


def test_text_of_a_kind_is_text() -> None:
    """A type checker takes an address for text, and a status of http for a number."""
    assert Reject(Address("a@b.example")).reply == "550 5.7.1 a@b.example"
    assert Reject("no", HTTPStatus.SERVICE_UNAVAILABLE, "5.3.2").reply == "503 5.3.2 no"


def test_line_ends_make_a_reply_of_several_lines() -> None:
    reply = Reject("see\r\nthe manual\nplease").reply
    assert reply == "550 5.7.1 see\n550 5.7.1 the manual\n550 5.7.1 please"
    assert reply.lines == ("see", "the manual", "please")


def test_a_text_that_is_not_ascii_is_written_with_question_marks() -> None:
    assert Reject("Grüße €").reply == "550 5.7.1 Gr??e ?"
    assert Reject("a\x85b\u2028c\ud800").reply == "550 5.7.1 a?b?c?"


def test_a_text_is_cut_where_a_reply_ends() -> None:
    reply = Reject("\n".join(f"line {n}" for n in range(40))).reply
    assert len(reply.lines) == 32
    assert reply.lines[30] == "line 30"
    assert reply.lines[31] == "line 31..."


def test_a_long_line_is_wrapped() -> None:
    assert Reject("x" * 1000).reply.lines == ("x" * 450, "x" * 450, "x" * 100)


@given(
    text=st.text(max_size=60) | st.text(alphabet="ab\r\n\t \0é", max_size=60),
    times=st.sampled_from([1, 1, 1, 50]),
)
@example(text="line\n", times=100)
@example(text="x" * 512, times=50)
def test_no_text_makes_a_reply_that_breaks_smtp(text: str, times: int) -> None:
    """RFC 5321 4.2: textstring is HT, blanks and printable ASCII; 4.5.3.1.5: 512 octets."""
    try:
        reply = Disconnect(text * times, 554, "5.999.999").reply
    except ValueError:
        return
    lines = reply.split("\n")
    assert 0 < len(lines) <= 32
    for line in lines:
        assert line.startswith("554 5.999.999 ")
        assert len(line) + len("\r\n") <= 512
        assert all(c == "\t" or " " <= c <= "~" for c in line)


@pytest.mark.parametrize(
    "verdict", [Accept(), Reject("a"), Defer("a"), Disconnect("a"), Discard("a")]
)
def test_verdicts_are_values(verdict: Verdict) -> None:
    assert verdict == copy.copy(verdict)
    assert hash(verdict) == hash(copy.copy(verdict))
    assert verdict != Quarantine("a")
    with pytest.raises((FrozenInstanceError, TypeError)):
        setattr(verdict, "text", "other")  # noqa: B010 - a type checker refuses it, too


def test_equal_refusals_are_equal_however_the_defaults_were_said() -> None:
    assert Reject("no") == Reject("no", 550, "5.7.1")


@pytest.mark.parametrize(
    ("verdict", "word"),
    [
        (None, "continue"),
        (Accept(), "accept"),
        (Reject("a"), "reject"),
        (Defer("a"), "defer"),
        (Disconnect("a"), "disconnect"),
        (Discard("a"), "discard"),
        (Quarantine("a"), "quarantine"),
        (Authenticated("ann"), "authenticated"),
    ],
)
def test_verb(verdict: Verdict | None, word: str) -> None:
    assert verb(verdict) == word


@pytest.mark.parametrize("verdict", [Reject("a"), Defer("a"), Disconnect("a", 554)])
def test_a_reply_refuses(verdict: Verdict) -> None:
    assert refuses(verdict)
    assert verdict.reply.code >= 400


@pytest.mark.parametrize(
    "verdict", [None, Accept(), Discard("a"), Quarantine("a"), Authenticated("ann")]
)
def test_what_takes_the_message_refuses_nothing(verdict: Verdict | None) -> None:
    assert not refuses(verdict)


@pytest.mark.parametrize(
    ("kind", "capability"),
    [(Discard, "discard"), (Quarantine, "quarantine"), (Authenticated, "authenticate")],
)
def test_verdicts_that_not_every_protocol_has_say_so(
    kind: type[Discard | Quarantine | Authenticated], capability: str
) -> None:
    assert kind.needs == capability


def test_a_reply_has_parts() -> None:
    reply = Reply(250, "2.0.0", ("Ok",))
    assert (reply, reply.code, reply.enhanced, reply.lines) == (
        "250 2.0.0 Ok",
        250,
        "2.0.0",
        ("Ok",),
    )
    assert Reply(220, "", ("ready", "go")) == "220 ready\n220 go"


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (Reject("no").reply, b"5.7.1 no"),
        (Reject("see\nthe manual").reply, b"5.7.1 see; the manual"),
        (Reject("a\ttab").reply, b"5.7.1 a tab"),
        (Reply(250, "", ("Ok",)), b"Ok"),
    ],
)
def test_some_wires_have_one_line_for_a_reply(reply: Reply, line: bytes) -> None:
    assert reply.in_one_line(100) == line
    assert reply.in_one_line(len(line)) == line


@given(text=st.text(min_size=1, max_size=60), most=st.integers(10, 40))
@example(text="x" * 34, most=40)
@example(text="x" * 35, most=40)
def test_such_a_line_is_printable_and_has_its_end(text: str, most: int) -> None:
    try:
        reply = Reject(text).reply
    except ValueError:
        return
    line = reply.in_one_line(most)
    whole = reply.in_one_line(1000)
    assert all(32 <= octet < 127 for octet in whole)
    assert line == (whole if len(whole) <= most else whole[: most - 3] + b"...")


def test_a_reply_can_be_copied_and_pickled() -> None:
    reply = Reject("a\nb").reply
    for other in (copy.deepcopy(reply), pickle.loads(pickle.dumps(reply))):
        assert other == reply
        assert (other.code, other.enhanced, other.lines) == (550, "5.7.1", ("a", "b"))
