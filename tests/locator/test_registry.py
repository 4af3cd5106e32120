"""The registry over several replicas and one Redis: what one is told all know, and nobody is dead who is not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from app.db.keys import LOCATOR_BEATS, LOCATOR_CHANGES, LOCATOR_HEAD, LOCATOR_INSTANCES
from app.db.redis import RedisLink
from app.locator.instance import State
from app.locator.registry import CALL_GAP_S
from app.web.problems import Problem
from tests.locator.replicas import Replica, eventually, instance, replicas
from tests.stores import PrivateRedis, run_apart

VISIBLE_S = 0.1


async def age(redis_url: str, seconds: float) -> None:
    """Set all heartbeats back, as if so much of Redis' time had passed."""
    async with Redis.from_url(redis_url) as redis:
        for field, at in (await redis.hgetall(LOCATOR_BEATS)).items():
            await redis.hset(LOCATOR_BEATS, field, int(at) - int(seconds * 1000))


async def set_beat(redis_url: str, field: str, at_ms: int) -> None:
    """Set the time of an instance's last heartbeat, by the registry's clock."""
    async with Redis.from_url(redis_url) as redis:
        await redis.hset(LOCATOR_BEATS, field, at_ms)


async def test_a_change_is_visible_on_another_replica_within_100_ms(redis_url: str) -> None:
    async with replicas(redis_url, 2) as (one, other):
        taken_s = []
        for number in range(20):
            began_s = time.monotonic()
            await one.register("web", f"i{number}", None, instance())
            await eventually(lambda number=number: other.state("web", f"i{number}") is State.UP)
            taken_s.append(time.monotonic() - began_s)

        assert sorted(taken_s)[len(taken_s) // 2] < VISIBLE_S
        assert one.directory.services["web"].snapshot == other.directory.services["web"].snapshot


async def test_two_replicas_that_change_the_same_instances_agree_in_the_end(redis_url: str) -> None:
    async with replicas(redis_url, 2) as both:

        async def meddle(replica: Replica, number: int) -> None:
            name = f"i{number % 5}"
            with contextlib.suppress(Problem):  # two that meet refuse each other
                await replica.register("web", name, f"g{number}", instance(port=1 + number))
                if number % 3 == 0:
                    await replica.change(lambda registry: registry.drop("web", name, f"g{number}"))

        await asyncio.gather(*(meddle(both[number % 2], number) for number in range(60)))
        async with Redis.from_url(redis_url) as redis:
            kept = {field.decode().removeprefix("web/") for field, value in (await redis.hgetall(LOCATOR_INSTANCES)).items()}
        services = [replica.directory.services["web"] for replica in both]

        await eventually(lambda: services[0].snapshot.by_id == services[1].snapshot.by_id)

        assert services[0].snapshot.by_id.keys() == kept


async def test_an_instance_that_falls_silent_is_suspect_after_20_s_and_gone_after_60(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (one,):
        await one.register("web", "dead", None, instance())
        await one.register("web", "live", None, instance())

        seen = {}
        for second in range(1, 66):
            await age(redis_url, 1)
            if second % 10 == 0:
                one.beat("web", "live")
            await one.pass_time(1)
            seen.setdefault(one.state("web", "dead"), second)

        assert 20 <= seen[State.SUSPECT] <= 25
        assert 60 <= seen[None] <= 65
        assert one.states("web") == {"live": "up"}


async def test_heartbeats_that_reach_one_replica_count_on_all(redis_url: str) -> None:
    async with replicas(redis_url, 2) as (one, other):
        await one.register("web", "a", None, instance())
        await eventually(lambda: other.state("web", "a"))

        for second in range(1, 71):
            await age(redis_url, 1)
            if second % 10 == 0:
                one.beat("web", "a")
            await one.pass_time(1)
            await other.pass_time(1)

            assert (one.state("web", "a"), other.state("web", "a")) == (State.UP, State.UP)


async def test_a_suspect_that_is_heard_again_is_up_everywhere(redis_url: str) -> None:
    async with replicas(redis_url, 2) as (one, other):
        await one.register("web", "a", None, instance())
        await age(redis_url, 25)
        await one.pass_time(25)
        await eventually(lambda: other.state("web", "a") is State.SUSPECT)

        other.beat("web", "a")
        await other.tick()

        await eventually(lambda: (one.state("web", "a"), other.state("web", "a")) == (State.UP, State.UP))


async def test_a_replica_that_was_held_up_blames_nobody(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (one,):
        await one.register("web", "a", None, instance())
        await age(redis_url, 300)

        one.clock.now_s += 300.0
        await one.tick()

        assert one.states("web") == {"a": "up"}
        assert one.upkeep is not None
        assert one.upkeep.extended_s == pytest.approx(299.0)


async def test_a_restored_instance_is_neither_dead_nor_alive_until_it_is_heard(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (before,):
        await before.register("web", "heard", None, instance())
        await before.register("web", "silent", None, instance())
        await before.register("web", "static", None, instance(ttl_s=0.0, suspect_s=0.0))
    await age(redis_url, 3_600)

    async with replicas(redis_url, 1) as (after,):
        assert after.states("web") == {"heard": "unverified", "silent": "unverified", "static": "up"}
        await after.pass_time(15)
        after.beat("web", "heard")
        assert after.states("web") == {"heard": "up", "silent": "unverified", "static": "up"}
        await after.pass_time(8)
        assert after.state("web", "silent") is State.SUSPECT
        await after.pass_time(40)
        assert after.states("web").get("silent") is None


async def test_mass_silence_removes_few_and_leaves_the_rest_suspect(redis_url: str) -> None:
    async with replicas(redis_url, 2) as both:
        await asyncio.gather(*(both[0].register("web", f"i{number}", None, instance()) for number in range(40)))
        await eventually(lambda: len(both[1].states("web")) == 40)
        await age(redis_url, 62)

        for _ in range(62):
            for replica in both:
                await replica.pass_time(1)
        await eventually(lambda: [len(replica.states("web")) for replica in both] == [40 - 6, 40 - 6])

        states = list(both[0].states("web").values())
        assert set(states) == {"suspect"}
        assert both[0].states("web") == both[1].states("web")
        assert both[0].balancer.pick(both[0].directory.services["web"].snapshot, now_s=both[0].clock_s()) is not None


async def test_lookups_and_heartbeats_go_on_while_redis_is_away_and_a_lone_replica_still_judges(
    own_redis: PrivateRedis,
) -> None:
    async with replicas(own_redis.url, 1) as (one,):
        await one.register("web", "dead", None, instance())
        await one.register("web", "live", None, instance())
        own_redis.kill()
        await eventually(lambda: not one.following)

        for second in range(1, 25):
            if second % 10 == 0:
                one.beat("web", "live")
            await one.pass_time(1)

        assert one.states("web") == {"dead": "suspect", "live": "up"}
        picked = one.balancer.pick(one.directory.services["web"].snapshot, now_s=one.clock_s())
        assert picked is not None
        assert picked.instance.id == "live"
        with pytest.raises(Problem) as refused:
            await one.register("web", "new", None, instance())
        assert (refused.value.status, refused.value.code) == (503, "unavailable")

        own_redis.launch()
        run_apart(own_redis.wait_ready())
        await eventually(lambda: one.following)
        assert len(one.states("web")) == 2


async def test_a_report_that_reaches_another_replica_is_handed_on(redis_url: str) -> None:
    async with replicas(redis_url, 2) as (one, other):
        await one.register("web", "a", None, instance())
        await eventually(lambda: other.state("web", "a"))
        await one.tick()
        await other.tick()
        await one.tick()
        snapshot = one.directory.services["web"].snapshot
        first, second = (one.balancer.pick(snapshot, now_s=one.clock_s()) for _ in range(2))
        assert first is not None
        assert second is not None

        told = [
            (first.lease_id, True),
            (first.lease_id, False),
            (f"{one.replica}-1ffffffffff", False),
            (second.lease_id, True),
        ]
        results = {other.report("web", lease_id, "k1", ok=ok, latency_ms=8.0) for lease_id, ok in told}

        assert results == {"handed_on"}
        await eventually(lambda: one.balancer.view("web", "a", one.clock_s()).reports == 2)
        assert b'shieldx_locator_reports_total{ok="false"} 0.0' in one.metrics.text()
        view = one.balancer.view("web", "a", one.clock_s())
        assert view is not None
        assert (view.in_flight, view.latency_ms) == (0, 8.0)


async def test_the_replicas_are_named_in_the_same_order_whoever_called_last(redis_url: str) -> None:
    async with replicas(redis_url, 2) as (one, other):
        assert one.registry is not None
        assert other.registry is not None
        named = set()
        for replica in (one, other, one, other, other, one):
            await replica.tick()
            named |= {one.registry.replicas, other.registry.replicas}

        assert {names for names in named if len(names) == 2} == {tuple(sorted((one.replica, other.replica)))}


async def test_a_registration_and_what_its_check_says_first_are_one_change(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (one,):
        await one.register("web", "a", "g1", instance(), first="critical")
        await one.register("web", "a", "g1", instance(), first="critical")
        assert one.state("web", "a") is State.DOWN
        await one.change(lambda registry: registry.found("web", "a", "g1", "passing"))
        await one.register("web", "a", "g2", instance(port=81), first="critical")

        async with Redis.from_url(redis_url) as redis:
            entries = await redis.xrange(LOCATOR_CHANGES)

    made = [(kind, check) for _, entry in entries for _, kind, _, _, _, check, *_ in orjson.loads(entry[b"changes"])]
    assert made == [("put", "critical"), ("set", "passing"), ("put", "passing")]  # another start goes on with its check


async def test_a_half_open_instance_gets_one_call_from_each_replica_and_each_finds_out_for_itself(redis_url: str) -> None:
    def leases_on_a(replica: Replica, lookups: int) -> list[str]:
        snapshot, now_s = replica.directory.services["web"].snapshot, replica.clock_s()
        picks = [replica.balancer.pick(snapshot, "round_robin", now_s=now_s) for _ in range(lookups)]
        return [pick.lease_id for pick in picks if pick is not None and pick.instance.id == "a"]

    def breaker(replica: Replica) -> str:
        load = replica.balancer.view("web", "a", replica.clock_s())
        return "" if load is None else load.breaker.value

    async with replicas(redis_url, 2) as both:
        for id_ in ("a", "b"):
            await both[0].register("web", id_, None, instance())
        await eventually(lambda: len(both[1].states("web")) == 2)
        for replica in both:
            for lease in leases_on_a(replica, 6):
                replica.report("web", lease, "k1", ok=False, latency_ms=None)
            replica.clock.now_s += 30.0

        one, other = (leases_on_a(replica, 40) for replica in both)
        assert (len(one), len(other)) == (1, 1)
        both[0].report("web", one[0], "k1", ok=True, latency_ms=1.0)

        assert [breaker(replica) for replica in both] == ["closed", "half_open"]
        assert leases_on_a(both[1], 40) == []
        both[1].report("web", other[0], "k1", ok=False, latency_ms=None)
        assert [breaker(replica) for replica in both] == ["closed", "open"]


async def test_an_isolation_holds_on_every_replica_until_it_is_reset(redis_url: str) -> None:
    async with replicas(redis_url, 2) as (one, other):
        await one.register("web", "a", None, instance())
        await one.change(lambda registry: registry.order("web", "a", "", "isolated"))

        await eventually(lambda: (view := other.balancer.view("web", "a", 0.0)) is not None and view.isolated)
        await other.change(lambda registry: registry.order("web", "a", "", "none"))
        await eventually(lambda: not one.balancer.view("web", "a", 0.0).isolated)


async def test_one_key_cannot_take_the_registry_and_is_told_which_limit_it_met(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.locator.opening.INSTANCES_OF_KEY_MAX", 3)
    monkeypatch.setattr("app.locator.opening.SERVICES_OF_KEY_MAX", 1)
    monkeypatch.setattr("app.locator.opening.SERVICES_MAX", 2)
    async with replicas(redis_url, 1) as (one,):

        async def refusal(service: str, owner: str) -> str:
            with pytest.raises(Problem) as refused:
                await one.register(service, "i9", None, instance(owner=owner))
            assert (refused.value.status, refused.value.code) == (409, "too_many_instances")
            return refused.value.detail.partition(";")[0]

        await one.register("web", "i0", None, instance())
        assert await refusal("db", "k1") == "There are 1 services of this key"
        for number in range(1, 3):
            await one.register("web", f"i{number}", None, instance())
        assert await refusal("web", "k1") == "There are 3 instances of this key"
        await one.register("web", "i9", None, instance(owner="k2"))
        await one.register("db", "i1", None, instance(owner="k3"))
        assert await refusal("mail", "k4") == "There are 2 services"

        await one.change(lambda registry: registry.drop("db", "i1", ""))
        await one.register("mail", "i1", None, instance(owner="k4"))
        await one.register("web", "i0", None, instance(port=81))
        await one.change(lambda registry: registry.drop("web", "i0", ""))
        await one.register("web", "i8", None, instance())
        assert dict(one.directory.owned_services) == {"k1": 1, "k2": 1, "k4": 1}


async def test_what_others_have_heard_while_a_replica_did_not_follow_is_verified_there(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (one,):
        for id_ in ("heard", "silent"):
            await one.register("web", id_, None, instance())
        async with replicas(redis_url, 1) as (other,):
            assert other.states("web") == {"heard": "unverified", "silent": "unverified"}
            assert other.feed is not None
            other.feed._seen += 1  # it takes nothing of what comes now
            began_ms = time.time_ns() // 1_000_000
            await eventually(lambda: time.time_ns() // 1_000_000 > began_ms)  # the registry's clock counts in ms

            one.clock.now_s += 6.0
            one.beat("web", "heard")
            await one.tick()

            await eventually(lambda: other.feed is not None and other.feed.reloads == 2)
            assert other.states("web") == {"heard": "up", "silent": "unverified"}


async def test_a_replica_that_starts_takes_over_what_another_one_has_heard_and_no_more(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (one,):
        for id_ in ("heard", "unheard"):
            await one.register("web", id_, None, instance())
        await set_beat(redis_url, "web/unheard", 0)
        async with replicas(redis_url, 1) as (alone,):
            assert alone.states("web") == {"heard": "unverified", "unheard": "unverified"}

            await one.tick()

            await eventually(lambda: alone.states("web") == {"heard": "up", "unheard": "unverified"})


async def test_heartbeats_are_read_some_at_a_time_so_that_the_ledger_gets_its_turn_in_redis(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    command = RedisLink.command

    async def counted(link: RedisLink, *words: Any, **options: Any) -> Any:
        if words[:2] == ("HMGET", LOCATOR_BEATS):
            sizes.append(len(words) - 2)
        return await command(link, *words, **options)

    monkeypatch.setattr(RedisLink, "command", counted)
    monkeypatch.setattr("app.locator.feed.SCAN_COUNT", 2)
    async with replicas(redis_url, 1) as (one,):
        for number in range(5):
            await one.register("web", f"i{number}", None, instance())
        async with replicas(redis_url, 1) as (other,):
            await one.tick()
            await eventually(lambda: set(other.states("web").values()) == {"up"})

    assert sizes == [2, 2, 1]


async def test_what_was_heard_before_a_time_without_any_replica_is_not_taken_over(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (before,):
        await before.register("web", "a", None, instance())
    async with Redis.from_url(redis_url) as redis:
        await redis.hincrby(LOCATOR_HEAD, "wall", -60_000)  # for a minute nobody called
    async with replicas(redis_url, 2) as (one, other):
        for _ in range(3):
            await one.tick()
            await other.tick()
        await one.register("web", "b", None, instance())
        await eventually(lambda: other.state("web", "b"))

        assert one.states("web") == other.states("web") == {"a": "unverified", "b": "up"}


async def test_script_calls_leave_time_for_changes_to_gather(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (one,):
        assert one.registry is not None
        calls, began_s = one.registry.calls, time.perf_counter()

        for number in range(20):
            await one.register("web", f"i{number}", None, instance())

        taken_s = time.perf_counter() - began_s
        # A timer of the loop has a millisecond's grain.
        assert one.registry.calls - calls <= taken_s / (CALL_GAP_S - 0.001) + 2
