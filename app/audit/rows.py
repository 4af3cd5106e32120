"""Rows of audit_entries as COPY sends them, and the proof of a range of them: bytes, hashes, links, columns, fold.

A row is proved by a few comparisons of bytes. Only when one of them fails is the row looked at again, slowly, to
say what is wrong with it. Signatures are collected, not checked: keys stay with the process that was given them.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final, NamedTuple

import msgspec

from app.audit.controls import Stated, Told
from app.audit.entry import ENTRY_PREFIX, HASH_BYTES, LEAF_PREFIX, SCHEMA, Record
from app.audit.facts import Given
from app.audit.fold import Hold, RangeFold, Span, Transfer
from app.audit.report import Bad
from app.clock import POSTGRES_EPOCH_US, time_text

# The text columns come as one field, a line each. None of them may hold a line break, so there is one way to read it.
ROWS_SQL: Final = r"""
    SELECT shard, seq, at, amount, balance, reserved, version, hash, prev_hash, signature,
           tenant_id || E'\n' || type || E'\n' || transaction_id || E'\n' || key_id, entry
    FROM audit_chain WHERE shard = $1 AND seq >= $2 AND seq < $3 ORDER BY seq
"""
# Field count and lengths of the fixed columns are skipped, the lengths of the others are read.
# Source: PostgreSQL manual, COPY, "Binary Format".
_FIXED: Final = struct.Struct("!2x4xh4xq4xq4xq4xq4xq4xqi32si32si32si")
_FIXED_BYTES: Final = _FIXED.size
_LENGTH: Final = struct.Struct("!i")
_LENGTH_BYTES: Final = _LENGTH.size
_PREFIX_BYTES: Final = len(ENTRY_PREFIX)
_TRAILER_BYTES: Final = 2  # a field count of -1 ends the copy
US_PER_MS: Final = 1000
US_PER_S: Final = 1_000_000
_FRACTION_CHARACTERS: Final = len("000Z")
TIME_MIN_US: Final = -(2**63)  # the lowest time of PostgreSQL
ROW_BYTES_MAX: Final = 1 << 20  # the server keeps entries far below; a longer row is a length misread
COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)  # signature, flags, length of the extension
UNREADABLE: Final = "the row cannot be read: a column is missing or has a wrong length"

_decode: Final = msgspec.json.Decoder(Record).decode
# Structs keep their order, details are sorted: RFC 8785 for records of ascii keys, integers and text.
_encode: Final = msgspec.json.Encoder(order="deterministic").encode
_encode_into: Final = msgspec.json.Encoder(order="deterministic").encode_into


class Proof(msgspec.Struct):
    """What was proved of the rows from `low` to before `next_seq` of a shard, and what they add up to.

    bad          the first row that is wrong by itself or does not follow from the rows of this range before it
    prev_hash    what the first row names as its predecessor; last_hash: the hash of the last good row
    first_at_us, last_at_us, first_generation, last_generation   of the first and the last good row
    seals        hash and signature of every row, 64 bytes each
    key_ids      the key of the seals, with the seq from which on it is used
    """

    shard: int
    low: int
    next_seq: int
    bad: Bad | None
    prev_hash: bytes
    last_hash: bytes
    first_at_us: int
    last_at_us: int
    first_generation: int
    last_generation: int
    seals: bytes
    key_ids: list[tuple[int, bytes]]
    spans: dict[str, Span]
    holds: dict[str, Hold]
    consumed: list[Record]
    deferred: list[Record]
    private: list[Record]
    keys: list[Record]
    transfer: Transfer | None
    moved: list[int]
    stated: dict[str, Stated]
    told: dict[str, Told]
    facts: list[int] | None


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


class RangeCheck:
    """Proves the rows of one range as they arrive, up to the first bad one."""

    def __init__(self, shard: int, low: int, given: Given) -> None:
        """`low` is the seq that the first row must have. Its predecessor's hash is taken from the row itself."""
        self.bad: Bad | None = None
        self._shard = shard
        self._low = low
        self._next_seq = low
        self._fold = RangeFold(shard, low, given)
        self._prev_hash = self._last_hash = b""
        self._last_hex = ""
        self._first: tuple[int, int] | None = None
        self._generation = 0
        self._at_us = TIME_MIN_US
        self._at_text = ""
        self._second: tuple[int, str] = (-1, "")
        self._leaf = hashlib.sha256(LEAF_PREFIX + ENTRY_PREFIX)
        self._canonical = bytearray()
        self._seals: list[bytes] = []
        self._key_ids: list[tuple[int, bytes]] = []
        self._key_id = b"\n"  # no key has this id, so the first row starts a new run
        self._rest = b""
        self._header_bytes = len(COPY_HEADER)

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
                self._fail(UNREADABLE)
                return
            self._prove(fixed, data[names_at:names_end], data[entry_at:row_end])
            if self.bad is not None:
                return
            at = row_end
        self._rest = data[at:]
        if len(self._rest) > ROW_BYTES_MAX:
            self._fail(UNREADABLE)

    def finish(self, high: int) -> Proof:
        """Return the proof, once the COPY is over. The rows should have led to before `high`."""
        if self.bad is None and len(self._rest) > _TRAILER_BYTES:
            self._fail(UNREADABLE)
        if self.bad is None and self._next_seq < high:
            self._fail("the entry is missing")
        first_at_us, first_generation = self._first or (TIME_MIN_US, 0)
        fold = self._fold
        return Proof(
            shard=self._shard, low=self._low, next_seq=self._next_seq, bad=self.bad, prev_hash=self._prev_hash,
            last_hash=self._last_hash, first_at_us=first_at_us, last_at_us=self._at_us,
            first_generation=first_generation, last_generation=self._generation, seals=b"".join(self._seals),
            key_ids=self._key_ids, spans=fold.spans, holds=fold.holds, consumed=fold.consumed,
            deferred=fold.deferred, private=fold.private, keys=fold.keys, transfer=fold.transfer, moved=fold.moved,
            stated=fold.controls.stated, told=fold.controls.told, facts=None if fold.facts is None else fold.facts.sums(),
        )  # fmt: skip

    def _fail(self, reason: str) -> None:
        self.bad = Bad(self._next_seq, reason)

    def _prove(self, fixed: tuple[Any, ...], names: bytes, entry: bytes) -> None:
        """Check one row and move on; `bad` is set when it is not what follows the row before."""
        shard, seq, at_us, amount, balance, reserved, version = fixed[:7]
        hash_size, digest, prev_size, prev_hash, seal_size, signature, _ = fixed[7:]
        text = entry[_PREFIX_BYTES:]
        if self._first is None:
            self._prev_hash = self._last_hash = prev_hash
            self._last_hex = prev_hash.hex()
        try:
            record = _decode(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self._blame(Row._make((*fixed[:7], digest, prev_hash, names, entry)), None)
            return
        leaf = self._leaf.copy()
        leaf.update(text)
        _encode_into(record, self._canonical)
        at_text = self._at_text if at_us == self._at_us else self._time_text(at_us)
        head = f"{record.tenant_id}\n{record.type}\n{record.transaction_id}\n".encode()
        if (
            seq != self._next_seq or record.seq != seq or shard != self._shard or record.shard != shard
            or leaf.digest() != digest or prev_hash != self._last_hash or record.prev_hash != self._last_hex
            or self._canonical != text or not entry.startswith(ENTRY_PREFIX) or not names.startswith(head)
            or record.amount != amount or record.balance != balance or record.reserved != reserved
            or record.version != version or record.at != at_text or not at_text or record.schema != SCHEMA
            or hash_size != HASH_BYTES or prev_size != HASH_BYTES or seal_size != HASH_BYTES
        ):  # fmt: skip
            self._blame(Row._make((*fixed[:7], digest, prev_hash, names, entry)), record)
            return
        if at_us < self._at_us or record.generation < self._generation:
            self._fail(order_fault(record.generation, self._generation))
            return
        reason = self._fold.apply(record)
        if reason is not None:
            self._fail(reason)
            return
        if self._first is None:
            self._first = at_us, record.generation
        if not names.endswith(self._key_id) or len(names) != len(head) + len(self._key_id):
            self._key_id = names[len(head) :]
            if b"\n" in self._key_id:
                self._fail("a text column holds a line break")
                return
            self._key_ids.append((seq, self._key_id))
        self._seals.append(digest + signature)
        self._generation, self._at_us, self._at_text = record.generation, at_us, at_text
        self._last_hash, self._last_hex, self._next_seq = digest, digest.hex(), seq + 1

    def _time_text(self, at_us: int) -> str:
        """Return a time as `_time_text` does; the text of the second is that of the row before, mostly."""
        second, rest_us = divmod(at_us, US_PER_S)
        if second != self._second[0]:
            self._second = second, _time_text(second * US_PER_S)[:-_FRACTION_CHARACTERS]
        rest_ms, odd_us = divmod(rest_us, US_PER_MS)
        return "" if odd_us or not self._second[1] else f"{self._second[1]}{rest_ms:03d}Z"

    def _blame(self, row: Row, record: Record | None) -> None:
        """Say what is wrong with a row that failed a comparison: the first of the checks in their order."""
        if row.seq > self._next_seq:
            self._fail(f"the entry is missing, the next one is seq {row.seq}")
        elif row.seq < self._next_seq:
            self.bad = Bad(row.seq, "the seq is below 0" if row.seq < self._low else "the seq stands twice")
        else:
            self._fail(_entry_fault(row, record, self._shard) or link_fault(row.seq))


def order_fault(generation: int, generation_before: int) -> str:
    """Say what goes back in a row that stands after one of a later time or generation."""
    if generation < generation_before:
        return f"generation {generation} comes after generation {generation_before}"
    return "its time is before that of the entry before it"


def link_fault(seq: int) -> str:
    """Say that the row's prev_hash leads to nothing."""
    if seq == 0:
        return "prev_hash is not the genesis hash of this ledger and shard"
    return f"prev_hash is not the hash of entry {seq - 1}"


def _time_text(at_us: int) -> str:
    """Return a time of PostgreSQL as the entry writes it; empty when no entry can have it."""
    at_ms, rest_us = divmod(at_us + POSTGRES_EPOCH_US, US_PER_MS)
    try:
        return "" if rest_us else time_text(at_ms)
    except (ValueError, OverflowError, OSError):
        return ""


def _entry_fault(row: Row, record: Record | None, shard: int) -> str | None:
    """Return what is wrong with a row by itself: form, place, hash, then columns against the record."""
    columns = _columns(row)
    if record is None or not row.entry.startswith(ENTRY_PREFIX) or record.schema != SCHEMA:
        return "the entry is not a record of shieldx-audit/v1"
    if (record.shard, record.seq) != (shard, row.seq):
        return f"the entry says that it is seq {record.seq} of shard {record.shard}"
    if hashlib.sha256(LEAF_PREFIX + row.entry).digest() != row.digest:
        return "the hash is not that of the entry"
    if _encode(record) != row.entry[_PREFIX_BYTES:]:
        return "the entry is not in canonical form"
    if not columns["at"]:
        return "column at is a time that no entry can have"
    wrong = [name for name, value in columns.items() if getattr(record, name) != value]
    if wrong:
        return f"column {wrong[0]} is {columns[wrong[0]]}, the entry says {getattr(record, wrong[0])}"
    return None


def _columns(row: Row) -> dict[str, int | str]:
    """Return the columns of a row under the names of the record's fields."""
    tenant_id, kind, transaction_id, *_ = [*row.names.decode(errors="replace").split("\n"), "", "", ""]
    return {
        "shard": row.shard, "at": _time_text(row.at_us), "tenant_id": tenant_id, "type": kind,
        "transaction_id": transaction_id, "amount": row.amount, "balance": row.balance,
        "reserved": row.reserved, "version": row.version, "prev_hash": row.prev_hash.hex(),
    }  # fmt: skip
