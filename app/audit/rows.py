"""Rows of audit_entries as COPY sends them, and the proof of each: bytes, hash, link, seal, columns, fold.

A row is proved by a few comparisons of bytes. Only when one of them fails is the row looked at again, slowly, to say
what is wrong with it.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from app.audit.entry import COPY_HEADER, ENTRY_PREFIX, HASH_BYTES, LEAF_PREFIX, SCHEMA
from app.audit.fold import Record
from app.audit.report import Bad
from app.clock import POSTGRES_EPOCH_US, time_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.audit.entry import RowSeal
    from app.audit.fold import Fold

# The text columns come as one field, one line each: none of them can hold a line break, so nothing is ambiguous.
ROWS_SQL: Final = r"""
    SELECT shard, seq, at, amount, balance, reserved, version, hash, prev_hash, signature,
           tenant_id || E'\n' || type || E'\n' || transaction_id || E'\n' || key_id, entry
    FROM audit_entries WHERE shard = $1 AND seq >= $2 AND seq < $3 ORDER BY seq
"""
# Field count and lengths of the fixed columns are skipped, those of the others are read. Source: PostgreSQL manual,
# COPY, "Binary Format".
_FIXED: Final = struct.Struct("!2x4xh4xq4xq4xq4xq4xq4xqi32si32si32si")
_FIXED_BYTES: Final = _FIXED.size
_LENGTH: Final = struct.Struct("!i")
_LENGTH_BYTES: Final = _LENGTH.size
_PREFIX_BYTES: Final = len(ENTRY_PREFIX)
_TRAILER_BYTES: Final = 2  # a field count of -1 ends the copy
US_PER_MS: Final = 1000
ROW_BYTES_MAX: Final = 1 << 20  # bytes; the server keeps entries far below, a longer row is a misread length
UNREADABLE: Final = "the row cannot be read: a column is missing or has a wrong length"

_decode: Final = msgspec.json.Decoder(Record).decode
# Structs keep their order, details are sorted: RFC 8785 for records of ascii keys, integers and text.
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


class Row(NamedTuple):
    """One row, its columns as they were sent. `at_us` counts from 2000-01-01, the epoch of PostgreSQL."""

    shard: int
    seq: int
    at_us: int
    amount: int
    balance: int
    reserved: int
    version: int
    digest: bytes
    prev_hash: bytes
    names: bytes
    entry: bytes


class Chain:
    """One shard's chain, from its genesis to wherever the rows that were fed have led, or to the first bad one."""

    def __init__(self, shard: int, genesis: bytes, seals: Mapping[str, RowSeal], fold: Fold) -> None:
        """`genesis` is the 32-byte hash that seq 0 follows; `seals` are the known keys by key id."""
        self.shard: Final = shard
        self.bad: Bad | None = None
        self.next_seq = 0
        self.last_hash = genesis
        self.signatures_unchecked = 0
        self._seals = {key_id.encode(): seal for key_id, seal in seals.items()}
        self._fold = fold
        self._last_hex = genesis.hex()
        self._generation = 0
        self._at_us = -(2**63)
        self._at_text = ""
        self._leaf = hashlib.sha256(LEAF_PREFIX + ENTRY_PREFIX)
        self._rest, self._header_bytes = b"", 0

    def begin(self) -> None:
        """Expect the header of a COPY next."""
        self._rest, self._header_bytes = b"", len(COPY_HEADER)

    def end(self) -> None:
        """Note that the COPY is over: a row that began must have ended."""
        if self.bad is None and len(self._rest) > _TRAILER_BYTES:
            self.fail(UNREADABLE)

    def fail(self, reason: str) -> None:
        """Declare the next entry bad."""
        self.bad = Bad(self.next_seq, reason)

    def feed(self, chunk: bytes) -> None:
        """Prove the rows of the next piece of a binary COPY; without effect once a row was bad."""
        if self.bad is not None:
            return
        data = self._rest + chunk
        size, at = len(data), self._header_bytes
        if size < at:
            self._rest = data
            return
        self._header_bytes = 0
        while at + _FIXED_BYTES <= size:
            fixed = _FIXED.unpack_from(data, at)
            names_at = at + _FIXED_BYTES
            names_end = names_at + fixed[-1]
            entry_at = names_end + _LENGTH_BYTES
            if entry_at > size:
                break
            row_end = entry_at + _LENGTH.unpack_from(data, names_end)[0]
            if row_end > size:
                break
            if row_end < entry_at or names_end < names_at:
                self.fail(UNREADABLE)
                return
            self._prove(fixed, data[names_at:names_end], data[entry_at:row_end])
            if self.bad is not None:
                return
            at = row_end
        self._rest = data[at:]
        if len(self._rest) > ROW_BYTES_MAX:
            self.fail(UNREADABLE)

    def _prove(self, fixed: tuple[Any, ...], names: bytes, entry: bytes) -> None:
        """Check one row and move on; `bad` is set when it is not what follows the row before."""
        (shard, seq, at_us, amount, balance, reserved, version, hash_size, digest, prev_size, prev_hash, seal_size,
         signature, _) = fixed  # fmt: skip
        text = entry[_PREFIX_BYTES:]
        try:
            record = _decode(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self._blame(Row._make((*fixed[:7], digest, prev_hash, names, entry)), None)
            return
        leaf = self._leaf.copy()
        leaf.update(text)
        if at_us != self._at_us:
            if at_us < self._at_us:
                self.fail(f"its time is before that of the entry before it, {self._at_text}")
                return
            self._at_us, self._at_text = at_us, _time_text(at_us)
        head = f"{record.tenant_id}\n{record.type}\n{record.transaction_id}\n".encode()
        if (
            seq != self.next_seq or record.seq != seq or shard != self.shard or record.shard != shard
            or leaf.digest() != digest or prev_hash != self.last_hash or record.prev_hash != self._last_hex
            or _encode(record) != text or not entry.startswith(ENTRY_PREFIX) or not names.startswith(head)
            or record.amount != amount or record.balance != balance or record.reserved != reserved
            or record.version != version or record.at != self._at_text or record.schema != SCHEMA
            or hash_size != HASH_BYTES or prev_size != HASH_BYTES or seal_size != HASH_BYTES
        ):  # fmt: skip
            self._blame(Row._make((*fixed[:7], digest, prev_hash, names, entry)), record)
            return
        seal = self._seals.get(names[len(head) :])
        if seal is None:
            self.signatures_unchecked += 1
        elif seal.sign(digest) != signature:
            self.fail("the signature is not that of its hash")
            return
        if record.generation < self._generation:
            self.fail(f"generation {record.generation} comes after generation {self._generation}")
            return
        reason = self._fold.apply(record)
        if reason is not None:
            self.fail(reason)
            return
        self._generation = record.generation
        self.last_hash = digest
        self._last_hex = digest.hex()
        self.next_seq = seq + 1

    def _blame(self, row: Row, record: Record | None) -> None:
        """Say what is wrong with a row that failed a comparison: the first of the checks in their order."""
        if row.seq < self.next_seq:
            self.bad = Bad(row.seq, f"seq {row.seq} stands twice")
        elif row.seq > self.next_seq:
            self.fail(f"the entry is missing, the next one is seq {row.seq}")
        else:
            self.fail(_entry_fault(row, record, self.shard) or self._link_fault(row) or UNREADABLE)

    def _link_fault(self, row: Row) -> str | None:
        if row.prev_hash == self.last_hash:
            return None
        if self.next_seq == 0:
            return "prev_hash is not the genesis hash of this ledger and shard"
        return f"prev_hash is not the hash of entry {self.next_seq - 1}"


def _time_text(at_us: int) -> str:
    """Return a time of PostgreSQL as the entry writes it; empty when no entry can have it."""
    at_ms, rest_us = divmod(at_us + POSTGRES_EPOCH_US, US_PER_MS)
    try:
        return "" if rest_us else time_text(at_ms)
    except (ValueError, OverflowError, OSError):
        return ""


def _entry_fault(row: Row, record: Record | None, shard: int) -> str | None:
    """Return what is wrong with a row by itself: place, hash, form, then columns against the record."""
    if record is None or not row.entry.startswith(ENTRY_PREFIX):
        return "the entry is not a shieldx-audit/v1 record"
    if (record.shard, record.seq) != (shard, row.seq):
        return f"the entry says shard {record.shard}, seq {record.seq}"
    if hashlib.sha256(LEAF_PREFIX + row.entry).digest() != row.digest:
        return "the hash is not that of the entry"
    if _encode(record) != row.entry[_PREFIX_BYTES:]:
        return "the entry is not in canonical form"
    if record.schema != SCHEMA:
        return f"the entry has schema {record.schema}"
    tenant_id, kind, transaction_id, *_ = [*row.names.decode(errors="replace").split("\n"), "", "", ""]
    columns = {
        "shard": row.shard, "at": _time_text(row.at_us), "tenant_id": tenant_id, "type": kind,
        "transaction_id": transaction_id, "amount": row.amount, "balance": row.balance, "reserved": row.reserved,
        "version": row.version, "prev_hash": row.prev_hash.hex(),
    }  # fmt: skip
    for name, value in columns.items():
        if getattr(record, name) != value:
            return f"column {name} is {value}, the entry says {getattr(record, name)}"
    return None
