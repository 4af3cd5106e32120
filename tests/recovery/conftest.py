"""Houses for the scenarios, and their seeds."""

from __future__ import annotations

import random
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from recovery_house import CAUGHT_TRANSFER_WEIGHT, TRANSFER_WEIGHT, House
from recovery_scene import Scene
from stall_proxy import StallProxy

from app.embedded.postgres_server import APP_ROLE
from tests.stores import PrivatePostgres, run_apart, running_postgres, running_redis

SEED_BITS: Final = 32


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Play every scenario as often as `--recovery-rounds` says."""
    if "round_number" in metafunc.fixturenames:
        metafunc.parametrize("round_number", range(metafunc.config.getoption("--recovery-rounds")))


@pytest.fixture(scope="session")
def first_seed(request: pytest.FixtureRequest) -> int:
    """The seed that all others follow from."""
    given: int | None = request.config.getoption("--recovery-seed")
    return given if given is not None else random.SystemRandom().getrandbits(SEED_BITS)


@pytest.fixture
def seed(first_seed: int, round_number: int, request: pytest.FixtureRequest) -> int:
    """The seed of this round of this scenario; printed, so that a failure can be played again."""
    name = request.node.nodeid.rpartition("/")[2]
    print(f"\n{name}: play it again with --recovery-seed {first_seed}, round {round_number}")
    return zlib.crc32(f"{first_seed} {name} {round_number}".encode())


@pytest.fixture(scope="session")
def recovery_postgres() -> Iterator[PrivatePostgres]:
    """A cluster for these tests alone: they kill it."""
    with running_postgres(("max_connections=200",)) as postgres:  # up to five replicas, and sixteen shards
        yield postgres


class Houses:
    """Houses by kind, shared by the scenarios until one of them finds a fault in it."""

    def __init__(self, postgres: PrivatePostgres, root: Path) -> None:
        """Houses are built when they are first asked for."""
        self._postgres = postgres
        self._root = root
        self._built: dict[tuple[int, bool], tuple[House, ExitStack]] = {}
        self._count = 0

    def get(self, shards: int, *, proxied: bool = False) -> House:
        """Return a sound house whose stores run, with proxies before them or without."""
        kind = shards, proxied
        if kind in self._built and self._built[kind][0].spoiled:
            self._built.pop(kind)[1].close()
        if kind not in self._built:
            self._built[kind] = self._build(shards, proxied=proxied)
        return self._built[kind][0]

    def _build(self, shards: int, *, proxied: bool) -> tuple[House, ExitStack]:
        self._count += 1
        stack = ExitStack()
        if self._postgres.process is None:
            self._postgres.launch()
        run_apart(self._postgres.wait_ready())
        redis = stack.enter_context(running_redis())
        proxies = None
        if proxied:
            proxies = {"redis": StallProxy(redis.socket), "postgres": StallProxy(self._postgres.socket)}
            for proxy in proxies.values():
                proxy.start()
                stack.callback(proxy.stop)
        url = run_apart(self._postgres.make_migrated_database())
        root = self._root / f"house-{self._count}"
        restricted_url = ""
        if shards > 1:
            # One house logs in as the restricted role, the others as an owner who is a superuser: both are in use.
            run_apart(self._postgres.allow_login(APP_ROLE))
            restricted_url = self._postgres.url(url.partition("?")[0].rpartition("/")[2], APP_ROLE)
        house = House(
            root, self._postgres, redis, url, shards=shards, proxies=proxies, restricted_url=restricted_url,
            transfer_weight=CAUGHT_TRANSFER_WEIGHT if shards > 1 else TRANSFER_WEIGHT,
        )  # fmt: skip
        stack.callback(house.kill_servers)
        return house, stack

    def close(self) -> None:
        """End everything."""
        for _, stack in self._built.values():
            stack.close()


@pytest.fixture(scope="session")
def houses(recovery_postgres: PrivatePostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Houses]:
    """The houses of this run."""
    found = Houses(recovery_postgres, tmp_path_factory.mktemp("recovery"))
    yield found
    found.close()


@pytest.fixture
def shards() -> int:
    """The number of shards; tests that want others parametrize it."""
    return 1


@pytest.fixture
async def scene(houses: Houses, shards: int, seed: int) -> AsyncIterator[Scene]:
    """A scenario in a house with so many shards."""
    one = Scene(houses.get(shards), seed)
    yield one
    await one.close()


@pytest.fixture
async def proxied_scene(houses: Houses, seed: int) -> AsyncIterator[Scene]:
    """A scenario in a house whose servers reach the stores through proxies."""
    one = Scene(houses.get(1, proxied=True), seed)
    yield one
    await one.close()
