"""Sums over what a chain says of rows that are as many as its entries: reservations, opened accounts, usage. Pure.

Such rows are not held against the chain one by one, which would take memory for all of them. Each is written as a line of
text; the lines of the chain and those of the table are hashed under a key that only this verification has, and the sums of
the hashes are compared: a multiset hash (Clarke et al. 2003, MSet-Add-Hash). Whoever changed a row could not know the key.
Of usage, which sums up amounts, the hash of each bucket is the weight of its amount and of its count.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from app.clock import time_text

if TYPE_CHECKING:
    from app.audit.entry import Record

MODULUS: Final = 2**61 - 1  # a prime below 2^63, so that every sum is a plain integer on its way between processes
WEIGHT_BYTES: Final = 7  # of SHA-256; a false sum is right by chance once in 2^56
OPENED, CLOSED, ACCOUNTS, AMOUNTS, COUNTS = range(5)
STATUSES: Final = {
    "commit": "committed", "abort": "aborted", "expire": "expired", "settle_out": "committed", "settle_in": "committed",
    "cancel_out": "aborted", "cancel_in": "aborted",
}  # fmt: skip
PURPOSES: Final = {"reserve": "spend", "prepare_out": "transfer_out", "prepare_in": "transfer_in"}
ONE: Final = 1 << 64  # counts one in a bucket, above the sum of its amounts: a range has no 10^5 entries of 10^14 credits
_HOUR_CHARACTERS: Final = len("2026-01-01T00")


class Given(NamedTuple):
    """What the tables say that a fold has to know before: it is the same for all ranges.

    refunded_ids  the transactions that credit_refunds lists
    key           of the lines of this verification; empty when sums are not wanted
    marks         the last seq of each shard that usage_hourly holds
    """

    refunded_ids: frozenset[str]
    key: bytes = b""
    marks: dict[int, int] = {}  # noqa: RUF012 - never changed, and a NamedTuple shares its defaults anyway


class Facts:
    """The five sums of a range of one chain: opened and closed reservations, accounts, amounts and counts of usage."""

    def __init__(self, key: bytes) -> None:
        """`key` is secret until the verification is over."""
        self._keyed = hashlib.sha256(key)
        self._sums = [0] * 5
        self._hour = ""
        self._usage: dict[tuple[str, str], int] = {}

    def opened(self, record: Record) -> None:
        """Take a record that opens a reservation."""
        self._sums[OPENED] += self._weight(opened_line(record).encode())

    def closed(self, record: Record) -> None:
        """Take a record that ends a reservation."""
        self._sums[CLOSED] += self._weight(closed_line(record).encode())

    def account(self, record: Record) -> None:
        """Take a record that opens an account."""
        self._sums[ACCOUNTS] += self._weight(account_line(record).encode())

    def used(self, record: Record) -> None:
        """Take a record that counts as usage. Buckets live as long as the hour of the range."""
        hour = record.at[:_HOUR_CHARACTERS]
        if hour != self._hour:
            self._end_hour()
            self._hour = hour
        key = record.tenant_id, record.type
        self._usage[key] = self._usage.get(key, 0) + record.amount + ONE

    def sums(self) -> list[int]:
        """Return the sums, each modulo MODULUS."""
        self._end_hour()
        return [one % MODULUS for one in self._sums]

    def _end_hour(self) -> None:
        start_s = int(datetime.fromisoformat(f"{self._hour}:00:00Z").timestamp()) if self._usage else 0
        for (tenant, kind), both in self._usage.items():
            weight = self._weight(f"{tenant}|{start_s}|{kind}".encode())
            count, amount = divmod(both, ONE)
            self._sums[AMOUNTS] += weight * amount
            self._sums[COUNTS] += weight * count
        self._usage.clear()

    def _weight(self, line: bytes) -> int:
        keyed = self._keyed.copy()
        keyed.update(line)
        return int.from_bytes(keyed.digest()[:WEIGHT_BYTES])


def added(one: list[int], other: list[int]) -> list[int]:
    """Return the sums of both, each modulo MODULUS."""
    return [(mine + its) % MODULUS for mine, its in zip(one, other, strict=True)]


def opened_line(record: Record) -> str:
    """Return what an opening entry says of its reservation, as OPENED_LINE of app.audit.fact_check writes a row of it."""
    details = record.details
    ends: object = ""
    counted: object = ""
    if details is not None:
        if record.type == "reserve":
            ends = details.get("expires_at_ms", "")
        controls = details.get("controls")
        if isinstance(controls, dict):
            counted = controls.get("count", "")
    texts = "-||-" if record.description is None and record.metadata is None else _texts(record)
    return (
        f"{record.transaction_id}|{record.tenant_id}|{record.amount}|{PURPOSES[record.type]}|{record.at[:-1]}000|{ends}|"
        f"{record.reference or ''}|{counted}|{texts}"
    )


def _texts(record: Record) -> str:
    """Return description and metadata so that no character can pass from one to the other, nor none stand for empty."""
    size = "-" if record.description is None else len(record.description.encode())
    return f"{size}|{record.description or ''}|{'-' if record.metadata is None else record.metadata}"


def closed_line(record: Record) -> str:
    """Return what a closing entry says of its reservation, as CLOSED_LINE of app.audit.fact_check writes a row of it."""
    status = STATUSES[record.type]
    spent = record.amount if status == "committed" else 0
    return f"{record.reference}|{status}|{spent}|{record.at[:-1]}000|{record.seq}"


def account_line(record: Record) -> str:
    """Return what an entry says of the account that it opens, as ACCOUNT_LINE of app.audit.fact_check writes its row."""
    created_at_ms = (record.details or {}).get("created_at_ms")
    at = time_text(created_at_ms) if isinstance(created_at_ms, int) else record.at
    return f"{record.tenant_id}|{at[:-1]}000"
