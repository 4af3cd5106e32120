"""History, balance at a time, usage and the trial balance over HTTP."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.credits.ledger_client import Client


def text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def later_than(at: str) -> None:
    """Wait until the clock has passed a time that the server named."""
    deadline_s = time.monotonic() + 5
    while text(datetime.now(UTC)) <= at[:-1] + "999Z":
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.001)


async def test_history_is_newest_first_and_pages_without_gap_or_repeat(client: Client) -> None:
    tenant = await client.tenant(100)
    spent = [await client.consume(tenant, 1) for _ in range(7)]
    path = f"/v1/accounts/{tenant}/transactions?limit=3"

    seen, cursor = [], ""
    while True:
        page = (await client.get(path + cursor)).body
        assert len(page["data"]) <= 3
        seen += page["data"]
        if page["next_cursor"] is None:
            break
        await client.consume(tenant, 1)
        cursor = f"&cursor={page['next_cursor']}"

    assert seen[:7] == spent[::-1]
    assert [one["type"] for one in seen[7:]] == ["topup", "account"]


async def test_history_is_filtered_by_type_and_time(client: Client) -> None:
    tenant = await client.tenant(100)
    first = await client.consume(tenant, 1)
    await later_than(first["created_at"])
    second = await client.consume(tenant, 2)
    await client.reserve(tenant, 3)

    async def amounts(query: str) -> list[int]:
        return [one["amount"] for one in (await client.get(f"/v1/accounts/{tenant}/transactions?{query}")).body["data"]]

    assert await amounts("type=consume") == [2, 1]
    assert await amounts("type=reserve") == [3]
    assert await amounts("type=refund") == []
    assert await amounts(f"from={second['created_at']}&type=consume") == [2]
    assert await amounts(f"to={second['created_at']}&type=consume") == [1]
    assert await amounts(f"from={first['created_at']}&to={second['created_at']}&type=consume") == [1]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=ten", "limit=01", "limit=1&limit=2", "type=theft", "from=yesterday", "from=2026-01-01",
     "from=2026-01-01T00:00:00%2B01:00", "from=2026-13-01T00:00:00Z", "cursor=%20", "cursor=bm90LWpzb24", "cursor=ImEi",
     "cursor=MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkw", "cursor=MTg0NDY3NDQwNzM3MDk1NTE2MTU", "cursor=OTIyMzM3MjAzNjg1NDc3NTgwOA", "page=2"],
)  # fmt: skip
async def test_wrong_queries_are_refused(client: Client, query: str) -> None:
    tenant = await client.tenant()

    reply = await client.get(f"/v1/accounts/{tenant}/transactions?{query}")

    assert reply.refusal == (422, "invalid_request")
    assert reply.body["errors"][0]["pointer"].startswith("?")


@pytest.mark.parametrize(
    "path", ["/v1/accounts?cursor=MQ", "/v1/accounts/{}/reservations?cursor=MQ", "/v1/accounts/{}/reservations?cursor=ImEi"]
)
async def test_a_cursor_of_another_list_is_refused(client: Client, path: str) -> None:
    tenant = await client.tenant()

    reply = await client.get(path.format(tenant))

    assert reply.refusal == (422, "invalid_request")


async def test_the_balance_at_a_time_is_the_one_after_its_last_event(client: Client) -> None:
    tenant = await client.tenant()
    added = await client.topup(tenant, 100)
    await later_than(added["created_at"])
    spent = await client.consume(tenant, 30)
    await later_than(spent["created_at"])
    hold = await client.reserve(tenant, 20)

    async def at(when: str) -> tuple[int, int, int, int]:
        body = (await client.get(f"/v1/accounts/{tenant}/balance{when}")).body
        return body["balance"], body["reserved"], body["available"], body["version"]

    assert await at("?at=2020-01-01T00:00:00Z") == (0, 0, 0, 0)
    assert await at(f"?at={added['created_at']}") == (100, 0, 100, 2)
    assert await at(f"?at={spent['created_at']}") == (70, 0, 70, 3)
    assert await at(f"?at={hold['created_at']}") == (70, 20, 50, 4)
    assert await at("") == (70, 20, 50, 4)


@pytest.mark.parametrize(
    ("given", "told"),
    [("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"), ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999Z")],
)
async def test_the_first_and_the_last_time_that_can_be_written_are_times(client: Client, given: str, told: str) -> None:
    tenant = await client.tenant(100)

    balance = (await client.get(f"/v1/accounts/{tenant}/balance?at={given}")).body

    assert (balance["at"], balance["balance"]) == (told, 0 if given < "1" else 100)


async def test_usage_sums_by_hour_and_day(client: Client) -> None:
    tenant = await client.tenant(100)
    spent = await client.consume(tenant, 30)
    await client.consume(tenant, 5)
    hold = await client.reserve(tenant, 10)
    await client.done(f"/v1/credits/reservations/{hold['reservation_id']}/commit", {"amount": 7})
    await client.done("/v1/credits/refund", {"transaction_id": spent["transaction_id"], "amount": 4})
    start = datetime.now(UTC) - timedelta(hours=3)

    for granularity in ("hour", "day"):
        path = f"/v1/accounts/{tenant}/usage?from={text(start)}&to={text(datetime.now(UTC) + timedelta(hours=1))}"
        buckets = (await client.get(f"{path}&granularity={granularity}")).body["data"]

        total = {
            name: sum(bucket[name] for bucket in buckets) for name in ("consumed", "topped_up", "refunded", "transactions")
        }
        assert total == {"consumed": 42, "topped_up": 100, "refunded": 4, "transactions": 5}
        assert all(
            bucket["start"].endswith(":00:00.000Z" if granularity == "hour" else "T00:00:00.000Z") for bucket in buckets
        )


@pytest.mark.parametrize(
    "query",
    [
        "granularity=minute",
        "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
        "from=2020-01-01T00:00:00Z&to=2026-01-01T00:00:00Z",
        "to=0001-01-01T00:00:00Z",
    ],
)
async def test_usage_refuses_what_it_cannot_sum(client: Client, query: str) -> None:
    tenant = await client.tenant()

    reply = await client.get(f"/v1/accounts/{tenant}/usage?{query}")

    assert reply.refusal == (422, "invalid_request")


async def test_the_trial_balance_is_zero_after_random_traffic(client: Client) -> None:
    draw = random.Random(20261122)
    tenants = [await client.tenant(50) for _ in range(4)]
    spends: list[str] = []
    holds: list[str] = []

    async def one() -> None:
        tenant, amount = draw.choice(tenants), draw.randint(1, 20)
        kind = draw.choice(["topup", "consume", "consume", "reserve", "commit", "abort", "refund", "transfer"])
        if kind in {"topup", "consume", "reserve"}:
            reply = await client.post(f"/v1/credits/{kind}", {"tenant_id": tenant, "amount": amount})
            if reply.status == 200 and kind != "topup":
                (spends if kind == "consume" else holds).append(reply.body["transaction_id"])
        elif kind == "refund" and spends:
            reply = await client.post("/v1/credits/refund", {"transaction_id": draw.choice(spends), "amount": amount})
        elif kind in {"commit", "abort"} and holds:
            reply = await client.post(f"/v1/credits/reservations/{draw.choice(holds)}/{kind}")
        else:
            other = {"tenant_id": draw.choice(tenants), "amount": amount}
            reply = await client.post("/v1/transactions", {"legs": [{"tenant_id": tenant, "amount": -amount}, other]})
        assert reply.status < 500

    for _ in range(15):
        await asyncio.gather(*(one() for _ in range(10)))
        body = (await client.get("/v1/ledger/trial-balance")).body

        assert body["total"] == 0
        assert body["tenants"] + sum(body["accounts"].values()) == 0

    assert set(body["accounts"]) >= {"system:funding", "system:revenue", "system:expired", "system:adjustment"}
