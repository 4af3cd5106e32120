"""The writer of a shard on a real Postgres: what stands in the tables, and when it must not write."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import asyncpg
import pytest
import redis as sync_redis

from app.audit.entry import Event, entry_bytes, entry_hash, genesis_hash
from app.audit.shard import Shard
from app.audit.writer import Fenced, Lease, RedisForgot, Writer
from app.clock import now_ms, time_of
from app.credits.operation import events_of_item
from app.credits.projection import folds_of
from app.db.keys import shard_keys
from app.db.postgres import open_session
from app.db.redis import RedisLink
from app.db.topology import make_topology
from tests.audit.chain import ORIGIN, SEAL, STARTED_MS, Book, mixed_events
from tests.audit.conftest import LedgerDatabase
from tests.credits.ledger_house import house_of
from tests.lua.script_shard import GENERATION, MASK, NUMBER, ScriptShard

EPOCH = 5
GENESIS = genesis_hash(f"{ORIGIN}/s{NUMBER:02d}")


class Desk(NamedTuple):
    """A writer that leads shard NUMBER, its session, and a view of what it tells."""

    writer: Writer
    lease: Lease
    shard: Shard
    database: LedgerDatabase
    scripts: ScriptShard

    async def entries(self) -> list[asyncpg.Record]:
        """Return the rows of the chain in order."""
        return await self.database.session.fetch("SELECT * FROM audit_entries WHERE shard = $1 ORDER BY seq", NUMBER)

    async def head(self) -> tuple[int, bytes]:
        """Return seq and hash of the chain's head."""
        row = await self.database.session.fetchrow("SELECT head_seq, head_hash FROM ledger_shards WHERE shard = $1", NUMBER)
        assert row is not None
        return row[0], row[1]


@pytest.fixture(scope="session")
def redis_url(pytestconfig: pytest.Config) -> str:
    return house_of(pytestconfig).redis.url.replace("db=0", "db=14")


@pytest.fixture
async def desk(database: LedgerDatabase, redis_url: str) -> AsyncIterator[Desk]:
    session = database.session
    await session.execute("SELECT ensure_partitions($1, now(), 1)", time_of(STARTED_MS))
    await session.execute(
        "INSERT INTO ledger (origin, shard_count, idempotency_salt) VALUES ($1, $2, $3)", ORIGIN, NUMBER + 1, bytes(32)
    )
    for number in range(NUMBER + 1):
        await session.execute(
            "INSERT INTO ledger_shards (shard, epoch, generation, head_hash) VALUES ($1, $2, $3, $4)",
            number, EPOCH, GENERATION, genesis_hash(f"{ORIGIN}/s{number:02d}"),
        )  # fmt: skip
    shard = Shard(NUMBER, ORIGIN)
    shard.learn(GENERATION, "run", -1)
    link = RedisLink(make_topology(redis_url), "{t}:")
    await link.open()
    decode = functools.partial(_decode, NUMBER)
    writer = Writer(shard, SEAL, folds_of, link, decode)
    writer.stand_at(-1, GENESIS)
    connection = await open_session(database.url)
    lease = Lease(connection, EPOCH, asyncio.get_running_loop().create_future())
    writer.lead(lease)
    writer.start(_raise)
    with sync_redis.Redis.from_url(redis_url) as scripts:
        yield Desk(writer, lease, shard, database, ScriptShard(scripts))
    await writer.stop()
    await link.close()
    await connection.close()


def _decode(number: int, generation: int, op: bytes, result: bytes) -> Any:
    return events_of_item(number, generation, MASK, op, result)


def _raise(error: BaseException) -> None:
    raise error


def in_shard(events: Sequence[Event]) -> list[Event]:
    """Return events as those of shard NUMBER and its generation."""
    for event in events:
        event.shard, event.generation = NUMBER, GENERATION
    return list(events)


