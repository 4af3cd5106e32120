"""Every replica's table follows Postgres: by notification at once, by the poll without one, after an outage again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from app.access import calls, watch
from app.access.bucket import Bucket
from app.access.calls import NewKey, Rotation
from app.access.rates import TenantRates
from app.access.scope import ROOT, Key
from app.access.store import KeyStore
from app.access.table import Denial, KeyTable
from app.access.watch import KeyWatch
from app.db.postgres import open_session
from tests.access.conftest import until
from tests.lag import Lag

REVOCATION_MAX_S = 2.0
BODY = NewKey(name="x", role="reader")


class Replica:
    """A key table and its watch, as one process has them."""

    def __init__(self, database_url: str) -> None:
        self.table = KeyTable("the root key")
        self.sessions: list[asyncpg.Connection[Any]] = []
        self.faults: list[BaseException] = []
        self._url = database_url
        self.rates = TenantRates()
        self.watch = KeyWatch(self.table, self.rates, self.connect)

    async def connect(self) -> asyncpg.Connection[Any]:
        session = await open_session(self._url)
        self.sessions.append(session)
        return session

    async def start(self) -> None:
        self.watch.start(self.faults.append)
        await until(lambda: self.table.unconfirmed_s < float("inf"), "the first load")

    def sees(self, text: str) -> Key | Denial:
        return self.table.check(f"Bearer {text}")


@pytest.fixture
async def replicas(store: KeyStore, database_url: str) -> AsyncIterator[list[Replica]]:
    """Two replicas on one database."""
    replicas = [Replica(database_url) for _ in range(2)]
    for replica in replicas:
        await replica.start()
    yield replicas
    for replica in replicas:
        await replica.watch.stop()
    assert [replica.faults for replica in replicas] == [[], []]


async def test_a_new_key_opens_every_replica_and_a_revoked_one_none(
    replicas: list[Replica], store: KeyStore, lag: Lag
) -> None:
    made = await calls.create(BODY, ROOT, store)
    await until(lambda: all(isinstance(replica.sees(made.key), Key) for replica in replicas), "the new key")

    await calls.revoke(made.key_id, ROOT, store)

    revoked = Denial("revoked", made.key_id)
    took_s = await until(lambda: all(replica.sees(made.key) == revoked for replica in replicas), "the revocation")
    assert took_s < REVOCATION_MAX_S + lag.largest_s


async def test_a_lost_notification_costs_no_more_than_a_poll(
    replicas: list[Replica], store: KeyStore, owner: asyncpg.Connection[Any], lag: Lag
) -> None:
    made = await calls.create(BODY, ROOT, store)
    await until(lambda: all(isinstance(replica.sees(made.key), Key) for replica in replicas), "the new key")
    for replica in replicas:
        await replica.sessions[-1].execute(f"UNLISTEN {watch.CHANNEL}")

    await calls.revoke(made.key_id, ROOT, store)

    took_s = await until(lambda: all(isinstance(replica.sees(made.key), Denial) for replica in replicas), "the poll")
    assert took_s < REVOCATION_MAX_S + lag.largest_s
    assert await owner.fetchval("SELECT count(*) FROM pg_listening_channels()") == 0


async def test_a_killed_session_is_replaced_and_nothing_is_missed(
    replicas: list[Replica], store: KeyStore, owner: asyncpg.Connection[Any], lag: Lag
) -> None:
    made = await calls.create(BODY, ROOT, store)
    await until(lambda: all(isinstance(replica.sees(made.key), Key) for replica in replicas), "the new key")
    for replica in replicas:
        await owner.execute("SELECT pg_terminate_backend($1)", replica.sessions[-1].get_server_pid())

    await calls.revoke(made.key_id, ROOT, store)

    took_s = await until(lambda: all(isinstance(replica.sees(made.key), Denial) for replica in replicas), "the new session")
    assert took_s < REVOCATION_MAX_S + lag.largest_s
    assert [len(replica.sessions) for replica in replicas] == [2, 2]


async def test_rotation_and_the_end_of_the_old_key_reach_every_replica(replicas: list[Replica], store: KeyStore) -> None:
    made = await calls.create(BODY, ROOT, store)

    new = await calls.rotate(made.key_id, Rotation(overlap_seconds=0), ROOT, store)

    for replica in replicas:
        await until(lambda replica=replica: isinstance(replica.sees(new.key), Key), "the successor")
        assert replica.sees(made.key) == Denial("expired", made.key_id)


async def test_a_change_by_hand_in_the_database_counts_too(
    replicas: list[Replica], store: KeyStore, owner: asyncpg.Connection[Any]
) -> None:
    made = await calls.create(BODY, ROOT, store)
    await until(lambda: isinstance(replicas[0].sees(made.key), Key), "the new key")

    await owner.execute("TRUNCATE api_keys")

    await until(lambda: replicas[0].sees(made.key) == Denial("unknown"), "the empty table")


async def test_last_use_is_written_in_a_batch_and_at_the_end(
    store: KeyStore, database_url: str, owner: asyncpg.Connection[Any]
) -> None:
    replica = Replica(database_url)
    await replica.start()
    used, idle = await calls.create(BODY, ROOT, store), await calls.create(BODY, ROOT, store)
    await until(lambda: isinstance(replica.sees(used.key), Key), "the new key")
    revision = await owner.fetchval("SELECT keys FROM access_revision")

    before = await owner.fetchval("SELECT last_used_at FROM api_keys WHERE key_id = $1", used.key_id)
    await replica.watch.stop()

    dates = dict(await owner.fetch("SELECT key_id, last_used_at FROM api_keys"))
    assert before is None
    assert dates[used.key_id] is not None
    assert dates[idle.key_id] is None
    assert await owner.fetchval("SELECT keys FROM access_revision") == revision


async def test_last_use_is_written_while_the_server_runs(
    store: KeyStore, database_url: str, owner: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LAST_USE_INTERVAL_S", 0.05)
    monkeypatch.setattr(watch, "POLL_INTERVAL_S", 0.02)
    replica = Replica(database_url)
    await replica.start()
    made = await calls.create(BODY, ROOT, store)
    await until(lambda: isinstance(replica.sees(made.key), Key), "the new key")

    dates = []
    while not dates:
        dates = await owner.fetch("SELECT 1 FROM api_keys WHERE last_used_at IS NOT NULL")
        await asyncio.sleep(0.01)

    await replica.watch.stop()


async def test_a_date_of_use_never_goes_back(store: KeyStore, owner: asyncpg.Connection[Any], statements: Any) -> None:
    from app.clock import time_of  # noqa: PLC0415 - only here
    from app.db.sql import query  # noqa: PLC0415 - only here

    made = await calls.create(BODY, ROOT, store)
    for at_ms in (2_000, 1_000):
        await statements.rows(query("date_keys"), [made.key_id, "key_gone"], [time_of(at_ms)] * 2)

    assert await owner.fetchval("SELECT last_used_at FROM api_keys") == time_of(2_000)


async def test_a_tenants_limit_reaches_every_replica_and_goes_again(
    replicas: list[Replica], owner: asyncpg.Connection[Any]
) -> None:
    key = Key("k", "writer")
    await owner.execute(
        "INSERT INTO credit_accounts (tenant_id, shard, balance, reserved, version, created_at, updated_at) "
        "VALUES ('acme', 0, 0, 0, 1, now(), now())"
    )
    fold = "UPDATE credit_accounts SET settings = $1::jsonb"

    await owner.execute(fold, '{"rate_limit": "{\\"rate\\":0.5,\\"burst\\":3}", "metadata": "{}"}')
    await until(lambda: all(replica.rates.buckets(key, "acme") for replica in replicas), "the limit")
    limited = replicas[0].rates.buckets(key, "acme")
    await owner.execute(fold, '{"rate_limit": "spoilt by hand"}')
    await until(lambda: not any(replica.rates.buckets(key, "acme") for replica in replicas), "no limit")

    assert limited == (Bucket("tenant", "acme", 500, 3),)
    assert replicas[0].rates.buckets(key, "other") == ()


async def test_money_moves_without_a_look_at_the_limits(replicas: list[Replica], owner: asyncpg.Connection[Any]) -> None:
    await owner.execute(
        "INSERT INTO credit_accounts (tenant_id, shard, balance, reserved, version, created_at, updated_at) "
        "VALUES ('acme', 0, 0, 0, 1, now(), now())"
    )
    before = await owner.fetchval("SELECT rates FROM access_revision")

    await owner.execute(
        "INSERT INTO credit_accounts AS a (tenant_id, shard, balance, reserved, version, created_at, updated_at) "
        "VALUES ('acme', 0, 5, 0, 2, now(), now()) ON CONFLICT (tenant_id) DO UPDATE SET balance = excluded.balance"
    )
    await owner.execute('UPDATE credit_accounts SET settings = \'{"metadata": "{}"}\'')

    assert await owner.fetchval("SELECT rates FROM access_revision") == before


async def test_many_rows_are_converted_while_others_have_the_loop() -> None:
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(tick())
    rows: Any = range(4 * watch.SLICE)

    converted = [one async for one in watch._in_slices(rows, str)]

    other.cancel()
    assert converted == [str(number) for number in rows]
    assert turns == 4
