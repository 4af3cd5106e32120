"""Rate limits: token buckets in Redis for all replicas together, checked in batches, with a local fall-back.

What is asked in one turn of the event loop, and while the call before is on its way, goes into one script call. When
Redis does not answer within SLOW_S, or is away, each process grants its share of every limit by itself: a limit is
then kept approximately, neither lifted nor turned into an outage.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import orjson
import redis.exceptions

from app.access.bucket import UNITS, Bucket, Decision, charge, decision
from app.db.keys import limit_key
from app.db.lua import load_script
from app.db.retry import TRANSIENT
from app.turns import end_task
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.db.redis import RedisLink

log = logging.getLogger(__name__)

SLOW_S: Final = 0.02  # ten times a usual answer; beyond it a caller would feel the limit more than what it limits
# Turns of the event loop that an answer gets after SLOW_S: if the loop itself was held up, the answer may lie there
# already, and it takes a read and two wake-ups to get from the socket to whoever asked.
GRACE_TURNS: Final = 4
RECONNECT_S: Final = 0.5  # how often a Redis that is away is tried
BATCH_MAX: Final = 500  # requests of one script call: about 3 ms of Redis
PENDING_MAX: Final = 10_000  # requests that may wait for Redis; more are decided by this process
LOCAL_MAX: Final = 10_000  # buckets that a process keeps by itself; the one unused for longest is forgotten first


class _Asked:
    """One request that waits for its decision; it gets the first that comes."""

    __slots__ = ("_done", "buckets", "settled", "tokens")

    def __init__(self, buckets: tuple[Bucket, ...], tokens: int, done: Callable[[Decision], None]) -> None:
        self.buckets = buckets
        self.tokens = tokens
        self.settled = False
        self._done = done

    def settle(self, made: Decision) -> None:
        self.settled = True
        self._done(made)


class LocalShare:
    """The same buckets in this process alone, each with a share of its rate, its burst and what Redis last knew in it."""

    def __init__(self, share: Callable[[], float], elapsed_s: Callable[[], float]) -> None:
        """`share` is what part of all requests comes to this process: 1 / replicas."""
        self._share = share
        self._elapsed_s = elapsed_s
        self._levels: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()

    def decide(self, buckets: tuple[Bucket, ...], tokens: int) -> Decision:
        """Take tokens from all buckets or from none, as the script does."""
        share = self._part()
        own = buckets
        if share < 1.0:
            own = tuple(
                bucket._replace(
                    rate_milli=max(1, round(bucket.rate_milli * share)), burst=max(1, round(bucket.burst * share))
                )
                for bucket in buckets
            )
        tokens = charge(own, tokens)
        now_us = int(self._elapsed_s() * 1_000_000)
        levels = [self._level(bucket, now_us) for bucket in own]
        short = [number for number, units in enumerate(levels, 1) if units < tokens * UNITS]
        if not short:
            levels = [units - tokens * UNITS for units in levels]
        for bucket, units in zip(own, levels, strict=True):
            self._levels[bucket.policy, bucket.name] = (units, now_us)
        self._forget()
        return decision(own, tokens, short[0] if short else 0, levels, local=True)

    def learn(self, buckets: tuple[Bucket, ...], levels: Sequence[int]) -> None:
        """Note what Redis says is left, in units: whoever has spent it does not get it again here while Redis is slow."""
        share = self._part()
        now_us = int(self._elapsed_s() * 1_000_000)
        for bucket, units in zip(buckets, levels, strict=True):
            if units < bucket.burst * UNITS:
                self._levels[bucket.policy, bucket.name] = (round(units * share), now_us)
            else:
                self._levels.pop((bucket.policy, bucket.name), None)
        self._forget()

    def _part(self) -> float:
        return min(1.0, max(0.0, self._share()))

    def _forget(self) -> None:
        while len(self._levels) > LOCAL_MAX:
            self._levels.popitem(last=False)

    def _level(self, bucket: Bucket, now_us: int) -> int:
        capacity = bucket.burst * UNITS
        units, at_us = self._levels.pop((bucket.policy, bucket.name), (capacity, now_us))
        return min(capacity, units + max(0, now_us - at_us) * bucket.rate_milli)


class Limits:
    """Asks Redis, in batches over one connection of its own, as one task."""

    def __init__(
        self,
        link: RedisLink,
        *,
        share: Callable[[], float] = lambda: 1.0,
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`link` is opened and closed here; `share` tells what part of all requests this process gets."""
        self._link = link
        self._local = LocalShare(share, elapsed_s)
        self._pending: list[_Asked] = []
        self._woken = asyncio.Event()
        self._reachable = False
        self._task: asyncio.Task[None] | None = None
        self.calls = 0  # script calls since the start
        self.local_decisions = 0  # decisions of this process alone since the start
        self.refused: Final = {"key": 0, "tenant": 0}  # requests that were not let in, by whose bucket was empty

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin; until Redis has answered for the first time, this process decides."""
        self._task = asyncio.create_task(self._run(on_crash), name="rate limits")

    async def stop(self) -> None:
        """End; whoever still waits gets a local decision, and so does whoever asks after that."""
        self._reachable = False
        if self._task is not None:
            await end_task(self._task)
        self._give_up(self._take_all())
        await self._link.close()

    @property
    def reachable(self) -> bool:
        """Whether Redis decides."""
        return self._reachable

    async def check(self, buckets: Sequence[Bucket], tokens: int = 1) -> Decision:
        """Take `tokens` from every bucket, or from none. Never raises; without buckets everything may go on."""
        reply: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self.check_soon(buckets, tokens, lambda made: None if reply.done() else reply.set_result(made))
        made = await reply
        if made.refused is not None:
            self.refused[made.refused.policy] = self.refused.get(made.refused.policy, 0) + 1
        return made

    def check_soon(self, buckets: Sequence[Bucket], tokens: int, done: Callable[[Decision], None]) -> None:
        """The same for a call without a task: `done` is called once, now or later, and must not raise."""
        wanted = tuple(buckets)
        if not wanted:
            done(Decision((), (), None, 0))
        elif not self._reachable or len(self._pending) >= PENDING_MAX:
            done(self._decide_here(wanted, tokens))
        else:
            self._pending.append(_Asked(wanted, tokens, done))
            self._woken.set()

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        while True:
            try:
                await self._link.open()
                self._reachable = True
                await self._serve()
            except (*TRANSIENT, redis.exceptions.RedisError) as error:
                self._reachable = False
                self._give_up(self._take_all())
                log.warning("rate limits are local", extra={"reason": f"{type(error).__name__}: {error}"})
                await asyncio.sleep(RECONNECT_S)
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                self._reachable = False
                self._give_up(self._take_all())
                on_crash(error)
                return

    async def _serve(self) -> None:
        """Send what waits, one batch after another, until the connection breaks."""
        while True:
            await self._woken.wait()
            batch, self._pending = self._pending[:BATCH_MAX], self._pending[BATCH_MAX:]
            if not self._pending:
                self._woken.clear()
            timer = asyncio.get_running_loop().call_later(SLOW_S, self._slow, batch)
            try:
                answers = await self._ask(batch)
            except BaseException:
                self._give_up(batch)
                raise
            finally:
                timer.cancel()
            self._reachable = True
            for asked, answer in zip(batch, answers, strict=True):
                self._local.learn(asked.buckets, answer[1:])
                if not asked.settled:
                    tokens = charge(asked.buckets, asked.tokens)
                    asked.settle(decision(asked.buckets, tokens, answer[0], answer[1:]))

    async def _ask(self, batch: list[_Asked]) -> list[list[int]]:
        keys = [limit_key(bucket.policy, bucket.name) for asked in batch for bucket in asked.buckets]
        words = [orjson.dumps(_numbers(asked)) for asked in batch]
        self.calls += 1
        answers: list[list[int]] = await self._link.evaluate(load_script("rate_limit"), keys, words)
        return answers

    def _slow(self, batch: list[_Asked], turns: int = GRACE_TURNS) -> None:
        """Redis takes too long: decide here, for these and for all that come, until it has answered."""
        if turns:
            asyncio.get_running_loop().call_soon(self._slow, batch, turns - 1)
            return
        if all(asked.settled for asked in batch):
            return
        self._reachable = False
        self._give_up(batch)
        self._give_up(self._take_all())

    def _take_all(self) -> list[_Asked]:
        pending, self._pending = self._pending, []
        self._woken.clear()
        return pending

    def _give_up(self, batch: list[_Asked]) -> None:
        for asked in batch:
            if not asked.settled:
                asked.settle(self._decide_here(asked.buckets, asked.tokens))

    def _decide_here(self, buckets: tuple[Bucket, ...], tokens: int) -> Decision:
        self.local_decisions += 1
        return self._local.decide(buckets, tokens)


def _numbers(asked: _Asked) -> list[Any]:
    numbers = [charge(asked.buckets, asked.tokens)]
    for bucket in asked.buckets:
        numbers += (bucket.rate_milli, bucket.burst)
    return numbers


def limited_problem(refused: Decision) -> Problem:
    """Return the 429 of a decision that does not let a request in, with all three header fields."""
    policy = refused.refused.policy if refused.refused is not None else ""
    return Problem(
        429,
        "rate_limited",
        f"The rate limit of the {policy} is used up; Retry-After says when there is room again.",
        headers=fields_of(refused) | {"Retry-After": str(refused.retry_after_s)},
    )


def fields_of(made: Decision) -> dict[str, str]:
    """Return the header fields of any answer to a limited request."""
    return {"RateLimit-Policy": made.policy_field, "RateLimit": made.limit_field}
