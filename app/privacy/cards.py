"""Masks card numbers and the fields around them in text, bytes and nested structures. Pure; the input stays as it is.

`mask` is idempotent, and nothing that it returns holds a card number in any notation that `app.privacy.digits` knows:
behind percent-encoding, escapes, HTML references, in JSON within strings, as number, key or bytes. Of a card the last four
digits are shown (`****-****-****-1234`); a verification code is removed with its key; a magnetic track goes as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from app.privacy.digits import DIGITS_MIN, find_cards, is_card, may_hold_card
from app.privacy.fields import (
    HIDDEN,
    NUMBER_SHOWN,
    Kind,
    kind_of,
    mask_address,
    mask_agent,
    mask_email,
    mask_expiry,
    mask_name,
    mask_number,
)
from app.privacy.notation import decoded

DEPTH_MAX: Final = 64  # levels of a structure, JSON in strings included; below it everything is hidden
NODES_MAX: Final = 100_000  # values of one structure, about 0.2 s of work; the rest is hidden
JSON_TEXT_MAX: Final = 1 << 20  # characters of a text that is read as JSON; a longer one is masked as text
WHOLE_MAX: Final = 10**20  # above, a number has more digits than a card
ROUNDS_MAX: Final = 16  # a text that still changes after so many rounds is hidden: it was built to do so
CODE_SHOWN: Final = "***"

_MASKS: Final[Mapping[Kind, Callable[[object], str]]] = {
    "number": mask_number, "name": mask_name, "expiry": mask_expiry, "address": mask_address, "agent": mask_agent,
    "email": mask_email,
}  # fmt: skip
# A field and its value in text: JSON that is cut off, keyword arguments, a query, a repr. Quoted values end at their quote.
_pair = re.compile(
    r"(?<![A-Za-z0-9])([A-Za-z0-9]{1,24}(?:[ _-][A-Za-z0-9]{1,24}){0,3})(b?\\?['\"]?\s{0,8}[:=]\s{0,8}b?)"
    r"(\\?\"[^\"\\]{0,256}(?:\\?\"|\Z)|\\?'[^'\\]{0,256}(?:\\?'|\Z)|[0-9](?:[ .-]?[0-9]){0,40}|[^\s'\",;&(){}\[\]\\]{1,256})"
)
_STEMS: Final = ("card", "cv", "cid", "csc", "cav", "pan", "pin", "track", "exp", "emv", "stripe", "holder", "code",
                 "ccn", "debit", "primary", "valid", "account")  # fmt: skip


def mask_text(text: str, depth: int = DEPTH_MAX) -> str:
    """Return a text without card numbers, codes, cardholder names and expiry dates; the same object if it has none.

    depth  levels of JSON in the text that are looked into; what lies deeper is hidden
    """
    if text.startswith(("{", "[", " ", "\t", "\r", "\n")) and '"' in text and len(text) <= JSON_TEXT_MAX and depth > 0:
        text = _mask_json(text, depth)
    for _ in range(ROUNDS_MAX):
        masked = _mask_pairs(_mask_notations(text))
        if masked is text or masked == text:
            return text
        text = masked
    return HIDDEN


def _mask_json(text: str, depth: int) -> str:
    """Return JSON text masked as a structure; text that is no JSON, or needs no mask, as it came."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        value = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return text
    masked = _Masking().value(value, depth)
    return text if masked == value else json.dumps(masked, ensure_ascii=False)


