"""Write a mail policy once, run it behind any MTA.

Everything a policy author needs is here; `mailgate.testing` is for the tests of a policy.
"""

from mailgate.address import Address
from mailgate.headers import Headers
from mailgate.message import Ending, Message
from mailgate.policy import Policy
from mailgate.session import TLS, Attempt, Event, Session
from mailgate.state import PerMessage, PerSession
from mailgate.verdict import (
    Accept,
    Authenticated,
    Defer,
    Discard,
    Disconnect,
    Quarantine,
    Reject,
    Verdict,
)

__version__ = "0.1.0"

__all__ = [
    "TLS",
    "Accept",
    "Address",
    "Attempt",
    "Authenticated",
    "Defer",
    "Discard",
    "Disconnect",
    "Ending",
    "Event",
    "Headers",
    "Message",
    "PerMessage",
    "PerSession",
    "Policy",
    "Quarantine",
    "Reject",
    "Session",
    "Verdict",
]
