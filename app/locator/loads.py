"""The loads of one service, and everything else of it that outlives its snapshots."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Final

from app.breaker import Admission, Breaker, BreakerState, OpenBudget, Reporters
from app.locator.candidates import Candidates, Filter
from app.locator.instance import Instance, Snapshot
from app.locator.leases import Leases
from app.locator.least import ChangeLog, LeastQueue
from app.locator.load import FAILURE_COST, FREE_S, Load, counted_ms
from app.locator.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from app.breaker import OnChange
    from app.locator.leases import Lease

    # Told of every change of a breaker: the instance, the state before, the state now, monotonic seconds.
    OnBreaker = Callable[[Instance, BreakerState, BreakerState, float], None]

CANDIDATES_MAX: Final = 256  # compiled filters of a service; the one that was made first goes first
TYPICAL_FACTOR: Final = 0.05  # of each new latency in the service's typical one
RING_S_PER_INSTANCE: Final = 100e-6  # building a ring takes about 2 us an instance: 2 % of a core at most
# Lists of zones, all of a service together: compiling takes about 0.5 us an instance, so this is 10 % of a core at most.
ZONED_S_PER_INSTANCE: Final = 5e-6
ZONED_AHEAD_S: Final = 2.0  # of that time may be used at once: both lists of ten zones of 20,000 instances


class Loads:
    """One service: who belongs to it, its candidates by filter, its leases."""

    __slots__ = (
        "_breaker_for", "_candidates", "_draw_01", "_log", "_on_breaker", "_tagged", "budget", "by_id", "every", "heard",
        "leases", "on_change", "ring_version", "snapshot", "typical_ms", "version", "weight", "zoned_until_s", "zones",
    )  # fmt: skip

    def __init__(
        self,
        replica: str,
        lease_s: float,
        breaker_for: Callable[[Loads, Load], Breaker],
        on_breaker: OnBreaker | None,
        draw_01: Callable[[], float],
    ) -> None:
        """`breaker_for` makes the breaker of a load at its first failure; `on_breaker` is told of its changes."""
        self.leases: Final = Leases(replica, self._take_back, lease_s=lease_s)
        self.budget: Final = OpenBudget()
        self.by_id: dict[str, Load] = {}
        self.snapshot: Snapshot | None = None
        self.heard: Final = Reporters()  # who reports on this service at all
        self.version = 0  # rises with whatever changes who is offered
        self.ring_version = 0  # rises with whatever moves keys
        self.weight = 0  # of all that may be on a ring
        self.typical_ms = 0.0  # latency of all instances; 0 while nothing was reported
        self.zones: Counter[str] = Counter()  # instances of each zone
        self.zoned_until_s = FREE_S  # until when the time for lists of zones is used up
        self._breaker_for = breaker_for
        self._on_breaker = on_breaker
        self.on_change: Final[OnChange] = self._breaker_changed  # of every breaker here
        self._draw_01 = draw_01
        self.every: Final = Candidates(Filter(), draw_01)
        self._candidates: dict[Filter, Candidates] = {Filter(): self.every}
        self._tagged: dict[str, dict[Load, None]] | None = None  # once a tag was asked for
        self._log: ChangeLog | None = None  # while least_connections is in use

    def adopt(self, snapshot: Snapshot, now_s: float) -> None:
        """Bring the loads in line with a snapshot. O(changes) for the one that follows the last."""
        last, self.snapshot = self.snapshot, snapshot
        if last is snapshot:
            return
        ids: Collection[str] = snapshot.changed
        if last is None or snapshot.before != last.revision:
            ids = {*snapshot.by_id, *self.by_id}
        for id_ in ids:
            before = _place(self.by_id.get(id_))
            self._count_zone(self.by_id.get(id_), -1)
            self._adopt(id_, snapshot.by_id.get(id_), now_s, first=last is None)
            self._count_zone(self.by_id.get(id_), 1)
            after = _place(self.by_id.get(id_))
            if before != after:
                self.weight += after[0] - before[0]
                self.ring_version += 1
        self.version += bool(ids)

    def _adopt(self, id_: str, instance: Instance | None, now_s: float, *, first: bool) -> None:
        load = self.by_id.get(id_)
        if load is not None and load.instance is instance:
            return
        isolated = load is not None and load.is_isolated()
        if load is not None and (instance is None or instance.generation != load.instance.generation):
            load.retire()
            self._index(load, None)
            del self.by_id[id_]
            load = None
        if instance is None:
            return
        if load is None:
            load = self.by_id[id_] = Load(instance)
            self._index(load, instance)
            if not first:
                load.warm_up(now_s)
        else:
            rank = load.rank
            self._index(load, instance)
            load.renew(instance)
            if rank == 2 and not load.rank:
                load.warm_up(now_s)
        if isolated:  # what a person has ordered outlives a restart of the instance
            self.breaker_of(load).isolate(now_s)
            load.guard()

    def _count_zone(self, load: Load | None, by: int) -> None:
        if load is None or not load.instance.zone:
            return
        zone = load.instance.zone
        self.zones[zone] += by
        if not self.zones[zone]:
            del self.zones[zone]

    def _index(self, load: Load, instance: Instance | None) -> None:
        """Bring the index by tag in line with the load's new record; None when it leaves."""
        if self._tagged is None:
            return
        for tag in load.instance.tags:
            tagged = self._tagged.get(tag)
            if tagged is not None and tagged.pop(load, self) is None and not tagged:
                del self._tagged[tag]
        for tag in instance.tags if instance else ():
            self._tagged.setdefault(tag, {})[load] = None

    def compiled(self, filter_: Filter, now_s: float, panic_share: float) -> Candidates | None:
        """Return the candidates of a filter, compiled anew when something has changed; None when no instance has the tag.

        Lists of zones are compiled while there is time for it: else an older one is returned, or None.
        """
        loads: Collection[Load] = self.by_id.values()
        if filter_.tag:
            if self._tagged is None:
                self._tagged = {}
                for load in loads:
                    self._index(load, load.instance)
            tagged = self._tagged.get(filter_.tag)
            if tagged is None:
                return None
            loads = tagged.keys()
        candidates = self._candidates.get(filter_)
        if filter_.side and (candidates is None or self._is_stale(candidates, now_s)) and not self._pay(len(loads), now_s):
            return candidates
        if candidates is None:
            if len(self._candidates) > CANDIDATES_MAX:
                del self._candidates[next(islice(self._candidates, 1, None))]  # the first one stands for every instance
            candidates = self._candidates[filter_] = Candidates(filter_, self._draw_01)
        if self._is_stale(candidates, now_s):
            candidates.version = self.version
            candidates.compile(loads, now_s, panic_share)
        return candidates

    def _is_stale(self, candidates: Candidates, now_s: float) -> bool:
        changed = candidates.version != self.version and now_s >= candidates.compile_after_s
        return changed or now_s >= candidates.fresh_until_s

    def _pay(self, count: int, now_s: float) -> bool:
        """Take the time for a list of a zone, if there is some: who names other zones with every call gets any instance."""
        if self.zoned_until_s > now_s + ZONED_AHEAD_S:
            return False
        self.zoned_until_s = max(self.zoned_until_s, now_s) + ZONED_S_PER_INSTANCE * count
        return True

    def least(self, candidates: Candidates) -> LeastQueue:
        """Return the heap of these candidates, and from now on note every change for it."""
        log = self._log
        if log is None or log.is_full:
            log = self._log = ChangeLog(len(self.by_id))
        queue = candidates.least
        if queue is None or queue.log is not log:
            queue = candidates.least = LeastQueue(candidates, log, self._draw_01)
        return queue

    def ring_of(self, candidates: Candidates, now_s: float) -> Ring:
        """Return the ring of all that may ever be offered through this filter: breakers do not move keys."""
        ring = candidates.ring
        if ring is None or (candidates.ring_version != self.ring_version and now_s >= candidates.ring_after_s):
            lets, tag = candidates.filter.lets, candidates.filter.tag
            loads = self._tagged.get(tag, {}) if tag and self._tagged is not None else self.by_id.values()
            ring = candidates.ring = Ring([load for load in loads if load.rank < 2 and lets(load)])
            candidates.ring_version = self.ring_version
            candidates.ring_after_s = now_s + RING_S_PER_INSTANCE * len(ring.loads)
        return ring

    def in_flight_of(self, candidates: Candidates, ring: Ring) -> float:
        """Return the calls in flight on a ring; those picked through other filters by its share of the service."""
        return max(candidates.in_flight, len(self.leases) * ring.weight_total / max(self.weight, 1))

    def lend(self, load: Load, candidates: Candidates, now_s: float) -> str:
        """Lend a call on the chosen instance; returns the lease's id."""
        probe = False
        if load.look_until_s > now_s and load.breaker is not None:
            probe = load.breaker.admit(now_s) is Admission.PROBE
        load.in_flight += 1
        load.picks += 1
        candidates.in_flight += 1
        if self._log is not None:
            self._log.changes.append(load)
        return self.leases.lend(load, candidates, now_s, probe)

    def due_probe(self, candidates: Candidates, now_s: float) -> Load | None:
        """Return a load whose breaker waits for a probe, each once; None when there is none left."""
        while candidates.due:
            load = candidates.due.pop()
            if load.breaker is not None and load.breaker.retry_at_s > FREE_S and candidates.may_take(load, now_s, ""):
                return load
        return None

    def release(self, lease: Lease) -> None:
        """Count one call less in flight."""
        lease.load.in_flight -= 1
        lease.candidates.in_flight -= 1
        if self._log is not None:
            self._log.changes.append(lease.load)
            if self._log.is_full:
                self._log = None

    def _take_back(self, lease: Lease) -> None:
        lease.load.expired += 1
        self.release(lease)
        self.cancel_probe(lease)

    def cancel_probe(self, lease: Lease) -> None:
        """Let another call probe, if this one was to and has no outcome."""
        if lease.probe and lease.load.breaker is not None:
            lease.load.breaker.cancel_probe()
            self.version += 1

    def learn(self, lease: Lease, *, ok: bool, now_s: float, latency_ms: float | None, reporter: str) -> None:
        """Feed the outcome of a call to latency, breaker and the client's own memory of failures."""
        load = lease.load
        load.reports += 1
        self.heard.hear(reporter, now_s)
        if ok:
            if latency_ms is not None:
                taken_ms = counted_ms(latency_ms)
                load.observe(taken_ms, now_s)
                typical_ms = self.typical_ms
                self.typical_ms = typical_ms + (taken_ms - typical_ms) * TYPICAL_FACTOR if typical_ms else taken_ms
            if load.grudges:
                load.forgive(reporter)
        else:
            load.failures += 1
            load.observe(max(counted_ms(latency_ms or 0.0), FAILURE_COST * self.typical_ms), now_s)
        if (ok and load.breaker is None) or self.by_id.get(load.instance.id) is not load:
            return
        breaker = self.breaker_of(load)
        breaker.record(now_s, ok=ok, reporter=reporter, probe=lease.probe)
        if ok:
            if breaker.is_spent(now_s):
                load.breaker = None
        elif breaker.state(now_s) is not BreakerState.CLOSED or breaker.degraded:
            load.grudges = ()  # what only one of them saw has become everybody's matter
        else:
            load.resent(reporter, now_s)

    def breaker_of(self, load: Load) -> Breaker:
        """Return the load's breaker, made at the first failure."""
        if load.breaker is None:
            load.breaker = self._breaker_for(self, load)
        return load.breaker

    def _breaker_changed(self, breaker: Breaker, before: BreakerState, now_s: float) -> None:
        """Take note that a breaker has opened or closed. A closed one starts slowly, as a new instance does."""
        load = self.by_id.get(breaker.name)
        if load is None or load.breaker is not breaker:  # its instance has become another one
            return
        if load.breaker_state(now_s) is BreakerState.CLOSED:
            load.warm_up(now_s)
        load.guard()
        self.version += 1
        if self._on_breaker is not None:
            self._on_breaker(load.instance, before, breaker.state(now_s), now_s)


def _place(load: Load | None) -> tuple[int, str, tuple[str, ...], str]:
    """Return what decides where on which rings an instance stands; a weight of 0 is on none."""
    if load is None or load.rank > 1:
        return 0, "", (), ""
    instance = load.instance
    return instance.weight, instance.zone, instance.tags, instance.generation
