"""The lists of a service by zone: made for zones that there are, within a share of the time."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from app.locator.balancing import STRATEGIES, Strategy
from app.locator.candidates import RECOMPILE_S_PER_INSTANCE, Candidates, Filter
from app.locator.instance import Snapshot
from app.locator.load import Load
from app.locator.loads import ZONED_AHEAD_S, ZONED_S_PER_INSTANCE
from tests.locator.fleet import balancer, changed, instance, picked, tally


def test_lists_of_zones_take_a_share_of_the_time_whoever_asks_for_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Filter] = []
    compile_ = Candidates.compile

    def counted(candidates: Candidates, loads: Collection[Load], now_s: float, panic_share: float) -> None:
        compiled.append(candidates.filter)
        compile_(candidates, loads, now_s, panic_share)

    monkeypatch.setattr(Candidates, "compile", counted)
    size = 2_000
    snapshot = Snapshot.of("web", [instance(number, zone=f"z{number % 500}") for number in range(size)], 1)
    one = balancer()

    def ask(zones: Iterable[str], now_s: float) -> int:
        compiled.clear()
        for zone in zones:
            picked(one.pick(snapshot, now_s=now_s, zone=zone))
        return len(compiled)

    assert ask((f"unknown{number}" for number in range(1_000)), 0.0) == 1
    at_once = ask((f"z{number}" for number in range(500)), 0.0)
    later = ask((f"z{number}" for number in range(500)), 1.0)

    assert 0 <= ZONED_AHEAD_S / (ZONED_S_PER_INSTANCE * size) + 1 - at_once <= 1
    assert later <= 1.0 / (ZONED_S_PER_INSTANCE * size) + 1
    assert ask(["z7"] * 100, 60.0) <= 2
    assert one.pick(snapshot, now_s=60.0, zone="z7") is not None


def test_a_zone_is_known_as_long_as_an_instance_is_in_it() -> None:
    one, snapshot = balancer(), Snapshot.of("web", [instance(0, zone="a"), instance(1, zone="b")], 1)

    here = tally(one, snapshot, "p2c", 20, zone="a")
    moved = tally(one, changed(snapshot, 0, zone="c"), "p2c", 20, zone="c", now_s=1.0)
    left = tally(one, changed(snapshot, 0, zone="c").evolve(removed=["i1"], revision=9), "p2c", 20, zone="b", now_s=2.0)

    assert (here, moved, left) == ({"i0": 20}, {"i0": 20}, {"i0": 20})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_zone_whose_instances_all_came_back_is_served_while_there_is_no_time_for_its_list(strategy: Strategy) -> None:
    one, size = balancer(), 2_000
    snapshot = Snapshot.of("web", [instance(number, zone=f"z{number % 500}") for number in range(size)], 1)
    now_s = 10 * RECOMPILE_S_PER_INSTANCE * size
    anew = changed(snapshot, 0, 500, 1_000, 1_500, generation="second")

    for asked, at_s, first in ((snapshot, 0.0, 0), (changed(snapshot, 1), now_s, 1)):
        for number in range(500):
            one.pick(asked, now_s=at_s, zone=f"z{(number + first) % 500}")

    assert sum(tally(one, anew, strategy, 50, now_s=now_s, zone="z0", key="k").values()) == 50
