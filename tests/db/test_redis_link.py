"""The connection that carries money scripts: what it sends, once, and what an error does to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.exceptions

from app.breaker import BreakerState
from app.db.lua import Script, load_script
from app.db.redis import ANSWER_TIMEOUT_S, GIVE_UP_S, RedisAway, RedisLink, redis_breaker
from app.db.topology import make_topology
from tests.credits.ledger_house import LedgerHouse

COUNT = Script("count", "return redis.call('INCRBY', KEYS[1], ARGV[1])", "")


@pytest.fixture
def url(house: LedgerHouse) -> str:
    return house.redis.url.replace("db=0", "db=13")


@pytest.fixture
async def link(url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink(make_topology(url), "{t}:")
    await link.open()
    await link.command("FLUSHDB")
    yield link
    await link.close()


async def test_open_tells_which_incarnation_of_redis_answers(link: RedisLink) -> None:
    first = await link.open()
    second = await link.open()

    assert first == second
    assert len(first) == 40


async def test_a_script_is_loaded_when_the_server_has_not_seen_it(link: RedisLink) -> None:
    script = load_script("ledger_restore")
    await link.command("SCRIPT", "FLUSH")

    for _ in range(2):
        answer = await link.evaluate(script, ["{s00}:shard", "{s00}:outbox", "{s00}:expiry"], [1, "close"])

        assert answer == [b"OK"]
    assert await link.command("SCRIPT", "EXISTS", script.sha) == [1]


async def test_a_script_that_is_not_known_runs_once(link: RedisLink) -> None:
    script = Script("count", COUNT.text, "0" * 40)

    answers = [await link.evaluate(script, ["n"], [5]) for _ in range(2)]

    assert answers == [5, 10]


async def test_an_error_reply_leaves_the_link_open(link: RedisLink) -> None:
    await link.command("SET", "text", "x")

    with pytest.raises(redis.exceptions.ResponseError):
        await link.command("INCR", "text")
    assert link.is_open
    assert await link.command("GET", "text") == b"x"


async def test_a_cancelled_command_closes_the_link_so_that_no_answer_is_taken_for_another(link: RedisLink, url: str) -> None:
    other = RedisLink(make_topology(url), "{t}:")
    await other.open()
    waiting = asyncio.create_task(link.command("BLPOP", "nothing", 1))
    while b"cmd=blpop" not in await other.command("CLIENT", "LIST"):
        assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert not link.is_open
    with pytest.raises(ConnectionError):
        await link.command("PING")
    await link.open()
    assert await link.command("PING") == b"PONG"
    await other.close()


async def test_a_server_that_is_silent_closes_the_link_in_time(link: RedisLink) -> None:
    loop = asyncio.get_running_loop()
    started_s = loop.time()

    with pytest.raises((redis.exceptions.TimeoutError, TimeoutError)):
        await link.command("BLPOP", "nothing", ANSWER_TIMEOUT_S * 2)

    assert loop.time() - started_s < ANSWER_TIMEOUT_S * 1.5
    assert not link.is_open


async def test_a_killed_connection_is_an_error_and_nothing_is_sent_again(link: RedisLink, url: str) -> None:
    identifier = await link.command("CLIENT", "ID")
    other = RedisLink(make_topology(url), "{t}:")
    await other.open()
    await other.command("CLIENT", "KILL", "ID", identifier)

    with pytest.raises((redis.exceptions.ConnectionError, ConnectionError)):
        await link.evaluate(load_script("ledger_restore"), ["{s00}:shard", "{s00}:outbox", "{s00}:expiry"], [1, "close"])

    assert await other.command("DBSIZE") == 0
    assert not link.is_open
    await other.close()


async def test_nobody_there_is_an_error_that_passes(url: str) -> None:
    link = RedisLink(make_topology(url.replace("redis.sock", "nobody.sock")), "{t}:")

    with pytest.raises((redis.exceptions.ConnectionError, OSError)):
        await link.open()
    assert not link.is_open


class Hands:
    """A clock that is moved by hand."""

    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


async def fail(link: RedisLink, times: int) -> None:
    for _ in range(times):
        with pytest.raises((redis.exceptions.ConnectionError, OSError)):
            await link.open()


async def test_a_redis_that_is_away_is_asked_by_one_attempt_at_a_time(url: str) -> None:
    clock, breaker = Hands(), redis_breaker("t")
    nobody = RedisLink(make_topology(url.replace("redis.sock", "nobody.sock")), "{t}:", breaker, clock_s=clock)
    there = RedisLink(make_topology(url), "{t}:", breaker, clock_s=clock)
    await fail(nobody, 3)

    with pytest.raises(RedisAway) as refused:
        await there.open()
    clock.now_s += refused.value.retry_after_s
    probe = asyncio.create_task(there.open())
    await asyncio.sleep(0)
    with pytest.raises(RedisAway):
        await nobody.open()
    await probe

    assert breaker.state(clock.now_s) is BreakerState.CLOSED
    assert await there.command("PING") == b"PONG"
    await there.close()


async def test_a_short_outage_is_waited_for_and_a_longer_one_refused(url: str) -> None:
    clock = Hands()
    link = RedisLink(make_topology(url.replace("redis.sock", "nobody.sock")), "{t}:", clock_s=clock)
    await fail(link, 3)

    link.refuse_if_away()
    clock.now_s += GIVE_UP_S
    link.refuse_if_away()  # It is to be tried now.
    await fail(link, 1)

    with pytest.raises(RedisAway):
        link.refuse_if_away()


async def test_a_lost_connection_is_no_fault_of_redis(link: RedisLink, url: str) -> None:
    other = RedisLink(make_topology(url), "{t}:")
    await other.open()
    for _ in range(4):
        await other.command("CLIENT", "KILL", "ID", await link.command("CLIENT", "ID"))
        with pytest.raises((redis.exceptions.ConnectionError, ConnectionError)):
            await link.command("PING")
        await link.open()

    assert await link.command("PING") == b"PONG"
    await other.close()


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="scheme"):
        make_topology("http://localhost")
