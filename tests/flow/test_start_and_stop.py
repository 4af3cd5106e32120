"""How a server starts, refuses to start, and stops."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import aiohttp
import asyncpg
import orjson

from app.embedded import read_endpoints
from tests.credits.ledger_client import AUTHORIZED, Client, fresh
from tests.credits.ledger_house import Ledger, LedgerHouse
from tests.server import REPOSITORY, ShieldxServer

GRACE_S = 20.0
DEADLINE_S = 90.0
PARTITIONS = "SELECT count(*) FROM pg_class WHERE relispartition AND relkind = 'r'"


async def until_ended(server: ShieldxServer) -> int:
    """Wait until a server has ended by itself and return its exit code."""
    deadline_s = time.monotonic() + DEADLINE_S
    while server.alive:
        assert time.monotonic() < deadline_s, f"the server does not end:\n{server.log_tail}"
        await asyncio.sleep(0.02)
    assert server.exit_code is not None
    return server.exit_code


async def test_sigterm_under_load_drains_and_keeps_everything_that_was_acknowledged(
    house: LedgerHouse, session: aiohttp.ClientSession
) -> None:
    ledger = await house.make_ledger()
    server = house.server_on(ledger, "drained", forked=False)
    await server.start()
    client = Client(session, server.url)
    tenant = await client.tenant(10**6)
    acknowledged: set[str] = set()
    refused: set[int] = set()

    async def spend() -> None:
        while True:
            key = fresh("load")
            try:
                reply = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=key)
            except (aiohttp.ClientError, ConnectionError):
                return
            if reply.status == 200:
                acknowledged.add(reply.body["transaction_id"])
            else:
                refused.add(reply.status)
                return

    load = [asyncio.create_task(spend()) for _ in range(40)]
    while len(acknowledged) < 200:
        assert not all(task.done() for task in load)
        await asyncio.sleep(0.005)
    started_s = time.monotonic()
    code = await asyncio.to_thread(server.stop)
    seconds = time.monotonic() - started_s
    await asyncio.gather(*load)

    assert code == 0, server.log_tail
    assert seconds < GRACE_S
    assert refused <= {503}
    connection = await asyncpg.connect(ledger.database_url)
    stored = {
        str(row[0]) for row in await connection.fetch("SELECT transaction_id FROM audit_entries WHERE type = 'consume'")
    }
    balance = await connection.fetchval("SELECT balance FROM credit_accounts WHERE tenant_id = $1", tenant)
    await connection.close()
    assert acknowledged <= stored
    assert balance == 10**6 - len(stored)
    assert server.run_command("audit", "verify", database_url=ledger.database_url).returncode == 0


async def test_a_server_that_starts_again_goes_on_where_it_stopped(
    house: LedgerHouse, session: aiohttp.ClientSession
) -> None:
    server = house.server_on(await house.make_ledger(), "again", forked=False)
    await server.start()
    client = Client(session, server.url)
    tenant, key = await client.tenant(100), fresh("key")
    hold = await client.reserve(tenant, 10)
    first = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=key)
    assert await asyncio.to_thread(server.stop) == 0

    await server.start()

    again = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=key)
    assert (again.status, again.raw, again.replayed) == (200, first.raw, True)
    await client.done(f"/v1/credits/reservations/{hold['reservation_id']}/commit")
    assert await client.numbers(tenant) == (89, 0, 5)
    server.kill()


async def test_an_unused_ledger_that_starts_again_makes_no_partition(house: LedgerHouse) -> None:
    ledger = await house.make_ledger()
    server = house.server_on(ledger, "unused")
    connection = await asyncpg.connect(ledger.database_url)
    try:
        await server.start()
        at_first = await connection.fetchval(PARTITIONS)

        await asyncio.to_thread(server.stop)
        await server.start()

        assert await connection.fetchval(PARTITIONS) == at_first
    finally:
        await connection.close()
        await asyncio.to_thread(server.stop)


async def test_another_number_of_shards_is_refused_at_start(house: LedgerHouse, ledger: Ledger) -> None:
    server = house.server_on(ledger, "wrong-shards", shards=3)
    server.launch()

    code = await until_ended(server)

    assert code not in {0, None}
    assert "SHIELDX_LEDGER_SHARDS" in server.log_tail
    assert "1 shards" in server.log_tail
    assert "Traceback" not in server.log_tail


async def test_a_login_that_may_not_read_the_schema_is_refused_at_start(house: LedgerHouse, ledger: Ledger) -> None:
    connection = await asyncpg.connect(ledger.database_url)
    await connection.execute("DROP ROLE IF EXISTS powerless")
    await connection.execute("CREATE ROLE powerless LOGIN")
    await connection.close()
    server = house.server_on(Ledger(ledger.redis_url, ledger.database_url.replace("postgres@", "powerless@")), "powerless")
    server.launch()

    code = await until_ended(server)

    assert code not in {0, None}
    assert "grant shieldx_app" in server.log_tail


async def test_a_database_that_is_behind_is_refused_with_the_command_to_run(house: LedgerHouse, ledger: Ledger) -> None:
    empty = await house.postgres.make_own_database()
    server = house.server_on(Ledger(ledger.redis_url, empty), "behind")
    server.launch()

    code = await until_ended(server)

    assert code not in {0, None}
    assert "0001_ledger" in server.log_tail
    assert "Run `shieldx migrate up`" in server.log_tail
    assert "Traceback" not in server.log_tail


async def test_without_its_stores_a_server_waits_says_so_and_stops_in_order(
    house: LedgerHouse, ledger: Ledger, session: aiohttp.ClientSession
) -> None:
    nowhere = "postgresql://postgres@/x?host=/nonexistent&port=5432"
    server = house.server_on(Ledger(ledger.redis_url, nowhere), "waiting", forked=False)
    server.launch()
    deadline_s = time.monotonic() + DEADLINE_S
    while (found := await server.readiness())[0] == 0:
        assert time.monotonic() < deadline_s, server.log_tail
        await asyncio.sleep(0.02)

    refused = await Client(session, server.url).get("/v1/accounts")

    assert (found[0], found[1]["status"]) == (503, "waiting")
    assert refused.refusal == (503, "unavailable")
    assert refused.headers["Retry-After"]
    assert await asyncio.to_thread(server.stop) == 0


async def test_a_database_that_is_not_there_ends_the_start(house: LedgerHouse, ledger: Ledger) -> None:
    server = house.server_on(Ledger(ledger.redis_url, house.postgres.url("never_made")), "no-database")
    server.launch()

    code = await until_ended(server)

    assert code not in {0, None}
    assert "never_made" in server.log_tail
    assert "Traceback" not in server.log_tail


async def test_an_older_backup_is_refused_and_the_missing_seq_is_named(
    house: LedgerHouse, session: aiohttp.ClientSession
) -> None:
    ledger = await house.make_ledger()
    server = house.server_on(ledger, "older-backup")
    await server.start()
    client = Client(session, server.url)
    tenant = await client.tenant(100)
    spent = [await client.consume(tenant, 1) for _ in range(5)]
    later = await client.consume(tenant, 1)
    assert await asyncio.to_thread(server.stop) == 0
    kept = spent[2]["seq"]
    connection = await asyncpg.connect(ledger.database_url)
    await connection.execute("DELETE FROM audit_entries WHERE seq > $1", kept)
    await connection.execute(
        "UPDATE ledger_shards SET head_seq = $1, head_hash = (SELECT hash FROM audit_entries WHERE seq = $1)", kept
    )
    await connection.execute("UPDATE credit_accounts SET balance = 97, version = 5")
    await connection.close()

    server.launch()
    deadline_s = time.monotonic() + DEADLINE_S
    body: dict[str, Any] = {}
    while "missing" not in str(body):
        assert server.alive, server.log_tail
        assert time.monotonic() < deadline_s, f"{body}\n{server.log_tail}"
        await asyncio.sleep(0.02)
        _, body = await server.readiness()
    refused = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1})

    assert f"seq {kept + 1} is missing" in body["checks"]["shard"]["shards"][0]["reason"]
    assert body["checks"]["shard"]["shards"][0]["state"] == "refused"
    assert refused.refusal == (503, "unavailable")
    assert later["seq"] > kept
    assert await asyncio.to_thread(server.stop) == 0


async def test_a_second_server_on_one_data_directory_is_refused(
    embedded: ShieldxServer, session: aiohttp.ClientSession
) -> None:
    second = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "app", "serve", "--port", "0", "--shadow-port", "0", "--data-dir", str(data_dir(embedded))],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert second.returncode == 2
    assert "Traceback" not in second.stderr
    assert str(data_dir(embedded)) in second.stderr
    assert (await embedded.readiness())[0] == 200


def data_dir(embedded: ShieldxServer) -> Any:
    """Return the data directory of the embedded server."""
    return embedded.log.parent / "data"


async def test_urls_and_key_open_the_embedded_stores(embedded: ShieldxServer, session: aiohttp.ClientSession) -> None:
    urls = dict(
        line.split("=", 1)
        for line in embedded.run_command("urls", "--data-dir", str(data_dir(embedded))).stdout.splitlines()
    )
    key = embedded.run_command("key", "--data-dir", str(data_dir(embedded))).stdout.strip()

    async with session.get(f"{embedded.url}/v1/accounts", headers={"Authorization": f"Bearer {key}"}) as answer:
        assert answer.status == 200
    connection = await asyncpg.connect(urls["DATABASE_URL"])
    assert await connection.fetchval("SELECT shard_count FROM ledger") == 1
    await connection.close()
    assert urls["REDIS_URL"] == read_endpoints(data_dir(embedded)).redis_url
    assert (data_dir(embedded) / "root.key").stat().st_mode & 0o777 == 0o600


async def test_the_embedded_key_is_not_the_key_of_another_server(
    embedded: ShieldxServer, session: aiohttp.ClientSession
) -> None:
    async with session.get(f"{embedded.url}/v1/accounts", headers=AUTHORIZED) as answer:
        assert answer.status == 401


async def test_verify_finds_the_embedded_ledger_by_itself(embedded: ShieldxServer) -> None:
    run = embedded.run_command("audit", "verify", "--json", "--data-dir", str(data_dir(embedded)))

    assert run.returncode == 0, run.stderr
    report = orjson.loads(run.stdout)
    assert (report["ok"], report["signatures_unchecked"]) == (True, 0)


async def test_serve_says_where_it_listens_and_how_to_read_its_key_when_it_is_ready(embedded: ShieldxServer) -> None:
    lines = [line for line in embedded.log.read_text().splitlines() if not line.startswith("{")]

    assert lines[:2] == [
        f"shieldx ready at {embedded.url} and http://127.0.0.1:{embedded.shadow_port}",
        f"read the root key with: shieldx key --data-dir {data_dir(embedded)}",
    ]


async def test_a_port_that_is_taken_is_named(server: ShieldxServer) -> None:
    second = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "app", "serve", "--port", str(server.port), "--shadow-port", "0"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
        env=server._environment,
    )  # fmt: skip

    assert second.returncode not in {0, None}
    assert str(server.port) in second.stderr
    assert "Traceback" not in second.stderr
