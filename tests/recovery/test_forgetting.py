"""Redis forgets one thing, and everything else looks sound."""

from __future__ import annotations

import asyncio

from recovery_load import Load
from recovery_operations import Operation
from recovery_scene import Scene
from redis.asyncio import Redis

from app.db.keys import shard_tag

CONSUME = "/v1/credits/consume"
TOPUP = "/v1/credits/topup"


async def ask(load: Load, kind: str, path: str, body: dict[str, object]) -> Operation:
    """Ask for one thing of the load's own until it is answered."""
    operation = Operation(f"{load.plan.label}-only-{len(load.operations)}", kind, path, body)
    load.operations.append(operation)
    await load.settle([operation])
    return operation


async def settled_size(scene: Scene) -> int:
    """Return the size of the append-only file once the server writes nothing more into it by itself."""
    sizes = [scene.house.redis.aof_size()]
    while len(sizes) < 20 or len(set(sizes[-20:])) > 1:
        await asyncio.sleep(0.02)
        sizes.append(scene.house.redis.aof_size())
    return sizes[-1]


async def test_refusal_that_redis_lost_alone_stays_refused(scene: Scene) -> None:
    redis = scene.house.redis
    async with scene.quiet_load() as load:
        tenant = load.plan.tenants[0]
        size = await settled_size(scene)
        refused = await ask(load, "overdraw", CONSUME, {"tenant_id": tenant, "amount": 500_000})
        redis.kill()
        redis.cut_aof(size)
        await redis.start()
        await scene.house.wait_ready()
        await ask(load, "topup", TOPUP, {"tenant_id": tenant, "amount": 1_000_000})

        await load.replay([refused])

        load.check()


async def test_batch_key_is_not_taken_for_another_batch_after_a_flush(scene: Scene) -> None:
    async with scene.quiet_load() as load:
        tenant = load.plan.tenants[0]
        first = await ask(
            load, "batch", "/v1/credits/batch", {"operations": [{"op": "consume", "tenant_id": tenant, "amount": 1}]}
        )
        await scene.house.redis.flush()
        other = Operation(
            first.key, "overcommit", first.path, {"operations": [{"op": "topup", "tenant_id": tenant, "amount": 1}]}
        )

        await load.settle([other])

        assert other.settled is not None
        assert (other.settled.status, other.settled.fields["code"]) == (422, "idempotency_key_reused")


async def test_lost_account_is_not_taken_for_no_account(scene: Scene) -> None:
    async with scene.quiet_load() as load:
        tenant = load.plan.tenants[0]
        redis = Redis.from_url(scene.house.redis.url)
        assert await redis.delete(f"{shard_tag(0)}account:{tenant}") == 1
        await redis.aclose()

        spent = await ask(load, "consume", CONSUME, {"tenant_id": tenant, "amount": 7})

        assert spent.settled is not None
        assert spent.settled.status == 200


async def test_lost_hold_can_be_committed(scene: Scene) -> None:
    async with scene.quiet_load() as load:
        tenant = load.plan.tenants[0]
        held = await ask(load, "reserve", "/v1/credits/reserve", {"tenant_id": tenant, "amount": 20})
        assert held.settled is not None
        identifier = held.settled.fields["reservation_id"]
        redis = Redis.from_url(scene.house.redis.url)
        assert await redis.delete(f"{shard_tag(0)}reservation:{identifier}") == 1
        await redis.aclose()

        spent = await ask(load, "commit", f"/v1/credits/reservations/{identifier}/commit", {"amount": 5})

        assert spent.settled is not None
        assert spent.settled.status == 200
