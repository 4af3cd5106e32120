"""What the edge does with card numbers outside `payment`: free text is masked, names and keys are refused. Pure.

Description and metadata only inform, so they are masked and the operation goes on: a caller must not lose a payment because
an order number looks like a card. Masking comes before the fingerprint, so a retry of the same request is the same request.
A tenant id, an instance name or an Idempotency-Key cannot be changed without meaning another one, so it is refused.
A request id is nobody's but the server's: one that holds a card number is replaced by a new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from msgspec.structs import force_setattr

from app.privacy.cards import mask, mask_text
from app.privacy.digits import DIGITS_MIN, find_cards
from app.privacy.fields import kind_of
from app.privacy.notation import decoded

REFUSED_DETAIL: Final = "Expected a text that holds no card number; card data belongs into payment only"
NUMBER_MIN: Final = 10 ** (DIGITS_MIN - 1)  # the lowest number with as many digits as a card
_ENCODED: Final = ("%", "\\", "&")


def holds_card(text: str) -> bool:
    """Return whether a text holds a card number in any notation."""
    if len(text) < DIGITS_MIN:
        return False
    if find_cards(text):
        return True
    return any(mark in text for mark in _ENCODED) and any(find_cards(layer.text) for layer in decoded(text))


def refuse_cards(places: Iterable[tuple[str, str | None]]) -> tuple[str, ...]:
    """Return the pointers of those texts that hold a card number, to be answered with 422 and REFUSED_DETAIL.

    places  pointer (`/tenant_id`, `Idempotency-Key:`) and text of every name and key of a request
    """
    return tuple(pointer for pointer, text in places if text is not None and holds_card(text))


def clean_text(text: str | None) -> str | None:
    """Return a description as it may be kept; the same object when nothing was to be masked."""
    return None if text is None else mask_text(text)


def clean_metadata(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return metadata as it may be kept: numbers masked, verification codes removed, names of payment fields respected."""
    if not metadata or _is_plain(metadata):
        return metadata
    masked: dict[str, Any] = mask(metadata)
    return metadata if masked == metadata else masked


def _is_plain(metadata: dict[str, Any]) -> bool:
    """Return whether metadata is flat and short, as most is, and has nothing to mask: a tenth of the work of `mask`."""
    for key, value in metadata.items():
        if len(key) >= DIGITS_MIN or kind_of(key) is not None or "=" in key or ":" in key:
            return False
        if isinstance(value, str):
            if mask_text(value) is not value:
                return False
        elif isinstance(value, float | list | dict) or (value is not None and not -NUMBER_MIN < value < NUMBER_MIN):
            return False
    return True


def keep_cards_out(body: Any) -> None:
    """Guard one struct of a request, called from its `__post_init__`: so it runs as the body is decoded.

    Refuses `tenant_id` and `idempotency_key` that hold a card number, with a ValueError that msgspec places in the body;
    masks `description` and `metadata`. Costs about a microsecond where there is nothing to do.
    """
    for name in (getattr(body, "tenant_id", None), getattr(body, "idempotency_key", None)):
        if name is not None and holds_card(name):
            raise ValueError(REFUSED_DETAIL)
    description, metadata = getattr(body, "description", None), getattr(body, "metadata", None)
    if description is not None and (text := clean_text(description)) is not description:
        force_setattr(body, "description", text)
    if isinstance(metadata, dict) and (cleaned := clean_metadata(metadata)) is not metadata:
        force_setattr(body, "metadata", cleaned)
