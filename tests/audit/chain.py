"""Makes ledgers that are sound, so that a test can tell what its own change to them does.

`Book` does money operations on paper and lists the events. `make_chain` writes events as a ledger's writer would, with
every table that follows from them. Both count by themselves: nothing of the verifier's fold is used.
"""

from __future__ import annotations

import json
import random
import struct
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from app.audit.entry import (
    Event,
    RowSeal,
    entry_bytes,
    entry_hash,
    genesis_hash,
)
from app.audit.rows import COPY_HEADER
from app.clock import POSTGRES_EPOCH_US, time_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import asyncpg

ORIGIN: Final = "shieldx/00000000-0000-4000-8000-000000000001"
SEAL: Final = RowSeal(b"a key that only the tests know..")
WRITTEN: Final = ("ledger", "ledger_shards", "audit_entries", "credit_accounts", "credit_reservations", "credit_refunds")
STARTED_MS: Final = 1_763_000_000_000  # 2025-11-13T02:13:20Z, so that chains are the same in every run
ROWS_PER_CHUNK: Final = 2_000  # about 1.5 MB a write


# PostgreSQL's binary COPY: a signature, then per row a field count and length-prefixed fields, then -1.
COPY_TRAILER: Final = b"\xff\xff"
COPY_COLUMNS: Final = (
    "shard", "seq", "at", "transaction_id", "amount", "balance", "reserved", "version",
    "hash", "prev_hash", "signature", "tenant_id", "type", "key_id", "entry",
)  # fmt: skip
_FIXED: Final = struct.Struct("!h ih iq iq i16s iq iq iq iq i32s i32s i32s")
_LENGTH: Final = struct.Struct("!i")
_FIELDS: Final = len(COPY_COLUMNS)


def copy_row(event: Event, entry: bytes, digest: bytes, prev_hash: bytes, signature: bytes, key_id: bytes) -> bytes:
    """Return one row of a binary COPY into audit_entries, its columns in the order of COPY_COLUMNS.

    Packed by hand because this runs once per money operation: one struct call instead of fifteen encoders.
    Source: PostgreSQL manual, COPY, "Binary Format".
    """
    e = event
    tenant = e.tenant_id.encode()
    kind = e.type.encode()
    size = _LENGTH.pack
    return b"".join((
        _FIXED.pack(
            _FIELDS, 2, e.shard, 8, e.seq, 8, e.at_ms * 1000 - POSTGRES_EPOCH_US, 16, bytes.fromhex(e.transaction_id.replace("-", "")),
            8, e.amount, 8, e.balance, 8, e.reserved, 8, e.version, 32, digest, 32, prev_hash, 32, signature,
        ),
        size(len(tenant)), tenant, size(len(kind)), kind, size(len(key_id)), key_id, size(len(entry)), entry,
    ))  # fmt: skip


