"""Cases about header fields and bodies: read, edited, left alone."""

from __future__ import annotations

from mailgate.contract.case import END, LONG, PLAIN, Case, Delivery, Mail, add_to, edited
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.verdict import Reject

CASES: list[Case] = []
_case = add_to(CASES)

_HEAD, _BODY = PLAIN.split(b"\r\n\r\n", 1)
_NO_MAILERS = edited((b"X-Mailer: one\r\nx-mailer: two\r\n", b""))


@_case(Delivery(raw=PLAIN))
def untouched_with_headers_read() -> Policy:
    policy = Policy()

    @policy.headers
    async def look(message: Message) -> None:
        list(message.headers)

    return policy


@_case(Delivery(raw=PLAIN))
def untouched_with_body_shown() -> Policy:
    policy = Policy()

    @policy.body
    async def look(message: Message, piece: bytes) -> None:
        assert piece.endswith(b"\r\n")

    return policy


@_case(Delivery(raw=PLAIN))
def untouched_with_everything_read() -> Policy:
    policy = Policy()

    @policy.message
    async def look(message: Message) -> Reject | None:
        return None if message.raw == PLAIN else Reject("that is not what was sent")

    return policy


@_case(Delivery(raw=LONG), Mail(raw=LONG))
def untouched_and_long() -> Policy:
    policy = Policy()

    @policy.message
    def look(message: Message) -> Reject | None:
        return None if message.size == len(LONG) else Reject("that is not what was sent")

    return policy


@_case(Delivery(raw=edited((END, END + b"X-Gate: seen\r\n"))))
def header_added() -> Policy:
    policy = Policy()

    @policy.headers
    async def add(message: Message) -> None:
        message.headers.add("X-Gate", "seen")

    return policy


@_case(Delivery(raw=b"X-Second: 2\r\nX-First: 1\r\n" + PLAIN))
def headers_prepended() -> Policy:
    policy = Policy()

    @policy.message
    async def prepend(message: Message) -> None:
        message.headers.prepend("X-First", "1")
        message.headers.prepend("X-Second", "2")

    return policy


@_case(Delivery(raw=edited((b"Subject: folded\r\n over two lines", b"Subject: [list] hello"))))
def header_changed() -> Policy:
    policy = Policy()

    @policy.headers
    async def change(message: Message) -> Reject | None:
        if message.headers["subject"] != "folded over two lines":
            return Reject("not unfolded")
        message.headers["Subject"] = "[list] hello"
        return None

    return policy


@_case(Delivery(raw=edited((b"Subject: folded\r\n over two lines", b"Subject: hello"))))
def header_changed_by_another_spelling() -> Policy:
    policy = Policy()

    @policy.headers
    async def change(message: Message) -> None:
        message.headers["SUBJECT"] = "hello"

    return policy


@_case(Delivery(raw=edited((b"X-Mailer: one\r\nx-mailer: two\r\n", b"X-Mailer: three\r\n"))))
def header_changed_and_its_others_deleted() -> Policy:
    policy = Policy()

    @policy.message
    async def change(message: Message) -> None:
        message.headers["X-Mailer"] = "three"

    return policy


@_case(Delivery(raw=edited((b"X-Mailer: one\r\nx-mailer: two\r\n", b""))))
def header_removed() -> Policy:
    policy = Policy()

    @policy.headers
    async def remove(message: Message) -> None:
        del message.headers["X-MAILER"]

    return policy


@_case(Delivery(raw=PLAIN.partition(b"\r\n\r\n")[0] + b"\r\n\r\n.\r\nnew\r\n"))
def body_replaced() -> Policy:
    policy = Policy()

    @policy.message
    async def replace(message: Message) -> None:
        message.body = b".\nnew"

    return policy


@_case(Delivery(raw=PLAIN + b"-- \r\nfooter\r\n"))
def body_appended_in_a_thread() -> Policy:
    policy = Policy()

    @policy.message
    def append(message: Message) -> None:
        message.body += b"-- \r\nfooter\r\n"

    return policy


@_case(
    Delivery(
        raw=b"X-Top: b\r\nX-Top: a\r\n"
        + _NO_MAILERS.replace(END, END + b"X-Seen: 1\r\nX-Seen: 2\r\nX-Mailer: three\r\n")
    )
)
def fields_of_one_name_added_and_deleted() -> Policy:
    policy = Policy()

    @policy.headers
    async def first(message: Message) -> None:
        del message.headers["X-Mailer"]
        message.headers.add("X-Seen", "1")
        message.headers.prepend("X-Top", "a")

    @policy.message
    async def second(message: Message) -> None:
        message.headers.add("X-Seen", "2")
        message.headers.add("X-Mailer", "three")
        message.headers.prepend("X-Top", "b")

    return policy


@_case(Delivery(raw=edited((b"X-Mailer: one\r\nx-mailer: two\r\n", b"X-Mailer: \r\n"))))
def header_emptied() -> Policy:
    policy = Policy()

    @policy.headers
    async def empty(message: Message) -> None:
        message.headers["X-Mailer"] = ""

    return policy


@_case(
    Delivery(
        raw=edited(
            (
                b"Subject: folded\r\n over two lines",
                b"Subject: " + b"long " * 13 + b"long\r\n long line",
            ),
            (END, END + b"X-Umlaut: =?utf-8?b?Z3LDvG4=?=\r\n"),
        )
    )
)
def values_folded_and_encoded() -> Policy:
    policy = Policy()

    @policy.headers
    async def write(message: Message) -> None:
        message.headers["Subject"] = "long " * 15 + "line"
        message.headers["X-Umlaut"] = "gr\xfcn"

    return policy


@_case(
    Delivery(
        raw=edited(
            (b"Subject: folded\r\n over", b"X-Middle: here\r\nSubject: folded over"),
        )
    )
)
def header_put_in_the_middle() -> Policy:
    policy = Policy()

    @policy.message
    def insert(message: Message) -> None:
        mail = message.parse()
        fields = list(mail.items())
        for name in {name for name, _ in fields}:
            del mail[name]
        for name, value in fields:
            if name == "Subject":
                mail["X-Middle"] = "here"
            mail[name] = value
        message.replace(mail)

    return policy


@_case(Delivery(raw=_HEAD + b"\r\n\r\n"))
def body_emptied() -> Policy:
    policy = Policy()

    @policy.message
    async def empty(message: Message) -> None:
        message.body = b""

    return policy


@_case(Delivery(raw=_HEAD + b"\r\n\r\n" + b"0123456789abcde\r\n" * 20_000))
def body_replaced_by_a_long_one() -> Policy:
    policy = Policy()

    @policy.message
    async def replace(message: Message) -> None:
        message.body = b"0123456789abcde\n" * 20_000

    return policy
