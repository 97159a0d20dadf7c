"""Header fields as bytes, and their edits.

A message's fields are kept as they came; an edit names a field and touches that field only, so
that a signature over the others still verifies.  Reading never raises, on any input, and is
linear in its size.
"""

from __future__ import annotations

import binascii
import codecs
import encodings
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn, TypeAlias, final

from mailgate.errors import TooLate
from mailgate.syntax import is_field_name

MAX_VALUE = 100 * 1024  # octets; Postfix: header_size_limit = 102400
MAX_DECODED = 16 * 1024  # octets; over it encoded words stay encoded: decoding is quadratic
MAX_CODECS = 256  # names that Python remembers, of codecs and of what it took for one
FOLD_AT = 78  # octets; RFC 5322 2.1.1
_WORD_OCTETS = 45  # of text, which base64 makes 60

_BLANK = (0x20, 0x09)
_FOLD = re.compile(rb"(?:\r\n|\r|\n)(?=[ \t])")
_LOOSE_NAME = re.compile(rb"[^\x00- \x7f:]+")
_FIELD_END = re.compile(rb"\r\n(?![ \t])")
_WORD = re.compile(r"=\?([^?\s]+)\?([bBqQ])\?([^?\s]*)\?=")  # RFC 2047 2
_BETWEEN_WORDS = re.compile(r"(?<=\?=)\s+(?==\?[^?\s]+\?[bBqQ]\?)")
_BREAKS = re.compile(r"[\r\n\x00]")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]|\n(?![ \t])|\n[ \t]*(?:\n|$)")
_SHORT_VALUE = re.compile(r"[!-~]+(?: [!-~]+)*")
_FOLD_POINT = re.compile(r"(?<=[^ \t])[ \t](?=[^ \t])")


@final
class Field:
    """One header field: ``raw`` is all of it with its line ends, ``name`` is in lower case.

    ``name`` is empty for a line that is no field.  ``trace`` marks the field that the mail
    server put on top itself: it travels with the message and is shown to no policy, since no
    other protocol would show it.
    """

    __slots__ = ("name", "raw", "trace")

    def __init__(self, raw: bytes, name: bytes, trace: bool = False) -> None:
        self.raw = raw
        self.name = name
        self.trace = trace

    @property
    def original_name(self) -> bytes:
        """The name as it is written."""
        return self.raw[: len(self.name)]

    @property
    def content(self) -> bytes:
        """What stands behind the colon, without surrounding blanks and the last line end."""
        return self.raw.partition(b":")[2].strip(b" \t\r\n") if self.name else b""


def is_field_line(line: bytes) -> bool:
    """Tell whether a line can begin a header field.

    More than RFC 5322 2.2 allows: mail servers and readers take 8-bit octets in a name for a
    field, and what stands behind it must not be hidden from a policy.  Such a field is kept
    and found by no name.
    """
    name, colon, _ = line.partition(b":")
    return bool(colon) and _LOOSE_NAME.fullmatch(name.rstrip(b" \t")) is not None


def continues_section(line: bytes, first: bool) -> bool:
    """Tell whether a line belongs to a header section; the first that does not ends it.

    A blank line ends it, and so does text (as Postfix and Sendmail have it): a message may
    lack its header section altogether.  An mbox ``From `` line may come first.
    """
    if not line:
        return False
    if line[0] in _BLANK:
        return not first
    return is_field_line(line) or (first and is_mbox_line(line))


def is_mbox_line(line: bytes) -> bool:
    """Tell whether a line is one that a mailbox file has between messages."""
    return line.startswith((b"From ", b">From "))


def parse_fields(section: bytes, most: int | None = None) -> list[Field]:
    """Return the fields of a header section: CRLF lines, without the blank line behind it.

    ``most`` stops after that many; whoever sets a limit asks for one more than it.
    """
    fields: list[Field] = []
    for raw in _FIELD_END.split(section.removesuffix(b"\r\n"), maxsplit=most or 0):
        name = raw.partition(b":")[0].rstrip(b" \t")
        known = b":" in raw and is_field_name(name)
        fields.append(Field(raw + b"\r\n", name.lower() if known else b""))
    return fields[:most] if section else []


def join(fields: tuple[Field, ...], separator: bytes, *, trace: bool) -> bytes:
    """Return a header section and what divides it from the body.

    ``separator`` is the blank line, or nothing where the message came without one; ``trace``
    says whether the server's own trace field belongs to it.
    """
    section = b"".join(field.raw for field in fields if trace or not field.trace)
    return section + separator


def decode_value(content: bytes) -> str:
    """Return a field's content as text: unfolded, encoded words decoded (RFC 2047).

    What is not UTF-8 is taken as Latin-1.  Line ends and NUL that come out of an encoded word
    become blanks, so that a value may be written into a log or another field.
    """
    flat = _FOLD.sub(b"", content)
    try:
        text = flat.decode("utf-8")
    except UnicodeDecodeError:
        text = flat.decode("latin-1")
    if "=?" in text and len(flat) <= MAX_DECODED:
        text = _decode_words(text)
    return _BREAKS.sub(" ", text)


