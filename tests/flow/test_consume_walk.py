"""One consume on its whole way: HTTP, Redis, the chain in Postgres, the verifier."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import redis

from app.audit.entry import ENTRY_PREFIX
from app.db.keys import shard_keys, shard_tag
from tests.credits.ledger_client import Client
from tests.credits.ledger_house import Ledger
from tests.server import ShieldxServer


@pytest.fixture
async def postgres(ledger: Ledger) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(ledger.database_url)
    yield connection
    await connection.close()


@pytest.fixture
def keys(ledger: Ledger) -> Any:
    with redis.Redis.from_url(ledger.redis_url, decode_responses=True) as connection:
        yield connection


async def test_a_consume_is_in_redis_and_in_the_chain_when_it_is_answered(
    client: Client, postgres: asyncpg.Connection[Any], keys: Any
) -> None:
    tenant = await client.tenant(100)

    body = await client.done(
        "/v1/credits/consume", {"tenant_id": tenant, "amount": 30, "description": "a walk", "metadata": {"m": 1}}
    )

    account = keys.hgetall(f"{shard_tag(0)}account:{tenant}")
    assert (account["balance"], account["reserved"], account["version"]) == ("70", "0", "3")
    assert int(keys.hget(shard_keys(0)[0], "seq")) >= body["seq"]
    row = await postgres.fetchrow("SELECT * FROM audit_entries WHERE shard = 0 AND seq = $1", body["seq"])
    assert row is not None
    shown = (
        str(row["transaction_id"]),
        row["tenant_id"],
        row["type"],
        row["amount"],
        row["balance"],
        row["reserved"],
        row["version"],
    )
    assert shown == (body["transaction_id"], tenant, "consume", 30, 70, 0, 3)
    assert row["hash"] == hashlib.sha256(b"\x00" + row["entry"]).digest()
    record = json.loads(row["entry"].removeprefix(ENTRY_PREFIX))
    assert (record["debit"], record["credit"]) == (f"tenant:{tenant}", "system:revenue")
    assert (record["description"], record["metadata"]) == ("a walk", '{"m":1}')
    before = await postgres.fetchval("SELECT hash FROM audit_entries WHERE shard = 0 AND seq = $1", body["seq"] - 1)
    assert record["prev_hash"] == row["prev_hash"].hex() == before.hex()
    folded = await postgres.fetchrow("SELECT balance, reserved, version FROM credit_accounts WHERE tenant_id = $1", tenant)
    assert folded is not None
    assert tuple(folded) == (70, 0, 3)


async def test_a_hold_is_in_the_keys_that_are_documented(client: Client, keys: Any) -> None:
    tenant = await client.tenant(100)

    hold = await client.reserve(tenant, 40)

    tag, identifier = shard_tag(0), hold["reservation_id"]
    reservation = keys.hgetall(f"{tag}reservation:{identifier}")
    assert (reservation["tenant"], reservation["amount"], reservation["status"]) == (tenant, "40", "held")
    assert (
        keys.zscore(f"{tag}holds:{tenant}", identifier)
        == keys.zscore(shard_keys(0)[2], identifier)
        == float(reservation["expires_at"])
    )
    assert {keys.type(key) for key in shard_keys(0)} <= {"hash", "stream", "zset"}
    assert all(key.startswith((tag, "{limits}:", "{rules}:", "{locator}:", "{x:")) for key in keys.scan_iter())


async def test_free_text_and_keys_are_kept_without_the_idempotency_key_itself(
    client: Client, postgres: asyncpg.Connection[Any], keys: Any
) -> None:
    tenant = await client.tenant(100)
    secret = f"customer-{tenant}-order-4111"

    reply = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=secret)

    entry = await postgres.fetchval("SELECT entry FROM audit_entries WHERE shard = 0 AND seq = $1", reply.body["seq"])
    assert secret.encode() not in entry
    assert len(json.loads(entry.removeprefix(ENTRY_PREFIX))["idempotency"]) == 22
    assert not any(secret in key for key in keys.scan_iter())


async def test_the_servers_own_role_cannot_touch_what_it_has_written(
    client: Client, postgres: asyncpg.Connection[Any]
) -> None:
    await client.tenant(1)
    await postgres.execute("SET ROLE shieldx_app")

    for statement in ("UPDATE audit_entries SET amount = 0", "DELETE FROM audit_entries", "TRUNCATE audit_entries"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await postgres.execute(statement)
    sessions = await postgres.fetch("SELECT usename FROM pg_stat_activity WHERE application_name = 'shieldx'")
    assert sessions


async def test_the_chain_verifies_after_all_of_that(client: Client, ledger: Ledger, server: ShieldxServer) -> None:
    await client.consume(await client.tenant(5), 5)

    run = server.run_command("audit", "verify", "--json", database_url=ledger.database_url)

    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout)
    assert (report["ok"], report["first_bad"], report["trial_balance"], report["signatures_unchecked"]) == (True, None, 0, 0)


async def test_a_changed_amount_is_found_and_named(
    client: Client, ledger: Ledger, server: ShieldxServer, postgres: asyncpg.Connection[Any]
) -> None:
    reserved = await client.reserve(await client.tenant(5), 5)
    seq = await postgres.fetchval(
        "SELECT seq FROM audit_entries WHERE transaction_id = $1::text::uuid", reserved["reservation_id"]
    )
    # A reserve, because the server adds up what is used meanwhile: a changed consume would stay in its sums.
    await postgres.execute("UPDATE audit_entries SET amount = 4 WHERE shard = 0 AND seq = $1", seq)

    run = server.run_command("audit", "verify", "--json", database_url=ledger.database_url)
    await postgres.execute("UPDATE audit_entries SET amount = 5 WHERE shard = 0 AND seq = $1", seq)

    assert run.returncode == 1
    bad = json.loads(run.stdout)["first_bad"]
    assert (bad["shard"], bad["seq"]) == (0, seq)
    assert "amount" in bad["reason"]
