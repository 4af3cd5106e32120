"""Tables for people, and the result file for machines."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from bench.growth import GrowthPoint
from bench.latency import Latency
from bench.machine import Machine
from bench.rounds import Measured, Series
from bench.soak import Soak
from bench.targets import MIB, Verdict, judge, ratios, spread

PERCENTILE_HEADS: Final = ("p50 ms", "p95 ms", "p99 ms", "p99.9 ms")
NOISY_SHARE: Final = 0.10  # part of the CPU time that others used, above which a run is called noisy


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run of the harness found."""

    at: str
    machine: Machine
    series: list[Series]
    verdicts: list[Verdict]
    growth: list[GrowthPoint]
    soak: Soak | None


def make_report(machine: Machine, series: list[Series], growth: list[GrowthPoint], soak: Soak | None) -> Report:
    """Judge the targets and put all together."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Report(at=now, machine=machine, series=series, verdicts=judge(series), growth=growth, soak=soak)


def save(report: Report, directory: Path) -> Path:
    """Write the report as JSON into `directory`, named by its time, and return the file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{report.at.replace(':', '')}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    drawn = []
    for line in lines:
        aligned = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        drawn.append("  ".join([line[0].ljust(widths[0]), *aligned]).rstrip())
    drawn.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(drawn)


def render(report: Report) -> str:
    """Draw the whole report as text."""
    parts = [_facts(report.machine)]
    if report.series:
        parts += [_runs(report.series), *_pairs(report.series), _chains(report.series), _costs(report.series)]
        parts += _noise(report.series)
    if report.verdicts:
        parts.append(_verdicts(report.verdicts))
    if report.growth:
        parts.append(_growth(report.growth))
    if report.soak is not None:
        parts.append(_soak(report.soak))
    return "\n\n".join(part for part in parts if part)


def _facts(machine: Machine) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    dirty = ", with changes that are not committed" if machine.dirty else ""
    return (
        f"{machine.command}\n"
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / MIB:,.0f} MiB, {machine.system}\n"
        f"{versions}\ncommit {machine.commit}{dirty}"
    )


def _runs(series: list[Series]) -> str:
    header = ("median of rounds", "conns", "ops/s", *PERCENTILE_HEADS, "max ms", "errors")
    rows = []
    for one in series:
        tasks = [measured.load.tasks for measured in one.rounds]
        rows.append(
            (
                f"{one.scenario}: {one.contestant}",
                str(one.connections),
                f"{median(measured.load.operations_per_s for measured in one.rounds):,.0f}",
                *_percentiles(tasks),
                f"{max(latency.max_ms for latency in tasks):,.1f}",
                str(sum(max(run.load.errors, run.load.failed_operations) for run in one.rounds)),
            )
        )
    return table(header, rows)


def _pairs(series: list[Series]) -> list[str]:
    rows = []
    for _, grouped in groupby(series, key=lambda one: (one.scenario, one.connections)):
        first, *others = grouped
        for other in others:
            values = ratios(first, other)
            middle = spread(values)
            rows.append(
                (
                    f"{first.contestant} / {other.contestant}",
                    str(first.connections),
                    f"{middle.median:.3f}",
                    f"{middle.low:.3f}-{middle.high:.3f}",
                    " ".join(f"{value:.3f}" for value in values),
                )
            )
    return [table(("ratio of ops/s", "conns", "median", "range", "by round"), rows)] if rows else []


def _chains(series: list[Series]) -> str:
    rows = []
    for one in series:
        kinds = one.rounds[0].load.calls
        if len(kinds) < 2:
            continue
        for kind in kinds:
            calls = [measured.load.calls[kind] for measured in one.rounds if kind in measured.load.calls]
            rows.append((f"{one.scenario}: {kind}", str(one.connections), *_percentiles(calls)))
    return table(("by call", "conns", *PERCENTILE_HEADS), rows) if rows else ""


def _percentiles(latencies: list[Latency]) -> list[str]:
    fields = ("p50_ms", "p95_ms", "p99_ms", "p99_9_ms")
    return [f"{median(getattr(one, field) for one in latencies):,.2f}" for field in fields]


