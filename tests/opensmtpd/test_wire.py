"""The codec line by line: what smtpd writes, however it is cut, and what may be answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailgate_opensmtpd import wire
from mailgate_opensmtpd.wire import DataLines, Decoder, Event, Ignored, Report, Request
from tests.opensmtpd.samples import HANDSHAKE, OTHER, SAMPLES, S, T, asked, question, report


def decoded(pieces: Sequence[bytes]) -> list[Event]:
    decoder = Decoder()
    return [event for piece in pieces for event in decoder.receive_data(piece)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


# -- what smtpd writes ---------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "event"), SAMPLES, ids=lambda value: ascii(value)[:60])
def test_a_line_is_read_whatever_its_pieces(line: bytes, event: Event) -> None:
    following, next_event = HANDSHAKE[0]
    assert decoded([line]) == [event]
    if len(line) < 1000:
        assert decoded(bytewise(line)) == [event]
    assert decoded([line[:-1], line[-1:]]) == [event]
    assert decoded([line + following]) == [event, next_event]
    assert decoded([line[:-1]]) == []


def test_all_of_them_at_once() -> None:
    data = b"".join(line for line, _ in SAMPLES)
    assert in_order(decoded([data])) == in_order([event for _, event in SAMPLES])


def test_what_is_kept_of_a_strange_line_is_bounded() -> None:
    (event,) = decoded([b"x" * 1000 + b"\n"])
    assert event == Ignored("unknown kind of line", b"x" * 256)


def test_any_number_of_versions_is_read() -> None:
    data = b"".join(question(b"data", version=b"0.%d" % minor) for minor in range(200))
    versions = [event.version for event in decoded([data, data]) if isinstance(event, Request)]
    assert versions == [(0, minor) for minor in range(200)] * 2
    data = b"".join(question(b"data", version=b"x%d" % number) for number in range(200))
    assert {e.faulty for e in decoded([data]) if isinstance(e, Request)} == {
        "unknown protocol version"
    }


# -- message lines -------------------------------------------------------------------------------


def lines(*texts: bytes, **ids: bytes) -> bytes:
    return b"".join(question(b"data-line", text, **ids) for text in texts)


def test_message_lines_are_gathered() -> None:
    assert decoded([lines(b"a", b"b"), lines(b"c", b".")]) == [
        DataLines((0, 7), S, T, [b"a", b"b"]),
        DataLines((0, 7), S, T, [b"c", b"."]),
    ]


def test_message_lines_of_several_sessions_are_gathered_by_session() -> None:
    data = lines(b"a") + lines(b"x", session=OTHER) + lines(b"b") + lines(b"y", session=OTHER)
    assert decoded([data]) == [
        DataLines((0, 7), S, T, [b"a", b"b"]),
        DataLines((0, 7), OTHER, T, [b"x", b"y"]),
    ]


def test_message_lines_for_two_filters_of_a_chain_are_two_streams() -> None:
    second = b"2ef1c203cc576e5d"
    data = lines(b"a") + lines(b"A", token=second) + lines(b"b") + lines(b"B", token=second)
    assert decoded([data]) == [
        DataLines((0, 7), S, T, [b"a", b"b"]),
        DataLines((0, 7), S, second, [b"A", b"B"]),
    ]


@pytest.mark.parametrize("between", [report(b"tx-data", b"1|ok"), question(b"commit")])
def test_another_event_of_the_session_stays_in_its_place(between: bytes) -> None:
    first, middle, last = decoded([lines(b"a", b"b") + between + lines(b"c", b"d")])
    assert first == DataLines((0, 7), S, T, [b"a", b"b"])
    assert isinstance(middle, (Report, Request))
    assert last == DataLines((0, 7), S, T, [b"c", b"d"])


def test_events_of_other_sessions_do_not_divide_message_lines() -> None:
    between = report(b"timeout", session=OTHER) + b"config|ready\n"
    events = decoded([lines(b"a") + between + lines(b"b")])
    assert DataLines((0, 7), S, T, [b"a", b"b"]) in events
    assert len(events) == 3


@pytest.mark.parametrize(
    "ids",
    [
        {"session": b"a", "token": b"b"},
        {"session": b"a" * 17},
        {"version": b"0.10"},
        {"version": b"0.4"},
    ],
)
def test_message_lines_in_another_layout_are_gathered_too(ids: dict[str, bytes]) -> None:
    (event,) = decoded([lines(b"a", b"b|", b"", **ids)])
    assert isinstance(event, DataLines)
    assert event.lines == [b"a", b"b|", b""]
    assert event.session == ids.get("session", S)


def test_the_version_may_change_in_between() -> None:
    """Nobody does that; each line is read by its own all the same."""
    data = lines(b"a", version=b"0.6") + lines(b"x", session=OTHER) + lines(b"b", version=b"0.6")
    events = decoded([data])
    assert [e.lines for e in events if isinstance(e, DataLines)] == [[b"a", b"b"], [b"x"]]


def test_a_message_line_for_a_token_that_is_no_number_cannot_be_answered() -> None:
    events = decoded([lines(b"a", b"b", token=b"x" * 16)])
    assert [e.faulty for e in events if isinstance(e, Request)] == [
        "a token that is no number"
    ] * 2


# -- pieces --------------------------------------------------------------------------------------


def in_order(events: Sequence[Event]) -> dict[bytes, list[object]]:
    """Return the events of each session in order, message lines as one stream a token.

    Only this order is promised: lines of different sessions may change places.
    """
    found: dict[bytes, list[object]] = {}
    for event in events:
        session = event.session if isinstance(event, (Report, Request, DataLines)) else b""
        sequence = found.setdefault(session, [])
        if not isinstance(event, DataLines):
            sequence.append(event)
            continue
        if not sequence or not isinstance(sequence[-1], dict):
            sequence.append({})
        streams = sequence[-1]
        assert isinstance(streams, dict)
        streams.setdefault(event.token, []).extend(event.lines)
    return found


SESSIONS = st.sampled_from([S, OTHER, b"ab"])
TOKENS = st.sampled_from([T, b"2ef1c203cc576e5d", b"cd"])
TEXTS = st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"|"))
OTHER_LINES = st.one_of(
    st.builds(
        lambda text, session: question(b"mail-from", text, session=session), TEXTS, SESSIONS
    ),
    st.builds(lambda text, session: report(b"tx-begin", text, session=session), TEXTS, SESSIONS),
    TEXTS.map(lambda text: text + b"\n"),
    st.sampled_from([line for line, _ in SAMPLES if len(line) < 200 and b"data-line" not in line]),
)


def streams(version: bytes) -> st.SearchStrategy[bytes]:
    """Return what one smtpd may write: it does not change its version."""
    message_lines = st.builds(
        lambda text, session, token: question(
            b"data-line", text, version=version, session=session, token=token
        ),
        TEXTS,
        SESSIONS,
        TOKENS,
    )
    return st.lists(message_lines | OTHER_LINES, max_size=12).map(b"".join)


@settings(deadline=None)
@given(
    st.sampled_from([b"0.7", b"0.7", b"0.6", b"0.4", b"0.10", b"1.0"]).flatmap(streams),
    st.lists(st.integers(1, 100), max_size=60),
)
@example(lines(b"a", b"b", b"c") * 3, [1] * 60)
@example(b"\n\n\n", [1, 1])
def test_pieces_do_not_matter(data: bytes, sizes: list[int]) -> None:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    assert in_order(decoded([*pieces, data[at:]])) == in_order(decoded([data]))


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b"|", b"\n", b"filter", S, T])).map(b"".join)
)
def test_no_octets_raise(data: bytes) -> None:
    assert len(decoded([data])) <= data.count(b"\n")


LONG = wire.MAX_INPUT_LINE + 1000


def test_many_lines_are_not_one_long_line() -> None:
    text = b"z" * 1000
    (event,) = decoded([lines(*[text] * (2 * wire.MAX_INPUT_LINE // 1000))])
    assert isinstance(event, DataLines)
    assert set(event.lines) == {text}


@pytest.mark.parametrize("size", [1000, wire.MAX_INPUT_LINE, LONG + 10, 1 << 20])
@pytest.mark.parametrize("text", [b"x" * LONG, lines(b"y" * LONG)[:-1]], ids=["none", "data-line"])
def test_a_line_that_does_not_end_is_read_alike(text: bytes, size: int) -> None:
    """smtpd's longest is below 66,000 octets; what comes after it is read again."""
    data = text + b"\n" + HANDSHAKE[0][0]
    first, last = decoded([data[at : at + size] for at in range(0, len(data), size)])
    assert last == HANDSHAKE[0][1]
    alike = first == decoded([data])[0]
    assert alike