class Book:
    """The events of one shard, and the running state of its tenants that they state."""

    def __init__(self, shard: int = 0, at_ms: int = STARTED_MS) -> None:
        """Events count from seq 0 and are one millisecond apart."""
        self.shard = shard
        self.generation = 1
        self.at_ms = at_ms
        self.events: list[Event] = []
        self.state: dict[str, list[int]] = {}  # balance, reserved, incoming, version
        self._released: dict[str, int] = {}

    def account(self, tenant: str) -> Event:
        """Open an account."""
        self.state[tenant] = [0, 0, 0, 0]
        return self._event("account", tenant, 0, "tenant:", "tenant:", details='{"settings":{}}')

    def topup(self, tenant: str, amount: int, **texts: str | None) -> Event:
        """Put credits on an account."""
        return self._event("topup", tenant, amount, "system:funding", "tenant:", (1, 0, 0), **texts)

    def consume(self, tenant: str, amount: int, **texts: str | None) -> Event:
        """Spend at once."""
        return self._event("consume", tenant, amount, "tenant:", "system:revenue", (-1, 0, 0), **texts)

    def refund(self, spent: Event, amount: int) -> Event:
        """Give back a part of what a consume or commit took."""
        refunded = self._released.get(spent.transaction_id, 0) + amount
        self._released[spent.transaction_id] = refunded
        details = f'{{"consumed":{spent.amount},"refunded":{refunded}}}'
        return self._event(
            "refund", spent.tenant_id, amount, "system:revenue", "tenant:", (1, 0, 0),
            reference=spent.transaction_id, details=details,
        )  # fmt: skip

    def reserve(self, tenant: str, amount: int) -> Event:
        """Hold credits."""
        details = f'{{"expires_at_ms":{self.at_ms + 300_000}}}'
        return self._event("reserve", tenant, amount, "tenant:", "held:", (0, 1, 0), details=details)

    def commit(self, hold: Event, amount: int) -> Event:
        """Spend a part of a hold and release the rest."""
        self.state[hold.tenant_id][1] -= hold.amount - amount
        return self._event(
            "commit", hold.tenant_id, amount, "held:", "system:revenue", (-1, -1, 0),
            reference=hold.transaction_id, details=f'{{"released":{hold.amount - amount}}}',
        )  # fmt: skip

    def release(self, kind: str, hold: Event) -> Event:
        """Abort or expire a hold."""
        return self._event(kind, hold.tenant_id, hold.amount, "held:", "tenant:", (0, -1, 0), reference=hold.transaction_id)

    def update(self, tenant: str, settings: str = "{}", controls: str | None = None) -> Event:
        """Change an account's settings, given as JSON text."""
        state = "" if controls is None else f'"controls":{controls},'
        return self._event("update", tenant, 0, "tenant:", "tenant:", details=f'{{{state}"settings":{settings}}}')

    def transfer(self, legs: Sequence[tuple[str, int]]) -> list[Event]:
        """Move credits between tenants of this shard."""
        made: list[Event] = []
        for leg, (tenant, amount) in enumerate(legs, 1):
            sides = ("system:clearing", "tenant:") if amount > 0 else ("tenant:", "system:clearing")
            event = self._event(
                "transfer", tenant, abs(amount), *sides, (1 if amount > 0 else -1, 0, 0),
                details=f'{{"leg":{leg},"legs":{len(legs)}}}',
            )  # fmt: skip
            event.transaction_id = made[0].transaction_id if made else event.transaction_id
            made.append(event)
        return made

    def prepare(self, tenant: str, amount: int) -> Event:
        """Prepare a leg of a transfer over two shards: what the tenant gains (+) or gives (-)."""
        if amount > 0:
            return self._event("prepare_in", tenant, amount, "tenant:", "tenant:", (0, 0, 1))
        return self._event("prepare_out", tenant, -amount, "tenant:", "held:", (0, 1, 0))

    def settle(self, prepared: Event) -> Event:
        """Finish a prepared leg."""
        tenant, amount, reference = prepared.tenant_id, prepared.amount, prepared.transaction_id
        if prepared.type == "prepare_in":
            return self._event("settle_in", tenant, amount, "system:clearing", "tenant:", (1, 0, -1), reference=reference)
        return self._event("settle_out", tenant, amount, "held:", "system:clearing", (-1, -1, 0), reference=reference)

    def cancel(self, prepared: Event) -> Event:
        """Give up a prepared leg."""
        tenant, amount, reference = prepared.tenant_id, prepared.amount, prepared.transaction_id
        if prepared.type == "prepare_in":
            return self._event("cancel_in", tenant, amount, "tenant:", "tenant:", (0, 0, -1), reference=reference)
        return self._event("cancel_out", tenant, amount, "held:", "tenant:", (0, -1, 0), reference=reference)

    def note(self, kind: str, details: str) -> Event:
        """Enter something that is not money."""
        self.state.setdefault("", [0, 0, 0, 0])
        event = self._event(kind, "", 0, "", "", details=details)
        event.version = 0
        return event

    def _event(
        self, kind: str, tenant: str, amount: int, debit: str, credit: str, signs: tuple[int, int, int] = (0, 0, 0),
        **texts: str | None,
    ) -> Event:  # fmt: skip
        state = self.state[tenant]
        for index, sign in enumerate(signs):
            state[index] += sign * amount
        state[3] += 1
        seq = len(self.events)
        self.at_ms += 1
        identifier = f"{self.at_ms >> 16:08x}-{self.at_ms & 0xFFFF:04x}-7{self.shard:03x}-8000-{seq:012x}"
        event = Event(
            self.shard, self.generation, seq, self.at_ms, kind, tenant,
            debit + tenant if debit.endswith(":") else debit, credit + tenant if credit.endswith(":") else credit,
            amount, state[0], state[1], state[3], identifier, f"{seq:022d}", "f" * 22, **texts,
        )  # fmt: skip
        self.events.append(event)
        return event


