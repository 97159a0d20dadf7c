"""The handshake: which smtpd it is, and what to ask it for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from mailgate.chain import Capabilities, Interest
from mailgate.errors import ConfigError
from mailgate.stage import MESSAGE_STAGES, SESSION_STAGES, Stage
from mailgate_opensmtpd.wire import EVENTS, OUTGOING, PHASES, READY, register

_SESSION_FACTS = frozenset({"rdns"})
_LATER_FACTS = _SESSION_FACTS | {"tls"}
_MESSAGE_FACTS = _LATER_FACTS | {"auth", "params"}

CAPABILITIES: Capabilities = {
    Stage.CONNECT: _SESSION_FACTS,
    Stage.HELO: _LATER_FACTS | {"auth", "change_helo"},
    Stage.STARTTLS: _SESSION_FACTS,
    Stage.AUTH: _LATER_FACTS | {"credentials"},
    Stage.MAIL: _MESSAGE_FACTS | {"change_sender"},
    Stage.RCPT: _MESSAGE_FACTS | {"change_recipient"},
    Stage.DATA: _MESSAGE_FACTS,
    Stage.HEADERS: _MESSAGE_FACTS,
    Stage.BODY: _MESSAGE_FACTS,
    Stage.MESSAGE: _MESSAGE_FACTS,
    Stage.COMMAND: _LATER_FACTS | {"auth", "NOOP", "RSET", "QUIT"},
    Stage.EVENT: _MESSAGE_FACTS,
    Stage.DONE: _MESSAGE_FACTS,
    Stage.CLOSE: _MESSAGE_FACTS,
}
"""What smtpd-filters(7) can do at each stage; it can rewrite a path in its own phase only."""

_PHASES_OF: Mapping[Stage, tuple[str, ...]] = {
    Stage.CONNECT: ("connect",),
    Stage.HELO: ("helo", "ehlo"),
    Stage.STARTTLS: ("starttls",),
    Stage.AUTH: ("auth",),
    Stage.MAIL: ("mail-from",),
    Stage.RCPT: ("rcpt-to",),
    Stage.DATA: ("data",),
}

_SESSION_REPORTS = ("link-connect", "link-disconnect")
_GREETING_REPORTS = ("link-identify", "link-tls", "link-auth")
_MESSAGE_REPORTS = (
    *("tx-begin", "tx-mail", "tx-rcpt", "tx-commit", "tx-rollback", "tx-reset"),
    "protocol-client",  # the only place that shows ESMTP parameters
)

_REFUSED_AT_MAIL = SESSION_STAGES | {Stage.COMMAND}


def phases(interest: Interest) -> list[str]:
    """Return the phases that policies answer, in the protocol's order.

    A refusal that comes too late for its own phase is given at mail-from or commit, so these
    are asked for whenever one could be.
    """
    wanted = {p for stage, names in _PHASES_OF.items() if stage in interest.answers for p in names}
    wanted |= {verb.lower() for verb in interest.verbs}
    if interest.refusing & _REFUSED_AT_MAIL:
        wanted.add("mail-from")
    if interest.content != "none":
        wanted |= {"data-line", "commit"}
    if interest.refusing & (_REFUSED_AT_MAIL | MESSAGE_STAGES):
        wanted.add("commit")
    return [phase for phase in PHASES if phase in wanted]


def reports(interest: Interest) -> list[str]:
    """Return the reports that carry what the asked handlers may look at."""
    if Stage.EVENT in interest.asked:
        return list(EVENTS)
    wanted = list(_SESSION_REPORTS)
    if interest.asked - {Stage.CONNECT, Stage.STARTTLS}:
        wanted += _GREETING_REPORTS
    if interest.asked & (MESSAGE_STAGES | {Stage.DONE}):
        wanted += _MESSAGE_REPORTS
    elif interest.observes_commands or _observed(interest) & {Stage.STARTTLS, Stage.AUTH}:
        wanted.append("protocol-client")
    if Stage.DATA in _observed(interest):
        wanted.append("tx-data")
    if phases(interest):
        wanted.append("filter-response")  # an earlier filter may keep a phase from us
    return wanted


def _observed(interest: Interest) -> frozenset[Stage]:
    return interest.asked - interest.answers


def registration(interest: Interest, *, outgoing: bool) -> Iterator[bytes]:
    """Yield the lines that end the handshake; ``outgoing`` where a relay uses the filter."""
    for report in reports(interest):
        yield register("report", "smtp-in", report)
    if outgoing and Stage.EVENT in interest.asked:
        for report in OUTGOING:
            yield register("report", "smtp-out", report)
    for phase in phases(interest):
        yield register("filter", "smtp-in", phase)
    yield READY


def check_release(config: Mapping[str, Sequence[str]]) -> None:
    """Refuse an smtpd whose protocol is unknown, before it hears ``register|ready``.

    From 7.6 on the handshake tells the protocol; before it, the release does.
    """
    release = next(iter(config.get("smtpd-version", ())), "")
    protocol = next(iter(config.get("protocol", ())), "")
    if protocol and not protocol.startswith("0."):
        raise ConfigError(
            f"OpenSMTPD {release} speaks filter protocol {protocol}; this mailgate knows 0.4 to 0.7"
        )
    found = re.match(r"(\d{1,4})\.(\d{1,4})", release)
    if not protocol and found and (int(found[1]), int(found[2])) < (6, 6):
        raise ConfigError(f"OpenSMTPD {release} is too old: its filters need 6.6 or later")
