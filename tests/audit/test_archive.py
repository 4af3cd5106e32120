"""Old quarters move to the archive and stay in the chain; rollups, summary and partitions are kept in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from app.audit.entry import Event
from app.clock import time_of
from app.credits.lifecycle import PARTITIONS_INTERVAL_S, Lifecycle
from app.credits.records import Records
from app.db.pool import Pool
from app.db.postgres import open_pool
from app.db.resources import resource_dir
from tests.audit.chain import Book, make_chain
from tests.audit.conftest import LedgerDatabase
from tests.audit.tamper import change

QUARTER_MS = 92 * 86_400_000
HOUR_MS = 3_600_000
DAYS = 100


class Clock:
    """Unix milliseconds that move only when a test says so."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def four_quarters(shard: int = 0) -> Book:
    """Operations of two tenants in four quarters in a row; all holds of the first three are closed."""
    book = Book(shard)
    names = [f"a{shard}", f"b{shard}"]
    for name in names:
        book.account(name)
        book.topup(name, 10_000)
    for quarter in range(4):
        for number in range(6):
            spent = book.consume(names[number % 2], 10 + number)
            book.commit(book.reserve(names[0], 30), 20)
            book.refund(spent, 3)
            book.at_ms += HOUR_MS
        book.transfer([(names[0], -5), (names[1], 5)])
        if quarter < 3:
            book.at_ms += QUARTER_MS
    book.reserve(names[0], 9)
    return book


@pytest.fixture
def events() -> list[Event]:
    return [*four_quarters(0).events, *four_quarters(1).events]


@pytest.fixture
def clock(events: list[Event]) -> Clock:
    return Clock(events[-1].at_ms)


@pytest.fixture
async def pool(database: LedgerDatabase, events: list[Event]) -> AsyncIterator[Pool]:
    await make_chain(database.session, events, shard_count=2)
    pool = await open_pool(database.url, 4)
    yield pool
    pool.terminate()


@pytest.fixture
def lifecycle(pool: Pool, clock: Clock) -> Lifecycle:
    return Lifecycle(pool, (0, 1), clock, archive_after_days=DAYS)


async def archived(database: LedgerDatabase) -> list[str]:
    return [row[0] for row in await database.session.fetch("SELECT name FROM archived_partitions ORDER BY name")]


