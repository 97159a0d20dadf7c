"""Policies and messages, and what becomes of each pair on every mail server.

Everything here is written out. Only what OpenSMTPD's filters can do is in the table, and what
Postfix and Sendmail do not mend by themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.interop.client import Reply
from tests.interop.mail import PLAIN, PLAIN_BODY, PLAIN_FIELDS, difficult, letter

ALICE = "alice@example.org"
BOB = "bob@example.test"
LETTER = letter(b"hello\r\n")
FAILED = Reply(451, "4.3.0 the mail policy failed, try again later")

_MESSAGES = Path(__file__).parents[2] / "examples/messages"


@dataclass(frozen=True, slots=True)
class Serving:
    """Policies as `Installation.policy` takes them, and the settings of the only one."""

    policies: tuple[str, ...]
    settings: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return "+".join((*self.policies, *(f"{k}={v}" for k, v in self.settings)))


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the next mail server gets; lines end in CRLF."""

    content: bytes
    sender: str = ALICE
    recipients: frozenset[str] = frozenset({BOB})


@dataclass(frozen=True, slots=True)
class Letter:
    """What a client sends."""

    content: bytes = LETTER
    sender: str = ALICE
    recipients: tuple[str, ...] = (BOB,)
    helo: str = "client.example.org"


@dataclass(frozen=True, slots=True)
class Pair:
    """Policies and a letter; what the client hears but consent, and what is delivered."""

    name: str
    serving: Serving
    letter: Letter
    delivery: Delivery | None = None
    refusals: tuple[Reply, ...] = field(default=())

    def __str__(self) -> str:
        return self.name


def taken(
    name: str, policy: str, content: bytes, arrives: bytes | None = None, to: str = BOB
) -> Pair:
    """Make a pair of a message that passes, as it came or as what arrives."""
    delivery = Delivery(arrives or content, recipients=frozenset({to}))
    return Pair(name, Serving((policy,)), Letter(content, recipients=(to,)), delivery)


def refused(name: str, policy: str, letter: Letter, code: int, text: str) -> Pair:
    """Make a pair of a message that is refused once and as a whole."""
    return Pair(name, Serving((policy,)), letter, refusals=(Reply(code, text),))


def example(name: str) -> bytes:
    """Return a message of the examples."""
    return (_MESSAGES / f"{name}.eml").read_bytes().replace(b"\n", b"\r\n")


def edited(content: bytes, *changes: tuple[bytes, bytes]) -> bytes:
    """Return a message with some octets, each there once, replaced."""
    for old, new in changes:
        assert content.count(old) == 1, old
        content = content.replace(old, new)
    return content


BIG = letter(b"".join(b"%d %s\r\n" % (n, b"z" * (n % 600)) for n in range(3_300)))
TOO_BIG = letter(b"0123456789 " * 80 + b"\r\n" + b"line\r\n" * 170_000)
DOTS = letter(b".\r\n..\r\n...\r\n.a\r\n\r\n. \r\n .\r\n.\r\n")
EMPTY = letter(b"")
HEADER_ONLY = EMPTY.removesuffix(b"\r\n")
INVOICE = example("invoice")
INVOICE_WITH_FOOTER = (
    edited(INVOICE, (b"X-Mailer: LedgerMail 4.2\r\n", b"")).replace(
        b"\r\n\r\n", b"\r\nX-Footer: added\r\n\r\n", 1
    )
    + b"\r\n-- \r\nThis message passed through mailgate.\r\n"
)
MULTIPART = difficult(
    *PLAIN_FIELDS,
    b"MIME-Version: 1.0",
    b'Content-Type: multipart/mixed;\r\n\tboundary="=_B"',
    body=b"preamble\r\n"
    b"--=_B\r\nContent-Type: text/plain\r\n\r\nHello.\r\n\r\n"
    b"--=_B\r\nContent-Type: application/octet-stream\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nAAEC/w==\r\n"
    b"--=_B--\r\nepilogue\r\n",
)
SIGNED = difficult(
    b"DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=example.org;\r\n"
    b"\ts=mail; t=1767348000;  h=from : to :subject;\r\n\tbh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;"
    b"\r\n\tb=dzdVyOfAKCdLXdJOc9G2q8LoXSlEniSbav+yuU4zGeeruD00lszZ",
    *PLAIN_FIELDS,
    body=b"signed  \r\n\t\r\n\r\nto the last blank line\r\n\r\n\r\n",
)


def edge(first: int) -> bytes:
    """Return a message whose body fills more than one milter packet of 65,535 octets.

    All lines but the first have five octets, which divides that number: with six octets in the
    first line CR is the last octet of a packet and LF the first of the next.
    """
    return letter(b"x" * (first - 2) + b"\r\n" + b"abc\r\n" * 30_000)


