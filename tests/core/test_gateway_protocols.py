"""One process that serves several protocols: those that the configuration has a table for."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from mailgate.config import Config, Use
from mailgate.errors import ConfigError, PeerError
from mailgate.gateway import Gateway
from mailgate.session import Session
from tests.core.asking import SENDER
from tests.core.flock import ENTRIES, Dove, Mole, Owl, nothing
from tests.core.pigeon import HAPPENED, install

GATE = """
    from mailgate import Message, Policy, Reject
    from tests.core.pigeon import HAPPENED

    HAPPENED.append("loaded")
    policy = Policy()

    @policy.mail
    async def check(message: Message) -> Reject | None:
        return Reject("first")
"""
BOTH: Mapping[str, Mapping[str, object]] = {"dove": {}, "owl": {}}


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, with three protocols of a third party installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    install(tmp_path, monkeypatch, ENTRIES)
    for bird in (Dove, Owl, Mole):
        monkeypatch.setattr(bird, "script", staticmethod(nothing))
    write(GATE)
    HAPPENED.clear()
    yield
    HAPPENED.clear()


def write(text: str) -> None:
    Path("gate.py").write_text(textwrap.dedent(text))
    os.utime("gate.py", (0, len(HAPPENED)))  # else the cached byte code may pass for the new one


Script = Callable[[Dove], Awaitable[None]]


def serve(
    script: Script = nothing,
    tables: Mapping[str, Mapping[str, object]] = BOTH,
    name: str | None = None,
) -> bool:
    """Run a gateway with these tables; the owl's script runs while both serve."""
    Owl.script = staticmethod(script)
    config = Config(file="mailgate.toml", policies=(Use("gate.py"),), adapters=tables)
    return Gateway(name, lambda: config).run()


def refused(tables: Mapping[str, Mapping[str, object]] = BOTH) -> str:
    """Return the one line that refuses to serve."""
    with pytest.raises(ConfigError) as caught:
        serve(tables=tables)
    line = str(caught.value)
    assert "\n" not in line
    return line


async def leave(bird: Dove) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def answer(bird: type[Dove]) -> str:
    """Return what a new client of a protocol is answered."""
    conversation = bird.engine.converse(Session("s1", bird.name))
    verdict = await conversation.mail(SENDER)
    await conversation.close()
    return getattr(verdict, "text", "")


# -- which ---------------------------------------------------------------------------------------


def test_all_that_have_a_table_are_served_and_drained() -> None:
    answers: list[str] = []

    async def script(owl: Dove) -> None:
        answers.extend([await answer(Dove), await answer(Owl)])
        await leave(owl)

    assert serve(script)
    assert [
        *("dove claimed", "owl claimed", "loaded", "dove confined", "owl confined"),
        *("dove serves", "owl serves"),
        *("dove drains", "owl drains", "dove served", "owl served"),
    ] == HAPPENED
    assert answers == ["first", "first"]


def test_one_that_has_no_table_is_not_served() -> None:
    assert serve(leave, {"owl": {}})
    assert [
        *("owl claimed", "loaded", "owl confined", "owl serves", "owl drains", "owl served")
    ] == HAPPENED


def test_one_on_stdin_is_left_out() -> None:
    assert serve(leave, {**BOTH, "mole": {}})
    assert not [each for each in HAPPENED if each.startswith("mole")]


def test_one_on_stdin_is_served_when_it_is_named() -> None:
    Mole.script = staticmethod(leave)
    assert serve(tables={**BOTH, "mole": {}}, name="mole")
    assert [
        *("mole claimed", "loaded", "mole confined", "mole serves", "mole drains", "mole served")
    ] == HAPPENED


def test_one_that_is_named_is_served_alone_and_needs_no_table() -> None:
    assert serve(leave, {"dove": {}}, name="owl")
    assert [
        *("owl claimed", "loaded", "owl confined", "owl serves", "owl drains", "owl served")
    ] == HAPPENED


@pytest.mark.parametrize("tables", [{}, {"mole": {}}])
def test_without_any_the_remedy_is_said(tables: Mapping[str, Mapping[str, object]]) -> None:
    assert refused(tables) == (
        "mailgate.toml: no protocol to serve: "
        "name one with -p, or give it a table such as [milter]"
    )
    assert HAPPENED == []


# -- beginning -----------------------------------------------------------------------------------


def test_a_policy_that_cannot_be_loaded_releases_all() -> None:
    write("policy = (")
    assert refused().startswith("gate.py:1: cannot be imported: SyntaxError: ")
    assert HAPPENED == ["dove claimed", "owl claimed", "dove released", "owl released"]


def test_a_policy_that_one_cannot_serve_releases_all() -> None:
    write(GATE.replace("@policy.mail", '@policy.mail(needs={"tls"})'))
    line = refused()
    assert line.startswith("gate.py:8: check needs tls; dove cannot (")
    assert "owl" in line
    assert HAPPENED[-2:] == ["dove released", "owl released"]


