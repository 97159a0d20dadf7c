"""Lines as smtpd writes them, and what they are.

They are as smtpd-filters(7) and the recordings beside this file have them; the field orders of
older protocols are those of lka_filter.c at the releases that spoke them.
"""

from __future__ import annotations

from mailgate_opensmtpd import wire
from mailgate_opensmtpd.wire import Config, DataLines, Event, Ignored, Report, Request

S = b"7641df9771b4ed00"
OTHER = b"7641df9771b4ed01"
T = b"1ef1c203cc576e5d"
TIME = b"1576146008.006099"


def report(event: bytes, *parameters: bytes, version: bytes = b"0.7", session: bytes = S) -> bytes:
    return b"|".join((b"report", version, TIME, b"smtp-in", event, session, *parameters)) + b"\n"


def question(
    phase: bytes,
    parameter: bytes = b"",
    *,
    version: bytes = b"0.7",
    session: bytes = S,
    token: bytes = T,
) -> bytes:
    fields = (b"filter", version, TIME, b"smtp-in", phase, session, token, parameter)
    return b"|".join(fields) + b"\n"


def reported(event: str, version: wire.Version = (0, 7), **fields: bytes) -> Report:
    """Return a report with its parameters by name, in the order that events have them."""
    names = [name for name in wire.EVENTS[event] if name in fields]
    assert len(names) == len(fields)
    return Report(version, "smtp-in", event, S, [fields[name] for name in names])


def asked(phase: str, parameter: bytes = b"", version: wire.Version = (0, 7)) -> Request:
    return Request(version, phase, S, T, parameter)


def faulty(reason: str, phase: str = "mail-from", version: wire.Version = (0, 7)) -> Request:
    return Request(version, phase, S, T, b"", reason)


# -- what smtpd writes ---------------------------------------------------------------------------

HANDSHAKE: list[tuple[bytes, Event]] = [
    (b"config|smtpd-version|6.8.0p2\n", Config("smtpd-version", "6.8.0p2")),
    (b"config|protocol|0.7\n", Config("protocol", "0.7")),
    (b"config|smtp-session-timeout|300\n", Config("smtp-session-timeout", "300")),
    (b"config|subsystem|smtp-out\n", Config("subsystem", "smtp-out")),
    (b"config|admd|mx|\xff\n", Config("admd", "mx|\xff")),
    (b"config|ready\n", Config("ready", "")),
]

CONNECTED = reported(
    "link-connect",
    rdns=b"client.example",
    fcrdns=b"pass",
    src=b"[2001:db8::1]:4711",
    dest=b"198.51.100.1:25",
)
REPORTS: list[tuple[bytes, Event]] = [
    (
        report(b"link-connect", b"client.example|pass|[2001:db8::1]:4711|198.51.100.1:25"),
        CONNECTED,
    ),
    (
        report(b"link-connect", b"a|b|fail|unix:/var/run/smtpd.sock|local"),
        reported(
            "link-connect",
            rdns=b"a|b",
            fcrdns=b"fail",
            src=b"unix:/var/run/smtpd.sock",
            dest=b"local",
        ),
    ),
    (report(b"link-greeting", b"mx|x"), reported("link-greeting", hostname=b"mx|x")),
    (
        report(b"link-identify", b"EHLO", b"a|b"),
        reported("link-identify", method=b"EHLO", identity=b"a|b"),
    ),
    (
        report(b"link-tls", b"TLSv1.3:TLS_AES_256_GCM_SHA384:256"),
        reported("link-tls", ciphers=b"TLSv1.3:TLS_AES_256_GCM_SHA384:256"),
    ),
    (report(b"link-disconnect"), reported("link-disconnect")),
    (report(b"link-disconnect", b""), reported("link-disconnect")),
    (report(b"timeout"), reported("timeout")),
    (report(b"tx-begin", b"3682b2ad"), reported("tx-begin", msgid=b"3682b2ad")),
    (
        report(b"tx-envelope", b"3682b2ad", b"3682b2ad00000001"),
        reported("tx-envelope", msgid=b"3682b2ad", evpid=b"3682b2ad00000001"),
    ),
    (
        report(b"tx-data", b"3682b2ad", b"permfail"),
        reported("tx-data", msgid=b"3682b2ad", result=b"permfail"),
    ),
    (
        report(b"tx-commit", b"3682b2ad", b"1024"),
        reported("tx-commit", msgid=b"3682b2ad", size=b"1024"),
    ),
    (report(b"tx-rollback", b"3682b2ad"), reported("tx-rollback", msgid=b"3682b2ad")),
    (report(b"tx-reset", b"3682b2ad"), reported("tx-reset", msgid=b"3682b2ad")),
    (
        report(b"protocol-client", b"MAIL FROM:<a|b@c> SIZE=1"),
        reported("protocol-client", command=b"MAIL FROM:<a|b@c> SIZE=1"),
    ),
    (report(b"protocol-client", b""), reported("protocol-client", command=b"")),
    (
        report(b"protocol-server", b"250 2.0.0 Ok"),
        reported("protocol-server", response=b"250 2.0.0 Ok"),
    ),
    (
        report(b"filter-report", b"builtin", b"name", b"a|b"),
        reported("filter-report", kind=b"builtin", name=b"name", message=b"a|b"),
    ),
    (
        report(b"filter-response", b"connected", b"proceed"),
        reported("filter-response", phase=b"connected", decision=b"proceed"),
    ),
    (
        report(b"filter-response", b"mail-from", b"reject", b"550 a|b"),
        reported("filter-response", phase=b"mail-from", decision=b"reject", parameter=b"550 a|b"),
    ),
    (
        b"report|0.7|%b|smtp-out|tx-begin|%b|3682b2ad\n" % (TIME, S),
        Report((0, 7), "smtp-out", "tx-begin", S, [b"3682b2ad"]),
    ),
]

