"""The standard library's parser behind caps, and the way back without touching the rest.

`email.policy.SMTP` costs quadratic time on some header fields and raises on others.  Here a
structured field over its cap stays plain text, a message with too many or too deep parts stays
one text, and a charset that is none is not used; all of it is noted in ``defects``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from email.errors import MessageDefect
from email.generator import BytesGenerator
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTP, EmailPolicy
from typing import Any, cast

from mailgate.headers import Field, codec, forget_unknown_codecs, parse_fields

MAX_HEADERS = 1000
MAX_PARTS = 1000
MAX_DEPTH = 100
MAX_WORK = 5_000_000  # lines times the parts that may be around them
MAX_PARSED = 64 * 1024  # octets of all fields of one message that are parsed as what they mean
MAX_FIELD = 1024  # octets of one such field
MAX_TEXT = 4096  # octets of one that is plain text, like Subject
MAX_ADDRESSES = 8192  # octets of one that lists addresses
MAX_ADDRESS = 512  # octets of one entry of it
MAX_PARAMETERS = 40
MAX_COMMENTS = 10

_ADDRESSES = frozenset(
    f"{resent}{name}"
    for resent in ("", "resent-")
    for name in ("from", "to", "cc", "bcc", "sender", "reply-to")
)
_BARE_BREAK = re.compile(rb"\r(?!\n)|(?<!\r)\n|\r\n(?![ \t])|[\0\x0b\x0c\x1c-\x1e]")
_STR_BREAK = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")  # what str.splitlines() takes
_BOUNDARY = re.compile(rb'boundary\*?\d*\*?\s*=\s*"?([^"\s;]{1,256})', re.IGNORECASE)
_DELIMITER = re.compile(rb"^--([^\r\n]{1,256})", re.MULTILINE)
_STRUCTURED = frozenset(
    {
        *("date", "orig-date", "resent-date", "message-id", "mime-version"),
        *("content-type", "content-disposition", "content-transfer-encoding"),
    }
)
_PLAIN_MIME = {
    "content-type": "text/plain",
    "content-disposition": "",
    "content-transfer-encoding": "8bit",
}


class TooComplex(MessageDefect):
    """Something was left unparsed because it is over a cap of this module."""


class NoCharset(MessageDefect):
    """The charset of a part is a codec that decodes no mail: the part is read as us-ascii."""


class Mail(EmailMessage):
    """A parsed message, or a part of one, that the standard library handles safely.

    A charset that may not be tried reads as us-ascii, wherever the library asks for it.  A text
    becomes the first part when it gets an attachment: the library drops the text of a message
    that has no Content field.
    """

    def get_param(self, param: str, failobj: Any = None, *rest: Any, **options: Any) -> Any:
        """Return a parameter, of Content-Type where no other field is named."""
        value = super().get_param(param, failobj, *rest, **options)
        return "us-ascii" if param.lower() == "charset" and not _is_safe(value) else value

    @property
    def refused_charset(self) -> Any:
        """The charset that reads as us-ascii, or None."""
        charset = super().get_param("charset")
        return None if _is_safe(charset) else charset

    def make_mixed(self, boundary: str | None = None) -> None:
        self._declare_text()
        super().make_mixed(boundary)

    def make_related(self, boundary: str | None = None) -> None:
        self._declare_text()
        super().make_related(boundary)

    def make_alternative(self, boundary: str | None = None) -> None:
        self._declare_text()
        super().make_alternative(boundary)

    def _declare_text(self) -> None:
        if not any(name.lower().startswith("content-") for name in self):
            self["Content-Type"] = "text/plain"


def _is_safe(charset: object) -> bool:
    """Tell whether the library decodes with a charset in linear time, or raises LookupError."""
    if not isinstance(charset, str):
        return not isinstance(charset, tuple)  # RFC 2231, hidden from the parser of fields
    try:
        codec(charset)
    except LookupError:
        return True
    except ValueError:
        return False
    return True


class _Capped(EmailPolicy):
    """The SMTP policy for one message: within the caps, and without exceptions."""

    def __init__(self, **options: Any) -> None:
        # Past Policy.__setattr__, which allows its own attributes only.
        object.__setattr__(self, "spent", [0])
        object.__setattr__(self, "parsed", {})
        object.__setattr__(self, "unread", {})
        super().__init__(**options)

    def header_fetch_parse(self, name: str, value: Any) -> Any:
        if hasattr(value, "name"):
            return value
        parsed: dict[tuple[str, str], Any] = self.__dict__["parsed"]
        key = (name.lower(), value)
        if key not in parsed:
            parsed[key] = self._parse(name, value, self.__dict__["spent"])
        return parsed[key]

    def _parse(self, name: str, value: str, spent: list[int]) -> Any:
        flat = re.sub("[\r\n]", "", value)
        if _is_cheap(name.lower(), flat) and spent[0] + len(flat) <= MAX_PARSED:
            spent[0] += len(flat)
            try:
                return super().header_fetch_parse(name, value)
            except Exception:  # IndexError, AttributeError, RecursionError, ... on hostile input
                flat = flat[:MAX_TEXT]
        plain = _PLAIN_MIME.get(name.lower())
        if plain is None:
            return flat
        self.__dict__["unread"][name.lower()] = f"{name} is too complex and was left unparsed"
        known = re.match(r"[\w.+/-]{1,128}", flat)
        return self.header_factory(name, known[0] if known else plain)


def _is_cheap(name: str, value: str) -> bool:
    """Tell whether parsing a field as what it means takes no more than some milliseconds."""
    if name in _ADDRESSES:
        entry = max(map(len, value.split(",")))
        return len(value) <= MAX_ADDRESSES and entry <= MAX_ADDRESS and _few_comments(value)
    if name in _STRUCTURED:
        return (
            len(value) <= MAX_FIELD
            and value.count(";") <= MAX_PARAMETERS
            and (_few_comments(value))
        )
    return len(value) <= MAX_TEXT


def _few_comments(value: str) -> bool:
    return value.count("(") <= MAX_COMMENTS


def parse(section: bytes, body: bytes) -> EmailMessage:
    """Return a message for a header section and a body, both CRLF lines.  Never raises.

    ``defects`` of the message holds a `TooComplex` where its parts cannot be relied on: parts
    were left unparsed, or a MIME field of one was.  Other fields over a cap are plain text.  A
    `NoCharset` tells of parts that are read as us-ascii.
    """
    forget_unknown_codecs()  # those that the library was asked for since the last message
    fields = parse_fields(section, MAX_HEADERS + 1)
    head = b"".join(_one_line(field) for field in fields if field.name) + b"\r\n"
    policy = _Capped(
        linesep="\r\n",
        max_line_length=SMTP.max_line_length,
        refold_source="none",
        message_factory=_counted(Mail),
    )
    parser = cast("BytesParser[EmailMessage]", BytesParser(policy=policy))
    mail = parser.parsebytes(head, headersonly=True)
    if mail.get_content_maintype() not in ("multipart", "message"):
        mail.set_payload(body.decode("ascii", "surrogateescape"))
    elif (reason := _too_complex(head + body)) is not None:
        mail.set_payload(body.decode("ascii", "surrogateescape"))
        mail.defects.append(TooComplex(reason))
    else:
        try:
            mail = parser.parsebytes(head + body)
        except Exception as error:
            mail.set_payload(body.decode("ascii", "surrogateescape"))
            mail.defects.append(TooComplex(f"the parser failed: {type(error).__name__}"))
    if len(fields) > MAX_HEADERS:
        mail.defects.append(TooComplex(f"more than {MAX_HEADERS} header fields"))
    for part in mail.walk():
        for name in _PLAIN_MIME:
            part.get(name)  # looked at now, so that `defects` says what was left unparsed
    mail.defects += map(TooComplex, policy.__dict__["unread"].values())
    refused = dict.fromkeys(part.refused_charset for part in mail.walk() if isinstance(part, Mail))
    mail.defects += (NoCharset(f"{name!a:.60} is no charset") for name in refused if name)
    return mail


def _counted(make: type[EmailMessage]) -> Callable[..., EmailMessage]:
    """Return a factory for the parts of one message that stops at `MAX_PARTS`."""
    left = iter(range(2 * MAX_PARTS))  # the header section is parsed once by itself

    def part(policy: Any = None) -> EmailMessage:
        if next(left, None) is None:
            raise ValueError(f"more than {MAX_PARTS} parts")
        return make(policy)

    return part


def _one_line(field: Field) -> bytes:
    """Return a field in which the parser sees one field: it takes a bare CR for a line end."""
    return field.original_name + b":" + _BARE_BREAK.sub(b" ", _after_colon(field)) + b"\r\n"


def _after_colon(field: Field) -> bytes:
    return field.raw[field.raw.index(b":") + 1 : -2]


def _too_complex(data: bytes) -> str | None:
    """Return why a message should not be parsed into parts, from one pass over its lines."""
    small = data.lower()
    # The parser holds each line against every part that it is in.
    if (small.count(b"boundary") + small.count(b"message/")) * data.count(b"\n") > MAX_WORK:
        return "too many lines in too many parts"
    boundaries = set(_BOUNDARY.findall(data))
    if len(boundaries) > MAX_DEPTH:
        return f"more than {MAX_DEPTH} boundaries"
    if data.lower().count(b"message/rfc822") > MAX_DEPTH:
        return f"more than {MAX_DEPTH} messages inside it"
    parts = 0
    for line in _DELIMITER.finditer(data):
        if line[1].rstrip(b" \t") in boundaries:
            parts += 1
            if parts > MAX_PARTS:
                return f"more than {MAX_PARTS} parts"
    return None


def differences(
    fields: tuple[Field, ...], body: bytes, mail: EmailMessage
) -> tuple[tuple[Field, ...] | None, bytes | None]:
    """Return what an edited copy changes: (fields or None, body or None).

    A field that reads as in a fresh copy is the old object, octet for octet; so is the body.
    Raises ValueError for a copy whose fields cannot be written.
    """
    named = [field for field in fields if field.name and not field.trace]
    fresh = parse(b"".join(field.raw for field in named), body)
    old: dict[tuple[str, str], list[Field]] = {}
    for item, field in zip(fresh.raw_items(), named, strict=True):
        old.setdefault(item, []).append(field)
    # The body first: writing it gives a new multipart its boundary.
    new_body = None if _same_content(mail, fresh) else _flat_body(mail)
    new: list[Field] = []
    for item in mail.raw_items():
        same = old.get(item)
        new.append(same.pop(0) if same else _written(*item))
    return (None if new == named else _in_place(fields, new)), new_body


def _in_place(fields: tuple[Field, ...], new: list[Field]) -> tuple[Field, ...]:
    """Return new fields with those that no parser shows kept behind what they stood behind."""
    result = list(new)
    at = 0
    for field in fields:
        if field in new:
            at = result.index(field) + 1
        elif field.trace or not field.name:
            result.insert(at, field)
            at += 1
    return tuple(result)


def _written(name: str, value: Any) -> Field:
    raw = SMTP.fold_binary(name, value)
    if len(parse_fields(raw)) != 1 or not (field := parse_fields(raw)[0]).name:
        raise ValueError(f"{name[:60]!a} is not a header field that can be written")
    return field


def _same_content(mail: EmailMessage, fresh: EmailMessage) -> bool:
    """Tell whether two copies have the same parts, without writing either of them."""
    parts, others = list(mail.walk()), list(fresh.walk())
    return len(parts) == len(others) and all(
        _same_part(part, other, root=at == 0)
        for at, (part, other) in enumerate(zip(parts, others, strict=True))
    )


def _same_part(part: Any, other: Any, *, root: bool) -> bool:
    if not root and list(part.raw_items()) != list(other.raw_items()):
        return False
    if part.is_multipart() or other.is_multipart():
        return bool(
            part.is_multipart() == other.is_multipart()
            and (part.preamble, part.epilogue) == (other.preamble, other.epilogue)
            and part.get_boundary() == other.get_boundary()
        )
    # As they came: `get_payload` decodes, by whatever charset the part names.
    return bool(part._payload == other._payload)


def _flat_body(mail: EmailMessage) -> bytes:
    """Return the body of an edited copy; its own policy is within the caps."""
    out = io.BytesIO()
    for part in mail.walk():
        if any(_STR_BREAK.search(str(value)) for _, value in part.raw_items()):
            # The standard library would write it as a line end: a new field, or a new part.
            raise ValueError("a header field with a control character cannot be written")
    try:
        BytesGenerator(out, mangle_from_=False, policy=_linear(mail.policy)).flatten(mail)
    except Exception as error:
        raise ValueError(f"the edited message cannot be written: {error}") from error
    return out.getvalue().partition(b"\r\n\r\n")[2]


def _linear(policy: Any) -> Any:
    return policy.clone(linesep="\r\n", refold_source="none")
