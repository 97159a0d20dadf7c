"""The configuration file, and the policies it names: one line for whatever is wrong."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mailgate.chain import Defaults
from mailgate.config import PLACES, Config, Log, Use, find, load, load_all, read
from mailgate.errors import ConfigError
from mailgate.limits import Limits
from mailgate_milter.options import MilterOptions
from mailgate_opensmtpd.adapter import FilterOptions

PROTOCOLS = ["opensmtpd", "milter"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder; forget what is imported from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAILGATE_CONFIG", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("mailgate.config._imported", set[str]())
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def written(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def config(text: str) -> Config:
    return read(written("mailgate.toml", text), PROTOCOLS)


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the file ------------------------------------------------------------------------------------


def test_everything_has_a_default() -> None:
    assert read(None, PROTOCOLS) == Config() == config("").__class__()
    made = config("")
    assert (made.defaults, made.limits, made.log) == (Defaults(), Limits(), Log())
    assert made.policies == ()
    assert made.file == "mailgate.toml"
    assert (Defaults().timeout, Defaults().message_timeout) == (20, 240)
    assert Defaults().on_error == "defer"


def test_tables() -> None:
    made = config(
        """
        [[policy]]
        use = "policies/gate.py"
        settings = { domains = ["example.org"], delay = 300 }

        [[policy]]
        use = "contrib.rspamd:scan"
        on_error = "continue"
        timeout = 5

        [defaults]
        timeout = 10
        on_error = "reject"
        [limits]
        memory = "2M"
        sessions = 10
        oversize = "continue"
        [log]
        level = "debug"
        format = "json"
        to = "syslog"
        [opensmtpd]
        long_lines = "cut"
        """
    )
    assert made.policies == (
        Use("policies/gate.py", {"domains": ["example.org"], "delay": 300}),
        Use("contrib.rspamd:scan", {}, 5.0, "continue"),
    )
    assert made.defaults == Defaults(timeout=10.0, on_error="reject")
    assert made.limits == Limits(memory=2 << 20, sessions=10, oversize="continue")
    assert made.log == Log("debug", "json", "syslog")
    assert made.options("opensmtpd", FilterOptions) == FilterOptions(long_lines="cut")
    assert Config().options("opensmtpd", FilterOptions) == FilterOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[defaults", "mailgate.toml: is not TOML: "),
        ("[[policies]]", "mailgate.toml: unknown table [policies]; known: policy, defaults, "),
        ("[policy]\nuse = 'a.py'", "mailgate.toml: write [[policy]] with two brackets"),
        ("[[policy]]", "mailgate.toml: [[policy]]: missing key 'use' (a string)"),
        ("[[policy]]\nuse = 5", "mailgate.toml: [[policy]]: key 'use' must be a string, not 5"),
        ("policy = [5]", "mailgate.toml: [[policy]] must be a table"),
        (
            "[[policy]]\nuse = 'a.py'\nsetings = {}",
            "mailgate.toml: [[policy]]: unknown key 'setings'; did you mean 'settings'?",
        ),
        ("limits = 5", "mailgate.toml: [limits] must be a table"),
        ("[limits]\nmemry = 5", "[limits]: unknown key 'memry'; did you mean 'memory'?"),
        ("[limits]\nmemory = '5 apples'", "[limits]: key 'memory' must be a whole number, not "),
        (
            "[defaults]\ntimeout = '20'",
            '[defaults]: key \'timeout\' must be a time (seconds, or "250ms", "90s", ',
        ),
        ("[defaults]\non_error = 'acept'", "must be 'defer' or 'reject' or 'continue'"),
        ("[log]\nto = 'file'", "[log]: key 'to' must be 'auto' or 'stderr' or 'syslog', not "),
        ("[log]\nlevel = 'loud'", "[log]: key 'level' must be 'debug' or 'info' or "),
    ],
)
def test_what_is_wrong_is_one_line_with_a_remedy(text: str, message: str) -> None:
    assert message in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        *("[defaults]\ntimeout = 0", "[defaults]\ntimeout = -1", "[defaults]\ntimeout = nan"),
        "[defaults]\nmessage_timeout = 0",
        "[[policy]]\nuse = 'a.py'\ntimeout = 0",
        *("[limits]\nthreads = 0", "[limits]\nsessions = 0", "[limits]\nmemory = -1"),
    ],
)
def test_numbers_with_which_nothing_works_are_refused(text: str) -> None:
    """As a handler's own option `timeout=0` is."""
    key = text.rpartition("\n")[2].partition(" ")[0]
    assert repr(key) in refused(text)


