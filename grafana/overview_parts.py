"""Rows of the overview: the parts that serve the requests."""

from __future__ import annotations

from grafana.board import Row
from grafana.panels import GREEN, RED, YELLOW, lines, states
from grafana.promql import Query, highest, increase, mean, quantile, quantiles, rate
from grafana.served import CHAIN_LAG_STEPS, LAG_STEPS


def group_commit() -> Row:
    """Return the row of the way from a batch in Redis to the chain."""
    return Row(
        "Group commit",
        (
            lines(
                "Batch size",
                "Entries that one commit took along. Under load batches grow and the cost of each entry falls.",
                "none",
                Query(quantile(0.5, "shieldx_commit_batch_entries"), "p50"),
                Query(quantile(0.95, "shieldx_commit_batch_entries"), "p95"),
                Query(mean("shieldx_commit_batch_entries"), "mean"),
            ),
            lines(
                "From apply to commit",
                "Time from the change in Redis to the entry in the chain: what a caller waits for proof.",
                "s",
                *quantiles("shieldx_apply_to_commit_seconds"),
            ),
            lines(
                "Append statement",
                "Time of the one statement that appends a batch to Postgres.",
                "s",
                *quantiles("shieldx_commit_seconds"),
            ),
            lines(
                "Mailbox depth",
                "Operations that wait in a shard's mailbox. At its limit callers get 503.",
                "none",
                Query(highest("shieldx_mailbox_depth", "shard"), "shard {{shard}}"),
            ),
            lines(
                "Mailbox rejections",
                "Operations per second that found the mailbox full and were answered 503.",
                "ops",
                Query(rate("shieldx_mailbox_rejected_total", "shard"), "shard {{shard}}"),
            ),
            lines(
                "Chain lag",
                "Entries that are applied in Redis and not yet in the chain.",
                "none",
                Query(highest("shieldx_chain_lag_entries", "shard"), "shard {{shard}}"),
                steps=CHAIN_LAG_STEPS,
            ),
            lines(
                "Age of checkpoints",
                "Time since the last signed checkpoint of a shard's log. It may grow while nothing is written.",
                "s",
                Query(highest("shieldx_checkpoint_age_seconds", "shard"), "shard {{shard}}"),
            ),
            lines(
                "Entries without checkpoint",
                "Entries of the chain that no signed checkpoint covers yet.",
                "none",
                Query(highest("shieldx_checkpoint_lag_entries", "shard"), "shard {{shard}}"),
            ),
            lines(
                "Recoveries",
                "Shards taken over. Adopted: what Redis held was continued. Rebuilt: Redis was laid anew from Postgres.",
                "none",
                Query(increase("shieldx_recoveries_total", "kind"), "{{kind}}"),
            ),
        ),
    )


def replicas() -> Row:
    """Return the row of the processes: who leads what, and how full each is."""
    leading = {0: ("follows", "blue"), 1: ("leads", GREEN)}
    ready = {0: ("not ready", RED), 1: ("ready", GREEN)}
    return Row(
        "Replicas",
        (
            states(
                "Readiness",
                "Whether /ready of each replica answers 200.",
                ready,
                Query(highest("shieldx_ready", "instance"), "{{instance}}"),
                width=8,
            ),
            states(
                "Leaders",
                "Which replica leads which shard. A change is a takeover; two leaders at once cannot write, because the "
                "epoch fences the older one.",
                leading,
                Query(highest("shieldx_shard_leader", "shard", "instance"), "shard {{shard}} {{instance}}"),
                width=8,
            ),
            lines(
                "Shard epochs",
                "Epoch of each shard: one higher at each takeover. A climbing line is a shard that nobody keeps.",
                "none",
                Query(highest("shieldx_shard_epoch", "shard"), "shard {{shard}}"),
            ),
            lines(
                "Event-loop lag",
                "How late the event loop was, 99th percentile by replica: what every request in that process waits besides "
                "its work.",
                "s",
                Query(quantile(0.99, "shieldx_event_loop_lag_seconds", "instance"), "{{instance}}"),
                steps=LAG_STEPS,
                width=6,
            ),
            lines(
                "CPU",
                "Cores that each process uses. One process runs on one core; at 1 it is full.",
                "none",
                Query(rate("process_cpu_seconds_total", "instance"), "{{instance}}"),
                width=6,
            ),
            lines(
                "Memory",
                "Resident memory of each process.",
                "bytes",
                Query(highest("process_resident_memory_bytes", "instance"), "{{instance}}"),
                width=6,
            ),
            lines(
                "Open files",
                "Share of the permitted file descriptors, sockets among them, that each process holds.",
                "percentunit",
                Query(
                    f"{highest('process_open_fds', 'instance')} / {highest('process_max_fds', 'instance')}", "{{instance}}"
                ),
                steps=((None, GREEN), (0.7, YELLOW), (0.9, RED)),
                width=6,
            ),
        ),
    )


def webhooks() -> Row:
    """Return the row of what is told to others."""
    return Row(
        "Webhooks",
        (
            lines(
                "Webhook deliveries",
                "Attempts per second to deliver webhooks, by how they ended.",
                "cps",
                Query(rate("shieldx_webhook_deliveries_total", "result"), "{{result}}"),
                width=12,
            ),
            lines(
                "Webhook backlog",
                "Deliveries that wait to be sent or sent again.",
                "none",
                Query(highest("shieldx_webhook_backlog"), "waiting"),
                width=12,
            ),
        ),
    )
