"""Who is picked how often: each strategy against the distribution that it promises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from random import Random

import pytest

from app.locator.balancing import STRATEGIES, Strategy
from app.locator.instance import Snapshot
from app.locator.load import WARM_S
from tests.locator.fleet import balancer, fleet, instance, picked, tally

PICKS = 8_000
BY_WEIGHT: tuple[Strategy, ...] = ("p2c", "round_robin", "weighted_random", "response_time")


def weighted(*weights: int) -> Snapshot:
    return Snapshot.of("web", [instance(number, weight=weight) for number, weight in enumerate(weights)], 1)


def chi_square(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Return how many standard deviations the chi-square statistic lies above its mean."""
    total, sum_ = sum(counts.values()), sum(shares.values())
    statistic = sum(
        (counts.get(key, 0) - total * share / sum_) ** 2 / (total * share / sum_) for key, share in shares.items()
    )
    freedom = len(shares) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("strategy", BY_WEIGHT)
@pytest.mark.parametrize("weights", [(1,) * 20, (1, 2, 3, 4), (100, 1, 1, 10), (65_535, 65_535, 30_000)])
def test_idle_instances_are_picked_by_weight(strategy: Strategy, weights: tuple[int, ...]) -> None:
    snapshot = weighted(*weights)

    counts = tally(balancer(), snapshot, strategy, PICKS)

    assert chi_square(counts, {one.id: one.weight for one in snapshot.by_id.values()}) < 4


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", [1, 2])
def test_few_instances_are_no_special_case(strategy: Strategy, size: int) -> None:
    counts = tally(balancer(), fleet(size), strategy, 50, key="k")

    assert sum(counts.values()) == 50


def test_round_robin_gives_every_instance_the_same_number_of_turns() -> None:
    counts = tally(balancer(), fleet(7), "round_robin", 70)

    assert set(counts.values()) == {10}


def test_round_robin_spreads_the_turns_of_a_heavy_instance() -> None:
    one = balancer()
    snapshot = weighted(5, 1, 1, 1, 1, 1)

    order = [picked(one.pick(snapshot, "round_robin", now_s=0.0)) for _ in range(100)]

    assert Counter(order)["i0"] == 50
    assert "i0 i0 i0" not in " ".join(order)


def test_round_robin_starts_anywhere() -> None:
    snapshot = fleet(10)

    starts = {picked(balancer(seed).pick(snapshot, "round_robin", now_s=0.0)) for seed in range(40)}

    assert len(starts) > 5


@pytest.mark.parametrize("weights", [(1,) * 12, (1, 2, 3, 5, 8, 13)])
def test_least_connections_always_takes_one_with_the_fewest_calls_for_its_weight(weights: tuple[int, ...]) -> None:
    one, snapshot, rng = balancer(), weighted(*weights), Random(3)
    flying: list[tuple[str, str]] = []
    in_flight = Counter(dict.fromkeys(snapshot.by_id, 0))

    for _ in range(3_000):
        if flying and rng.random() < 0.48:
            id_, lease_id = flying.pop(rng.randrange(len(flying)))
            one.release("web", lease_id)
            in_flight[id_] -= 1
        else:
            pick = one.pick(snapshot, "least_connections" if rng.random() < 0.8 else "p2c", now_s=0.0)
            assert pick is not None
            in_flight[pick.instance.id] += 1
            flying.append((pick.instance.id, pick.lease_id))

        least = min((in_flight[id_] + 1) / member.weight for id_, member in snapshot.by_id.items())
        probe = one.pick(snapshot, "least_connections", now_s=0.0)
        assert probe is not None
        assert (in_flight[probe.instance.id] + 1) / probe.instance.weight == pytest.approx(least)
        one.release("web", probe.lease_id)


def test_least_connections_takes_idle_instances_in_turn() -> None:
    counts = tally(balancer(), fleet(9), "least_connections", 90)

    assert set(counts.values()) == {10}


@pytest.mark.parametrize("strategy", ["p2c", "least_connections", "response_time"])
def test_calls_in_flight_spread_evenly(strategy: Strategy) -> None:
    one, snapshot = balancer(), fleet(20)

    counts = Counter(picked(one.pick(snapshot, strategy, now_s=0.0)) for _ in range(2_000))

    assert max(counts.values()) - min(counts.values()) <= 8


def test_response_time_prefers_the_fast_and_forgets_what_is_long_ago() -> None:
    one, snapshot = balancer(), fleet(4)
    for _ in range(200):
        pick = one.pick(snapshot, "round_robin", now_s=0.0)
        assert pick is not None
        one.report("web", pick.lease_id, ok=True, now_s=0.0, latency_ms=500 if pick.instance.id == "i0" else 10)

    slow = tally(one, snapshot, "response_time", 1_000, now_s=1.0)["i0"]
    later = tally(one, snapshot, "response_time", 1_000, now_s=200.0)

    assert slow == 0
    assert later["i0"] == 0
    assert one.view("web", "i0", 200.0).latency_ms < 0.001  # type: ignore[union-attr, operator]


def test_response_time_finds_a_recovered_instance_again() -> None:
    one, snapshot, rng = balancer(), fleet(4), Random(5)
    counts: Counter[str] = Counter()

    for step in range(8_000):
        now_s = step * 0.01
        pick = one.pick(snapshot, "response_time", now_s=now_s)
        assert pick is not None
        slow = pick.instance.id == "i0" and now_s < 20
        one.report("web", pick.lease_id, ok=True, now_s=now_s, latency_ms=(900 if slow else 10) * rng.uniform(0.8, 1.2))
        if now_s > 70:
            counts[pick.instance.id] += 1

    assert counts["i0"] > 0.15 * sum(counts.values())


def test_an_instance_that_fails_fast_is_not_taken_for_a_fast_one() -> None:
    one, snapshot = balancer(open_share=0.0), fleet(4)
    counts: Counter[str] = Counter()

    for step in range(2_000):
        pick = one.pick(snapshot, "response_time", now_s=step * 0.001)
        assert pick is not None
        counts[pick.instance.id] += 1
        bad = pick.instance.id == "i0"
        one.report("web", pick.lease_id, ok=not bad, now_s=step * 0.001, latency_ms=0.1 if bad else 20)

    assert counts["i0"] < 100


@pytest.mark.parametrize("strategy", [one for one in STRATEGIES if one != "consistent_hash"])
def test_a_new_instance_begins_with_a_tenth_of_its_share_and_ends_with_all_of_it(strategy: Strategy) -> None:
    one, old = balancer(), fleet(9)
    one.use(old, 0.0)
    snapshot = old.evolve([instance(9)], revision=2)

    at_once = tally(one, snapshot, strategy, 4_000, now_s=0.0)["i9"] / 400
    halfway = tally(one, snapshot, strategy, 4_000, now_s=WARM_S / 2)["i9"] / 400
    at_last = tally(one, snapshot, strategy, 4_000, now_s=WARM_S)["i9"] / 400

    assert 0.03 < at_once < 0.25
    assert 0.35 < halfway < 0.75
    assert 0.8 < at_last < 1.2


def test_there_is_no_slow_start_while_most_instances_are_new() -> None:
    one, old = balancer(), fleet(4)
    one.use(old, 0.0)
    snapshot = old.evolve([instance(number) for number in range(4, 12)], revision=2)

    counts = tally(one, snapshot, "weighted_random", PICKS, now_s=0.0)

    assert chi_square(counts, dict.fromkeys(snapshot.by_id, 1.0)) < 4
