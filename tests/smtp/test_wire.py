"""The codec octet by octet: replies, commands, paths and parameters, however they are cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailgate_smtp import wire
from mailgate_smtp.wire import (
    MAX_COMMAND,
    MAX_REPLY,
    TOO_LONG,
    CommandError,
    Lines,
    Path,
    Reply,
    ReplyDecoder,
    WireError,
    parse_command,
    parse_path,
)
from tests.hostile.cases import Case, Send, expand, load, script
from tests.oracles import check_smtp_replies
from tests.smtp.cutting import SIZES, bytewise, cut, cuts, mixed

CLIENTS = {case.id: case for case in load("smtp-in")}
SERVERS = {case.id: case for case in load("smtp-upstream")}

# -- replies --------------------------------------------------------------------------------------


def decoded(pieces: Iterable[bytes]) -> tuple[list[Reply], str]:
    """Return the replies in some pieces, and what is wrong behind them."""
    decoder = ReplyDecoder()
    found = [reply for piece in pieces for reply in decoder.receive(piece)]
    return found, str(decoder.error or "")


def replies(*pieces: bytes) -> list[Reply]:
    """Return the replies in some pieces; nothing must be wrong with them."""
    found, error = decoded(pieces)
    assert error == ""
    return found


def plainly(data: bytes) -> list[Reply]:
    """Return replies that are well-formed, as RFC 5321 4.2 has them."""
    found: list[Reply] = []
    texts: list[bytes] = []
    for line in data.split(b"\r\n")[:-1]:
        texts.append(line[4:])
        if line[3:4] != b"-":
            found.append(Reply(int(line[:3]), tuple(texts)))
            texts.clear()
    return found


@pytest.mark.parametrize(
    "data",
    [
        b"250 OK\r\n",
        b"250\r\n",  # RFC 5321 4.2: a code without a text has to be taken
        b"250 \r\n250-\r\n250\r\n",
        b"250-First line\r\n250-Second line\r\n250-234 Text\r\n250 Last\r\n",  # RFC 5321 4.2.1
        b"354 go\r\n250 queued\r\n",
        b"299 x\r\n571 5.7.1 outside of RFC 5321 4.2.1, and often seen\r\n",
    ],
)
def test_replies_are_read_whatever_their_pieces(data: bytes) -> None:
    for pieces in cuts(data):
        assert replies(*pieces) == plainly(data)


FAULTS = {
    **dict.fromkeys(("UP-005", "UP-006", "UP-040"), "a reply over 65536 octets"),
    "UP-008": "not a reply line: b'99 x\\r\\n'",
    "UP-009": "not a reply line: b'999 x\\r\\n'",
    "UP-010": "not a reply line: b'\\xef\\xbc\\x92\\xef\\xbc\\x92\\xef\\xbc\\x90 up\\r\\n'",
    "UP-012": "not a reply line: b'220 up\\n'",
    "UP-013": "one reply with the codes 250 and 550",
}
UNLIKE = {
    "UP-014": [],  # ends in the middle of a reply
    "UP-015": [Reply(550, (b"a?b",))],
    "UP-016": [Reply(550, (b"caf? ?",))],
}


@pytest.mark.parametrize("case", SERVERS.values(), ids=str)
def test_what_a_hostile_server_says_is_read_or_refused(case: Case) -> None:
    for _, steps in script(case):
        data = b"".join(step.data for step in steps if isinstance(step, Send))
        ways = [[data], cut(data, [1000] * 2000)] if len(data) > 300 else cuts(data)
        ((found, error), *others) = map(decoded, ways)
        assert all(other == (found, error) for other in others)
        if error:
            assert (found, error) == ([], FAULTS[case.id])
            return
    assert found == UNLIKE.get(case.id, plainly(data))
    assert case.id not in FAULTS


@pytest.mark.parametrize(
    "data",
    [
        *(b"250 a\n", b"250 a\r\r\n\n", b"25 a\r\n", b"2500\r\n", b"250a\r\n", b"150 a\r\n"),
        *(b"\r\n", b" 250 a\r\n", b"250-a\r\n251 b\r\n", b"HTTP/1.1 400 No\r\n", b"\xff\r\n"),
    ],
)
def test_what_is_no_reply_is_refused_and_nothing_read_behind_it(data: bytes) -> None:
    for pieces in cuts(b"250 fine\r\n" + data + b"250 x\r\n"):
        found, error = decoded(pieces)
        assert found[0] == Reply(250, (b"fine",))
        assert len(found) == 1 + data.startswith(b"250 a\r")
        assert error.startswith(("not a reply line", "one reply with the codes"))


def test_the_rest_of_a_reply_is_awaited() -> None:
    decoder = ReplyDecoder()
    assert decoder.empty
    for part in (b"250-one\r\n", b"250 tw"):
        assert decoder.receive(part) == []
        assert not decoder.empty
    assert decoder.receive(b"o\r\n") == [Reply(250, (b"one", b"two"))]
    assert decoder.empty


def test_no_more_than_64_kib_are_one_reply() -> None:
    line = b"250-" + b"x" * 94 + b"\r\n"
    whole = line * (MAX_REPLY // len(line) - 1) + b"250 last\r\n"
    assert len(replies(whole * 3)) == 3
    for more in (line * (MAX_REPLY // len(line) + 1), b"250 " + b"x" * MAX_REPLY):
        assert decoded([more]) == decoded(bytewise(more)) == ([], "a reply over 65536 octets")


def test_a_hundred_lines_of_a_reply_are_kept() -> None:
    assert replies(b"250-x\r\n" * 150 + b"250 x\r\n") == [Reply(250, (b"x",) * 100)]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (b"tab\there", b"tab here"),
        (b"\0 \x1b[2J \x7f \r", b"? ?[2J ? ?"),
        ("caf\u00e9".encode(), "caf\u00e9".encode()),
        (b"x" * 600, b"x" * 506),
        (b"x" + "\u00e9".encode() * 300, b"x" + "\u00e9".encode() * 252),
    ],
)
def test_a_text_is_made_fit_for_a_client(text: bytes, clean: bytes) -> None:
    assert replies(b"550 " + text + b"\r\n") == [Reply(550, (clean,))]


@settings(deadline=None)
@given(mixed(b"250", b"-", b" ", b"\r\n", b"\n", b"550 no\r\n", b"\0", b"\xe9", b"x" * 300), SIZES)
def test_what_is_read_can_be_passed_on(data: bytes, sizes: list[int]) -> None:
    found, error = decoded(cut(data, sizes))
    assert (found, error) == decoded([data])
    assert check_smtp_replies(b"".join(reply.octets for reply in found)) == []


def test_replies_of_our_own() -> None:
    refusal = wire.reply(550, "5.1.1", ["first", "caf\u00e9"])
    assert refusal.octets == b"550-5.1.1 first\r\n550 5.1.1 caf?\r\n"
    assert str(refusal) == "550 5.1.1 first; 5.1.1 caf?"
    assert wire.reply(250, "2.0.0", "fine").octets == b"250 2.0.0 fine\r\n"
    codes = [Reply(code, (b"",)) for code in (199, 200, 299, 354, 400, 499, 500)]
    assert [reply.code for reply in codes if reply.positive] == [200, 299]


# -- command lines --------------------------------------------------------------------------------


def lines(pieces: Iterable[bytes], limit: int = MAX_COMMAND) -> tuple[list[bytes], bool]:
    """Return the lines in some pieces, and whether a bare LF came then."""
    reader = Lines()
    found: list[bytes] = []
    for piece in pieces:
        reader.receive(piece)
        try:
            while (line := reader.next(limit)) is not None:
                found.append(line)
        except WireError:
            return found, True
        assert reader.waiting <= limit
    return found, False


def lines_of(data: bytes, limit: int) -> tuple[list[bytes], bool]:
    found: list[bytes] = []
    for line in re.findall(rb"[^\n]*\n", data):
        if not line.endswith(b"\r\n"):
            return found, True
        found.append(line[:-2] if len(line) <= limit else TOO_LONG)
    return found, False


@pytest.mark.parametrize(
    "data",
    [
        b"EHLO x\r\nMAIL FROM:<a@b.example>\r\n\r\nQUIT\r\n",
        b"NOOP\nRSET\r\n",
        b"NOOP\r\nRSET\n\r\n",
        b"a\rb\r\n\0\r\n\xff\r\r\n",
        b"x" * 20 + b"\r\nNOOP\r\n",
        b"x" * 20 + b"\nNOOP\r\n",
        *(b"x" * length + b"\r\nNOOP\r\n" for length in range(8, 14)),
        *(b"x" * length + b"\r\r\nNOOP\r\n" for length in range(8, 14)),
    ],
)
def test_lines_are_read_whatever_their_pieces(data: bytes) -> None:
    for limit in (12, MAX_COMMAND):
        for pieces in cuts(data):
            assert lines(pieces, limit) == lines_of(data, limit)


@settings(deadline=None)
@given(mixed(b"a", b"\r", b"\n", b"\r\n", b"\0", b"x" * 7), SIZES)
@example(b"x" * 7 + b"\r\n\r\n", [5, 1, 1, 1, 1, 1, 1])
def test_pieces_of_lines_do_not_matter(data: bytes, sizes: list[int]) -> None:
    assert lines(cut(data, sizes), 6) == lines_of(data, 6)


def test_a_line_has_512_octets_and_more() -> None:
    assert MAX_COMMAND >= 512  # RFC 5321 4.5.3.1.4
    assert wire.MAX_AUTH == 12288  # RFC 4954 4
    long = b"NOOP " + b"x" * 505 + b"\r\n"
    assert lines([long]) == ([long[:-2]], False)


@pytest.mark.parametrize("verb", [b"AUTH PLAIN ", b"auth plain "])
def test_a_command_of_auth_may_be_longer_than_others(verb: bytes) -> None:
    response = b"x" * (wire.MAX_AUTH - len(verb) - 2)
    for pieces in ([verb, response, b"\r\n"], [verb + response + b"\r\n"]):
        reader = Lines()
        reader.receive(b"NOOP\r\n")
        assert reader.command() == b"NOOP"
        assert reader.command() is None
        for piece in pieces:
            assert reader.command() is None
            reader.receive(piece)
        assert reader.command() == verb + response
    reader.receive(verb + response + b"x\r\n" + verb[:4] + b"x" * MAX_COMMAND + b"\r\n")
    assert (reader.command(), reader.command()) == (TOO_LONG, TOO_LONG)


def test_the_rest_of_a_line_that_is_too_long_is_no_command() -> None:
    reader = Lines()
    reader.receive(b"NOOP " + b"x" * MAX_COMMAND)
    assert reader.command() is None
    reader.receive(b"AUTH PLAIN " + b"x" * MAX_COMMAND + b"\r\nNOOP\r\n")
    assert (reader.command(), reader.command()) == (TOO_LONG, b"NOOP")


def test_a_bare_lf_ends_the_conversation() -> None:
    reader = Lines()
    reader.receive(b"NOOP\n")
    with pytest.raises(WireError, match="a command line that ends in a bare LF"):
        reader.next()


def test_a_line_that_is_too_long_is_forgotten_and_the_next_one_is_read() -> None:
    data = expand(CLIENTS["SMTP-046"])
    expected = [b"EHLO client.example.org", TOO_LONG, b"NOOP"]
    assert lines([data]) == lines(cut(data, [1000] * 200)) == (expected, False)


def test_a_line_without_an_end_is_given_up() -> None:
    reader = Lines()
    for _ in range(16):
        reader.receive(b"x" * 65536)
        assert reader.next() is None
        assert reader.waiting == 0
    reader.receive(b"x")
    with pytest.raises(WireError, match="a command line over 1048576 octets"):
        reader.next()


def test_what_follows_a_command_may_be_data() -> None:
    reader = Lines()
    reader.receive(b"DATA\r\nSubject: x\r\n\r\n")
    assert (reader.next(), reader.waiting) == (b"DATA", 14)
    assert (reader.take(), reader.waiting) == (b"Subject: x\r\n\r\n", 0)
    assert (reader.take(), reader.next()) == (b"", None)
    reader.receive(b"more")
    assert reader.take() == b"more"


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"quit", (b"QUIT", b"")),
        (b"Mail FROM:<a@b> ", (b"MAIL", b"FROM:<a@b>")),
        (b"NOOP  a b ", (b"NOOP", b"a b")),
        (b"", (b"", b"")),
        (b" MAIL FROM:<a@b>", (b"", b"MAIL FROM:<a@b>")),
        (b"MAIL\tFROM:<a@b>", (b"MAIL\tFROM:<A@B>", b"")),
        (b"\0MAIL x", (b"\0MAIL", b"x")),
    ],
)
def test_a_command_is_a_verb_and_an_argument(line: bytes, command: tuple[bytes, bytes]) -> None:
    assert parse_command(line) == command


# -- MAIL and RCPT --------------------------------------------------------------------------------


def refusal(parse: Callable[[], object]) -> str:
    with pytest.raises(CommandError) as refused:
        parse()
    return str(refused.value.reply)


def sender_of(case: Case) -> tuple[bytes, Path | None]:
    """Return the argument of MAIL in a case, and what it is parsed as."""
    (line,) = (line for line in lines([expand(case)])[0] if line[:4] in (b"MAIL", TOO_LONG))
    _, argument = parse_command(line)
    try:
        return argument.removeprefix(b"FROM:"), parse_path(argument, b"FROM")
    except CommandError:
        return argument, None


# What may be refused or taken, and is taken: as it came, but without a source route.
TAKEN = {
    "SMTP-081": b"<a@example.org> AUTH=<>",
    "SMTP-088": b"<c@example.org>",
    "SMTP-121": None,
    "SMTP-126": b"<" + b"a" * 65 + b"@example.org>",
}
# Parameters whose keyword says more than their form.
WELL_FORMED = {f"SMTP-{number:03}" for number in (66, 67, 69, 72, 74, 76, 77, 78)}


@pytest.mark.parametrize(
    "case", [case for case in CLIENTS.values() if case.group in ("address", "parameter")], ids=str
)
def test_a_path_is_kept_as_it_came_or_refused(case: Case) -> None:
    argument, path = sender_of(case)
    if case.verdict == "ok" or case.id in WELL_FORMED:
        assert path is not None
        assert path.argument == argument
    elif case.verdict == "reject-or-normalise":
        assert (path and path.argument) == TAKEN.get(case.id)
    else:
        assert path is None


@pytest.mark.parametrize(
    ("argument", "keyword", "path"),
    [
        (b"FROM:<>", b"FROM", Path(b"")),
        (b"from: <a@b.example>", b"FROM", Path(b"a@b.example")),
        (b"TO:<postMaster>", b"TO", Path(b"postMaster")),  # RFC 5321 4.1.1.3
        (b"TO:<@hosta.int,@jkl.org:userc@d.bar.org>", b"TO", Path(b"userc@d.bar.org")),
        (b'TO:<"a b\\" >,<c"@[192.0.2.1]>', b"TO", Path(b'"a b\\" >,<c"@[192.0.2.1]')),
        (b"TO:<u@[IPv6:2001:db8::1]>", b"TO", Path(b"u@[IPv6:2001:db8::1]")),
        ("TO:<\u00fc@\u00fc.example>".encode(), b"TO", Path("\u00fc@\u00fc.example".encode())),
        (
            b"FROM:<ned@thor.innosoft.com> SIZE=500000",  # RFC 1870 6.3
            b"FROM",
            Path(b"ned@thor.innosoft.com", (b"SIZE=500000",), {b"SIZE": b"500000"}),
        ),
        (
            b"FROM:<e=mc2@example.com> auth=e+3Dmc2@example.com  SMTPUTF8",  # RFC 4954 5
            b"FROM",
            Path(
                b"e=mc2@example.com",
                (b"auth=e+3Dmc2@example.com", b"SMTPUTF8"),
                {b"AUTH": b"e+3Dmc2@example.com", b"SMTPUTF8": None},
            ),
        ),
        (
            b"TO:<Bob@Ivory.EDU> NOTIFY=SUCCESS ORCPT=rfc822;Bob@Ivory.EDU",  # RFC 3461 10.2
            b"TO",
            Path(
                b"Bob@Ivory.EDU",
                (b"NOTIFY=SUCCESS", b"ORCPT=rfc822;Bob@Ivory.EDU"),
                {b"NOTIFY": b"SUCCESS", b"ORCPT": b"rfc822;Bob@Ivory.EDU"},
            ),
        ),
    ],
)
def test_a_path_and_its_parameters(argument: bytes, keyword: bytes, path: Path) -> None:
    assert parse_path(argument, keyword) == path


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        *((argument, "501 5.5.4 Syntax error in parameters or arguments") for argument in (
            *(b"", b"FROM:<a@b>", b"<a@b>", b"TO<a@b>", b"TO: a@b", b"TO:  <a@b>", b"TO:<a@b"),
            *(b"TO:<a@b>x", b"TO:<a@b> X=", b"TO:<a@b> X=a=b", b"TO:<a@b> -X", b"TO:<a@b> X=\x7f"),
            *(b"TO:<a@b> X=1 x=2", b"TO:<a@b>\rRSET", b'TO:<"a@b>', b"TO:<a@b>\tX=1", b"TO:<a b@c>"),
        )),
        *((argument, "501 5.1.3 Bad recipient address syntax") for argument in (
            *(b"TO:<>", b"TO:<a>", b"TO:<a@b\r>", b"TO:<a\0@b>", b"TO:<a@b,c@d>", b"TO:<a@b(c)>"),
            *(b"TO:<(c)a@b>", b"TO:<@a:>", b"TO:<@a,b@c>", b"TO:<\xe9@b.example>", b"TO:<a.@b>"),
            *(b"TO:<a@[1.2.3]>", b"TO:<a@[IPv6:x]>", b"TO:<a@[]>", b"TO:<a@b-.example>", b"TO:<a@>"),
            *(b'TO:<"a\r\nb"@c>', b'TO:<"a"b@c>', b"TO:<" + b"a" * 256 + b"@b>"),
            b"TO:<a@" + b"a." * 128 + b"b>",
        )),
    ],
)  # fmt: skip
def test_what_is_no_recipient_is_refused(argument: bytes, said: str) -> None:
    assert refusal(lambda: parse_path(argument, b"TO")) == said


def test_a_sender_that_is_none_is_called_one() -> None:
    assert refusal(lambda: parse_path(b"FROM:<a>", b"FROM")) == (
        "501 5.1.7 Bad sender address syntax"
    )
    assert refusal(lambda: parse_path(b"FROM:<postmaster>", b"FROM")).startswith("501 5.1.7")


@settings(deadline=None)
@given(
    mixed(b"FROM:<", b"a", b"@", b".", b'"', b"\\", b":", b",", b"> ", b"X=", b"\r", b"\n", b"\0")
)
@example(b'FROM:<"\\\n"@a>')
def test_no_path_holds_what_would_be_another_command(argument: bytes) -> None:
    try:
        path = parse_path(argument, b"FROM")
    except CommandError:
        return
    assert not re.search(rb"[\0\r\n]", path.argument)
    assert parse_path(b"FROM:" + path.argument, b"FROM") == path


# -- xtext (RFC 3461 4) ---------------------------------------------------------------------------


@given(st.binary(max_size=60))
def test_octets_stand_in_hexadecimal(octets: bytes) -> None:
    text = b"".join(b"+%02X" % octet for octet in octets)
    assert wire.is_xtext(text)
    assert wire.decode_xtext(text) == octets


def test_xtext_is_decoded() -> None:
    assert wire.decode_xtext(b"e+3Dmc2@example.com") == b"e=mc2@example.com"  # RFC 4954 5


@pytest.mark.parametrize(
    "text",
    [b"a=b", b"a b", b"a+", b"a+4", b"a+0d", b"a+GG", b"\xc3\xa9", b"a\r\n", b"a\0", b"\x7f"],
)
def test_what_is_no_xtext_is_refused(text: bytes) -> None:
    assert not wire.is_xtext(text)
    with pytest.raises(ValueError, match=r"is not xtext \(RFC 3461 4\)"):
        wire.decode_xtext(text)