def _decode_words(text: str) -> str:
    """Return text with its encoded words decoded, and the blanks between two of them dropped."""
    return _WORD.sub(_decode_match, _BETWEEN_WORDS.sub("", text))


def _decode_match(word: re.Match[str]) -> str:
    charset, encoding, encoded = word.groups()
    try:
        if encoding in "bB":
            octets = binascii.a2b_base64(encoded + "==")
        else:
            octets = binascii.a2b_qp(encoded.encode("ascii", "replace"), header=True)
    except binascii.Error:
        return word[0]
    return _decode_word(octets, charset.partition("*")[0])


_NO_CHARSETS = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"})


def codec(charset: str) -> str:
    """Return the name of the codec for a character set of mail.

    Raises LookupError for a name that Python does not know, and ValueError for one that may not
    be tried: some codecs are no character set; they cost quadratic time, run escapes, or raise.
    """
    try:
        # By the codec's own name: look-ups take many spellings of it.
        name = codecs.lookup(charset).name.replace("_", "-")
    except LookupError:
        forget_unknown_codecs()
        raise
    if name in _NO_CHARSETS:
        raise ValueError(f"{name} is no character set")
    return name


def forget_unknown_codecs() -> None:
    """Give back the memory of names that no codec has: Python keeps each one it was asked for."""
    asked: dict[str, object] = vars(encodings).get("_cache", {})
    if len(asked) > MAX_CODECS:
        for name in [name for name, found in list(asked.items()) if found is None]:
            asked.pop(name, None)


def _decode_word(part: bytes, charset: str) -> str:
    try:
        return part.decode(codec(charset), "replace")
    except (LookupError, ValueError):
        return part.decode("latin-1")


def encode_field(name: str, value: str) -> bytes:
    """Return a header field that a policy made, folded, with its line end.

    Raises TypeError and ValueError for what would not be one field: a name that is no token, a
    line end without a blank behind it, a control character, a value over 100 KiB.
    """
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError("a header field's name and value must be str")
    if not name.isascii() or not is_field_name(name.encode()):
        raise ValueError(f"{name[:60]!a} is not a header field name")
    if len(name) + len(value) < FOLD_AT - 1 and _SHORT_VALUE.fullmatch(value):
        return f"{name}: {value}\r\n".encode("ascii")
    value = value.replace("\r\n", "\n").rstrip("\n")
    if _BAD_VALUE.search(value):
        raise ValueError(f"the value of {name} holds a line end or a control character")
    if len(value) > MAX_VALUE:
        raise ValueError(f"the value of {name} is over {MAX_VALUE} octets")
    if value.isascii():
        lines = f"{name}: {value}".split("\n")
        text = "\r\n".join("\r\n".join(_fold(line)) for line in lines)
    else:
        text = f"{name}: {_encode_words(value.replace(chr(10), ''))}"
    return text.encode("ascii") + b"\r\n"


def _fold(line: str) -> Iterator[str]:
    """Yield a line cut before blanks, so that unfolding gives the same text again."""
    if len(line) > FOLD_AT:
        start, last = 0, 0
        for blank in _FOLD_POINT.finditer(line):
            if blank.start() - start > FOLD_AT and last > start:
                yield line[start:last]
                start = last
            last = blank.start()
        if len(line) - start > FOLD_AT and last > start:
            yield line[start:last]
            start = last
        line = line[start:]
    yield line


def _encode_words(value: str) -> str:
    """Return a value as encoded words, a line each (RFC 2047 2: at most 75 octets)."""
    from email.charset import Charset  # `email` costs start-up time

    utf8, words, piece = Charset("utf-8"), [], ""
    for character in value.encode("utf-8", "replace").decode("utf-8"):
        if len((piece + character).encode()) > _WORD_OCTETS:
            words.append(utf8.header_encode(piece))
            piece = ""
        piece += character
    return "\r\n ".join([*words, utf8.header_encode(piece)])


@final
class Section:
    """A header section as it came; its fields are made when somebody looks.

    ``count`` and ``octets`` are what the client sent: a policy that only adds a field costs no
    more than to know them.
    """

    __slots__ = ("_fields", "_make", "count", "octets")

    def __init__(self, make: Callable[[], tuple[Field, ...]], count: int, octets: int) -> None:
        self._make = make
        self._fields: tuple[Field, ...] | None = None
        self.count = count
        self.octets = octets

    @classmethod
    def of(cls, fields: Iterable[Field]) -> Section:
        """Return a section of fields that are there."""
        made = tuple(fields)
        return cls(lambda: made, len(made), sum(len(field.raw) for field in made))

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields, always the same objects; the server's own trace field is among them."""
        if self._fields is None:
            self._fields = self._make()
        return self._fields


