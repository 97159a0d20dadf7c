"""Write into the header what is known of the client and the message."""

from __future__ import annotations

from mailgate import Address, Message, Policy

policy = Policy("facts")


def path(address: Address) -> str:
    """Return an address in brackets, and its ESMTP parameters in order of their names."""
    return " ".join((f"<{address}>", *(f"{n}={v}" for n, v in sorted(address.params.items()))))


@policy.message(needs={"rdns", "tls", "auth", "params"})
async def tell(message: Message) -> None:
    """Tell everything, one field each."""
    session = message.session
    told = {
        "Client": session.client,
        "Port": session.client_port,
        "Server": session.server,
        "Server-Port": session.server_port,
        "Name": session.rdns,
        "Verified": session.rdns_verified,
        "Local": session.local,
        "Helo": session.helo,
        "TLS": session.tls and f"{session.tls.version} {session.tls.cipher} {session.tls.bits}",
        "User": session.user,
        "Id": message.id,
        "Sender": path(message.sender),
        "Recipients": " ".join(map(path, message.recipients)),
        "Host": session.macros.get("j"),
        "Queue-Id": session.macros.get("{i}"),
        "Mail-Address": session.macros.get("mail_addr"),
        "Client-Address": session.macros.get("client_addr"),
    }
    for name, value in told.items():
        message.headers.add(f"X-Fact-{name}", str(value))