def test_many_lines_in_one_read_are_read_whole() -> None:
    prefix = len(lines(b"")) - 1
    longest = b"x" * (wire.MAX_INPUT_LINE - prefix)
    texts = [b"y" * 1000] * 300 + [longest] + [b"z" * 1000] * 300
    (event,) = decoded([lines(*texts)])
    assert isinstance(event, DataLines)
    whole = event.lines == texts
    assert whole


# -- what may be answered ------------------------------------------------------------------------

MAIL = asked("mail-from", b"a@b.example")
OLD = asked("mail-from", b"a@b.example", (0, 4))
START = b"filter-result|%b|%b|" % (S, T)


def test_proceed() -> None:
    assert wire.proceed(MAIL) == START + b"proceed\n"


@pytest.mark.parametrize("minor", [4, 5, 6, 7, 8])
def test_until_protocol_0_4_the_token_comes_first(minor: int) -> None:
    first, second = (T, S) if minor <= 4 else (S, T)
    version = (0, minor)
    assert wire.proceed(asked("data", b"", version)) == (
        b"filter-result|%b|%b|proceed\n" % (first, second)
    )
    assert wire.data_lines(version, S, T, [b"x"]) == b"filter-dataline|%b|%b|x\n" % (first, second)
    assert wire.data_end(version, S, T) == b"filter-dataline|%b|%b|.\n" % (first, second)