async def test_a_chain_whose_old_quarters_are_archived_is_intact(
    database: LedgerDatabase, lifecycle: Lifecycle, events: list[Event]
) -> None:
    before = await database.verify()

    count = await lifecycle.archive(DAYS)

    after = await database.verify(range_entries=7)
    hot = await database.session.fetchval("SELECT count(*) FROM audit_entries")
    assert before.ok
    assert after.ok, after.first_bad
    assert [shard.entries for shard in after.shards] == [shard.entries for shard in before.shards] == [len(events) // 2] * 2
    assert (after.trial_balance, after.signatures_unchecked, after.accounts) == (0, 0, 4)
    assert count + hot == len(events)
    assert 0 < hot < len(events) / 2
    assert await archived(database) == [
        "audit_entries_2025q4", "audit_entries_2026q1", "credit_reservations_2025q4", "credit_reservations_2026q1",
    ]  # fmt: skip


async def test_the_tree_keeps_the_leaf_hashes_of_what_is_archived(database: LedgerDatabase, lifecycle: Lifecycle) -> None:
    leaves = "SELECT shard, seq, hash FROM audit_entries UNION ALL SELECT shard, number, hash FROM audit_tree WHERE level = 0 ORDER BY 1, 2"
    before = await database.session.fetch(leaves)

    await lifecycle.archive(DAYS)

    assert await database.session.fetch(leaves) == before


async def test_an_archived_chain_is_proved_by_several_processes(database: LedgerDatabase, lifecycle: Lifecycle) -> None:
    await lifecycle.archive(DAYS)

    report = await database.verify(processes=2, range_entries=20)

    assert report.ok, report.first_bad


async def test_the_archive_says_where_each_shard_ends_in_it(database: LedgerDatabase, lifecycle: Lifecycle) -> None:
    await lifecycle.archive(DAYS)

    wrong = await database.session.fetch(
        "SELECT p.name FROM archived_partitions p, jsonb_each(p.ends) AS e (shard, place) WHERE NOT EXISTS "
        "(SELECT FROM audit_chain c WHERE c.shard = e.shard::int AND c.seq = (e.place->>'seq')::bigint "
        "AND encode(c.hash, 'hex') = e.place->>'hash')"
    )
    first_hot = await database.session.fetch(
        "SELECT DISTINCT ON (shard) shard, prev_hash FROM audit_entries ORDER BY shard, seq"
    )
    ends = await database.session.fetchval("SELECT ends FROM archived_partitions WHERE name = 'audit_entries_2026q1'")

    assert wrong == []
    assert all(row["prev_hash"].hex() in ends for row in first_hot)
    assert len(first_hot) == 2


@pytest.mark.parametrize(
    "statement",
    ["UPDATE ledger_archive.audit_entries_2025q4 SET amount = amount + 1 WHERE shard = 0 AND seq = 5",
     "DELETE FROM ledger_archive.audit_entries_2025q4 WHERE shard = 0 AND seq = 5",
     "UPDATE ledger_archive.audit_entries_2025q4 SET hash = sha256('x') WHERE shard = 0 AND seq = 5"],
)  # fmt: skip
async def test_a_change_in_the_archive_is_found(database: LedgerDatabase, lifecycle: Lifecycle, statement: str) -> None:
    await lifecycle.archive(DAYS)
    await change(database.session, statement)

    seq, _ = await database.first_bad()

    assert seq == 5


async def test_an_archive_that_lost_a_quarter_is_found(database: LedgerDatabase, lifecycle: Lifecycle) -> None:
    await lifecycle.archive(DAYS)
    await database.session.execute("TRUNCATE ledger_archive.audit_entries_2025q4")

    seq, reason = await database.first_bad()

    assert (seq, reason.startswith("the entry is missing")) == (0, True)


async def test_archiving_again_archives_nothing_and_later_the_next_quarter(
    database: LedgerDatabase, lifecycle: Lifecycle, clock: Clock
) -> None:
    await lifecycle.archive(DAYS)
    before = await archived(database)

    again = await lifecycle.archive(DAYS)
    clock.now_ms += QUARTER_MS
    later = await lifecycle.archive(DAYS)

    assert again == 0
    assert later > 0
    assert set(await archived(database)) - set(before) == {"audit_entries_2026q2", "credit_reservations_2026q2"}
    assert (await database.verify()).ok


async def test_the_quarter_of_a_head_and_of_an_open_hold_stays(
    database: LedgerDatabase, lifecycle: Lifecycle, clock: Clock
) -> None:
    clock.now_ms += 20 * QUARTER_MS

    await lifecycle.archive(2)

    heads = await database.session.fetchval(
        "SELECT count(*) FROM ledger_shards s JOIN audit_entries e ON e.shard = s.shard AND e.seq = s.head_seq"
    )
    held = await database.session.fetchval("SELECT count(*) FROM credit_reservations WHERE status = 'held'")
    assert (heads, held) == (2, 2)
    assert (await database.verify()).ok


@pytest.mark.parametrize("days", [None, -1, 0, 1, 36_601])
async def test_days_out_of_range_are_refused(pool: Pool, days: int | None) -> None:
    with pytest.raises(asyncpg.RaiseError, match="expected 2 to 36600 days"):
        await pool.rows(5.0, "SELECT cleanup_old_transactions($1)", (days,))


async def test_archiving_gives_way_to_those_who_use_the_table(
    database: LedgerDatabase, lifecycle: Lifecycle, pool: Pool
) -> None:
    async with pool.connection(5.0) as reader, reader.transaction():
        await reader.fetchval("SELECT count(*) FROM audit_entries")

        archived_now = await lifecycle.archive(DAYS)

    assert archived_now == 0
    assert await archived(database) == []
    assert await lifecycle.archive(DAYS) > 0


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO ledger_archive.audit_entries_2025q4 SELECT * FROM audit_entries LIMIT 1",
     "DELETE FROM ledger_archive.audit_entries_2025q4", "UPDATE audit_chain SET amount = 1", "DELETE FROM archived_partitions",
     "CREATE TABLE ledger_archive.mine (x int)", "SELECT make_audit_chain()"],
)  # fmt: skip
async def test_the_server_cannot_change_the_archive(lifecycle: Lifecycle, pool: Pool, statement: str) -> None:
    await lifecycle.archive(DAYS)

    with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.ObjectNotInPrerequisiteStateError)):
        await pool.rows(5.0, statement, ())


