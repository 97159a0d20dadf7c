"""A message in an MTA's queue, and what a filter's edits make of it.

Postfix is as its ``src/cleanup/cleanup_milter.c`` (3.7) has it, Sendmail as ``milter.c`` and
``headers.c`` (8.17); `test_mta.py` proves both with recordings of the real ones.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

Params = dict[bytes, bytes]


class Unusable(Exception):
    """The MTA cannot make this edit, and fails the message for it."""


@final
@dataclass(slots=True)
class Envelope:
    """Who a message is from and for: paths with brackets, ESMTP parameters by name."""

    sender: bytes
    sender_params: Params = field(default_factory=dict)
    recipients: dict[bytes, Params] = field(default_factory=dict)

    def delete(self, path: bytes) -> None:
        """Take a recipient off; one that is not there is no error."""
        self.recipients.pop(bracketed(path), None)

    def add(self, path: bytes, arguments: bytes) -> None:
        """Put a recipient on."""
        self.recipients.setdefault(bracketed(path), params(arguments.split()))


def bracketed(path: bytes) -> bytes:
    """Return a path in angle brackets, whether it had them or not."""
    return path if path.startswith(b"<") else b"<" + path + b">"


def params(arguments: Sequence[bytes]) -> Params:
    """Return ESMTP arguments by name."""
    pairs = (argument.partition(b"=") for argument in arguments)
    return {name.upper(): value for name, _, value in pairs}


class Queued(ABC):
    """A message that was received; ``trace`` is the field that the MTA put on top of it."""

    def __init__(
        self, envelope: Envelope, trace: bytes, fields: Sequence[bytes], body: bytes | None
    ) -> None:
        """Queue a message; ``fields`` are as they came, without line ends behind them.

        ``body`` is None where not even a blank line ended the header section.
        """
        self.envelope = envelope
        self.held: bytes | None = None  # the reason of a quarantine
        self.trace = trace
        self._body = body
        self._replaced = False
        self._receive(trace, fields)

    @abstractmethod
    def _receive(self, trace: bytes, fields: Sequence[bytes]) -> None: ...

    @abstractmethod
    def shown(self, leading_space: bool) -> list[tuple[bytes, bytes]]:
        """Return names and values of the fields that a filter is shown."""

    @abstractmethod
    def add_header(self, name: bytes, value: bytes) -> None:
        """ADDHEADER."""

    @abstractmethod
    def insert_header(self, index: int, name: bytes, value: bytes) -> None:
        """INSHEADER."""

    @abstractmethod
    def change_header(self, index: int, name: bytes, value: bytes | None) -> None:
        """CHGHEADER; None deletes."""

    @abstractmethod
    def change_sender(self, path: bytes, arguments: bytes) -> None:
        """CHGFROM."""

    @abstractmethod
    def _section(self) -> list[bytes]:
        """Return the fields as they are delivered, lines divided by LF."""

    @property
    def body(self) -> bytes:
        """The body as a filter is shown it."""
        return self._body or b""

    def replace_body(self, piece: bytes) -> None:
        """REPLBODY: the first piece takes the place of the body, others are appended."""
        self._body = piece if not self._replaced else (self._body or b"") + piece
        self._replaced = True

    @property
    def raw(self) -> bytes:
        """The message as it is delivered."""
        section = b"".join(one.replace(b"\n", b"\r\n") + b"\r\n" for one in [*self._section()])
        if self._body is None:
            return section
        body = re.sub(rb"\r?\n", b"\r\n", self._body)
        if body and not body.endswith(b"\r\n"):
            body += b"\r\n"
        return section + b"\r\n" + body


def _shown(raw: bytes, leading_space: bool) -> tuple[bytes, bytes]:
    name, _, value = raw.partition(b":")
    return name, value if leading_space else value.removeprefix(b" ")


@final
class PostfixQueued(Queued):
    """Fields in a list, numbered anew after each edit; the topmost one is never counted."""

    def _receive(self, trace: bytes, fields: Sequence[bytes]) -> None:
        self._fields = [trace, *(re.sub(rb"[ \t]+(?=:)", b"", one, count=1) for one in fields)]

    def shown(self, leading_space: bool) -> list[tuple[bytes, bytes]]:
        return [_shown(one, leading_space) for one in self._fields[1:]]

    def add_header(self, name: bytes, value: bytes) -> None:
        self._fields.append(self._made(name, value))

    def insert_header(self, index: int, name: bytes, value: bytes) -> None:
        self._fields.insert(index, self._made(name, value))

    def change_header(self, index: int, name: bytes, value: bytes | None) -> None:
        named = [
            at
            for at, one in enumerate(self._fields)
            if at and one.partition(b":")[0].lower() == name.lower()
        ]
        wanted = max(index, 1) - 1
        if wanted < len(named):
            at = named[wanted]
            self._fields[at : at + 1] = [] if value is None else [self._made(name, value)]
        elif value is not None:
            self.add_header(name, value)

    def change_sender(self, path: bytes, arguments: bytes) -> None:
        self.envelope.sender = bracketed(path)
        self.envelope.sender_params |= params(arguments.split())

    @staticmethod
    def _made(name: bytes, value: bytes) -> bytes:
        return name + b":" + re.sub(rb"\n(?![ \t])", b"\n\t", value)

    def _section(self) -> list[bytes]:
        return self._fields


@final
@dataclass(slots=True)
class _Entry:
    """One entry of Sendmail's list; None as value is not delivered.

    ``user``: it came with the message or from a filter, and is counted.
    """

    name: bytes
    value: bytes | None
    user: bool = True
    trace: bool = False

    def is_called(self, name: bytes) -> bool:
        return self.name.lower() == name.lower()


# The H lines of cf/m4/proto.m4 in their order: entries that every message's list begins with.
_BEFORE_TRACE = (b"Return-Path",)
_BEHIND_TRACE = (
    *(b"Resent-Date", b"Date", b"Resent-From", b"From", b"Full-Name"),
    *(b"Resent-Message-Id", b"Message-Id"),
)


@final
class SendmailQueued(Queued):
    """Entries that keep their place and number when their value is gone."""

    def __init__(
        self,
        envelope: Envelope,
        trace: bytes,
        fields: Sequence[bytes],
        body: bytes,
        supplied: Mapping[bytes, bytes],
    ) -> None:
        """Queue a message; ``supplied`` are values of fields that it may lack."""
        self._supplied = supplied
        super().__init__(envelope, trace, fields, body)

    def _receive(self, trace: bytes, fields: Sequence[bytes]) -> None:
        came = [re.sub(rb"[ \t]+(?=:)", b"", one, count=1).partition(b":") for one in fields]
        names = {name.lower() for name, _, _ in came}
        defaults = [
            _Entry(name, None if name.lower() in names else self._supplied.get(name), False)
            for name in _BEHIND_TRACE
        ]
        name, _, value = trace.partition(b":")
        self._entries = [
            *(_Entry(name, None, user=False) for name in _BEFORE_TRACE),
            _Entry(name, value, user=False, trace=True),
            *defaults,
            *(_Entry(name, value) for name, _, value in came),
        ]

    def shown(self, leading_space: bool) -> list[tuple[bytes, bytes]]:
        return [
            _shown(one.name + b":" + one.value, leading_space)
            for one in self._entries
            if one.user and one.value is not None
        ]

    def add_header(self, name: bytes, value: bytes) -> None:
        for one in self._entries:
            if one.is_called(name) and not one.user and not one.trace:
                one.value, one.user = value, True  # "replace default header"
                return
        self._add(name, value)

    def _add(self, name: bytes, value: bytes) -> None:
        """Put an entry before the first of its name, or behind all."""
        same = (at for at, one in enumerate(self._entries) if one.is_called(name))
        self._entries.insert(next(same, len(self._entries)), _Entry(name, value))

    def insert_header(self, index: int, name: bytes, value: bytes) -> None:
        self._entries.insert(index + 1, _Entry(name, value))

    def change_header(self, index: int, name: bytes, value: bytes | None) -> None:
        found = default = None
        for one in self._entries:
            if not one.is_called(name):
                continue
            if one.user:
                index -= 1
                if index <= 0:
                    found = one
                    break
            elif not one.trace:
                default = one
        found = found or default
        if found is None:
            if value is not None:
                self._add(name, value)
            return
        found.value = value
        found.user = found.user or value is not None

    def change_sender(self, path: bytes, arguments: bytes) -> None:
        self.envelope.sender = bracketed(path)
        if arguments:
            self.envelope.sender_params = params(arguments.split())

    def _section(self) -> list[bytes]:
        return [
            one.name + b":" + re.sub(rb"\n(?![ \t])", b"\n ", one.value)
            for one in self._entries
            if one.value is not None
        ]