SPENT: Final = 4  # seq of a consume in the middle of `ten_operations`
LAST: Final = 9


def ten_operations() -> Book:
    """Ten operations of one tenant: SPENT is in the middle, LAST at the end."""
    book = Book()
    book.account("t1")
    book.topup("t1", 1_000)
    hold = book.reserve("t1", 50)
    book.commit(hold, 30)
    spent = book.consume("t1", 100, description='a "quoted" line\nand é')
    book.consume("t1", 20, metadata='{"model":"small"}')
    book.refund(spent, 40)
    book.reserve("t1", 7)
    book.consume("t1", 5)
    book.consume("t1", 6)
    return book


def mixed_events(count: int, tenants: int, seed: int = 1) -> list[Event]:
    """Return at least `count` events of a shard with every kind of event, spread over the tenants at random."""
    book, chance = Book(), random.Random(seed)
    names = [f"tenant-{number}" for number in range(tenants)]
    for name in names:
        book.account(name)
        book.topup(name, 10**9)
    while len(book.events) < count:
        name, other = chance.choice(names), chance.choice(names)
        draw = chance.random()
        if draw < 0.55:
            book.consume(name, chance.randint(1, 5_000), description="chat completion")
        elif draw < 0.95:
            hold = book.reserve(name, chance.randint(10, 5_000))
            book.commit(hold, hold.amount - chance.randint(0, 9))
        elif draw < 0.96:
            book.refund(book.consume(name, 100), 40)
        elif draw < 0.97:
            book.release(chance.choice(["abort", "expire"]), book.reserve(name, 7))
        elif draw < 0.98:
            book.transfer([(name, -5), (other, 5)])
        elif draw < 0.99:
            book.settle(book.prepare(name, -3))
            book.settle(book.prepare(other, 3))
            book.cancel(book.prepare(name, -2))
            book.cancel(book.prepare(other, 2))
        else:
            book.update(name)
            book.note("deployment", '{"experiment":"ranking","variant":"b"}')
    book.reserve(names[0], 11)
    return book.events


async def make_chain(
    connection: asyncpg.Connection[Any], events: Sequence[Event], *, seal: RowSeal = SEAL, origin: str = ORIGIN,
    shard_count: int = 1,
) -> None:  # fmt: skip
    """Write a whole ledger into an empty, migrated database: the chains of `events`, and what they fold to.

    `events` may belong to several shards; within a shard they stand in the order of seq.
    """
    times = [event.at_ms for event in events] or [STARTED_MS]
    await connection.execute("SELECT ensure_partitions($1, $2, 1)", time_of(min(times)), time_of(max(times)))
    await connection.execute(
        "INSERT INTO ledger (origin, shard_count, idempotency_salt) VALUES ($1, $2, $3)", origin, shard_count, bytes(32)
    )
    for shard in range(shard_count):
        mine = [event for event in events if event.shard == shard]
        head = genesis_hash(f"{origin}/s{shard:02d}")
        chunks, head = _copy_chunks(mine, head, seal)
        await connection.copy_to_table("audit_entries", source=_each(chunks), columns=COPY_COLUMNS, format="binary")
        await connection.execute(
            "INSERT INTO ledger_shards (shard, generation, head_seq, head_hash) VALUES ($1, $2, $3, $4)",
            shard, mine[-1].generation if mine else 0, len(mine) - 1, head,
        )  # fmt: skip
    await _write_accounts(connection, events)
    await _write_reservations(connection, events)
    await _write_refunds(connection, events)
    await connection.execute(f"ANALYZE {', '.join(WRITTEN)}")


