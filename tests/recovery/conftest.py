"""Houses for the scenarios, and their seeds."""

from __future__ import annotations

import random
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from recovery_house import House
from recovery_scene import Scene

from stores import PrivatePostgres, run_apart, running_postgres, running_redis

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
    with running_postgres() as postgres:
        yield postgres


class Houses:
    """One house for each number of shards, shared by the scenarios until one of them finds a fault in it."""

    def __init__(self, postgres: PrivatePostgres, root: Path) -> None:
        """Houses are built when they are first asked for."""
        self._postgres = postgres
        self._root = root
        self._built: dict[int, tuple[House, ExitStack]] = {}
        self._count = 0

    def get(self, shards: int) -> House:
        """Return a sound house whose stores run."""
        if shards in self._built and self._built[shards][0].spoiled:
            self._built.pop(shards)[1].close()
        if shards not in self._built:
            self._built[shards] = self._build(shards)
        return self._built[shards][0]

    def _build(self, shards: int) -> tuple[House, ExitStack]:
        self._count += 1
        stack = ExitStack()
        if self._postgres.process is None:
            self._postgres.launch()
            run_apart(self._postgres.wait_ready())
        redis = stack.enter_context(running_redis())
        url = run_apart(self._postgres.make_own_database())
        house = House(self._root / f"house-{self._count}", self._postgres, redis, url, shards=shards)
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
async def scene(houses: Houses, seed: int, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """A house with a load in flight; mark the test `@pytest.mark.parametrize("shards", ...)` for more than one shard."""
    shards: Any = getattr(request.node, "callspec", None)
    number = shards.params.get("shards", 1) if shards is not None else 1
    house = houses.get(number)
    one = Scene(house, seed)
    house.spoiled = True  # until the scenario has ended well
    yield one
    await one.close()