async def test_taking_the_migration_back_puts_archived_quarters_back(database: LedgerDatabase, lifecycle: Lifecycle) -> None:
    await lifecycle.archive(DAYS)
    migrations = resource_dir("sql") / "migrations"

    for name in ("0015_usage.down", "0007_lifecycle.down", "0007_lifecycle.up", "0015_usage.up"):
        await database.session.execute((migrations / f"{name}.sql").read_text())

    assert await archived(database) == []
    assert (await database.verify()).ok


async def test_an_account_below_zero_is_found(database: LedgerDatabase, lifecycle: Lifecycle) -> None:
    await lifecycle.count_negatives()
    before = lifecycle.negative_balances
    await database.session.execute("ALTER TABLE credit_accounts DROP CONSTRAINT credit_accounts_balance_check")
    await database.session.execute("ALTER TABLE credit_accounts DROP CONSTRAINT credit_accounts_check")
    await database.session.execute(
        "UPDATE credit_accounts SET balance = -1 WHERE tenant_id = (SELECT min(tenant_id) FROM credit_accounts)"
    )

    await lifecycle.count_negatives()

    assert (before, lifecycle.negative_balances) == (0, 1)


SUMS = (
    "SELECT tenant_id, date_trunc('{0}', at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS start, type, sum(amount) AS amount, count(*) "
    "FROM audit_chain WHERE type IN ('topup', 'consume', 'commit', 'refund') GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
)


async def test_rollups_hold_every_entry_once_however_often_and_whoever_rolls(
    database: LedgerDatabase, lifecycle: Lifecycle, pool: Pool, clock: Clock, events: list[Event]
) -> None:
    other = Lifecycle(pool, (0, 1), clock)

    added = await asyncio.gather(*(one.roll_usage(batch=7) for one in (lifecycle, other, lifecycle, other)))
    again = await lifecycle.roll_usage()

    assert sum(added) == len(events)
    assert again == 0
    for name, table in (("hour", "usage_hourly"), ("day", "usage_daily")):
        rolled = await database.session.fetch(f"SELECT * FROM {table} ORDER BY tenant_id, start, type")
        assert [tuple(row) for row in rolled] == [tuple(row) for row in await database.session.fetch(SUMS.format(name))]


async def test_rollups_go_on_over_archived_quarters(
    database: LedgerDatabase, lifecycle: Lifecycle, events: list[Event]
) -> None:
    await lifecycle.archive(DAYS)

    assert await lifecycle.roll_usage() == len(events)


@pytest.mark.parametrize("granularity", ["hour", "day"])
async def test_usage_is_the_same_before_between_and_after_the_rollups(
    lifecycle: Lifecycle, pool: Pool, granularity: str
) -> None:
    since, until = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 9, 1, tzinfo=UTC)

    before = await Records(pool).usage("a0", since, until, granularity)
    await pool.rows(5.0, "SELECT roll_usage(0::smallint, 50)", ())
    between = await Records(pool).usage("a0", since, until, granularity)
    await lifecycle.roll_usage()
    after = await Records(pool).usage("a0", since, until, granularity)

    assert before == between == after
    assert {row["type"] for row in before} == {"consume", "commit", "refund"}
    assert sum(row["count"] for row in before if row["type"] == "commit") == 12


async def test_a_bucket_is_whole_though_the_end_lies_in_it(lifecycle: Lifecycle, pool: Pool, events: list[Event]) -> None:
    middle_ms = next(event.at_ms for event in events if event.tenant_id == "a0" and event.type == "consume")
    day_ms = 24 * 3_600_000
    start_ms = middle_ms - middle_ms % day_ms
    since, middle, end = (time_of(at_ms) for at_ms in (start_ms, middle_ms + 1, start_ms + day_ms))

    whole = await Records(pool).usage("a0", since, end, "day")
    before = await Records(pool).usage("a0", since, middle, "day")
    await lifecycle.roll_usage()
    after = await Records(pool).usage("a0", since, middle, "day")

    assert before == after == whole
    assert len(whole) > 0


