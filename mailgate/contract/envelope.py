"""Cases about senders and recipients, and about everything at once."""

from __future__ import annotations

from mailgate.address import Address
from mailgate.contract.case import PLAIN, Case, Delivery, Mail, add_to
from mailgate.message import Message
from mailgate.policy import Policy
from mailgate.verdict import Reject

CASES: list[Case] = []
_case = add_to(CASES)

_HEAD, _BODY = PLAIN.split(b"\r\n\r\n", 1)


@_case(
    Delivery(raw=PLAIN, sender="new@example.net"),
)
def sender_changed() -> Policy:
    policy = Policy()

    @policy.mail(needs={"change_sender"})
    async def change(message: Message) -> None:
        message.change_sender("new@example.net")

    return policy


@_case(Delivery(raw=PLAIN, recipients=["new@example.net"]))
def recipient_changed() -> Policy:
    policy = Policy()

    @policy.rcpt(needs={"change_recipient"})
    async def change(message: Message, recipient: Address) -> None:
        message.change_recipient(recipient, "new@example.net")

    return policy


@_case(Delivery(raw=PLAIN, recipients=["bob@example.org", "archive@example.org"]))
def recipient_added() -> Policy:
    policy = Policy()

    @policy.message(needs={"add_recipient"})
    async def add(message: Message) -> None:
        message.add_recipient("archive@example.org")

    return policy


@_case(Delivery(raw=PLAIN, sender=""), Mail(sender=""))
def null_sender_seen() -> Policy:
    policy = Policy()

    @policy.mail
    async def look(message: Message) -> Reject | None:
        return Reject("that is not the null sender") if message.sender else None

    return policy


@_case(Delivery(raw=PLAIN, sender=""))
def sender_changed_to_null() -> Policy:
    policy = Policy()

    @policy.mail(needs={"change_sender"})
    async def change(message: Message) -> None:
        message.change_sender("")

    return policy


@_case(
    Delivery(raw=PLAIN, sender="new@example.net", params={"ENVID": "QQ2", "RET": "HDRS"}),
    Mail(params={"ENVID": "QQ1", "RET": "FULL"}),
)
def sender_changed_with_parameters() -> Policy:
    policy = Policy()

    @policy.mail(needs={"change_sender"})
    async def change(message: Message) -> None:
        message.change_sender("new@example.net", {"ENVID": "QQ2", "RET": "HDRS"})

    return policy


@_case(
    Delivery(raw=PLAIN, sender="new@example.net", params={"ENVID": "QQ1", "RET": "FULL"}),
    Mail(params={"ENVID": "QQ1", "RET": "FULL"}),
)
def sender_changed_and_its_parameters_kept() -> Policy:
    policy = Policy()

    @policy.mail(needs={"change_sender"})
    async def change(message: Message) -> None:
        message.change_sender("new@example.net")

    return policy


@_case(
    Delivery(raw=PLAIN, sender="new@example.net", params={"ENVID": "QQ1", "RET": "HDRS"}),
    Mail(params={"ENVID": "QQ1", "RET": "FULL"}),
)
def sender_changed_with_one_of_its_parameters() -> Policy:
    policy = Policy()

    @policy.mail(needs={"change_sender"})
    async def change(message: Message) -> None:
        params = dict(message.sender.params) | {"RET": "HDRS"}
        message.change_sender("new@example.net", params)

    return policy


@_case(
    Delivery(raw=PLAIN, recipients=["bob@example.org"]),
    Mail(recipients=["no@example.org", "bob@example.org"]),
)
def recipient_removed() -> Policy:
    policy = Policy()

    @policy.message(needs={"remove_recipient"})
    async def remove(message: Message) -> None:
        message.remove_recipient("no@example.org")

    return policy


@_case(
    Delivery(
        raw=b"X-Top: yes\r\n"
        + _HEAD.replace(b"X-Mailer: one\r\nx-mailer: two\r\n", b"").replace(
            b"Subject: folded\r\n over two lines", b"Subject: new"
        )
        + b"\r\nX-Gate: seen\r\n\r\n"
        + _BODY
        + b"-- \r\nfooter\r\n",
        sender="new@example.net",
        recipients=["bob@example.org", "archive@example.org"],
    ),
    Mail(recipients=["no@example.org", "bob@example.org"]),
)
def everything_edited_at_once() -> Policy:
    policy = Policy()

    @policy.message(needs={"change_sender", "add_recipient", "remove_recipient"})
    async def edit(message: Message) -> None:
        message.body += b"-- \r\nfooter\r\n"
        message.remove_recipient("no@example.org")
        message.headers["Subject"] = "new"
        message.add_recipient("archive@example.org")
        message.headers.prepend("X-Top", "yes")
        del message.headers["X-Mailer"]
        message.change_sender("new@example.net")
        message.headers.add("X-Gate", "seen")

    return policy