def test_one_that_cannot_begin_releases_those_that_have() -> None:
    assert refused({"dove": {}, "owl": {"taken": True}}) == "owl: the perch is taken"
    assert HAPPENED[:2] == ["dove claimed", "dove released"]
    assert "loaded" not in HAPPENED


def test_a_table_that_is_wrong_claims_nothing() -> None:
    line = refused({"dove": {}, "owl": {"branch": 3}})
    assert line.startswith("mailgate.toml: [owl]: unknown key 'branch'")
    assert HAPPENED == []


# -- end -----------------------------------------------------------------------------------------


async def fails(bird: Dove) -> None:
    raise ConfigError("out of mice")


@pytest.mark.parametrize("kind", [ConfigError, PeerError])
def test_one_that_fails_ends_all(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    """The others are drained: being cancelled does not end an adapter."""

    async def script(owl: Dove) -> None:
        raise kind("out of mice")

    with pytest.raises(kind, match="out of mice"):
        serve(script)
    assert HAPPENED[-1] == "dove served"
    assert caplog.records == []


def test_one_that_fails_after_another_has_ended_is_told() -> None:
    async def later(owl: Dove) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        assert "dove served" in HAPPENED
        await fails(owl)

    Dove.script = staticmethod(Dove.drain)
    with pytest.raises(ConfigError, match="out of mice"):
        serve(later)


def test_one_that_ends_ends_no_other() -> None:
    answers: list[str] = []

    async def script(owl: Dove) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        assert "dove served" in HAPPENED
        answers.append(await answer(Owl))
        await leave(owl)

    Dove.script = staticmethod(Dove.drain)
    assert serve(script)
    assert answers == ["first"]
    assert HAPPENED[-1] == "owl served"


def test_a_policy_that_cancels_every_task_ends_none() -> None:
    answers: list[str] = []

    async def script(owl: Dove) -> None:
        ours = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not ours:
                task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        answers.extend([await answer(Dove), await answer(Owl)])
        await leave(owl)

    assert serve(script)
    assert answers == ["first", "first"]
    assert HAPPENED[-2:] == ["dove served", "owl served"]


@pytest.mark.parametrize("turns", range(4))
def test_a_policy_that_cancels_every_task_at_sigterm_keeps_none_from_draining(turns: int) -> None:
    """A task that is cancelled before its first step ends: the signal would be lost."""

    async def script(owl: Dove) -> None:
        await leave(owl)
        loop, ours = asyncio.get_running_loop(), asyncio.current_task()

        def cancel(left: int) -> None:
            for task in asyncio.all_tasks() - {ours}:
                task.cancel()
            if left:
                loop.call_soon(cancel, left - 1)

        loop.call_soon(cancel, turns)

    assert serve(script)
    assert HAPPENED[-4:-2] == ["dove drains", "owl drains"]
    assert sorted(HAPPENED[-2:]) == ["dove served", "owl served"]


def test_a_task_that_cancels_all_others_in_every_turn_keeps_none_from_ending() -> None:
    storms: list[asyncio.Task[None]] = []
    turns = 0

    async def storm() -> None:
        nonlocal turns
        while turns < 10_000:
            turns += 1
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

    async def script(owl: Dove) -> None:
        storms.append(asyncio.create_task(storm()))
        await leave(owl)

    assert serve(script)
    assert sorted(HAPPENED[-2:]) == ["dove served", "owl served"]
    assert turns < 1000


# -- reload --------------------------------------------------------------------------------------


class Told(logging.Handler):
    """Hears what comes of a reload."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self.heard = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")
        self.heard.set()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    log, told = logging.getLogger("mailgate.gateway"), Told()
    monkeypatch.setattr(log, "level", logging.INFO)
    log.addHandler(told)
    yield told
    log.removeHandler(told)


def reloaded(told: Told, change: Callable[[], None]) -> tuple[list[str], str]:
    """Change something while both serve; return what both answer after it, and what was said."""
    answers: list[str] = []

    async def script(owl: Dove) -> None:
        change()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(told.heard.wait(), 20)
        await asyncio.sleep(0)
        answers.extend([await answer(Dove), await answer(Owl)])
        await leave(owl)

    serve(script)
    return answers, told.lines[0]


def test_a_reload_is_for_all(told: Told) -> None:
    answers, said = reloaded(told, lambda: write(GATE.replace('"first"', '"second"')))
    assert said == "INFO: reloaded: gate"
    assert answers == ["second", "second"]


def test_a_reload_that_one_refuses_is_for_none(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change() -> None:
        write(GATE.replace('"first"', '"second"'))
        monkeypatch.setattr(Owl, "reload_refused", "restart the owl")

    answers, said = reloaded(told, change)
    assert said == "ERROR: reload refused, the old policies go on: restart the owl"
    assert answers == ["first", "first"]


def test_a_reload_that_one_cannot_serve_is_for_none(told: Told) -> None:
    answers, said = reloaded(told, lambda: write(GATE.replace("mail\n", 'mail(needs={"tls"})\n')))
    line = (
        "ERROR: reload refused, the old policies go on: gate.py:8: check needs tls; dove cannot ("
    )
    assert said.startswith(line)
    assert answers == ["first", "first"]