def test_an_adapters_table_is_checked_when_it_is_used() -> None:
    made = config("[opensmtpd]\nlong_line = 'cut'")
    with pytest.raises(ConfigError, match=r"\[opensmtpd\]: unknown key 'long_line'; did you mean"):
        made.options("opensmtpd", FilterOptions)
    made = config("opensmtpd = 5")
    with pytest.raises(ConfigError, match=r"\[opensmtpd\] must be a table"):
        made.options("opensmtpd", FilterOptions)


def test_times_are_written_with_their_unit() -> None:
    made = config(
        """
        [[policy]]
        use = "gate.py"
        timeout = "500ms"
        [defaults]
        timeout = "20s"
        message_timeout = "4m"
        [milter]
        idle_timeout = "2h"
        """
    )
    assert made.defaults == Defaults(timeout=20.0, message_timeout=240.0)
    assert made.policies == (Use("gate.py", timeout=0.5),)
    assert made.options("milter", MilterOptions) == MilterOptions(idle_timeout=7200.0)


@dataclass(frozen=True)
class Inner:
    """Stand for a table such as ``[milter.limits]``."""

    hops: int = 50

    def __post_init__(self) -> None:
        if self.hops < 1:
            raise ValueError("'hops' must be above 0")


@dataclass(frozen=True)
class Outer:
    """Stand for the options of an adapter that have a table in them."""

    limits: Inner = Inner()


def test_an_adapters_table_may_have_tables() -> None:
    assert config("[milter.limits]\nhops = 5").options("milter", Outer) == Outer(Inner(5))
    assert config("milter.limits.hops = 5").options("milter", Outer) == Outer(Inner(5))
    made = config("[milter.limits]\nhops = 0")
    with pytest.raises(ConfigError) as caught:
        made.options("milter", Outer)
    assert str(caught.value) == ("mailgate.toml: [milter]: table 'limits': 'hops' must be above 0")
    made = config("[milter.limits]\nhop = 0")
    with pytest.raises(ConfigError) as caught:
        made.options("milter", Outer)
    assert str(caught.value) == (
        "mailgate.toml: [milter]: unknown key 'limits.hop'; did you mean 'hops'?"
    )


def test_a_file_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        read(Path("none.toml"), PROTOCOLS)
    with pytest.raises(ConfigError, match=r"\.: cannot be read"):
        read(Path("."), PROTOCOLS)
    Path("latin.toml").write_bytes(b"# Gr\xfc\xdfe")
    with pytest.raises(ConfigError, match=r"latin\.toml: is not UTF-8 text"):
        read(Path("latin.toml"), PROTOCOLS)


def test_where_the_file_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PLACES == ("mailgate.toml", "/etc/mailgate/mailgate.toml")
    assert find("given.toml") == Path("given.toml")
    monkeypatch.setenv("MAILGATE_CONFIG", "named.toml")
    assert find(None) == Path("named.toml")
    assert find("given.toml") == Path("given.toml")
    monkeypatch.delenv("MAILGATE_CONFIG")
    written("mailgate.toml", "")
    assert find(None) == Path("mailgate.toml")


# -- policies ------------------------------------------------------------------------------------

GATE = """
    from mailgate import Message, Policy

    policy = Policy()
    other = Policy("named")
    number = 5

    @policy.mail
    @other.mail
    async def on_mail(message: Message) -> None: ...

    empty = Policy()
"""

FACTORY = """
    from collections.abc import Collection
    from mailgate import Message, Policy


    def policy(domains: Collection[str], delay: float = 300) -> Policy:
        policy = Policy()

        @policy.mail
        async def on_mail(message: Message) -> None:
            on_mail.seen = domains, delay

        policy.on_mail = on_mail
        return policy
"""


