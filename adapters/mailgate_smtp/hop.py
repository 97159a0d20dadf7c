"""Where mail goes next: what a server upstream and a maildir have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, final

from mailgate_smtp.wire import Path, Reply, reply

_KEYWORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
_DIGITS = re.compile(rb"[0-9]{1,20}")


@final
class Features:
    """What an EHLO or LHLO reply offers: keywords in upper case, and their parameters."""

    __slots__ = ("_keywords", "size")

    def __init__(self, keywords: Mapping[bytes, bytes]) -> None:
        self._keywords = keywords
        found = _DIGITS.fullmatch(keywords.get(b"SIZE", b""))
        # "SIZE" alone and "SIZE 0" set no limit (RFC 1870 4); nor does what is no number.
        self.size = int(found[0]) if found else 0

    @classmethod
    def of(cls, greeting: Reply) -> Features:
        """Return what a reply to EHLO says; the first line has the server's name."""
        keywords: dict[bytes, bytes] = {}
        for line in greeting.lines[1:]:
            keyword, _, parameters = line.partition(b" ")
            if _KEYWORD.fullmatch(keyword):  # "AUTH=LOGIN" is none: an old form, sent doubled
                keywords.setdefault(keyword.upper(), parameters.strip())
        return cls(keywords)

    def __contains__(self, keyword: bytes) -> bool:
        return keyword in self._keywords

    def __getitem__(self, keyword: bytes) -> bytes:
        """Return the parameters of a keyword, empty where there is none."""
        return self._keywords.get(keyword, b"")

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._keywords)


NOTHING = Features({})
"""What a server offers that knows HELO only."""


class HopError(Exception):
    """The next hop failed: ``reply`` is for the client, ``str()`` is for the log.

    ``said`` is the greeting with which it refused.  ``gone`` is true where it has hung up, so
    that another connection may do better.  Whatever it may have done by then, it did not say
    that it took the message.  ``of_client`` is true where it refused this very client,
    ``unsent`` where the end of data was not sent.
    """

    def __init__(
        self,
        reason: str,
        answer: Reply,
        *,
        said: Reply | None = None,
        gone: bool = False,
        of_client: bool = False,
        unsent: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reply = answer
        self.said = said
        self.gone = gone
        self.of_client = of_client
        self.unsent = unsent


UNREACHABLE = reply(451, "4.4.1", "The mail server behind this one is not available")
LOST = reply(451, "4.4.2", "The connection to the mail server behind this one was lost")
CONFUSED = reply(451, "4.3.0", "The mail server behind this one gave no answer that makes sense")


class NextHop(Protocol):
    """Takes one message at a time; methods are called in the order of RFC 5321 4.1.4.

    ``answers_each`` is true where the end of data has one reply for each accepted recipient
    (LMTP, RFC 2033 4.2).  Every method may raise HopError; then only `abort` is called.
    """

    @property
    def features(self) -> Features:
        """What it offered to its latest greeting."""

    @property
    def answers_each(self) -> bool: ...

    async def rcpt(self, path: Path) -> Reply:
        """Add a recipient."""

    async def envelope(self, sender: Path, recipients: Sequence[Path]) -> Sequence[Reply]:
        """Begin a message with its recipients; return the replies, only one where MAIL failed."""

    async def data(self) -> Reply:
        """Ask for leave to send the content: 354, or a refusal (4xx, 5xx)."""

    async def write(self, piece: bytes) -> None:
        """Send some of the content, dot-stuffed; it may wait until there is room."""

    async def end(self) -> Sequence[Reply]:
        """End the content, and return what became of it; only now may a client hear 250."""

    async def reset(self) -> None:
        """Give up the message, before `data` or where that was refused."""

    def release(self) -> None:
        """Give the connection back: no message is under way on it."""

    def abort(self) -> None:
        """Hang up: a message under way is not taken."""
