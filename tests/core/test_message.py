"""What a policy sees of a connection and a message, and what it may edit when."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.address import UNTOLD, Address
from mailgate.content import Body
from mailgate.errors import LimitExceeded, TooEarly, TooLate, Undeclared, Unsupported
from mailgate.headers import Section, parse_fields
from mailgate.message import MAX_EDITS, Ending, Message
from mailgate.policy import Policy
from mailgate.session import Session
from mailgate.stage import MESSAGE_STAGES, Capability, Stage
from mailgate.testing import send
from tests.core.asking import (
    RECIPIENT,
    SECTION,
    SENDER,
    content,
    converse,
    in_loop,
    to_headers,
)

TEXT = b"Hello,\r\n.\r\nyou.\r\n"


def message(
    section: bytes = SECTION,
    body: bytes = TEXT,
    *,
    separator: bytes = b"\r\n",
    stage: Stage = Stage.MESSAGE,
    sender: Address = SENDER,
    memory: int = 1 << 20,
    limit: int = 1000,
) -> Message:
    """Return a message as it is at a stage."""
    made = Message(Session("s1", "test"), sender, "m1", memory=memory, limit=limit)
    if stage is not Stage.MAIL:
        made.accept_recipient(RECIPIENT, RECIPIENT)
    if stage in (Stage.HEADERS, Stage.BODY, Stage.MESSAGE):
        made.set_headers(Section.of(parse_fields(section)), separator)
    if stage is Stage.MESSAGE:
        whole = Body(memory)
        whole.append(body)
        made.set_body(whole)
    made.enter(stage)
    return made


# -- the content ---------------------------------------------------------------------------------


def test_the_whole_message() -> None:
    whole = message()
    assert whole.headers["Subject"] == "a test"
    assert whole.body == TEXT
    assert whole.raw == SECTION + b"\r\n" + TEXT
    assert whole.size == len(whole.raw)
    assert whole.open().read() == whole.raw
    assert repr(whole) == "<Message m1 from <sender@client.example>>"


READS: dict[str, Callable[[Message], object]] = {
    "body": lambda m: m.body,
    "raw": lambda m: m.raw,
    "size": lambda m: m.size,
    "open": lambda m: m.open(),
    "parse": lambda m: m.parse(),
    "replace": lambda m: m.replace(EmailMessage()),
    "assign": lambda m: setattr(m, "body", b""),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("stage", sorted(MESSAGE_STAGES - {Stage.MESSAGE}))
def test_a_body_is_known_at_the_end(stage: Stage, read: Callable[[Message], object]) -> None:
    with pytest.raises(TooEarly, match=r"@policy\.message on"):
        read(message(stage=stage))


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA])
def test_headers_are_known_from_headers_on(stage: Stage) -> None:
    with pytest.raises(TooEarly, match=r"@policy\.headers on"):
        _ = message(stage=stage).headers
    assert message(stage=Stage.HEADERS).headers["Subject"] == "a test"


@pytest.mark.parametrize("memory", [1 << 20, 10])
@in_loop
async def test_reading_does_not_depend_on_memory(memory: int) -> None:
    body = bytes(range(32, 127)) * 3 + b"\r\n"
    whole = message(body=body, memory=memory)
    assert whole.body == body
    assert b"".join(whole.pieces(7)) == whole.raw == SECTION + b"\r\n" + body
    assert b"".join([piece async for piece in whole.chunks(7)]) == whole.raw
    assert max([len(piece) async for piece in whole.chunks(7)]) == 7
    with whole.open() as file:
        assert file.read(5) == whole.raw[:5]
        assert file.read() == whole.raw[5:]
    whole.release()


@pytest.mark.parametrize(
    ("assigned", "body"),
    [
        (b"", b""),
        (b"a", b"a\r\n"),
        (b"a\nb\rc\r\n", b"a\r\nb\r\nc\r\n"),
        (b".\n", b".\r\n"),
        (bytearray(b"a\n"), b"a\r\n"),
        (memoryview(b"a\n"), b"a\r\n"),
    ],
)
def test_an_assigned_body_has_crlf_line_ends(assigned: bytes, body: bytes) -> None:
    edited = message()
    edited.body = assigned
    assert edited.body == body
    assert edited.raw == SECTION + b"\r\n" + body
    assert edited.size == len(edited.raw)
    assert [str(change) for change in edited.changes] == [f"~ body 17 -> {len(body)} octets"]


def test_what_is_kept_of_a_body_stays_as_it_came() -> None:
    """A bare CR is the sender's: a footer is no reason to change what a signature may cover."""
    old = b"bare\rcr\r\n"
    footed, headed, doubled = message(body=old), message(body=old), message(body=old)
    footed.body = footed.body + b"--\nfooter"
    assert footed.body == old + b"--\r\nfooter\r\n"
    headed.body = b"head\r" + headed.body
    assert headed.body == b"head\r\n" + old
    doubled.body = doubled.body
    assert doubled.body == old


