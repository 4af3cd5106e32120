"""Verdicts: what counts as met, and by how much."""

import msgspec
import pytest

from bench.latency import Latency
from bench.rounds import Measured, Series
from bench.soak import slope_per_s
from bench.tally import LoadResult
from bench.targets import Verdict, judge, ratios
from bench.usage import Usage

NOTHING = Latency(0, 0, 0, 0, 0, 0, 0)


def measured(operations_per_s: float, *, errors: int = 0, p95_ms: float = 1.0) -> Measured:
    """One run with these figures."""
    latency = Latency(100, 1.0, 1.0, p95_ms, p95_ms, p95_ms, p95_ms)
    load = LoadResult(
        label="x",
        seconds=1.0,
        connections=64,
        rate_per_s=None,
        tasks_per_s=operations_per_s,
        operations_per_s=operations_per_s,
        operations=round(operations_per_s),
        failed_operations=0,
        errors=errors,
        statuses={200: round(operations_per_s)},
        unanswered=0,
        backlog_max=0,
        tasks=latency,
        calls={"consume": latency},
        send_lag=NOTHING,
        generator_cpu_seconds=0.1,
        generator_rss_bytes=1,
    )
    usage = Usage(0.5, 100 << 20)
    return Measured(load=load, server=usage, databases={}, stolen_share=0.0, outside_share=0.0, memory_samples=[1, 2])


def series(contestant: str, rounds: list[Measured], *, scenario: str = "consume", connections: int = 64) -> Series:
    """Rounds of one contestant."""
    return Series(scenario=scenario, contestant=contestant, server="shieldx", connections=connections, rounds=rounds)


def verdict(found: list[Verdict], target: str) -> Verdict:
    """The verdict on one target."""
    return next(one for one in found if one.target == target)


def test_ratio_is_taken_round_by_round() -> None:
    fast_then_slow = series("consume", [measured(8_000), measured(4_000)])
    same_machine = series("ceiling", [measured(10_000), measured(5_000)])

    assert ratios(fast_then_slow, same_machine) == [0.8, 0.8]


def test_target_is_met_by_its_margin() -> None:
    found = judge([series("consume", [measured(11_000), measured(12_000), measured(13_000)])])

    one = verdict(found, "consume throughput")
    assert (one.met, one.measured.median, one.measured.low, one.measured.high) == (
        True,
        12_000,
        11_000,
        13_000,
    )
    assert one.margin == pytest.approx(0.2)


def test_target_is_missed_by_its_margin() -> None:
    found = judge([series("balance", [measured(1_000, p95_ms=3.0)], scenario="balance")])

    one = verdict(found, "balance 1,000/s p95")
    assert not one.met
    assert one.margin == pytest.approx(-0.5)


def test_fast_run_with_failed_calls_meets_no_target() -> None:
    found = judge([series("consume", [measured(50_000, errors=1)])])

    assert not verdict(found, "consume throughput").met


def test_ratio_compares_the_same_number_of_connections() -> None:
    found = judge(
        [
            series("consume", [measured(8_000)], connections=64),
            series("ceiling", [measured(9_000)], connections=64),
            series("consume", [measured(12_000)], connections=256),
            series("ceiling", [measured(16_000)], connections=256),
        ]
    )

    one = verdict(found, "consume over ceiling")
    assert (one.connections, one.measured.median) == (256, 0.75)


def test_scenario_that_was_not_measured_has_no_verdict() -> None:
    assert judge([series("mixed", [measured(1)], scenario="mixed")]) == []


def test_result_file_keeps_a_run_whole() -> None:
    one = series("consume", [measured(1_000)])

    assert msgspec.json.decode(msgspec.json.encode(one), type=Series) == one


def test_slope_of_steady_growth_is_its_rate() -> None:
    assert slope_per_s([100 + 7 * number for number in range(20)], 0.5) == pytest.approx(14.0)
    assert slope_per_s([5], 1.0) == 0.0
