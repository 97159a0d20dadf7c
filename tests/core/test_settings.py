"""A TOML table becomes keyword arguments, or a message that helps."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date, datetime, time
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.errors import ConfigError
from mailgate.settings import Seconds, Unfit, arguments, convert, describe, from_text


class Level(Enum):
    LOW = "low"
    HIGH = "high"


# -- conversion ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "annotation", "value"),
    [
        ('"a"', str, "a"),
        ("5", int, 5),
        ("5.5", float, 5.5),
        ("60", float, 60.0),
        ("true", bool, True),
        ('"64K"', int, 64 * 1024),
        ('"50M"', int, 50 * 1024**2),
        ('"2 GiB"', int, 2 * 1024**3),
        ('"1kb"', int, 1024),
        ('"/etc/passwd"', Path, Path("/etc/passwd")),
        ('"192.0.2.1"', IPv4Address, IPv4Address("192.0.2.1")),
        ('"2001:db8::1"', IPv6Address, IPv6Address("2001:db8::1")),
        ('"192.0.2.0/24"', IPv4Network, IPv4Network("192.0.2.0/24")),
        ('"2001:db8::/32"', IPv6Network, IPv6Network("2001:db8::/32")),
        ('"low"', Level, Level.LOW),
        ('"a"', Literal["a", "b"], "a"),
        ("1", Literal[1, 2], 1),
        ("1", int | str, 1),
        ('"x"', int | str, "x"),
        ('"x"', Optional[str], "x"),  # noqa: UP045 - as one may write it
        ("5", float | None, 5.0),
        ("5", Annotated[float, "of rain"], 5.0),
        ("300", Seconds, 300.0),
        ("1.5", Seconds, 1.5),
        ("0", Seconds, 0.0),
        ('"300s"', Seconds, 300.0),
        ('"5m"', Seconds, 300.0),
        ('"1h"', Seconds, 3600.0),
        ('"250ms"', Seconds, 0.25),
        ('"1.5h"', Seconds, 5400.0),
        ('"5m"', Seconds | None, 300.0),
        ('["a"]', str | list[str], ["a"]),
        ('"anything"', Any, "anything"),
        ("{ a = 1 }", Any, {"a": 1}),
    ],
)
def test_scalars(toml: str, annotation: Any, value: object) -> None:
    converted = convert(tomllib.loads(f"x = {toml}")["x"], annotation)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (list, ["a", "b"]),
        (list[str], ["a", "b"]),
        (tuple, ("a", "b")),
        (tuple[str, ...], ("a", "b")),
        (tuple[str, str], ("a", "b")),
        (set, {"a", "b"}),
        (set[str], {"a", "b"}),
        (frozenset, frozenset({"a", "b"})),
        (frozenset[str], frozenset({"a", "b"})),
        (Collection[str], frozenset({"a", "b"})),
        (AbstractSet[str], frozenset({"a", "b"})),
        (Sequence[str], ("a", "b")),
        (Iterable[str], frozenset({"a", "b"})),
    ],
)
def test_containers(annotation: Any, value: object) -> None:
    converted = convert(["a", "b"], annotation)
    assert converted == value
    assert type(converted) is type(value)


def test_items_are_converted_too() -> None:
    network = IPv4Network("192.0.2.0/24")
    assert convert(["192.0.2.0/24"], Collection[IPv4Network]) == {network}
    assert convert(["a", 1], tuple[str, float]) == ("a", 1.0)
    assert convert([[1]], list[list[float]]) == [[1.0]]
    assert convert({"a": 1}, dict[str, float]) == {"a": 1.0}
    assert convert({"a": 1}, Mapping[str, float]) == {"a": 1.0}
    assert convert({"a": 1}, dict) == {"a": 1}
    assert convert({"a": ["low"]}, dict[str, list[Level]]) == {"a": [Level.LOW]}


MISFITS: list[tuple[Any, list[object]]] = [
    (str, [5, True, 5.5, ["a"], {}]),
    (int, ["5", "5X", "K", True, 5.0, [5], "-1K"]),
    (float, ["8s", "5", True, [5.0], 10**400]),
    (
        Seconds,
        ["8", "8 s", "5M", "5d", "s", "-5s", "1e3s", ".5s", "1.s", "\u0665m", "", True, [5]],
    ),
    (Seconds, [-1, -0.5, math.nan, math.inf, "9" * 400 + "s", 10**400]),
    (Seconds | None, ["8", -1]),
    (bool, [0, 1, "true", []]),
    (Path, [5, True, ["a"]]),
    (IPv4Network, ["192.0.2.1/24", "2001:db8::/32", "x", 5, True]),
    (IPv4Address, ["192.0.2.0/24", 3221225985]),
    (Level, ["LOW", "mid", 5, ["low"]]),
    (Literal["a", "b"], ["c", 1, ["a"]]),
    (Literal[1], [True, 1.0, "1"]),
    (Literal[True], [1, 1.0]),
    (list[str], ["abc", [1], {"a": 1}, 5]),
    (Collection[str], ["abc", ["a", 1], {"a": 1}]),
    (tuple[str, int], [["a"], ["a", 1, 2], [1, "a"], "ab"]),
    (dict[str, int], [{"a": "b"}, ["a"], "a", [["a", 1]]]),
    (int | None, ["x", [], 1.5]),
    (set, [[["unhashable"]], [{}]]),
    (type(None), ["a"]),
    (Callable, ["a"]),
]
UNFIT = [(value, annotation) for annotation, values in MISFITS for value in values]


@pytest.mark.parametrize(("value", "annotation"), UNFIT, ids=repr)
def test_what_does_not_fit(value: object, annotation: Any) -> None:
    with pytest.raises(Unfit):
        convert(value, annotation)


TOML = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
ANNOTATIONS = [
    *(str, int, float, bool, Path, IPv4Network, Level, Literal["a", 1], list[str], set, frozenset),
    *(tuple[int, str], dict[str, int], Collection[str], int | str | None, dict, Mapping, object),
    *(Seconds, list[Seconds], Seconds | None),
]


@given(TOML, st.sampled_from(ANNOTATIONS))
def test_a_value_fits_or_it_does_not(value: object, annotation: Any) -> None:
    try:
        convert(value, annotation)
    except Unfit:
        return


def test_a_secret_is_found_among_the_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd.exec(5), LoadCredential."""
    (tmp_path / "token").write_text("s3cret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert convert("token", Path) == tmp_path / "token"
    assert convert("other", Path) == Path("other")
    assert convert("./token", Path) == Path("token")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert convert("token", Path) == Path("token")


# -- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (str, "a string"),
        (int, "a whole number"),
        (float, "a number"),
        (Annotated[float, "of rain"], "a number"),
        (bool, "true or false"),
        (Path, "a path"),
        (Seconds, 'a time (seconds, or "250ms", "90s", "5m", "1h")'),
        (Seconds | None, 'a time (seconds, or "250ms", "90s", "5m", "1h")'),
        (date, "a date"),
        (time, "a time of day"),
        (datetime, "a date with a time"),
        (Collection[str], "a list of strings"),
        (tuple[str, ...], "a list of strings"),
        (str | tuple[str, ...], "a string or a list of strings"),
        (list[list[bool]], "a list of lists of true or false"),
        (set[IPv4Network | IPv6Network], "a list of IPv4 networks or IPv6 networks"),
        (Sequence[Literal["a", "b"]], "a list of 'a' or 'b'"),
        (list[Seconds], 'a list of times (seconds, or "250ms", "90s", "5m", "1h")'),
        (tuple[str, int], "a list of 2 (a string, a whole number)"),
        (list, "a list"),
        (frozenset[Any], "a list"),
        (dict, "a table"),
        (dict[str, int], "a table of whole numbers"),
        (Mapping[str, Any], "a table"),
        (list[dict[str, Path]], "a list of tables of paths"),
        (Literal["a", "b"], "'a' or 'b'"),
        (Literal[True, "auto"], "true or 'auto'"),
        (Level, "'low' or 'high'"),
        (int | str, "a whole number or a string"),
        (type(None), "nothing"),
        (Any, "anything"),
    ],
)
def test_annotations_as_a_person_reads_them(annotation: Any, text: str) -> None:
    assert describe(annotation) == text


