"""When an experiment must go back to its control: pure.

Each guardrail is watched by two tests that hold at every look. One compares a challenger with the control of the same time:
on which arm do the errors, or the slow calls, fall? The other compares it with the absolute limit. Together they
raise a false alarm in at most `max_false_positive` of all experiments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app import __version__
from app.shadow.evidence import crossed, e_value
from app.shadow.limit_evidence import limit_e_value
from app.shadow.tallies import counts_of, statistic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from app.shadow.definition import Definition, Guardrails
    from app.shadow.tallies import Cells, Kind

# Ten percent more errors than the control are no reason to roll back: with enough traffic any difference can be shown.
TOLERATED_RATIO: Final = 1.1
SLOW_SHARE: Final = 0.05  # a 95th percentile within its limit means that at most this share is slower


class Watch(NamedTuple):
    """One guardrail: its name, the kind of its evidence, letters of its counters, and the greatest share that is allowed."""

    name: str
    kind: Kind
    failures: str
    trials: str
    limit: float


class Trip(NamedTuple):
    """A test of a guardrail, crossed or not: of which variant, against what ("control" or "limit"), from what."""

    variant: str
    guardrail: str
    test: str
    inputs: dict[str, Any]

    @property
    def reason(self) -> str:
        """One sentence for people."""
        beside = "the control of the same time" if self.test == "control" else "its limit"
        return f"guardrail {self.guardrail}: {self.variant} is worse than {beside}"


def watches_of(guardrails: Guardrails) -> tuple[Watch, ...]:
    """Return what is watched."""
    found = []
    if guardrails.error_rate is not None:
        found.append(Watch("error_rate", "E", "e", "n", guardrails.error_rate))
    if guardrails.latency_ms_p95 is not None:
        found.append(Watch("latency_ms_p95", "O", "o", "l", SLOW_SHARE))
    return tuple(found)


def readings_of(definition: Definition, totals: Mapping[str, int], cells: Cells) -> Iterator[Trip]:
    """Yield every test that has begun, by guardrail and challenger, each with all that it is computed from.

    A variant begins with `min_samples` outcomes and its first failure; the comparison waits for the control's as well.
    """
    guardrails = definition.guardrails
    if guardrails is None:
        return
    count = len(definition.variants)
    watches = watches_of(guardrails)
    tests = 2 * len(watches) * len(definition.challengers)
    for watch in watches:
        failures, trials = counts_of(totals, watch.failures, count), counts_of(totals, watch.trials, count)
        for index in definition.challengers:
            if trials[index] < guardrails.min_samples or not failures[index]:
                continue
            enough = trials[definition.control] >= guardrails.min_samples
            sums = statistic(definition, totals, cells, watch.kind, index) if enough else None
            counted = totals.get(f"F{watch.kind}{index}", 0), totals.get(f"T{watch.kind}{index}", 0)
            for test, e in _evidence(watch, *counted, sums):
                inputs = {
                    "e_value": e, "tests": tests, "max_false_positive": definition.max_false_positive,
                    "limit": watch.limit, "tolerated_ratio": TOLERATED_RATIO, "statistic": sums,
                    "failures": dict(zip(definition.names, failures, strict=True)),
                    "trials": dict(zip(definition.names, trials, strict=True)),
                    "limit_failures": counted[0], "limit_trials": counted[1], "code": __version__,
                }  # fmt: skip
                yield Trip(definition.names[index], watch.name, test, inputs)


def trip_of(definition: Definition, totals: Mapping[str, int], cells: Cells) -> Trip | None:
    """Return the first guardrail that is crossed, None while all hold."""
    for reading in readings_of(definition, totals, cells):
        if crossed(reading.inputs["e_value"], definition.max_false_positive, reading.inputs["tests"]):
            return reading
    return None


def guardrail_inputs(definition: Definition, totals: Mapping[str, int], cells: Cells) -> list[dict[str, Any]]:
    """Return what shows that the guardrails hold, or that one does not: the inputs of every test that has begun."""
    return [
        {"variant": one.variant, "guardrail": one.guardrail, "test": one.test, **one.inputs}
        for one in readings_of(definition, totals, cells)
    ]


def _evidence(watch: Watch, failures: int, trials: int, sums: tuple[int, ...] | None) -> Iterator[tuple[str, float]]:
    if sums is not None:
        yield "control", e_value(sums, TOLERATED_RATIO)
    if watch.limit < 1:
        yield "limit", limit_e_value(failures, trials, watch.limit)
