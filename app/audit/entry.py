"""What stands in the chain: an event, its exact bytes, and the hashes that tie them together. Pure.

entry     = "shieldx-audit/v1" LF + RFC 8785 canonical JSON of the record (integers, strings, null, objects)
hash      = SHA-256(0x00 + entry)          both the chain link and the RFC 6962 leaf hash
prev_hash = hash of the entry before it in the shard's chain; it stands inside the record, in hex
signature = HMAC-SHA256(key, hash)         a seal per row
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

import msgspec
import orjson

from app.clock import time_text

ENTRY_PREFIX: Final = b"shieldx-audit/v1\n"
GENESIS_PREFIX: Final = b"shieldx-audit/v1/genesis\n"
LEAF_PREFIX: Final = b"\x00"
SCHEMA: Final = 1
HASH_BYTES: Final = 32


class Event(msgspec.Struct):
    """One thing that happened, as the ledger shard ordered it.

    seq counts from 0 in its shard; amount, balance and reserved are whole credits; balance and reserved are the
    tenant's right after the event. metadata is JSON text; details is the canonical JSON text of an object.
    idempotency and fingerprint are unpadded base64url of 16 bytes, None for what the ledger did by itself.
    """

    shard: int
    generation: int
    seq: int
    at_ms: int
    type: str
    tenant_id: str
    debit: str
    credit: str
    amount: int
    balance: int
    reserved: int
    version: int
    transaction_id: str
    idempotency: str | None = None
    fingerprint: str | None = None
    reference: str | None = None
    description: str | None = None
    metadata: str | None = None
    details: str | None = None


Json = int | str | bool | list[Any] | dict[str, Any] | None


class Record(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The record inside an entry. Its fields stand in the order of canonical JSON: encoded, they give that form."""

    amount: int
    at: str
    balance: int
    credit: str
    debit: str
    description: str | None
    details: dict[str, Json] | None
    fingerprint: str | None
    generation: int
    idempotency: str | None
    metadata: str | None
    prev_hash: str
    reference: str | None
    reserved: int
    schema: int
    seq: int
    shard: int
    tenant_id: str
    transaction_id: str
    type: str
    version: int


def genesis_hash(origin: str) -> bytes:
    """Return the 32 bytes that the first entry of a chain names as its predecessor.

    origin names the ledger and the shard, so that no chain can stand in for another one.
    """
    return hashlib.sha256(GENESIS_PREFIX + origin.encode() + b"\n").digest()


def _text(value: str | None) -> str:
    return "null" if value is None else orjson.dumps(value).decode()


def entry_bytes(event: Event, prev_hash: bytes) -> bytes:
    """Return the exact bytes of an event that follows the entry with hash `prev_hash` (32 bytes).

    The template below is RFC 8785 canonical JSON: keys in order, no spaces, shortest escapes, only integers.
    Ids, names and base64 need no escaping; description and metadata are free text and get it.
    """
    e = event
    key = "null" if e.idempotency is None else f'"{e.idempotency}"'
    fingerprint = "null" if e.fingerprint is None else f'"{e.fingerprint}"'
    reference = "null" if e.reference is None else f'"{e.reference}"'
    return (
        ENTRY_PREFIX
        + (
            f'{{"amount":{e.amount},"at":"{time_text(e.at_ms)}","balance":{e.balance},"credit":"{e.credit}",'
            f'"debit":"{e.debit}","description":{_text(e.description)},"details":{e.details or "null"},'
            f'"fingerprint":{fingerprint},"generation":{e.generation},"idempotency":{key},'
            f'"metadata":{_text(e.metadata)},"prev_hash":"{prev_hash.hex()}","reference":{reference},'
            f'"reserved":{e.reserved},"schema":{SCHEMA},"seq":{e.seq},"shard":{e.shard},"tenant_id":"{e.tenant_id}",'
            f'"transaction_id":"{e.transaction_id}","type":"{e.type}","version":{e.version}}}'
        ).encode()
    )


def entry_hash(entry: bytes) -> bytes:
    """Return SHA-256(0x00 + entry), 32 bytes: the RFC 6962 leaf hash."""
    return hashlib.sha256(LEAF_PREFIX + entry).digest()


class RowSeal:
    """HMAC-SHA256 (RFC 2104) under one key, with the two padded key blocks hashed only once."""

    def __init__(self, key: bytes) -> None:
        """`key` is at least 16 bytes of secret; `key_id` names it without giving it away."""
        if len(key) < 16:
            raise ValueError(f"a row seal key needs at least 16 bytes, not {len(key)}")
        self.key_id: Final = hashlib.sha256(b"shieldx-audit/v1/key-id\n" + key).hexdigest()[:16]
        block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\x00")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in block))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in block))

    def sign(self, digest: bytes) -> bytes:
        """Return the 32-byte signature of a hash."""
        inner = self._inner.copy()
        inner.update(digest)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()

    def matches(self, digest: bytes, signature: bytes) -> bool:
        """Return whether `signature` is that of `digest`, in constant time."""
        return hmac.compare_digest(self.sign(digest), signature)