# The order of fields changed twice; the text of a client may hold the separator in each.
ORDERS: list[tuple[bytes, Event]] = [
    *(
        (
            report(event, b"3682b2ad|a|b@c|ok", version=b"0.%d" % minor),
            reported(
                event.decode(), (0, minor), msgid=b"3682b2ad", result=b"ok", address=b"a|b@c"
            ),
        )
        for event in (b"tx-mail", b"tx-rcpt")
        for minor in (4, 5)
    ),
    *(
        (
            report(event, b"3682b2ad|tempfail|a|b@c", version=b"0.%d" % minor),
            reported(
                event.decode(), (0, minor), msgid=b"3682b2ad", result=b"tempfail", address=b"a|b@c"
            ),
        )
        for event in (b"tx-mail", b"tx-rcpt")
        for minor in (6, 7, 8)
    ),
    (
        report(b"tx-mail", b"3682b2ad||ok", version=b"0.4"),
        reported("tx-mail", (0, 4), msgid=b"3682b2ad", result=b"ok", address=b""),
    ),
    (
        report(b"tx-mail", b"3682b2ad|ok|", version=b"0.6"),
        reported("tx-mail", (0, 6), msgid=b"3682b2ad", result=b"ok", address=b""),
    ),
    *(
        (
            report(b"link-auth", b"a|b|pass", version=b"0.%d" % minor),
            reported("link-auth", (0, minor), result=b"pass", username=b"a|b"),
        )
        for minor in (4, 5, 6)
    ),
    *(
        (
            report(b"link-auth", b"fail|a|b", version=b"0.%d" % minor),
            reported("link-auth", (0, minor), result=b"fail", username=b"a|b"),
        )
        for minor in (7, 8)
    ),
]

REQUESTS: list[tuple[bytes, Event]] = [
    (
        question(b"connect", b"client.example|127.0.0.1"),
        asked("connect", b"client.example|127.0.0.1"),
    ),
    (question(b"helo", b"client.example"), asked("helo", b"client.example")),
    (question(b"ehlo", b"[192.0.2.1]"), asked("ehlo", b"[192.0.2.1]")),
    (question(b"starttls"), asked("starttls")),
    (question(b"auth", b"PLAIN AGFubgBzM2NyZXQ="), asked("auth", b"PLAIN AGFubgBzM2NyZXQ=")),
    (question(b"mail-from", b""), asked("mail-from")),
    (question(b"mail-from", b"a|b@c"), asked("mail-from", b"a|b@c")),
    (question(b"rcpt-to", b"\xc3\xbc@example.org"), asked("rcpt-to", b"\xc3\xbc@example.org")),
    *(
        (question(phase), asked(phase.decode()))
        for phase in (b"data", b"commit", b"rset", b"quit")
    ),
    (question(b"noop", b"x y"), asked("noop", b"x y")),
    (question(b"a-phase-to-come", b"x"), asked("a-phase-to-come", b"x")),
    (question(b"data", version=b"0.4"), asked("data", version=(0, 4))),
    (question(b"data", version=b"0.8"), asked("data", version=(0, 8))),
    (question(b"data", version=b"0.123"), asked("data", version=(0, 123))),
    (question(b"data", session=b"a", token=b"0"), Request((0, 7), "data", b"a", b"0", b"")),
]

