"""What the edge does with card numbers outside `payment`: free text is masked, names and keys are refused. Pure.

Description and metadata only inform, so they are masked and the operation goes on: a caller must not lose a payment because
an order number looks like a card. Masking comes before the fingerprint, so a retry of the same request is the same request.
A tenant id, an instance name or an Idempotency-Key cannot be changed without meaning another one, so it is refused.
A request id is nobody's but the server's: one that holds a card number is replaced by a new one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import inspect
from msgspec.structs import force_setattr

from app.privacy.cards import DEPTH_MAX, mask, mask_text
from app.privacy.digits import DIGITS_MIN, find_cards, is_card, may_hold_card
from app.privacy.fields import kind_of
from app.privacy.notation import decoded

REFUSED_DETAIL: Final = "Expected a text that holds no card number; card data belongs into payment only"
NUMBER_MIN: Final = 10 ** (DIGITS_MIN - 1)  # the lowest number with as many digits as a card
# A card number as people write it: in one, in groups of four, or as American Express groups its own.
_alone: Final = re.compile(
    r"[0-9]{13,19}|[0-9]{4}([ ._-])[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{1,3})?|[0-9]{4}([ ._-])[0-9]{6}\2[0-9]{4,5}"
)
_not_digit: Final = re.compile(r"[^0-9]")
_ENCODED: Final = ("%", "\\", "&")
# Fields that are kept only as hashes. Counters and times in them have the digits of a card number by chance: refused is only
# what is a card number and nothing else.
_HASHED: Final = frozenset({"idempotency_key", "idempotencyKey", "event_id", "unit_id", "targetingKey"})


def holds_card(text: str) -> bool:
    """Return whether a text holds a card number in any notation."""
    if not may_hold_card(text):
        return False
    if find_cards(text):
        return True
    return any(mark in text for mark in _ENCODED) and any(find_cards(layer.text) for layer in decoded(text))


def is_card_alone(text: str) -> bool:
    """Return whether a text is a card number and nothing else, its digits in groups or not.

    This is what texts are asked that are kept only as hashes, such as idempotency keys: one that merely has the digits of a
    card number among others, as counters and times have them by chance, gives nothing away and must not be refused.
    """
    return len(text) >= DIGITS_MIN and _alone.fullmatch(text) is not None and is_card(_not_digit.sub("", text))


def clean_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata as it may be kept: numbers masked, verification codes removed, names of payment fields respected.

    The same object when nothing was to be masked.
    """
    if _is_flat(metadata):
        # As `mask` would, at a tenth of the cost: most metadata is flat and short.
        changed = {
            key: masked
            for key, value in metadata.items()
            if type(value) is str and (masked := mask_text(value, DEPTH_MAX - 2)) is not value
        }
        return metadata | changed if changed else metadata
    masked_all: dict[str, Any] = mask(metadata)
    return metadata if masked_all == metadata else masked_all


def _is_flat(metadata: dict[str, Any]) -> bool:
    """Return whether no key of metadata needs a mask, and no value but its texts."""
    for key, value in metadata.items():
        if len(key) >= DIGITS_MIN or kind_of(key) is not None or "=" in key or ":" in key:
            return False
        if isinstance(value, float | list | dict):
            return False
        if isinstance(value, int) and not -NUMBER_MIN < value < NUMBER_MIN:
            return False
    return True


class CardFound(ValueError):
    """A name, id or key of a body holds a card number. `pointer` is its place (RFC 6901)."""

    def __init__(self, pointer: str) -> None:
        """The text is REFUSED_DETAIL: it does not quote the number."""
        super().__init__(REFUSED_DETAIL)
        self.pointer = pointer


class Guard:
    """Keeps card numbers out of decoded bodies of one struct type; which fields to look at is found out once.

    Text fields and lists of texts are names: a card number in one is refused. `description` and objects of the client's
    own are masked in place. Structs, lists of structs and their unions are guarded in the same way; a struct with a class
    variable `holds_cards` is not looked into. Costs about half a microsecond where there is nothing to do.
    """

    def __init__(self, struct_type: type[Any]) -> None:
        """`struct_type` is a msgspec struct."""
        self._names: list[str] = []
        self._keys: list[str] = []
        self._name_lists: list[str] = []
        self._texts: list[str] = []
        self._objects: list[str] = []
        self._parts: list[tuple[str, dict[type[Any], Guard]]] = []
        info = inspect.type_info(struct_type)
        if not isinstance(info, inspect.StructType):
            raise TypeError(f"{struct_type.__name__} is no struct")
        for field in info.fields:
            self._take(field.name, list(_plain_types(field.type)))

    def _take(self, name: str, kinds: list[inspect.Type]) -> None:
        for kind in kinds:
            if isinstance(kind, inspect.StrType):
                keys = self._keys if name in _HASHED else self._names
                (self._texts if name == "description" else keys).append(name)
            elif isinstance(kind, inspect.DictType) or (isinstance(kind, inspect.CustomType) and issubclass(kind.cls, dict)):
                self._objects.append(name)
            elif isinstance(kind, inspect.ListType | inspect.VarTupleType):
                items = list(_plain_types(kind.item_type))
                if any(isinstance(item, inspect.StrType) for item in items):
                    self._name_lists.append(name)
                self._take_structs(name, items)
        self._take_structs(name, kinds)

    def _take_structs(self, name: str, kinds: list[inspect.Type]) -> None:
        structs = [kind.cls for kind in kinds if isinstance(kind, inspect.StructType)]
        guards = {cls: Guard(cls) for cls in structs if not getattr(cls, "holds_cards", False)}
        if guards:
            self._parts.append((name, guards))

    def clean(self, body: Any) -> None:
        """Mask the free text of a body in place. Raises CardFound for a name that holds a card number."""
        for name in self._names:
            text = getattr(body, name)
            if type(text) is str and holds_card(text):
                raise CardFound(f"/{name}")
        for name in self._keys:
            text = getattr(body, name)
            if type(text) is str and is_card_alone(text):
                raise CardFound(f"/{name}")
        for name in self._texts:
            text = getattr(body, name)
            if type(text) is str and (cleaned := mask_text(text)) is not text:
                force_setattr(body, name, cleaned)
        for name in self._objects:
            given = getattr(body, name)
            if isinstance(given, dict) and (kept := clean_metadata(given)) is not given:
                # In the object itself: its type knows more than its fields.
                given.clear()
                given.update(kept)
        if self._name_lists or self._parts:
            self._clean_inner(body)

    def _clean_inner(self, body: Any) -> None:
        for name in self._name_lists:
            for at, text in enumerate(getattr(body, name) or ()):
                if type(text) is str and holds_card(text):
                    raise CardFound(f"/{name}/{at}")
        for name, guards in self._parts:
            self._clean_parts(name, guards, getattr(body, name))

    def _clean_parts(self, name: str, guards: dict[type[Any], Guard], given: Any) -> None:
        listed = isinstance(given, list | tuple)
        for at, part in enumerate(given if listed else (given,)):
            guard = guards.get(type(part))
            if guard is not None:
                try:
                    guard.clean(part)
                except CardFound as found:
                    raise CardFound(f"/{name}/{at}{found.pointer}" if listed else f"/{name}{found.pointer}") from None


def _plain_types(kind: inspect.Type) -> Iterator[inspect.Type]:
    """Yield the types that a field may have, without their constraints."""
    if isinstance(kind, inspect.Metadata):
        yield from _plain_types(kind.type)
    elif isinstance(kind, inspect.UnionType):
        for part in kind.types:
            yield from _plain_types(part)
    else:
        yield kind
