"""The first dashboard to open: is it up, is it fast, is it right, and which part is not."""

from __future__ import annotations

from typing import Final

from grafana.board import Board, Row
from grafana.overview_parts import group_commit, replicas, webhooks
from grafana.panels import NONE_IS_GOOD, SOME_IS_GOOD, heat, lines, number
from grafana.promql import Query, aggregate, chosen, highest, quantile, quantiles, rate, share, total
from grafana.served import CHAIN_LAG_STEPS, DURATION, ERROR_STEPS, FAILED, LATENCY_STEPS, REQUESTS, SERVED

OPERATIONS: Final = "credits_operations_total"
ALERTS: Final = {
    "Ready replicas": ("CreditsServiceDown", "CreditsNotReady"),
    "Failed requests": ("CreditsHighErrorRate", "CreditsErrorBudgetBurnFast"),
    "p99 latency": ("CreditsSlowTransactions",),
    "Accounts below zero": ("CreditsNegativeBalanceDetected",),
    "Chain errors": ("CreditsAuditLogChainBroken",),
    "Shards without leader": ("CreditsShardLeadership", "CreditsShardClosed"),
    "Breakers open": ("ShieldxBreakerOpen",),
    "Chain lag": ("CreditsChainLagging",),
    "Versions": ("ShieldxVersionsMixed",),
    "Denied and limited": ("ShieldxAccessDeniedSurge", "ShieldxRateLimitedSurge"),
    "Reused idempotency keys": ("CreditsIdempotencyCollisions",),
    "Operations by result": ("CreditsOperationsUnavailable",),
    "Append statement": ("CreditsSlowCommits",),
    "Mailbox depth": ("CreditsMailboxDeep",),
    "Mailbox rejections": ("CreditsMailboxFull",),
    "Entries without checkpoint": ("CreditsCheckpointStale",),
    "Recoveries": ("CreditsRecoveryLoop", "CreditsRedisReplaced"),
    "Readiness": ("ShieldxReplicaNotReady", "CreditsReplicaDown"),
    "Event-loop lag": ("ShieldxEventLoopLag",),
    "Memory": ("ShieldxMemoryHigh",),
    "Open files": ("ShieldxFilesRunningOut",),
    "Webhook deliveries": ("ShieldxWebhookGivenUp",),
    "Webhook backlog": ("ShieldxWebhookBacklog",),
}
"""The alerts on what panels show."""


def _now() -> Row:
    return Row(
        "Now",
        (
            number(
                "Ready replicas",
                "Processes whose /ready answers 200. 0 means that nobody is served.",
                "none",
                Query(total("shieldx_ready")),
                steps=SOME_IS_GOOD,
            ),
            number(
                "Requests",
                "Requests answered per second, without probes, scrapes and watches.",
                "reqps",
                Query(rate(REQUESTS, where=SERVED)),
            ),
            number(
                "Failed requests",
                "Share of requests that were answered 5xx. Refusals (4xx) are answers, not failures.",
                "percentunit",
                Query(share(REQUESTS, FAILED, where=SERVED)),
                steps=ERROR_STEPS,
            ),
            number(
                "p99 latency",
                "99 of 100 requests were answered within this time. An acknowledged credit operation is in the chain by "
                "then.",
                "s",
                Query(quantile(0.99, DURATION, where=SERVED)),
                steps=LATENCY_STEPS,
            ),
            number(
                "Operations",
                "Credit operations applied per second: balances changed and chained.",
                "ops",
                Query(rate(OPERATIONS, where='result="applied"')),
            ),
            number(
                "Firing alerts",
                "Alerts that fire now, Watchdog aside. The alert dashboard names them.",
                "none",
                Query('sum(ALERTS{alertstate="firing",alertname!="Watchdog"}) or vector(0)'),
                steps=NONE_IS_GOOD,
            ),
        ),
    )


def _integrity() -> Row:
    return Row(
        "Integrity",
        (
            number(
                "Accounts below zero",
                "Accounts whose balance in the projection is negative. It must be 0: Lua refuses what a balance does not "
                "cover.",
                "none",
                Query(highest("credits_negative_balance_count")),
                steps=NONE_IS_GOOD,
            ),
            number(
                "Chain errors",
                "Errors that the last verification of the audit chain found. It must be 0.",
                "none",
                Query(highest("credits_audit_chain_integrity_errors")),
                steps=NONE_IS_GOOD,
            ),
            number(
                "Shards without leader",
                "Ledger shards that no replica leads. Their tenants get 503 until one does.",
                "none",
                Query(f"count({aggregate('max', chosen('shieldx_shard_leader'), 'shard')} == 0) or vector(0)"),
                steps=NONE_IS_GOOD,
            ),
            number(
                "Breakers open",
                "Circuit breakers in the processes that are open now: calls behind them fail at once.",
                "none",
                Query(f"count({chosen('shieldx_breaker_state')} == 2) or vector(0)"),
                steps=NONE_IS_GOOD,
            ),
            number(
                "Chain lag",
                "Entries that are applied in Redis and not yet in the chain, of the shard where most wait.",
                "none",
                Query(highest("shieldx_chain_lag_entries")),
                steps=CHAIN_LAG_STEPS,
            ),
            number(
                "Versions",
                "Versions that run now. Two of them are a rollout under way.",
                "none",
                Query(aggregate("count", chosen("shieldx_build_info"), "version"), "{{version}}"),
                names=True,
            ),
        ),
    )


