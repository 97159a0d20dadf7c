"""The order in which a process begins, reloads and ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from mailgate.chain import Defaults
from mailgate.config import Config, Use
from mailgate.engine import Engine
from mailgate.errors import ConfigError, PeerError
from mailgate.gateway import Gateway
from mailgate.limits import Limits
from mailgate.session import Session
from tests.core.asking import SENDER
from tests.core.pigeon import HAPPENED, Pigeon, install

GATE = """
    from contextlib import asynccontextmanager
    from mailgate import Message, Policy, Reject
    from tests.core.pigeon import HAPPENED

    HAPPENED.append("loaded")
    policy = Policy()

    @asynccontextmanager
    async def opened(name):
        HAPPENED.append(f"entered {name}")
        try:
            yield
        finally:
            HAPPENED.append(f"left {name}")

    policy.resource(opened("one"))
    policy.resource(opened("two"))

    @policy.mail
    async def check(message: Message) -> Reject | None:
        return Reject("first")
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, with the protocol of a third party installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    install(tmp_path, monkeypatch)
    HAPPENED.clear()
    yield
    HAPPENED.clear()


def write(text: str, name: str = "gate.py") -> None:
    path = Path(name)
    path.write_text(textwrap.dedent(text))
    os.utime(path, (0, len(HAPPENED)))  # else the cached byte code may pass for the new one


def configured() -> Config:
    return Config(policies=(Use("gate.py"),))


Script = Callable[[Engine], Awaitable[None]]


def serve(script: Script, configure: Callable[[], Config] = configured) -> bool:
    """Run a gateway; what it does when it serves is the script."""
    Pigeon.script = staticmethod(script)
    return Gateway("pigeon", configure).run()


async def nothing(engine: Engine) -> None: ...


async def answer(engine: Engine) -> str:
    """Return what a new client's MAIL is answered with."""
    conversation = engine.converse(Session("s1", "pigeon"))
    verdict = await conversation.mail(SENDER)
    await conversation.close()
    return getattr(verdict, "text", "")


# -- beginning and end ---------------------------------------------------------------------------


def test_the_protocol_is_claimed_before_policies_are_there() -> None:
    write(GATE)
    assert serve(nothing)
    assert [
        *("made on the roof", "claimed", "loaded", "confined", "entered one", "entered two"),
        *("serves", "served", "left two", "left one"),
    ] == HAPPENED


def test_options_are_the_protocols_own_table() -> None:
    write(GATE)
    table = Config(policies=(Use("gate.py"),), adapters={"pigeon": {"place": "garden"}})
    serve(nothing, lambda: table)
    assert HAPPENED[0] == "made on the garden"
    wrong = Config(policies=(Use("gate.py"),), adapters={"pigeon": {"place": "sea"}})
    with pytest.raises(ConfigError, match=r"\[pigeon\]: key 'place' must be 'roof' or 'garden'"):
        serve(nothing, lambda: wrong)


def test_clients_are_answered() -> None:
    write(GATE)
    answers: list[str] = []

    async def script(engine: Engine) -> None:
        answers.append(await answer(engine))

    serve(script)
    assert answers == ["first"]


def test_defaults_and_limits_reach_the_engine() -> None:
    write(GATE)
    seen: list[Engine] = []

    async def script(engine: Engine) -> None:
        seen.append(engine)

    defaults = Defaults(timeout=5)
    limits = Limits(sessions=5)
    serve(script, lambda: Config(policies=(Use("gate.py"),), defaults=defaults, limits=limits))
    assert (seen[0].limits, seen[0].chain.defaults) == (limits, defaults)


def test_what_the_protocol_cannot_do_is_refused_by_name_and_line() -> None:
    write(
        """
        from mailgate import Message, Policy

        policy = Policy()

        @policy.message(needs={"change_sender", "tls"})
        async def rewrite(message: Message) -> None: ...
        """
    )
    with pytest.raises(ConfigError) as caught:
        serve(nothing)
    line = str(caught.value)
    assert line.startswith("gate.py:6: rewrite needs change_sender; pigeon cannot (")
    assert "\n" not in line
    assert "serves" not in HAPPENED


def test_a_resource_that_cannot_be_entered_is_one_line_and_the_others_are_left() -> None:
    write(GATE + "\n    policy.resource(broken())\n")
    source = (
        Path("gate.py")
        .read_text()
        .replace(
            "policy.resource(broken())",
            "@asynccontextmanager\n"
            "async def broken():\n    raise SystemExit('no network')\n    yield\n\n"
            "policy.resource(broken())",
        )
    )
    write(source)
    with pytest.raises(ConfigError, match=r"policy gate: its resource .* SystemExit: no network"):
        serve(nothing)
    assert HAPPENED[-3:] == ["released", "left two", "left one"]
    assert "serves" not in HAPPENED


def test_a_configuration_that_cannot_be_read_claims_nothing() -> None:
    def broken() -> Config:
        raise ConfigError("no good")

    with pytest.raises(ConfigError, match="no good"):
        serve(nothing, broken)
    assert HAPPENED == []


