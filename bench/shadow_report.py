"""Tables and charts of what `python -m bench.shadow` found."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Final, NamedTuple

from bench.shadow_cases import HORIZON, LIFT_5, LIFT_20, REGRET, fixed_horizon
from bench.shadow_plot import COLOURS, Axis, Line, chart, save
from bench.shadow_runs import NEVER, Case, Found
from bench.shadow_selection import Timing

CONFIDENCE_Z: Final = 1.959964  # normal quantile of a two-sided 95 % interval


# Cases are known by their names: those of a quick run are the same ones cut short.
_REGRETS: Final = {case.name for case in REGRET}


class Rate(NamedTuple):
    """How many runs of how many, with Wilson's 95 % interval."""

    hits: int
    runs: int

    @property
    def interval(self) -> tuple[float, float]:
        """Return the ends. Source: E. B. Wilson, JASA 22, 1927."""
        if not self.runs:
            return 0.0, 1.0
        share, square = self.hits / self.runs, CONFIDENCE_Z**2
        middle = (share + square / (2 * self.runs)) / (1 + square / self.runs)
        half = math.sqrt(share * (1 - share) / self.runs + square / (4 * self.runs**2)) / (1 + square / self.runs)
        return max(0.0, middle - CONFIDENCE_Z * half), min(1.0, middle + CONFIDENCE_Z * half)

    def __str__(self) -> str:
        """Return the rate and its interval in per cent."""
        low, high = (100 * end for end in self.interval)
        return f"{100 * self.hits / max(1, self.runs):5.2f} % ({low:.2f} to {high:.2f})"


class Merged(NamedTuple):
    """All chunks of one case."""

    case: Case
    runs: int
    evidence: list[int]
    winner: list[int]
    seeds: list[int]
    regret: list[float]


def merge(found: Sequence[Found]) -> list[Merged]:
    """Add up the chunks of each case, in the order in which cases first appear; a chunk that appears twice counts once."""
    chunks = {(one.case, one.seed, one.runs): one for one in found}
    merged = []
    for case in dict.fromkeys(one.case for one in found):
        mine = [one for key, one in chunks.items() if key[0] == case]
        runs = sum(one.runs for one in mine)
        regret = [sum(tenth) / runs for tenth in zip(*(one.regret for one in mine), strict=True)]
        evidence = [time for one in mine for time in one.evidence]
        winner = [time for one in mine for time in one.winner]
        seeds = [time for one in mine for time in one.seeds if case.until == "end" and case.variants == 2]
        merged.append(Merged(case, runs, evidence, winner, seeds, regret))
    return merged


def rate_of(times: Sequence[int]) -> Rate:
    """Return how many of the runs crossed at all."""
    return Rate(sum(time != NEVER for time in times), len(times))


def is_null(case: Case) -> bool:
    """Return whether all variants have the same rate at every time."""
    return len(set(case.start)) == len(set(case.end)) == 1


def _samples(times: Sequence[int], case: Case) -> str:
    """Return mean, median and 90th percentile of the samples of each variant; a run without a decision counts with all."""
    each = sorted((case.outcomes if time == NEVER else time) / case.variants for time in times)
    return f"{fmean(each):9,.0f} {median(each):9,.0f} {each[len(each) * 9 // 10]:9,.0f}"


def render(found: Sequence[Found], timings: Sequence[Timing] = ()) -> str:
    """Return the tables as text."""
    merged = merge(found)
    lines = [
        "Experiments without a difference that get a winner, looked at after every outcome; 95 % intervals",
        f"{'rates and split':<34}{'runs':>6}  {'evidence alone':<24}{'rule of the product':<24}the seed's rule",
    ]
    for one in merged:
        if is_null(one.case):
            seeds = str(rate_of(one.seeds)) if one.case.variants == 2 else "not looked at"
            lines.append(
                f"{one.case.name:<34}{one.runs:>6}  {rate_of(one.evidence)!s:<24}{rate_of(one.winner)!s:<24}{seeds}"
            )
    lines += ["", "Samples of each variant until the decision: mean, median, 90th percentile", ""]
    for one in merged:
        if not is_null(one.case):
            rates = one.case.start[0], one.case.start[1]
            rows = [("evidence", one.evidence), ("product", one.winner)]
            if one.case.until == "evidence":
                rows.pop()
            if one.seeds:
                rows.append(("seed's rule", one.seeds))
            for label, times in rows:
                lines.append(f"{one.case.name:<22}{label:<14}{_samples(times, one.case)}  decided {rate_of(times)}")
            lines.append(
                f"{'':<22}fixed horizon, power 0.8: {fixed_horizon(*rates):,} one-sided at 0.02, "
                f"{fixed_horizon(*rates, alpha=0.05, two_sided=True):,} two-sided at 0.05"
            )
    lines += ["", "Successes given up in a run against always giving the better variant", ""]
    lines += [
        f"{one.case.name:<22}{sum(one.regret):9.1f} of {one.case.outcomes:,}" for one in merged if one.case.name in _REGRETS
    ]
    if timings:
        lines += ["", f"{'In this process':<42}{'p50 us':>10}{'p99 us':>10}"]
        lines += [f"{one.name:<42}{one.p50_us:>10.1f}{one.p99_us:>10.1f}" for one in timings]
    return "\n".join(lines)


