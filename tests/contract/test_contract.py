"""Every installed adapter, every case of `mailgate.contract`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mailgate import adapter as adapters
from mailgate.contract import CASES, Case, NotServed, Server, check
from tests.milter.server import PostfixServer, SendmailServer
from tests.opensmtpd.server import SmtpdServer
from tests.opensmtpd52.server import (
    ChainServer,
    Smtpd50Server,
    Smtpd51Server,
    Smtpd52Server,
)
from tests.smtp.server import (
    ChunkingServer,
    LateServer,
    LmtpServer,
    ProxyServer,
    StreamingServer,
)

SERVERS: dict[str, Sequence[type[Server]]] = {
    "milter": (PostfixServer, SendmailServer),
    "opensmtpd": (SmtpdServer,),
    "opensmtpd52": (Smtpd52Server, Smtpd51Server, Smtpd50Server, ChainServer),
    "smtp": (ProxyServer, LmtpServer, ChunkingServer, LateServer, StreamingServer),
}

REFUSED: dict[str, dict[str, str]] = {
    "milter": {},
    "opensmtpd": {
        "recipient_added": "add needs add_recipient",
        "recipient_removed": "remove needs remove_recipient",
        "message_discarded": "drop needs discard",
        "message_quarantined": "hold needs quarantine",
        "everything_edited_at_once": ("edit needs add_recipient, change_sender, remove_recipient"),
    },
    "opensmtpd52": {
        "message_discarded": "drop needs discard",
        "message_quarantined": "hold needs quarantine",
        "sender_changed": "change needs change_sender",
        "sender_changed_to_null": "change needs change_sender",
        "sender_changed_with_parameters": "change needs change_sender",
        "sender_changed_and_its_parameters_kept": "change needs change_sender",
        "sender_changed_with_one_of_its_parameters": "change needs change_sender",
        "recipient_changed": "change needs change_recipient",
        "recipient_added": "add needs add_recipient",
        "recipient_removed": "remove needs remove_recipient",
        "everything_edited_at_once": "edit needs add_recipient, change_sender, remove_recipient",
    },
    "smtp": {},
}
"""Cases that a protocol cannot serve, and has to refuse at start-up."""


def test_every_installed_adapter_is_under_contract() -> None:
    assert set(adapters.names()) <= set(SERVERS)


def test_there_are_enough_cases_to_mean_something() -> None:
    assert len(CASES) >= 45
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_outcome_is_the_one_written_in_the_case(case: Case, adapter: str) -> None:
    capabilities = adapters.load(adapter).capabilities
    refused = REFUSED[adapter].get(case.name)
    for server in SERVERS[adapter]:
        if refused is None:
            check(case, server(), capabilities)
        else:
            with pytest.raises(NotServed, match=f"^{refused}"):
                check(case, server(), capabilities)