def _requests() -> Row:
    by_route = aggregate("topk", f"8, {rate(REQUESTS, 'method', 'route', where=SERVED)}")
    slow = aggregate("topk", f"8, {quantile(0.95, DURATION, 'method', 'route', where=SERVED)}")
    failed = aggregate("topk", f"8, {share(REQUESTS, FAILED, 'method', 'route', where=SERVED)}")
    return Row(
        "Requests",
        (
            lines(
                "Requests by route",
                "Requests per second of the eight busiest routes.",
                "reqps",
                Query(by_route, "{{method}} {{route}}"),
            ),
            lines(
                "Failed requests by route",
                "Share of 5xx of the eight routes that fail most; all lie at 0 when nothing fails.",
                "percentunit",
                Query(failed, "{{method}} {{route}}"),
                steps=ERROR_STEPS,
            ),
            lines(
                "p95 latency by route",
                "Time within which 95 of 100 requests were answered, of the eight slowest routes.",
                "s",
                Query(slow, "{{method}} {{route}}"),
            ),
            lines(
                "Answers by status",
                "Answers per second by status class. 402 and 409 are refusals, 429 limits, 503 an outage or a full mailbox.",
                "reqps",
                Query(rate(REQUESTS, "status", where=SERVED), "{{status}}"),
                stacked=True,
            ),
            lines(
                "Latency",
                "Quantiles over all routes together.",
                "s",
                *quantiles(DURATION, where=SERVED),
                steps=LATENCY_STEPS,
            ),
            heat(
                "Latency of credit calls",
                "Requests per second to /v1/credits by how long they took. Two bands mean two kinds of work, or one "
                "replica that is slow.",
                "s",
                rate(f"{DURATION}_bucket", "le", where='route=~"/v1/credits/.*"'),
                width=8,
            ),
        ),
    )


def _door() -> Row:
    return Row(
        "At the door",
        (
            lines(
                "Denied and limited",
                "Requests per second that were refused at the door: no key, the wrong role or tenant, or more than a limit "
                "allows.",
                "reqps",
                Query(rate("shieldx_access_denied_total", "reason"), "denied: {{reason}}"),
                Query(rate("shieldx_rate_limited_total", "by"), "limited by {{by}}"),
            ),
            lines(
                "Reused idempotency keys",
                "Keys per second that came again with another body and were answered 422: a caller that builds its keys "
                "wrongly.",
                "cps",
                Query(rate("credits_idempotency_collisions_total"), "collisions"),
            ),
            lines(
                "Replays",
                "Share of credit operations that were repeats of an acknowledged one, answered from memory. It rises when "
                "callers time out.",
                "percentunit",
                Query(share(OPERATIONS, 'result="replayed"'), "replayed"),
            ),
        ),
    )


def _credits() -> Row:
    return Row(
        "Credits",
        (
            lines(
                "Operations by kind",
                "Credit operations applied per second.",
                "ops",
                Query(rate(OPERATIONS, "op", where='result="applied"'), "{{op}}"),
                stacked=True,
            ),
            lines(
                "Operations by result",
                "Applied: chained and acknowledged. Refused: the balance, a hold or a control forbids it. Unavailable: the "
                "caller has to ask again.",
                "ops",
                Query(rate(OPERATIONS, "result"), "{{result}}"),
            ),
            lines(
                "Refusals by kind",
                "Share of each kind of operation that was refused: a balance too low, a reservation that is gone, a "
                "control.",
                "percentunit",
                Query(share(OPERATIONS, 'result="refused"', "op"), "{{op}}"),
            ),
        ),
    )


def overview() -> Board:
    """Return the dashboard of the whole: users' requests first, then the parts that serve them."""
    return Board(
        "shieldx-overview",
        "shieldx / Overview",
        "Requests, credit operations, the way into the chain, replicas and their limits.",
        (_now(), _integrity(), _requests(), _door(), _credits(), group_commit(), replicas(), webhooks()),
        ALERTS,
    )
