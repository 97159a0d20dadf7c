"""What to ask of the MTA: everything that the policies cannot decide is negotiated away.

Round trips are what a milter costs, so an event is left out where nobody looks at it (NO*) and
not answered where nobody may refuse (NR_*).  Nothing is asked that was not offered: Sendmail
takes that for a fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from mailgate.chain import UNKNOWN_VERBS, Capabilities, Chain, Interest
from mailgate.stage import MESSAGE_STAGES, SESSION_STAGES, Stage
from mailgate_milter.wire import (
    ACTIONS_OF,
    CHUNK_OF,
    MAX_DATA,
    NEWEST,
    OFFER_OCTETS,
    OLDEST,
    STEPS_OF,
    Action,
    Command,
    MacroStage,
    Offer,
    Step,
    WireError,
    negotiated,
    parse_offer,
)

_CONNECT_FACTS = frozenset({"rdns"})
_HELO_FACTS = _CONNECT_FACTS | {"tls"}
_MESSAGE_FACTS = _HELO_FACTS | {"auth", "params"}
_EDITS = frozenset(
    {
        *("change_sender", "change_recipient", "add_recipient", "remove_recipient"),
        *("quarantine", "discard"),
    }
)

CAPABILITIES: Capabilities = {
    Stage.CONNECT: _CONNECT_FACTS,
    Stage.HELO: _HELO_FACTS,
    **dict.fromkeys(MESSAGE_STAGES, _MESSAGE_FACTS | _EDITS),
    Stage.COMMAND: _HELO_FACTS | {UNKNOWN_VERBS},
    Stage.EVENT: _MESSAGE_FACTS,
    Stage.DONE: _MESSAGE_FACTS,
    Stage.CLOSE: _MESSAGE_FACTS,
}
"""What a milter can do at each stage: edits are made at the end of the message, and may be
decided from MAIL on.
"""

_ACTIONS_FOR: Mapping[str, Action] = {
    "change_sender": Action.CHGFROM,
    "add_recipient": Action.ADDRCPT,
    "remove_recipient": Action.DELRCPT,
    "change_recipient": Action.ADDRCPT | Action.DELRCPT,
    "quarantine": Action.QUARANTINE,
}

_CONTENT_EDITS: Mapping[Stage, Action] = {
    Stage.HEADERS: Action.ADDHDRS | Action.CHGHDRS,
    Stage.MESSAGE: Action.ADDHDRS | Action.CHGHDRS | Action.CHGBODY,
}

_ENVELOPE = MESSAGE_STAGES | {Stage.DONE}
_REFUSED_AT_MAIL = SESSION_STAGES | {Stage.COMMAND}

_NO: Mapping[Command, Step] = {
    Command.HELO: Step.NOHELO,
    Command.MAIL: Step.NOMAIL,
    Command.RCPT: Step.NORCPT,
    Command.DATA: Step.NODATA,
    Command.HEADER: Step.NOHDRS,
    Command.EOH: Step.NOEOH,
    Command.BODY: Step.NOBODY,
    Command.UNKNOWN: Step.NOUNKNOWN,
}
"""CONNECT is always asked for: it tells who the client is."""

_NR: Mapping[Command, Step] = {
    Command.CONNECT: Step.NR_CONN,
    Command.HELO: Step.NR_HELO,
    Command.MAIL: Step.NR_MAIL,
    Command.RCPT: Step.NR_RCPT,
    Command.DATA: Step.NR_DATA,
    Command.HEADER: Step.NR_HDR,
    Command.EOH: Step.NR_EOH,
    Command.BODY: Step.NR_BODY,
    Command.UNKNOWN: Step.NR_UNKN,
}

_TLS = ("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}")

SYMBOLS: Mapping[MacroStage, Sequence[str]] = {
    MacroStage.CONNECT: (
        *("j", "_", "v", "{daemon_name}", "{daemon_addr}", "{daemon_port}", "{if_addr}"),
        *("{client_addr}", "{client_port}", "{client_name}", "{client_ptr}"),
        *("{client_resolve}", "{client_connections}"),
    ),
    MacroStage.HELO: _TLS,
    MacroStage.MAIL: (
        *("i", "{auth_type}", "{auth_authen}", "{auth_author}"),
        *("{mail_addr}", "{mail_host}", "{mail_mailer}", *_TLS),
    ),
    MacroStage.RCPT: ("i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"),
    MacroStage.DATA: ("i",),
    MacroStage.EOH: ("i",),
    MacroStage.EOM: ("i",),
}
"""The macros to ask for: without a list each MTA sends its own choice, and no client address.

