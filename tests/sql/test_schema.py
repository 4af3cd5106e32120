"""What the schema itself forbids, whoever asks."""

from __future__ import annotations

import asyncpg
import pytest

MAX = 10**14 - 1
HASH = bytes(32)
Connection = asyncpg.Connection

ENTRY = """
INSERT INTO audit_entries (shard, seq, at, transaction_id, tenant_id, type, amount, balance, reserved, version,
                           entry, hash, prev_hash, signature, key_id)
VALUES (0, $1, now(), gen_random_uuid(), 't', 'topup', $2, $3, $4, 1, '\\x00', $5, $6, $7, 'k')
"""


async def insert(
    connection: Connection, seq: int = 0, amount: int = 1, balance: int = 1, reserved: int = 0, *hashes: bytes
) -> None:
    await connection.execute(ENTRY, seq, amount, balance, reserved, *(hashes or (HASH,) * 3))


@pytest.mark.parametrize("table", ["audit_entries", "audit_entries_now"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET amount = 2", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}", "ALTER TABLE {} ADD x int"]
)
async def test_the_server_cannot_change_the_chain(owner: Connection, table: str, statement: str) -> None:
    await insert(owner)
    partition = await owner.fetchval("SELECT tableoid::regclass::text FROM audit_entries LIMIT 1")
    await owner.execute("SET LOCAL ROLE shieldx_app")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await owner.execute(statement.format(partition if table == "audit_entries_now" else table))


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM ledger_shards", "UPDATE ledger SET shard_count = 9", "INSERT INTO ledger (origin, shard_count) VALUES ('x', 1)",
     "DELETE FROM credit_accounts", "TRUNCATE credit_accounts", "DELETE FROM credit_reservations", "DELETE FROM credit_refunds",
     "DELETE FROM credit_transfers", "CREATE TABLE mine (x int)", "UPDATE schema_migrations SET checksum = ''",
     "ALTER FUNCTION ensure_partitions OWNER TO shieldx_app"],
)  # fmt: skip
async def test_the_server_cannot_take_anything_away(server_role: Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await server_role.execute(statement)


async def test_the_server_can_append_and_make_partitions(server_role: Connection) -> None:
    await insert(server_role)

    assert await server_role.fetchval("SELECT ensure_partitions(now(), now(), 1)") == 0
    assert await server_role.fetchval("SELECT ensure_partitions(now(), now() + interval '3 years', 0)") > 0
    assert await server_role.fetchval("SELECT count(*) FROM audit_entries") == 1


async def test_the_append_function_is_not_for_everybody(owner: Connection) -> None:
    await owner.execute("CREATE ROLE stranger")
    await owner.execute("SET LOCAL ROLE stranger")

    for function in ("ledger_append", "audit_entries"):
        assert not await owner.fetchval(
            "SELECT coalesce(bool_or(has_function_privilege('stranger', oid, 'EXECUTE')), false) FROM pg_proc WHERE proname = $1",
            function,
        )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await owner.execute("SELECT * FROM credit_accounts")


@pytest.mark.parametrize(
    "values",
    [
        {"seq": -1},
        {"amount": -1},
        {"amount": MAX + 1},
        {"balance": -1},
        {"balance": MAX + 1},
        {"reserved": -1},
        {"balance": 1, "reserved": 2},
    ],
)
async def test_an_entry_with_impossible_numbers_is_refused(owner: Connection, values: dict[str, int]) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await insert(owner, **values)


@pytest.mark.parametrize("short", range(3))
async def test_an_entry_with_a_short_hash_is_refused(owner: Connection, short: int) -> None:
    hashes = [HASH, HASH, HASH]
    hashes[short] = HASH[1:]

    with pytest.raises(asyncpg.CheckViolationError):
        await insert(owner, 0, 1, 1, 0, *hashes)


async def test_a_seq_stands_once_at_one_time(owner: Connection) -> None:
    await insert(owner)

    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(owner)


@pytest.mark.parametrize(
    ("balance", "reserved", "incoming"), [(-1, 0, 0), (MAX + 1, 0, 0), (5, 6, 0), (5, -1, 0), (5, 0, -1)]
)
async def test_an_account_is_never_negative_nor_reserved_above_its_balance(
    owner: Connection, balance: int, reserved: int, incoming: int
) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await owner.execute(
            "INSERT INTO credit_accounts (tenant_id, shard, balance, reserved, incoming, version, created_at, updated_at) "
            "VALUES ('t', 0, $1, $2, $3, 1, now(), now())",
            balance, reserved, incoming,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("amount", "committed", "status"), [(0, 0, "held"), (5, 6, "committed"), (5, -1, "held"), (5, 0, "lost")]
)
async def test_a_reservation_holds_something_and_commits_no_more(
    owner: Connection, amount: int, committed: int, status: str
) -> None:
    identifier = await owner.fetchval("SELECT uuid7_floor(now())")

    with pytest.raises(asyncpg.CheckViolationError):
        await owner.execute(
            "INSERT INTO credit_reservations (reservation_id, shard, tenant_id, amount, committed, status, purpose, created_at) "
            "VALUES ($1, 0, 't', $2, $3, $4, 'spend', now())",
            identifier, amount, committed, status,
        )  # fmt: skip


@pytest.mark.parametrize(("consumed", "refunded"), [(0, 0), (5, 6), (5, -1)])
async def test_refunds_stay_within_what_was_consumed(owner: Connection, consumed: int, refunded: int) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await owner.execute(
            "INSERT INTO credit_refunds (transaction_id, consumed, refunded) VALUES (gen_random_uuid(), $1, $2)",
            consumed,
            refunded,
        )


async def test_there_is_one_ledger(owner: Connection) -> None:
    with pytest.raises(asyncpg.UniqueViolationError):
        await owner.execute("INSERT INTO ledger (origin, shard_count, idempotency_salt) VALUES ('x', 1, $1)", bytes(32))


@pytest.mark.parametrize(
    ("since", "until", "ahead"), [("now()", "now()", -1), ("now()", "now()", 41), ("'1900-01-01'::timestamptz", "now()", 0)]
)
async def test_a_range_of_partitions_is_bounded(owner: Connection, since: str, until: str, ahead: int) -> None:
    with pytest.raises(asyncpg.RaiseError):
        await owner.execute(f"SELECT ensure_partitions({since}, {until}, $1)", ahead)


@pytest.mark.parametrize(
    "at", ["2027-03-31 23:59:59.999+00", "2027-04-01 00:00:00+00", "2028-02-29 12:00:00+00", "2027-12-31 23:59:59.999+00"]
)
async def test_an_instant_has_a_partition_for_its_entry_and_its_reservation(owner: Connection, at: str) -> None:
    await owner.execute("SELECT ensure_partitions($1::text::timestamptz, $1::text::timestamptz, 0)", at)

    await owner.execute(ENTRY.replace("now()", "$8::text::timestamptz"), 0, 1, 1, 0, HASH, HASH, HASH, at)
    await owner.execute(
        "INSERT INTO credit_reservations (reservation_id, shard, tenant_id, amount, committed, status, purpose, created_at) "
        "VALUES (uuid7_floor($1::text::timestamptz), 0, 't', 1, 0, 'held', 'spend', now())",
        at,
    )

    names = await owner.fetchrow(
        "SELECT (SELECT tableoid::regclass::text FROM audit_entries), (SELECT tableoid::regclass::text FROM credit_reservations)"
    )
    assert names is not None
    assert names[0][-6:] == names[1][-6:]