def stamped(content: bytes) -> bytes:
    """Return a message with the field that the policy `stamp` adds."""
    head, _, body = content.partition(b"\r\n\r\n")
    digest = hashlib.sha256(body).hexdigest().encode()
    return head + b"\r\nX-Digest: " + digest + b"\r\n\r\n" + body


def _contents() -> list[Pair]:
    """Return messages that pass as they came, whoever looks at them."""
    readers = ("recipients", "content:in_headers", "content:in_pieces", "content:in_whole")
    return [
        *(taken(f"difficult octets, {reader}", reader, PLAIN) for reader in readers),
        taken("leading dots", "content:in_whole", DOTS),
        taken("no body", "content:in_whole", EMPTY),
        taken("a header alone", "content:in_whole", HEADER_ONLY),
        taken("blank lines alone", "content:in_pieces", letter(b"\r\n\r\n\r\n")),
        taken("a megabyte", "content:in_pieces", BIG),
        taken("a signature", "content:in_whole", SIGNED),
        taken("a multipart", "content:in_headers", MULTIPART),
        replace(
            taken("the null sender", "content:in_whole", LETTER),
            letter=Letter(sender=""),
            delivery=Delivery(LETTER, sender=""),
        ),
    ]


def _fields(*changes: tuple[bytes, bytes | None]) -> tuple[bytes, ...]:
    """Return the plain fields, those that begin in a way replaced, or left out."""
    for start, _ in changes:
        assert sum(field.startswith(start) for field in PLAIN_FIELDS) == 1, start
    news = [
        next((new for start, new in changes if field.startswith(start)), field)
        for field in PLAIN_FIELDS
    ]
    return tuple(field for field in news if field is not None)


EDITS = {
    "add": (*PLAIN_FIELDS, b"X-Added: yes"),
    "add-again": (*PLAIN_FIELDS, b"X-Twice: the third", b"X-Twice: the fourth"),
    "prepend": (b"X-Prepended: yes", *PLAIN_FIELDS),
    "prepend-again": (b"X-Twice: above the zeroth", b"X-Twice: the zeroth", *PLAIN_FIELDS),
    "change": _fields((b"Subject", b"Subject: changed")),
    "change-twice": _fields((b"X-Twice", b"X-Twice: only once"), (b"x-twice", None)),
    "change-first": _fields((b"Date", b"Date: Sat, 03 Jan 2026 10:00:00 +0000")),
    "change-none": (*PLAIN_FIELDS, b"X-New: there was none"),
    "change-empty": _fields((b"Subject", b"Subject: ")),
    "add-empty": (*PLAIN_FIELDS, b"X-Added: "),
    "fold": (*PLAIN_FIELDS, b"X-Added: one\r\n two\r\n\tthree"),
    "fold-changed": _fields((b"Subject", b"Subject: one\r\n two\r\n\tthree")),
    "blanks": (*PLAIN_FIELDS, b"X-Added:   two before,\ta tab, two behind  "),
    "many": (
        *(b"X-Added-%d: %d" % (number % 3, number) for number in reversed(range(20))),
        *PLAIN_FIELDS,
        *(b"X-Added-%d: %d" % (number % 3, number) for number in range(20)),
    ),
    "remove": _fields((b"X-Twice", None), (b"x-twice", None)),
    "remove-all": (
        b"From: Nobody <nobody@example.org>",
        b"Date: Sat, 03 Jan 2026 10:00:00 +0000",
        b"Message-ID: <new@example.org>",
    ),
}
"""What each edit of the policy `edits` makes of the header of `PLAIN`."""

BODIES = {
    "body": b"another body\r\n.\r\n..and its dots\r\n",
    "footer": PLAIN_BODY + b"-- \r\na footer\r\n",
    "no-body": b"",
}
"""What each edit of the policy `edits` makes of the body of `PLAIN`."""


def _edits() -> list[Pair]:
    """Return messages that are edited."""
    odd = edited(LETTER, (b"Subject:", b"X-Odd : a blank before the colon\r\nSubject:"))
    return [
        *(
            taken(
                f"{edit}, {stage}",
                f"edits:{stage}",
                PLAIN,
                difficult(*fields, body=PLAIN_BODY),
                to=f"{edit}@example.test",
            )
            for stage in ("in_headers", "in_message")
            for edit, fields in EDITS.items()
        ),
        *(
            taken(
                edit,
                "edits:in_message",
                PLAIN,
                difficult(*PLAIN_FIELDS, body=body),
                to=f"{edit}@example.test",
            )
            for edit, body in BODIES.items()
        ),
        taken(
            "add to a header alone",
            "edits:in_headers",
            HEADER_ONLY,
            HEADER_ONLY + b"X-Added: yes\r\n",
            to="add@example.test",
        ),
        taken(
            "footer of a megabyte",
            "edits:in_message",
            BIG,
            BIG + b"-- \r\na footer\r\n",
            to="footer@example.test",
        ),
        taken("a digest of a megabyte", "stamp", BIG, stamped(BIG)),
        *(
            taken(f"a first line of {first} octets", "stamp", edge(first), stamped(edge(first)))
            for first in (5, 6, 7)
        ),
        taken("remove-odd", "edits:in_headers", odd, LETTER, to="remove-odd@example.test"),
        taken(
            "a list's fields",
            "pairs:tagging",
            LETTER,
            edited(
                LETTER,
                (
                    b"Subject: a letter\r\n",
                    b"Subject: [list] a letter\r\nList-Id: <list.example.org>\r\n",
                ),
            ),
        ),
        taken(
            "a footer within a multipart",
            "pairs:footing",
            MULTIPART,
            edited(MULTIPART, (b"Hello.\r\n", b"Hello.\r\n-- \r\na footer\r\n")),
        ),
        *(
            taken(
                f"the size that is seen of {name}",
                "pairs:sizing",
                content,
                content.replace(b"\r\n\r\n", b"\r\nX-Size: %d\r\n\r\n" % len(content), 1),
            )
            for name, content in (("odd octets", PLAIN), ("an invoice", INVOICE))
        ),
    ]


