"""Text of a path or a query parameter to a typed value, as strictly as the body."""

import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Final, get_args, get_origin

import msgspec

from app.web.problems import invalid

_integer = re.compile(r"-?(?:0|[1-9][0-9]{0,18})\Z")
_time = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z\Z", re.ASCII)
_BOOLEANS: Final = {"true": True, "false": False}


def plain_type(kind: Any) -> Any:
    """The type below `Annotated`."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _text_to_integer(text: str) -> int | None:
    return int(text) if _integer.match(text) else None


def _text_to_time(text: str) -> str | None:
    return text if _time.match(text) else None


_READERS: Final[dict[Any, tuple[Callable[[str], Any], str]]] = {
    int: (_text_to_integer, "Expected an integer"),
    bool: (_BOOLEANS.get, "Expected true or false"),
    datetime: (_text_to_time, "Expected an RFC 3339 time in UTC with a Z"),
}


@lru_cache(maxsize=256)
def _reader(kind: Any) -> tuple[Callable[[str], Any], str]:
    return _READERS.get(plain_type(kind), (str, "Value is not one of those allowed here"))


def typed(text: str, kind: Any, pointer: str) -> Any:
    """`text` as the annotated type `kind` (int, bool, datetime, str, Literal, Enum, UUID).

    refuses  422 `invalid_request` at `pointer`
    """
    read, expected = _reader(kind)
    value = read(text)
    if value is None:
        raise invalid(pointer, expected)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        detail = text.replace("`", "") if text.startswith("Expected `") else expected
        raise invalid(pointer, detail) from None