def test_a_policy_of_a_file() -> None:
    written("gate.py", GATE)
    loaded = load(Use("gate.py", timeout=5, on_error="reject"))
    assert (loaded.name, loaded.timeout, loaded.on_error) == ("gate", 5, "reject")
    assert [handler.name for handler in loaded.policy.handlers] == ["on_mail"]
    assert load(Use("gate.py:other")).name == "named"


def test_a_policy_of_a_module() -> None:
    written("shop/__init__.py", "")
    written("shop/gate.py", GATE)
    assert load(Use("shop.gate")).name == "gate"
    assert load(Use("shop.gate:other")).name == "named"


def test_paths_are_taken_from_the_configurations_folder() -> None:
    written("etc/gate.py", GATE)
    path = written("etc/mailgate.toml", "[[policy]]\nuse = 'gate.py:other'\n")
    (loaded,) = load_all(read(path, PROTOCOLS).policies)
    assert loaded.name == "named"
    absolute = os.path.abspath("etc/gate.py")
    made = config(f"[[policy]]\nuse = {absolute!r}\n[[policy]]\nuse = 'a.module'")
    assert [use.use for use in made.policies] == [absolute, "a.module"]


def test_a_policy_may_import_what_lies_beside_it() -> None:
    written("policies/words.py", "WORD = 'x'\n")
    written("policies/gate.py", "from words import WORD\n" + textwrap.dedent(GATE))
    assert load(Use("policies/gate.py"))


def test_one_file_may_serve_twice() -> None:
    written("gate.py", FACTORY)
    use = Use("gate.py", {"domains": ["a"]})
    first, second = load(use), load(use)
    assert first.policy is not second.policy
    assert first.policy.handlers[0].function.__module__ != (
        second.policy.handlers[0].function.__module__
    )


@pytest.mark.parametrize("source", ["gate.py", "gate"])
def test_what_is_loaded_again_is_read_again(source: str) -> None:
    path = written("gate.py", GATE)
    assert load(Use(source)).policy.handlers[0].name == "on_mail"
    path.write_text(textwrap.dedent(GATE).replace("on_mail", "after_reload"))
    os.utime(path, (0, 0))  # else the cached byte code may pass for the new one
    assert load(Use(source)).policy.handlers[0].name == "after_reload"


def test_settings_are_the_factorys_parameters() -> None:
    written("gate.py", FACTORY)
    (loaded,) = load_all([Use("gate.py", {"domains": ["a"], "delay": 5})])
    function: Any = loaded.policy.handlers[0].function
    function(None).close()
    closure = {
        cell.cell_contents for cell in function.__closure__ if cell.cell_contents != function
    }
    assert closure == {frozenset({"a"}), 5.0}


