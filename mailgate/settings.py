"""A TOML table becomes keyword arguments, with messages that help."""

from __future__ import annotations

import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
)
from pathlib import Path
from typing import Any, Literal, Union

from mailgate.errors import ConfigError, suggestion

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
    function: Callable[..., Any], table: Mapping[str, object], *, what: str = "setting"
) -> dict[str, Any]:
    """Return keyword arguments for a policy factory or an options class.

    Values are converted by annotation.  ConfigError for a name that is unknown, missing, or
    whose value does not fit.
    """
    signature = inspect.signature(function)
    try:
        hints = typing.get_type_hints(function)
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
                f"unknown {what} {name!r}{suggestion(name, known) or '; it takes none'}"
            )
    given: dict[str, Any] = {}
    for name, parameter in known.items():
        annotation = hints.get(name, Any)
        if name in table:
            try:
                given[name] = convert(table[name], annotation)
            except Unfit:
                raise ConfigError(
                    f"{what} {name!r} must be {describe(annotation)}, not {table[name]!r}"
                ) from None
        elif parameter.default is parameter.empty:
            raise ConfigError(f"missing {what} {name!r} ({describe(annotation)})")
    return given


def describe(annotation: Any) -> str:
    """Return an annotation as a person reads it."""
    if annotation is type(None):
        return "nothing"
    if typing.get_origin(annotation) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return " or ".join(describe(part) for part in parts)
    if isinstance(annotation, type) and not typing.get_args(annotation):
        if issubclass(annotation, Enum):
            return " or ".join(repr(member.value) for member in annotation)
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def convert(value: object, annotation: Any) -> Any:
    """Return a TOML value as what an annotation wants; Unfit where it is none."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (Any, inspect.Parameter.empty):
        return value
    if origin in (Union, types.UnionType):
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
        return float(value)
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
