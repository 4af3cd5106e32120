"""What the locator's tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.credits.ledger_client import Client
from tests.credits.ledger_house import house_of
from tests.server import ShieldxServer
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


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> ShieldxServer:
    """The session's server."""
    return house_of(pytestconfig).server(1)[0]


@pytest.fixture
async def client(server: ShieldxServer) -> AsyncIterator[Client]:
    """Calls of the session's server, as the root."""
    async with aiohttp.ClientSession() as session:
        yield Client(session, server.url)
