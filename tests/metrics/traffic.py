"""A little of everything that the server does, so that every series has something to show."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tests.credits.ledger_client import Client, fresh
from tests.webhooks.conftest import listening

DEADLINE_S: Final = 30.0


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until something holds."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not await holds():
        assert time.monotonic() < deadline_s, f"not in time: {what}"
        await asyncio.sleep(0.02)


async def exposition(client: Client) -> str:
    """Return what a scrape gets."""
    reply = await client.get("/metrics")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return reply.raw.decode()


async def use_money(client: Client) -> str:
    """Top up, spend, hold, refund and move credits of two shards; return a tenant's name."""
    tenants = []
    for shard in (0, 1):
        while zlib.crc32((tenant := fresh("money")).encode()) % 2 != shard:
            pass
        await client.done("/v1/accounts", {"tenant_id": tenant})
        tenants.append(tenant)
    one, other = tenants
    first = {"tenant_id": one, "amount": 100}
    key = fresh("once")
    for _ in range(2):
        assert (await client.post("/v1/credits/topup", first, key=key)).status == 200
    assert (await client.post("/v1/credits/topup", {"tenant_id": one, "amount": 7}, key=key)).status == 422
    spent = await client.consume(one, 20)
    assert (await client.post("/v1/credits/consume", {"tenant_id": one, "amount": 1_000})).status == 402
    await client.done("/v1/credits/refund", {"transaction_id": spent["transaction_id"], "amount": 5})
    for verb in ("commit", "abort"):
        held = await client.reserve(one, 10)
        await client.done(f"/v1/credits/reservations/{held['reservation_id']}/{verb}")
    await client.reserve(one, 10, ttl_seconds=1)
    await client.done("/v1/transactions", {"legs": [{"tenant_id": one, "amount": -30}, {"tenant_id": other, "amount": 30}]})
    batch = {
        "operations": [{"op": "topup", "tenant_id": other, "amount": 1}, {"op": "consume", "tenant_id": other, "amount": 1}]
    }
    await client.done("/v1/credits/batch", batch)
    return one


async def use_keys(client: Client, tenant: str) -> str:
    """Be denied, and meet a rate limit; return the id of a key."""
    made = await client.done("/v1/keys", {"name": fresh("key"), "role": "writer", "rate_limit": {"rate": 0.01, "burst": 1}})
    own = f"Bearer {made['key']}"

    async def limited() -> bool:
        return (
            await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, Authorization=own)
        ).status == 429

    await until(limited, "a key that has used up its rate limit")
    assert (await client.call("GET", "/metrics", Authorization=own)).status == 403
    assert (await client.call("GET", "/metrics", Authorization=None)).status == 401
    return str(made["key_id"])


async def use_webhooks(client: Client) -> str:
    """Have an alert delivered; return the id of the endpoint."""
    tenant = await client.tenant(100, low_balance_threshold=50)
    async with listening() as receiver:
        made = await client.done("/v1/webhooks", {"url": receiver.url, "tenant_id": tenant})
        await client.consume(tenant, 60)

        async def delivered() -> bool:
            return bool(receiver.requests)

        await until(delivered, "a message")
    return str(made["endpoint_id"])


async def use_experiments(client: Client) -> tuple[str, str]:
    """Test with a canary, deploy what has not won, roll another test back, compare rules; return a test and a rule."""
    variants = [{"name": "a", "control": True}, {"name": "b"}]
    tested, broken = fresh("test"), fresh("broken")
    canary: dict[str, Any] = {"canary": {"steps": [5.0, 100.0], "min_seconds": 60}}
    for name in (tested, broken):
        await client.done("/v1/experiments", {"name": name, "variants": variants, "allocation": "fixed", **canary})
        outcome = {"event_id": "e", "success": True, "variant": "a"}
        for _ in range(2):
            await client.done(f"/v1/experiments/{name}/outcomes", outcome)
    assert (await client.post(f"/v1/experiments/{tested}/outcomes", outcome | {"variant": "c"})).status == 422
    await client.done(f"/v1/experiments/{tested}/deploy", {"variant": "b", "override": True, "reason": "we must"})
    await client.done(f"/v1/experiments/{broken}/rollback", {"reason": "by hand"})
    rule = fresh("rule")
    versions = [{"name": "v1", "expression": "input.a > 1"}, {"name": "v2", "expression": "input.a > 2"}]
    await client.done("/v1/rules", {"name": rule, "versions": versions, "champion": "v1", "challenger": "v2"})
    await client.done(f"/v1/rules/{rule}/evaluate", {"input": {"a": 2}})
    return tested, rule


async def use_locator(client: Client) -> str:
    """Register, look up, report; return the service's name."""
    service = fresh("service")
    instance = {"host": "127.0.0.1", "port": 9, "check": {"tcp": "127.0.0.1:9", "interval_seconds": 1}}
    assert (await client.call("PUT", f"/v1/services/{service}/instances/i", instance)).status in {200, 201}
    lease = (await client.get(f"/v1/services/{service}/lookup")).body["lease_id"]
    await client.done(f"/v1/services/{service}/report", {"lease_id": lease, "ok": True, "latency_ms": 3.5})
    return service
