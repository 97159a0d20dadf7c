"""The reader of recorded sessions finds in a file what is in it."""

from __future__ import annotations

from tests.milter.recorded import TRACES, Delivered, Recording, path_and_params, read, traces


def recording(name: str) -> Recording:
    return read(TRACES / f"{name}.jsonl")


def test_packets() -> None:
    connections = recording("postfix/ehlo").connections
    (connection,) = connections

    codes = b"".join(frame.code for frame in connection.of("M"))
    assert codes == b"ODCDHDMDRDTDLDLDLDLDLDNDBDEAAQ"
    assert b"".join(frame.code for frame in connection.of("F")) == b"O" + b"c" * 13
    assert connection.of("M")[0].raw == bytes.fromhex("0000000d4f00000006000001ff001fffff")
    assert connection.of("M")[2].data.startswith(b"[127.0.0.1]\x004")
    assert connection.given.endswith(b"\0\0\0\1A\0\0\0\1A\0\0\0\1Q")
    assert connection.frames[-1].side == "close"


def test_answers_belong_to_the_packet_before_them() -> None:
    (connection,) = recording("sendmail/eom-all-edits-then-accept").connections

    asked, answered = connection.answers()[-2]
    assert asked.code == b"E"
    assert b"".join(frame.code for frame in answered) == b"mhie+-ba"
    assert connection.answers()[-1][0].code == b"Q"
    assert connection.answers()[-1][1] == []


def test_connections_are_kept_apart() -> None:
    first, second = recording("postfix/xclient-ipv6").connections

    assert first.of("M")[-1].code == b"Q"
    assert b"2001:db8::5" not in first.given
    assert b"2001:db8::5" in second.given


def test_the_smtp_side() -> None:
    dialogue = recording("sendmail/at-mail-reply").dialogue

    assert ("C", b"MAIL FROM:<alice@example.com>\r\n") in dialogue
    assert ("S", b"554 5.7.1 no thanks\r\n") in dialogue
    assert dialogue[-1] == ("S", b"221 2.0.0 mta.example.org closing connection\r\n")


def test_what_arrived() -> None:
    (delivered,) = recording("postfix/eom-chgfrom-args").delivered

    assert isinstance(delivered, Delivered)
    assert delivered.sender == b"<new@example.org>"
    assert delivered.sender_params == {b"SIZE": b"372", b"ENVID": b"changed", b"RET": b"FULL"}
    assert delivered.recipients == [b"<bob@example.net>"]
    assert delivered.raw.startswith(b"Received: from client.example.com (unknown [127.0.0.1])\r\n")
    assert delivered.raw.endswith(b"\r\n\r\nline one\r\nline two\r\n")
    assert recording("postfix/at-eom-discard").delivered == []
    assert len(recording("sendmail/two-messages").delivered) == 2


def test_paths() -> None:
    assert path_and_params(b"<>") == (b"<>", {})
    assert path_and_params(b'<"a> b"@c> NOTIFY=NEVER x') == (
        b'<"a> b"@c>',
        {b"NOTIFY": b"NEVER", b"X": b""},
    )


def test_what_is_known_of_a_recording() -> None:
    assert str(recording("postfix/body-big")) == "postfix-body-big"
    assert recording("postfix/body-big").abridged
    assert not recording("sendmail/ehlo").abridged
    assert recording("sendmail/bad-reply-code").faulty
    assert not recording("sendmail/reply-multiline").faulty
    assert recording("sendmail/ehlo").kind == "sendmail"
    assert len(traces()) == 261
