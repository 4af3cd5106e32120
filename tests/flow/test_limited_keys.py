"""A key that is limited: to tenants, to a role, to a rate; and what the chain says of it."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

from app.audit.entry import ENTRY_PREFIX
from tests.credits.ledger_client import Client, Reply, fresh
from tests.lag import Lag

REVOKED_WITHIN_S = 2.0
DEADLINE_S = 90.0


async def limited(client: Client, role: str, **more: Any) -> tuple[str, str]:
    """Make a key; return its id and what to send."""
    made = await client.done("/v1/keys", {"name": fresh("test"), "role": role, **more})
    header = f"Bearer {made['key']}"
    async with asyncio.timeout(DEADLINE_S):
        while (await client.call("GET", "/v1/audit/keys", Authorization=header)).status == 401:
            await asyncio.sleep(0.02)
    return made["key_id"], header


async def post(client: Client, header: str, path: str, body: Any = None) -> Reply:
    return await client.post(path, body, Authorization=header)


async def test_ids_of_a_foreign_tenant_do_not_exist_for_a_key(client: Client) -> None:
    own, foreign = await client.tenant(100), await client.tenant(100)
    spent = await client.done("/v1/credits/consume", {"tenant_id": foreign, "amount": 5})
    held = await client.done("/v1/credits/reserve", {"tenant_id": foreign, "amount": 5, "ttl_seconds": 600})
    _, header = await limited(client, "writer", tenants=[own])
    reservation = f"/v1/credits/reservations/{held['reservation_id']}"

    reads = [
        await client.call("GET", path, Authorization=header)
        for path in (
            f"/v1/accounts/{foreign}", f"/v1/accounts/{foreign}/transactions", f"/v1/accounts/{foreign}/balance",
            f"/v1/accounts/{foreign}/reservations", f"/v1/accounts/{foreign}/usage", reservation,
            f"/v1/transactions/{spent['transaction_id']}", f"/v1/audit/receipts/{spent['transaction_id']}",
        )
    ]  # fmt: skip
    writes = [
        await post(client, header, "/v1/credits/consume", {"tenant_id": foreign, "amount": 1}),
        await post(client, header, "/v1/credits/topup", {"tenant_id": foreign, "amount": 1}),
        await post(client, header, "/v1/credits/reserve", {"tenant_id": foreign, "amount": 1}),
        await post(client, header, "/v1/credits/refund", {"transaction_id": spent["transaction_id"]}),
        await post(client, header, f"{reservation}/commit"),
        await post(client, header, f"{reservation}/abort"),
        await post(client, header, "/v1/accounts", {"tenant_id": fresh("new")}),
        await client.call("PATCH", f"/v1/accounts/{foreign}", {"low_balance_threshold": 5}, Authorization=header),
        await post(client, header, "/v1/transactions",
                   {"legs": [{"tenant_id": own, "amount": 1}, {"tenant_id": foreign, "amount": -1}]}),
    ]  # fmt: skip

    assert [reply.status for reply in (*reads, *writes)] == [404] * 17
    assert {reply.code for reply in (*reads, *writes)} == {"no_account", "no_reservation", "no_transaction"}
    assert (await client.get(f"/v1/accounts/{foreign}")).body["balance"] == 95
    assert (await client.get(f"/v1/accounts/{foreign}")).body["reserved"] == 5
    assert (await client.get(f"/v1/accounts/{own}")).body["balance"] == 100


async def test_a_key_does_to_its_own_tenant_what_its_role_may(client: Client) -> None:
    own = await client.tenant(100)
    _, header = await limited(client, "writer", tenants=[own])

    spent = await post(client, header, "/v1/credits/consume", {"tenant_id": own, "amount": 5})
    held = await post(client, header, "/v1/credits/reserve", {"tenant_id": own, "amount": 5})
    committed = await post(client, header, f"/v1/credits/reservations/{held.body['reservation_id']}/commit")
    refunded = await post(client, header, "/v1/credits/refund", {"transaction_id": spent.body["transaction_id"]})
    listed = await client.call("GET", "/v1/accounts", Authorization=header)

    assert [reply.status for reply in (spent, held, committed, refunded)] == [200] * 4
    assert [account["tenant_id"] for account in listed.body["data"]] == [own]


async def test_foreign_operations_of_a_batch_are_refused_one_by_one(client: Client) -> None:
    own, foreign = await client.tenant(100), await client.tenant(100)
    _, header = await limited(client, "writer", tenants=[own])
    operations = [{"op": "consume", "tenant_id": tenant, "amount": 1} for tenant in (own, foreign, own)]

    reply = await post(client, header, "/v1/credits/batch", {"operations": operations})

    assert [result["status"] for result in reply.body["results"]] == [200, 404, 200]
    assert (reply.body["succeeded"], reply.body["failed"]) == (2, 1)
    assert (await client.get(f"/v1/accounts/{foreign}")).body["balance"] == 100


async def test_a_role_is_held_to_its_routes_and_a_tenant_key_to_its_tenants(client: Client) -> None:
    tenant = await client.tenant(100)
    _, reader = await limited(client, "reader")
    _, operator = await limited(client, "operator", tenants=[tenant])

    spend = await post(client, reader, "/v1/credits/consume", {"tenant_id": tenant, "amount": 1})
    keys = await client.call("GET", "/v1/keys", Authorization=reader)
    whole = await client.call("GET", "/v1/ledger/trial-balance", Authorization=operator)
    read = await client.call("GET", f"/v1/accounts/{tenant}", Authorization=reader)

    assert [reply.refusal for reply in (spend, keys, whole)] == [(403, "forbidden")] * 3
    assert read.status == 200


async def test_a_revoked_key_is_refused_within_two_seconds_and_both_are_entries(client: Client, lag: Lag) -> None:
    key_id, header = await limited(client, "writer")

    revoked = await client.call("DELETE", f"/v1/keys/{key_id}")
    revoked_s = time.monotonic()
    async with asyncio.timeout(DEADLINE_S):
        while (await client.call("GET", "/v1/audit/keys", Authorization=header)).status != 401:
            await asyncio.sleep(0.02)
    took_s = time.monotonic() - revoked_s

    assert revoked.status == 200
    assert took_s < REVOKED_WITHIN_S + lag.largest_s
    async with asyncio.timeout(DEADLINE_S):
        while True:
            kinds = [kind for kind, details in await notes(client) if details.get("key_id") == key_id]
            if {"key.create", "key.revoke"} <= set(kinds):
                break
            await asyncio.sleep(0.1)
    assert sorted(kinds) == ["access.denied", "key.create", "key.revoke"]


async def notes(client: Client) -> list[tuple[str, dict[str, Any]]]:
    """Return the kind and details of all entries that move nothing."""
    found, after = [], ""
    while True:
        page = (await client.get(f"/v1/audit/entries?limit=1000{after}")).body
        for item in page["data"]:
            record = json.loads(base64.b64decode(item["entry"]).removeprefix(ENTRY_PREFIX))
            if not record["tenant_id"]:
                assert (record["amount"], record["debit"], record["credit"]) == (0, "system:none", "system:none")
                found.append((record["type"], record["details"]))
        if page["next_cursor"] is None:
            return found
        after = f"&cursor={page['next_cursor']}"


async def test_rates_of_key_and_tenant_are_held_and_told(client: Client) -> None:
    tenant, other = await client.tenant(100), await client.tenant(100)
    await client.call("PATCH", f"/v1/accounts/{tenant}", {"rate_limit": {"rate": 0.01, "burst": 2}})
    _, header = await limited(client, "writer", rate_limit={"rate": 0.01, "burst": 4})

    async def spend(of: str) -> Reply:
        return await post(client, header, "/v1/credits/consume", {"tenant_id": of, "amount": 1})

    async with asyncio.timeout(DEADLINE_S):
        while (
            "RateLimit"
            not in (first := await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1})).headers
        ):
            await asyncio.sleep(0.05)
    by_tenant = [await spend(tenant) for _ in range(2)]
    by_key = [await spend(other) for _ in range(4)]

    assert first.status == 200
    assert [reply.status for reply in by_tenant] == [200, 429]
    assert by_tenant[1].code == "rate_limited"
    assert int(by_tenant[1].headers["Retry-After"]) >= 1
    assert '"tenant"' in by_tenant[1].headers["RateLimit-Policy"]
    assert [reply.status for reply in by_key] == [200, 200, 200, 429]
    assert (await client.get(f"/v1/accounts/{other}")).body["balance"] == 97

    root = [
        await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}),
        await client.get(f"/v1/accounts/{tenant}"),
        await client.post("/v1/credits/topup", {"tenant_id": tenant, "amount": 1}),
        await client.call("PATCH", f"/v1/accounts/{tenant}", {"rate_limit": None}),
    ]
    assert [reply.status for reply in root] == [429, 200, 200, 200]
