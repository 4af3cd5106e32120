"""Traffic in simulated time: callers that report late, and servers of which some are slow.

Calls arrive as a Poisson process at twenty servers with one worker each; the report of a call reaches the balancer some
time after its answer. A call that waits long is what a caller complains about, so tails are compared.
"""

from __future__ import annotations

import heapq
from collections import Counter
from functools import cache
from random import Random
from typing import NamedTuple

from app.locator.balancing import Strategy
from tests.locator.fleet import balancer, fleet

SERVERS = 20
SERVICE_S = 0.010


class Run(NamedTuple):
    """Milliseconds of half and of 99 % of the calls, and how many calls each server took."""

    p50_ms: float
    p99_ms: float
    calls: Counter[str]


@cache
def simulate(strategy: Strategy, *, late_s: float = 0.0, slow: int = 0, load: float = 0.75, calls: int = 8_000) -> Run:
    """Send calls at `load` of what all servers can do; `slow` of them take three times as long, and `load` knows."""
    rng = Random(11)
    one, snapshot = balancer(seed=12), fleet(SERVERS)
    factor = {id_: 3.0 if number < slow else 1.0 for number, id_ in enumerate(snapshot.by_id)}
    rate = load * sum(1 / each for each in factor.values()) / SERVICE_S
    free_s = dict.fromkeys(factor, 0.0)
    reports: list[tuple[float, str, float]] = []
    taken_ms: list[float] = []
    counts: Counter[str] = Counter()
    now_s = 0.0
    for _ in range(calls):
        now_s += rng.expovariate(rate)
        while reports and reports[0][0] <= now_s:
            at_s, lease_id, latency_ms = heapq.heappop(reports)
            one.report("web", lease_id, ok=True, now_s=at_s, latency_ms=latency_ms)
        pick = one.pick(snapshot, strategy, now_s=now_s)
        assert pick is not None
        id_ = pick.instance.id
        counts[id_] += 1
        done_s = free_s[id_] = max(free_s[id_], now_s) + rng.expovariate(1 / SERVICE_S) * factor[id_]
        taken_ms.append((done_s - now_s) * 1000)
        heapq.heappush(reports, (done_s + late_s, pick.lease_id, (done_s - now_s) * 1000))
    taken_ms = sorted(taken_ms[calls // 10 :])
    return Run(taken_ms[len(taken_ms) // 2], taken_ms[len(taken_ms) * 99 // 100], counts)


def test_equal_servers_are_served_better_by_two_choices_than_in_turn() -> None:
    in_turn = simulate("round_robin")

    for strategy in ("p2c", "response_time", "least_connections"):
        assert simulate(strategy).p99_ms < in_turn.p99_ms


def test_no_equal_server_starves_or_is_stormed_when_callers_report_late() -> None:
    for strategy in ("p2c", "response_time", "least_connections"):
        counts = simulate(strategy, late_s=0.1).calls
        fair = sum(counts.values()) / SERVERS

        assert len(counts) == SERVERS
        assert 0.5 * fair < min(counts.values())
        assert max(counts.values()) < 1.5 * fair


def test_late_reports_do_not_make_choosing_worse_than_chance() -> None:
    chance = simulate("weighted_random", late_s=0.1)

    for strategy in ("p2c", "response_time", "least_connections"):
        assert simulate(strategy, late_s=0.1).p99_ms < chance.p99_ms


def test_one_slow_server_does_not_set_the_tail() -> None:
    in_turn = simulate("round_robin", slow=1, load=0.7)

    for strategy in ("p2c", "response_time", "least_connections"):
        run = simulate(strategy, slow=1, load=0.7)
        assert run.p99_ms < in_turn.p99_ms / 3
        assert run.calls["i0"] < 0.75 * sum(run.calls.values()) / SERVERS


def test_response_time_sends_slow_servers_less_than_calls_in_flight_alone_would() -> None:
    slow = [f"i{number}" for number in range(5)]
    by_calls, by_time = (simulate(one, slow=5, load=0.7).calls for one in ("p2c", "response_time"))

    assert sum(by_time[id_] for id_ in slow) < sum(by_calls[id_] for id_ in slow)
    assert min(by_time[id_] for id_ in slow) > 0
