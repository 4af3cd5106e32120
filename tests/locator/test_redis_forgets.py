"""A Redis that forgets: all, the last changes, or the part of the stream that a replica had not read."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis

from app.db.keys import LOCATOR_INSTANCES
from app.locator.instance import State
from app.locator.record import Fact, parse_fact
from app.web.problems import Problem
from tests.locator.replicas import eventually, instance, replicas
from tests.stores import PrivateRedis, run_apart


async def test_a_redis_that_has_forgotten_everything_is_told_again(own_redis: PrivateRedis) -> None:
    async with replicas(own_redis.url, 2) as (one, other):
        record, _ = await one.register("web", "a", "g1", instance())
        await one.change(lambda registry: registry.order("web", "a", "", "draining"))
        await eventually(lambda: other.state("web", "a") is State.DRAINING)
        index = one.directory.index
        run_apart(own_redis.flush())

        await one.tick()
        await other.tick()

        async with Redis.from_url(own_redis.url) as redis:
            deadline_s = time.monotonic() + 5
            while not await redis.hexists(LOCATOR_INSTANCES, "web/a"):
                assert time.monotonic() < deadline_s
                await asyncio.sleep(0.01)
        await eventually(lambda: min(one.directory.index, other.directory.index) > index)
        assert one.states("web") == other.states("web") == {"a": "draining"}
        assert record.generation == "g1"


async def rewind(redis_url: str, kept: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
    """Return all keys as they are, or make Redis what it was, as a failover does that loses the last changes."""
    async with Redis.from_url(redis_url) as redis:
        if kept is None:
            return {key: await redis.dump(key) for key in await redis.keys()}
        await redis.flushall()
        for key, value in kept.items():
            await redis.restore(key, 0, value)
        await redis.client_kill_filter(_type="normal")
    return kept


async def redis_knows(redis_url: str) -> dict[str, Fact]:
    """Return the instances that Redis holds."""
    async with Redis.from_url(redis_url) as redis:
        return {field.decode(): parse_fact(text) for field, text in (await redis.hgetall(LOCATOR_INSTANCES)).items()}


async def test_changes_and_ends_that_a_failover_lost_are_laid_again_and_nothing_ended_returns(
    own_redis: PrivateRedis,
) -> None:
    async with replicas(own_redis.url, 2) as (one, other):
        for id_ in ("ended", "renewed", "drained", "left"):
            await one.register("web", id_, "g1", instance())
        kept = await rewind(own_redis.url)
        await one.change(lambda registry: registry.drop("web", "ended", "g1"))
        await one.register("web", "renewed", "g2", instance(port=81))
        await one.change(lambda registry: registry.order("web", "drained", "", "draining"))
        await one.register("web", "new", "g1", instance())
        expected = {"drained": "draining", "left": "up", "new": "up", "renewed": "up"}
        await eventually(lambda: other.states("web") == expected)
        reloads = [replica.feed.reloads for replica in (one, other) if replica.feed is not None]

        await rewind(own_redis.url, kept)
        async with replicas(own_redis.url, 1) as (third,):
            await eventually(lambda: [r.feed.reloads for r in (one, other) if r.feed is not None] > reloads)
            await eventually(lambda: third.states("web").keys() == expected.keys())
            await eventually(lambda: third.state("web", "drained") is State.DRAINING)

            assert one.states("web") == other.states("web") == expected
            for replica in (one, other, third):
                assert replica.directory.services["web"].records["renewed"].generation == "g2"
            facts = await redis_knows(own_redis.url)
            assert facts.keys() == {f"web/{id_}" for id_ in expected}
            assert (facts["web/drained"].mode, facts["web/renewed"].generation) == ("draining", "g2")
            for id_, generation in (("ended", "g1"), ("renewed", "g1")):
                with pytest.raises(Problem, match="stale_generation"):
                    await third.register("web", id_, generation, instance())


async def test_who_missed_an_end_that_redis_forgot_with_the_instance_does_not_bring_it_back(own_redis: PrivateRedis) -> None:
    async with replicas(own_redis.url, 2) as (one, other):
        kept = await rewind(own_redis.url)
        await one.register("web", "ended", "g1", instance())
        await eventually(lambda: other.state("web", "ended"))
        assert one.feed is not None
        assert other.feed is not None
        await other.feed.stop()  # it lags behind the stream
        await one.change(lambda registry: registry.drop("web", "ended", "g1"))
        reloads = one.feed.reloads
        await rewind(own_redis.url, kept)
        await eventually(lambda: one.feed is not None and one.feed.reloads > reloads)
        await one.tick()

        other.feed.start(other.crashes.append)

        await eventually(lambda: other.states("web") == {})
        assert one.states("web") == {}
        assert await redis_knows(own_redis.url) == {}


async def test_a_redis_with_other_data_counts_anew_also_for_what_has_ended_before(own_redis: PrivateRedis) -> None:
    async with replicas(own_redis.url, 1) as (one,):
        for number in range(10):
            await one.register("web", "ended", f"g{number}", instance(port=80 + number))
        await one.change(lambda registry: registry.drop("web", "ended", ""))
        run_apart(own_redis.flush())

        async with replicas(own_redis.url, 1) as (fresh,):  # it counts from the beginning
            await fresh.register("web", "other", None, instance())
            await eventually(lambda: one.state("web", "other"))
            await fresh.register("web", "ended", None, instance())

            await eventually(lambda: one.state("web", "ended") is State.UP)


async def test_more_than_the_mailbox_takes_is_laid_again_to_the_last_instance(
    own_redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.locator.registry.SERVICE_CHANGES_MAX", 5)
    async with replicas(own_redis.url, 2) as (one, other):
        for number in range(11):
            await one.register("web", f"i{number}", None, instance())
        await eventually(lambda: len(other.states("web")) == 11)
        run_apart(own_redis.flush())

        await one.tick()
        async with Redis.from_url(own_redis.url) as redis:
            deadline_s = time.monotonic() + 10
            while await redis.hlen(LOCATOR_INSTANCES) < 11:
                assert time.monotonic() < deadline_s
                await asyncio.sleep(0.01)

        assert one.feed is not None
        one.feed.read_again()
        reloads = one.feed.reloads
        await eventually(lambda: one.feed is not None and one.feed.reloads > reloads)
        assert set(one.states("web").values()) == set(other.states("web").values()) == {"up"}
        assert len(one.states("web")) == len(other.states("web")) == 11


async def test_a_stream_that_moved_on_without_a_replica_is_made_good_by_reading_all(redis_url: str) -> None:
    async with replicas(redis_url, 2) as (one, other):
        await one.register("web", "gone", None, instance())
        await eventually(lambda: other.state("web", "gone"))
        assert other.feed is not None
        reloads = other.feed.reloads
        other.feed._seen += 1

        await one.change(lambda registry: registry.drop("web", "gone", ""))
        await one.register("web", "new", None, instance())

        await eventually(lambda: other.states("web") == {"new": "up"} or other.states("web") == {"new": "unverified"})
        # It is counted a turn of the loop after the last step.
        await eventually(lambda: other.feed is not None and other.feed.reloads > reloads)
        assert other.feed.reloads == reloads + 1


async def test_registering_again_what_was_restored_brings_it_into_lookups(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (before,):
        await before.register("web", "a", "g1", instance())
    async with replicas(redis_url, 1) as (after,):
        assert after.state("web", "a") is State.UNVERIFIED

        await after.register("web", "a", "g1", instance())

        assert after.state("web", "a") is State.UP