def test_refusals() -> None:
    reply = b"550 5.7.1 a|b \xc3\xa9"
    assert wire.refuse(MAIL, reply) == START + b"reject|" + reply + b"\n"
    assert wire.refuse(MAIL, reply, disconnect=True) == START + b"disconnect|" + reply + b"\n"
    assert wire.refuse(OLD, b"421 x") == b"filter-result|%b|%b|reject|421 x\n" % (T, S)


@pytest.mark.parametrize(
    "reply",
    [
        *(b"", b"550", b"550 ", b"550-x", b"go away", b"250 ok", b"354 go", b"5501 x", b" 550 x"),
        *(b"550 a\n550 b", b"550 a\n", b"550 a\r", b"550 a\rb", b"550 a\0", b"550\tx", b"650 x"),
        *(b"550 " + b"x" * 507, "\u0665\u0665\u0660 x".encode()),
    ],
)
@pytest.mark.parametrize("disconnect", [False, True])
def test_what_is_no_refusal(reply: bytes, disconnect: bool) -> None:
    """smtpd answers 421 for some of these, and ends for others."""
    with pytest.raises(ValueError, match="not a reply that refuses"):
        wire.refuse(MAIL, reply, disconnect=disconnect)


def test_the_longest_refusal() -> None:
    """RFC 5321 4.5.3.1.5: 512 octets with CRLF."""
    assert wire.refuse(MAIL, b"550 " + b"x" * 506)


@pytest.mark.parametrize(
    ("phase", "parameter"),
    [
        *(("helo", b"new.example"), ("ehlo", b"[192.0.2.1]")),
        *(("mail-from", b"<>"), ("mail-from", b"<n@example.net>")),
        ("mail-from", b"<n@example.net> SIZE=10 BODY=8BITMIME SMTPUTF8"),
        *(("rcpt-to", b"<a|b@c>"), ("rcpt-to", b"<\xc3\xbc@x.example> NOTIFY=NEVER")),
        ("rcpt-to", b'<"a b"@x.example> ORCPT=rfc822;a+40b'),
    ],
)
def test_rewrites(phase: str, parameter: bytes) -> None:
    assert wire.rewrite(asked(phase), parameter) == START + b"rewrite|" + parameter + b"\n"