def test_a_protocol_that_cannot_be_confined_is_released_and_runs_no_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(self: Pigeon) -> None:
        raise ConfigError("there is no user pigeon here")

    write(GATE)
    monkeypatch.setattr(Pigeon, "confine", refuses)
    with pytest.raises(ConfigError, match=r"^there is no user pigeon here$"):
        serve(nothing)
    assert HAPPENED == ["made on the roof", "claimed", "loaded", "released"]


@pytest.mark.parametrize("fault", [RuntimeError("ours"), PeerError("theirs")], ids=repr)
def test_a_fault_of_the_protocol_leaves_the_resources_and_ends_the_threads(
    fault: Exception,
) -> None:
    write(GATE)
    ran: list[threading.Thread] = []

    async def fails(engine: Engine) -> None:
        ran.append(await engine.threads.run(threading.current_thread))
        raise fault

    with pytest.raises(type(fault), match=str(fault)):
        serve(fails)
    assert HAPPENED[-2:] == ["left two", "left one"]
    ran[0].join(20)
    assert not ran[0].is_alive()


def test_what_was_claimed_is_released_where_a_policy_cannot_be_loaded() -> None:
    write("raise SystemExit('no')")
    with pytest.raises(ConfigError, match=r"^gate\.py:1: cannot be imported: SystemExit: no$"):
        serve(nothing)
    assert HAPPENED == ["made on the roof", "claimed", "released"]


def test_one_that_cannot_share_its_sockets_has_no_workers() -> None:
    write(GATE)
    gateway = Gateway("pigeon", configured)
    with pytest.raises(ConfigError, match=r"^pigeon has one process only: leave --workers out$"):
        gateway.run_workers([sys.executable], ["gate.py"], 2)
    assert HAPPENED[-1] == "released"


WORKER = """
import os, pathlib, sys
for word in sys.argv:
    if "fd:" in word:
        os.fstat(int(word.rpartition(":")[2]))  # it is inherited
pathlib.Path("told").write_text(" ".join(sys.argv[1:]))
sys.exit(2)
"""


def test_workers_are_told_how_to_take_each_socket_over(monkeypatch: pytest.MonkeyPatch) -> None:
    write(GATE)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        first, second = ours.fileno(), theirs.fileno()
        sockets = {first: f"fd:{first}", second: f"letters:fd:{second}"}
        monkeypatch.setattr(Pigeon, "sockets", sockets)
        argv = [sys.executable, "-c", WORKER]
        assert Gateway("pigeon", configured).run_workers(argv, ["gate.py"], 1) == 2
    listen = f"--listen fd:{first} --listen letters:fd:{second}"
    assert Path("told").read_text() == f"{listen} -- gate.py"


def test_what_a_policy_prints_is_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard output is a file or a pipe to the journal, and Python would hold it back."""
    write("print('loaded', chr(0xDCFF))\n" + textwrap.dedent(GATE))
    seen: list[str] = []

    async def script(engine: Engine) -> None:
        seen.append((tmp_path / "log").read_text())

    with (tmp_path / "log").open("w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stdout", log)
        serve(script)
    assert seen == ["loaded \\udcff\n"]


def test_a_reload_before_there_is_anything_to_is_ignored() -> None:
    """The default action of SIGHUP is to end the process."""
    write("import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\n" + textwrap.dedent(GATE))
    before = signal.signal(signal.SIGHUP, lambda number, frame: HAPPENED.append("hung up"))
    try:
        assert serve(nothing)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "hung up" not in HAPPENED
    assert HAPPENED.count("loaded") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_protocol_is_asked_to_end_by_a_signal(number: signal.Signals) -> None:
    write(GATE)

    async def script(engine: Engine) -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        await asyncio.wait_for(Pigeon.drained.wait(), 20)

    assert serve(script)
    assert HAPPENED[-5:] == ["serves", "drains", "served", "left two", "left one"]


def test_what_handlers_left_behind_is_cancelled_at_the_end() -> None:
    write(GATE)
    left: list[asyncio.Task[None]] = []

    async def for_ever() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            HAPPENED.append("cancelled")

    async def script(engine: Engine) -> None:
        left.append(asyncio.create_task(for_ever()))
        await asyncio.sleep(0)

    assert serve(script)
    assert HAPPENED[-1] == "cancelled"


def test_a_policy_cannot_end_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """Behind OpenSMTPD the mail server would end with it."""
    write(GATE)
    answers: list[str] = []

    async def leaves() -> None:
        raise SystemExit(3)

    async def script(engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(leaves())]
        loop.call_soon(sys.exit, 4)
        loop.call_soon(loop.stop)
        for _ in range(3):
            await asyncio.sleep(0)
        answers.append(await answer(engine))
        assert isinstance(tasks[0].exception(), SystemExit)

    assert serve(script)
    assert answers == ["first"]
    assert "a policy tried to end the process: SystemExit" in caplog.text


def test_a_thread_that_a_policy_keeps_is_told() -> None:
    """The interpreter would wait for it: whoever called has to leave the process."""
    write(GATE)
    release = threading.Event()
    kept = threading.Thread(target=release.wait)

    async def script(engine: Engine) -> None:
        kept.start()

    try:
        assert not serve(script)
    finally:
        release.set()
        kept.join()
    assert serve(nothing)


def test_what_does_not_end_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process would never end: whoever called has to leave it."""
    write(GATE)
    monkeypatch.setattr("mailgate.gateway.GRACE", 0.05)
    left: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []
    enough: list[bool] = []

    async def stubborn() -> None:
        while not enough:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                continue

    async def script(engine: Engine) -> None:
        left.append((asyncio.get_running_loop(), asyncio.create_task(stubborn())))
        await asyncio.sleep(0)

    assert not serve(script)
    assert "a handler did not end when it was cancelled" in caplog.text
    ((loop, task),) = left
    enough.append(True)
    task.cancel()
    loop.run_until_complete(task)
    loop.close()


