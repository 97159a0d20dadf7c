"""The edit compiler: what both MTAs make of its packets is what the policy made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.address import Address
from mailgate.headers import Field, Headers, Section, parse_fields
from mailgate_milter.edits import (
    body_edits,
    header_edits,
    recipient_edits,
    sender_edits,
)
from mailgate_milter.fields import OWN_TRACE
from mailgate_milter.wire import MAX_DATA, Decoder, Packet, Response, parse_indexed
from tests.milter.queued import Envelope, PostfixQueued, Queued, SendmailQueued

TRACE = b"Received: from client.example\n\tby mx.example; Sat, 21 Nov 2026 10:00:00 +0000"
SECTION = (
    b"From: ann@client.example\r\n"
    b"X-Tag: one\r\n"
    b"To: bob@example.org\r\n"
    b"x-tag: two\r\n"
    b"Subject: folded\r\n over two lines\r\n"
    b"X-Tag: three\r\n"
)


def postfix(fields: Sequence[bytes]) -> Queued:
    return PostfixQueued(Envelope(b"<>"), TRACE, fields, b"")


def sendmail(fields: Sequence[bytes]) -> Queued:
    return SendmailQueued(Envelope(b"<>"), TRACE, fields, b"", {})


MTAS = {"postfix": postfix, "sendmail": sendmail}


def packets(parts: Sequence[bytes]) -> list[Packet]:
    decoder = Decoder(Response)
    found = decoder.receive_data(b"".join(parts))
    assert decoder.error is None
    return found


def apply(queued: Queued, parts: Sequence[bytes], space: bytes) -> None:
    for code, data in packets(parts):
        index, name, value = parse_indexed(data)
        if code == Response.INSHEADER:
            queued.insert_header(index, name, space + value)
        else:
            assert code == Response.CHGHEADER
            queued.change_header(index, name, space + value if value else None)


def section(fields: Sequence[Field]) -> bytes:
    """Return what is to be delivered, the MTA's own field where its stand-in is."""
    trace = TRACE.replace(b"\n", b"\r\n") + b"\r\n"
    return b"".join(trace if field.trace else field.raw for field in fields)


def check(
    before: Sequence[Field],
    after: Sequence[Field],
    make: Callable[[Sequence[bytes]], Queued],
    leading_space: bool,
) -> None:
    """Have an MTA make one section out of the other."""
    came = [field.raw.removesuffix(b"\r\n").replace(b"\r\n", b"\n") for field in before[1:]]
    queued = make(came)
    parts = list(header_edits(tuple(before), tuple(after), leading_space=leading_space))
    apply(queued, parts, b"" if leading_space else b" ")
    assert queued.raw == section(after) + b"\r\n"


# -- header fields -------------------------------------------------------------------------------


def edit(headers: Headers, step: tuple[str, str, str]) -> None:
    what, name, value = step
    if what == "add":
        headers.add(name, value)
    elif what == "prepend":
        headers.prepend(name, value)
    elif what == "set":
        headers[name] = value
    else:
        del headers[name]


NAMES = ("From", "X-Tag", "x-tag", "To", "Subject", "X-New", "X-Newer")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "prepend", "set", "delete"]),
        st.sampled_from(NAMES),
        st.sampled_from(["v", "", "two words"]),
    ),
    max_size=8,
)


@pytest.mark.parametrize("make", MTAS.values(), ids=MTAS)
@given(steps=STEPS, leading_space=st.booleans())
def test_any_edits_of_a_policy(
    make: Callable[[Sequence[bytes]], Queued],
    steps: list[tuple[str, str, str]],
    leading_space: bool,
) -> None:
    before = (OWN_TRACE, *parse_fields(SECTION))
    headers = Headers(Section.of(before), lambda sign, text, apply: apply())
    for what, name, value in steps:
        edit(headers, (what, name, value if leading_space else value or "v"))
    check(before, headers.fields, make, leading_space)


FIELDS = st.lists(
    st.tuples(st.sampled_from(["A", "a", "B", "C"]), st.sampled_from(["1", "2", "3"])), max_size=6
)


def made(pairs: Sequence[tuple[str, str]]) -> list[Field]:
    return [Field(f"{n}: {v}\r\n".encode(), n.lower().encode()) for n, v in pairs]


@pytest.mark.parametrize("make", MTAS.values(), ids=MTAS)
@given(data=st.data())
def test_any_section_out_of_any_other(
    make: Callable[[Sequence[bytes]], Queued], data: st.DataObject
) -> None:
    """As `message.replace` may want it: fields kept, moved, gone and new, in any order."""
    before = made(data.draw(FIELDS))
    kept = data.draw(st.permutations(before))[: data.draw(st.integers(0, len(before)))]
    after = data.draw(st.permutations([*kept, *made(data.draw(FIELDS))]))
    at = data.draw(st.integers(0, len(after)))
    new = after[:at]
    if any(field in before for field in new):
        at = 0  # no edit puts a field that came above the MTA's own
    check([OWN_TRACE, *before], [*after[:at], OWN_TRACE, *after[at:]], make, True)


