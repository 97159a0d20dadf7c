"""A TOML table becomes keyword arguments, with messages that help."""

from __future__ import annotations

import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import date, datetime, time
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
)
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union

from mailgate.errors import ConfigError, suggestion

Seconds: TypeAlias = Annotated[float, "seconds"]
"""A time: 300 and 1.5 are seconds, and "250ms", "90s", "5m" and "1h" are understood."""

_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+)\s*([KMG])i?B?", re.IGNORECASE)
_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}
_PARSED: dict[object, Callable[[str], Any]] = {
    IPv4Address: IPv4Address,
    IPv6Address: IPv6Address,
    IPv4Network: IPv4Network,
    IPv6Network: IPv6Network,
}


class Unfit(Exception):
    """A value does not fit its annotation."""


def arguments(
    function: Callable[..., Any],
    table: Mapping[str, object],
    *,
    what: str = "setting",
    within: str = "",
) -> dict[str, Any]:
    """Return keyword arguments for a policy factory or an options class.

    Values are converted by annotation; a table becomes the dataclass that it is annotated with.
    ConfigError for a name that is unknown, missing, or whose value does not fit; ``within`` is
    what stands before a name there, such as ``limits.``.
    """
    signature = inspect.signature(function)
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:
        hints = {}
    known = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for name in table:
        if name not in known:
            raise ConfigError(
                f"unknown {what} {within + name!r}{suggestion(name, known) or '; it takes none'}"
            )
    given: dict[str, Any] = {}
    for name, parameter in known.items():
        annotation = hints.get(name, Any)
        if name in table:
            given[name] = _argument(table[name], annotation, what, within + name)
        elif parameter.default is parameter.empty:
            raise ConfigError(f"missing {what} {within + name!r} ({describe(annotation)})")
    return given


def _argument(value: object, annotation: Any, what: str, name: str) -> Any:
    """Return one converted value; ``name`` has the names of the tables that it is in."""
    kind = _options_class(annotation)
    if kind is not None and isinstance(value, Mapping):
        inner = arguments(kind, value, what=what, within=f"{name}.")
        try:
            return kind(**inner)
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"table {name!r}: {error}") from None
    try:
        return convert(value, annotation)
    except Unfit:
        raise ConfigError(
            f"{what} {name!r} must be {describe(annotation)}, not {_written(value)}"
        ) from None


def _options_class(annotation: Any) -> Callable[..., Any] | None:
    """Return the dataclass that an annotation names, alone or beside None."""
    named = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return next((each for each in named if isinstance(each, type) and is_dataclass(each)), None)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


# -- annotations as a person writes them in TOML -------------------------------------------------

