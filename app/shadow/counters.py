"""The counters of experiments in Redis, over connections that shadow has for itself."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from redis.asyncio import Redis

from app.clock import now_ms
from app.db.keys import SHADOW_CLOCK, experiment_key, experiment_tag
from app.db.lua import load_script
from app.db.redis import ANSWER_TIMEOUT_S, RedisAway, RedisLink, redis_breaker
from app.shadow.journal import Journal, pack, unpacked
from app.shadow.steady import CommonClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from redis.asyncio import ConnectionPool
    from redis.asyncio.client import Pipeline

    from app.breaker import Breaker
    from app.db.lua import Script
    from app.db.topology import Topology

# To each server: one script runs while the next is on its way; Redis runs one at a time, and money needs it too.
LINKS: Final = 2
ENROL_LINKS: Final = 4  # beside those, so that a unit that asks what it gets never waits for the merges of 250 outcomes
RESTORES_MAX: Final = 3  # times that a call is merged; each finds Redis empty again only if it was emptied again
RESTORE_SLICE: Final = 500  # items of one call: a few ms of Redis
SWEEP_SLICE: Final = 100  # experiments of one pipeline: about 2 ms of the event loop for the answers

_MERGE: Final = load_script("experiment_merge")
_ENROL: Final = load_script("experiment_enrol")
_UNITS: Final = load_script("experiment_units")
_WEIGH: Final = load_script("experiment_weigh")
_SAVED: Final = load_script("experiment_saved")
_RESTORE: Final = load_script("experiment_restore")
_PARTS: Final = ("state", "totals", "latency", "journal", "weights")
_ENROL_PARTS: Final = ("state", "totals", "journal")


class Forgot(ConnectionError):
    """Redis does not hold what Postgres holds of an experiment: lay it there, then try again."""


class EventsFull(Exception):
    """More events came within a day than are remembered, so that repetitions could not be told."""


class Known(NamedTuple):
    """Which counters were compared with Postgres: the Redis that holds them, and when they were laid there."""

    run_id: str = ""
    born: str = ""


class Place(NamedTuple):
    """Where the counters of an experiment stand: seq, the seq that Postgres holds, and when they were laid there."""

    seq: int
    saved: int
    born: str


class Work(NamedTuple):
    """What one merge is to do; indexes of classes count from 1, as Lua's do.

    events     event, class, value in thousandths, unit ("" for one of its own), event, ...
    classes    what each class adds (`app.shadow.tallies.added`)
    evidence   what each class adds once for each unit (`app.shadow.tallies.evidence_of`)
    latencies  field of the histogram for each class, "" for none
    odd        units to quarantine
    """

    events: list[str | int]
    classes: list[list[str | int]]
    evidence: list[list[list[str | int]]]
    latencies: list[str]
    odd: list[str]


class Merged(NamedTuple):
    """What a merge did. `repeated`: numbers of the events that had been counted."""

    seq: int
    repeated: frozenset[int]
    version: int
    odd: int
    totals: dict[str, int] | None


class Enrolled(NamedTuple):
    """What units have for good, in the order in which they were named, and the newest version of the weights."""

    version: int
    given: list[int]


class Snapshot(NamedTuple):
    """All that Redis holds of an experiment and Postgres does not yet, of one instant."""

    seq: int
    version: int
    totals: dict[str, int]
    latency: dict[str, int]
    journal: Journal
    journal_end: int
    born: str


class _Server:
    """One Redis server: a client for reads, and places for the connections that carry scripts."""

    def __init__(self, pool: ConnectionPool, breaker: Breaker) -> None:
        self.client: Final = Redis(connection_pool=pool)
        self.links: Final[asyncio.Queue[_Link]] = asyncio.Queue()
        self.enrol_links: Final[asyncio.Queue[_Link]] = asyncio.LifoQueue()  # rarely more than one: the one that is warm
        for links, count in ((self.links, LINKS), (self.enrol_links, ENROL_LINKS)):
            for _ in range(count):
                links.put_nowait(_Link(breaker))
        self._left = False

    async def leave(self) -> None:
        """Close the connections; those in use end with their users. The places stay: somebody may wait for one."""
        self._left = True
        for links in (self.links, self.enrol_links):
            for place in [links.get_nowait() for _ in range(links.qsize())]:
                await self.put_back(links, place)
        await self.client.aclose()

    async def put_back(self, links: asyncio.Queue[_Link], place: _Link) -> None:
        """Give a place to the next who waits for one."""
        try:
            if self._left:
                await place.close()
        finally:
            links.put_nowait(place)


class _Link:
    """A place for a connection, and which incarnation of Redis it leads to."""

    def __init__(self, breaker: Breaker) -> None:
        self.link: RedisLink | None = None
        self.run_id = ""
        self._breaker = breaker

    async def open(self, topology: Topology, tag: str) -> RedisLink:
        """Return the connection, opened to where keys with this tag live if it is closed."""
        if self.link is None or not self.link.is_open:
            self.link = RedisLink(topology, tag, self._breaker)
            self.run_id = await self.link.open()
        return self.link

    async def close(self) -> None:
        """Drop the connection; the next user opens another one, to where the keys live then."""
        if self.link is not None:
            await self.link.close()


class Counters:
    """Calls of the scripts. Raises what redis-py raises, ConnectionError, TimeoutError, Forgot and EventsFull."""

    def __init__(self, topology: Topology, breaker: Breaker | None = None) -> None:
        """`topology` says where keys live, over connections of shadow's own, and `breaker` stands before them.

        Nothing is opened yet.
        """
        self._topology = topology
        self._breaker = breaker or redis_breaker("shadow")
        self._servers: dict[ConnectionPool, _Server] = {}
        self.restored = 0  # times that this process has opened an experiment from what Postgres holds
        self.restored_at_ms: int | None = None
        self.clock: Final = CommonClock(self._keep_clock)

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        for server in self._servers.values():
            await server.leave()
        await self._topology.close()

    async def ping(self) -> None:
        """Ask a server for a PONG. Raises when it is away."""
        await (await self._server("")).client.ping()

    async def merge(self, name: str, saved: int, known: Known, work: Work, *, totals: bool) -> Merged:
        """Add outcomes. Raises Forgot when what is known is not what is there by now.

        saved  the seq that Postgres holds, as far as known
        """
        words = (saved, int(totals), orjson.dumps(work._asdict()), known.born)
        answer = await self._run(_MERGE, name, _PARTS[:4], *words, run_id=known.run_id)
        seq, repeated, version, odd, flat = answer[1:]
        return Merged(seq, frozenset(repeated), version, odd, _integers(flat) if totals else None)

    async def enrol(self, name: str, saved: int, known: Known, units: Sequence[str | int]) -> Enrolled:
        """Enrol units: number, what it shall get, variant, number, ... Raises Forgot as `merge` does."""
        words = (saved, known.born, *units)
        answer = await self._run(_ENROL, name, _ENROL_PARTS, *words, run_id=known.run_id, enrols=True)
        return Enrolled(answer[1], [int(one) for one in answer[2:]])

    async def units(self, name: str, units: Sequence[str]) -> list[int | None]:
        """Return what each unit got when it was enrolled, None for one that was not."""
        answer = await self._run(_UNITS, name, _PARTS[:1], orjson.dumps(units))
        return [int(one) if one else None for one in answer[1:]]

    async def weigh(self, name: str, version: int, weights: str) -> str:
        """Make a version of the weights, unless it is made; return its weights (JSON), "" when it cannot be made yet."""
        text: bytes = (await self._run(_WEIGH, name, ("state", "weights"), version, weights))[1]
        return text.decode()

    async def saved(self, name: str, found: Snapshot) -> None:
        """Note that Postgres holds a snapshot, and cut the journal. Raises Forgot when Redis was laid anew meanwhile."""
        await self._run(_SAVED, name, ("state", "journal"), found.seq, found.journal_end, found.born)

    async def begin(self, name: str, seq: int) -> str | None:
        """Begin to lay an experiment, or join who does; return the laying's token, None when Redis holds this seq again."""
        answer = await self._run(_RESTORE, name, _PARTS, seq, "begin", "[]", secrets.token_hex(8))
        return answer[2].decode() if answer[1] else None

    async def lay(self, name: str, seq: int, token: str, kind: str, packed: bytes) -> bool:
        """Lay a row of the journal into a Redis that forgot it; return False when it holds this seq again.

        Raises Forgot when Redis was emptied since the laying began.
        """
        for items in unpacked(kind, packed, RESTORE_SLICE):
            if (await self._run(_RESTORE, name, _PARTS, seq, kind, orjson.dumps(items), token))[1] == 0:
                return False
        return True

    async def open(
        self, name: str, seq: int, token: str, totals: Mapping[str, int], latency: Mapping[str, int],
        weights: Mapping[int, str],
    ) -> None:  # fmt: skip
        """Lay counters after all of the journal; from here on outcomes are merged. Raises Forgot as `lay` does."""
        opened = {
            "totals": _flat(totals), "latency": _flat(latency), "weights": _flat(weights),
            "version": max(weights, default=0),
        }  # fmt: skip
        opens = (await self._run(_RESTORE, name, _PARTS, seq, "open", orjson.dumps(opened), token))[1]
        if opens and seq:
            self.restored += 1
            self.restored_at_ms = now_ms()

    async def odd(self, name: str) -> list[str]:
        """Return the quarantined units."""
        (units,) = await self._read(name, lambda pipe: pipe.smembers(experiment_key(name, "odd")))
        return [one.decode() for one in units]

    async def all_weights(self, name: str) -> dict[int, str]:
        """Return all versions of the weights (JSON)."""
        (rows,) = await self._read(name, lambda pipe: pipe.hgetall(experiment_key(name, "weights")))
        return {int(version): row.decode() for version, row in rows.items()}

    async def weights(self, name: str, versions: Iterable[int]) -> dict[int, str]:
        """Return the weights (JSON) of versions that exist."""
        wanted = list(versions)
        if not wanted:
            return {}
        fields = [str(one) for one in wanted]
        (rows,) = await self._read(name, lambda pipe: pipe.hmget(experiment_key(name, "weights"), fields))
        return {version: row.decode() for version, row in zip(wanted, rows, strict=True) if row is not None}

    async def read(self, name: str) -> tuple[dict[str, int], dict[str, int]]:
        """Return totals and histogram of one instant. Raises Forgot."""

        def fill(pipe: Pipeline) -> None:
            pipe.exists(experiment_key(name, "state"))
            pipe.hgetall(experiment_key(name, "totals"))
            pipe.hgetall(experiment_key(name, "latency"))

        known, totals, latency = await self._read(name, fill)
        if not known:
            raise Forgot(name)
        return _counts(totals), _counts(latency)

    async def snapshot(self, name: str) -> Snapshot:
        """Return what is to be saved, of one instant. Raises Forgot."""

        def fill(pipe: Pipeline) -> None:
            pipe.hmget(experiment_key(name, "state"), ["seq", "version", "journaled", "born"])
            pipe.hgetall(experiment_key(name, "totals"))
            pipe.hgetall(experiment_key(name, "latency"))
            pipe.lrange(experiment_key(name, "journal"), 0, -1)

        (seq, version, end, born), totals, latency, journal = await self._read(name, fill)
        if seq is None:
            raise Forgot(name)
        return Snapshot(
            int(seq), int(version or 0), _counts(totals), _counts(latency), pack(journal), int(end or 0), born.decode()
        )

    async def places(self, names: Sequence[str]) -> list[Place | None]:
        """Return where the counters of each experiment stand, None where Redis knows nothing."""
        by_server: dict[_Server, list[str]] = {}
        for name in names:
            by_server.setdefault(await self._server(name), []).append(name)
        found: dict[str, Place] = {}
        for own in by_server.values():
            for start in range(0, len(own), SWEEP_SLICE):
                part = own[start : start + SWEEP_SLICE]

                def fill(pipe: Pipeline, part: list[str] = part) -> None:
                    for name in part:
                        pipe.hmget(experiment_key(name, "state"), ["seq", "saved", "born"])

                rows = await self._read(part[0], fill, transaction=False)
                for name, (seq, saved, born) in zip(part, rows, strict=True):
                    if seq is not None:
                        found[name] = Place(int(seq), int(saved or 0), born.decode())
        return [found.get(name) for name in names]

    async def _keep_clock(self, reading_ms: int | None) -> int | None:
        """Keep the later of a reading of the common clock and what is kept; return that, None while nothing is."""

        def fill(pipe: Pipeline) -> None:
            if reading_ms is not None:
                pipe.zadd(SHADOW_CLOCK, {"ms": reading_ms}, gt=True)
            pipe.zscore(SHADOW_CLOCK, "ms")

        kept = (await self._read("", fill, transaction=False))[-1]
        return None if kept is None else int(kept)

    async def _server(self, name: str) -> _Server:
        """Return the server that holds an experiment now."""
        pool = await self._topology.pool(experiment_tag(name))
        server = self._servers.get(pool)
        if server is None:
            server = self._servers[pool] = _Server(pool, self._breaker)
            left = [one for one in self._servers if not self._topology.holds(one)]
            for gone in [self._servers.pop(one) for one in left]:
                await gone.leave()
        return server

    async def _read(self, name: str, fill: Callable[[Pipeline], Any], *, transaction: bool = True) -> list[Any]:
        """Return the answers to reads that `fill` puts into a pipeline, of one instant if it is a transaction."""
        now_s = time.monotonic()
        if not self._breaker.admits(now_s):
            raise RedisAway(self._breaker.retry_at_s - now_s)
        server = await self._server(name)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), server.client.pipeline(transaction=transaction) as pipe:
                fill(pipe)
                return await pipe.execute()
        except BaseException:
            self._topology.outdate()
            raise

    async def connect(self, name: str) -> str:
        """Return the run_id of the Redis that the next script of an experiment runs on."""
        server = await self._server(name)
        place = await server.links.get()
        try:
            await place.close()  # one that nobody has used since its server died does not know
            await place.open(self._topology, experiment_tag(name))
            return place.run_id
        finally:
            await server.put_back(server.links, place)

    async def _run(
        self, script: Script, name: str, parts: Sequence[str], *words: str | int | bytes, run_id: str | None = None,
        enrols: bool = False,
    ) -> Any:  # fmt: skip
        """Run a script over parts of an experiment, on the Redis with this run_id if one is given."""
        server = await self._server(name)
        links = server.enrol_links if enrols else server.links
        place = await links.get()
        try:
            link = await place.open(self._topology, experiment_tag(name))
            if run_id is not None and place.run_id != run_id:
                await place.close()  # either may be the one that is out of date
                link = await place.open(self._topology, experiment_tag(name))
                if place.run_id != run_id:
                    raise Forgot(name)
            answer = await link.evaluate(script, [experiment_key(name, part) for part in parts], words)
        finally:
            await server.put_back(links, place)
        match answer[0]:
            case b"OK":
                return answer
            case b"FULL":
                raise EventsFull(name)
        raise Forgot(name)


def _integers(flat: Sequence[bytes]) -> dict[str, int]:
    return {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}


def _counts(fields: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in fields.items()}


def _flat(fields: Mapping[Any, Any]) -> list[str]:
    return [str(part) for pair in fields.items() for part in pair]
