"""From a checked body to an operation's fields: what the ledger is asked, its idempotency hash and fingerprint."""

from __future__ import annotations

import binascii
import hashlib
import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from app.credits.wire import (
    BatchAbort,
    BatchCommit,
    BatchConsume,
    BatchOperation,
    BatchRefund,
    BatchReserve,
    BatchTopUp,
    Consume,
    Refund,
    Reserve,
    TopUp,
)

if TYPE_CHECKING:
    from app.web.fields import Metadata

NO_VERSION: Final = -1  # no account ever has it
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
DIGEST_BYTES: Final = 16  # 128 bits: no two keys of a ledger's lifetime collide


def _text22(digest: bytes) -> str:
    """Return 16 bytes as 22 characters of base64url (RFC 4648 section 5), unpadded."""
    return binascii.b2a_base64(digest, newline=False)[:22].translate(_URL_SAFE).decode()


class Fingerprints:
    """Keyed hashes of idempotency keys and requests, so that stored ones tell outsiders nothing.

    Source: RFC 7693, keyed BLAKE2b. The salt belongs to the ledger and never changes.
    """

    def __init__(self, salt: bytes) -> None:
        """`salt` is 32 bytes."""
        self._key = hashlib.blake2b(key=salt, digest_size=DIGEST_BYTES, person=b"shieldx key")
        self._request = hashlib.blake2b(key=salt, digest_size=DIGEST_BYTES, person=b"shieldx request")

    def key(self, text: str) -> str:
        """Return the hash of an idempotency key: 22 characters of base64url."""
        digest = self._key.copy()
        digest.update(text.encode())
        return _text22(digest.digest())

    def request(self, content: bytes) -> str:
        """Return the fingerprint of what is asked: 22 characters of base64url."""
        digest = self._request.copy()
        digest.update(content)
        return _text22(digest.digest())

    def stamp(self, fields: dict[str, Any], key: str | None, request_id: str) -> dict[str, Any]:
        """Add key, fp and rid to fields that say nothing yet but what is asked; without a key, a random one."""
        fields["fp"] = self.request(orjson.dumps(fields))
        fields["key"] = self.key(key) if key is not None else secrets.token_urlsafe(DIGEST_BYTES)
        fields["rid"] = request_id
        return fields


def _free_text(fields: dict[str, Any], description: str | None, metadata: Metadata | None) -> None:
    if description is not None:
        fields["desc"] = description
    if metadata is not None:
        fields["meta"] = msgspec.json.encode(metadata).decode()


def _expect(fields: dict[str, Any], in_body: int | None, in_header: int | None) -> None:
    """Name the version that the account must have; where body and If-Match name two, it can have neither."""
    if in_body is not None:
        fields["expect"] = in_body if in_header in {None, in_body} else NO_VERSION
    elif in_header is not None:
        fields["expect"] = in_header


def spend_fields(op: str, body: Consume | TopUp, expected_version: int | None) -> dict[str, Any]:
    """Return the fields of a consume or topup; the version may stand in the body or in If-Match."""
    fields: dict[str, Any] = {"op": op, "tenant": body.tenant_id, "amount": body.amount}
    _expect(fields, body.expected_version, expected_version)
    if body.description is not None or body.metadata is not None:
        _free_text(fields, body.description, body.metadata)
    return fields


def topup_fields(body: TopUp, expected_version: int | None) -> dict[str, Any]:
    """Return the fields of a topup. Of a payment they say that there is one: a hash of a card number can be guessed."""
    fields = spend_fields("topup", body, expected_version)
    if body.payment is not None:
        fields["payment"] = True
    return fields


def reserve_fields(body: Reserve, expected_version: int | None) -> dict[str, Any]:
    """Return the fields of a reserve."""
    fields: dict[str, Any] = {
        "op": "reserve", "tenant": body.tenant_id, "amount": body.amount, "ttl_ms": body.ttl_seconds * 1000,
    }  # fmt: skip
    _expect(fields, body.expected_version, expected_version)
    _free_text(fields, body.description, body.metadata)
    return fields


def refund_fields(body: Refund, expected_version: int | None) -> dict[str, Any]:
    """Return what a refund asks; the evidence of what there is to refund is added later."""
    fields: dict[str, Any] = {"op": "refund", "ref": body.transaction_id}
    if body.amount is not None:
        fields["amount"] = body.amount
    _expect(fields, None, expected_version)
    _free_text(fields, body.description, body.metadata)
    return fields


def close_fields(op: str, reservation_id: str, amount: int | None, expected_version: int | None) -> dict[str, Any]:
    """Return the fields of a commit or abort."""
    fields: dict[str, Any] = {"op": op, "ref": reservation_id}
    if amount is not None:
        fields["amount"] = amount
    _expect(fields, None, expected_version)
    return fields


def batch_fields(operation: BatchOperation) -> dict[str, Any]:
    """Return the fields of one operation of a batch."""
    match operation:
        case BatchConsume():
            return spend_fields("consume", operation, None)
        case BatchTopUp():
            return topup_fields(operation, None)
        case BatchReserve():
            return reserve_fields(operation, None)
        case BatchCommit():
            return close_fields("commit", operation.reservation_id, operation.amount, None)
        case BatchAbort():
            return close_fields("abort", operation.reservation_id, None, None)
        case BatchRefund():
            return refund_fields(operation, None)