def few() -> list[Event]:
    """Return five plain events with texts that need care."""
    book = Book()
    book.account("t1").details = f'{{"created_at_ms":{now_ms()},"settings":{{}}}}'
    book.topup("t1", 10**14 - 1, description="tab\t quote\" back\\slash {brace} NULL '' 😀")
    book.consume("t1", 1, metadata='{"a":"\\u0001\\\\"}')
    book.consume("t1", 2, description="")
    book.consume("t1", 3)
    return in_shard(book.events)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.002)


async def test_every_column_holds_what_the_event_says(desk: Desk) -> None:
    events = few()

    await desk.writer.commit(desk.lease, events)

    rows = await desk.entries()
    previous = GENESIS
    for event, row in zip(events, rows, strict=True):
        entry = entry_bytes(event, previous)
        assert dict(row) == {
            "shard": NUMBER, "seq": event.seq, "at": row["at"], "transaction_id": row["transaction_id"], "tenant_id": event.tenant_id,
            "type": event.type, "amount": event.amount, "balance": event.balance, "reserved": event.reserved,
            "version": event.version, "entry": entry, "hash": hashlib.sha256(b"\x00" + entry).digest(), "prev_hash": previous,
            "signature": SEAL.sign(row["hash"]), "key_id": SEAL.key_id,
        }  # fmt: skip
        assert round(row["at"].timestamp() * 1000) == event.at_ms
        assert str(row["transaction_id"]) == event.transaction_id
        previous = row["hash"]
    assert await desk.head() == (4, previous)


async def test_several_commits_are_one_chain(desk: Desk) -> None:
    events = few()

    for event in events:
        await desk.writer.commit(desk.lease, [event])

    rows = await desk.entries()
    assert [row["prev_hash"] for row in rows] == [GENESIS, *(row["hash"] for row in rows[:-1])]
    assert (desk.shard.durable, desk.writer.head_seq, desk.writer.commits) == (4, 4, 5)


async def test_accounts_are_folded_by_the_last_event_of_each(desk: Desk) -> None:
    book = Book()
    for tenant in ("b", "a"):
        book.account(tenant).details = f'{{"created_at_ms":{now_ms()},"settings":{{"quota":"1"}}}}'
        book.topup(tenant, 10)
    book.consume("a", 3)
    book.consume("b", 4)
    book.consume("a", 1)

    await desk.writer.commit(desk.lease, in_shard(book.events))

    rows = await desk.database.session.fetch(
        "SELECT tenant_id, balance, version, shard, settings FROM credit_accounts ORDER BY 1"
    )
    assert [tuple(row) for row in rows] == [("a", 6, 4, NUMBER, '{"quota": "1"}'), ("b", 6, 3, NUMBER, '{"quota": "1"}')]


async def test_a_note_tells_listeners_how_far_the_chain_is_durable(desk: Desk) -> None:
    heard: list[object] = []
    await desk.database.session.add_listener(f"shieldx_s{NUMBER:02d}", lambda *note: heard.append(note[-1]))

    await desk.writer.commit(desk.lease, few())

    await eventually(lambda: bool(heard))
    assert heard == [f"{GENERATION}:4"]


async def test_a_gap_is_never_written(desk: Desk) -> None:
    events = few()

    with pytest.raises(Fenced):
        await desk.writer.commit(desk.lease, events[1:])
    with pytest.raises(Fenced):
        await desk.writer.commit(desk.lease, [events[0], events[2]])
    assert await desk.entries() == []


async def test_a_writer_of_an_older_epoch_cannot_write(desk: Desk) -> None:
    await desk.database.session.execute("UPDATE ledger_shards SET epoch = epoch + 1 WHERE shard = $1", NUMBER)

    with pytest.raises(asyncpg.SerializationError):
        await desk.writer.commit(desk.lease, few())
    assert await desk.entries() == []
    assert await desk.head() == (-1, GENESIS)


