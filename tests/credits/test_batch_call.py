"""POST /v1/credits/batch: every operation on its own, results in order."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from app.actor import AskTimeout
from app.credits.operation import Claims, Done
from app.db.keys import shard_tag
from tests.credits.ledger_client import Client, fresh
from tests.credits.ledger_house import Ledger

NOBODY = "01890000-0000-7000-8000-000000000000"
PATH = "/v1/credits/batch"


def spend(tenant: str, amount: int = 1, **more: Any) -> dict[str, Any]:
    return {"op": "consume", "tenant_id": tenant, "amount": amount, **more}


async def test_every_kind_of_operation_in_one_batch(client: Client) -> None:
    tenant = await client.tenant(100)
    hold, other = await client.reserve(tenant, 20), await client.reserve(tenant, 5)
    spent = await client.consume(tenant, 10)

    body = await client.done(PATH, {"operations": [
        {"op": "topup", "tenant_id": tenant, "amount": 7, "description": "more"},
        spend(tenant, 3, metadata={"model": "small"}),
        {"op": "reserve", "tenant_id": tenant, "amount": 4, "ttl_seconds": 60},
        {"op": "commit", "reservation_id": hold["reservation_id"], "amount": 15},
        {"op": "abort", "reservation_id": other["reservation_id"]},
        {"op": "refund", "transaction_id": spent["transaction_id"], "amount": 6},
    ]})  # fmt: skip

    assert (body["succeeded"], body["failed"]) == (6, 0)
    results = body["results"]
    assert [result["status"] for result in results] == [200] * 6
    assert [result["amount"] for result in results] == [7, 3, 4, 15, 5, 6]
    assert [result["balance"] for result in results] == [97, 94, 94, 79, 79, 85]
    assert [result["version"] for result in results] == [6, 7, 8, 9, 10, 11]
    assert (results[1]["metadata"], results[0]["description"]) == ({"model": "small"}, "more")
    assert (results[2]["reservation_status"], results[4]["reservation_status"]) == ("held", "aborted")
    assert await client.numbers(tenant) == (85, 4, 11)


async def test_each_operation_stands_alone(client: Client) -> None:
    tenant = await client.tenant(10)

    body = await client.done(PATH, {"operations": [
        spend(tenant, 6), spend(tenant, 6), spend(tenant, 4), spend(fresh("nobody")),
        {"op": "commit", "reservation_id": NOBODY}, {"op": "refund", "transaction_id": NOBODY},
        {"op": "consume", "tenant_id": tenant, "amount": 1, "expected_version": 1},
    ]})  # fmt: skip

    assert (body["succeeded"], body["failed"]) == (2, 5)
    refused = [(result["status"], result.get("code")) for result in body["results"]]
    assert refused == [
        (200, None), (402, "insufficient_credits"), (200, None), (404, "no_account"), (404, "no_reservation"),
        (404, "no_transaction"), (409, "version_conflict"),
    ]  # fmt: skip
    assert body["results"][1]["available"] == 4
    assert (await client.numbers(tenant))[0] == 0


async def test_a_batch_again_gives_the_same_results(client: Client) -> None:
    tenant, key = await client.tenant(10), fresh("key")
    batch = {"operations": [spend(tenant, 6), spend(tenant, 6), {"op": "topup", "tenant_id": tenant, "amount": 1}]}

    first = await client.post(PATH, batch, key=key)
    second = await client.post(PATH, batch, key=key)

    assert (first.status, first.replayed) == (200, False)
    assert (second.status, second.raw, second.replayed) == (200, first.raw, True)
    assert (await client.numbers(tenant))[0] == 5


async def test_the_key_of_a_batch_stands_for_its_operations(client: Client) -> None:
    tenant, key = await client.tenant(10), fresh("key")
    await client.post(PATH, {"operations": [spend(tenant, 1)]}, key=key)

    other = await client.post(PATH, {"operations": [spend(tenant, 2)]}, key=key)
    longer = await client.post(PATH, {"operations": [spend(tenant, 1), spend(tenant, 1)]}, key=key)
    single = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=key)

    assert [reply.refusal for reply in (other, longer, single)] == [(422, "idempotency_key_reused")] * 3
    assert (await client.numbers(tenant))[0] == 9


async def test_operations_without_keys_get_the_key_of_the_batch_and_their_index(client: Client) -> None:
    tenant, key = await client.tenant(10), fresh("key")
    body = (await client.post(PATH, {"operations": [spend(tenant, 1), spend(tenant, 2)]}, key=key)).body

    single = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 2}, key=f"{key}/1")
    other = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 2}, key=f"{key}/0")

    assert single.replayed
    assert single.body["transaction_id"] == body["results"][1]["transaction_id"]
    assert other.refusal == (422, "idempotency_key_reused")


async def test_a_key_used_twice_inside_a_batch_is_applied_once(client: Client) -> None:
    tenant, key = await client.tenant(10), fresh("op")

    body = await client.done(PATH, {"operations": [
        spend(tenant, 1, idempotency_key=key), spend(tenant, 1, idempotency_key=key), spend(tenant, 2, idempotency_key=key),
    ]})  # fmt: skip

    first, again, other = body["results"]
    assert first["status"] == again["status"] == 200
    assert first["transaction_id"] == again["transaction_id"]
    assert (other["status"], other["code"]) == (422, "idempotency_key_reused")
    assert (await client.numbers(tenant))[0] == 9


async def test_a_batch_whose_operations_ran_alone_before_does_not_run_them_again(client: Client) -> None:
    tenant, key = await client.tenant(10), fresh("op")
    single = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=key)

    body = await client.done(PATH, {"operations": [spend(tenant, 1, idempotency_key=key), spend(tenant, 1)]})

    assert body["results"][0]["transaction_id"] == single.body["transaction_id"]
    assert (await client.numbers(tenant))[0] == 8


async def test_the_same_batch_twenty_times_at_once_is_applied_once(client: Client) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    batch = {"operations": [spend(tenant, 1) for _ in range(10)]}

    replies = await asyncio.gather(*(client.post(PATH, batch, key=key) for _ in range(20)))

    assert {(reply.status, reply.raw) for reply in replies} == {(200, replies[0].raw)}
    assert (await client.numbers(tenant))[0] == 90


async def test_ten_thousand_operations_are_applied_in_order(client: Client) -> None:
    tenant = await client.tenant(6_000)

    body = await client.done(PATH, {"operations": [spend(tenant)] * 10_000})

    assert (body["succeeded"], body["failed"]) == (6_000, 4_000)
    assert [result["status"] for result in body["results"]] == [200] * 6_000 + [402] * 4_000
    assert [result["balance"] for result in body["results"][:6_000]] == list(range(5_999, -1, -1))
    assert await client.numbers(tenant) == (0, 0, 6_002)


@pytest.mark.parametrize("count", [0, 10_001])
async def test_a_batch_has_one_to_ten_thousand_operations(client: Client, count: int) -> None:
    tenant = await client.tenant(5)

    reply = await client.post(PATH, {"operations": [spend(tenant)] * count})

    assert reply.refusal == (422, "invalid_request")
    assert reply.body["errors"][0]["pointer"] == "/operations"
    assert await client.numbers(tenant) == (5, 0, 2)


async def test_one_malformed_operation_refuses_the_whole_batch(client: Client) -> None:
    tenant = await client.tenant(5)

    reply = await client.post(PATH, {"operations": [spend(tenant), spend(tenant, 0)]})

    assert reply.refusal == (422, "invalid_request")
    assert reply.body["errors"][0]["pointer"] == "/operations/1/amount"
    assert await client.numbers(tenant) == (5, 0, 2)


async def test_a_batch_over_many_accounts_keeps_every_balance(client: Client) -> None:
    tenants = [await client.tenant(20) for _ in range(5)]

    body = await client.done(PATH, {"operations": [spend(tenants[i % 5]) for i in range(150)]})

    assert body["succeeded"] == 100
    assert [await client.numbers(tenant) for tenant in tenants] == [(0, 0, 22)] * 5


async def test_a_batch_over_two_shards_answers_in_the_order_of_its_operations(wide: Client) -> None:
    tenants = [await wide.tenant(10) for _ in range(8)]

    body = await wide.done(PATH, {"operations": [spend(tenant, i + 1) for i, tenant in enumerate(tenants)]})

    assert [result["tenant_id"] for result in body["results"]] == tenants
    assert [result["balance"] for result in body["results"]] == list(range(9, 1, -1))
    assert {result["shard"] for result in body["results"]} == {0, 1}


async def test_operations_are_decided_while_the_key_of_their_batch_waits_to_be_durable(
    client: Client, ledger: Ledger
) -> None:
    tenant, other = await client.tenant(10), await client.tenant(10)
    owner = await asyncpg.connect(ledger.database_url)

    async def balances(*wanted: bytes) -> None:
        async with asyncio.timeout(1.5), Redis.from_url(ledger.redis_url) as redis:
            while [await redis.hget(f"{shard_tag(0)}account:{one}", "balance") for one in (other, tenant)] != [*wanted]:
                await asyncio.sleep(0.005)

    async with owner.transaction():
        await owner.execute("LOCK TABLE credit_accounts IN SHARE MODE")
        spent = asyncio.create_task(client.consume(other, 1))
        await balances(b"9", b"10")
        batch = asyncio.create_task(client.done(PATH, {"operations": [spend(tenant), spend(tenant)]}))
        await balances(b"9", b"8")
        assert [spent.done(), batch.done()] == [False, False], "nothing is answered that is not durable"
    await owner.close()

    assert (await spent)["balance"] == 9
    assert (await batch)["succeeded"] == 2


async def test_claims_tell_once_what_redis_said_first() -> None:
    claims = Claims([{"op": "claim"}])
    claims.outcomes.append(Done(0))

    claims.foretell()
    claims.outcomes.clear()
    claims.foretell()
    claims.fail(AskTimeout("late"))

    assert await claims.decided == [Done(0)]


async def test_claims_that_fail_tell_whoever_waits_for_redis() -> None:
    claims = Claims([{"op": "claim"}])

    claims.fail(AskTimeout("late"))

    with pytest.raises(AskTimeout):
        await claims.decided