def _copy_chunks(events: Sequence[Event], head: bytes, seal: RowSeal) -> tuple[list[bytes], bytes]:
    key_id = seal.key_id.encode()
    rows, chunks = [COPY_HEADER], []
    for event in events:
        entry = entry_bytes(event, head)
        digest = entry_hash(entry)
        rows.append(copy_row(event, entry, digest, head, seal.sign(digest), key_id))
        head = digest
        if len(rows) >= ROWS_PER_CHUNK:
            chunks.append(b"".join(rows))
            rows = []
    return [*chunks, b"".join([*rows, COPY_TRAILER])], head


async def _each(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _write_accounts(connection: asyncpg.Connection[Any], events: Sequence[Event]) -> None:
    incoming: dict[str, int] = defaultdict(int)
    first: dict[str, Event] = {}
    last: dict[str, Event] = {}
    for event in events:
        if event.tenant_id:
            first.setdefault(event.tenant_id, event)
            last[event.tenant_id] = event
        if event.type == "prepare_in":
            incoming[event.tenant_id] += event.amount
        elif event.type in {"settle_in", "cancel_in"}:
            incoming[event.tenant_id] -= event.amount
    await connection.copy_records_to_table(
        "credit_accounts",
        records=[
            (name, e.shard, e.balance, e.reserved, incoming[name], e.version, time_of(first[name].at_ms), time_of(e.at_ms))
            for name, e in last.items()
        ],
        columns=["tenant_id", "shard", "balance", "reserved", "incoming", "version", "created_at", "updated_at"],
    )


async def _write_reservations(connection: asyncpg.Connection[Any], events: Sequence[Event]) -> None:
    ends = {"commit": "committed", "abort": "aborted", "expire": "expired", "settle_out": "committed"}
    ends |= {"settle_in": "committed", "cancel_out": "aborted", "cancel_in": "aborted"}
    purposes = {"reserve": "spend", "prepare_out": "transfer_out", "prepare_in": "transfer_in"}
    closed = {event.reference: event for event in events if event.type in ends}
    rows = []
    for event in events:
        if event.type in purposes:
            end = closed.get(event.transaction_id)
            status = "held" if end is None else ends[end.type]
            committed = end.amount if end is not None and status == "committed" else 0
            details = json.loads(event.details or "{}")
            expires_at_ms = details.get("expires_at_ms")
            rows.append((
                event.transaction_id, event.shard, event.tenant_id, event.amount, committed, status,
                purposes[event.type], time_of(event.at_ms), None if end is None else time_of(end.at_ms),
                None if end is None else end.seq, None if expires_at_ms is None else time_of(expires_at_ms),
                event.description, event.metadata, event.reference, details.get("controls", {}).get("count"),
            ))  # fmt: skip
    await connection.copy_records_to_table(
        "credit_reservations",
        records=rows,
        columns=[
            "reservation_id", "shard", "tenant_id", "amount", "committed", "status", "purpose", "created_at", "closed_at",
            "closed_seq", "expires_at", "description", "metadata", "transfer_id", "counted",
        ],
    )  # fmt: skip


async def _write_refunds(connection: asyncpg.Connection[Any], events: Sequence[Event]) -> None:
    spent = {event.transaction_id: event.amount for event in events if event.type in {"consume", "commit"}}
    refunded: dict[str, int] = defaultdict(int)
    for event in events:
        if event.type == "refund" and event.reference is not None:
            refunded[event.reference] += event.amount
    await connection.copy_records_to_table(
        "credit_refunds",
        records=[(key, spent.get(key, amount), amount) for key, amount in refunded.items()],
        columns=["transaction_id", "consumed", "refunded"],
    )


def at_text(event: Event) -> str:
    """Return the time of an event as a literal of SQL."""
    return datetime.fromtimestamp(event.at_ms / 1000, UTC).isoformat()
