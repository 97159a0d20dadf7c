"""Limits and their defaults: the ``[limits]`` table of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from mailgate.stage import OnError

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """What one message, one connection and one process may cost.

    Sizes are octets; the configuration also takes ``"50M"`` and ``"64K"``.
    """

    message: int = 50 * MIB  # Postfix takes 10 MB, OpenSMTPD 35 MiB by default
    oversize: OnError = "defer"  # a message over it: 451, 552, or passed on unseen
    memory: int = MIB  # of one message; what is above is spooled
    headers: int = 256 * KIB  # the section; Postfix takes 100 KiB, Sendmail 32 KiB
    fields: int = 1000  # header fields
    recipients: int = 1000  # as Postfix; RFC 5321 4.5.3.1.8 wants at least 100
    sessions: int = 4000  # at a time; a new one above it gets 421
    threads: int = 16  # that run `def` handlers at a time

    def __post_init__(self) -> None:
        for name in ("message", "headers", "fields", "recipients", "sessions", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name!r} must be above 0")
        if self.memory < 0:
            raise ValueError("'memory' must be 0 or above")
