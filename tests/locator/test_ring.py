"""Consistent hashing: keys stay where they are, and no instance takes much more than its share."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from app.locator.instance import Snapshot
from app.locator.load import Load
from app.locator.ring import LOAD_FACTOR, POINTS, Ring, position_of
from tests.locator.fleet import balancer, changed, fleet, instance, picked

KEYS = [f"user-{number}" for number in range(4_000)]


def owners(snapshot: Snapshot) -> dict[str, str]:
    """Return who takes each key while nothing is in flight."""
    one = balancer()
    found = {}
    for key in KEYS:
        pick = one.pick(snapshot, "consistent_hash", now_s=0.0, key=key)
        assert pick is not None
        found[key] = pick.instance.id
        one.release("web", pick.lease_id)
    return found


def test_replicas_that_learned_of_the_instances_in_another_order_agree() -> None:
    snapshot = fleet(20)
    backwards = Snapshot.of("web", reversed(snapshot.by_id.values()), 7)

    assert owners(snapshot) == owners(backwards)


def test_another_process_puts_keys_in_the_same_places() -> None:
    code = "from app.locator.ring import position_of, seed_of; print(position_of('user-1'), seed_of('i1'))"

    seen = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }

    assert seen == {b"3051481044 12549877395308531466\n"}


def test_one_more_instance_takes_its_share_of_keys_and_moves_no_other() -> None:
    before = owners(fleet(20))
    after = owners(fleet(21))

    moved = {key for key in KEYS if before[key] != after[key]}

    assert {after[key] for key in moved} == {"i20"}
    assert 0.5 < len(moved) / (len(KEYS) / 21) < 1.6


def test_an_instance_that_leaves_or_drains_gives_up_its_own_keys_only() -> None:
    snapshot = fleet(20)
    before = owners(snapshot)

    for after in (owners(snapshot.evolve(removed=["i7"], revision=2)), owners(changed(snapshot, 7, state="draining"))):
        assert {before[key] for key in KEYS if before[key] != after[key]} == {"i7"}


def test_shares_follow_weights() -> None:
    weights = (1, 1, 2, 4)
    snapshot = Snapshot.of("web", [instance(number, weight=weight) for number, weight in enumerate(weights)], 1)

    counts = Counter(owners(snapshot).values())

    for number, weight in enumerate(weights):
        assert 0.6 < counts[f"i{number}"] / (len(KEYS) * weight / 8) < 1.4


def test_an_open_breaker_moves_its_keys_and_they_come_back() -> None:
    one, snapshot = balancer(), fleet(10)
    before = owners(snapshot)
    one.use(snapshot, 0.0)

    one.isolate("web", "i3", 0.0)
    meanwhile = {key: picked(one.pick(snapshot, "consistent_hash", now_s=0.0, key=key)) for key in KEYS[:200]}
    one.reset("web", "i3", 1.0)
    one.reap(60.0)
    pick = one.pick(snapshot, "consistent_hash", now_s=60.0, key=next(key for key in KEYS if before[key] == "i3"))

    assert "i3" not in meanwhile.values()
    assert picked(pick) == "i3"


def test_one_hot_key_loads_no_instance_beyond_the_bound() -> None:
    one, snapshot = balancer(), fleet(20)

    counts = Counter(picked(one.pick(snapshot, "consistent_hash", now_s=0.0, key="hot")) for _ in range(1_000))

    assert max(counts.values()) <= LOAD_FACTOR * 1_001 / 20 + 1
    assert len(counts) >= 20 / LOAD_FACTOR


def test_a_tagged_part_of_a_service_has_a_bound_of_its_own() -> None:
    one, snapshot = balancer(), changed(fleet(40), *range(10), tags=("t",))

    counts = Counter(picked(one.pick(snapshot, "consistent_hash", now_s=0.0, key="hot", tag="t")) for _ in range(500))

    assert set(counts) <= {f"i{number}" for number in range(10)}
    assert max(counts.values()) <= LOAD_FACTOR * 501 / 10 + 1


def test_keys_that_resemble_each_other_spread_over_the_ring() -> None:
    for keys in ([f"{number:08}" for number in range(6_400)], [f"tenant:{number}" for number in range(6_400)]):
        counts = Counter(position_of(key) >> 26 for key in keys)

        assert len(counts) == 64
        assert max(counts.values()) < 200


def test_points_are_a_prefix_so_that_weights_of_others_hardly_move_keys() -> None:
    ring = Ring([Load(instance(number, weight=1000 + number)) for number in range(50)])

    points = Counter(ring.load_at(ring.owner(position)).instance.id for position in range(0, 2**32, 2**18))

    assert len(points) == 50
    assert abs(len(ring._owners) - 50 * POINTS) <= 50