Mark: TypeAlias = tuple[tuple[Field, ...] | None, tuple[Field, ...]]
"""What a header section was like at some time."""


@final
class Headers:
    """The header section of a message: an ordered multi-map, names in any case.

    Values are text, unfolded and decoded; `raw` has the octets.  ``edit`` is called with the
    sign and the text of a change and what makes it; it raises where none is allowed.
    """

    __slots__ = ("_added", "_edit", "_fields", "_section")

    def __init__(
        self, section: Section, edit: Callable[[str, str, Callable[[], None]], None]
    ) -> None:
        self._section = section
        self._fields: tuple[Field, ...] | None = None  # until somebody looks
        self._added: tuple[Field, ...] = ()  # at the bottom, until then
        self._edit = edit

    @property
    def fields(self) -> tuple[Field, ...]:
        """Every field in order, the server's own trace field among them."""
        if self._fields is None:
            self._fields = (*self._section.fields, *self._added)
        return self._fields

    @property
    def none_came(self) -> bool:
        """Tell whether the message came without any field."""
        return not self._section.count

    @property
    def only_added(self) -> tuple[Field, ...] | None:
        """What was added at the bottom where nobody looked at the rest, else None."""
        return self._added if self._fields is None else None

    def restore(self, fields: tuple[Field, ...]) -> None:
        """Put these fields in place."""
        self._fields = fields

    def mark(self) -> Mark:
        """Return what `back_to` wants: the engine takes back the edits of a failed handler."""
        return self._fields, self._added

    def back_to(self, mark: Mark) -> None:
        """Have the section as it was."""
        self._fields, self._added = mark

    def seal(self) -> None:
        """Allow no edit any more, and let go of what was told of them."""
        self._edit = _too_late

    def _named(self, name: str) -> list[Field]:
        key = name.lower().encode("utf-8", "replace")
        return [f for f in self.fields if f.name == key and not f.trace] if key else []

    def _change(self, sign: str, text: str, fields: Sequence[Field]) -> None:
        self._edit(sign, text, lambda: self.restore(tuple(fields)))

    # -- reading -----------------------------------------------------------------------------

    def get_all(self, name: str) -> list[str]:
        """Return the values of every field of that name, top to bottom."""
        return [decode_value(field.content) for field in self._named(name)]

    def raw(self, name: str) -> list[bytes]:
        """Return the contents of every field of that name as they came, folds included."""
        return [field.content for field in self._named(name)]

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of the first field of that name, or the default."""
        named = self._named(name)
        return decode_value(named[0].content) if named else default

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._named(name))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) of every field, top to bottom."""
        for field in self.fields:
            if field.name and not field.trace:
                yield field.original_name.decode("latin-1"), decode_value(field.content)

    def __len__(self) -> int:
        return sum(1 for field in self.fields if field.name and not field.trace)

    def __bytes__(self) -> bytes:
        """Return the section as a policy sees it: CRLF lines, no blank line behind it."""
        return b"".join(field.raw for field in self.fields if not field.trace)

    def __repr__(self) -> str:
        return f"<Headers: {len(self)} fields>"

    # -- editing -----------------------------------------------------------------------------

    def __setitem__(self, name: str, value: str) -> None:
        """Change the first field of that name and delete its others; add it where none is.

        The name stays spelled as it was: not every mail server would change that.
        """
        named = self._named(name)
        if not named:
            self.add(name, value)
            return
        first, others = named[0], set(named[1:])
        new = _new_field(first.original_name.decode("ascii"), value)
        fields = [new if f is first else f for f in self.fields if f not in others]
        self._change("~", f"header {name}: {value}", fields)

    def __delitem__(self, name: str) -> None:
        """Delete every field of that name; none is no error."""
        named = set(self._named(name))
        if named:
            self._change("-", f"header {name}", [f for f in self.fields if f not in named])

    def add(self, name: str, value: str) -> None:
        """Add a field at the bottom."""
        field = _new_field(name, value)

        def apply() -> None:
            if self._fields is None:
                self._added += (field,)
            else:
                self._fields += (field,)

        self._edit("+", f"header {name}: {value}", apply)

    def prepend(self, name: str, value: str) -> None:
        """Add a field at the top, above what the mail server itself put there."""
        field = _new_field(name, value)
        # An mbox line stays first: anywhere else it would end the section.
        at = 1 if self.fields and not self.fields[0].name else 0
        fields = (*self.fields[:at], field, *self.fields[at:])
        self._change("+", f"header {name}: {value} (on top)", fields)


def _too_late(sign: str, text: str, apply: Callable[[], None]) -> NoReturn:
    raise TooLate("an edit after the end of its handler, or of the message")


def _new_field(name: str, value: str) -> Field:
    return Field(encode_field(name, value), name.lower().encode("ascii"))
