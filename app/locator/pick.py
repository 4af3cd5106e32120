"""Picking an instance, and learning from what became of the call.

`Balancer` keeps what outlives snapshots: loads, leases, breakers, compiled candidates. It does no I/O, reads no clock
and takes no lock; use it from one thread. All times are monotonic seconds that the caller reads.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import msgspec

from app.breaker import POLICY, Breaker, BreakerPolicy, BreakerState
from app.locator.balancing import CHOICES, Strategy
from app.locator.candidates import PANIC_SHARE, Filter
from app.locator.instance import Instance, Snapshot
from app.locator.leases import LEASE_S, REAP_MAX, Reported
from app.locator.loads import Loads
from app.locator.ring import position_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.locator.candidates import Candidates
    from app.locator.load import Load
    from app.locator.loads import OnBreaker


REAP_SERVICES_MAX: Final = 256  # of one call: 0.3 ms; of 5,000 services each has its turn in 5 s
OPEN_SHARE: Final = 0.5  # of a service's breakers that may be open at once; those beyond serve on, marked as degraded


class Pick(msgspec.Struct, frozen=True, gc=False):
    """The chosen instance, the lease to report with, and whether too few were healthy to be choosy."""

    instance: Instance
    lease_id: str
    panic: bool = False


class LoadView(msgspec.Struct, frozen=True, gc=False):
    """What is known of an instance's load, for lists."""

    in_flight: int
    latency_ms: float | None  # peak EWMA; None before the first report
    breaker: BreakerState
    isolated: bool
    degraded: bool
    picks: int
    reports: int
    failures: int
    expired: int


