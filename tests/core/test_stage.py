"""The words that everyone shares."""

from __future__ import annotations

from mailgate.stage import (
    ACTIONS,
    CAPABILITIES,
    CONTENT_STAGES,
    MESSAGE_STAGES,
    ON_ERROR,
    SESSION_STAGES,
    SILENT_STAGES,
    Stage,
)


def test_stages_are_in_the_order_of_a_conversation() -> None:
    assert list(Stage)[:10] == [
        *("connect", "helo", "starttls", "auth", "mail", "rcpt", "data"),
        *("headers", "body", "message"),
    ]
    assert list(Stage)[-2:] == ["done", "close"]


def test_every_stage_is_of_one_kind() -> None:
    kinds = [SESSION_STAGES, MESSAGE_STAGES, SILENT_STAGES, frozenset({Stage.COMMAND})]
    assert sorted(stage for kind in kinds for stage in kind) == sorted(Stage)
    assert CONTENT_STAGES < MESSAGE_STAGES


def test_a_stage_prints_as_its_word() -> None:
    assert str(Stage.RCPT) == f"{Stage.RCPT}" == "rcpt"


def test_facts_are_no_actions() -> None:
    assert {"credentials", "rdns", "tls", "auth", "params"} == CAPABILITIES - ACTIONS
    assert len(ACTIONS) == 8


def test_failing_open_is_possible_and_not_the_first_choice() -> None:
    assert set(ON_ERROR) == {"defer", "reject", "continue"}
    assert ON_ERROR[0] == "defer"