async def test_a_commit_whose_answer_was_lost_is_not_written_twice(desk: Desk) -> None:
    events = few()
    await desk.writer.commit(desk.lease, events[:3])
    desk.writer.stand_at(-1, GENESIS)

    with pytest.raises(asyncpg.SerializationError):
        await desk.writer.commit(desk.lease, events[:3])
    assert len(await desk.entries()) == 3


async def test_a_writer_with_another_hash_cannot_go_on(desk: Desk) -> None:
    await desk.writer.commit(desk.lease, few()[:3])
    desk.writer.stand_at(2, bytes(32))

    with pytest.raises(asyncpg.SerializationError):
        await desk.writer.commit(desk.lease, few()[3:])
    assert len(await desk.entries()) == 3


async def test_a_violated_check_writes_nothing_of_its_batch(desk: Desk) -> None:
    events = few()
    events[3].balance = -1

    with pytest.raises(asyncpg.CheckViolationError):
        await desk.writer.commit(desk.lease, events)
    assert (await desk.entries(), await desk.head()) == ([], (-1, GENESIS))


async def test_a_reservation_that_ends_twice_writes_nothing_of_its_batch(desk: Desk) -> None:
    book = Book()
    book.account("t1").details = f'{{"created_at_ms":{now_ms()},"settings":{{}}}}'
    book.topup("t1", 10)
    hold = book.reserve("t1", 5)
    book.commit(hold, 5)
    book.release("abort", hold)
    events = in_shard(book.events)
    events[-1].reserved = 0

    with pytest.raises(AssertionError):
        await desk.writer.commit(desk.lease, events)
    assert await desk.entries() == []


async def test_what_the_ledger_hands_over_is_written_in_order(desk: Desk) -> None:
    events = few()

    desk.writer.offer(GENERATION, 0, 1, events[:2])
    desk.writer.offer(GENERATION, 2, 4, events[2:])

    await eventually(lambda: desk.shard.durable == 4)
    assert [row["seq"] for row in await desk.entries()] == [0, 1, 2, 3, 4]


async def test_an_offer_of_another_generation_or_of_the_past_is_left_alone(desk: Desk) -> None:
    events = few()
    desk.writer.offer(GENERATION, 0, 2, events[:3])
    await eventually(lambda: desk.shard.durable == 2)

    desk.writer.offer(GENERATION - 1, 3, 4, events[3:])
    desk.writer.offer(GENERATION, 0, 2, events[:3])
    desk.writer.offer(GENERATION, 3, 4, events[3:])

    await eventually(lambda: desk.shard.durable == 4)
    assert len(await desk.entries()) == 5
    assert not desk.lease.lost.done()


async def test_without_a_lease_nothing_is_written(desk: Desk) -> None:
    desk.writer.rest()

    desk.writer.offer(GENERATION, 0, 4, few())
    desk.writer.poke()
    await desk.writer.stop()

    assert await desk.entries() == []


async def test_any_doubt_loses_the_lease_and_says_why(desk: Desk) -> None:
    await desk.database.session.execute("UPDATE ledger_shards SET epoch = epoch + 1 WHERE shard = $1", NUMBER)

    desk.writer.offer(GENERATION, 0, 4, few())

    async with asyncio.timeout(5):
        assert "SerializationError" in await desk.lease.lost
    desk.writer.offer(GENERATION, 0, 4, few())
    assert desk.writer.waiting == 0


async def test_missing_events_are_taken_from_the_outbox(desk: Desk) -> None:
    tenant = desk.scripts.tenant(1000)
    desk.scripts.run(*(desk.scripts.stamped("consume", tenant=tenant, amount=1) for _ in range(500)))
    desk.scripts.do("consume", tenant=tenant, amount=7, desc="last 😀", meta='{"x":1}')

    desk.writer.poke()

    await eventually(lambda: desk.shard.durable == desk.scripts.seq)
    rows = await desk.entries()
    assert [row["seq"] for row in rows] == list(range(503))
    assert [row["balance"] for row in rows[1:]] == [*range(1000, 499, -1), 493]
    report = await desk.database.verify()
    assert report.ok, report.first_bad


