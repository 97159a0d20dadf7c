"""Every installed adapter, every case of `mailgate.contract`."""

from __future__ import annotations

import pytest

from mailgate import adapter as adapters
from mailgate.contract import CASES, Case, Server, check
from tests.opensmtpd.server import SmtpdServer

SERVERS: dict[str, type[Server]] = {"opensmtpd": SmtpdServer}

REFUSED = {"opensmtpd": {"recipient_added": "add needs add_recipient"}}
"""Cases that a protocol cannot serve, and has to refuse at start-up."""


def test_every_installed_adapter_is_under_contract() -> None:
    assert set(adapters.names()) <= set(SERVERS)


def test_there_are_enough_cases_to_mean_something() -> None:
    assert len(CASES) >= 25
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_outcome_is_the_one_written_in_the_case(case: Case, adapter: str) -> None:
    reason = check(case, SERVERS[adapter](), adapters.load(adapter).capabilities)
    assert reason == REFUSED[adapter].get(case.name, "")
