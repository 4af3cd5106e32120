"""Which Redis server holds which keys: one server, the master that Sentinels name, or the masters of a Cluster.

Everything that talks to Redis asks here where the keys of a hash tag live, opens a connection there, and says so when
the answer turns out to be out of date.

URL forms                                              what it names
redis:// rediss:// unix://                             one server
redis+sentinel://[user:password@]host:port,.../name[/db]   the master `name`, as any of these Sentinels knows it
redis+cluster://[user:password@]host:port,...          a Redis Cluster; any of its nodes will do to learn the others
rediss+sentinel:// rediss+cluster://                   the same over TLS, the Sentinels included

A Sentinel that wants a password of its own gets `?sentinel_password=...` (and `sentinel_username`).
Sources: Redis documentation, "Guidelines for Redis clients with support for Redis Sentinel"; Redis Cluster specification.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from app.metrics import RoundTrips

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CONNECT_TIMEOUT_S: Final = 1.0
ASK_TIMEOUT_S: Final = 1.0  # for one Sentinel or node to say where keys live; then the next one is asked

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):(\d{1,5})\Z", re.ASCII)
_SLOTS: Final = 16_384


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


class Topology(Protocol):
    """Knows where keys live. `trips` counts what every connection there sends."""

    trips: RoundTrips

    async def pool(self, tag: str) -> ConnectionPool:
        """Return the settings of connections to the server that keys with this hash tag live on.

        tag  the beginning of the keys, such as "{s00}:"
        Raises ConnectionError when nobody knows at the moment.
        """

    def holds(self, pool: ConnectionPool) -> bool:
        """Return whether a pool is still that of a server with keys; one that is not is not given again."""

    def outdate(self) -> None:
        """Ask again before the next answer: a server was away, or said that the keys live elsewhere."""

    async def close(self) -> None:
        """Drop every connection of the pools."""


def make_pool(redis_url: str) -> ConnectionPool:
    """Return the settings of connections to one server: no client-side retries, bytes in and out.

    Waits are bounded by whoever sends. The library's own time limit wraps every send in a task, which costs a task
    and, on Python 3.11, can swallow a cancellation.

    redis_url: redis://, rediss:// or unix://. Raises ValueError for anything else.
    """
    return ConnectionPool.from_url(
        redis_url,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=None,
        health_check_interval=0,
        protocol=2,
    )


def make_topology(redis_url: str, trips: RoundTrips | None = None) -> Topology:
    """Return what a REDIS_URL names. Raises ValueError, with the reason, for a URL of none of the forms above.

    trips  where its round trips are counted, with those of others; by default apart
    """
    topology = _topology(redis_url)
    if trips is not None:
        topology.trips = trips
    return topology


def _topology(redis_url: str) -> Topology:
    if "+" not in redis_url.partition("://")[0]:
        return OneServer(make_pool(redis_url))
    parts = urlsplit(redis_url)
    scheme, _, kind = parts.scheme.partition("+")
    userinfo, _, hosts = parts.netloc.rpartition("@")
    addresses = [_address(text) for text in hosts.split(",")]
    path = parts.path.strip("/")
    if kind == "cluster":
        if path not in {"", "0"}:
            raise ValueError("a Redis Cluster has no database but 0")
        return Cluster(addresses, _Login(scheme, userinfo, 0))
    if kind != "sentinel":
        raise ValueError("expected a scheme with +sentinel or +cluster")
    name, _, database = path.partition("/")
    if not name or (database and not database.isdecimal()):
        raise ValueError("expected redis+sentinel://host:port,.../name or .../name/db")
    options = parse_qs(parts.query)
    words = [options.get(f"sentinel_{word}", [""])[0] for word in ("username", "password")]
    own = ":".join(words) if words[1] else ""
    return Sentinels(addresses, name, _Login(scheme, userinfo, int(database or 0)), _Login(scheme, own, 0))


def _address(text: str) -> Address:
    match = _HOST.match(text)
    if match is None or not 0 < int(match[2]) < 65_536:
        raise ValueError("expected host:port, or several with commas")
    return Address(match[1], int(match[2]))


class _Login(NamedTuple):
    """How to enter any server of a group: scheme, user:password as it stands in the URL, database."""

    scheme: str
    userinfo: str
    database: int

    def pool(self, address: Address) -> ConnectionPool:
        entry = f"{self.userinfo}@" if self.userinfo else ""
        return make_pool(f"{self.scheme}://{entry}{address.host}:{address.port}/{self.database}")

    async def ask(self, address: Address, *words: str) -> Any:
        """Return the answer of one server to one command, over a connection made for it."""
        connection = self.pool(address).make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await connection.connect()
                await connection.send_command(*words)
                return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)


class OneServer:
    """All keys live on one server."""

    def __init__(self, pool: ConnectionPool) -> None:
        """`pool` leads to the server."""
        self._pool = pool
        self.trips = RoundTrips()

    async def pool(self, tag: str) -> ConnectionPool:  # noqa: ARG002 - every tag lives here
        """Return the settings of connections to the server."""
        return self._pool

    def holds(self, pool: ConnectionPool) -> bool:
        """Return whether it is the server's."""
        return pool is self._pool

    def outdate(self) -> None:
        """Change nothing: there is only one answer."""

    async def close(self) -> None:
        """Drop every connection of the pool."""
        await self._pool.disconnect()


