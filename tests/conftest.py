"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stores import PrivatePostgres, PrivateRedis, run_apart, running_postgres, running_redis

# --- stores and recovery rounds -------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register how often, and from which seed, each recovery scenario is played."""
    parser.addoption("--recovery-rounds", type=int, default=1, help="rounds of each scenario in tests/recovery")
    parser.addoption("--recovery-seed", type=int, default=None, help="seed of the first round; by default a random one")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PrivatePostgres]:
    """A PostgreSQL cluster that the tests of a run share; make a database each."""
    with running_postgres() as postgres:
        yield postgres


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """A Redis that the tests of a run share; `redis_url` empties it."""
    with running_redis() as redis:
        yield redis


@pytest.fixture
def database_url(postgres_server: PrivatePostgres) -> str:
    """URL of an empty database of the test's own."""
    return run_apart(postgres_server.make_own_database())


@pytest.fixture
def redis_url(redis_server: PrivateRedis) -> str:
    """URL of the shared Redis, emptied for the test."""
    run_apart(redis_server.flush())
    return redis_server.url


# --- end of stores and recovery rounds ------------------------------------------------------------------------------
