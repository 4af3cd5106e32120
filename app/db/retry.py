"""Retries for errors that pass by themselves: 10 ms x 2^attempt, at most 2 s, at most 5 times, +-20 % jitter."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, TypeVar

import asyncpg
import redis.exceptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

FIRST_DELAY_MS: Final = 10
DELAY_MAX_MS: Final = 2_000
RETRIES_MAX: Final = 5
JITTER: Final = 0.2  # of the delay, either way, so that replicas do not come back in step

# What may be gone at the next try. Anything else, above all a refusal by the database, is final.
TRANSIENT: Final = (
    ConnectionError,
    TimeoutError,
    OSError,
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.OperatorInterventionError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


def delay_ms(attempt: int, draw: Callable[[], float] = random.random) -> float:
    """Return how long to wait before retry number `attempt`, counted from 0. `draw` gives [0, 1)."""
    delay: int = min(FIRST_DELAY_MS * 2**attempt, DELAY_MAX_MS)
    return min(float(delay) * (1 + JITTER * (2 * draw() - 1)), float(DELAY_MAX_MS))


async def retry(work: Callable[[], Awaitable[T]], *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> T:
    """Run `work` until it answers, at most 1 + RETRIES_MAX times. Only for work that may safely run twice.

    Raises the last transient error, or at once whatever is not transient.
    """
    for attempt in range(RETRIES_MAX):
        try:
            return await work()
        except ValueError:  # asyncpg's word for a value that it cannot send, although it calls it an InterfaceError too
            raise
        except TRANSIENT:
            await sleep(delay_ms(attempt) / 1000)
    return await work()