@pytest.mark.parametrize(
    ("phase", "parameter"),
    [
        *(("ehlo", bad) for bad in (b"", b"a b", b"a\n", b"a\r", b"\xff", b"a\0")),
        *(("mail-from", bad) for bad in (b"", b"n@example.net", b"<a> <b>", b"<a>,<b>", b"<a>b")),
        *(("mail-from", bad) for bad in (b"<a\n>", b"<a\r>", b"<a\0>", b"<a> X=\n", b"<<a>>")),
        *(("mail-from", bad) for bad in (b"<a>\n", b"<a> =1", b"<a> X=", b"<a>  X", b"<a> X=<b>")),
    ],
)
def test_what_is_no_argument(phase: str, parameter: bytes) -> None:
    with pytest.raises(ValueError, match="not an argument for"):
        wire.rewrite(asked(phase), parameter)


@pytest.mark.parametrize("phase", ["connect", "starttls", "auth", "data", "commit", "noop"])
def test_what_cannot_be_rewritten(phase: str) -> None:
    with pytest.raises(ValueError, match="nothing to rewrite in"):
        wire.rewrite(asked(phase), b"<x@y>")


DECISIONS: dict[str, Callable[[Request], bytes]] = {
    "proceed": wire.proceed,
    "refuse": lambda request: wire.refuse(request, b"550 no"),
    "disconnect": lambda request: wire.refuse(request, b"550 no", disconnect=True),
}


@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
def test_a_decision_in_the_data_phase_ends_smtpd(decide: Callable[[Request], bytes]) -> None:
    with pytest.raises(ValueError, match="ends smtpd"):
        decide(asked("data-line", b"x"))


@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
@pytest.mark.parametrize(
    ("session", "token"),
    [(b"", T), (S, b""), (b"a|b", T), (S, b"a\n"), (b"a" * 65, T), (b"\xff", T)],
)
def test_an_answer_belongs_to_a_question(
    decide: Callable[[Request], bytes], session: bytes, token: bytes
) -> None:
    with pytest.raises(ValueError, match="that no question had"):
        decide(Request((0, 7), "data", session, token, b""))
    with pytest.raises(ValueError, match="that no question had"):
        wire.data_end((0, 7), session, token)
    with pytest.raises(ValueError, match="that no question had"):
        wire.data_lines((0, 7), session, token, [b"x"])


def test_message_lines() -> None:
    start = b"filter-dataline|%b|%b|" % (S, T)
    texts = [b"", b"a|b", b"..stuffed", b"\r", b"\xff\x85"]
    assert wire.data_lines((0, 7), S, T, texts) == b"".join(start + t + b"\n" for t in texts)
    assert wire.data_lines((0, 7), S, T, []) == b""
    assert wire.data_end((0, 7), S, T) == start + b".\n"


