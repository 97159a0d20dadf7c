"""What is offered to clients, and which parameters of theirs are taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from mailgate_smtp.extensions import carried, check_mail, check_rcpt, greeting, size_limit
from mailgate_smtp.hop import NOTHING, Features, HopError
from mailgate_smtp.wire import CommandError, Lines, Path, Reply, parse_command, parse_path
from tests.hostile.cases import Case, expand, load
from tests.oracles import check_smtp_replies

PARAMETERS = [case for case in load("smtp-in") if case.group == "parameter"]

# What Postfix 3.7 and Exim 4.96 offer, and some of what others do.
GREETING = Reply(
    250,
    (
        *(b"mx.example.org", b"PIPELINING", b"SIZE 10240000", b"VRFY", b"ETRN", b"STARTTLS"),
        *(b"AUTH PLAIN LOGIN", b"AUTH=PLAIN LOGIN", b"AUTH CRAM-MD5", b"ENHANCEDSTATUSCODES"),
        *(b"8bitmime", b"DSN", b"SMTPUTF8", b"CHUNKING", b"BINARYMIME", b"PIPECONNECT"),
        *(b"XCLIENT NAME  ADDR ", b"X-EXPS GSSAPI", b"MT-PRIORITY MIXER", b"REQUIRETLS", b"BURL"),
        *(b" x", b"", b"-NO", b"HELP"),
    ),
)
OFFERED = Features.of(GREETING)


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(CommandError) as refused:
        check()
    return str(refused.value.reply)


# -- what a server can do -------------------------------------------------------------------------


def test_keywords_stand_behind_the_first_line() -> None:
    assert list(OFFERED)[:4] == [b"PIPELINING", b"SIZE", b"VRFY", b"ETRN"]
    assert b"8BITMIME" in OFFERED
    assert not {b"MX.EXAMPLE.ORG", b"AUTH=PLAIN", b"", b"-NO"} & set(OFFERED)
    assert (OFFERED[b"AUTH"], OFFERED[b"XCLIENT"]) == (b"PLAIN LOGIN", b"NAME  ADDR")
    assert (OFFERED[b"8BITMIME"], OFFERED[b"NONE"], list(NOTHING)) == (b"", b"", [])
    assert (OFFERED.size, NOTHING.size) == (10_240_000, 0)


@pytest.mark.parametrize("size", [b"", b"0", b"x", b"-1", b"1_000", b"9" * 21, b"10 20"])
def test_a_size_that_is_no_number_is_no_limit(size: bytes) -> None:
    assert Features.of(Reply(250, (b"mx", b"SIZE " + size))).size == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "limit"), [(5, 0, 5), (0, 5, 5), (5, 6, 5), (6, 5, 5), (0, 0, 0)]
)
def test_the_smaller_limit_counts(ours: int, theirs: int, limit: int) -> None:
    assert size_limit(ours, theirs) == limit


# -- what is offered ------------------------------------------------------------------------------


def offered(features: Features, size: int = 0, **more: bytes) -> list[bytes]:
    keywords = {keyword.encode(): parameters for keyword, parameters in more.items()}
    reply = greeting("mx.example.net", features, size=size, more=keywords)
    assert check_smtp_replies(reply.octets) == []
    assert (reply.code, reply.lines[0]) == (250, b"mx.example.net")
    return list(reply.lines[1:])


def test_what_is_known_how_to_be_carried_is_offered() -> None:
    assert offered(OFFERED, 1000, CHUNKING=b"", AUTH=b"PLAIN") == [
        *(b"PIPELINING", b"SIZE 1000", b"8BITMIME", b"SMTPUTF8", b"DSN", b"ENHANCEDSTATUSCODES"),
        *(b"MT-PRIORITY MIXER", b"CHUNKING", b"AUTH PLAIN"),
    ]


def test_our_own_extensions_are_offered_before_any_server() -> None:
    assert offered(NOTHING) == [b"PIPELINING", b"SIZE"]


# -- parameters -----------------------------------------------------------------------------------


def sender_of(case: Case) -> Path:
    """Return what the MAIL command of a case says; CommandError where it is refused."""
    lines = Lines()
    lines.receive(expand(case))
    while (line := lines.next()) is not None:
        verb, argument = parse_command(line)
        if verb == b"MAIL":
            path = parse_path(argument, b"FROM")
            check_mail(path, OFFERED)
            return path
    raise AssertionError("no MAIL")


# The line itself is too long in these: it is refused before it is a command.
TOO_LONG = {"SMTP-079", "SMTP-084"}


@pytest.mark.parametrize("case", [case for case in PARAMETERS if case.id not in TOO_LONG], ids=str)
def test_hostile_parameters_are_refused(case: Case) -> None:
    if case.verdict == "reject":
        assert refusal(lambda: sender_of(case))[:3] in ("501", "552", "555")
    else:
        assert sender_of(case).words == (b"AUTH=<>",)


PATH = Path(b"a@x.example")


def said(words: bytes, mailbox: bytes = b"a@x.example", keyword: bytes = b"FROM") -> Path:
    return parse_path(keyword + b":<" + mailbox + b"> " + words, keyword)


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"SIZE=0",
        b"size=1000 body=8bitmime",
        b"BODY=7BIT",
        b"RET=FULL ENVID=QQ314159",  # RFC 3461 10.1
        b"ret=hdrs envid=a+2Bb",
        b"SMTPUTF8",
        b"MT-PRIORITY=-2",  # RFC 6710: the server has its own opinion of the value
        b"AUTH=e+3Dmc2@example.com",  # RFC 4954 5
        b"REQUIRETLS",
    ],
)
def test_parameters_of_a_sender_are_kept(words: bytes) -> None:
    path = said(words)
    check_mail(path, OFFERED)
    assert carried(path, OFFERED) is path


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        (b"SIZE=10240001", "552 5.3.4"),
        (b"BODY=BINARYMIME", "501 5.5.4"),
        (b"BODY", "501 5.5.4"),
        (b"ENVID=" + b"a" * 101, "501 5.5.4"),  # RFC 3461 4.4
        (b"ENVID=a+0A", "501 5.5.4"),
        (b"ENVID=a+0a", "501 5.5.4"),
        (b"ENVID=a+7F", "501 5.5.4"),
        (b"ENVID", "501 5.5.4"),
        (b"AUTH=a+", "501 5.5.4"),
        (b"AUTH", "501 5.5.4"),
        (b"RET", "501 5.5.4"),
        (b"REQUIRETLS=x", "501 5.5.4"),
        (b"NOTIFY=NEVER", "555 5.5.4"),  # of a recipient
        (b"ORCPT=rfc822;a@b", "555 5.5.4"),
        (b"HOLDFOR=1", "555 5.5.4"),  # not offered
        (b"XFROB=1", "555 5.5.4"),
    ],
)
def test_parameters_of_a_sender_are_refused(words: bytes, reply: str) -> None:
    assert refusal(lambda: check_mail(said(words), OFFERED)).startswith(reply)


def test_what_only_we_have_offered_is_not_passed_on() -> None:
    theirs = Features({b"8BITMIME": b""})
    path = said(b"SIZE=10 BODY=7BIT AUTH=<>")
    assert carried(path, theirs) == said(b"BODY=7BIT")
    assert carried(path, OFFERED) is path
    with pytest.raises(HopError, match="it does not offer 8BITMIME") as failed:
        carried(path, NOTHING)
    assert str(failed.value.reply).startswith("451 4.3.5")


def test_without_a_limit_every_size_fits() -> None:
    check_mail(said(b"SIZE=" + b"9" * 20), Features({b"SIZE": b""}))


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"NOTIFY=NEVER",
        b"notify=success,Failure,DELAY orcpt=rfc822;B@y.example",
        b"ORCPT=rfc822;a+2Bb@y.example",
        "ORCPT=utf-8;\u00fc@y.example".encode(),  # RFC 6533 3
        b"ORCPT=utf-8;a\\x{FC}@y.example",
    ],
)
def test_parameters_of_a_recipient_are_kept(words: bytes) -> None:
    path = said(words, keyword=b"TO")
    assert path.words == tuple(words.split())
    check_rcpt(path, PATH, OFFERED)


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        (b"NOTIFY=NEVER,DELAY", "501 5.5.4"),
        (b"NOTIFY=SUCCESS,", "501 5.5.4"),
        (b"NOTIFY", "501 5.5.4"),
        (b"ORCPT=a@b", "501 5.5.4"),
        (b"ORCPT=rfc822;a+0Db", "501 5.5.4"),
        (b"ORCPT=rfc822;" + b"a" * 501, "501 5.5.4"),
        (b"ORCPT", "501 5.5.4"),
        (b"SIZE=1", "555 5.5.4"),
        (b"RET=FULL", "555 5.5.4"),
        (b"RRVS=2014-04-03T23:01:00Z", "555 5.5.4"),
    ],
)
def test_parameters_of_a_recipient_are_refused(words: bytes, reply: str) -> None:
    path = said(words, keyword=b"TO")
    assert refusal(lambda: check_rcpt(path, PATH, OFFERED)).startswith(reply)


UTF8 = "\u00fc@x.example".encode()


@pytest.mark.parametrize(
    ("words", "keywords"),
    [
        (b"", {b"SMTPUTF8": b""}),
        (b"BODY=8BITMIME", {b"SMTPUTF8": b"", b"8BITMIME": b""}),
        (b"SMTPUTF8", {}),
    ],
)
def test_an_address_that_needs_smtputf8_is_refused_without(
    words: bytes, keywords: Mapping[bytes, bytes]
) -> None:
    """RFC 6531 3.5 has 553 5.6.7 for it."""
    offered = Features(keywords)
    path = said(words, UTF8)
    assert refusal(lambda: check_mail(path, offered)).startswith("553 5.6.7")


def test_a_recipient_may_be_in_utf_8_where_the_message_is() -> None:
    recipient = said(b"", UTF8, b"TO")
    check_rcpt(recipient, said(b"SMTPUTF8"), OFFERED)
    assert refusal(lambda: check_rcpt(recipient, PATH, OFFERED)).startswith("553 5.6.7")


def test_smtputf8_is_refused_where_it_was_not_offered() -> None:
    assert refusal(lambda: check_mail(said(b"SMTPUTF8"), NOTHING)).startswith("553 5.6.7")
