"""Restores: proved before they take the database's place, safe to repeat, and followed by Redis."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from app.audit.verify import verify_ledger
from app.backup.archive import with_database
from app.backup.create import create_backup
from app.backup.databases import Databases, database_of, open_databases
from app.backup.directory import Backup, BackupDirectory, BackupRefused
from app.backup.journal import Journal
from app.backup.rebuild import rebuild
from app.backup.restore import RestoreUnfinished, prove, restore
from app.db.postgres import open_pool
from app.db.topology import make_topology
from app.privacy.envelope import MasterKeys
from app.privacy.payment import Payment
from app.privacy.store import NoRecord, PrivateStore
from tests.audit.chain import SEAL
from tests.backup import migrator
from tests.guide import block
from tests.privacy.conftest import Facts
from tests.stores import PrivatePostgres

HEAD_KEY = "{s00}:shard"
NOTHING_BEFORE = ("read backup", "compare", "outrun")  # steps that come after one that changes nothing


async def databases_of(session: asyncpg.Connection[Any], url: str) -> list[str]:
    """Return the names of the database and of those that restores have put beside it."""
    name = url.partition("?")[0].rpartition("/")[2]
    rows = await session.fetch("SELECT datname FROM pg_database WHERE datname LIKE $1 || '%' ORDER BY 1", name)
    return [row["datname"] for row in rows]


async def lose_rows(url: str) -> None:
    """Do to a database what a person does who forgets a WHERE."""
    connection = await asyncpg.connect(url)
    await connection.execute("DELETE FROM credit_accounts; CREATE TABLE scribble (x int)")
    await connection.close()


async def balances(url: str) -> dict[str, int]:
    connection = await asyncpg.connect(url)
    try:
        return {row[0]: row[1] for row in await connection.fetch("SELECT tenant_id, balance FROM credit_accounts")}
    finally:
        await connection.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the Redis of the test."""
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


