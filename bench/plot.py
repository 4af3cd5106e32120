"""Bars of throughput and lines of latency, as a PNG."""

from pathlib import Path
from statistics import median
from typing import Final

from bench.report import Report
from bench.rounds import Series
from bench.targets import spread

PERCENTILES: Final = (("p50", "p50_ms"), ("p95", "p95_ms"), ("p99", "p99_ms"), ("p99.9", "p99_9_ms"))
ROW_INCHES: Final = 0.32  # inches of height per bar: labels stay readable at any number of them
DOTS_PER_INCH: Final = 120


class PlotError(Exception):
    """The plot needs matplotlib: install the development dependencies (`make run` does), or use --no-plot."""


def plot(report: Report, path: Path) -> None:
    """Draw every series of `report` into `path`.

    faults  PlotError without matplotlib, which only the harness needs
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise PlotError(PlotError.__doc__) from error
    series = report.series
    figure = Figure(figsize=(13, 2.0 + ROW_INCHES * max(4, len(series))), layout="constrained")
    FigureCanvasAgg(figure)
    rates, latencies = figure.subplots(1, 2, sharey=True)
    rows = range(len(series))
    found = [spread(one.load.operations_per_s for one in each.rounds) for each in series]
    whiskers = [[one.median - one.low for one in found], [one.high - one.median for one in found]]
    medians = [one.median for one in found]
    rates.barh(rows, medians, xerr=whiskers, color="#4878a8", error_kw={"capsize": 3})
    rates.set_yticks(list(rows), [_label(one) for one in series])
    rates.invert_yaxis()
    rates.set_xlabel("operations per second (median; whiskers: lowest and highest round)")
    rates.grid(axis="x", alpha=0.3)
    for name, field in PERCENTILES:
        values = [median(getattr(one.load.tasks, field) for one in each.rounds) for each in series]
        latencies.plot(values, rows, marker="o", linestyle="none", label=name)
    latencies.set_xscale("log")
    latencies.set_xlabel("latency in ms, log scale (median of rounds)")
    latencies.grid(axis="x", which="both", alpha=0.3)
    figure.legend(*latencies.get_legend_handles_labels(), loc="outside lower right", ncols=len(PERCENTILES))
    machine = report.machine
    title = f"{machine.cpu}, {machine.cores} cores; commit {machine.commit[:12]}; {report.at}"
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _label(one: Series) -> str:
    offered = one.rounds[0].load.rate_per_s
    pace = f"{offered:,.0f}/s" if offered else f"{one.connections} conns"
    return f"{one.scenario}: {one.contestant}, {pace}"