def test_a_new_body_is_there_where_one_was_assigned() -> None:
    edited = message()
    new = [edited.new_body]
    assert edited.body + edited.raw  # whoever reads changes nothing
    edited.headers["Subject"] = "other"
    new.append(edited.new_body)
    for body in (b"a\n", b""):
        edited.body = body
        new.append(edited.new_body)
    edited.release()
    new.append(edited.new_body)
    assert new == [None, None, b"a\r\n", b"", None]


@in_loop
async def test_a_new_body_goes_with_the_handler_that_failed() -> None:
    policy = Policy()

    @policy.message
    async def edits(message: Message) -> None:
        message.body = b"first"

    @policy.message(on_error="continue")
    async def fails(message: Message) -> None:
        message.body = b"second"
        raise ValueError

    conversation = converse(policy)
    edited = await to_headers(conversation)
    assert await conversation.end(content()) is None
    assert edited.new_body == b"first\r\n"


def test_a_body_behind_an_unended_line_ends_as_it_did() -> None:
    headed = message(body=b"old\r\n")
    headed.body = b"no end of line " + headed.body
    assert headed.body == b"no end of line old\r\n"


@pytest.mark.parametrize(
    ("body", "error"),
    [("text", TypeError), (None, TypeError), (b"a\0b", ValueError), (b"x" * 1001, LimitExceeded)],
)
def test_what_is_no_body(body: bytes, error: type[Exception]) -> None:
    edited = message()
    with pytest.raises(error):
        edited.body = body
    assert edited.body == TEXT
    assert not edited.changes


def test_what_stands_between_header_and_body_is_kept() -> None:
    assert message(separator=b"").raw == SECTION + TEXT
    assert message(separator=b"", body=b"").raw == SECTION


def test_a_new_body_never_becomes_header_fields() -> None:
    """The message came without a blank line: its text began where no field could."""
    edited = message(separator=b"")
    edited.body = b"Bcc: x@y\n"
    assert edited.raw == SECTION + b"\r\n" + b"Bcc: x@y\r\n"
    added = message(separator=b"")
    added.headers["X-A"] = "1"
    assert added.raw == SECTION + b"X-A: 1\r\n" + TEXT  # not named by the edit: no blank line


def test_a_text_without_a_header_never_becomes_part_of_a_new_field() -> None:
    """Its first line may begin with a blank, as the rest of a folded field does."""
    bare = message(section=b"", separator=b"", body=b" but not really\r\n")
    assert bare.raw == b" but not really\r\n"
    bare.headers.add("X-Spam-Flag", "YES")
    assert bare.raw == b"X-Spam-Flag: YES\r\n\r\n but not really\r\n"


# -- the stages of edits -------------------------------------------------------------------------

EDITS: dict[str, tuple[Callable[[Message], object], set[Stage]]] = {
    "header": (lambda m: m.headers.add("X", "1"), {Stage.HEADERS, Stage.MESSAGE}),
    "body": (lambda m: setattr(m, "body", b"x"), {Stage.MESSAGE}),
    "sender": (lambda m: m.change_sender("n@b.example"), {*MESSAGE_STAGES}),
    "add": (lambda m: m.add_recipient("n@b.example"), {*MESSAGE_STAGES}),
    "remove": (lambda m: m.remove_recipient("n@b.example"), {*MESSAGE_STAGES}),
}


@pytest.mark.parametrize("stage", sorted(MESSAGE_STAGES))
@pytest.mark.parametrize(("edit", "stages"), EDITS.values(), ids=EDITS)
def test_edits_are_made_in_their_stages(
    edit: Callable[[Message], object], stages: set[Stage], stage: Stage
) -> None:
    edited = message(stage=stage)
    if stage in stages:
        edit(edited)
        assert len(edited.changes) == 1
        return
    with pytest.raises((TooEarly, TooLate)):
        edit(edited)
    assert not edited.changes


