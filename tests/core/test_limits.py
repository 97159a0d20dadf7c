"""Limits and their defaults."""

from __future__ import annotations

from mailgate.limits import KIB, MIB, Limits


def test_defaults() -> None:
    """The table of reliability.md, as far as this version has those limits."""
    limits = Limits()
    assert limits.message == 50 * MIB
    assert limits.memory == MIB
    assert limits.headers == 256 * KIB
    assert limits.fields == 1000
    assert limits.recipients == 1000
    assert limits.sessions == 4000
    assert limits.oversize == "defer"
