"""The Prometheus series of the ledger's shards in this process, read at every scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from app.metrics import BATCH_BUCKETS, STORE_BUCKETS_S, Histogram, labelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client.core import Metric

    from app.audit.keeper import Keeper
    from app.audit.shard import Shard
    from app.audit.signer import ShardSigner
    from app.audit.witness import WitnessFeed
    from app.audit.writer import Writer
    from app.credits.ledger import Ledger
    from app.credits.recovery import LedgerRecovery


class ShardParts(NamedTuple):
    """One shard of this process."""

    shard: Shard
    writer: Writer
    recovery: LedgerRecovery
    keeper: Keeper
    ledger: Ledger
    signer: ShardSigner
    feeds: list[WitnessFeed]


# name, meaning, what is read
_GAUGES: Final[tuple[tuple[str, str, Callable[[ShardParts], float]], ...]] = (
    ("mailbox_depth", "Operations in the mailbox", lambda p: p.ledger.waiting),
    ("chain_head_seq", "Last durable seq", lambda p: p.shard.durable),
    ("chain_lag_entries", "Entries that this process has applied in Redis and that are not durable", lambda p: p.ledger.lag),
    ("log_size", "Entries under the last signed checkpoint", lambda p: p.signer.size),
    ("log_lag_seconds", "Age of the last checkpoint while newer entries wait", lambda p: p.signer.lag_s),
    ("log_refused", "1 while the log is not signed because it would fork", lambda p: p.signer.state == "refused"),
    ("checkpoint_age_seconds", "Since this process signed a checkpoint, 0 where another does", lambda p: p.signer.age_s),
    ("checkpoint_lag_entries", "Durable entries that no checkpoint covers", lambda p: p.signer.lag_entries),
    ("shard_open", "1 while money may move", lambda p: p.shard.state == "open"),
    ("shard_leader", "1 in the process that writes the chain", lambda p: p.shard.leading),
    ("shard_generation", "Incarnation of Redis", lambda p: p.shard.generation),
    ("shard_epoch", "Writers that the chain has had", lambda p: p.shard.seen_epoch),
)  # fmt: skip
_COUNTERS: Final[tuple[tuple[str, str, Callable[[ShardParts], float]], ...]] = (
    ("mailbox_rejected", "Requests that found the mailbox full", lambda p: p.ledger.rejected),
    ("ledger_operations", "Operations decided, steps that nobody asked for included", lambda p: p.ledger.operations),
    ("ledger_batches", "Script calls that decided them", lambda p: p.ledger.batches),
    ("chain_commits", "Transactions that appended to the chain", lambda p: p.writer.commits),
    ("chain_events", "Entries appended to the chain", lambda p: p.writer.events_committed),
    ("log_checkpoints", "Checkpoints signed", lambda p: p.signer.checkpoints),
)  # fmt: skip


class ShardSeries:
    """Shards have their number as a label; histograms are of all shards together."""

    def __init__(self, parts: Sequence[ShardParts]) -> None:
        """`parts` may be filled later."""
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """Yield all series."""
        for kind, series in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, meaning, read in series:
                values = [(str(one.shard.number), read(one)) for one in self._parts]
                yield labelled(kind, f"shieldx_{name}", meaning, "shard", values)
        cosigned = [
            (str(one.shard.number), min(feed.cosigned_size for feed in one.feeds)) for one in self._parts if one.feeds
        ]
        yield labelled(
            GaugeMetricFamily, "shieldx_log_cosigned_size", "Entries that every witness has seen", "shard", cosigned
        )
        yield labelled(
            CounterMetricFamily, "shieldx_recoveries", "Times that Redis was taken over after a restart, or rebuilt", "kind",
            (
                ("adopted", sum(one.recovery.adopted for one in self._parts)),
                ("rebuilt", sum(one.recovery.rebuilt for one in self._parts)),
            ),
        )  # fmt: skip
        yield from self._commits()

    def _commits(self) -> Iterator[Metric]:
        sizes, times, waits = Histogram(BATCH_BUCKETS), Histogram(STORE_BUCKETS_S), Histogram(STORE_BUCKETS_S)
        errors = 0
        for one in self._parts:
            sizes.add(one.writer.batch_sizes)
            times.add(one.writer.commit_times)
            waits.add(one.ledger.commit_waits)
            errors += one.writer.errors
        yield sizes.family("shieldx_commit_batch_entries", "Entries of a commit of the chain")
        yield times.family("shieldx_commit_seconds", "Time of the statement that appends entries to the chain")
        yield waits.family(
            "shieldx_apply_to_commit_seconds", "From the answer of Redis until an operation was durable, by operation"
        )
        trips = HistogramMetricFamily("shieldx_postgres_roundtrip_seconds", "Time of a statement", labels=("pool",))
        times.add_to(trips, ("writer",))
        yield trips
        yield labelled(
            CounterMetricFamily, "shieldx_postgres_errors", "Faults of Postgres or of the way to it", "pool",
            (("writer", errors),),
        )  # fmt: skip