def _cores(one: Series, name: str) -> str:
    used = [m.databases[name].cpu_seconds / m.load.seconds for m in one.rounds if name in m.databases]
    return f"{median(used):.2f}" if used else "-"


def _memory(rounds: list[Measured], name: str) -> str:
    sizes = [m.databases[name].memory_bytes for m in rounds if name in m.databases]
    return f"{max(sizes) / MIB:,.0f}" if sizes else "-"


def _costs(series: list[Series]) -> str:
    header = ("cores used", "conns", "generator", "server", "redis", "postgres")
    memory = ("server MiB", "redis MiB", "postgres MiB")
    rows = [
        (
            f"{one.scenario}: {one.contestant}",
            str(one.connections),
            f"{median(m.load.generator_cpu_seconds / m.load.seconds for m in one.rounds):.2f}",
            f"{median(m.server.cpu_seconds / m.load.seconds for m in one.rounds):.2f}",
            _cores(one, "redis"),
            _cores(one, "postgres"),
            f"{max(m.server.memory_bytes for m in one.rounds) / MIB:,.0f}",
            _memory(one.rounds, "redis"),
            _memory(one.rounds, "postgres"),
        )
        for one in series
    ]
    return table(header + memory, rows)


def _noise(series: list[Series]) -> list[str]:
    shares = [one.stolen_share + one.outside_share for each in series for one in each.rounds]
    lagging = [
        f"{one.scenario} (p99 {median(m.load.send_lag.p99_ms for m in one.rounds):.2f} ms)"
        for one in series
        if one.rounds[0].load.rate_per_s is not None
    ]
    lines = []
    if max(shares) > NOISY_SHARE:
        lines.append(
            f"Noisy: others used up to {max(shares):.0%} of the CPU time during a run (median "
            f"{median(shares):.0%}). Compare ratios within a round, not figures across runs."
        )
    if lagging:
        lines.append("Generator's own delay, part of the latency above: " + ", ".join(lagging))
    waiting = [
        f"{one.scenario} (up to {max(measured.load.backlog_max for measured in one.rounds):,})"
        for one in series
        if max(measured.load.backlog_max for measured in one.rounds)
    ]
    if waiting:
        lines.append("Due tasks that waited for a free connection: " + ", ".join(waiting))
    return ["\n".join(lines)] if lines else []


def _verdicts(verdicts: list[Verdict]) -> str:
    rows = [
        (
            verdict.target,
            verdict.required,
            f"{verdict.measured.median:,.2f} {verdict.unit}",
            f"{verdict.measured.low:,.2f}-{verdict.measured.high:,.2f}",
            str(verdict.connections),
            f"{'met' if verdict.met else 'MISSED'} by {abs(verdict.margin):.0%}"
            if verdict.met or verdict.margin < 0
            else "MISSED: calls failed",
        )
        for verdict in verdicts
    ]
    return table(("target", "required", "median", "range", "conns", "verdict"), rows)


def _growth(points: list[GrowthPoint]) -> str:
    bytes_heads = ("redis data B/op", "redis used B/op", "postgres B/op", "WAL B/op")
    header = ("growth", "accounts", "chain rows", "ops/s", "p99 ms", *bytes_heads)
    rows = [
        (
            point.step,
            f"{point.accounts:,}",
            f"{point.chain_rows:,}",
            f"{point.operations_per_s:,.0f}",
            f"{point.p99_ms:,.1f}",
            f"{point.redis_bytes_per_operation:,.0f}",
            f"{point.redis_used_bytes_per_operation:,.0f}",
            f"{point.postgres_bytes_per_operation:,.0f}",
            f"{point.wal_bytes_per_operation:,.0f}",
        )
        for point in points
    ]
    return table(header, rows)


def _soak(soak: Soak) -> str:
    return (
        f"soak {soak.seconds:.0f} s: {soak.operations_per_s:,.0f} ops/s, {soak.errors} errors; server memory "
        f"{soak.first_bytes / MIB:,.1f} MiB at first, {soak.last_bytes / MIB:,.1f} MiB at last, slope "
        f"{soak.slope_bytes_per_s * 3600 / MIB:+,.1f} MiB/h over the last {soak.settled_seconds:.0f} s, "
        f"{soak.slope_bytes_per_operation:+,.3f} bytes per operation"
    )