_WORDS: dict[Any, tuple[str, str]] = {
    str: ("a string", "strings"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    Path: ("a path", "paths"),
    IPv4Address: ("an IPv4 address", "IPv4 addresses"),
    IPv6Address: ("an IPv6 address", "IPv6 addresses"),
    IPv4Network: ("an IPv4 network", "IPv4 networks"),
    IPv6Network: ("an IPv6 network", "IPv6 networks"),
    date: ("a date", "dates"),
    time: ("a time of day", "times of day"),
    datetime: ("a date with a time", "dates with a time"),
    type(None): ("nothing", "nothing"),
    Any: ("anything", "anything"),
}


def describe(annotation: Any, *, several: bool = False) -> str:
    """Return what to write for an annotation, for ``several`` of it in a list."""
    if typing.get_origin(annotation) is Annotated:
        if annotation == Seconds:
            return f'{"times" if several else "a time"} (seconds, or "250ms", "90s", "5m", "1h")'
        return describe(typing.get_args(annotation)[0], several=several)
    if typing.get_origin(annotation) is Literal:
        return " or ".join(map(_written, typing.get_args(annotation)))
    if _is_union(annotation):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return " or ".join(describe(part, several=several) for part in parts)
    origin = typing.get_origin(annotation) or annotation
    if origin in _WORDS:
        return _WORDS[origin][several]
    if is_dataclass(origin) or (isinstance(origin, type) and issubclass(origin, Iterable)):
        return _describe_container(origin, typing.get_args(annotation), several)
    if isinstance(origin, type) and issubclass(origin, Enum):
        return " or ".join(_written(member.value) for member in origin)
    return getattr(annotation, "__name__", str(annotation))


def _describe_container(origin: Any, parts: Sequence[Any], several: bool) -> str:
    if is_dataclass(origin) or issubclass(origin, Mapping):
        noun, item = "tables" if several else "a table", parts[1:]
    else:
        noun, item = "lists" if several else "a list", parts[:1]
        if origin is tuple and parts and parts[-1] is not Ellipsis:
            return f"{noun} of {len(parts)} ({', '.join(map(describe, parts))})"
    if not item or item[0] is Any:
        return noun
    return f"{noun} of {describe(item[0], several=True)}"


def _written(value: object) -> str:
    """Return a value nearly as TOML has it."""
    return repr(value).lower() if isinstance(value, bool) else repr(value)


# -- values --------------------------------------------------------------------------------------


def convert(value: object, annotation: Any) -> Any:
    """Return a TOML value as what an annotation wants; Unfit where it is none."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (Any, inspect.Parameter.empty):
        return value
    if origin is Annotated:
        return _seconds(value) if annotation == Seconds else convert(value, parts[0])
    if _is_union(annotation):
        return _first_fit(value, parts)
    if origin is Literal:
        return _wanted(value, any(type(value) is type(p) and value == p for p in parts))
    if origin is not None or annotation in _CONTAINERS:
        return _container(value, origin or annotation, parts)
    return _scalar(value, annotation)


def _wanted(value: object, fits: bool) -> Any:
    if not fits:
        raise Unfit
    return value


def _first_fit(value: object, annotations: Sequence[Any]) -> Any:
    for annotation in annotations:
        try:
            return convert(value, annotation)
        except Unfit:
            continue
    raise Unfit


_CONTAINERS: dict[Any, Callable[[Any], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    Sequence: tuple,
    Collection: frozenset,
    typing.AbstractSet: frozenset,
}


def _container(value: object, origin: Any, parts: Sequence[Any]) -> Any:
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise Unfit
        item = parts[1] if len(parts) == 2 else Any
        return {key: convert(entry, item) for key, entry in value.items()}
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        raise Unfit
    build = next((b for t, b in _CONTAINERS.items() if t is origin), None)
    if build is None:
        build = tuple if issubclass(origin, Sequence) else frozenset
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        if len(value) != len(parts):
            raise Unfit
        return tuple(convert(entry, part) for entry, part in zip(value, parts, strict=True))
    item = parts[0] if parts else Any
    try:
        return build([convert(entry, item) for entry in value])
    except TypeError:  # a set of tables or lists
        raise Unfit from None


def _scalar(value: object, annotation: Any) -> Any:
    if annotation is bool or isinstance(value, bool):
        return _wanted(value, annotation is bool and isinstance(value, bool))
    if annotation is float and isinstance(value, int):
        return _float(value)
    if annotation is int and isinstance(value, str) and (size := _SIZE.fullmatch(value)):
        return int(size[1]) * _UNITS[size[2].upper()]
    if annotation is Path and isinstance(value, str):
        return _path(value)
    if annotation is type(None):
        raise Unfit  # TOML has no null: leave the setting out
    try:
        if annotation in _PARSED and isinstance(value, str):
            return _PARSED[annotation](value)
        if isinstance(annotation, type) and issubclass(annotation, Enum):
            return annotation(value)
    except ValueError:
        raise Unfit from None
    return _wanted(value, isinstance(annotation, type) and isinstance(value, annotation))


def _seconds(value: object) -> float:
    """Return the seconds that a time means; Unfit for one that is no time to wait."""
    if isinstance(value, str) and (time := _TIME.fullmatch(value)):
        seconds = float(time[1]) * _SECONDS[time[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = _float(value)
    else:
        raise Unfit
    if not (math.isfinite(seconds) and seconds >= 0):
        raise Unfit
    return seconds


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise Unfit from None


def _path(value: str) -> Path:
    """Return a path; a bare name is looked for among systemd's credentials first."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and "/" not in value and (Path(credentials) / value).exists():
        return Path(credentials) / value
    return Path(value)


def from_text(text: str) -> object:
    """Return the value of ``--set KEY=VALUE``: TOML where it is TOML, else the text itself."""
    import tomllib

    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text