def _cumulative(times: Sequence[int], *, per: int, until: float) -> list[tuple[float, float]]:
    """Return the share of runs that have crossed by then, as steps in per cent."""
    crossed = sorted(time / per for time in times if time != NEVER)
    points: list[tuple[float, float]] = []
    for number, time in enumerate(crossed):
        points += [(time, 100 * number / len(times)), (time, 100 * (number + 1) / len(times))]
    return [*points, (until, 100 * len(crossed) / len(times))]


def save_plots(found: Sequence[Found], directory: Path, timings: Sequence[Timing] = ()) -> list[Path]:
    """Draw error rates, samples to decide, regret and latency, as far as there are results; return the files."""
    merged, plots = merge(found), []
    nulls = [one for one in merged if is_null(one.case) and one.case.until == "end"]
    if nulls:
        lines = [Line("promised: 2 %", [(100, 2), (HORIZON, 2)], "#000")]
        for number, one in enumerate(nulls):
            colour = COLOURS[number % len(COLOURS)]
            lines.append(Line(one.case.name, _cumulative(one.winner, per=1, until=one.case.outcomes), colour))
            if one.seeds:
                rule = _cumulative(one.seeds, per=1, until=one.case.outcomes)
                lines.append(Line(f"{one.case.name}: seed's rule", rule, colour, dashed=True))
        x = Axis("outcomes", 100, HORIZON, (100, 300, 1_000, 3_000, 10_000, 50_000), logarithmic=True)
        y = Axis("runs with a false winner", 0.05, 100, (0.1, 0.3, 1, 2, 10, 50, 100), logarithmic=True, unit=" %")
        text = chart("A/A runs that were given a winner, looked at after every outcome", x, y, lines)
        plots.append(save(text, directory / "shadow-error-rates.svg"))
    for case, name in ((LIFT_20, "shadow-samples-20.svg"), (LIFT_5, "shadow-samples-5.svg")):
        plots += [_samples_plot(one, directory / name) for one in merged if one.case.name == case.name]
    if regrets := [one for one in merged if one.case.name in _REGRETS]:
        plots.append(_regret_plot(regrets, directory / "shadow-regret.svg"))
    if timings:
        plots.append(_latency_plot(timings, directory / "shadow-latency.svg"))
    return plots


def _samples_plot(one: Merged, path: Path) -> Path:
    need = fixed_horizon(one.case.start[0], one.case.start[1])
    top = 4.0 * need
    lines = [
        Line("evidence", _cumulative(one.evidence, per=2, until=top), COLOURS[0]),
        Line("fixed horizon, power 0.8", [(need, 0), (need, 80)], COLOURS[1], dashed=True),
    ]
    if one.case.until == "winner":
        lines.append(Line("rule of the product", _cumulative(one.winner, per=2, until=top), COLOURS[2], dashed=True))
    x = Axis("samples of each variant", 0, top, [need * part for part in (0, 1, 2, 3, 4)])
    y = Axis("runs decided", 0, 100, (0, 20, 40, 60, 80, 100), unit=" %")
    return save(chart(f"{one.case.name}: when the decision comes", x, y, lines), path)


def _regret_plot(regrets: Sequence[Merged], path: Path) -> Path:
    lines = []
    for number, one in enumerate(regrets):
        totals = [sum(one.regret[:tenth]) for tenth in range(11)]
        points = [(one.case.outcomes * tenth / 10, total) for tenth, total in enumerate(totals)]
        lines.append(Line(one.case.name, points, COLOURS[number]))
    highest = max(line.points[-1][1] for line in lines) or 1.0
    x = Axis("outcomes", 0, regrets[0].case.outcomes, [regrets[0].case.outcomes * part / 5 for part in range(6)])
    y = Axis("successes given up", 0, highest, [round(highest * part / 5) for part in range(6)])
    return save(chart("10 % or 12 %: successes given up", x, y, lines), path)


def _latency_plot(timings: Sequence[Timing], path: Path) -> Path:
    lines = [
        Line(f"{one.name}: {one.p50_us:,.0f}, p99 {one.p99_us:,.0f} us", [(one.p50_us, 0.5), (one.p99_us, 0.99)],
             COLOURS[number % len(COLOURS)])
        for number, one in enumerate(timings)
    ]  # fmt: skip
    x = Axis("microseconds, from the median to the 99th percentile", 1, 100_000, (1, 10, 100, 1_000, 10_000, 100_000), True)  # noqa: FBT003
    return save(chart("Time of one call in this process", x, Axis("percentile", 0.4, 1.1, (0.5, 0.99)), lines), path)
