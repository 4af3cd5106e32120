"""What a day later must still be true: Redis has let closed records go, Postgres has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from app.db.keys import shard_tag
from tests.credits.ledger_client import Client, fresh
from tests.credits.ledger_house import Ledger


@pytest.fixture
def keys(ledger: Ledger) -> Iterator[Any]:
    with redis.Redis.from_url(ledger.redis_url) as connection:
        yield connection


async def test_the_limit_of_refunds_holds(client: Client, keys: Any) -> None:
    tenant = await client.tenant(100)
    refund = {"transaction_id": (await client.consume(tenant, 40))["transaction_id"]}
    await client.done("/v1/credits/refund", refund | {"amount": 15})
    name = f"{shard_tag(0)}refunds:{refund['transaction_id']}"
    assert 0 < keys.ttl(name) <= 86_400

    keys.expire(name, 0)
    over = await client.post("/v1/credits/refund", refund | {"amount": 26})
    rest = await client.post("/v1/credits/refund", refund)

    assert (over.refusal, over.body["refundable"]) == ((422, "refund_exceeds_consumed"), 25)
    assert (rest.body["amount"], rest.body["balance"]) == (25, 100)


@pytest.mark.parametrize(("end", "status"), [("commit", "committed"), ("abort", "aborted")])
@pytest.mark.parametrize("verb", ["commit", "abort"])
async def test_a_closed_reservation_is_still_closed(client: Client, keys: Any, end: str, status: str, verb: str) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    path = f"/v1/credits/reservations/{(await client.reserve(tenant, 40))['reservation_id']}"
    await client.done(f"{path}/{end}")
    before = await client.numbers(tenant)
    name = f"{shard_tag(0)}reservation:{path.rpartition('/')[2]}"
    assert 0 < keys.ttl(name) <= 86_400

    keys.expire(name, 0)
    first = await client.post(f"{path}/{verb}", key=key)
    second = await client.post(f"{path}/{verb}", key=key)

    assert first.refusal == (409, f"reservation_{status}")
    assert (second.raw, second.replayed) == (first.raw, True)
    assert await client.numbers(tenant) == before
    assert (await client.get(path)).body["status"] == status


async def test_a_key_that_has_been_let_go_is_a_new_key(client: Client, keys: Any) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    body = {"tenant_id": tenant, "amount": 1}
    before = set(keys.scan_iter(f"{shard_tag(0)}idem:*"))
    first = await client.post("/v1/credits/consume", body, key=key)
    made = set(keys.scan_iter(f"{shard_tag(0)}idem:*")) - before
    assert [0 < keys.ttl(name) <= 86_400 for name in made] == [True]

    keys.expire(made.pop(), 0)
    second = await client.post("/v1/credits/consume", body, key=key)

    assert not second.replayed
    assert first.body["transaction_id"] != second.body["transaction_id"]
