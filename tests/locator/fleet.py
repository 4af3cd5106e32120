"""Services made of instances for the tests of picking."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import msgspec

from app.locator.balancing import Strategy
from app.locator.instance import Instance, Snapshot, State
from app.locator.pick import Balancer, Pick


def instance(number: int, **fields: Any) -> Instance:
    """Return the instance `i<number>` of the service `web`."""
    return Instance.of("web", f"i{number}", f"10.0.{number // 250}.{number % 250 + 1}", 8080, **fields)


def fleet(size: int, **fields: Any) -> Snapshot:
    """Return a snapshot of `web` with so many instances."""
    return Snapshot.of("web", [instance(number, **fields) for number in range(size)], 1)


def changed(snapshot: Snapshot, *numbers: int, **fields: Any) -> Snapshot:
    """Return the next snapshot, in which these instances have other fields."""
    put = [msgspec.structs.replace(snapshot.by_id[f"i{number}"], **fields) for number in numbers]
    return snapshot.evolve(put, revision=snapshot.revision + 1)


def balancer(seed: int = 1, **keywords: Any) -> Balancer:
    """Return a balancer whose choices at random follow from the seed."""
    return Balancer("r1", draw_01=Random(seed).random, **keywords)


def picked(one: Pick | None) -> str:
    """Return the id of the picked instance. There must be one."""
    assert one is not None
    return one.instance.id


def tally(
    balancer_: Balancer, snapshot: Snapshot, strategy: Strategy, picks: int, *, now_s: float = 0.0, **wishes: str
) -> Counter[str]:
    """Pick so many times, release each pick at once, and count how often each instance was picked."""
    counts: Counter[str] = Counter()
    for _ in range(picks):
        one = balancer_.pick(snapshot, strategy, now_s=now_s, **wishes)
        counts[picked(one)] += 1
        assert one is not None
        balancer_.release("web", one.lease_id)
    return counts


def fail(balancer_: Balancer, snapshot: Snapshot, number: int, *, now_s: float, times: int = 3, reporter: str = "") -> None:
    """Have this many calls on one instance reported as failed; others that come up on the way are released."""
    while times:
        one = balancer_.pick(snapshot, "round_robin", now_s=now_s)
        assert one is not None
        if one.instance.id == f"i{number}":
            balancer_.report("web", one.lease_id, ok=False, now_s=now_s, reporter=reporter)
            times -= 1
        else:
            balancer_.release("web", one.lease_id)


DOWN, DRAINING, SUSPECT, UNVERIFIED, UP = State.DOWN, State.DRAINING, State.SUSPECT, State.UNVERIFIED, State.UP
