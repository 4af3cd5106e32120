"""What one run of the generator records, and the result it hands over."""

import resource
from typing import Final

import msgspec

from bench.latency import Latency, Samples
from bench.workloads import OK_END, OK_MIN, Outcome

DISCONNECTED: Final = 0  # stands among the statuses for requests whose connection ended without an answer
EXPECTED_PER_S: Final = 20_000  # calls a second for which arrays are laid out ahead; they double beyond it


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run as measured. Times of calls are those of 2xx answers only: a fast refusal must not help.

    tasks     latency of whole tasks, in open loop from the intended start; one call or a chain
    calls     latency per kind of call; a call that follows another starts with that other's answer
    send_lag  open loop: delay from due time to send of tasks that had a free connection: the generator's own
    """

    label: str
    seconds: float
    connections: int
    rate_per_s: float | None  # offered, open loop
    tasks_per_s: float  # completed with 2xx inside the measured time
    operations_per_s: float  # the same, a batch counting as its successful operations
    operations: int
    failed_operations: int
    errors: int  # answers that were not 2xx, requests cut off, requests never answered
    statuses: dict[int, int]
    unanswered: int  # due, but without an answer when the drain time had passed
    backlog_max: int  # most tasks that were due and had no free connection
    tasks: Latency
    calls: dict[str, Latency]
    send_lag: Latency
    generator_cpu_seconds: float
    generator_rss_bytes: int


def cpu_seconds() -> float:
    """User and system CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss_bytes_max() -> int:
    """Peak resident memory of this process (Linux reports it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Tally:
    """Counts and samples between `measure_from` and `until`, both on the clock of time.perf_counter."""

    def __init__(self, kinds: tuple[str, ...], *, measure_from: float, until: float, capacity: int) -> None:
        """Lay out the arrays for about `capacity` calls."""
        self.measure_from = measure_from
        self.until = until
        self.statuses: dict[int, int] = {}
        self.backlog_max = 0
        self.completed_tasks = 0
        self.operations = 0
        self.failed_operations = 0
        self._kinds = kinds
        self._calls = [Samples(capacity) for _ in kinds]
        self._tasks = Samples(capacity)
        self._send_lag = Samples(capacity)
        self._cpu_from = 0.0
        self._cpu_seconds = 0.0

    def begin(self) -> None:
        """Start counting CPU time."""
        self._cpu_from = cpu_seconds()

    def finish(self) -> None:
        """Stop counting CPU time."""
        self._cpu_seconds = cpu_seconds() - self._cpu_from

    def sent_idle(self, due: float, now: float) -> None:
        """Record how late a task went out for which a connection was free."""
        if self.measure_from <= due < self.until:
            self._send_lag.record(now - due)

    def answered(self, kind: int, status: int, call_from: float, now: float) -> None:
        """Record one answer."""
        if self.measure_from <= now < self.until:
            self.statuses[status] = self.statuses.get(status, 0) + 1
        if OK_MIN <= status < OK_END and self.measure_from <= call_from < self.until:
            self._calls[kind].record(now - call_from)

    def completed(self, outcome: Outcome, due: float, now: float) -> None:
        """Record the end of a task."""
        if self.measure_from <= now < self.until:
            self.operations += outcome.succeeded
            self.failed_operations += outcome.failed
            self.completed_tasks += outcome.failed == 0
        if outcome.failed == 0 and self.measure_from <= due < self.until:
            self._tasks.record(now - due)

    def cut_off(self, outcome: Outcome, now: float) -> None:
        """Record a request whose connection ended before its answer."""
        if self.measure_from <= now:
            self.statuses[DISCONNECTED] = self.statuses.get(DISCONNECTED, 0) + 1
            self.failed_operations += outcome.failed

    def result(
        self, *, label: str, connections: int, rate_per_s: float | None, seconds: float, unanswered: int
    ) -> LoadResult:
        """Close the books; `seconds` is the measured time."""
        not_ok = sum(count for status, count in self.statuses.items() if not OK_MIN <= status < OK_END)
        named = zip(self._kinds, self._calls, strict=True)
        calls = {kind: one.summary() for kind, one in named if len(one)}
        return LoadResult(
            label=label,
            seconds=seconds,
            connections=connections,
            rate_per_s=rate_per_s,
            tasks_per_s=self.completed_tasks / seconds,
            operations_per_s=self.operations / seconds,
            operations=self.operations,
            failed_operations=self.failed_operations,
            errors=not_ok + unanswered,
            statuses=dict(sorted(self.statuses.items())),
            unanswered=unanswered,
            backlog_max=self.backlog_max,
            tasks=self._tasks.summary(),
            calls=calls,
            send_lag=self._send_lag.summary(),
            generator_cpu_seconds=self._cpu_seconds,
            generator_rss_bytes=rss_bytes_max(),
        )
