"""Who may be picked at all: states, breakers, zones, tags, panic; and what reports change."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.breaker import BreakerState
from app.locator.balancing import STRATEGIES, Strategy
from app.locator.instance import Snapshot, State
from app.locator.leases import Reported
from app.locator.pick import Balancer
from tests.locator.fleet import DOWN, DRAINING, SUSPECT, UNVERIFIED, balancer, changed, fail, fleet, instance, picked, tally


def breaker_of(one: Balancer, id_: str, now_s: float) -> str:
    view = one.view("web", id_, now_s)
    assert view is not None
    return str(view.breaker)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("fields", [{"state": DOWN}, {"state": DRAINING}, {"state": SUSPECT}, {"weight": 0}])
def test_what_may_not_take_calls_is_never_picked(strategy: Strategy, fields: dict[str, object]) -> None:
    snapshot = changed(fleet(6), 0, 3, **fields)
    one = balancer()

    seen = {picked(one.pick(snapshot, strategy, now_s=0.0, key=f"k{number}")) for number in range(200)}

    assert seen == {"i1", "i2", "i4", "i5"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_instance_that_drains_gets_nothing_from_the_next_pick_on(strategy: Strategy) -> None:
    one, snapshot = balancer(), fleet(2_000)
    one.pick(snapshot, strategy, now_s=0.0, key="k")

    for number in range(1_990):
        snapshot = changed(snapshot, number, state=DRAINING)
        one.use(snapshot, 0.0)

    assert int(picked(one.pick(snapshot, strategy, now_s=0.0, key="k"))[1:]) >= 1_990


def test_a_service_without_instances_that_serve_picks_none() -> None:
    one = balancer()

    assert one.pick(Snapshot.of("web", []), now_s=0.0) is None
    assert one.pick(Snapshot.of("api", [instance(1, state=DOWN)]), now_s=0.0) is None
    assert one.pick(fleet(3), now_s=0.0, tag="absent") is None


@pytest.mark.parametrize("state", [SUSPECT, UNVERIFIED])
def test_below_half_the_rest_is_offered_too_and_the_pick_says_so(state: State) -> None:
    one = balancer()
    enough, too_few = changed(fleet(10), *range(5), state=state), changed(fleet(10), *range(6), state=state)

    calm = {picked(one.pick(enough, now_s=0.0)) for _ in range(200)}
    pick = one.pick(too_few, now_s=1.0)
    panic = {picked(one.pick(too_few, now_s=1.0)) for _ in range(400)}

    assert calm == {"i5", "i6", "i7", "i8", "i9"}
    assert pick is not None
    assert pick.panic
    assert len(panic) == 10


def test_the_last_instance_is_offered_although_it_is_suspect() -> None:
    pick = balancer().pick(fleet(1, state=SUSPECT), now_s=0.0)

    assert pick is not None
    assert pick.panic


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_three_reported_failures_take_an_instance_out_at_once(strategy: Strategy) -> None:
    one, snapshot = balancer(), fleet(5)

    fail(one, snapshot, 2, now_s=0.0)

    seen = {picked(one.pick(snapshot, strategy, now_s=0.0, key=f"k{number}")) for number in range(100)}
    assert seen == {"i0", "i1", "i3", "i4"}
    assert breaker_of(one, "i2", 0.0) == "open"


@pytest.mark.parametrize("strategy", [one for one in STRATEGIES if one != "consistent_hash"])
def test_the_next_pick_after_thirty_seconds_is_the_only_probe_and_its_success_brings_the_instance_back(
    strategy: Strategy,
) -> None:
    one, snapshot = balancer(), fleet(5)
    fail(one, snapshot, 2, now_s=0.0)

    before = {picked(one.pick(snapshot, strategy, now_s=29.9)) for _ in range(50)}
    probe = one.pick(snapshot, strategy, now_s=30.0)
    after = {picked(one.pick(snapshot, strategy, now_s=30.0)) for _ in range(50)}
    assert probe is not None
    one.report("web", probe.lease_id, ok=True, now_s=30.1, latency_ms=5.0)
    back = tally(one, snapshot, strategy, 200, now_s=90.0)

    assert picked(probe) == "i2"
    assert "i2" not in before | after
    assert back["i2"] > 10


def test_consistent_hash_probes_with_a_key_of_the_instance() -> None:
    one, snapshot = balancer(), fleet(5)
    keys = [f"k{number}" for number in range(50)]
    owners = {key: picked(one.pick(snapshot, "consistent_hash", now_s=0.0, key=key)) for key in keys}
    one.reap(31.0)
    fail(one, snapshot, 2, now_s=31.0)

    probed = [key for key in keys if picked(one.pick(snapshot, "consistent_hash", now_s=61.0, key=key)) == "i2"]

    assert len(probed) == 1
    assert owners[probed[0]] == "i2"


def test_a_probe_without_an_outcome_leaves_room_for_the_next_one() -> None:
    one, snapshot = balancer(), fleet(5)
    fail(one, snapshot, 2, now_s=0.0)

    first = one.pick(snapshot, now_s=30.0)
    assert first is not None
    one.release("web", first.lease_id)
    second = one.pick(snapshot, now_s=30.1)
    one.reap(61.0)
    third = one.pick(snapshot, now_s=61.0)

    assert [picked(pick) for pick in (first, second, third)] == ["i2", "i2", "i2"]


def test_at_most_half_of_a_service_is_open_and_the_rest_is_marked() -> None:
    one, snapshot = balancer(), fleet(6)

    for number in range(6):
        for _ in range(3):
            one.isolate("api", f"i{number}", 0.0)
            for _ in range(40):
                pick = one.pick(snapshot, "round_robin", now_s=0.0)
                assert pick is not None
                one.report("web", pick.lease_id, ok=False, now_s=0.0)

    views = [one.view("web", f"i{number}", 0.0) for number in range(6)]
    assert sum(view.breaker is BreakerState.OPEN for view in views if view) == 3
    assert sum(view.degraded for view in views if view) == 3
    assert one.pick(snapshot, now_s=0.0) is not None


def test_a_client_that_fails_alone_loses_the_instance_for_itself_only() -> None:
    one, snapshot = balancer(), fleet(5)
    for _ in range(10):
        pick = one.pick(snapshot, now_s=0.0, client="good")
        assert pick is not None
        one.report("web", pick.lease_id, ok=True, now_s=0.0, latency_ms=5.0, reporter="good")

    fail(one, snapshot, 2, now_s=1.0, reporter="bad")

    bad = {picked(one.pick(snapshot, now_s=1.0, client="bad")) for _ in range(100)}
    good = {picked(one.pick(snapshot, now_s=1.0, client="good")) for _ in range(100)}
    later = {picked(one.pick(snapshot, now_s=32.0, client="bad")) for _ in range(100)}
    assert bad == {"i0", "i1", "i3", "i4"}
    assert "i2" in good
    assert "i2" in later
    assert breaker_of(one, "i2", 1.0) == "closed"


def test_a_client_that_has_failed_with_all_of_them_still_gets_one() -> None:
    one, snapshot = balancer(), fleet(3)
    pick = one.pick(snapshot, now_s=0.0)
    assert pick is not None
    one.report("web", pick.lease_id, ok=True, now_s=0.0, reporter="good")

    for number in range(3):
        fail(one, snapshot, number, now_s=1.0, reporter="bad")

    assert one.pick(snapshot, now_s=1.0, client="bad") is not None


def test_an_isolated_instance_is_out_even_in_panic_until_it_is_reset() -> None:
    one, snapshot = balancer(), changed(fleet(4), 0, 1, 2, state=SUSPECT)
    one.use(snapshot, 0.0)

    known = one.isolate("web", "i3", 0.0)
    while_isolated = {picked(one.pick(snapshot, now_s=0.0)) for _ in range(100)}
    restarted = changed(snapshot, 3, generation="another")
    after_restart = {picked(one.pick(restarted, now_s=1.0)) for _ in range(100)}
    one.reset("web", "i3", 2.0)
    after_reset = {picked(one.pick(restarted, now_s=40.0)) for _ in range(100)}

    assert known
    assert while_isolated == after_restart == {"i0", "i1", "i2"}
    assert "i3" in after_reset
    assert not one.isolate("web", "i9", 0.0)


def test_another_generation_of_an_instance_begins_anew() -> None:
    one, snapshot = balancer(), fleet(4)
    held = [one.pick(snapshot, "round_robin", now_s=0.0) for _ in range(8)]
    fail(one, snapshot, 2, now_s=0.0)

    snapshot = changed(snapshot, 2, generation="another")
    one.use(snapshot, 1.0)
    view = one.view("web", "i2", 1.0)
    outcomes = [one.report("web", pick.lease_id, ok=False, now_s=1.0) for pick in held if pick and picked(pick) == "i2"]

    assert view is not None
    assert (view.in_flight, view.latency_ms, view.breaker, view.reports) == (0, None, BreakerState.CLOSED, 0)
    assert set(outcomes) == {Reported.COUNTED}
    assert breaker_of(one, "i2", 1.0) == "closed"


def test_a_zone_keeps_its_calls_while_it_is_healthy_and_spills_what_it_cannot_take() -> None:
    local = [instance(number, zone="a") for number in range(10)]
    snapshot = Snapshot.of("web", [*local, *(instance(number, zone="b") for number in range(10, 30))], 1)
    one = balancer()

    healthy = tally(one, snapshot, "p2c", 500, zone="a")
    half = tally(one, changed(snapshot, *range(5), state=SUSPECT), "p2c", 4_000, zone="a", now_s=1.0)
    gone = tally(one, snapshot.evolve(removed=[i.id for i in local], revision=9), "p2c", 100, zone="a", now_s=2.0)

    assert {int(id_[1:]) // 10 for id_ in healthy} == {0}
    assert sum(half[f"i{number}"] for number in range(10)) / 4_000 == pytest.approx(0.7, abs=0.04)
    assert sum(gone.values()) == 100


def test_a_zone_that_is_unknown_is_no_wish() -> None:
    assert len(tally(balancer(), fleet(5), "round_robin", 50, zone="nowhere")) == 5


def test_a_tag_is_required_and_follows_changes() -> None:
    one, snapshot = balancer(), changed(fleet(6), 1, 4, tags=("green", "new"))

    first = tally(one, snapshot, "round_robin", 20, tag="green")
    snapshot = changed(snapshot, 4, tags=("blue",)).evolve([instance(6, tags=("green",))], ["i1"], revision=9)
    second = tally(one, snapshot, "round_robin", 20, tag="green", now_s=60.0)
    third = one.pick(snapshot, now_s=60.0, tag="new")

    assert set(first) == {"i1", "i4"}
    assert set(second) == {"i6"}
    assert third is None


def test_reports_that_fit_no_lease_change_nothing() -> None:
    one, snapshot = balancer(), fleet(3)
    pick = one.pick(snapshot, now_s=0.0)
    assert pick is not None

    stray = one.report("nowhere", pick.lease_id, ok=False, now_s=0.0)
    first = one.report("web", pick.lease_id, ok=True, now_s=0.0, latency_ms=5.0)
    again = [one.report("web", pick.lease_id, ok=False, now_s=0.0) for _ in range(10)]

    view = one.view("web", picked(pick), 0.0)
    assert (stray, first, set(again)) == (Reported.UNKNOWN, Reported.COUNTED, {Reported.REPEATED})
    assert view is not None
    assert (view.failures, view.reports, view.in_flight) == (0, 1, 0)


def test_leases_of_thousands_of_services_are_taken_back_a_part_at_a_time() -> None:
    one = balancer()
    for number in range(600):
        assert one.pick(Snapshot.of(f"s{number}", fleet(1).by_id.values()), now_s=0.0) is not None

    taken = [one.reap(30.0) for _ in range(3)]

    assert taken == [256, 256, 88]


def test_a_client_that_fails_with_the_only_instance_for_hours_does_no_harm() -> None:
    one, snapshot = balancer(), fleet(1)

    for number in range(1_200):
        for reporter, ok in (("content", True), ("failing", False)):
            pick = one.pick(snapshot, now_s=float(number), client=reporter)
            assert pick is not None
            one.report("web", pick.lease_id, ok=ok, now_s=float(number), reporter=reporter)

    view = one.view("web", "i0", 1_200.0)
    assert view is not None
    assert (view.failures, view.breaker) == (1_200, BreakerState.CLOSED)


def test_a_late_failure_counts_although_the_lease_was_taken_back() -> None:
    one, snapshot = balancer(), fleet(1)
    pick = one.pick(snapshot, now_s=0.0)
    assert pick is not None

    taken = one.reap(30.0)
    outcome = one.report("web", pick.lease_id, ok=False, now_s=40.0, latency_ms=40_000)

    view = one.view("web", "i0", 40.0)
    assert view is not None
    assert (taken, outcome, view.failures, view.expired, view.in_flight) == (1, Reported.LATE, 1, 1, 0)


@pytest.mark.parametrize("latency_ms", [float("nan"), float("inf"), -5.0, 0.0, 1e300])
def test_an_impossible_latency_does_no_harm(latency_ms: float) -> None:
    one, snapshot = balancer(), fleet(3)
    for _ in range(6):
        pick = one.pick(snapshot, "round_robin", now_s=0.0)
        assert pick is not None
        one.report("web", pick.lease_id, ok=True, now_s=0.0, latency_ms=latency_ms)

    assert len(tally(one, snapshot, "response_time", 300, now_s=1.0)) == 3


def test_consistent_hash_needs_a_key() -> None:
    with pytest.raises(ValueError, match="needs a key"):
        balancer().pick(fleet(3), "consistent_hash", now_s=0.0)


def test_a_forgotten_service_knows_no_lease() -> None:
    one, snapshot = balancer(), fleet(3)
    pick = one.pick(snapshot, now_s=0.0)
    assert pick is not None

    one.forget("web")

    assert one.release("web", pick.lease_id) is Reported.UNKNOWN
    assert one.view("web", "i0", 0.0) is None
    assert one.pick(snapshot, now_s=0.0) is not None


def test_a_snapshot_evolves_only_forwards() -> None:
    with pytest.raises(ValueError, match="does not follow"):
        fleet(1).evolve(revision=1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 99), max_size=120), st.integers(0, 1_000))
def test_calls_in_flight_are_the_open_leases_and_only_offered_ones_are_picked(steps: list[int], seed: int) -> None:
    rng = Random(seed)
    one, snapshot = balancer(seed), fleet(6)
    held: list[str] = []
    now_s = 0.0

    for step in steps:
        now_s += rng.choice((0.0, 0.1, 3.0))
        if step < 50:
            pick = one.pick(snapshot, rng.choice(STRATEGIES), now_s=now_s, key=str(step), zone=rng.choice(("", "a")))
            if pick is not None:
                held.append(pick.lease_id)
                assert snapshot.by_id[pick.instance.id] is pick.instance
                assert pick.instance.state not in (DOWN, DRAINING)
        elif step < 75 and held:
            one.report("web", held.pop(rng.randrange(len(held))), ok=step < 60, now_s=now_s, latency_ms=step)
        elif step < 85:
            snapshot = changed(snapshot, step % 6, state=rng.choice(list(State)), zone=rng.choice(("", "a")))
        elif step < 90:
            snapshot = changed(snapshot, step % 6, generation=str(step), weight=step % 4)
        elif step < 95:
            one.isolate("web", f"i{step % 6}", now_s)
        else:
            one.reset("web", f"i{step % 6}", now_s)
        one.reap(now_s)

    for id_ in snapshot.by_id:
        one.isolate("web", id_, now_s)
    one.reap(now_s + 31.0)
    assert one.leased("web") == 0
    views = [one.view("web", id_, now_s) for id_ in snapshot.by_id]
    assert all(view is None or view.in_flight == 0 for view in views)
