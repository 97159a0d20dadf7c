"""What the proxy itself answers: the codes of RFC 5321 4.2.3 with those of RFC 3463."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from mailgate.verdict import Refusal
from mailgate_smtp.wire import Reply, reply

OK = reply(250, "2.0.0", "Ok")
SENDER_OK = reply(250, "2.1.0", "Ok")
RECIPIENT_OK = reply(250, "2.1.5", "Ok")
GO_AHEAD = Reply(354, (b"End data with <CR><LF>.<CR><LF>",))
BYE = reply(221, "2.0.0", "Bye")
CANNOT_VRFY = reply(252, "2.0.0", "Cannot VRFY user; try RCPT")
NOT_IMPLEMENTED = reply(502, "5.5.1", "Command not implemented")
UNKNOWN = reply(500, "5.5.2", "Command not recognized")
BAD_NAME = reply(501, "5.5.4", "The greeting needs a host name or an address literal")
NO_ARGUMENT = reply(501, "5.5.4", "The command takes no argument")
LOGGED_IN = reply(503, "5.5.1", "Already authenticated")
LOGIN_OK = reply(235, "2.7.0", "Authentication successful")
LOGIN_FAILED = reply(535, "5.7.8", "Authentication credentials invalid")
LOGIN_DEFERRED = reply(454, "4.7.0", "Temporary authentication failure")
LOGIN_NEEDS_TLS = reply(
    538, "5.7.11", "Encryption required for requested authentication mechanism"
)
NO_MECHANISM = reply(504, "5.5.4", "Unrecognized authentication type")
TOO_MANY_ERRORS = reply(421, "4.7.0", "Too many errors")
TOO_SLOW = reply(421, "4.4.2", "Timeout: closing the connection")
TOO_MANY_CONNECTIONS = reply(421, "4.7.0", "Too many connections")
TOO_LONG = reply(500, "5.5.2", "Command line too long")
BARE_LF = reply(500, "5.5.2", "Command lines end in CRLF")
EARLY = reply(554, "5.5.1", "The client spoke before it was greeted")
PIPELINED_TLS = reply(421, "4.7.0", "Commands behind STARTTLS: closing the connection")
READY_FOR_TLS = reply(220, "2.0.0", "Ready to start TLS")
FAULT = reply(421, "4.3.0", "Internal error: closing the connection")
FAR_TOO_BIG = reply(552, "5.3.4", "Message size exceeds fixed limit: closing the connection")
NO_HEADER = reply(421, "4.7.0", "A PROXY header of a trusted peer is wanted here")
NOT_SMTP = reply(421, "4.7.0", "This is an SMTP server")
NO_UPSTREAM = reply(421, "4.4.1", "The mail server behind this one is not available")
NO_HELLO = reply(503, "5.5.1", "Send HELO or EHLO first")
NESTED = reply(503, "5.5.1", "Nested MAIL command")
NEED_MAIL = reply(503, "5.5.1", "Need MAIL command")
NO_RECIPIENTS = reply(554, "5.5.1", "No valid recipients")
IN_TRANSACTION = reply(503, "5.5.1", "Not permitted during a mail transaction")
NOT_PERMITTED = reply(550, "5.7.0", "You are not authorized to use this command")
NEED_TLS = reply(530, "5.7.0", "Must issue a STARTTLS command first")
NEED_AUTH = reply(530, "5.7.0", "Authentication required")
LMTP_NO_RECIPIENTS = reply(503, "5.5.1", "No valid recipients")  # RFC 2033 4.2
RELAY_DENIED = reply(550, "5.7.1", "Relay access denied")
TOO_MANY = reply(452, "4.5.3", "Too many recipients")
ONE_EACH = reply(452, "4.5.3", "One recipient at a time: send the others in another transaction")
NO_MEMORY = reply(452, "4.3.1", "Insufficient system storage")
OUR_FAULT = reply(451, "4.3.0", "Internal error")
NOT_ALL = reply(451, "4.3.0", "Not all recipients were accepted")
NO_CHUNK = reply(503, "5.5.1", "A chunk was refused before this one: send RSET")
STOPPING = reply(421, "4.3.2", "Service shutting down")


@lru_cache(maxsize=1024)
def refusal(verdict: Refusal) -> Reply:
    """Return the reply of a verdict; the enhanced status code stands in every line."""
    said = verdict.reply
    return reply(said.code, said.enhanced, said.lines)


def folded(replies: Sequence[Reply]) -> Reply:
    """Return one reply for several recipients.

    Where some have the message and others have not, no reply is right: 4xx has all of them get
    it again, and none loses it.
    """
    bad = [each for each in replies if not each.positive]
    if not bad:
        return replies[0]
    if len(bad) == len(replies) and len({each.code // 100 for each in bad}) == 1:
        return bad[0]
    return NOT_ALL
