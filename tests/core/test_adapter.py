"""Adapters are found by entry point: ours, and those of anyone else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mailgate import Policy, Reject, Session, adapter
from mailgate.chain import UNKNOWN_VERBS, Unmet, lacking, unmet
from mailgate.errors import ConfigError
from mailgate.stage import CAPABILITIES, Capability, Stage
from mailgate_milter import MilterAdapter
from mailgate_opensmtpd import OpenSMTPDAdapter
from mailgate_opensmtpd52 import OpenSMTPD52Adapter
from mailgate_smtp import SmtpAdapter
from tests.core.asking import loaded
from tests.core.pigeon import Pigeon, install


def test_ours_is_found_like_any_other() -> None:
    assert adapter.names() == ["milter", "opensmtpd", "opensmtpd52", "smtp"]
    found: list[object] = [adapter.load(name) for name in adapter.names()]
    assert found == [MilterAdapter, OpenSMTPDAdapter, OpenSMTPD52Adapter, SmtpAdapter]


def test_a_third_partys_adapter_has_no_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = adapter.names()
    install(tmp_path, monkeypatch)
    assert adapter.names() == sorted([*before, "pigeon"])
    found: object = adapter.load("pigeon")
    assert found is Pigeon
    assert set(adapter.installed()) == set(adapter.names())


def test_an_unknown_protocol_names_the_known_ones() -> None:
    said = r"^unknown protocol 'carrier'; installed: milter, opensmtpd, opensmtpd52, smtp$"
    with pytest.raises(ConfigError, match=said):
        adapter.load("carrier")


@pytest.mark.parametrize(
    "entry", ["pigeon = tests.core.pigeon:Nothing", "pigeon = nowhere:Adapter"]
)
def test_an_adapter_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    install(tmp_path, monkeypatch, entry)
    with pytest.raises(ConfigError, match=r"protocol 'pigeon' cannot be loaded: ") as caught:
        adapter.load("pigeon")
    assert "\n" not in str(caught.value)


def test_without_any_adapter_the_installation_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where mailgate is run from its sources without having been installed."""
    monkeypatch.setattr("sys.path", [])
    assert adapter.names() == []
    with pytest.raises(ConfigError, match=r"pip install mailgate"):
        adapter.load("opensmtpd")


def missing(stage: Stage, *needs: Capability, verbs: Sequence[str] = ()) -> Unmet:
    """Return what no protocol at all can do of a handler with these needs."""
    policy = Policy()
    if stage is Stage.COMMAND:

        @policy.command(*verbs)
        async def command(session: Session, verb: str, argument: str) -> Reject | None:
            return None

    else:

        async def handler(*arguments: object) -> Reject | None:
            return None

        getattr(policy, stage)(needs=set(needs))(handler)

    found = lacking(policy.handlers[0], {})
    assert found is not None
    return Unmet(found.handler, (*needs, *verbs) or found.needs)


def able(stage: Stage, *needs: Capability) -> str:
    """Say who could serve a handler that ours cannot."""
    policy = Policy()
    getattr(policy, stage)(needs=set(needs))(lambda *arguments: None)
    (missing,) = unmet(loaded(policy), {stage: frozenset()})
    return adapter.able(missing)


def test_who_could_do_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    assert able(Stage.AUTH, "authenticate") == "smtp can"
    assert able(Stage.HELO, "change_helo") == "opensmtpd, smtp can"
    assert able(Stage.MESSAGE, "add_recipient") == "milter, smtp can"
    assert able(Stage.MAIL, "change_sender") == "milter, opensmtpd, smtp can"
    assert able(Stage.MESSAGE, "quarantine") == "milter, pigeon, smtp can"
    assert able(Stage.MESSAGE, "tls") == "milter, opensmtpd, pigeon, smtp can"
    assert able(Stage.CONNECT, "auth") == "no protocol can"


def test_who_could_answer_a_verb_is_named() -> None:
    assert adapter.able(missing(Stage.COMMAND, verbs=["XYZZY"])) == "milter, smtp can"
    assert adapter.able(missing(Stage.COMMAND, verbs=["NOOP", "QUIT"])) == "opensmtpd, smtp can"
    assert adapter.able(missing(Stage.COMMAND, verbs=["NOOP", "XYZZY"])) == "smtp can"
    assert adapter.able(missing(Stage.COMMAND, verbs=["ETRN"])) == "smtp can"
    assert adapter.able(missing(Stage.COMMAND, verbs=["BDAT"])) == "no protocol can"


def test_who_speaks_on_the_standard_streams_says_so() -> None:
    """smtpd starts its filters (smtpd-filters(7)); the others listen on sockets."""
    assert {name: each.on_stdin for name, each in adapter.installed().items()} == {
        "milter": False,
        "opensmtpd": True,
        "opensmtpd52": True,
        "smtp": False,
    }


def test_every_adapter_says_what_it_can_in_words_that_exist() -> None:
    for name, each in adapter.installed().items():
        assert each.name == name
        assert each.summary
        for stage, can in each.capabilities.items():
            verbs = {word for word in can if word.isupper() or word == UNKNOWN_VERBS}
            assert stage in Stage
            assert can - verbs <= CAPABILITIES
            assert not verbs or stage is Stage.COMMAND