async def test_the_summary_is_refreshed_by_one_replica_every_five_minutes(
    database: LedgerDatabase, lifecycle: Lifecycle, pool: Pool, clock: Clock
) -> None:
    other = Lifecycle(pool, (0, 1), clock)
    await lifecycle.roll_usage()

    first = await asyncio.gather(lifecycle.refresh_summary(), other.refresh_summary())
    clock.now_ms += 299_000
    early = await asyncio.gather(lifecycle.refresh_summary(), other.refresh_summary())
    clock.now_ms += 1_000
    due = await asyncio.gather(lifecycle.refresh_summary(), other.refresh_summary())

    assert (sorted(first), sorted(early), sorted(due)) == ([False, True], [False, False], [False, True])
    rows = await pool.rows(5.0, "SELECT * FROM credit_balances_summary ORDER BY tenant_id", ())
    accounts = await pool.rows(5.0, "SELECT tenant_id, balance, reserved FROM credit_accounts ORDER BY tenant_id", ())
    assert [(row["tenant_id"], row["balance"], row["reserved"]) for row in rows] == [tuple(row) for row in accounts]
    assert all(row["available"] == row["balance"] - row["reserved"] for row in rows)


async def test_a_refresh_gives_way_to_a_long_reader_of_the_summary(database: LedgerDatabase, lifecycle: Lifecycle) -> None:
    async with database.session.transaction():
        await database.session.fetch("SELECT * FROM credit_balances_summary")
        while_read = await lifecycle.refresh_summary()

    assert not while_read
    assert await lifecycle.refresh_summary()


async def test_missing_and_strange_partitions_are_named(database: LedgerDatabase, lifecycle: Lifecycle) -> None:
    sound = await lifecycle.check_partitions()
    await database.session.execute(
        "ALTER TABLE audit_entries DETACH PARTITION audit_entries_2026q2; DROP TABLE credit_reservations_2026q1;"
        "CREATE TABLE odd PARTITION OF audit_entries FOR VALUES FROM ('2100-01-01') TO ('2100-02-01')"
    )

    faults = await database.session.fetch("SELECT partition_faults(now(), 0)")

    assert sound == []
    assert {
        "audit_entries has no partition audit_entries_2026q2", "credit_reservations has no partition credit_reservations_2026q1",
        "odd is no partition of a quarter of audit_entries",
    } <= {row[0] for row in faults}  # fmt: skip


async def test_partitions_are_made_ahead_of_the_clock(database: LedgerDatabase, lifecycle: Lifecycle, clock: Clock) -> None:
    clock.now_ms += 4 * QUARTER_MS

    await lifecycle.check_partitions()

    ahead = time_of(clock.now_ms) + timedelta(days=180)
    name = f"audit_entries_{ahead.year}q{(ahead.month + 2) // 3}"
    assert await database.session.fetchval("SELECT to_regclass($1) IS NOT NULL", name)


async def test_a_round_runs_what_is_due_and_only_that(database: LedgerDatabase, lifecycle: Lifecycle, clock: Clock) -> None:
    await lifecycle.round()
    await database.session.execute("DELETE FROM usage_marks; DELETE FROM usage_hourly")

    await lifecycle.round()
    idle = await database.session.fetchval("SELECT count(*) FROM usage_hourly")
    clock.now_ms += PARTITIONS_INTERVAL_S * 1000
    await lifecycle.round()

    assert idle == 0
    assert await database.session.fetchval("SELECT count(*) FROM usage_hourly") > 0
    assert await archived(database) != []


async def test_a_read_of_the_whole_chain_uses_its_indexes(database: LedgerDatabase, lifecycle: Lifecycle) -> None:
    await lifecycle.archive(DAYS)
    await database.session.execute("SET enable_sort = off; SET enable_seqscan = off; SET enable_bitmapscan = off")

    plan = await database.session.fetch(
        "EXPLAIN SELECT seq, entry FROM audit_chain WHERE shard = 0 AND seq >= 3 AND seq < 60 ORDER BY seq"
    )

    text = "\n".join(row[0] for row in plan)
    assert "Merge Append" in text
    assert "Sort Key" in text
    assert "Seq Scan" not in text
    assert "->  Sort" not in text