def line_of(use: str, **settings: object) -> str:
    """Return the one line that says why a policy cannot be loaded."""
    with pytest.raises(ConfigError) as caught:
        load(Use(use, settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_policy_at_all() -> None:
    with pytest.raises(ConfigError, match=r"no policy: name a POLICY .* or \[\[policy\]\]"):
        load_all([])


@pytest.mark.parametrize(
    ("use", "line"),
    [
        ("none.py", "none.py: no such file"),
        ("folder.py", "folder.py: not a file"),
        ("none", "no module named 'none'; for a file write its .py"),
        ("none.gate", "no module named 'none.gate'; for a file write its .py"),
        ("a/b", "'a/b' is no policy: write file.py, file.py:name or package.module"),
        ("gate.txt:x y", "gate.txt: "),
        ("gate.py:nothing", "gate.py: has no 'nothing'; it has gate.py:policy"),
        ("plain.py", "plain.py: has no 'policy'; write policy = Policy()"),
        ("gate.py:number", "gate.py: 'number' is a int, not a Policy or a function"),
        (
            "gate.py:empty",
            "gate.py: 'empty' has no handler: write @empty.message above a function",
        ),
    ],
)
def test_what_cannot_be_found(use: str, line: str) -> None:
    written("gate.py", GATE)
    written("plain.py", "x = 1\n")
    Path("folder.py").mkdir()
    if use == "gate.txt:x y":
        assert "gate.txt" in line_of(use)
        return
    assert line_of(use) == line


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = (\n", "bad.py:1: cannot be imported: SyntaxError: '(' was never closed"),
        ("\n\nx = = 1\n", "bad.py:3: cannot be imported: SyntaxError: invalid syntax"),
        ("\nimport nowhere\n", "bad.py:2: cannot be imported: ModuleNotFoundError: No module"),
        ("from mailgate import Rejct\n", "bad.py:1: cannot be imported: ImportError: cannot"),
        ("import sys\nsys.exit(3)\n", "bad.py:2: cannot be imported: SystemExit: 3"),
        ("raise KeyboardInterrupt\n", "bad.py:1: cannot be imported: KeyboardInterrupt"),
        ("def f():\n    1 / 0\n\nf()\n", "bad.py:2: cannot be imported: ZeroDivisionError: "),
        (
            "raise ValueError('a\\nb' + 'x' * 999)\n",
            "bad.py:1: cannot be imported: ValueError: a b",
        ),
        (
            "class Odd(Exception):\n    def __str__(self): 1 / 0\nraise Odd\n",
            "bad.py:3: cannot be imported: Odd",
        ),
        (
            "import json\njson.loads('{')\n",
            "bad.py:2: cannot be imported: JSONDecodeError: ",
        ),
        ("\0", "bad"),
        (
            "from mailgate import Policy\n\n@Policy().mail(timeot=5)\ndef f(message): ...\n",
            "bad.py:3: unknown option 'timeot'; did you mean 'timeout'?",
        ),
    ],
)
@pytest.mark.parametrize("use", ["bad.py", "bad"])
def test_what_cannot_be_imported(use: str, source: str, line: str) -> None:
    written("bad.py", source)
    assert line_of(use).startswith(line)
    assert len(line_of(use)) < 300


def test_an_error_in_what_a_policy_imports_is_shown_where_the_policy_imports_it() -> None:
    written("words.py", "1 / 0\n")
    written("bad.py", "\nimport words\n")
    assert line_of("bad.py").startswith("bad.py:2: cannot be imported: ZeroDivisionError")
    written("shop/__init__.py", "1 / 0\n")
    written("shop/gate.py", GATE)
    assert line_of("shop.gate").startswith("shop/__init__.py:1: cannot be imported: ZeroDivision")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "gate.py:6: missing setting 'domains' (a list of strings)"),
        ({"domian": ["a"]}, "gate.py:6: unknown setting 'domian'; did you mean 'domains'?"),
        (
            {"domains": ["a"], "delay": "8s"},
            "gate.py:6: setting 'delay' must be a number, not '8s'",
        ),
        ({"domains": "a"}, "gate.py:6: setting 'domains' must be a list of strings, not 'a'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], line: str) -> None:
    written("gate.py", FACTORY)
    assert line_of("gate.py", **settings) == line


def test_a_policy_object_takes_no_settings() -> None:
    written("gate.py", GATE)
    assert line_of("gate.py", a=1) == (
        "gate.py: 'policy' is a Policy and takes no settings; make it a function that returns one"
    )


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return 5", "made.py:1: policy() returned int, not a Policy"),
        ("pass", "made.py:1: policy() returned NoneType, not a Policy"),
        ("1 / 0", "made.py:2: policy() failed: ZeroDivisionError: division by zero"),
        ("raise SystemExit(1)", "made.py:2: policy() failed: SystemExit: 1"),
        ("from mailgate import Policy; return Policy()", "made.py: 'policy' has no handler"),
        (
            "from mailgate import Policy; p = Policy(); p.mail(lambda: 1)",
            "made.py:2: <lambda>(): @policy.mail asks a function with the arguments (message)",
        ),
    ],
)
@pytest.mark.parametrize("use", ["made.py", "made"])
def test_a_factory_that_makes_no_policy(use: str, body: str, line: str) -> None:
    written("made.py", f"def policy():\n    {body}\n")
    shown = line_of(use)
    assert shown.startswith(line) or (
        use == "made" and shown.startswith(line.replace(".py", "", 1))
    )


def test_places_are_shown_as_seen_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("policies/bad.py", "1 / 0\n")
    assert line_of("policies/bad.py").startswith("policies/bad.py:1: ")
    assert line_of(os.path.abspath("policies/bad.py")).startswith("policies/bad.py:1: ")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    full = str(tmp_path / "policies/bad.py")
    assert line_of(full).startswith(f"{full}:1: ")