LINES: list[tuple[bytes, Event]] = [
    (question(b"data-line", text), DataLines((0, 7), S, T, [text]))
    for text in (
        *(
            b"",
            b".",
            b"..",
            b"..stuffed",
            b".unstuffed",
            b"a|b|c",
            b"\r",
            b"inside\rout",
            b"\x85\xff",
        ),
        *("\u2028".encode(), b"x" * 65_534),
    )
]

# What no smtpd writes, and what must not stay without an answer.
FAULTY: list[tuple[bytes, Event]] = [
    (question(b"mail-from", version=b"1.0"), faulty("unknown protocol version")),
    (question(b"mail-from", version=b"0.1234"), faulty("unknown protocol version")),
    (question(b"mail-from", version=b""), faulty("unknown protocol version")),
    (question(b"mail-from", version=b"0.\xd9\xa7"), faulty("unknown protocol version")),
    (
        question(b"data-line", b"x", version=b"1.0"),
        faulty("unknown protocol version", "data-line"),
    ),
    (
        b"filter|0.7|%b|smtp-out|mail-from|%b|%b|a@b\n" % (TIME, S, T),
        faulty("unknown direction"),
    ),
    (b"filter|0.6|%b|smtp-in|data|%b|%b\n" % (TIME, S, T), faulty("no parameter", "data", (0, 6))),
    (
        question(b"mail-from", b"a@b", token=b"nohex"),
        Request((0, 7), "mail-from", S, b"nohex", b"", "a token that is no number"),
    ),
    (question(b"mail-from", b"a\r@b"), faulty("CR or NUL in the parameter")),
    (question(b"mail-from", b"a\0@b"), faulty("CR or NUL in the parameter")),
    (question(b"connect", b"client.example"), faulty("no address", "connect")),
]


def ignored(reason: str, line: bytes) -> tuple[bytes, Event]:
    return line + b"\n", Ignored(reason, line)


IGNORED: list[tuple[bytes, Event]] = [
    *(
        ignored("unknown kind of line", line)
        for line in (b"", b"nonsense", b"CONFIG|ready", b"filter-result|x", b"\xff\0", b"|||")
    ),
    *(
        ignored("a request without session and token", line)
        for line in (
            *(b"filter", b"filter|0.7|1|smtp-in|data", b"filter|0.7|1|smtp-in|data|" + S),
            b"filter|0.7|1|smtp-in|data|" + S + b"|",
            b"filter|0.7|1|smtp-in|data||" + T + b"|",
            b"filter|0.7|1|smtp-in|data|a b|" + T + b"|",
            b"filter|0.7|1|smtp-in|data|a\r|" + T + b"|",
            b"filter|0.7|1|smtp-in|data|" + b"a" * 65 + b"|" + T + b"|",
        )
    ),
    *(
        ignored("a report without session", line)
        for line in (b"report", b"report|0.7|1|smtp-in|timeout", b"report|0.7|1|smtp-in|timeout|")
    ),
    ignored("a report of an unknown protocol version", report(b"timeout", version=b"1.0")[:-1]),
    ignored("unknown report", report(b"nothing")[:-1]),
    *(
        ignored("a report without its parameters", report(*fields, version=version)[:-1])
        for version, fields in (
            (b"0.7", (b"tx-mail", b"3682b2ad", b"ok")),
            (b"0.7", (b"tx-mail",)),
            (b"0.4", (b"tx-mail", b"3682b2ad")),
            (b"0.4", (b"tx-rcpt", b"3682b2ad|a@b|")),
            (b"0.7", (b"link-connect", b"a|b|c")),
            (b"0.7", (b"link-auth", b"pass")),
            (b"0.4", (b"link-auth", b"pass")),
            (b"0.7", (b"filter-response", b"data")),
        )
    ),
]

SAMPLES = [*HANDSHAKE, *REPORTS, *ORDERS, *REQUESTS, *LINES, *FAULTY, *IGNORED]
