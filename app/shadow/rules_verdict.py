"""What the counts of a trial say: rates with intervals that hold at every look, and whether more than noise differs. Pure.

The champion is evaluated a second time together with the challenger, and both answers are held against the one that the
caller got. Where the champion differs from itself (the clock went on, chance fell otherwise) the challenger would have
differed too: that is noise, and not the challenger's. Comparisons are pairs, so only those count in which one of the two
differs alone: if the challenger differs no more than the champion does from itself, each such pair is the challenger's with
probability at most 1/2, which is what `app.shadow.evidence` tests at every look (McNemar's test, as an e-process).

The rule for single fields is that of Diffy (settings of its DifferenceAnalyzer: relative 20 %, absolute 0.03 %).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from app.shadow.evidence import crossed, e_value, sums_of
from app.shadow.limit_evidence import limit_e_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.shadow.rules_tally import Tally

ALPHA: Final = 0.02  # most probability with which a trial without a difference is ever said to have one
INTERVAL_ALPHA: Final = 0.05  # most probability with which an interval ever misses the true rate
RELATIVE_MIN: Final = 0.2  # |raw - noise| / (raw + noise): below, a field's differences are noise (Diffy)
ABSOLUTE_MIN: Final = 0.0003  # |raw - noise| / compared: below, a field's differences are too rare to matter (Diffy)
_HALVINGS: Final = 40  # of the search for an end: 1e-12

Verdict = Literal["collecting", "no_difference_found", "differs"]


class RateInterval(NamedTuple):
    """A rate with the interval that, at all looks together, misses it with probability at most INTERVAL_ALPHA."""

    rate: float
    low: float
    high: float


def rate_interval(count: int, samples: int, alpha: float = INTERVAL_ALPHA) -> RateInterval | None:
    """Return how often something happens, None without samples.

    The ends are the limits that the one-sample evidence of `app.shadow.limit_evidence` leaves, each side at alpha/2.
    """
    if not samples:
        return None
    threshold = 2 / alpha
    low = 0.0 if not count else _edge(lambda limit: limit_e_value(count, samples, limit) < threshold)
    rest = samples - count
    high = 1.0 if not rest else 1 - _edge(lambda limit: limit_e_value(rest, samples, limit) < threshold)
    rate = count / samples
    return RateInterval(rate, min(low, rate), max(high, rate))


def _edge(holds: Callable[[float], bool]) -> float:
    """Return the least limit that is not rejected; the evidence against a limit falls as the limit rises."""
    low, high = 1e-12, 1 - 1e-12
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low


class Statement(NamedTuple):
    """What a trial says so far.

    verdict          `differs` once the evidence has crossed 1 / ALPHA, and from then on; before, that of the counts so far:
                     `no_difference_found` while no comparison differs beyond noise, `collecting` otherwise
    e_value          evidence that the challenger differs more often than the champion does from itself
    threshold        what it must reach
    difference_rate  of the challenger, noise included
    noise_rate       of the champion with itself
    excess_rate      of the challenger beyond noise, None without comparisons
    """

    verdict: Verdict
    e_value: float
    threshold: float
    difference_rate: RateInterval | None
    noise_rate: RateInterval | None
    excess_rate: float | None


def statement_of(tally: Tally, *, crossed_before: bool = False) -> Statement:
    """Return what the counts of a trial say; `crossed_before`: they, or earlier ones, are known to have crossed."""
    evidence = e_value(sums_of(0.5, tally.challenger_only, tally.noise_only))
    differs = crossed_before or crossed(evidence, ALPHA)
    quiet = tally.compared > 0 and tally.challenger_only == 0
    verdict: Verdict = "differs" if differs else "no_difference_found" if quiet else "collecting"
    compared = tally.compared
    excess = None if not compared else (tally.challenger_only - tally.noise_only) / compared
    return Statement(
        verdict, evidence, 1 / ALPHA, rate_interval(tally.both + tally.challenger_only, compared),
        rate_interval(tally.both + tally.noise_only, compared), excess,
    )  # fmt: skip


def is_flagged(raw: int, noise: int, compared: int) -> bool:
    """Whether a field differs beyond noise, by Diffy's rule."""
    excess = raw - noise
    if excess <= 0 or not compared:
        return False
    return excess / (raw + noise) > RELATIVE_MIN and excess / compared > ABSOLUTE_MIN