def test_headers_are_not_edited_while_the_body_streams() -> None:
    edited = message(stage=Stage.BODY)
    with pytest.raises(TooLate, match=r"in body: .* @policy\.headers and @policy\.message"):
        edited.headers["X"] = "1"


@pytest.mark.parametrize(("edit", "stages"), EDITS.values(), ids=EDITS)
def test_after_its_end_a_message_is_not_edited(
    edit: Callable[[Message], object], stages: set[Stage]
) -> None:
    ended = message()
    ended.outcome = Ending("accepted")
    with pytest.raises(TooLate):
        edit(ended)
    assert not ended.changes


def test_edits_have_a_limit() -> None:
    edited = message()
    for _ in range(MAX_EDITS):
        edited.add_recipient("n@b.example")
    with pytest.raises(LimitExceeded):
        edited.add_recipient("n@b.example")


# -- the envelope --------------------------------------------------------------------------------


def test_the_sender_shows_its_change_at_once() -> None:
    edited = message(sender=Address("a@b.example", {"SIZE": "10"}))
    edited.change_sender("New@B.example")
    assert edited.sender == "New@b.example"
    assert edited.sender.params == {"SIZE": "10"}
    assert edited.original_sender == "a@b.example"
    edited.change_sender("<x@y.example>", {"RET": "HDRS"})
    assert (edited.sender, edited.sender.params) == ("x@y.example", {"RET": "HDRS"})
    assert [str(c) for c in edited.changes] == ["~ sender New@b.example", "~ sender x@y.example"]


@pytest.mark.parametrize("null", ["", "<>"])
def test_the_null_sender(null: str) -> None:
    edited = message()
    edited.change_sender(null)
    assert edited.sender == ""


def test_recipients_show_their_changes_at_once() -> None:
    edited = message()
    edited.add_recipient("b@c.example", {"NOTIFY": "NEVER"})
    edited.add_recipient("b@C.example")
    assert [*edited.recipients] == [RECIPIENT, "b@c.example"]
    assert edited.recipients[1].params == {"NOTIFY": "NEVER"}
    edited.change_recipient(RECIPIENT, "d@e.example")
    assert [*edited.recipients] == ["d@e.example", "b@c.example"]
    edited.remove_recipient("B@c.example")
    edited.remove_recipient("b@c.example")
    assert [*edited.recipients] == ["d@e.example"]
    assert edited.original_recipients == (RECIPIENT,)


def test_a_changed_recipient_keeps_its_parameters() -> None:
    edited = message(stage=Stage.MAIL)
    old = Address("a@b.example", {"NOTIFY": "NEVER"})
    edited.accept_recipient(old, old)
    edited.change_recipient(old, "c@d.example")
    assert edited.recipients[0].params == {"NOTIFY": "NEVER"}


def test_an_envelope_without_known_parameters_can_be_changed() -> None:
    """Nobody but the handler asks for them; without SMTPUTF8 it stays ASCII."""
    edited = message(sender=Address("a@b.example", UNTOLD), stage=Stage.MAIL)
    old = Address("r@b.example", UNTOLD)
    edited.accept_recipient(old, old)
    edited.change_sender("c@d.example")
    edited.change_recipient(old, "s@b.example")
    edited.add_recipient("t@b.example")
    edited.remove_recipient("u@b.example")
    assert edited.sender == "c@d.example"
    assert [*edited.recipients] == ["s@b.example", "t@b.example"]
    assert edited.sender.params is edited.recipients[0].params is UNTOLD
    assert edited.recipients[1].params == {}
    with pytest.raises(ValueError, match="needs SMTPUTF8"):
        edited.add_recipient("ü@b.example")


def test_only_a_recipient_can_be_changed() -> None:
    with pytest.raises(ValueError, match="is not a recipient of this message"):
        message().change_recipient(Address("x@y.example"), "n@b.example")


BAD = ["a", "a@b@c", "a@b.example\r\nRCPT TO:<x@y>", "a b@c.example", "ü@b.example"]


@pytest.mark.parametrize("address", BAD, ids=ascii)
def test_addresses_are_checked_where_they_are_given(address: str) -> None:
    edited = message()
    edits: list[Callable[[], None]] = [
        lambda: edited.change_sender(address),
        lambda: edited.add_recipient(address),
        lambda: edited.change_recipient(RECIPIENT, address),
        lambda: edited.remove_recipient(address),
    ]
    for edit in edits:
        with pytest.raises(ValueError, match=r"is not an address|needs SMTPUTF8"):
            edit()
    assert (edited.sender, edited.recipients) == (SENDER, (RECIPIENT,))


