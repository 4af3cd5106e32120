"""What stands in the archive, and what is said of it, is verified like the rest: moved, swapped, lost or forged quarters."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from app.audit.archive_check import quarter_of
from app.audit.checkpoint import Checkpoint
from app.audit.increment import verify_since
from app.audit.trust import Trust
from app.clock import time_of
from tests.audit.chain import SEAL, make_chain
from tests.audit.conftest import LedgerDatabase
from tests.audit.log_house import LOG_ORIGIN, LogHouse
from tests.audit.naive_tree import root_of
from tests.audit.test_archive import four_quarters

DAYS = 100
FIRST, SECOND = "ledger_archive.audit_entries_2025q4", "ledger_archive.audit_entries_2026q1"
SWAPPED = (
    f"ALTER TABLE {FIRST} RENAME TO apart; ALTER TABLE {SECOND} RENAME TO audit_entries_2025q4; "
    "ALTER TABLE ledger_archive.apart RENAME TO audit_entries_2026q1; SELECT make_audit_chain()"
)
WAITS_FOR_REFUNDS = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'credit_refunds'::regclass AND NOT granted)"
ENDS = '{"0":{"seq":29,'


@pytest.fixture
async def archive(database: LedgerDatabase) -> LedgerDatabase:
    """A ledger of two shards in four quarters, of which two are archived."""
    events = [*four_quarters(0).events, *four_quarters(1).events]
    await make_chain(database.session, events, shard_count=2)
    at = await database.session.fetchval("SELECT max(at) FROM audit_entries")
    await database.session.execute("SELECT cleanup_old_transactions($1, $2)", DAYS, at)
    return database


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (SWAPPED,
         "archived_partitions has audit_entries_2025q4 with an entry of shard 0 of"),
        (f"INSERT INTO {SECOND} SELECT * FROM {FIRST} WHERE shard = 0; DELETE FROM {FIRST} WHERE shard = 0",
         "archived_partitions has audit_entries_2025q4 with other ends than its table has"),
        ("UPDATE archived_partitions SET ends = jsonb_set(ends, '{0,seq}', '3') WHERE name = 'audit_entries_2025q4'",
         f"archived_partitions has audit_entries_2025q4 with other ends than its table has: {ENDS}"),
        ("UPDATE archived_partitions SET entries = entries + 1 WHERE name = 'audit_entries_2025q4'",
         "archived_partitions has audit_entries_2025q4 with 61 entries, its table has 60"),
        ("UPDATE archived_partitions SET bounds = replace(bounds, '2025', '2024') WHERE name = 'audit_entries_2025q4'",
         "archived_partitions has audit_entries_2025q4 with the bounds of another time"),
        ("UPDATE archived_partitions SET bounds = replace(bounds, '019', '018') WHERE name = 'credit_reservations_2026q1'",
         "archived_partitions has credit_reservations_2026q1 with the bounds of another time"),
        ("DROP TABLE ledger_archive.credit_reservations_2026q1",
         "archived_partitions has credit_reservations_2026q1 whose table is not in the archive"),
        ("DELETE FROM ledger_archive.credit_reservations_2025q4 WHERE shard = 1",
         "archived_partitions has credit_reservations_2025q4 with 12 reservations, its table has 6"),
        ("UPDATE archived_partitions SET name = 'more' WHERE name = 'credit_reservations_2025q4'",
         "archived_partitions has more which is no partition of a quarter"),
        ("INSERT INTO audit_tree VALUES (7, 0, 0, sha256('x'))", "audit_tree has shard 7, the ledger has 2 shards"),
    ],
)  # fmt: skip
async def test_an_archive_that_is_not_as_it_was_made_is_found(archive: LedgerDatabase, statements: str, reason: str) -> None:
    await archive.session.execute(statements)

    report = await archive.verify()

    assert not report.ok
    assert report.first_bad is not None
    assert report.first_bad.reason.startswith(reason)


@pytest.mark.parametrize(
    ("statement", "seq", "reason"),
    [
        ("UPDATE audit_tree SET hash = sha256('x') WHERE shard = 0 AND level = 0 AND number = 40", 40,
         "hash 40 of level 0 of the stored tree is missing or not that of its entry"),
        ("DELETE FROM audit_tree WHERE shard = 0 AND level = 0 AND number = 40", 40,
         "hash 40 of level 0 of the stored tree is missing or not that of its entry"),
        ("INSERT INTO audit_tree SELECT shard, 0, seq, hash FROM audit_entries WHERE shard = 0 AND seq = 80", 80,
         "hash 80 of level 0 of the stored tree is of an entry that is not archived"),
        ("INSERT INTO audit_tree VALUES (0, 0, 3000, sha256('x'))", None,
         "hash 3000 of level 0 of the stored tree is of no entries that were signed"),
        ("INSERT INTO audit_tree VALUES (0, 2, 1, sha256('x'))", None,
         "hash 1 of level 2 of the stored tree is of no entries that were signed"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("range_entries", [7, 50_000])
async def test_a_forged_hash_of_an_archived_entry_is_found(
    archive: LedgerDatabase, statement: str, seq: int | None, reason: str, range_entries: int
) -> None:
    await archive.session.execute(statement)

    report = await archive.verify(range_entries=range_entries)

    bad = report.shards[0].first_bad
    assert bad is not None
    assert (bad.seq, bad.reason) == (seq, reason)


async def test_an_archived_ledger_is_verified_by_the_role_of_the_server(archive: LedgerDatabase) -> None:
    await archive.session.execute("SET ROLE shieldx_app")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await archive.session.execute(f"UPDATE {FIRST} SET amount = 0")
    read = await archive.session.fetchval("SELECT count(*) FROM ledger_archive.credit_reservations_2025q4")

    assert read == 12


async def test_entries_that_were_archived_after_a_trusted_checkpoint_are_verified_from_it(house: LogHouse) -> None:
    """A reservation is open at the checkpoint; its end, and more, went to the archive with it since then."""
    events = four_quarters().events
    await house.write(events)
    house.shard.durable = len(events) - 1
    await house.signer().round()
    size = next(event.seq for event in events if event.type == "commit")
    await house.database.session.execute("SELECT cleanup_old_transactions($1, $2)", DAYS, time_of(events[-1].at_ms))
    trusted = Checkpoint(LOG_ORIGIN, size, root_of(house.leaves[:size]))

    report = await verify_since(
        house.database.url,
        seals={SEAL.key_id: SEAL},
        progress=lambda *_: None,
        trust=Trust(checkpoints={LOG_ORIGIN: trusted}),
    )

    assert await house.database.session.fetchval("SELECT count(*) FROM ledger_archive.credit_reservations_2025q4") > 0
    assert (report.ok, report.first_bad) == (True, None)
    assert report.shards[0].entries == len(events) - size


async def test_nothing_is_archived_between_the_snapshot_of_a_verification_and_its_first_read(
    database: LedgerDatabase,
) -> None:
    events = four_quarters().events
    await make_chain(database.session, events)
    await database.session.execute("ALTER FUNCTION cleanup_old_transactions SET lock_timeout = '100ms'")
    cleanup = "SELECT cleanup_old_transactions($1, $2)"
    at = time_of(events[-1].at_ms)
    holder = await asyncpg.connect(database.url)
    async with holder.transaction():
        await holder.execute("LOCK TABLE credit_refunds IN ACCESS EXCLUSIVE MODE")
        verification = asyncio.create_task(database.verify())
        async with asyncio.timeout(10):
            while not await database.session.fetchval(WAITS_FOR_REFUNDS):
                await asyncio.sleep(0.01)

        with pytest.raises(asyncpg.LockNotAvailableError):
            await database.session.execute(cleanup, DAYS, at)
    await holder.close()
    report = await verification

    assert (report.ok, report.first_bad) == (True, None)
    assert await database.session.fetchval(cleanup, DAYS, at) > 0
    assert (await database.verify()).ok


def test_the_name_of_a_partition_states_its_quarter() -> None:
    last = quarter_of("audit_entries_2025q4")

    assert last is not None
    assert last.says("FOR VALUES FROM ('2025-10-01 00:00:00+00') TO ('2026-01-01 00:00:00+00')")
    assert last.says("FOR VALUES FROM ('2025-10-01 02:00:00+02') TO ('2026-01-01 02:00:00+02')")
    assert not last.says("FOR VALUES FROM ('2025-10-01 00:00:00') TO ('2026-01-01 00:00:00')")
    assert not last.says("DEFAULT")
    assert quarter_of("audit_entries_2025q5") is None
    assert quarter_of("audit_entries_0000q1") is None
