"""One PostgreSQL and one Redis for all ledger tests of a session, and servers on fresh ledgers in them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.server import ShieldxServer
from tests.stores import PrivatePostgres, PrivateRedis, running_postgres, running_redis, store_directory

REDIS_DATABASES: Final = 16  # what a Redis has by default; one ledger takes one of them


class Ledger(NamedTuple):
    """Where the data of one ledger lives: its Redis, and its Postgres as the superuser `postgres`."""

    redis_url: str
    database_url: str


class LedgerHouse:
    """The session's stores. Servers that it starts end with the session."""

    def __init__(self, redis: PrivateRedis, postgres: PrivatePostgres, directory: Path, stack: contextlib.ExitStack) -> None:
        """Both stores run; `directory` takes the logs of servers."""
        self.redis: Final = redis
        self.postgres: Final = postgres
        self._directory = directory
        self._stack = stack
        self._numbers = itertools.count()
        self._servers: dict[int, tuple[ShieldxServer, Ledger]] = {}
        self._embedded: ShieldxServer | None = None

    async def make_ledger(self) -> Ledger:
        """Return an empty Redis database, and a migrated one of Postgres."""
        number = next(self._numbers)
        assert number < REDIS_DATABASES, "the session's Redis has no database left"
        redis_url = self.redis.url.replace("db=0", f"db={number}")
        return Ledger(redis_url, await self.postgres.make_migrated_database())

    def server(self, shards: int) -> tuple[ShieldxServer, Ledger]:
        """Return the session's server with this many ledger shards. For use outside an event loop."""
        if shards not in self._servers:
            ledger = asyncio.run(self.make_ledger())
            server = self.server_on(ledger, f"shards-{shards}", shards=shards)
            asyncio.run(server.start())
            self._servers[shards] = server, ledger
        return self._servers[shards]

    def server_on(
        self, ledger: Ledger, name: str, *, shards: int = 1, forked: bool = True, **settings: str
    ) -> ShieldxServer:
        """Return a server on a ledger that has not been started; it ends with the session at the latest."""
        server = ShieldxServer(self._directory, *ledger, shards=shards, name=name, forked=forked, **settings)
        self._stack.callback(server.kill)
        return server

    def embedded(self) -> ShieldxServer:
        """Return the session's server with stores and a root key of its own. For use outside an event loop."""
        if self._embedded is None:
            server = ShieldxServer(self._stack.enter_context(store_directory("embedded")), name="embedded", root_key="")
            self._stack.callback(stop, server)
            asyncio.run(server.start())
            self._embedded = server
        return self._embedded


def stop(server: ShieldxServer) -> None:
    """Stop a server as an operator would, so that its embedded stores stop too."""
    if server.alive:
        server.stop()


_HOUSE: Final[pytest.StashKey[LedgerHouse]] = pytest.StashKey()


def house_of(config: pytest.Config) -> LedgerHouse:
    """Return the session's stores; the first call starts them, the end of the session stops them."""
    if _HOUSE not in config.stash:
        stack = contextlib.ExitStack()
        config.add_cleanup(stack.close)
        redis = stack.enter_context(running_redis())
        postgres = stack.enter_context(running_postgres(killed=False))
        directory = stack.enter_context(store_directory("servers"))
        config.stash[_HOUSE] = LedgerHouse(redis, postgres, directory, stack)
    return config.stash[_HOUSE]