def factory(
    domains: Collection[str], timeout: float = 5, *, mode: Literal["a", "b"] = "a"
) -> None:
    """Stand for a policy's factory."""


def message(table: dict[str, object], function: Callable[..., Any] = factory) -> str:
    with pytest.raises(ConfigError) as caught:
        arguments(function, table)
    return str(caught.value)


def test_settings_become_arguments() -> None:
    assert arguments(factory, {"domains": ["a"]}) == {"domains": frozenset({"a"})}
    given = arguments(factory, {"domains": [], "timeout": 60, "mode": "b"})
    assert given == {"domains": frozenset(), "timeout": 60.0, "mode": "b"}


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({}, "missing setting 'domains' (a list of strings)"),
        ({"domian": []}, "unknown setting 'domian'; did you mean 'domains'?"),
        ({"domains": [], "zzz": 1}, "unknown setting 'zzz'; known: domains, timeout, mode"),
        ({"domains": [], "timeout": "8s"}, "setting 'timeout' must be a number, not '8s'"),
        ({"domains": [], "timeout": True}, "setting 'timeout' must be a number, not true"),
        ({"domains": "a"}, "setting 'domains' must be a list of strings, not 'a'"),
        ({"domains": [], "mode": "c"}, "setting 'mode' must be 'a' or 'b', not 'c'"),
    ],
)
def test_messages_name_the_setting_and_the_remedy(table: dict[str, object], text: str) -> None:
    assert message(table) == text


