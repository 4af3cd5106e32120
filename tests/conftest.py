"""What all tests share: stores, servers on them, clients, and how hypothesis draws its examples."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import asyncpg
import pytest
import uvloop
from hypothesis import HealthCheck, settings

from app.db.postgres import open_pool
from app.db.statements import Statements
from tests.credits.ledger_client import Client
from tests.credits.ledger_house import Ledger, LedgerHouse, house_of
from tests.lag import Lag
from tests.server import ShieldxServer
from tests.stores import PrivatePostgres, PrivateRedis, run_apart, running_redis

# The same examples at every run, so that a change is what makes a test fail, and no time limit, because a busy machine
# is no fault of an example. `--hypothesis-profile explore` draws others, and twenty times as many of them.
settings.register_profile(
    "steady", deadline=None, max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2_000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

NEEDS_ROOT = "tests/image/test_image.py"
LONGEST = (
    "tests/test_replay_real.py",
    "tests/house/test_tidy.py::test_types_agree",
    "tests/credits/test_contract.py::test_generated_requests",
    "tests/recovery/",
    "tests/operations/test_drills.py",
    "tests/flow/test_rolling_upgrade.py",
    "tests/operations/test_live_alerts.py",
    "tests/k8s/test_scaling.py",
    NEEDS_ROOT,
)

# --- stores and recovery rounds -------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register how often, and from which seed, each recovery scenario is played."""
    parser.addoption("--recovery-rounds", type=int, default=1, help="rounds of each scenario in tests/recovery")
    parser.addoption("--recovery-seed", type=int, default=None, help="seed of the first round; by default a random one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what was left out; tests/image/conftest.py does it."""
    if os.geteuid() != 0:
        terminalreporter.section("left out: only root may build and run the image", sep="!")
        terminalreporter.write_line(f"{NEEDS_ROOT}: run `make test` as root, on Debian or with buildah and runc")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop that the server and the commands run on; directories that need others say so."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def house(pytestconfig: pytest.Config) -> LedgerHouse:
    """The session's Redis and PostgreSQL, and servers on ledgers in them."""
    return house_of(pytestconfig)


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> PrivatePostgres:
    """A PostgreSQL cluster that the tests of a run share; make a database each."""
    return house_of(pytestconfig).postgres


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """A Redis that the tests of a run share; `redis_url` empties it."""
    with running_redis() as redis:
        yield redis


@pytest.fixture
def database_url(postgres_server: PrivatePostgres) -> Iterator[str]:
    """URL of a migrated database of the test's own, without a ledger in it."""
    url = run_apart(postgres_server.make_migrated_database())
    yield url
    run_apart(postgres_server.drop_database(url))


@pytest.fixture
def redis_url(redis_server: PrivateRedis) -> str:
    """URL of the shared Redis, emptied for the test."""
    run_apart(redis_server.flush())
    return redis_server.url


# --- end of stores and recovery rounds ------------------------------------------------------------------------------


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """The owner's connection to the database of the test."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def statements(database_url: str) -> AsyncIterator[Statements]:
    """Statements of the server's role in the database of the test."""
    pool = await open_pool(database_url, 6)
    yield Statements(pool)
    pool.terminate()


@pytest.fixture
async def lag() -> AsyncIterator[Lag]:
    """How late this process was during the test, for limits of time that must hold on a busy machine too."""
    lag = Lag()
    sampling = asyncio.create_task(lag.run())
    yield lag
    sampling.cancel()


# --- servers and their clients ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server(house: LedgerHouse) -> ShieldxServer:
    """A server with one shard, shared by the tests of a run."""
    return house.server(1)[0]


@pytest.fixture(scope="session")
def ledger(house: LedgerHouse) -> Ledger:
    """Where that server keeps its ledger."""
    return house.server(1)[1]


@pytest.fixture(scope="session")
def house_of_two(house: LedgerHouse) -> ShieldxServer:
    """A server with two shards, shared by the tests of a run."""
    return house.server(2)[0]


@pytest.fixture(scope="session")
def embedded(house: LedgerHouse) -> ShieldxServer:
    """A server with embedded stores and a root key of its own, shared by the tests of a run."""
    return house.embedded()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client session of the test's own."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def client(session: aiohttp.ClientSession, server: ShieldxServer) -> Client:
    """A client of the server with one shard."""
    return Client(session, server.url)


@pytest.fixture
def wide(session: aiohttp.ClientSession, house_of_two: ShieldxServer) -> Client:
    """A client of the server with two shards."""
    return Client(session, house_of_two.url)