def test_changes_go_first_and_deletions_from_the_last_one_up() -> None:
    """Postfix numbers anew after a deletion, Sendmail does not."""
    before = (OWN_TRACE, *parse_fields(SECTION))
    headers = Headers(Section.of(before), lambda sign, text, apply: apply())
    headers["X-Tag"] = "changed"
    headers.prepend("X-Top", "1")
    found = [
        (Response(code), *parse_indexed(data))
        for code, data in packets(list(header_edits(before, headers.fields, leading_space=False)))
    ]
    assert found == [
        (Response.CHGHEADER, 1, b"X-Tag", b"changed"),
        (Response.CHGHEADER, 3, b"X-Tag", b""),
        (Response.CHGHEADER, 2, b"x-tag", b""),
        (Response.INSHEADER, 0, b"X-Top", b"1"),
    ]


def test_an_empty_value_does_not_delete_where_the_mta_takes_no_space() -> None:
    before = (OWN_TRACE, *parse_fields(SECTION))
    headers = Headers(Section.of(before), lambda sign, text, apply: apply())
    headers["Subject"] = ""
    (packet,) = packets(list(header_edits(before, headers.fields, leading_space=False)))
    assert parse_indexed(packet[1]) == (1, b"Subject", b" ")


def test_what_did_not_change_costs_nothing() -> None:
    before = (OWN_TRACE, *parse_fields(SECTION))
    assert list(header_edits(before, before, leading_space=True)) == []


def test_a_field_that_no_packet_carries_is_an_error() -> None:
    before = (OWN_TRACE,)
    long = Field(b"X: " + b"x" * MAX_DATA + b"\r\n", b"x")
    with pytest.raises(ValueError, match="over 65535"):
        list(header_edits(before, (*before, long), leading_space=True))


# -- the envelope --------------------------------------------------------------------------------


def test_the_sender_that_is_there_is_not_sent() -> None:
    ann = Address("ann@client.example", {"RET": "FULL"})
    assert list(sender_edits(ann, ann)) == []


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ({}, {}, b"<new@example.org>\0"),
        ({"SIZE": "10"}, {"SIZE": "10"}, b"<new@example.org>\0"),
        ({}, {"ENVID": "x", "RET": "FULL"}, b"<new@example.org>\0ENVID=x RET=FULL\0"),
        # Sendmail forgets the other one of DSN where one is named.
        (
            {"ENVID": "x", "RET": "HDRS", "SIZE": "10"},
            {"ENVID": "x", "RET": "FULL", "SIZE": "10"},
            b"<new@example.org>\0ENVID=x RET=FULL\0",
        ),
    ],
)
def test_a_new_sender(
    before: dict[str, str | None], after: dict[str, str | None], wanted: bytes
) -> None:
    old, new = Address("ann@client.example", before), Address("new@example.org", after)
    assert packets(list(sender_edits(old, new))) == [(Response.CHGFROM, wanted)]


def test_the_null_sender() -> None:
    assert packets(list(sender_edits(Address("ann@client.example"), Address("")))) == [
        (Response.CHGFROM, b"<>\0")
    ]


def test_a_recipient_goes_as_the_client_spelled_it_and_before_others_come() -> None:
    bob, carol, dora = Address("Bob@EXAMPLE.org"), Address("carol@x.test"), Address("dora@x.test")
    found = recipient_edits(
        (bob, carol),
        (carol, dora),
        {"Bob@example.org": [b"Bob@EXAMPLE.org"], "carol@x.test": [b"carol@x.test"]},
        with_arguments=True,
    )
    assert packets(list(found)) == [
        (Response.DELRCPT, b"<Bob@EXAMPLE.org>\0"),
        (Response.ADDRCPT, b"<dora@x.test>\0"),
    ]


def test_a_recipient_that_was_given_twice_is_removed_in_each_spelling() -> None:
    bob = Address("bob@example.org")
    paths = {"bob@example.org": [b"bob@example.org", b"bob@EXAMPLE.ORG", b"bob@example.org"]}
    found = recipient_edits((bob, bob, bob), (), paths, with_arguments=True)
    assert packets(list(found)) == [
        (Response.DELRCPT, b"<bob@example.org>\0"),
        (Response.DELRCPT, b"<bob@EXAMPLE.ORG>\0"),
    ]


@pytest.mark.parametrize(
    ("with_arguments", "wanted"),
    [
        (True, (Response.ADDRCPT_PAR, b"<dora@x.test>\0NOTIFY=NEVER\0")),
        (False, (Response.ADDRCPT, b"<dora@x.test>\0")),
    ],
)
def test_parameters_of_a_recipient_where_the_mta_takes_them(
    with_arguments: bool, wanted: Packet
) -> None:
    dora = Address("dora@x.test", {"NOTIFY": "NEVER"})
    found = recipient_edits((), (dora,), {}, with_arguments=with_arguments)
    assert packets(list(found)) == [wanted]


# -- the body ------------------------------------------------------------------------------------


@given(st.integers(0, 3 * MAX_DATA))
def test_a_body_is_one_run_of_pieces(size: int) -> None:
    body = bytes(size)
    found = packets(list(body_edits(body)))
    assert {code for code, _ in found} == {Response.REPLBODY}
    assert b"".join(data for _, data in found) == body
    assert all(len(data) == MAX_DATA for _, data in found[:-1])


def test_an_empty_body_is_one_empty_piece_and_none_is_no_packet() -> None:
    assert packets(list(body_edits(b""))) == [(Response.REPLBODY, b"")]
    assert list(body_edits(None)) == []