# -- reload --------------------------------------------------------------------------------------


class Told(logging.Handler):
    """Hears what the gateway says of a reload."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.happened = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")
        if record.levelno != logging.WARNING:
            self.happened.set()


async def reload() -> list[str]:
    """Send SIGHUP and wait until the gateway has said what came of it."""
    told, log = Told(), logging.getLogger("mailgate.gateway")
    level = log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(told.happened.wait(), 20)
        await asyncio.sleep(0)
    finally:
        log.removeHandler(told)
        log.setLevel(level)
    return told.lines


def reloaded(
    change: Callable[[], None], configure: Callable[[], Config] = configured
) -> tuple[list[str], list[str]]:
    """Change something while serving; return what was said, and the answers before and after."""
    write(GATE)
    said: list[str] = []
    answers: list[str] = []

    async def script(engine: Engine) -> None:
        before = engine.converse(Session("old", "pigeon"))
        answers.append(await answer(engine))
        change()
        said.extend(await reload())
        answers.append(await answer(engine))
        verdict = await before.mail(SENDER)
        answers.append(getattr(verdict, "text", ""))

    serve(script, configure)
    return said, answers


def test_a_reload_is_for_new_clients() -> None:
    said, answers = reloaded(lambda: write(GATE.replace('"first"', '"second"')))
    assert said == ["INFO: reloaded: gate"]
    assert answers == ["first", "second", "first"]
    assert HAPPENED.count("entered one") == HAPPENED.count("left one") == 2


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("policy = (", "gate.py:1: cannot be imported: SyntaxError"),
        ("raise SystemExit(1)", "gate.py:1: cannot be imported: SystemExit: 1"),
        ("from mailgate import Policy\npolicy = Policy()", "gate.py: 'policy' has no handler"),
        (GATE.replace("@policy.mail", "@policy.helo"), "check needs the stage helo; pigeon"),
        (
            GATE.replace('opened("one")', "opened()"),
            "gate.py:17: cannot be imported: TypeError",
        ),
        (
            GATE.replace('HAPPENED.append(f"entered {name}")', "1 / 0"),
            "cannot be entered: ZeroDivisionError",
        ),
    ],
)
def test_a_bad_reload_keeps_the_old_policies(source: str, reason: str) -> None:
    said, answers = reloaded(lambda: write(source))
    (line,) = said
    assert line.startswith("ERROR: reload refused, the old policies go on: ")
    assert reason in line
    assert answers == ["first", "first", "first"]


def test_a_reload_that_the_protocol_refuses_keeps_the_old_policies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def change() -> None:
        write(GATE.replace('"first"', '"second"'))
        monkeypatch.setattr(Pigeon, "reload_refused", "restart the loft")

    said, answers = reloaded(change)
    assert said == ["ERROR: reload refused, the old policies go on: restart the loft"]
    assert answers == ["first", "first", "first"]


def test_a_reload_whose_configuration_fails_keeps_the_old_policies() -> None:
    broken: list[Exception] = []

    def configure() -> Config:
        if broken:
            raise broken[0]
        return configured()

    said, answers = reloaded(lambda: broken.append(ConfigError("not TOML")), configure)
    assert said == ["ERROR: reload refused, the old policies go on: not TOML"]
    broken.clear()
    said, more = reloaded(lambda: broken.append(RuntimeError("ours")), configure)
    assert said[0].startswith("ERROR: error=RuntimeError by=reload ")
    assert answers == more == ["first", "first", "first"]


def test_what_a_reload_does_not_change_is_said() -> None:
    limits: list[Limits] = [Limits()]

    def configure() -> Config:
        return Config(policies=(Use("gate.py"),), limits=limits[-1])

    said, _ = reloaded(lambda: limits.append(Limits(sessions=5)), configure)
    assert said == [
        "WARNING: [limits] is read at start only: restart for what has changed in it",
        "INFO: reloaded: gate",
    ]
