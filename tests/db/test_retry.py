"""Retries: how often, how long between, and of what."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
import redis.exceptions
from hypothesis import given
from hypothesis import strategies as st

from app.db.retry import DELAY_MAX_MS, FIRST_DELAY_MS, JITTER, RETRIES_MAX, TRANSIENT, delay_ms, retry


class Failing:
    """Raises the given errors one after the other, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.slept_s: list[float] = []

    async def work(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)


async def test_what_answers_is_not_tried_again() -> None:
    failing = Failing()

    assert await retry(failing.work, sleep=failing.sleep) == "done"
    assert (failing.calls, failing.slept_s) == (1, [])


async def test_transient_errors_are_tried_again_with_growing_delays() -> None:
    failing = Failing(ConnectionError(), TimeoutError(), asyncpg.CannotConnectNowError())

    assert await retry(failing.work, sleep=failing.sleep) == "done"
    assert failing.calls == 4
    assert [round(seconds * 1000 / FIRST_DELAY_MS / 2**n) for n, seconds in enumerate(failing.slept_s)] == [1, 1, 1]


async def test_after_the_last_try_the_error_is_raised() -> None:
    failing = Failing(*(ConnectionError(str(n)) for n in range(RETRIES_MAX + 5)))

    with pytest.raises(ConnectionError, match=f"^{RETRIES_MAX}$"):
        await retry(failing.work, sleep=failing.sleep)
    assert failing.calls == RETRIES_MAX + 1


@pytest.mark.parametrize(
    "error",
    [ValueError(), asyncpg.UniqueViolationError(), asyncpg.CheckViolationError(), asyncpg.DataError(), asyncpg.UndefinedTableError(),
     redis.exceptions.ResponseError(), redis.exceptions.NoScriptError(), asyncpg.InsufficientPrivilegeError()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
async def test_a_final_error_is_raised_at_once(error: Exception) -> None:
    failing = Failing(error)

    with pytest.raises(type(error)):
        await retry(failing.work, sleep=failing.sleep)
    assert failing.calls == 1


async def test_a_value_that_postgres_cannot_take_is_not_sent_again(empty: asyncpg.Connection[Any]) -> None:
    tried = 0

    async def work() -> object:
        nonlocal tried
        tried += 1
        return await empty.fetch("SELECT $1::uuid", "no uuid")

    with pytest.raises((ValueError, asyncpg.DataError), match="uuid"):
        await retry(work)
    assert tried == 1


@given(st.integers(0, 60), st.floats(0, 1, exclude_max=True))
def test_delays_double_up_to_a_limit_and_spread(attempt: int, draw: float) -> None:
    delay = delay_ms(attempt, lambda: draw)

    plain = min(FIRST_DELAY_MS * 2**attempt, DELAY_MAX_MS)
    assert plain * (1 - JITTER) - 1e-9 <= delay <= min(plain * (1 + JITTER), DELAY_MAX_MS) + 1e-9


@pytest.mark.parametrize(
    "error", [asyncpg.ConnectionDoesNotExistError, asyncpg.AdminShutdownError, asyncpg.SerializationError, asyncpg.DeadlockDetectedError,
              redis.exceptions.BusyLoadingError, redis.exceptions.ReadOnlyError, ConnectionResetError],
)  # fmt: skip
def test_what_passes_by_itself_is_transient(error: type[Exception]) -> None:
    assert issubclass(error, TRANSIENT)
