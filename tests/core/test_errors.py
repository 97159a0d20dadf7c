"""The two families of errors."""

from __future__ import annotations

import pytest

from mailgate import errors
from mailgate.errors import ConfigError, LimitExceeded, MailgateError


@pytest.mark.parametrize(
    ("file", "line", "shown"),
    [
        ("gate.py", 7, "gate.py:7: no such thing"),
        ("gate.py", None, "gate.py: no such thing"),
        (None, None, "no such thing"),
        (None, 7, "no such thing"),
    ],
)
def test_a_configuration_error_names_its_place(
    file: str | None, line: int | None, shown: str
) -> None:
    assert str(ConfigError("no such thing", file=file, line=line)) == shown


def pictured() -> dict[str, str]:
    """Return the classes of the module's picture, each with the class it hangs from."""
    found: dict[str, str] = {}
    parents = ["MailgateError"]
    for line in (errors.__doc__ or "").splitlines():
        before, branch, rest = line.partition("+-- ")
        if branch:
            depth = before.count("|") + 1
            name = rest.split()[0]
            found[name] = parents[depth - 1]
            parents[depth:] = [name]
    return found


def test_the_picture_of_the_module_is_true() -> None:
    ours = {
        name: found.__bases__[0].__name__
        for name, found in vars(errors).items()
        if getattr(found, "__module__", "") == errors.__name__
        and isinstance(found, type)
        and found is not MailgateError
    }
    assert pictured() == ours


def test_a_limit_is_a_value_error_too() -> None:
    assert issubclass(LimitExceeded, ValueError)
    assert issubclass(LimitExceeded, MailgateError)