class _Pairs(dict[str, Any]):
    """A JSON object; of keys that stand in it twice the first keeps its name, so that nothing hides behind another."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        """`pairs` are its members in their order."""
        super().__init__()
        for key, value in pairs:
            self[key if key not in self else _free_key(key, self)] = value


def _mask_notations(text: str) -> str:
    """Mask the numbers that stand in a text as it is, and those that appear once it is decoded, all layers at once."""
    if not may_hold_card(text):
        return text
    spans = [(card.start, card.end, card.last) for card in find_cards(text)]
    for layer in decoded(text) if "%" in text or "\\" in text or "&" in text else ():
        spans += [(layer.starts[card.start], layer.ends[card.end - 1], card.last) for card in find_cards(layer.text)]
    return _mask_spans(text, spans)


def _mask_spans(text: str, spans: list[tuple[int, int, str]]) -> str:
    """Mask the spans (start, end, last digits); those that overlap are one, with the digits of the one that ends last."""
    pieces: list[str] = []
    at = 0
    pending: tuple[int, int, str] | None = None
    for start, end, last in sorted(spans):
        if pending is not None and start < pending[1]:
            pending = (pending[0], end, last) if end > pending[1] else pending
            continue
        if pending is not None:
            pieces += (text[at : pending[0]], NUMBER_SHOWN, pending[2])
            at = pending[1]
        pending = (start, end, last)
    if pending is None:
        return text
    return "".join((*pieces, text[at : pending[0]], NUMBER_SHOWN, pending[2], text[pending[1] :]))


def _may_name_field(text: str) -> bool:
    if "=" not in text and ":" not in text:
        return False
    lowered = text.lower()
    return any(stem in lowered for stem in _STEMS)


def _mask_pairs(text: str) -> str:
    """Mask the values of named fields in a text; a code stays as `***`, since a text has no key to remove."""
    if not _may_name_field(text):
        return text
    masked = _pair.sub(_mask_pair, text)
    return text if masked == text else masked


def _mask_pair(found: re.Match[str]) -> str:
    name, between, value = found.groups()
    kind = kind_of(name) or kind_of(name.rpartition(" ")[2])
    if kind is None or kind in {"address", "agent", "email"}:
        return found[0]
    quote = re.match(r"\\?['\"]?", value)
    edge = quote[0] if quote is not None else ""
    plain = value.strip("\\'\"")
    if kind == "number":
        shown = plain if plain.startswith(NUMBER_SHOWN) else HIDDEN
    else:
        shown = CODE_SHOWN if kind == "secret" else _MASKS[kind](plain)
    closed = edge if len(value) > len(edge) and value.endswith(edge[-1:] or "\0") else ""
    return f"{name}{between}{edge}{shown}{closed}"


def mask_bytes(data: bytes) -> bytes:
    """Return bytes, read as UTF-8 where they are, without card numbers."""
    text = data.decode("utf-8", "surrogateescape")
    masked = mask_text(text)
    return data if masked == text else masked.encode("utf-8", "surrogateescape")


def mask(value: object) -> Any:
    """Return a value of the same shape without payment data: mappings, lists, tuples, sets, text, bytes, numbers.

    Keys of verification codes, PINs and tracks are removed; numbers, names, expiry, addresses, user agents and e-mails
    are masked by the name of their key. Integers and floats that are card numbers become masked text. What has another
    type becomes the masked text of its `repr`. Cycles, and what lies deeper than DEPTH_MAX, become `****`.
    """
    return _Masking().value(value, DEPTH_MAX)


class _Masking:
    """One pass over a structure, with its budget of nodes and the containers that it is inside of."""

    def __init__(self) -> None:
        self._left = NODES_MAX
        self._open: set[int] = set()

    def value(self, value: object, depth: int) -> Any:
        self._left -= 1
        if depth <= 0 or self._left < 0:
            return HIDDEN
        match value:
            case None | bool():
                return value
            case str():
                return mask_text(value, depth - 1)
            case int() | float() | Decimal():
                return _mask_numeral(value)
            case bytes() | bytearray() | memoryview():
                return mask_bytes(bytes(value))
            case Mapping() | list() | tuple() | set() | frozenset():
                return self._container(value, depth)
        return mask_text(repr(value), depth - 1)

    def _container(self, value: Any, depth: int) -> Any:
        if id(value) in self._open:
            return HIDDEN
        self._open.add(id(value))
        try:
            if isinstance(value, Mapping):
                return self._mapping(value, depth)
            items = [self.value(item, depth - 1) for item in value]
        finally:
            self._open.discard(id(value))
        if isinstance(value, tuple):
            return tuple(items)
        if isinstance(value, set | frozenset):
            return type(value)(items)
        return items

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
        masked: dict[Any, Any] = {}
        for key, item in value.items():
            name = key if isinstance(key, str) else key.decode("latin-1") if isinstance(key, bytes) else ""
            shown = mask_text(key, 0) if isinstance(key, str) else self.value(key, depth - 1)
            # Masking a key may make a name of it, and the result must be its own mask.
            kind = kind_of(name) or (kind_of(shown) if isinstance(shown, str) else None)
            if kind == "secret":
                continue
            masked[_free_key(shown, masked)] = self._field(kind, item, depth)
        return masked

    def _field(self, kind: Kind | None, item: object, depth: int) -> Any:
        nested = isinstance(item, Mapping | list | tuple | set | frozenset)
        if kind is None or kind == "secret" or nested or (item is None and kind != "number"):
            return self.value(item, depth - 1)
        plain = item.decode("utf-8", "replace") if isinstance(item, bytes) else item
        return mask_text(_MASKS[kind](plain), 0)


def _free_key(key: Any, taken: Mapping[Any, Any]) -> Any:
    """Return the key, or with a count behind it when another key was masked to the same text."""
    if key not in taken:
        return key
    count = 2
    while f"{key} ({count})" in taken:
        count += 1
    return f"{key} ({count})"


def _mask_numeral(value: float | Decimal) -> Any:
    """Return a number as it is, or masked text when its digits are those of a card."""
    if isinstance(value, int):
        digits = str(abs(value)) if value.bit_length() < 128 else ""
        return NUMBER_SHOWN + digits[-4:] if len(digits) >= DIGITS_MIN and is_card(digits) else value
    # A whole float is written with ".0" or an exponent, which would hide its digits.
    whole = -WHOLE_MAX < value < WHOLE_MAX and value == int(value)
    text = f"{value:.0f}" if whole else str(value)
    return mask_text(text) if find_cards(text) else value
