"""What a handler answers, and the SMTP reply that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias, TypeGuard, final

from mailgate.syntax import is_enhanced, reply_lines


@final
class Reply(str):
    """An SMTP reply as the client sees it: ``"550 5.7.1 not here"``, lines divided by LF.

    A ``str``, so a test compares it with the text that it expects; ``code``, ``enhanced`` (""
    where there is none) and ``lines`` (without the codes) are there for those who need parts.
    """

    __slots__ = ("code", "enhanced", "lines")

    code: int
    enhanced: str
    lines: tuple[str, ...]

    def __new__(cls, code: int, enhanced: str, lines: tuple[str, ...]) -> Reply:
        start = f"{code} {enhanced} " if enhanced else f"{code} "
        self = super().__new__(cls, "\n".join(start + line for line in lines))
        self.code = code
        self.enhanced = enhanced
        self.lines = lines
        return self

    def in_one_line(self, most: int) -> bytes:
        """Return the enhanced code and the text as one line of printable ASCII, for some wires.

        It has at most ``most`` octets: a longer one is cut with ``...``.
        """
        start = f"{self.enhanced} " if self.enhanced else ""
        line = f"{start}{'; '.join(self.lines)}".replace("\t", " ").encode("ascii")
        return line if len(line) <= most else line[: most - 3] + b"..."

    def __reduce__(self) -> tuple[type[Reply], tuple[int, str, tuple[str, ...]]]:
        return Reply, (self.code, self.enhanced, self.lines)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What Reject, Defer and Disconnect share: the parts of a reply, checked when it is made."""

    text: str
    code: int
    enhanced: str = ""

    classes: ClassVar[tuple[int, ...]]
    closes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        texts = isinstance(self.text, str) and isinstance(self.enhanced, str)
        if not texts or not isinstance(self.code, int) or isinstance(self.code, bool):
            raise TypeError(f"{name}: text and enhanced must be str, code must be int")
        object.__setattr__(self, "text", str(self.text))  # an Address, say, is text
        object.__setattr__(self, "code", int(self.code))
        if not 400 <= self.code <= 599 or self.code // 100 not in self.classes:
            wanted = " or ".join(f"{first}xx" for first in self.classes)
            raise ValueError(f"{name} wants a {wanted} code, not {self.code}")
        if self.code == 421 and not self.closes:
            raise ValueError("421 closes the connection: return Disconnect for it (RFC 5321 3.8)")
        enhanced = self.enhanced or f"{self.code // 100}.7.1"
        if not is_enhanced(enhanced) or enhanced[0] != str(self.code)[0]:
            shown = enhanced[:20]
            raise ValueError(f"{name}: enhanced status {shown!a} does not go with {self.code}")
        reply_lines(self.text)
        object.__setattr__(self, "enhanced", enhanced)

    @property
    def reply(self) -> Reply:
        """The reply as the client sees it."""
        return Reply(self.code, self.enhanced, reply_lines(self.text))


@final
@dataclass(frozen=True, slots=True)
class Accept:
    """Say nothing more for the rest of this message (in connect and helo: this connection)."""


@final
@dataclass(frozen=True, slots=True)
class Reject(_Refusal):
    """Refuse for good: a 5xx reply.

    ``enhanced`` defaults to 5.7.1.  Line ends in ``text`` make a multi-line reply where the
    protocol has one, and ``"; "`` where it has not.  Raises ValueError where the parts do not
    fit together: a code of another class, an enhanced status of another class (RFC 3463 2),
    an empty text, a control character; TypeError for a part of another type.
    """

    code: int = 550
    classes = (5,)


@final
@dataclass(frozen=True, slots=True)
class Defer(_Refusal):
    """Refuse for now: a 4xx reply, the client tries again.  Checked as `Reject` is."""

    code: int = 451
    classes = (4,)


@final
@dataclass(frozen=True, slots=True)
class Disconnect(_Refusal):
    """Refuse with a 4xx or 5xx reply and close the connection.  Checked as `Reject` is."""

    code: int = 421
    classes = (4, 5)
    closes = True


@final
@dataclass(frozen=True, slots=True)
class Discard:
    """Take the message and drop it.  Needs the capability ``discard``."""

    reason: str
    needs: ClassVar[str] = "discard"

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", "; ".join(reply_lines(self.reason)))


@final
@dataclass(frozen=True, slots=True)
class Quarantine:
    """Take the message and hold it.  Needs the capability ``quarantine``."""

    reason: str
    needs: ClassVar[str] = "quarantine"

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", "; ".join(reply_lines(self.reason)))


@final
@dataclass(frozen=True, slots=True)
class Authenticated:
    """Log the client in as ``user``; only in auth.  Needs the capability ``authenticate``."""

    user: str
    needs: ClassVar[str] = "authenticate"

    def __post_init__(self) -> None:
        reply_lines(self.user)


Refusal: TypeAlias = Reject | Defer | Disconnect
_REFUSALS = frozenset({Reject, Defer, Disconnect})
Verdict: TypeAlias = Reject | Defer | Disconnect | Accept | Discard | Quarantine | Authenticated


def refuses(verdict: Verdict | None) -> TypeGuard[Refusal]:
    """Tell whether a verdict is a reply to refuse with; None goes on."""
    return type(verdict) in _REFUSALS


def verb(verdict: Verdict | None) -> str:
    """Return the word for a verdict in traces and logs: ``reject``, ``continue`` for None."""
    return "continue" if verdict is None else type(verdict).__name__.lower()