def test_a_factory_without_settings_says_so() -> None:
    assert message({"a": 1}, lambda: None) == "unknown setting 'a'; it takes none"


def test_the_word_for_a_setting_can_be_another() -> None:
    with pytest.raises(ConfigError, match="unknown key 'domian'; did you mean 'domains'"):
        arguments(factory, {"domian": 1}, what="key")


def test_what_is_not_annotated_is_taken_as_it_is() -> None:
    def unannotated(a, b=1):  # type: ignore[no-untyped-def]
        ...

    assert arguments(unannotated, {"a": [1], "b": "x"}) == {"a": [1], "b": "x"}


def test_an_annotation_that_only_a_type_checker_knows_is_passed_over() -> None:
    def odd(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert arguments(odd, {"a": 5}) == {"a": 5}


def test_arguments_that_have_no_name_are_not_settings() -> None:
    def odd(*several: int, **named: int) -> None: ...

    assert arguments(odd, {}) == {}
    assert message({"several": 1}, odd) == "unknown setting 'several'; it takes none"


# -- tables in tables ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Perch:
    """Stand for a table in a table in a table."""

    height: int

    def __post_init__(self) -> None:
        if self.height < 1:
            raise ValueError("'height' must be above 0")


@dataclass(frozen=True)
class Cage:
    """Stand for a table in a table."""

    birds: int = 1
    idle: Seconds = 30.0
    perch: Perch | None = None
    door: Literal["open", "shut"] = "open"

    def __post_init__(self) -> None:
        if self.door == "open" and self.birds > 1:
            raise ConfigError("'door' must be 'shut': they fly away")


@dataclass(frozen=True)
class House:
    """Stand for the options of an adapter."""

    cage: Cage = Cage()
    name: str = ""


def test_a_table_becomes_a_dataclass() -> None:
    table = tomllib.loads("name = 'a'\n[cage]\nidle = '5m'\n[cage.perch]\nheight = 2\n")
    made = {"name": "a", "cage": Cage(idle=300.0, perch=Perch(2))}
    assert arguments(House, table) == made
    assert arguments(House, {"cage": {}}) == {"cage": Cage()}
    assert arguments(House, {}) == {}


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        ("cage = 5", "key 'cage' must be a table, not 5"),
        ("cage = ['a']", "key 'cage' must be a table, not ['a']"),
        ("[cage]\nbirds = 'two'", "key 'cage.birds' must be a whole number, not 'two'"),
        (
            "[cage]\nidle = 5.5\nbirds = 1.5",
            "key 'cage.birds' must be a whole number, not 1.5",
        ),
        (
            "[cage]\nidle = []",
            'key \'cage.idle\' must be a time (seconds, or "250ms", "90s", "5m", "1h"), not []',
        ),
        ("[cage]\nbrids = 2", "unknown key 'cage.brids'; did you mean 'birds'?"),
        ("[cage]\nx = 2", "unknown key 'cage.x'; known: birds, idle, perch, door"),
        ("[cage]\nperch = true", "key 'cage.perch' must be a table, not true"),
        ("[cage.perch]", "missing key 'cage.perch.height' (a whole number)"),
        ("[cage.perch]\nhight = 1", "unknown key 'cage.perch.hight'; did you mean 'height'?"),
        ("[cage.perch]\nheight = 0", "table 'cage.perch': 'height' must be above 0"),
        ("[cage]\nbirds = 2", "table 'cage': 'door' must be 'shut': they fly away"),
    ],
)
def test_messages_name_the_key_inside(toml: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        arguments(House, tomllib.loads(toml), what="key")
    assert str(caught.value) == text


def test_the_settings_of_a_policy_may_have_tables_too() -> None:
    def made(cage: Cage, times: int = 1) -> None: ...

    assert arguments(made, {"cage": {"birds": 1}}) == {"cage": Cage(1)}
    assert message({"cage": {"birds": []}}, made) == (
        "setting 'cage.birds' must be a whole number, not []"
    )
    assert message({}, made) == "missing setting 'cage' (a table)"


# -- on the command line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("5.5", 5.5),
        ("true", True),
        ('["a", "b"]', ["a", "b"]),
        ('"quoted"', "quoted"),
        ("plain", "plain"),
        ("example.org", "example.org"),
        ("a b = c", "a b = c"),
        ("", ""),
        ("[", "["),
        ("{a = 1}", {"a": 1}),
    ],
)
def test_from_text(text: str, value: object) -> None:
    assert from_text(text) == value


def test_a_text_of_several_lines_is_one_value() -> None:
    """Not another key of the table that it is read from."""
    assert from_text("1\nother = 2") == "1\nother = 2"