async def test_a_transfer_is_written_whole_wherever_the_outbox_is_cut(desk: Desk) -> None:
    giver, taker = desk.scripts.tenant(10**6), desk.scripts.tenant()
    first = desk.scripts.seq + 1
    legs = [{"tenant_id": giver, "amount": -1}, {"tenant_id": taker, "amount": 1}] * 50
    for _ in range(10):
        desk.scripts.run(*(desk.scripts.stamped("transfer", legs=legs) for _ in range(3)))
    heads: list[int] = []

    def note(*words: object) -> None:
        heads.append(int(str(words[-1]).partition(":")[2]))

    await desk.database.session.add_listener(f"shieldx_s{NUMBER:02d}", note)

    await desk.writer.drain(desk.lease, GENERATION)

    await eventually(lambda: heads[-1:] == [desk.scripts.seq])
    assert len(heads) > 1
    assert {(head + 1 - first) % len(legs) for head in heads} == {0}
    report = await desk.database.verify()
    assert report.ok, report.first_bad


async def test_an_outbox_that_does_not_continue_the_chain_is_not_written(desk: Desk) -> None:
    tenant = desk.scripts.tenant(1000)
    desk.scripts.do("consume", tenant=tenant, amount=1)
    desk.scripts.redis.delete(shard_keys(NUMBER)[1])
    desk.scripts.do("consume", tenant=tenant, amount=1)

    with pytest.raises(RedisForgot, match="seq 0"):
        await desk.writer.drain(desk.lease, GENERATION)
    assert await desk.entries() == []


async def test_a_redis_of_another_generation_or_behind_is_not_read(desk: Desk) -> None:
    desk.scripts.tenant(1000)

    with pytest.raises(RedisForgot, match="generation"):
        await desk.writer.drain(desk.lease, GENERATION + 1)
    desk.writer.stand_at(9, GENESIS)
    with pytest.raises(RedisForgot, match="seq 1"):
        await desk.writer.drain(desk.lease, GENERATION)
    desk.scripts.redis.flushdb()
    with pytest.raises(RedisForgot):
        await desk.writer.drain(desk.lease, GENERATION)


async def test_every_kind_of_event_folds_to_what_the_verifier_finds(desk: Desk) -> None:
    events = in_shard([event for event in mixed_events(400, 6) if event.tenant_id])
    created_ms: dict[str, int] = {}
    for seq, event in enumerate(events):
        event.seq = seq
        if event.type in {"account", "update"}:
            at_ms = created_ms.setdefault(event.tenant_id, event.at_ms)
            event.details = f'{{"created_at_ms":{at_ms},"settings":{{}}}}'

    for start in range(0, len(events), 97):
        await desk.writer.commit(desk.lease, events[start : start + 97])

    report = await desk.database.verify()
    assert report.ok, report.first_bad
    assert report.shards[NUMBER].entries == len(events)


async def test_entry_hash_is_what_ledger_shards_keeps(desk: Desk) -> None:
    event = few()[0]

    await desk.writer.commit(desk.lease, [event])

    assert await desk.head() == (0, entry_hash(entry_bytes(event, GENESIS)))


async def test_a_reservation_that_ends_without_being_open_in_postgres_stops_the_writer(desk: Desk) -> None:
    book = Book()
    book.account("t1").details = f'{{"created_at_ms":{now_ms()},"settings":{{}}}}'
    book.topup("t1", 100)
    held = book.reserve("t1", 10)
    book.commit(held, 10)
    events = in_shard(book.events)
    await desk.writer.commit(desk.lease, events[:3])
    await desk.database.session.execute("UPDATE credit_reservations SET status = 'expired'")

    with pytest.raises(AssertionError, match="1 reservations ended in the chain, but 0 of them were open"):
        await desk.writer.commit(desk.lease, events[3:])

    assert (await desk.head())[0] == 2