def _verdicts() -> list[Pair]:
    """Return messages that are refused, and some that nearly were."""
    words = {
        "reject": Reply(554, "5.7.0 not here, 100% sure"),
        "defer": Reply(450, "4.2.0 come back in 5 minutes"),
        "disconnect": Reply(421, "4.7.0 that is enough"),
        "leave": Reply(554, "5.7.0 for good"),
    }
    stages = ("mail", "rcpt", "data", "headers", "body", "message")
    subject = Letter(letter(b"hello\r\n", subject=b"forbidden"))
    body = Letter(letter(b"line\r\n" * 9000 + b"forbidden\r\n"))
    return [
        *(
            Pair(
                f"{word} at {stage}",
                Serving(("verdicts",)),
                Letter(sender=f"{word}.{stage}@example.org"),
                refusals=(reply,),
            )
            for word, reply in words.items()
            for stage in stages
        ),
        *(
            refused(
                f"{word} at helo",
                "verdicts:at_helo",
                Letter(helo=f"{word}.example.org"),
                *words[word],
            )
            for word in ("reject", "defer")
        ),
        refused("a subject", "content:in_headers", subject, 550, "5.6.0 not this subject"),
        refused("a body, in pieces", "content:in_pieces", body, 550, "5.6.0 not this body"),
        refused("a body, whole", "content:in_whole", body, 550, "5.6.0 not this body"),
        refused("too big", "pairs:sizing", Letter(TOO_BIG), 552, "5.3.4 a megabyte is enough"),
        refused("a fault", "pairs:failing", Letter(), *FAILED),
        refused(
            "a fault, closed",
            "pairs:failing_closed",
            Letter(),
            550,
            "5.3.0 the mail policy failed",
        ),
        taken("a fault, open", "pairs:failing_open", LETTER),
        Pair(
            "one recipient of three",
            Serving(("recipients",)),
            Letter(recipients=(BOB, "nobody@example.test", "carol@example.test")),
            Delivery(LETTER, recipients=frozenset({BOB, "carol@example.test"})),
            (Reply(550, "5.1.1 no such user here"),),
        ),
        *(
            replace(
                taken(f"accept at {stage}", "verdicts:accepting_at", LETTER),
                serving=Serving(("verdicts:accepting_at",), (("stage", stage),)),
            )
            for stage in ("helo", "rcpt", "headers")
        ),
    ]


def _others() -> list[Pair]:
    """Return envelopes, chains and the examples."""
    chain = Serving(("recipients", "edits:in_message", "envelope"))
    examples = Serving(("examples/attachments/attachments", "examples/footer/footer"))
    postmaster, carol = "postmaster@example.test", "carol@example.test"
    no_program = Reply(550, "5.7.1 we take no attachments named *.exe")
    return [
        Pair(
            "sender and recipient changed",
            Serving(("envelope",)),
            Letter(PLAIN, recipients=(postmaster, BOB)),
            Delivery(PLAIN, "bounces@example.org", frozenset({carol, BOB})),
        ),
        Pair(
            "a chain",
            chain,
            Letter(PLAIN, recipients=("nobody@example.test", "add@example.test", postmaster)),
            Delivery(
                difficult(*EDITS["add"], body=PLAIN_BODY),
                "bounces@example.org",
                frozenset({"add@example.test", carol}),
            ),
            (Reply(550, "5.1.1 no such user here"),),
        ),
        Pair("the examples", examples, Letter(INVOICE), Delivery(INVOICE_WITH_FOOTER)),
        Pair("a program", examples, Letter(example("program")), refusals=(no_program,)),
        taken("the greylist, from here", "examples/greylist/greylist", PLAIN),
    ]


PAIRS = sorted((*_contents(), *_edits(), *_verdicts(), *_others()), key=lambda p: str(p.serving))
