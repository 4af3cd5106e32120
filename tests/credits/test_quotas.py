"""Quotas, low balances and their alerts on a whole server, up to a receiver of webhooks, and after Redis has lost all."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any

import aiohttp
import asyncpg
import pytest
from redis.asyncio import Redis
from standardwebhooks import Webhook

from tests.credits.ledger_client import Client, Reply, fresh
from tests.credits.ledger_house import Ledger, LedgerHouse
from tests.server import ShieldxServer
from tests.webhooks.conftest import listening, until

DEADLINE_S = 90.0


@pytest.fixture(scope="module")
def place(house: LedgerHouse) -> Iterator[tuple[ShieldxServer, Ledger]]:
    """A server that may call receivers on this machine, on a ledger of its own."""
    ledger = asyncio.run(house.make_ledger())
    server = house.server_on(
        ledger, "controls", webhook_allow_http="true", webhook_allow_networks="127.0.0.0/8", webhook_ports="0"
    )
    asyncio.run(server.start())
    yield server, ledger
    server.stop()


@pytest.fixture
async def own(place: tuple[ShieldxServer, Ledger]) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(session, place[0].url)


async def spend(client: Client, tenant: str, amount: int, **more: Any) -> Reply:
    return await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": amount}, **more)


async def alerts(client: Client, tenant: str) -> list[dict[str, Any]]:
    return list((await client.get(f"/v1/alerts?tenant_id={tenant}")).body["data"])


async def test_a_refusal_says_how_much_is_left_and_when_to_come_back(own: Client) -> None:
    tenant = await own.tenant(1000, quota={"limit": 100, "period": "day"})
    await own.consume(tenant, 60)

    reply = await spend(own, tenant, 41)

    assert reply.refusal == (429, "quota_exceeded")
    quota = reply.body["quota"]
    assert {name: quota[name] for name in ("limit", "period", "used", "remaining")} == {
        "limit": 100, "period": "day", "used": 60, "remaining": 40,
    }  # fmt: skip
    left_s = (datetime.fromisoformat(quota["resets_at"]) - datetime.now().astimezone()).total_seconds()
    wait_s = int(reply.headers["Retry-After"])
    assert 0 <= wait_s - left_s < 5
    assert quota["resets_at"].endswith("T00:00:00.000Z")
    assert reply.headers["RateLimit-Policy"] == '"quota";q=100;qu="credits";w=86400'
    assert reply.headers["RateLimit"] == f'"quota";r=40;t={wait_s}'
    use = (await own.account(tenant))["quota_use"]
    assert use == {"used": 60, "remaining": 40, "resets_at": quota["resets_at"]}


async def test_callers_at_once_spend_exactly_the_quota(own: Client) -> None:
    tenant = await own.tenant(10_000, quota={"limit": 100, "period": "month"})

    replies = await asyncio.gather(*(spend(own, tenant, 7) for _ in range(40)))

    assert sorted(reply.status for reply in replies) == [200] * 14 + [429] * 26
    assert (await own.account(tenant))["quota_use"]["used"] == 98
    assert [alert["type"] for alert in await alerts(own, tenant)] == ["credits.quota_exceeded", "credits.quota_warning"]


async def test_a_change_of_the_quota_counts_at_once_and_for_the_same_key(own: Client) -> None:
    tenant, key = await own.tenant(1000, quota={"limit": 10, "period": "hour"}), fresh("key")
    refused = await spend(own, tenant, 11, key=key)

    changed = await own.call("PATCH", f"/v1/accounts/{tenant}", {"quota": {"limit": 11, "period": "hour"}})
    done = await spend(own, tenant, 11, key=key)
    described = await own.call("PATCH", f"/v1/accounts/{tenant}", {"metadata": {"a": 1}})
    lifted = await own.call("PATCH", f"/v1/accounts/{tenant}", {"quota": None})

    assert (refused.status, done.status, done.replayed) == (429, 200, False)
    assert (changed.body["quota_use"]["used"], described.body["quota_use"]["used"]) == (0, 11)
    assert "quota_use" not in lifted.body
    assert (await spend(own, tenant, 500)).status == 200


async def test_a_batch_tells_the_quota_of_each_operation(own: Client) -> None:
    tenant = await own.tenant(1000, quota={"limit": 10, "period": "hour"})
    operations = [{"op": op, "tenant_id": tenant, "amount": 6} for op in ("reserve", "consume", "topup")]

    results = (await own.done("/v1/credits/batch", {"operations": operations}))["results"]

    assert [result["status"] for result in results] == [200, 429, 200]
    assert (results[1]["code"], results[1]["quota"]["remaining"]) == ("quota_exceeded", 4)


async def test_alerts_are_listed_in_pages_and_only_to_keys_of_their_tenant(own: Client) -> None:
    mine, other = [await own.tenant(100, low_balance_threshold=50) for _ in range(2)]
    for tenant in (mine, other, mine):
        await own.consume(tenant, 60)
        await own.topup(tenant, 60)
    made = await own.done("/v1/keys", {"name": "t", "role": "reader", "tenants": [mine]})
    header = f"Bearer {made['key']}"
    deadline_s = time.monotonic() + DEADLINE_S
    while (await own.call("GET", "/v1/alerts", Authorization=header)).status == 401:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)

    first = (await own.call("GET", "/v1/alerts?limit=1", Authorization=header)).body
    rest = (await own.call("GET", f"/v1/alerts?cursor={first['next_cursor']}", Authorization=header)).body
    foreign = await own.call("GET", f"/v1/alerts?tenant_id={other}", Authorization=header)
    typed = (await own.get(f"/v1/alerts?tenant_id={mine}&type=credits.quota_exceeded")).body

    assert [len(page["data"]) for page in (first, rest, typed)] == [1, 1, 0]
    assert {alert["tenant_id"] for page in (first, rest) for alert in page["data"]} == {mine}
    assert (first["data"][0]["threshold"], first["data"][0]["balance"], rest["next_cursor"]) == (50, 40, None)
    assert foreign.refusal == (404, "no_account")


async def test_an_alert_reaches_a_receiver_once_and_signed(own: Client) -> None:
    tenant = await own.tenant(100, low_balance_threshold=50, quota={"limit": 80, "period": "day"})
    async with listening() as receiver:
        types = ["credits.low_balance", "credits.quota_exceeded"]
        made = await own.done("/v1/webhooks", {"url": receiver.url, "tenant_id": tenant, "types": types})

        await own.consume(tenant, 70)
        assert (await spend(own, tenant, 11)).status == 429
        assert (await spend(own, tenant, 11)).status == 429
        await until(lambda: len(receiver.requests) >= 2, "two messages")
        await until_delivered(own, made["endpoint_id"], 2)

    bodies = {}
    for fields, body in receiver.requests:
        bodies[fields["webhook-id"]] = Webhook(made["secret"]).verify(body, fields)
    known = {alert["alert_id"]: alert for alert in await alerts(own, tenant)}
    assert sorted(body["type"] for body in bodies.values()) == types
    for alert_id, body in bodies.items():
        assert body["data"]["alert_id"] == alert_id
        assert (body["timestamp"], body["type"]) == (known[alert_id]["created_at"], known[alert_id]["type"])
        assert body["data"]["tenant_id"] == tenant
    assert sorted(alert["type"] for alert in known.values()) == sorted([*types, "credits.quota_warning"])


async def until_delivered(client: Client, endpoint_id: str, count: int) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        found = (await client.get(f"/v1/webhooks/{endpoint_id}/deliveries")).body["data"]
        if [one["state"] for one in found] == ["delivered"] * count:
            return
        assert time.monotonic() < deadline_s, found
        await asyncio.sleep(0.05)


async def test_redis_that_lost_everything_gets_counts_holds_and_alerts_back(
    own: Client, place: tuple[ShieldxServer, Ledger]
) -> None:
    tenant = await own.tenant(100, low_balance_threshold=50, quota={"limit": 90, "period": "month"})
    await own.consume(tenant, 40)
    hold = await own.reserve(tenant, 30)
    await own.consume(tenant, 15)
    before = await own.account(tenant)

    async with Redis.from_url(place[1].redis_url) as redis:
        await redis.flushdb()
    await own.consume(tenant, 1)
    refused = await spend(own, tenant, 5)
    await own.done(f"/v1/credits/reservations/{hold['reservation_id']}/abort")
    after = await spend(own, tenant, 34)
    series = (await own.get("/metrics")).raw.decode()

    assert 'shieldx_recoveries_total{kind="rebuilt"} 1.0' in series.splitlines()
    assert before["quota_use"]["used"] == 85
    assert (refused.status, refused.body["quota"]["used"]) == (429, 86)
    assert (after.status, after.body["balance"]) == (200, 10)
    assert (await own.account(tenant))["quota_use"]["remaining"] == 0
    told = [alert["type"].partition(".")[2] for alert in reversed(await alerts(own, tenant))]
    assert told == ["low_balance", "quota_warning", "quota_exceeded"]


async def test_every_alert_stands_in_the_chain_which_verifies(own: Client, place: tuple[ShieldxServer, Ledger]) -> None:
    tenant = await own.tenant(10, low_balance_threshold=5, quota={"limit": 9, "period": "day"})
    await own.consume(tenant, 5)
    await spend(own, tenant, 5)

    (low, quota) = reversed(await alerts(own, tenant))
    connection = await asyncpg.connect(place[1].database_url)
    try:
        rows = await connection.fetch(
            "SELECT seq, type, entry FROM audit_entries WHERE seq = ANY($1) ORDER BY seq", [low["seq"], quota["seq"]]
        )
        report = place[0].run_command("audit", "verify", "--json", database_url=place[1].database_url)
        await connection.execute("DELETE FROM credit_alerts WHERE seq = $1", quota["seq"])
        tampered = place[0].run_command("audit", "verify", "--json", database_url=place[1].database_url)
    finally:
        await connection.close()

    assert [row["type"] for row in rows] == ["consume", "credits.quota_exceeded"]
    details = [json.loads(row["entry"].partition(b"\n")[2])["details"]["controls"] for row in rows]
    assert [one["alerts"][0]["type"] for one in details] == [low["type"], quota["type"]]
    assert (details[1]["tenant_id"], json.loads(report.stdout)["ok"]) == (tenant, True)
    assert json.loads(tampered.stdout)["first_bad"]["seq"] == quota["seq"]
