"""Everything of the locator in one process: there from the start, open once Redis has been read."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import TYPE_CHECKING, Final

import msgspec
import redis.exceptions

from app.actor import ActorStopped, AskTimeout, InboxFull
from app.db.keys import LOCATOR_TAG
from app.db.redis import RedisLink, redis_breaker
from app.db.retry import TRANSIENT
from app.locator.admission import Admission
from app.locator.checks import Checks
from app.locator.directory import ALL, Directory
from app.locator.feed import Feed
from app.locator.leases import Reported, replica_of
from app.locator.pick import Balancer
from app.locator.registry import Answer, Change, Registry, refusal, unknown_instance
from app.locator.series import LocatorSeries
from app.locator.upkeep import Upkeep
from app.locator.views import Views
from app.web.problems import Problem
from app.web.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.breaker import BreakerState
    from app.db.topology import Topology
    from app.locator.instance import Instance
    from app.locator.record import Record, Registered
    from app.locator.roster import Roster
    from app.locator.target import IPNetwork
    from app.metrics import Metrics

log = logging.getLogger(__name__)

COUNTED: Final = {Reported.COUNTED, Reported.LATE}
REAP_S: Final = 0.25  # how often leases whose time is over are taken back
INSTANCES_MAX: Final = 50_000  # of all services: 100 MB
INSTANCES_OF_KEY_MAX: Final = 20_000  # one key cannot take all of them
SERVICES_MAX: Final = 5_000
SERVICES_OF_KEY_MAX: Final = 2_000


class HandedReport(msgspec.Struct, frozen=True):
    """A report that reached another replica than the one that lent the lease."""

    service: str
    lease_id: str
    ok: bool
    latency_ms: float | None
    reporter: str


_encode: Final = msgspec.json.Encoder().encode
_handed: Final = msgspec.json.Decoder(HandedReport)


class Locator:
    """The parts, and their life. Lookups need nothing but `directory` and `balancer`; they never wait."""

    def __init__(
        self, check_networks: Sequence[IPNetwork], metrics: Metrics, watches: Watches | None = None, *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Begin to know nothing.

        check_networks  networks that active checks may reach although they are special
        watches         those of the process, which others may watch too
        """
        self.replica: Final = secrets.token_hex(4)  # of this start: it begins the ids of leases
        self.clock_s: Final = clock_s
        self.watches: Final = watches or Watches()
        self.views: Final = Views()
        self.admission: Final = Admission(clock_s)
        self.directory: Final = Directory(on_change=self._changed, on_word=self._told, on_purge=self._purged)
        self.series: Final = LocatorSeries(self)
        self.balancer: Final = Balancer(self.replica, on_breaker=self._breaker_changed)
        self.registry: Registry | None = None
        self.feed: Feed | None = None
        self.upkeep: Upkeep | None = None
        self.checks: Checks | None = None
        self.check_networks: Final = tuple(check_networks)
        self._reaping: asyncio.TimerHandle | None = None
        self._redis = metrics.guard(redis_breaker("locator"))
        metrics.add(self.series.collect)

    def start(self, topology: Topology, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to follow the registry in Redis; reads go on with what is known whenever it is away."""
        links = [RedisLink(topology, LOCATOR_TAG, self._redis) for _ in range(2)]
        registry = Registry(self.directory, links[0], self.replica, clock_s=self.clock_s, on_forgotten=self._read_again)
        self.registry = registry
        self.feed = Feed(registry, links[1], clock_s=self.clock_s, on_handed=self._take_report)
        self.checks = Checks(registry, self.check_networks, clock_s=self.clock_s)
        self.upkeep = Upkeep(registry, self.feed, clock_s=self.clock_s, also=self.checks.tick)
        registry.start(on_crash)
        self.feed.start(on_crash)
        self.upkeep.start(on_crash)
        self._reap()

    async def stop(self) -> None:
        """End watches, tell the heartbeats that came last, close the connections."""
        self.watches.close()
        if self._reaping is not None:
            self._reaping.cancel()
        for part in (self.checks, self.upkeep, self.feed, self.registry):
            if part is not None:
                await part.stop()

    @property
    def warm(self) -> bool:
        """Whether the registry has been read; before that, an answer would take services for gone that are not."""
        return self.feed is not None and self.feed.loaded

    @property
    def following(self) -> bool:
        """Whether this replica hears the others now."""
        return self.feed is not None and self.feed.following

    # --- calls ------------------------------------------------------------------------------------------------------

    def service(self, name: str) -> Roster:
        """Return a service. Raises Problem 404 `no_service`, 503 `warming_up`."""
        service = self.directory.get(name)
        if service is None:
            self.check_warm()
            raise Problem(404, "no_service", "No instance of this service is registered.")
        return service

    def check_warm(self) -> None:
        """Raise Problem 503 `warming_up` until the registry has been read."""
        if not self.warm:
            raise Problem(503, "warming_up", "The registry has not been read yet.", headers={"Retry-After": "1"})

    async def register(
        self, service: str, id_: str, generation: str | None, registered: Registered, *, first: str = "none"
    ) -> tuple[Record, bool]:
        """Register an instance and return its record, and whether the id is new; one that is new begins with this check.

        Without a generation the instance stays what it is when host and port are the same, and else is a new start.
        Raises Problem 409 `stale_generation`, `too_many_instances`; what an outage of Redis raises.
        """
        self.check_warm()
        known = self.directory.find(service, id_)
        self._check_room(service, known, registered.owner)
        if generation is None:
            same = known is not None and _at_same_place(known, registered)
            generation = known.generation if known is not None and same else secrets.token_hex(8)
        if known is not None and known.generation == generation:
            registered = msgspec.structs.replace(registered, registered_at_ms=known.instance.registered_at_ms)
        answer = await self._make(self._open_registry().put(service, id_, generation, registered, first))
        refused = refusal(answer)
        if refused is not None:
            raise refused
        record = self.directory.find(service, id_)
        if record is None:
            raise unknown_instance()  # somebody has deregistered it already
        now_s = self.clock_s()
        if record.heard(now_s):  # it was registered as it is, which changes nothing in Redis
            self.directory.restate(self.directory.services[service], (record.instance.id,), now_s)
        return record, known is None

    def _check_room(self, service: str, known: Record | None, owner: str) -> None:
        if known is not None:
            return
        directory = self.directory
        anew = service not in directory.services
        if anew and len(directory.services) >= SERVICES_MAX:
            directory.purge(self.clock_s(), 0.0)  # those without instances are remembered only while there is room
        for count, count_max, what in (
            (directory.owned[owner], INSTANCES_OF_KEY_MAX, "instances of this key"),
            (directory.instances, INSTANCES_MAX, "instances"),
            (directory.owned_services[owner] if anew else 0, SERVICES_OF_KEY_MAX, "services of this key"),
            (len(directory.services) if anew else 0, SERVICES_MAX, "services"),
        ):
            if count >= count_max:
                raise Problem(
                    409,
                    "too_many_instances",
                    f"There are {count} {what}; {count_max} is the limit. Deregister what is gone.",
                )

    async def change(self, make: Callable[[Registry], Change]) -> Answer:
        """Have a change made and return the answer. Raises Problem 404 and 409; what an outage of Redis raises."""
        self.check_warm()
        answer = await self._make(make(self._open_registry()))
        refused = refusal(answer)
        if refused is not None:
            raise refused
        return answer

    def _open_registry(self) -> Registry:
        if self.registry is None:
            raise Problem(503, "warming_up", "The server is starting.", headers={"Retry-After": "1"})
        return self.registry

    async def _make(self, change: Change) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def settle(answer: Answer | None, error: Exception | None) -> None:
            if future.done():
                return
            if answer is None:
                future.set_exception(error or AssertionError("neither an answer nor an error"))
            else:
                future.set_result(answer)

        def reply(answer: Answer | None, error: Exception | None) -> None:
            self.admission.answers.add(lambda: settle(answer, error))

        try:
            self._open_registry().submit(change, reply)
            return await future
        except (InboxFull, ActorStopped, AskTimeout, redis.exceptions.RedisError, *TRANSIENT) as error:
            raise unavailable(error) from error

    def report(self, service: str, lease_id: str, reporter: str, *, ok: bool, latency_ms: float | None) -> str:
        """Take a report, or hand it to the replica that lent the lease; return what became of it.

        Raises Problem 404 `unknown_lease`.
        """
        outcome = self.balancer.report(
            service, lease_id, ok=ok, now_s=self.clock_s(), latency_ms=latency_ms, reporter=reporter
        )
        if outcome is not Reported.UNKNOWN:
            if outcome in COUNTED:
                self.series.count_report(ok=ok)
            return outcome.value
        replica = replica_of(lease_id)
        if self.registry is not None and replica != self.replica and replica in self.registry.replicas:
            text = _encode(HandedReport(service, lease_id, ok, latency_ms, reporter)).decode()
            try:
                self.registry.submit(self.registry.hand(replica, text), _ignore)
            except (InboxFull, ActorStopped) as error:
                raise unavailable(error) from error
            return "handed_on"
        raise Problem(404, "unknown_lease", "No replica has lent this lease, or it was long ago; nothing was counted.")

    # --- what happens -----------------------------------------------------------------------------------------------

    def _changed(self, service: Roster) -> None:
        now_s = self.clock_s()
        snapshot = service.snapshot
        self.balancer.use(snapshot, now_s)
        for id_ in snapshot.changed:
            record = service.records.get(id_)
            if record is not None:
                self._isolate(record, now_s)
        self.watches.changed(service.name, ALL)

    def _isolate(self, record: Record, now_s: float) -> None:
        """Bring the breaker in line with what was ordered on whichever replica."""
        one = record.instance
        load = self.balancer.view(one.service, one.id, now_s)
        if load is None or load.isolated == (record.mode == "isolated"):
            return
        if load.isolated:
            self.balancer.reset(one.service, one.id, now_s)
        else:
            self.balancer.isolate(one.service, one.id, now_s)

    def _told(self, service: Roster, id_: str, word: str) -> None:
        if word == "reset":
            self.balancer.reset(service.name, id_, self.clock_s())

    def _purged(self, name: str) -> None:
        self.balancer.forget(name)

    def _breaker_changed(self, one: Instance, before: BreakerState, after: BreakerState, _now_s: float) -> None:
        self.series.count_breaker(after.value)
        log.warning(
            "breaker of an instance changed",
            extra={"service": one.service, "instance": one.id, "before": before.value, "after": after.value},
        )

    def _take_report(self, text: str) -> None:
        handed = _handed.decode(text)
        outcome = self.balancer.report(
            handed.service, handed.lease_id, ok=handed.ok, now_s=self.clock_s(), latency_ms=handed.latency_ms,
            reporter=handed.reporter,
        )  # fmt: skip
        if outcome in COUNTED:
            self.series.count_report(ok=handed.ok)

    def _read_again(self) -> None:
        if self.feed is not None:
            self.feed.read_again()

    def _reap(self) -> None:
        self.balancer.reap(self.clock_s())
        self._reaping = asyncio.get_running_loop().call_later(REAP_S, self._reap)


def _at_same_place(known: Record, registered: Registered) -> bool:
    facts = known.instance.facts
    return (facts.host, facts.port) == (registered.host, registered.port)


def unavailable(error: Exception) -> Problem:
    """Return the 503 of a registry that is full, stopping, or cannot reach Redis. Repeating the call is safe."""
    reason = "The registry has more work than it takes." if isinstance(error, InboxFull) else "Redis is out of reach."
    return Problem(503, "unavailable", f"{reason} Repeat the request.", headers={"Retry-After": "1"})


def _ignore(_answer: Answer | None, _error: Exception | None) -> None:
    """A report that is lost costs an estimate, and its lease expires."""