@pytest.mark.parametrize("bad", [b".", b"a\nb", b"\n", b"a\0b"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_message_lines_that_end_the_message_or_smtpd(bad: bytes, place: int) -> None:
    texts = [b"x", b"y"]
    texts.insert(place, bad)
    with pytest.raises(ValueError, match="message line"):
        wire.data_lines((0, 7), S, T, texts)


@pytest.mark.parametrize(("version", "limit"), [((0, 4), 2047), ((0, 6), 2047), ((0, 7), 65_535)])
def test_what_smtpd_takes_whole(version: wire.Version, limit: int) -> None:
    """It cuts silently above the one, and serves nobody any more above the other."""
    assert wire.line_limit(version) == limit
    room = limit - len(b"filter-dataline|%b|%b|" % (S, T))
    assert wire.data_lines(version, S, T, [b"x" * room]).count(b"x") == room
    with pytest.raises(wire.LineTooLong) as caught:
        wire.data_lines(version, S, T, [b"short", b"x" * (room + 1)])
    assert isinstance(caught.value, ValueError)
    room = limit - len(START + b"rewrite|<>")
    request = asked("mail-from", b"", version)
    assert wire.rewrite(request, b"<%b>" % (b"x" * room))
    with pytest.raises(wire.LineTooLong):
        wire.rewrite(request, b"<%b>" % (b"x" * (room + 1)))


@settings(deadline=None)
@given(
    st.sampled_from([(0, 4), (0, 6), (0, 7)]),
    st.lists(st.binary(max_size=30) | st.sampled_from([b".", b"a\n", b"\0"]), max_size=6),
)
def test_message_lines_come_back_as_they_were_or_not_at_all(
    version: wire.Version, texts: list[bytes]
) -> None:
    try:
        written = wire.data_lines(version, S, T, texts)
    except ValueError:
        assert any(text == b"." or b"\n" in text or b"\0" in text for text in texts)
        return
    assert [line.split(b"|", 3)[3] for line in written.split(b"\n")[:-1]] == texts


def crlf(*texts: bytes) -> bytes:
    return b"".join(text + b"\r\n" for text in texts)


def test_a_text_is_answered_like_its_lines() -> None:
    texts = [b"", b"a|b", b"..stuffed", b"inside\rout", b"end\r", b"\xff\x85", b".x"]
    assert wire.data_text((0, 7), S, T, crlf(*texts)) == wire.data_lines((0, 7), S, T, texts)
    assert wire.data_text((0, 7), S, T, b"") == b""


@pytest.mark.parametrize(
    "text",
    [
        *(b"a", b"a\r\nb", b"a\r", b"a\n", b".\r\n", b"a\r\n.\r\n", b".\r\nb\r\n", b"a\nb\r\n"),
        *(b"a\r\n\nb\r\n", b"a\0b\r\n", b"\0\r\n", b"\n.\n\r\n"),
    ],
)
def test_what_is_no_text_of_lines(text: bytes) -> None:
    with pytest.raises(ValueError, match="line"):
        wire.data_text((0, 7), S, T, text)


@pytest.mark.parametrize("version", [(0, 4), (0, 6), (0, 7)])
@pytest.mark.parametrize(("before", "after"), [([], []), ([b"x"] * 3, [b"y"])])
def test_the_longest_line_of_a_text(
    version: wire.Version, before: list[bytes], after: list[bytes]
) -> None:
    room = wire.line_limit(version) - len(b"filter-dataline|%b|%b|" % (S, T))
    texts = [*before, b"x" * room, *after]
    written = wire.data_text(version, S, T, crlf(*texts))
    assert written == wire.data_lines(version, S, T, texts)
    with pytest.raises(wire.LineTooLong):
        wire.data_text(version, S, T, crlf(*before, b"x" * (room + 1), *after))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"a", b"\0"]), max_size=9).map(b"".join)
)
def test_a_text_is_refused_where_its_lines_are(text: bytes) -> None:
    try:
        written = wire.data_text((0, 7), S, T, text)
    except ValueError:
        texts = text.split(b"\r\n")
        good = texts.pop() == b""
        assert not good or any(t == b"." or b"\n" in t or b"\0" in t for t in texts)
    else:
        assert written == wire.data_lines((0, 7), S, T, text.split(b"\r\n")[:-1])


# -- what may be registered ----------------------------------------------------------------------


def test_registrations() -> None:
    assert wire.register("report", "smtp-in", "link-connect") == (
        b"register|report|smtp-in|link-connect\n"
    )
    assert (
        wire.register("filter", "smtp-in", "data-line") == b"register|filter|smtp-in|data-line\n"
    )
    assert wire.register("report", "smtp-out", "tx-mail") == b"register|report|smtp-out|tx-mail\n"
    assert wire.READY == b"register|ready\n"


@pytest.mark.parametrize(
    ("kind", "direction", "name"),
    [
        *(
            ("filter", "smtp-in", name)
            for name in ("", "*", "foo", "help", "wiz", "DATA", "data\n")
        ),
        *(("report", "smtp-in", name) for name in ("*", "foo", "connect", "TX-MAIL")),
        ("FILTER", "smtp-in", "data"),
        ("filter", "smtp-both", "data"),
        ("filter", "smtp-out", "data"),
        *(("report", "smtp-out", n) for n in ("filter-report", "filter-response", "link-auth")),
    ],
)
def test_what_smtpd_dies_of(kind: str, direction: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"no such registration|smtp-out does not know"):
        wire.register(kind, direction, name)


def test_the_manuals_phases_and_reports() -> None:
    """smtpd-filters(7)."""
    assert set(wire.PHASES) == {
        *("connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data"),
        *("data-line", "commit", "rset", "quit", "noop"),
    }
    assert set(wire.EVENTS) >= {
        *("link-connect", "link-greeting", "link-identify", "link-tls", "link-auth"),
        *("link-disconnect", "tx-begin", "tx-mail", "tx-rcpt", "tx-envelope", "tx-data"),
        *("tx-commit", "tx-rollback", "tx-reset", "protocol-client", "protocol-server"),
        *("filter-report", "filter-response", "timeout"),
    }
