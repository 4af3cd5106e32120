"""What the locator's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stores import PrivateRedis, run_apart, running_redis


@pytest.fixture(scope="session")
def mortal_redis() -> Iterator[PrivateRedis]:
    """A Redis of the locator's own, which tests kill."""
    with running_redis() as redis:
        yield redis


@pytest.fixture
def own_redis(mortal_redis: PrivateRedis) -> PrivateRedis:
    """The same, running and empty."""
    if mortal_redis.process is None:
        mortal_redis.launch()
        run_apart(mortal_redis.wait_ready())
    run_apart(mortal_redis.flush())
    return mortal_redis
