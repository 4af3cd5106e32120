"""Limits through Redis, in batches, and by this process alone when Redis is slow or away."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from redis.asyncio import Redis

from app.access import limits as limits_module
from app.access.bucket import UNITS, Bucket, Decision
from app.access.limits import LOCAL_MAX, Limits, LocalShare
from app.db.redis import RedisLink
from app.db.topology import make_topology
from tests.access.conftest import until
from tests.stores import PrivateRedis

BUCKET = Bucket("key", "key_a", 1, 5)
RUINED: list[BaseException] = []
SLOW_S = limits_module.SLOW_S


async def started(url: str, share: float = 1.0) -> Limits:
    limits = Limits(RedisLink(make_topology(url), "{t}:"), share=lambda: share)
    limits.start(RUINED.append)
    return limits


@pytest.fixture
async def limits(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Limits]:
    """Limits that wait for Redis even where the machine is busy; tests of the impatience set it back."""
    monkeypatch.setattr(limits_module, "SLOW_S", 10.0)
    limits = await started(redis_url)
    await until(lambda: limits.reachable, "Redis")
    yield limits
    await limits.stop()
    assert RUINED == []


async def test_a_limit_holds_over_all_processes(limits: Limits, redis_url: str) -> None:
    other = await started(redis_url)
    await until(lambda: other.reachable, "Redis")

    made = [await (limits, other)[number % 2].check((BUCKET,)) for number in range(8)]

    await other.stop()
    assert [one.allowed for one in made] == [True] * 5 + [False] * 3
    assert [one.levels[0] // UNITS for one in made[:5]] == [4, 3, 2, 1, 0]
    assert not any(one.local for one in made)


async def test_what_is_asked_in_one_turn_is_one_call(limits: Limits) -> None:
    buckets = [Bucket("key", f"key_{number}", 1_000, 1) for number in range(200)]

    made = await asyncio.gather(*(limits.check((bucket,)) for bucket in buckets for _ in range(2)))

    assert limits.calls == 1
    assert [one.allowed for one in made] == [True, False] * 200


async def test_more_than_a_batch_is_several_calls_in_order(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "BATCH_MAX", 10)

    made = await asyncio.gather(*(limits.check((Bucket("key", "k", 1, 23),)) for _ in range(35)))

    assert [one.allowed for one in made] == [True] * 23 + [False] * 12
    assert limits.calls == 4


async def test_without_buckets_nothing_is_asked(limits: Limits) -> None:
    made = await limits.check(())

    assert made.allowed
    assert (limits.calls, made.limit_field) == (0, "")


async def test_a_batch_larger_than_the_bucket_passes_when_it_is_full(limits: Limits) -> None:
    first, second = await limits.check((BUCKET,), 10_000), await limits.check((BUCKET,), 10_000)

    assert (first.allowed, second.allowed) == (True, False)


async def test_a_caller_that_leaves_takes_no_answer_of_another(limits: Limits) -> None:
    gone = asyncio.create_task(limits.check((BUCKET,)))
    stays = asyncio.create_task(limits.check((Bucket("key", "other", 1, 1),)))
    await asyncio.sleep(0)
    gone.cancel()

    assert (await stays).buckets[0].name == "other"
    assert (await limits.check((BUCKET,))).buckets[0].name == "key_a"


async def test_a_call_without_a_task_is_answered_once(limits: Limits) -> None:
    made: list[Decision] = []

    limits.check_soon((), 1, made.append)
    at_once = len(made)
    limits.check_soon((BUCKET,), 2, made.append)
    await until(lambda: len(made) == 2, "the answer")

    assert at_once == 1
    assert made[1].levels == (3 * UNITS,)


async def test_a_slow_redis_is_not_waited_for(
    limits: Limits, redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redis_server.process is not None
    await limits.check((BUCKET,))
    monkeypatch.setattr(limits_module, "SLOW_S", SLOW_S)
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        first = await limits.check((BUCKET,))
        later = await limits.check((BUCKET,))
    finally:
        redis_server.process.send_signal(signal.SIGCONT)

    assert (first.local, later.local) == (True, True)
    await until(lambda: limits.reachable, "Redis again")
    monkeypatch.setattr(limits_module, "SLOW_S", 10.0)
    assert not (await limits.check((BUCKET,))).local


async def test_a_loop_that_was_held_up_does_not_blame_redis(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    await limits.check((BUCKET,))
    monkeypatch.setattr(limits_module, "SLOW_S", SLOW_S)
    asked = asyncio.create_task(limits.check((BUCKET,)))
    calls = limits.calls
    while limits.calls == calls:
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    time.sleep(0.05)

    assert not (await asked).local


async def test_a_redis_that_dies_leaves_each_process_its_share(redis_server: PrivateRedis, redis_url: str) -> None:
    limits = await started(redis_url, share=0.5)
    await until(lambda: limits.reachable, "Redis")
    bucket = Bucket("tenant", "acme", 1, 10)
    assert (await limits.check((bucket,))).levels == (9 * UNITS,)
    async with Redis.from_url(redis_url) as admin:
        await admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        made = [await limits.check((bucket,)) for _ in range(8)]

        local = [one for one in made if one.local]
        left = min([9 * UNITS, *(one.levels[0] for one in made if not one.local)]) // 2  # what Redis knew, and half of it
        assert sum(one.allowed for one in local) == min(left // UNITS, len(local))
        assert {one.buckets[0].burst for one in local} == {5}
        await until(lambda: limits.reachable, "Redis again")
        assert not (await limits.check((bucket,))).local
    await limits.stop()


async def test_nobody_waits_for_a_redis_that_was_never_there() -> None:
    limits = await started(f"unix://{quote('/nonexistent/redis.sock')}")

    made = [await limits.check((BUCKET,)) for _ in range(6)]

    await limits.stop()
    assert [one.allowed for one in made] == [True] * 5 + [False]
    assert limits.local_decisions == 6


async def test_whoever_waits_at_the_end_gets_a_decision(redis_url: str) -> None:
    limits = await started(redis_url)
    await until(lambda: limits.reachable, "Redis")
    waiting = [asyncio.create_task(limits.check((BUCKET,))) for _ in range(3)]
    await asyncio.sleep(0)

    await limits.stop()

    assert [(await one).allowed for one in waiting] == [True] * 3


def test_a_local_share_keeps_its_rate_and_is_all_or_nothing() -> None:
    now_s = 100.0
    share = LocalShare(lambda: 0.25, lambda: now_s)
    rich, poor = Bucket("key", "k", 40_000, 40), Bucket("tenant", "t", 4_000, 8)

    first = [share.decide((rich, poor), 1).allowed for _ in range(4)]
    now_s += 1.0
    again = share.decide((rich, poor), 1)

    assert first == [True, True, False, False]
    assert again.allowed
    assert again.levels == (9 * UNITS, 0)


def test_a_local_share_gives_nobody_again_what_redis_says_is_spent() -> None:
    now_s = 100.0
    share = LocalShare(lambda: 0.5, lambda: now_s)
    spent, full = Bucket("key", "spent", 1_000, 10), Bucket("key", "full", 1_000, 10)
    share.decide((full,), 1)

    share.learn((spent, full), (4 * UNITS, 10 * UNITS))

    assert [share.decide((spent,), 1).allowed for _ in range(4)] == [True, True, False, False]
    assert [share.decide((full,), 1).allowed for _ in range(6)] == [True] * 5 + [False]
    now_s += 2.0
    assert share.decide((spent,), 1).allowed
    share.learn(tuple(Bucket("key", str(number), 1, 1) for number in range(LOCAL_MAX + 9)), (0,) * (LOCAL_MAX + 9))
    assert len(share._levels) == LOCAL_MAX


def test_a_local_share_is_bounded() -> None:
    share = LocalShare(lambda: 1.0, lambda: 0.0)
    for number in range(LOCAL_MAX + 50):
        share.decide((Bucket("key", str(number), 1, 1),), 1)

    assert len(share._levels) == LOCAL_MAX
    assert not share.decide((Bucket("key", str(LOCAL_MAX + 49), 1, 1),), 1).allowed
