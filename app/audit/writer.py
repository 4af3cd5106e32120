"""The writer of a shard: appends events to the chain in Postgres, in the order that Redis gave them.

It is an actor: what the ledger applied while one transaction commits becomes the next transaction. It writes only
while it holds a lease; without one it drops what it is handed, because the outbox in Redis keeps every event until
it is durable, and whoever leads next takes it from there.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from app.actor import Actor, Ask
from app.audit.entry import RowSeal, entry_bytes, entry_hash
from app.db.keys import shard_keys
from app.db.postgres import cut_off
from app.db.retry import TRANSIENT
from app.metrics import BATCH_BUCKETS, STORE_BUCKETS_S, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.audit.entry import Event
    from app.audit.shard import Shard
    from app.db.redis import RedisLink

COMMIT_EVENTS_MAX: Final = 1_024  # per transaction: about 12 ms of hashing, so the event loop stays responsive
INBOX_EVENTS_MAX: Final = 100_000  # the ledger stops long before, at its own bound on what is not durable
OUTBOX_READ_MAX: Final = 16  # items of up to 129 events per XRANGE: at most a few hundred KiB of answer
BEAT_INTERVAL_S: Final = 1.0  # an idle writer proves this often that it lives
APPEND: Final = "SELECT ledger_append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"
APPEND_FOLDED: Final = APPEND.replace("ledger_append(", "ledger_append_folded(").replace("$18)", "$18, $19)")
POSTGRES_ANSWER_TIMEOUT_S: Final = 5.0  # a commit takes about 3 ms; beyond this the connection is taken for dead


class Fenced(Exception):
    """Another writer has taken the shard, or the head is not where this one left it."""


class RedisForgot(Exception):
    """The Redis that answers is not the one that applied what Postgres has."""


class Handover(Ask[None]):
    """Events that the ledger has just applied: all from `first` to `last`, or fewer when the outbox has the rest."""

    __slots__ = ("events", "first", "generation", "last", "weight")

    def __init__(self, generation: int, first: int, last: int, events: Sequence[Event]) -> None:
        """An empty range (`last` < `first`) asks the writer to look at the outbox."""
        super().__init__()
        self.generation = generation
        self.first = first
        self.last = last
        self.events = events
        self.weight = max(1, len(events))


class Lease(NamedTuple):
    """The right to write a shard: a session that holds its advisory lock, and the epoch that fences older ones."""

    connection: asyncpg.Connection[Any]
    epoch: int
    lost: asyncio.Future[str]


class Writer(Actor[Handover]):
    """Owns the head of one chain: its seq and hash."""

    def __init__(
        self,
        shard: Shard,
        seal: RowSeal,
        folds_of: Callable[[Sequence[Event]], bytes | None],
        link: RedisLink,
        decode: Callable[[int, bytes, bytes], Event],
    ) -> None:
        """`link` is the writer's own.

        folds_of  the JSON that `ledger_append_folded` takes of events, or None when balances are all that changed
        decode    makes an event of an outbox item: generation, op, result
        """
        super().__init__(
            inbox_max=INBOX_EVENTS_MAX, batch_max=COMMIT_EVENTS_MAX, ask_timeout_s=60, name=f"writer s{shard.number:02d}"
        )
        self._shard = shard
        self._seal = seal
        self._folds_of = folds_of
        self._link = link
        self._decode = decode
        self._lease: Lease | None = None
        self._head_seq = -1
        self._head_hash = b""
        self._ticked_seq = -1
        self._beat_s = 0.0
        self.commits = 0
        self.events_committed = 0
        self.batch_sizes: Final = Histogram(BATCH_BUCKETS)
        self.commit_times: Final = Histogram(STORE_BUCKETS_S)
        self.errors = 0  # commits and beats that Postgres did not answer, or refused

    @property
    def head_seq(self) -> int:
        """The last seq of the chain, -1 while it is empty."""
        return self._head_seq

    def stand_at(self, head_seq: int, head_hash: bytes) -> None:
        """Continue the chain after this entry."""
        self._head_seq, self._head_hash = head_seq, head_hash

    def lead(self, lease: Lease) -> None:
        """Start to write under this lease."""
        self._lease = lease
        self._beat_s = time.monotonic()

    def rest(self) -> None:
        """Write no more: the lease is gone."""
        self._lease = None

    async def disconnect(self) -> None:
        """Drop the connection to Redis, once nobody recovers the shard over it any more."""
        await self._link.close()

    def offer(self, generation: int, first: int, last: int, events: Sequence[Event]) -> None:
        """Take events over from the ledger, without an answer: durability is announced by the shard."""
        if self._lease is not None:
            self._tell(Handover(generation, first, last, events))

    def poke(self) -> None:
        """Ask for a look at the outbox: another replica has applied something."""
        if self._lease is not None and self.waiting == 0:
            self._tell(Handover(0, 0, -1, ()))

    def tick(self) -> None:
        """Look at the outbox, unless the chain has grown since the last tick and so is alive anyway."""
        if self._head_seq == self._ticked_seq:
            self.poke()
        self._ticked_seq = self._head_seq

    async def receive(self, batch: list[Handover]) -> None:
        """Append what is next in order; lose the lease at any doubt."""
        lease = self._lease
        if lease is None:
            return
        try:
            await self._append_batch(lease, batch)
        except (*TRANSIENT, Fenced, RedisForgot, asyncpg.PostgresError) as error:
            self._lease = None
            self.errors += not isinstance(error, Fenced | RedisForgot)
            if not lease.lost.done():
                lease.lost.set_result(f"{type(error).__name__}: {error}")

    async def _append_batch(self, lease: Lease, batch: list[Handover]) -> None:
        events: list[Event] = []
        expected = self._head_seq + 1
        look = False
        for handover in batch:
            complete = len(handover.events) == handover.last - handover.first + 1
            if handover.last < handover.first:
                look = True
            elif handover.generation != self._shard.generation or handover.last < expected:
                continue
            elif handover.first == expected and complete:
                events.extend(handover.events)
                expected = handover.last + 1
            else:
                look = True
        if events:
            await self.commit(lease, events)
        if look:
            await self.drain(lease, self._shard.generation)
        if time.monotonic() - self._beat_s > BEAT_INTERVAL_S:
            await self._beat(lease)

    async def drain(self, lease: Lease, generation: int) -> None:
        """Append everything that Redis has applied and Postgres lacks, from the outbox.

        Raises RedisForgot when the outbox does not continue the chain.
        """
        head_key, outbox, _ = shard_keys(self._shard.number)
        while True:
            known, seq = await self._link.command("HMGET", head_key, "generation", "seq")
            if known is None or int(known) != generation:
                raise RedisForgot(f"Redis is at generation {known}, Postgres at {generation}")
            if int(seq) < self._head_seq:
                raise RedisForgot(f"Redis ends at seq {int(seq)}, Postgres at {self._head_seq}")
            if int(seq) == self._head_seq:
                return
            items = await self._link.command(
                "XRANGE", outbox, f"({generation}-{self._head_seq}" if self._head_seq >= 0 else "-", "+",
                "COUNT", OUTBOX_READ_MAX,
            )  # fmt: skip
            await self.commit(lease, self._whole_events(items))

    def _whole_events(self, items: list[Any]) -> list[Event]:
        """Return the events of outbox items, without a transfer whose last legs are not among them."""
        events: list[Event] = []
        for identifier, words in items:
            generation, _, last = identifier.partition(b"-")
            if int(last) > self._head_seq:
                pairs = zip(words[::2], words[1::2], strict=True)
                events.extend(self._decode(int(generation), op, result) for op, result in pairs)
        events = [event for event in events if event.seq > self._head_seq]
        while events and events[-1].type == "transfer" and events[-1].details is not None:
            leg, legs = (int(part.rpartition(":")[2].rstrip("}")) for part in events[-1].details.split(",")[-2:])
            if leg == legs:
                break
            del events[-leg:]
        if not events or events[0].seq != self._head_seq + 1:
            raise RedisForgot(f"the outbox lacks seq {self._head_seq + 1}")
        return events

    async def commit(self, lease: Lease, events: Sequence[Event]) -> None:
        """Append events that follow the head, with their projection, in one transaction.

        Raises Fenced when the chain is not where this writer left it, and whatever Postgres raises.
        """
        last = events[-1].seq
        if last - self._head_seq != len(events):
            raise Fenced(f"{len(events)} events do not lead from seq {self._head_seq} to {last}")
        prev_hash, sign = self._head_hash, self._seal.sign
        entries, hashes, signatures = [], [], []
        for event in events:
            entry = entry_bytes(event, prev_hash)
            prev_hash = entry_hash(entry)
            entries.append(entry)
            hashes.append(prev_hash)
            signatures.append(sign(prev_hash))
        rows = (
            _numbers([e.at_ms for e in events]), _words([e.transaction_id for e in events]),
            _words([e.tenant_id for e in events]), _words([e.type for e in events]),
            _numbers([e.amount for e in events]), _numbers([e.balance for e in events]),
            _numbers([e.reserved for e in events]), _numbers([e.version for e in events]),
            _numbers([len(entry) for entry in entries]), b"".join(entries), b"".join(hashes), b"".join(signatures),
        )  # fmt: skip
        started_s = time.monotonic()
        with cut_off(lease.connection, POSTGRES_ANSWER_TIMEOUT_S):
            await self._append(lease, events, rows)
        self._head_seq, self._head_hash = last, prev_hash
        self._beat_s = time.monotonic()
        self.commit_times.take(self._beat_s - started_s)
        self.batch_sizes.take(len(events))
        self.commits += 1
        self.events_committed += len(events)
        self._shard.advance(last)

    async def _append(self, lease: Lease, events: Sequence[Event], rows: Sequence[str | bytes]) -> None:
        """Append, and fold the events to whatever they change, in one statement and so in one round trip.

        Raises AssertionError when the chain closes a reservation that Postgres does not hold open.
        """
        note = f"{self._shard.generation}:{events[-1].seq}"
        fence = (self._shard.number, lease.epoch, self._head_seq, self._head_hash)
        values = (*fence, self._seal.key_id, note, *rows)
        folds = self._folds_of(events)
        if folds is None:
            await lease.connection.execute(APPEND, *values)
            return
        try:
            await lease.connection.execute(APPEND_FOLDED, *values, folds.decode())
        except asyncpg.AssertError as error:
            # Chain and folded rows disagree: the process must not go on, and no other attempt may be made.
            raise AssertionError(str(error)) from error

    async def _beat(self, lease: Lease) -> None:
        with cut_off(lease.connection, POSTGRES_ANSWER_TIMEOUT_S):
            status = await lease.connection.execute(
                f"UPDATE ledger_shards SET beat_at = now() "  # noqa: S608 - integers only
                f"WHERE shard = {self._shard.number} AND epoch = {lease.epoch}"
            )
        if status != "UPDATE 1":
            raise Fenced(f"shard {self._shard.number} has another writer")
        self._beat_s = time.monotonic()


def _numbers(values: Sequence[int]) -> str:
    """Return a PostgreSQL array literal of integers."""
    return f"{{{','.join(map(str, values))}}}"


def _words(values: Sequence[str]) -> str:
    """Return a PostgreSQL array literal of names and ids, which hold no quote and no backslash."""
    return '{"' + '","'.join(values) + '"}'