class Balancer:
    """Picks instances of any number of services, and takes the reports."""

    def __init__(
        self,
        replica: str = "",
        *,
        policy: BreakerPolicy = POLICY,
        open_share: float = OPEN_SHARE,
        panic_share: float = PANIC_SHARE,
        lease_s: float = LEASE_S,
        on_breaker: OnBreaker | None = None,
        draw_01: Callable[[], float] = random.random,
    ) -> None:
        """`replica` begins the ids of leases; `draw_01` gives [0, 1), and all choices at random come from it."""
        self._replica = replica
        self._policy = policy
        self._open_share = open_share
        self._panic_share = panic_share
        self._lease_s = lease_s
        self._on_breaker = on_breaker
        self._draw_01 = draw_01
        self._services: dict[str, Loads] = {}
        self._due: list[str] = []  # services that are still to be looked at for leases whose time is over

    def use(self, snapshot: Snapshot, now_s: float) -> None:
        """Take a service's new snapshot. What has left or drains is not picked again from here on.

        O(changes) for the snapshot that follows the last one used, else O(n). `pick` does it too, but a registry that
        calls it for every snapshot spares the picks the O(n).
        """
        service = self._services.get(snapshot.service)
        if service is None:
            service = Loads(self._replica, self._lease_s, self._breaker_of, self._on_breaker, self._draw_01)
            self._services[snapshot.service] = service
        service.adopt(snapshot, now_s)
        service.budget.limit = int(self._open_share * len(service.by_id))

    @property
    def open_breakers(self) -> int:
        """Breakers of all services that are open, but for those that a person has opened."""
        return sum(service.budget.taken for service in self._services.values())

    def forget(self, service: str) -> None:
        """Drop all that is known of a service that is gone. Its leases become unknown."""
        self._services.pop(service, None)

    def pick(
        self,
        snapshot: Snapshot,
        strategy: Strategy = "p2c",
        *,
        now_s: float,
        key: str = "",
        zone: str = "",
        tag: str = "",
        client: str = "",
    ) -> Pick | None:
        """Choose an instance and lend a call on it. None when no instance may take one.

        key     what consistent_hash hashes; other strategies ignore it
        zone    preferred: others are chosen by the share of it that is not ready, or when it has none
        tag     required
        client  who asks, as reports will name it: it gets no instance that has failed it and nobody else
        raises  ValueError for consistent_hash without a key
        """
        service = self._services.get(snapshot.service)
        if service is None or service.snapshot is not snapshot:
            self.use(snapshot, now_s)
            service = self._services[snapshot.service]
        candidates = service.every
        if tag or candidates.version != service.version or now_s >= candidates.fresh_until_s:
            tagged = service.compiled(Filter(tag=tag), now_s, self._panic_share)
            if tagged is None:
                return None
            candidates = tagged
        every = candidates
        if zone in service.zones and not candidates.panic:
            share = position_of(key) / 2**32 if strategy == "consistent_hash" else self._draw_01()
            candidates = self._zoned(service, candidates, zone, share, now_s)
        load = _chosen(service, candidates, strategy, now_s, client, key)
        if load is None and candidates is not every:  # an older list of the zone: all that are in it may have gone
            candidates = every
            load = _chosen(service, candidates, strategy, now_s, client, key)
        if load is None:
            return None
        return Pick(load.instance, service.lend(load, candidates, now_s), candidates.panic)

    def report(
        self, service: str, lease_id: str, *, ok: bool, now_s: float, latency_ms: float | None = None, reporter: str = ""
    ) -> Reported:
        """Take the outcome of a picked call: release the lease, and feed breaker and latency. Once for each lease.

        ok          False only for faults of the instance: no connection, timeout, 5xx. Not for 4xx, nor for calls
                    that their own caller gave up: `release` those
        latency_ms  from the call's start to its answer; None when unknown
        reporter    who says so, as authenticated: with several of them, one alone cannot open a breaker for all
        """
        loads = self._services.get(service)
        if loads is None:
            return Reported.UNKNOWN
        outcome, lease = loads.leases.close(lease_id)
        if lease is not None:
            if outcome is Reported.COUNTED:
                loads.release(lease)
            loads.learn(lease, ok=ok, now_s=now_s, latency_ms=latency_ms, reporter=reporter)
        return outcome

    def release(self, service: str, lease_id: str) -> Reported:
        """Release a lease whose call has no outcome: it was never made, or its caller gave up."""
        loads = self._services.get(service)
        if loads is None:
            return Reported.UNKNOWN
        outcome, lease = loads.leases.close(lease_id)
        if lease is not None and outcome is Reported.COUNTED:
            loads.release(lease)
            loads.cancel_probe(lease)
        return outcome

    def reap(self, now_s: float, limit: int = REAP_MAX) -> int:
        """Take back leases whose time is over, at most `limit`; returns how many. Call it a few times a second.

        Looks at REAP_SERVICES_MAX services, and at the next ones when called again.
        """
        if not self._due:
            self._due = list(self._services)
        due, self._due = self._due[-REAP_SERVICES_MAX:], self._due[:-REAP_SERVICES_MAX]
        taken = 0
        for name in due:
            service = self._services.get(name)
            if service is not None:
                taken += service.leases.reap(now_s, limit - taken)
        return taken

    def isolate(self, service: str, instance_id: str, now_s: float) -> bool:
        """Open an instance's breaker until `reset`. Returns whether the instance is known."""
        loads = self._services.get(service)
        load = loads.by_id.get(instance_id) if loads else None
        if loads is None or load is None:
            return False
        loads.breaker_of(load).isolate(now_s)
        load.guard()
        return True

    def reset(self, service: str, instance_id: str, now_s: float) -> bool:
        """Close an instance's breaker and forget its failures. Returns whether the instance is known."""
        loads = self._services.get(service)
        load = loads.by_id.get(instance_id) if loads else None
        if load is None:
            return False
        if load.breaker is not None:
            load.breaker.reset(now_s)
        load.grudges = ()
        load.guard()
        return True

    def view(self, service: str, instance_id: str, now_s: float) -> LoadView | None:
        """Return what is known of an instance's load; None for one that was never in a snapshot used here."""
        loads = self._services.get(service)
        load = loads.by_id.get(instance_id) if loads else None
        if load is None:
            return None
        breaker = load.breaker
        return LoadView(
            load.in_flight, load.cost(now_s, 0.0) if load.cost_ms else None, load.breaker_state(now_s), load.is_isolated(),
            breaker is not None and breaker.degraded, load.picks, load.reports, load.failures, load.expired,
        )  # fmt: skip

    def leased(self, service: str) -> int:
        """Return how many leases of the service are lent out."""
        loads = self._services.get(service)
        return len(loads.leases) if loads else 0

    def _zoned(self, service: Loads, every: Candidates, zone: str, share: float, now_s: float) -> Candidates:
        """Return those of `every` that are in the zone; all others for the part of calls that the zone cannot take."""
        inside = service.compiled(Filter("in", zone, every.filter.tag), now_s, 0.0)
        if inside is not None and share < inside.health:
            return inside
        outside = service.compiled(Filter("out", zone, every.filter.tag), now_s, 0.0)
        if outside is not None and outside.loads:
            return outside
        return inside if inside is not None and inside.loads else every

    def _breaker_of(self, service: Loads, load: Load) -> Breaker:
        # One callback for all of a service, and none that knows its load: that is a fifth of the memory of a breaker.
        return Breaker(
            load.instance.id, self._policy, budget=service.budget, heard=service.heard, on_change=service.on_change,
            draw=self._draw_01,
        )  # fmt: skip


def _chosen(
    service: Loads, candidates: Candidates, strategy: Strategy, now_s: float, client: str, key: str
) -> Load | None:  # fmt: skip
    """Return whom the strategy takes, one that is to be probed before all others; None when no candidate may take a call."""
    load = service.due_probe(candidates, now_s) if candidates.due and strategy != "consistent_hash" else None
    if load is None and candidates.loads:
        choose = CHOICES[strategy]
        load = choose(service, candidates, now_s, client, key) or choose(service, candidates, now_s, "", key)
    return load