class _Group:
    """Pools of the servers of a group, one each; who to ask where keys live, the one that answered last first."""

    def __init__(self, seeds: Sequence[Address], login: _Login, guide: _Login) -> None:
        """`login` is for the servers with the keys, `guide` for those that are asked."""
        self._guides = list(seeds)
        self._login = login
        self._guide = guide
        self._pools: dict[Address, ConnectionPool] = {}
        self._asking = asyncio.Lock()
        self.trips = RoundTrips()

    def _pool_of(self, address: Address) -> ConnectionPool:
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = self._login.pool(address)
        return pool

    def holds(self, pool: ConnectionPool) -> bool:
        """Return whether it is the pool of a server that had keys when they were last asked for."""
        return any(pool is one for one in self._pools.values())

    async def _ask(self, *words: str) -> tuple[Address, Any]:
        """Return the first answer that is none of an error, and who gave it. Raises ConnectionError without one."""
        reasons = []
        for guide in list(self._guides):
            try:
                answer = await self._guide.ask(guide, *words)
            except (OSError, TimeoutError, RedisError) as error:
                reasons.append(f"{guide.host}:{guide.port}: {type(error).__name__}")
                continue
            if answer:
                self._guides.remove(guide)
                self._guides.insert(0, guide)
                return guide, answer
            reasons.append(f"{guide.host}:{guide.port}: does not know")
        raise ConnectionError(f"nobody says where the keys live ({'; '.join(reasons)})")

    async def _leave(self, masters: Iterable[Address]) -> None:
        """Forget the pools of all others: a master that comes back elsewhere, again and again, leaves none behind.

        What is still in use there ends with its user.
        """
        for address in self._pools.keys() - set(masters):
            await self._pools.pop(address).disconnect(inuse_connections=False)

    async def close(self) -> None:
        """Drop every connection of the pools."""
        for pool in self._pools.values():
            await pool.disconnect()


class Sentinels(_Group):
    """All keys live on the master that the Sentinels name."""

    def __init__(self, sentinels: Sequence[Address], name: str, login: _Login, guide: _Login) -> None:
        """`name` is the master's, as in `sentinel monitor`."""
        super().__init__(sentinels, login, guide)
        self._name = name
        self._master: Address | None = None

    async def pool(self, tag: str) -> ConnectionPool:  # noqa: ARG002 - every tag lives on the master
        """Return the settings of connections to the master. Raises ConnectionError when no Sentinel names one."""
        async with self._asking:
            if self._master is None:
                _, (host, port) = await self._ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
                master = Address(_literal(host.decode()), int(port))
                await self._leave([master])
                self._master = master
                return self._pool_of(master)
            return self._pool_of(self._master)

    def outdate(self) -> None:
        """Ask the Sentinels again: the master was away, or is no master any more."""
        self._master = None


class Cluster(_Group):
    """Keys live on the master of their hash slot."""

    def __init__(self, nodes: Sequence[Address], login: _Login) -> None:
        """`nodes` are some of the Cluster's; the others are learned from them."""
        super().__init__(nodes, login, login)
        self._seeds = tuple(nodes)
        self._ranges: list[tuple[int, int, Address]] = []

    async def pool(self, tag: str) -> ConnectionPool:
        """Return the settings of connections to the master of the tag's slot. Raises ConnectionError when it has none."""
        slot = key_slot(tag.encode())
        async with self._asking:
            if not self._ranges:
                await self._learn()
            for first, last, master in self._ranges:
                if first <= slot <= last:
                    return self._pool_of(master)
            self._ranges = []
        raise ConnectionError(f"no server of the Redis Cluster has slot {slot} of {_SLOTS}")

    def outdate(self) -> None:
        """Learn the slots again: one has moved, or a master was away and may have been replaced."""
        self._ranges = []

    async def _learn(self) -> None:
        asked, answer = await self._ask("CLUSTER", "SLOTS")
        ranges = []
        for first, last, master, *_ in answer:
            # A node that does not know its own name gives none: then it is the one that was asked.
            host = _literal(master[0].decode()) if master[0] not in {None, b"", b"?"} else asked.host
            ranges.append((int(first), int(last), Address(host, int(master[1]))))
        await self._leave(master for _, _, master in ranges)
        self._ranges = ranges
        self._guides = list(dict.fromkeys([*(master for _, _, master in ranges), *self._seeds]))


def _literal(host: str) -> str:
    """Return a host as it stands in a URL: an IPv6 address in brackets (RFC 3986 3.2.2)."""
    return f"[{host}]" if ":" in host else host
