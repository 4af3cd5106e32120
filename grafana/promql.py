"""Expressions of PromQL as the dashboards use them: of the targets that are chosen, over the interval that is drawn.

Prometheus' own rules hold: a counter is rated before it is summed, buckets are summed by `le` before a quantile is taken,
and a ratio divides two sums. $__rate_interval is at least four scrapes, so no rate is drawn from one sample.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CHOSEN: Final = 'namespace=~"$namespace",job=~"$job",instance=~"$instance"'
INTERVAL: Final = "$__rate_interval"
SHOWN: Final = "$__range"
QUANTILES: Final = (0.5, 0.95, 0.99)


class Query(NamedTuple):
    """An expression, and what its series are called: a text in which {{label}} is the value of a label."""

    expression: str
    legend: str = ""


def chosen(name: str, where: str = "") -> str:
    """Return the series `name` of the chosen targets; `where` are further matchers."""
    return f"{name}{{{CHOSEN}{',' if where else ''}{where}}}"


def aggregate(operator: str, expression: str, *by: str) -> str:
    """Return an aggregation of `expression`, by the labels `by`."""
    return f"{operator} by ({', '.join(by)}) ({expression})" if by else f"{operator}({expression})"


def total(name: str, *by: str, where: str = "") -> str:
    """Return the sum of a gauge over the chosen targets."""
    return aggregate("sum", chosen(name, where), *by)


def highest(name: str, *by: str, where: str = "") -> str:
    """Return the maximum of a gauge: for what every replica tells of the same thing, and for what is worst."""
    return aggregate("max", chosen(name, where), *by)


def lowest(name: str, *by: str, where: str = "") -> str:
    """Return the minimum of a gauge."""
    return aggregate("min", chosen(name, where), *by)


def rate(counter: str, *by: str, where: str = "") -> str:
    """Return how fast a counter grows, per second, summed over the chosen targets."""
    return aggregate("sum", f"rate({chosen(counter, where)}[{INTERVAL}])", *by)


def increase(counter: str, *by: str, over: str = INTERVAL) -> str:
    """Return how often something rare was counted in a time. Rounded: Prometheus extrapolates to the ends of the time."""
    return f"round({aggregate('sum', f'increase({chosen(counter)}[{over}])', *by)})"


def share(counter: str, part: str, *by: str, where: str = "") -> str:
    """Return which part, 0 to 1, of what a counter counts has the matchers `part`; nothing where nothing was counted."""
    whole = rate(counter, *by, where=where)
    chosen_part = rate(counter, *by, where=f"{where}{',' if where else ''}{part}")
    return f"({chosen_part} or 0 * {whole}) / ({whole} > 0)"


def quantile(q: float, histogram: str, *by: str, where: str = "") -> str:
    """Return the q-quantile of a histogram over all chosen targets together."""
    return f"histogram_quantile({q:g}, {rate(f'{histogram}_bucket', 'le', *by, where=where)})"


def quantiles(histogram: str, *, where: str = "") -> tuple[Query, ...]:
    """Return the median and the two quantiles that tell of the slow ones, each by its name."""
    return tuple(Query(quantile(q, histogram, where=where), f"p{q * 100:g}") for q in QUANTILES)


def mean(histogram: str, *by: str, where: str = "") -> str:
    """Return the mean of what a histogram observed."""
    return f"{rate(f'{histogram}_sum', *by, where=where)} / ({rate(f'{histogram}_count', *by, where=where)} > 0)"