def test_an_smtputf8_message_takes_addresses_that_are_not_ascii() -> None:
    edited = message(sender=Address("a@b.example", {"SMTPUTF8": None}))
    edited.add_recipient("grün@bücher.example")
    assert edited.recipients[-1] == "grün@xn--bcher-kva.example"


def test_parameters_are_checked_where_they_are_given() -> None:
    edited = message()
    with pytest.raises(ValueError, match="not an ESMTP parameter"):
        edited.change_sender("a@b.example", {"SIZE": "1\r\nRSET"})
    with pytest.raises(ValueError, match="not an ESMTP parameter"):
        edited.add_recipient("a@b.example", {"A B": None})


def test_a_recipient_that_the_server_refuses_later_is_dropped() -> None:
    ours = message(stage=Stage.MAIL)
    a, b = Address("a@x.example"), Address("b@x.example")
    for original, accepted in ((a, a), (b, Address("new@x.example"))):
        ours.accept_recipient(original, accepted)
    ours.drop_recipient()
    assert [*ours.recipients] == [*ours.original_recipients] == [a]
    ours.drop_recipient()
    ours.drop_recipient()
    assert [*ours.recipients] == [*ours.original_recipients] == []


def test_what_the_server_made_of_an_address_is_no_edit() -> None:
    ours = message()
    ours.adopt_sender(Address("s@x.example"))
    ours.adopt_recipient(Address("r@x.example"))
    assert [ours.sender, *ours.recipients] == ["s@x.example", "r@x.example"]
    assert not ours.changes


# -- the parsed copy -----------------------------------------------------------------------------

ODD = (
    b"subject:   no  normal   spacing\r\n"
    b"X-Folded: one\r\n\t two\r\n"
    b"To: =?utf-8?q?Ann?= <ann@example.org>,\r\n  b@example.org\r\n"
    b"X-Latin: Gr\xfc\xdfe\r\n"
    b"X-Empty:\r\n"
    b"X-Twice: 1\r\nX-Twice: 1\r\n"
    b"DKIM-Signature: v=1; a=rsa-sha256;\r\n\tb=abc\r\n   def=\r\n"
)


def test_an_unedited_copy_changes_nothing() -> None:
    ours = message(ODD, b"no\r\n\r\nfinal blank lines\r\n\r\n")
    before = ours.raw
    ours.replace(ours.parse())
    assert ours.raw == before
    assert not ours.changes


def test_only_edited_fields_are_written_anew() -> None:
    ours = message(ODD)
    mail = ours.parse()
    del mail["X-Empty"]
    mail.replace_header("X-Folded", "changed")
    mail["X-New"] = "Grüße"
    ours.replace(mail)
    *others, new = (field.raw for field in ours.headers.fields)
    assert b"".join(others) == (
        ODD.replace(b"X-Empty:\r\n", b"").replace(b"one\r\n\t two", b"changed")
    )
    assert new.startswith(b"X-New: =?utf-8?")
    assert ours.headers["X-New"] == "Grüße"
    assert ours.body == TEXT


def test_an_edited_text_is_the_new_body() -> None:
    ours = message(b"Subject: x\r\n", b"before\r\n")
    mail = ours.parse()
    mail.set_content("after\n")
    ours.replace(mail)
    assert ours.body == b"after\r\n"
    assert ours.headers.get_all("Subject") == ["x"]
    assert ours.headers.fields[0].raw == b"Subject: x\r\n"


def test_an_edited_part_leaves_the_header_alone() -> None:
    section = b"Subject:  kept\r\nContent-Type: multipart/mixed; boundary=b\r\n"
    body = b"--b\r\nContent-Type: text/plain\r\n\r\nbefore\r\n--b--\r\n"
    ours = message(section, body)
    mail = ours.parse()
    (part,) = mail.iter_parts()
    part.set_payload("after")
    ours.replace(mail)
    assert bytes(ours.headers) == section
    assert ours.body == body.replace(b"before", b"after")


def test_edits_and_copies_build_on_each_other() -> None:
    ours = message()
    ours.body = b"edited\n"
    ours.headers["X-A"] = "1"
    mail = ours.parse()
    assert mail["X-A"] == "1"
    assert mail.get_payload() == "edited\r\n"
    mail["X-B"] = "2"
    ours.replace(mail)
    assert ours.raw.endswith(b"X-A: 1\r\nX-B: 2\r\n\r\nedited\r\n")