async def test_the_backup_takes_the_place_of_the_database_and_redis_follows(
    backup: Backup, backups: BackupDirectory, journal: Journal, ledger_url: str, redis_url: str, redis: Redis
) -> None:
    before = await balances(ledger_url)
    seq = backup.heads[0].seq
    # Given a Redis that knows of other times: a newer generation, three more entries, a larger signed tree.
    await redis.hset(HEAD_KEY, mapping={"generation": 7, "durable": seq + 3, "seq": seq + 3})
    await redis.hset("{s00}:checkpoint", mapping={"size": seq + 4, "root": "x"})
    await redis.set("{locator}:mine", "stays")
    connection = await asyncpg.connect(ledger_url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(
        f'ALTER DATABASE {name} SET search_path = "$user", public; REVOKE CONNECT ON DATABASE {name} FROM PUBLIC'
    )
    await connection.close()
    await lose_rows(ledger_url)
    topology = make_topology(redis_url)

    with pytest.raises(
        BackupRefused, match=rf"shard 0 ends at seq {seq + 3}, the backup at {seq}: 3 entries.*--accept-loss"
    ):
        await restore(ledger_url, backup, backups, journal, topology=topology, seal=SEAL)
    refused = await balances(ledger_url)
    done = await restore(ledger_url, backup, backups, journal, topology=topology, seal=SEAL, accept_loss=True)

    assert refused == {}
    assert await balances(ledger_url) == before != {}
    assert (await verify_ledger(ledger_url, seals={SEAL.key_id: SEAL}, progress=lambda *_: None)).ok
    head = await redis.hgetall(HEAD_KEY)
    assert (int(head["generation"]), int(head["seq"])) == (8, seq)
    tenant, balance = next(iter(before.items()))
    assert int(await redis.hget(f"{{s00}}:account:{tenant}", "balance")) == balance
    assert await redis.exists("{s00}:checkpoint") == 0
    assert await redis.get("{locator}:mine") == "stays"
    connection = await asyncpg.connect(ledger_url)
    assert await connection.fetchval("SHOW search_path") == '"$user", public'
    assert not await connection.fetchval("SELECT has_database_privilege('shieldx_app', current_database(), 'CONNECT')")
    assert await databases_of(connection, ledger_url) == [done.database, done.kept]
    await connection.close()
    await topology.close()


def role_made_by(guide: str, name: str) -> str:
    """Return the statement of the guide that makes the owner of the schema, under another name."""
    (statement,) = (line for line in guide.splitlines() if line.startswith("CREATE ROLE shieldx_owner "))
    return statement.replace("shieldx_owner", name)


async def test_the_owner_that_the_guide_makes_may_restore_and_one_that_is_no_member_is_refused(
    backup: Backup, backups: BackupDirectory, journal: Journal, postgres_server: PrivatePostgres, ledger_url: str,
    redis_url: str, session: asyncpg.Connection[Any],
) -> None:  # fmt: skip
    owner, stranger = f"owner_{secrets.token_hex(4)}", f"stranger_{secrets.token_hex(4)}"
    await session.execute(role_made_by(block("roles"), owner))
    await session.execute(f"CREATE ROLE {stranger} LOGIN CREATEDB")
    topology = make_topology(redis_url)

    with pytest.raises(BackupRefused, match=rf'GRANT shieldx_app TO "{stranger}", or add --no-redis'):
        await restore(
            postgres_server.url(stranger, stranger), backup, backups, journal, topology=topology, seal=SEAL, accept_loss=True
        )
    done = await restore(
        postgres_server.url(owner, owner), backup, backups, journal, topology=topology, seal=SEAL, accept_loss=True
    )

    assert done.entries == backup.heads[0].seq + 1
    assert await balances(postgres_server.url(owner, owner)) == await balances(ledger_url) != {}
    names = {row["datname"] for row in await session.fetch("SELECT datname FROM pg_database")}
    assert [name for name in names if name.startswith(stranger)] == []
    await topology.close()


async def test_a_shard_that_cannot_be_laid_ends_the_restore_and_says_why(
    ledger_url: str, redis_url: str, journal: Journal, session: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.backup.rebuild.FAILURES_MAX", 3)
    topology = make_topology(redis_url)
    await session.execute("REVOKE UPDATE ON ledger_shards FROM shieldx_app")

    with pytest.raises(BackupRefused, match=r"shard 0 was not laid into Redis, 3 tries long: InsufficientPrivilegeError"):
        await rebuild(ledger_url, topology, SEAL, journal)

    await topology.close()


async def test_a_restore_that_is_killed_before_any_step_is_finished_by_the_next(
    backup: Backup, backups: BackupDirectory, ledger_url: str, redis_url: str, redis: Redis, session: asyncpg.Connection[Any]
) -> None:
    before = await balances(ledger_url)
    await session.close()
    await lose_rows(ledger_url)
    steps = []
    words = (ledger_url, redis_url, backup.id)

    for step in migrator.kill_at_each_step(migrator.put_back, backups.path, *words, survived=NOTHING_BEFORE):
        steps.append(step)
        assert await balances(ledger_url) in ({}, before), f"killed before {step}"

    assert steps == ["make database", "load", "swap", "rebuild Redis", "verify"]
    assert await balances(ledger_url) == before
    assert int(await redis.hget(HEAD_KEY, "seq")) == backup.heads[0].seq
    connection = await asyncpg.connect(ledger_url)
    assert not [name for name in await databases_of(connection, ledger_url) if "_restore_" in name]
    await connection.close()


async def test_a_redis_that_goes_away_after_the_swap_is_told_apart_from_a_refusal(
    backup: Backup, backups: BackupDirectory, ledger_url: str, redis_url: str
) -> None:
    topology, dead = make_topology(redis_url), make_topology("unix:///nonexistent")

    def lose_redis(step: str) -> None:
        if step == "rebuild Redis":
            topology.pool = dead.pool  # type: ignore[method-assign]

    losing = Journal(backups.path, "test", quiet=True, on_step=lose_redis)
    with pytest.raises(RestoreUnfinished, match=r"Start no server.*run the same command again"):
        await restore(ledger_url, backup, backups, losing, topology=topology, seal=SEAL)


async def test_while_servers_run_nothing_is_restored(
    backup: Backup, backups: BackupDirectory, journal: Journal, ledger_url: str
) -> None:
    server = await asyncpg.connect(ledger_url, server_settings={"application_name": "shieldx"})

    with pytest.raises(BackupRefused, match=r"servers are running on .*stop all of them"):
        await restore(ledger_url, backup, backups, journal, topology=None, seal=SEAL)

    await server.close()


async def test_while_anybody_is_connected_the_swap_is_refused_and_names_them(
    backup: Backup, backups: BackupDirectory, journal: Journal, ledger_url: str
) -> None:
    person = await asyncpg.connect(ledger_url, server_settings={"application_name": "psql of a person"})

    async with open_databases(ledger_url) as databases:
        new = await databases.make(backup)
        with pytest.raises(BackupRefused, match="psql of a person"):
            await databases.swap(new)
        left = await databases.drop_unfinished()

    await person.close()
    assert left == [new]


async def test_a_database_that_is_not_what_was_backed_up_is_told_by_table(
    backup: Backup, journal: Journal, ledger_url: str
) -> None:
    lied = msgspec.structs.replace(backup, rows=backup.rows | {"public.credit_accounts": 77})

    with pytest.raises(BackupRefused, match=r"credit_accounts has \d+ rows, the backup 77"):
        await prove(ledger_url, lied, SEAL, journal)


async def test_a_tampered_chain_is_found_before_the_swap_and_leaves_no_database(
    backups: BackupDirectory, journal: Journal, ledger_url: str
) -> None:
    connection = await asyncpg.connect(ledger_url)
    await connection.execute("UPDATE audit_entries SET amount = amount + 1 WHERE seq = 3")
    await connection.close()
    tampered = await create_backup(ledger_url, backups, "manual", journal)

    with pytest.raises(BackupRefused, match=r"not intact: shard 0, seq 3"):
        await restore(ledger_url, tampered, backups, journal, topology=None, seal=SEAL)

    connection = await asyncpg.connect(ledger_url)
    assert len(await databases_of(connection, ledger_url)) == 1
    await connection.close()


async def test_a_database_that_is_gone_is_made_again(
    backup: Backup, backups: BackupDirectory, journal: Journal, ledger_url: str
) -> None:
    before = await balances(ledger_url)
    async with open_databases(ledger_url) as databases:
        await drop(databases)

    done = await restore(ledger_url, backup, backups, journal, topology=None, seal=SEAL)

    assert done.kept == ""
    assert await balances(ledger_url) == before


@asynccontextmanager
async def private_store(url: str) -> AsyncIterator[PrivateStore]:
    """Private records in a database, which nobody is connected to afterwards."""
    pool = await open_pool(url, 2)
    yield PrivateStore(pool, MasterKeys([bytes(range(32))]), Facts(), lambda: 1_795_000_000_000)
    pool.terminate()
    beside = await asyncpg.connect(with_database(url, "postgres"))
    deadline_s = time.monotonic() + 10
    while await beside.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", database_of(url)):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)
    await beside.close()


async def test_who_was_erased_after_the_backup_does_not_come_back(
    backups: BackupDirectory, journal: Journal, ledger_url: str
) -> None:
    async with private_store(ledger_url) as store:
        for subject in ("erased", "other"):
            await store.keep(f"record {subject}", subject, subject, Payment("4111111111111111", None, None))
        made = await create_backup(ledger_url, backups, "manual", journal)
        erasure = await store.erase("erased", request_id="q", basis="gdpr-17")
        assert erasure is not None
        await store.entered(erasure.erasure_id)

    await restore(ledger_url, made, backups, journal, topology=None, seal=SEAL)

    async with private_store(ledger_url) as store:
        with pytest.raises(NoRecord):
            await store.shown("record erased")
        assert (await store.shown("record other"))["card_number"] == "****-****-****-1111"
        assert await store.open_erasures() == [erasure]
        assert await store.erase("erased", request_id="q", basis="gdpr-17") is None


async def test_without_the_database_what_redis_has_decided_counts_as_acknowledged(
    backup: Backup, backups: BackupDirectory, journal: Journal, ledger_url: str, redis_url: str, redis: Redis
) -> None:
    seq = backup.heads[0].seq
    await redis.hset(HEAD_KEY, mapping={"generation": 1, "durable": seq, "seq": seq + 1})
    topology = make_topology(redis_url)
    async with open_databases(ledger_url) as databases:
        await drop(databases)

    with pytest.raises(BackupRefused, match=rf"shard 0 ends at seq {seq + 1}, the backup at {seq}: 1 entries"):
        await restore(ledger_url, backup, backups, journal, topology=topology, seal=SEAL)

    await topology.close()


async def drop(databases: Databases) -> None:
    """Lose the database."""
    await databases.drop(databases.name)
