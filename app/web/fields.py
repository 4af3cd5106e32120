"""Field types that every request body shares, and the hook that decodes the ones JSON has no type for."""

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta, Struct

from app.web.problems import JsonValue, Problem

AMOUNT_MAX: Final = 10**14 - 1  # credits; Lua prints integers exactly only below 10^14.
# encoded JSON; an audit leaf holds 65,535 bytes and carries more than metadata.
METADATA_MAX_BYTES: Final = 4096
# what a rule judges, encoded; below the limit of a body by more than what stands around it.
DOCUMENT_MAX_BYTES: Final = 48 * 1024
DEPTH_MAX: Final = 32  # nested arrays and objects; no call of the API needs more than 6.
DESCRIPTION_MAX: Final = 500  # characters; one line on a statement.
INT64_MIN: Final = -(2**63)  # numbers of metadata stay in the range that every language and column has.
INT64_MAX: Final = 2**63 - 1

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}\Z"  # `$` would let a final newline through.

Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX, description="Credits, a JSON integer.")]
Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="1 to 64 characters; starts with a letter or digit.")]
# Postgres text cannot hold U+0000.
Description = Annotated[str, Meta(max_length=DESCRIPTION_MAX, pattern=r"^[^\x00]*\Z")]
LIMIT_MAX: Final = 1000  # entries on one page; at 1 KiB each, an answer of 1 MiB.
LIMIT_DEFAULT: Final = 100
Limit = Annotated[
    int,
    Meta(ge=1, le=LIMIT_MAX, description="Entries on one page.", extra_json_schema={"default": LIMIT_DEFAULT}),
]
Cursor = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._~=-]{1,512}\Z", description="`next_cursor` of the page before.")]
Time = Annotated[
    datetime,
    Meta(
        tz=True,
        description="RFC 3339, UTC, with a `Z`.",
        extra_json_schema={"pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z$"},
    ),
]

_name = re.compile(NAME_PATTERN)
_nul = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_token = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


class Input(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Parent of every request body struct: `class Spend(Input, frozen=True)`.

    Unknown fields are refused. Defaults are left out when it is encoded, so that an encoded value has never
    more quotation marks than the text it came from: `app.web.body` finds duplicate keys by counting them.
    """


class Metadata(dict[str, JsonValue]):
    """A JSON object of the client's own: at most METADATA_MAX_BYTES once encoded, numbers of 64 bits, no
    U+0000.
    """

    limit_bytes: ClassVar[int] = METADATA_MAX_BYTES
    size_bytes: int = 0  # once encoded


class Document(Metadata):
    """The same for an object that is looked at and not kept: at most DOCUMENT_MAX_BYTES once encoded."""

    limit_bytes: ClassVar[int] = DOCUMENT_MAX_BYTES


def check_name(text: str) -> bool:
    """Whether `text` is a valid tenant, experiment, service or instance name."""
    return _name.match(text) is not None


def deeper_than(data: bytes, levels: int) -> bool:
    """Whether JSON text nests arrays and objects deeper than `levels`. Linear; strings are skipped."""
    if data.count(b"{") + data.count(b"[") <= levels:
        return False
    depth = 0
    for match in _token.finditer(data):
        token = match.group()
        if token in {b"{", b"["}:
            depth += 1
            if depth > levels:
                return True
        elif token in {b"}", b"]"}:
            depth -= 1
    return False


def _wide_number(value: object) -> bool:
    """Whether a number beyond 64-bit integers stands anywhere in a decoded value."""
    open_values = [value]
    while open_values:
        item = open_values.pop()
        if isinstance(item, dict):
            open_values.extend(item.values())
        elif isinstance(item, list):
            open_values.extend(item)
        elif isinstance(item, int | float) and not INT64_MIN <= item <= INT64_MAX:
            return True
    return False


def _metadata(value: object, kind: type[Metadata]) -> Metadata:
    if not isinstance(value, dict):
        message = "Expected `object`"
        raise TypeError(message)
    encoded = msgspec.json.encode(value)
    if len(encoded) > kind.limit_bytes:
        message = f"Expected at most {kind.limit_bytes} bytes of encoded JSON"
        raise ValueError(message)
    if deeper_than(encoded, DEPTH_MAX):
        raise Problem(400, "malformed_json", f"The body is nested deeper than {DEPTH_MAX} levels.")
    if _wide_number(value):
        message = "Expected numbers from -2^63 to 2^63-1"
        raise ValueError(message)
    if _nul.search(encoded) is not None:
        message = "Expected text without U+0000"
        raise ValueError(message)
    made = kind(value)
    made.size_bytes = len(encoded)
    return made


def decode_custom(kind: type[Any], value: object) -> object:
    """`dec_hook` of msgspec for the types of this file.

    ValueError and TypeError become a validation error at the right path.
    """
    if issubclass(kind, Metadata):
        return _metadata(value, kind)
    if kind is object:
        return value
    message = f"{kind.__name__} is not a field type of a request body"
    raise NotImplementedError(message)
