"""Payment data of a top-up as a value: what is kept, what is shown, and what the chain commits to. Pure.

A verification code is no part of it: whoever makes a `Payment` has dropped the code already.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Any, Final

import msgspec
import orjson

from app.privacy.fields import mask_expiry, mask_name, mask_number

SALT_BYTES: Final = 32  # without it a commitment is 256 opaque bits
COMMIT_LABEL: Final = b"shieldx-private/v1/commit/"
CLASS: Final = "payment"


class Payment(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A card as the payer gave it. Its `repr` shows the masked form."""

    card_number: str
    cardholder_name: str | None = None
    expiry: str | None = None

    def __repr__(self) -> str:
        """Show what may be shown."""
        return f"Payment({self.shown()})"

    def shown(self) -> dict[str, Any]:
        """Return the masked form: number, name and expiry."""
        masks = {"card_number": mask_number, "cardholder_name": mask_name, "expiry": mask_expiry}
        return {name: mask(getattr(self, name)) for name, mask in masks.items() if getattr(self, name) is not None}

    def canonical(self) -> bytes:
        """Return its JSON with sorted keys: what is encrypted, committed to, and put into a keyed fingerprint."""
        return orjson.dumps(msgspec.to_builtins(self), option=orjson.OPT_SORT_KEYS)


def make_salt() -> bytes:
    """Return the salt of one record."""
    return secrets.token_bytes(SALT_BYTES)


def commitment(salt: bytes, kind: str, content: bytes) -> bytes:
    """Return the 32 bytes that stand in the chain for private content: HMAC-SHA256 under a salt of that record alone.

    salt     32 random bytes that are destroyed with the record; whoever gets salt and content can check the entry
    kind     class of the record, so that no commitment stands for another kind of content
    """
    if len(salt) != SALT_BYTES:
        raise AssertionError("a commitment needs 32 bytes of salt")
    return hmac.digest(salt, COMMIT_LABEL + kind.encode() + b"\n" + content, "sha256")
