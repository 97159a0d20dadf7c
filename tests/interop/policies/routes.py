"""Change the envelope at the end of the message, as its first recipient's local part says."""

from __future__ import annotations

from mailgate import Message, Policy

policy = Policy("routes")


@policy.message(needs={"change_sender", "change_recipient", "add_recipient", "remove_recipient"})
async def route(message: Message) -> None:
    """Make one edit of the envelope."""
    first, *others = message.recipients
    match first.local:
        case "sender":
            message.change_sender("bounces@example.org")
        case "parameters":
            message.change_sender("bounces@example.org", {"ENVID": "QQ314159", "RET": "HDRS"})
        case "null":
            message.change_sender("")
        case "add":
            message.add_recipient("carol@example.test")
        case "add-silent":
            message.add_recipient("carol@example.test", {"NOTIFY": "NEVER"})
        case "change":
            message.change_recipient(first, "carol@example.test")
        case "again":
            message.remove_recipient(first)
            message.add_recipient(first)
            message.add_recipient(others[0])
        case "remove":
            message.remove_recipient(first)
        case "remove-all":
            for recipient in (first, *others):
                message.remove_recipient(recipient)