TLS is told again at MAIL for clients that do not greet again after STARTTLS.
"""

_EVENT_OF: Mapping[MacroStage, Command] = {
    MacroStage.HELO: Command.HELO,
    MacroStage.MAIL: Command.MAIL,
    MacroStage.RCPT: Command.RCPT,
    MacroStage.DATA: Command.DATA,
    MacroStage.EOH: Command.EOH,
}


class Unsuitable(WireError):
    """The MTA does not offer what the policies need."""


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What was agreed on, for one set of policies and one offer.

    ``answered`` are the commands that the MTA waits for an answer to, ``left_out`` those that
    it does not send.  ``shows`` and ``keeps`` say what becomes of the body: shown in pieces,
    kept for the end.  ``chunk`` is the size of a body packet, in octets.
    """

    packet: bytes
    answered: frozenset[int]
    left_out: frozenset[int]
    asks_connect: bool
    asks_helo: bool
    events: bool
    data: bool
    headers: bool
    shows: bool
    keeps: bool
    skips: bool
    leading_space: bool
    with_arguments: bool
    chunk: int


@final
class Agreements:
    """What was agreed on so far: every connection of one MTA makes the same offer."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._known: dict[bytes, tuple[Chain, Plan]] = {}

    def agree(self, chain: Chain, offer: bytes) -> tuple[Chain, Plan]:
        """Return what `agree` does, for the data of OPTNEG."""
        if self._chain is not chain:  # a reload
            self._chain = chain
            self._known.clear()
        key = offer[:OFFER_OCTETS]
        agreed = self._known.get(key)
        if agreed is None:
            agreed = agree(chain, parse_offer(offer))
            if len(self._known) < _MOST_KNOWN:
                self._known[key] = agreed
        return agreed


_MOST_KNOWN = 64  # a peer that offers another thing each time is no MTA


def agree(chain: Chain, offered: Offer) -> tuple[Chain, Plan]:
    """Return what to agree on with an MTA, and the policies as that MTA can serve them.

    WireError for a version that is too old, Unsuitable for an offer that is not enough.
    """
    if offered.version < OLDEST:
        raise WireError(f"version {offered.version} of the protocol, older than {OLDEST}")
    missing = lacking(chain.interest, offered)
    if missing:
        chain = chain.without(missing)
    return chain, plan(chain.interest, offered)


def lacking(interest: Interest, offered: Offer) -> frozenset[str]:
    """Return the capabilities that policies would use and an MTA does not offer.

    Raises Unsuitable where one of them is needed, and where fields or the body could not be
    edited.
    """
    actions = offered.actions & ACTIONS_OF[min(offered.version, NEWEST)]
    for stage, wanted in _CONTENT_EDITS.items():
        if stage in interest.asked and wanted & ~actions:
            lacks = ", ".join(str(action.name) for action in wanted & ~Action(actions))
            raise Unsuitable(
                f"the MTA does not offer {lacks}, which handlers of {stage} need: it wants a newer "
                "MTA, or a policy without them"
            )
    missing = {name for name, wanted in _ACTIONS_FOR.items() if wanted & ~actions}
    needed = sorted(missing & interest.needs)
    if needed:
        raise Unsuitable(
            f"the MTA does not offer what the policies need: {', '.join(needed)}; with wants= in "
            "place of needs= they can do without"
        )
    return frozenset(missing & interest.uses)


def plan(interest: Interest, offered: Offer) -> Plan:
    """Return what to ask of an MTA that offers what the policies need."""
    version = min(offered.version, NEWEST)
    may = Step(offered.steps & STEPS_OF[version])
    actions = _actions(interest) & Action(offered.actions) & ACTIONS_OF[version]
    wanted, answered = _wanted(interest), _answered(interest)
    no = Step(0)
    for command, step in _NO.items():
        no |= step if command not in wanted else Step(0)
    nr = Step(0)
    for command, step in _NR.items():
        nr |= step if command not in answered else Step(0)
    extra = _extra(interest, answered)
    chunk = next((step for step in CHUNK_OF if Command.BODY in wanted and step & may), Step(0))
    steps = (no | nr | extra | chunk) & may
    symbols = _symbols(wanted) if actions & Action.SETSYMLIST else {}
    return Plan(
        packet=negotiated(version, actions, steps, symbols),
        answered=frozenset(c for c in Command if not steps & _NR.get(c, Step(0)))
        - {Command.ABORT, Command.QUIT, Command.QUIT_NC, Command.MACRO},
        left_out=frozenset(c for c, step in _NO.items() if steps & step),
        asks_connect=bool(interest.asked & {Stage.CONNECT, Stage.EVENT}),
        asks_helo=bool(interest.asked & {Stage.HELO, Stage.EVENT}),
        events=Stage.EVENT in interest.asked,
        data=Stage.DATA in interest.asked,
        headers=Command.HEADER in wanted,
        shows=Stage.BODY in interest.asked,
        keeps=interest.content == "buffer",
        skips=bool(steps & Step.SKIP),
        leading_space=bool(steps & Step.HDR_LEADSPC),
        with_arguments=bool(actions & Action.ADDRCPT_PAR),
        chunk=CHUNK_OF.get(chunk, MAX_DATA),
    )


def _actions(interest: Interest) -> Action:
    """Return what the policies may do to a message."""
    actions = Action.SETSYMLIST
    for name in interest.uses:
        actions |= _ACTIONS_FOR.get(name, Action(0))
    if actions & Action.ADDRCPT:
        actions |= Action.ADDRCPT_PAR
    for stage, edits in _CONTENT_EDITS.items():
        if stage in interest.asked:
            actions |= edits
    return actions


def _wanted(interest: Interest) -> frozenset[Command]:
    """Return the events whose facts or content somebody may look at."""
    asked = interest.asked
    wanted = {Command.CONNECT, Command.EOM}
    if asked - {Stage.CONNECT}:
        wanted.add(Command.HELO)
    if asked & _ENVELOPE or interest.refusing & _REFUSED_AT_MAIL:
        wanted.add(Command.MAIL)
    if asked & (_ENVELOPE - {Stage.MAIL}) or Stage.EVENT in asked:
        wanted |= {Command.MAIL, Command.RCPT}
    if asked & {Stage.DATA, Stage.EVENT}:
        wanted.add(Command.DATA)
    if interest.content != "none":
        wanted |= {Command.HEADER, Command.EOH}
    if interest.content in ("stream", "buffer"):
        wanted.add(Command.BODY)
    if interest.verbs or interest.observes_commands:
        wanted.add(Command.UNKNOWN)
    return frozenset(wanted)


def _answered(interest: Interest) -> frozenset[Command]:
    """Return the events that somebody may refuse at.

    Edits are made at the end of the message, so those who only edit are not waited for.  What
    is refused at connect and helo is given at MAIL: there both MTAs pass our reply on.
    """
    verdicts = interest.verdicts
    answered = {command for stage, command in _COMMAND_OF.items() if stage in verdicts}
    if interest.refusing & _REFUSED_AT_MAIL:
        answered.add(Command.MAIL)
    if interest.verbs:
        answered.add(Command.UNKNOWN)
    return frozenset(answered)


_COMMAND_OF: Mapping[Stage, Command] = {
    Stage.CONNECT: Command.CONNECT,
    Stage.HELO: Command.HELO,
    Stage.MAIL: Command.MAIL,
    Stage.RCPT: Command.RCPT,
    Stage.DATA: Command.DATA,
    Stage.HEADERS: Command.EOH,
    Stage.BODY: Command.BODY,
}


def _extra(interest: Interest, answered: frozenset[Command]) -> Step:
    extra = Step.HDR_LEADSPC if interest.content != "none" else Step(0)
    if Command.BODY in answered:
        extra |= Step.SKIP
    if Stage.EVENT in interest.asked:
        extra |= Step.RCPT_REJ
    return extra


def _symbols(wanted: frozenset[Command]) -> dict[MacroStage, Sequence[str]]:
    """Return the lists of macros for the events that are sent."""
    return {
        stage: names
        for stage, names in SYMBOLS.items()
        if _EVENT_OF.get(stage, Command.EOM) in wanted
    }
