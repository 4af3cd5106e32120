"""How long it takes to choose a variant, to analyse, and to weigh evidence, in this process."""

import time
from collections.abc import Callable
from typing import Final

import msgspec

from app.shadow.anytime_interval import lifts_of
from app.shadow.bucketing import bucket_of, index_in, ranges_of
from app.shadow.evidence import e_value, sums_of
from app.shadow.monte_carlo import probability_best_mc
from app.shadow.posterior import analyse
from app.shadow.thompson import draw, weights_of

CALLS: Final = 20_000  # of what takes microseconds
REPEATS: Final = 50  # of what takes milliseconds
VARIANTS: Final = 20
UNIT: Final = "0190a8e2-7c11-7a64-8f6e-%012d"  # as long as a UUID: what most units are called


class Timing(msgspec.Struct, frozen=True):
    """Time of one call in microseconds."""

    name: str
    p50_us: float
    p99_us: float


def _timed(name: str, calls: int, call: Callable[[int], object]) -> Timing:
    call(0)
    times = []
    for number in range(calls):
        start = time.perf_counter_ns()
        call(number)
        times.append(time.perf_counter_ns() - start)
    times.sort()
    return Timing(name, times[calls // 2] / 1000, times[min(calls - 1, calls * 99 // 100)] / 1000)


def measure(calls: int = CALLS, repeats: int = REPEATS) -> list[Timing]:
    """Time the pure code that requests run through; on a shared machine the 99th percentile holds what others did."""
    ranges, weights = ranges_of([1.0] * VARIANTS), (1 / VARIANTS,) * VARIANTS
    samples = [1_000 * (1 + 37 * number) for number in range(VARIANTS)]
    successes = [count // 10 for count in samples]
    statistics = [sums_of(0.5, 1_000 + 10 * number, 1_000) for number in range(VARIANTS - 1)]
    return [
        _timed("select, fixed split of 20", calls, lambda number: index_in(ranges, bucket_of("checkout", UNIT % number))),
        _timed("select, Thompson weights of 20", calls, lambda number: draw("checkout", UNIT % number, weights)),
        _timed("e-value of one challenger", repeats, lambda _: e_value(statistics[3])),
        _timed("analysis of 2 variants, exact", repeats, lambda _: analyse(successes[:2], samples[:2], 0)),
        _timed("analysis of 20 variants, exact", repeats, lambda _: analyse(successes, samples, 0)),
        _timed(
            "10,000 draws of 20 variants", repeats, lambda number: probability_best_mc(successes, samples, 10_000, number)
        ),
        _timed("Thompson weights of 20 variants", repeats, lambda _: weights_of(successes, samples, 0.01)),
        _timed("anytime-valid lifts of 19 challengers", repeats, lambda _: lifts_of(statistics, 0.05)),
    ]
