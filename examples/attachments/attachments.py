"""Refuse mail by the names of its attachments.

    [[policy]]
    use = "attachments.py"
    settings = { forbidden = [".exe", ".js", ".tar.gz"], unreadable = "refuse" }

Settings:

* ``forbidden``: ends of names, in any case.
* ``unreadable``: what becomes of a message in which a mail program may find parts or names that
  are not seen here, such as a multipart without a boundary or with more than 1,000 parts, two
  Content-Type fields, or one too complex to parse: ``"refuse"`` (the default, fail closed) or
  ``"pass"``.

A part can have several names: RFC 2231 and RFC 2047 forms, ``filename`` of Content-Disposition
and ``name`` of Content-Type, or one twice.  Mail programs differ in which they take, so all of
them are looked at.  As Windows does, blanks and dots at the end of a name are passed over.
Archives are not opened, and a name inside a text (uuencode) is not looked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from email.errors import (
    InvalidMultipartContentTransferEncodingDefect,
    NoBoundaryInMultipartDefect,
    StartBoundaryNotFoundDefect,
)
from email.header import decode_header, make_header
from email.message import EmailMessage
from typing import Literal
from urllib.parse import unquote

from mailgate import Message, Policy, Reject
from mailgate.mime import TooComplex

FORBIDDEN = (
    *(".bat", ".cmd", ".com", ".cpl", ".exe", ".hta", ".jar", ".js", ".jse", ".lnk", ".msi"),
    *(".pif", ".ps1", ".scr", ".vbe", ".vbs", ".wsf", ".wsh"),
)
MAX_FIELD = 4 * 1024  # characters of a field in which names are looked for
MAX_NAME = 1024  # characters; a longer one is no name that a file can have

_NAME = re.compile(
    r"""
    (?<![\w-]) (?P<key> (?:file)?name ) (?: \* (?P<section> \d{1,4} ) )? (?P<coded> \*? )
    \s* = \s* (?: " (?P<quoted> [^"\\]* (?: \\. [^"\\]* )* ) | (?P<plain> [^;]* ) )
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_UNDIVIDED = (
    InvalidMultipartContentTransferEncodingDefect,
    NoBoundaryInMultipartDefect,
    StartBoundaryNotFoundDefect,
    TooComplex,
)


def names(part: EmailMessage) -> Iterator[str]:
    """Yield every name that a mail program may show for a part.

    The text of the fields is read, not what the parser made of it, which takes one name where
    there are several.
    """
    for content in (*_contents(part, "content-type"), *_contents(part, "content-disposition")):
        yield from _names(content[:MAX_FIELD])


def _contents(part: EmailMessage, name: str) -> list[str]:
    """Return the contents of a part's fields of that name, unfolded."""
    found = [str(content) for field, content in part.raw_items() if field.lower() == name]
    return [re.sub("[\r\n]", "", content) for content in found]


def _names(content: str) -> Iterator[str]:
    sections: dict[str, list[tuple[int, str]]] = {}  # RFC 2231 3: name*0, name*1, ...
    for found in _NAME.finditer(content):
        value = found["plain"] if found["quoted"] is None else found["quoted"]
        value = re.sub(r"\\(.)", r"\1", value)
        number = int(found["section"] or 0)
        if found["coded"]:
            if number == 0:  # RFC 2231 4: charset'language'text
                value = value.split("'", 2)[-1]
            value = unquote(value)
        if found["section"]:
            sections.setdefault(found["key"].lower(), []).append((number, value))
        else:
            yield value if found["coded"] else _decoded(value)
    for several in sections.values():
        yield "".join(value for _, value in sorted(several))


def _decoded(name: str) -> str:
    """Return a name with its encoded words decoded (RFC 2047), as many mail programs show it."""
    if "=?" not in name or len(name) > MAX_NAME:
        return name
    try:
        return str(make_header(decode_header(name)))
    except (LookupError, ValueError):  # an unknown character set, broken base64
        return name


def normal(name: str) -> str:
    """Return a name as a file system takes it: no invisible characters, no end of dots."""
    return "".join(c for c in name if c.isprintable()).rstrip(". ").lower()


def is_unreadable(part: EmailMessage) -> bool:
    """Tell whether a mail program may see parts or names in this one that were not found."""
    types = _contents(part, "content-type")
    divided = any("multipart/" in t.lower() or "message/" in t.lower() for t in types)
    return (
        len(types) > 1
        or (divided and not part.is_multipart())
        or any(isinstance(defect, _UNDIVIDED) for defect in part.defects)
    )


def policy(
    forbidden: Collection[str] = FORBIDDEN, unreadable: Literal["refuse", "pass"] = "refuse"
) -> Policy:
    """Refuse attachments with these ends of their names."""
    policy = Policy("attachments")
    ends = tuple(sorted(normal(end) for end in forbidden))

    # A `def` handler runs in a thread: parsing a big message takes time.
    @policy.message
    def refuse(message: Message) -> Reject | None:
        parts = list(message.parse().walk())
        for name in (name for part in parts for name in names(part)):
            shown = normal(name)
            end = next((end for end in ends if shown.endswith(end)), None)
            # The reply has the setting in it, never what a stranger wrote.
            if end is not None:
                return Reject(f"we take no attachments named *{end}", enhanced="5.7.1")
            if len(name) > MAX_NAME:
                return Reject("the name of an attachment is too long", enhanced="5.6.0")
        if unreadable == "refuse" and any(map(is_unreadable, parts)):
            return Reject("the parts of this message cannot be read", enhanced="5.6.0")
        return None

    return policy