def test_a_copy_is_made_anew_each_time() -> None:
    ours = message()
    ours.parse()["X-A"] = "1"
    assert "X-A" not in ours.parse()


FIELDS = st.lists(
    st.sampled_from([b"A: b\r\n", b"a:\r\n", b"To: <\r\n", b"X: \xff\r\n c\r\n", b"Y : (\r\n"])
    | st.binary(max_size=20).map(lambda v: b"Z: " + v.replace(b"\r\n", b"") + b"\r\n"),
    max_size=8,
).map(b"".join)


@given(FIELDS, st.binary(max_size=80).map(lambda octets: octets + b"\r\n"))
def test_whatever_is_given_back_unedited_stays(section: bytes, body: bytes) -> None:
    ours = message(section, body)
    ours.replace(ours.parse())
    assert not ours.changes
    assert ours.raw == section + b"\r\n" + body


# -- handlers and their rights -------------------------------------------------------------------

ACTIONS: dict[Capability, Callable[[Message], object]] = {
    "change_sender": lambda m: m.change_sender("n@b.example"),
    "add_recipient": lambda m: m.add_recipient("n@b.example"),
    "remove_recipient": lambda m: m.remove_recipient(RECIPIENT),
    "change_recipient": lambda m: m.change_recipient(RECIPIENT, "n@b.example"),
}


@pytest.mark.parametrize(("capability", "act"), ACTIONS.items(), ids=ACTIONS)
def test_an_action_is_declared_or_it_is_a_bug(
    capability: Capability, act: Callable[[Message], object]
) -> None:
    undeclared, needed, wanted = Policy(), Policy(), Policy()

    async def rewrite(message: Message) -> None:
        act(message)

    undeclared.message(rewrite)
    with pytest.raises(Undeclared, match=rf"needs=\{{'{capability}'\}} on 'rewrite'"):
        send(undeclared)
    needed.message(needs={capability})(rewrite)
    wanted.message(wants={capability})(rewrite)
    for policy in (needed, wanted):
        outcome = send(policy)
        assert outcome.accepted
        assert len(outcome.changes) == 1


def test_what_is_wanted_can_be_asked_for_first() -> None:
    """OpenSMTPD can change the sender in its own phase only (smtpd-filters(7))."""
    asked: list[bool] = []
    policy = Policy()

    @policy.message(wants={"change_sender"})
    async def late(message: Message) -> None:
        asked.append(message.can("change_sender"))
        message.change_sender("n@b.example")

    with pytest.raises(Unsupported, match=r"not possible in message.*message\.can"):
        send(policy, adapter="opensmtpd")
    assert send(policy).accepted
    assert asked == [False, True]


def test_outside_handlers_everything_is_allowed() -> None:
    """So a test may call a handler's function itself."""
    assert message().can("add_recipient")


@in_loop
async def test_a_message_of_another_client_is_not_edited() -> None:
    kept: list[Message] = []
    policy = Policy()

    @policy.mail(needs={"add_recipient"})
    async def wrong(message: Message) -> None:
        kept.append(message)
        kept[0].add_recipient("x@y.example")

    first, second = converse(policy, strict=True), converse(policy, strict=True)
    assert await first.mail(SENDER) is None
    with pytest.raises(TooLate, match="not asked about"):
        await second.mail(SENDER)
    assert len(kept[0].changes) == 1
    assert not kept[1].changes


def test_a_released_message_is_gone_when_nobody_holds_it() -> None:
    """Garbage that only the collector finds is a cost for every message."""

    class Holder:
        pass

    ours, held = message(), Holder()
    ours.state["held"], gone = held, weakref.ref(held)
    gc.disable()
    try:
        ours.release()
        del ours, held
        assert gone() is None
    finally:
        gc.enable()


def test_a_released_message_takes_no_edit() -> None:
    ours = message()
    ours.release()
    with pytest.raises(TooLate):
        ours.headers.add("X-Late", "1")
    with pytest.raises(TooLate):
        ours.headers["Subject"] = "late"
    assert ours.headers["Subject"] == "a test"
    assert "X-Late" not in ours.headers


def test_a_released_message_keeps_its_envelope_and_fields() -> None:
    ours = message()
    ours.release()
    assert ours.headers["Subject"] == "a test"
    assert ours.recipients == (RECIPIENT,)
    with pytest.raises(TooEarly):
        _ = ours.body
