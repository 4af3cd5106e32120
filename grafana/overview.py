"""The first dashboard to open: is it up, is it fast, is it right, and which part is not."""

from __future__ import annotations

from grafana.board import Board, Row
from grafana.panels import GREEN, NONE_IS_GOOD, RED, SOME_IS_GOOD, YELLOW, heat, lines, number, states
from grafana.promql import Query, aggregate, chosen, highest, mean, quantile, quantiles, rate, share, total
from grafana.served import CHAIN_LAG_STEPS, DURATION, ERROR_STEPS, FAILED, LAG_STEPS, LATENCY_STEPS, REQUESTS, SERVED

OPERATIONS = "credits_operations_total"


def _now() -> Row:
    return Row("Now", (
        number("Ready replicas", "Processes whose /ready answers 200. 0 means that nobody is served.", "none",
               Query(total("shieldx_ready")), steps=SOME_IS_GOOD),
        number("Requests", "Requests answered per second, without probes, scrapes and watches.", "reqps",
               Query(rate(REQUESTS, where=SERVED))),
        number("Failed requests", "Share of requests that were answered 5xx. Refusals (4xx) are answers, not failures.",
               "percentunit", Query(share(REQUESTS, FAILED, where=SERVED)), steps=ERROR_STEPS),
        number("p99 latency", "99 of 100 requests were answered within this time. An acknowledged credit operation is in "
               "the chain by then.", "s", Query(quantile(0.99, DURATION, where=SERVED)), steps=LATENCY_STEPS),
        number("Operations", "Credit operations applied per second: balances changed and chained.", "ops",
               Query(rate(OPERATIONS, where='result="applied"'))),
        number("Firing alerts", "Alerts that fire now, Watchdog aside. The alert dashboard names them.", "none",
               Query('sum(ALERTS{alertstate="firing",alertname!="Watchdog"}) or vector(0)'), steps=NONE_IS_GOOD),
        number("Accounts below zero", "Accounts whose balance in the projection is negative. It must be 0: Lua refuses "
               "what a balance does not "
               "cover.", "none", Query(highest("credits_negative_balance_count")), steps=NONE_IS_GOOD),
        number("Chain errors", "Errors that the last verification of the audit chain found. It must be 0.", "none",
               Query(highest("credits_audit_chain_integrity_errors")), steps=NONE_IS_GOOD),
        number("Shards without leader", "Ledger shards that no replica leads. Their tenants get 503 until one does.", "none",
               Query(f"count({aggregate('max', chosen('shieldx_shard_leader'), 'shard')} == 0) or vector(0)"),
               steps=NONE_IS_GOOD),
        number("Breakers open", "Circuit breakers in the processes that are open now: calls behind them fail at "
               "once.", "none",
               Query(f"count({chosen('shieldx_breaker_state')} == 2) or vector(0)"), steps=NONE_IS_GOOD),
        number("Chain lag", "Entries that are applied in Redis and not yet in the chain, of the shard where most "
               "wait.", "none",
               Query(highest("shieldx_chain_lag_entries")), steps=CHAIN_LAG_STEPS),
        number("Versions", "Versions that run now. Two of them are a rollout under way.", "none",
               Query(aggregate("count", chosen("shieldx_build_info"), "version"), "{{version}}"), names=True),
    ))  # fmt: skip


def _requests() -> Row:
    by_route = aggregate("topk", f"8, {rate(REQUESTS, 'method', 'route', where=SERVED)}")
    slow = aggregate("topk", f"8, {quantile(0.95, DURATION, 'method', 'route', where=SERVED)}")
    failed = aggregate("topk", f"8, {share(REQUESTS, FAILED, 'method', 'route', where=SERVED)}")
    return Row("Requests", (
        lines("Requests by route", "Requests per second of the eight busiest routes.", "reqps",
              Query(by_route, "{{method}} {{route}}")),
        lines("Failed requests by route", "Share of 5xx of the eight routes that fail most; all lie at 0 when nothing "
              "fails.",
              "percentunit", Query(failed, "{{method}} {{route}}"), steps=ERROR_STEPS),
        lines("p95 latency by route", "Time within which 95 of 100 requests were answered, of the eight slowest "
              "routes.", "s",
              Query(slow, "{{method}} {{route}}")),
        lines("Answers by status", "Answers per second by status class. 402 and 409 are refusals, 429 limits, 503 an "
              "outage or a full "
              "mailbox.", "reqps", Query(rate(REQUESTS, "status", where=SERVED), "{{status}}"), stacked=True),
        lines("Latency", "Quantiles over all routes together.", "s",
              *quantiles(DURATION, where=SERVED), steps=LATENCY_STEPS),
        heat("Latency of credit calls", "Requests per second to /v1/credits by how long they took. Two bands mean two "
             "kinds of work, or one replica that is slow.", "s",
             rate(f"{DURATION}_bucket", "le", where='route=~"/v1/credits/.*"'),
             width=8),
        lines("Denied and limited", "Requests per second that were refused at the door: no key, the wrong role or "
              "tenant, or more than a limit allows.", "reqps",
              Query(rate("shieldx_access_denied_total", "reason"), "denied: {{reason}}"),
              Query(rate("shieldx_rate_limited_total", "by"), "limited by {{by}}")),
        lines("Reused idempotency keys", "Keys per second that came again with another body and were answered 422: a caller "
              "that builds its keys wrongly.", "cps", Query(rate("credits_idempotency_collisions_total"), "collisions")),
        lines("Replays", "Share of credit operations that were repeats of an acknowledged one, answered from memory. It "
              "rises when callers time out.", "percentunit", Query(share(OPERATIONS, 'result="replayed"'), "replayed")),
    ))  # fmt: skip


def _credits() -> Row:
    return Row("Credits", (
        lines("Operations by kind", "Credit operations applied per second.", "ops",
              Query(rate(OPERATIONS, "op", where='result="applied"'), "{{op}}"), stacked=True),
        lines("Operations by result", "Applied: chained and acknowledged. Refused: the balance, a hold or a control forbids "
              "it. Unavailable: the caller has to ask again.", "ops", Query(rate(OPERATIONS, "result"), "{{result}}")),
        lines("Refusals by kind", "Share of each kind of operation that was refused: a balance too low, a reservation "
              "that is gone, a control.", "percentunit", Query(share(OPERATIONS, 'result="refused"', "op"), "{{op}}")),
    ))  # fmt: skip


def _commit() -> Row:
    return Row("Group commit", (
        lines("Batch size", "Entries that one commit took along. Under load batches grow and the cost of each entry falls.",
              "none", Query(quantile(0.5, "shieldx_commit_batch_entries"), "p50"),
              Query(quantile(0.95, "shieldx_commit_batch_entries"), "p95"),
              Query(mean("shieldx_commit_batch_entries"), "mean")),
        lines("From apply to commit", "Time from the change in Redis to the entry in the chain: what a caller waits for "
              "proof.",
              "s", *quantiles("shieldx_apply_to_commit_seconds")),
        lines("Append statement", "Time of the one statement that appends a batch to Postgres.", "s",
              *quantiles("shieldx_commit_seconds")),
        lines("Mailbox depth", "Operations that wait in a shard's mailbox. At its limit callers get 503.", "none",
              Query(highest("shieldx_mailbox_depth", "shard"), "shard {{shard}}")),
        lines("Mailbox rejections", "Operations per second that found the mailbox full and were answered 503.", "ops",
              Query(rate("shieldx_mailbox_rejected_total", "shard"), "shard {{shard}}")),
        lines("Chain lag", "Entries that are applied in Redis and not yet in the chain.", "none",
              Query(highest("shieldx_chain_lag_entries", "shard"), "shard {{shard}}"), steps=CHAIN_LAG_STEPS),
        lines("Age of checkpoints", "Time since the last signed checkpoint of a shard's log. It may grow while nothing is "
              "written.", "s", Query(highest("shieldx_checkpoint_age_seconds", "shard"), "shard {{shard}}")),
        lines("Entries without checkpoint", "Entries of the chain that no signed checkpoint covers yet.", "none",
              Query(highest("shieldx_checkpoint_lag_entries", "shard"), "shard {{shard}}")),
        lines("Recoveries", "Shards taken over. Adopted: what Redis held was continued. Rebuilt: Redis was laid anew from "
              "Postgres.", "none", Query(
                  f"sum by (kind) (increase({chosen('shieldx_recoveries_total')}[$__rate_interval]))", "{{kind}}")),
    ))  # fmt: skip


def _replicas() -> Row:
    leading = {0: ("follows", "blue"), 1: ("leads", GREEN)}
    ready = {0: ("not ready", RED), 1: ("ready", GREEN)}
    return Row("Replicas", (
        states("Readiness", "Whether /ready of each replica answers 200.", ready,
               Query(highest("shieldx_ready", "instance"), "{{instance}}"), width=8),
        states("Leaders", "Which replica leads which shard. A change is a takeover; two leaders at once cannot write, "
               "because the epoch fences the older one.", leading,
               Query(highest("shieldx_shard_leader", "shard", "instance"), "shard {{shard}} {{instance}}"), width=8),
        lines("Shard epochs", "Epoch of each shard: one higher at each takeover. A climbing line is a shard that nobody "
              "keeps.",
              "none", Query(highest("shieldx_shard_epoch", "shard"), "shard {{shard}}")),
        lines("Event-loop lag", "How late the event loop was, 99th percentile by replica: what every request in that "
              "process waits besides its work.", "s",
              Query(quantile(0.99, "shieldx_event_loop_lag_seconds", "instance"), "{{instance}}"), steps=LAG_STEPS, width=6),
        lines("CPU", "Cores that each process uses. One process runs on one core; at 1 it is full.", "none",
              Query(rate("process_cpu_seconds_total", "instance"), "{{instance}}"), width=6),
        lines("Memory", "Resident memory of each process.", "bytes",
              Query(highest("process_resident_memory_bytes", "instance"), "{{instance}}"), width=6),
        lines("Open files", "Share of the permitted file descriptors, sockets among them, that each process holds.",
              "percentunit", Query(
                  f"{highest('process_open_fds', 'instance')} / {highest('process_max_fds', 'instance')}", "{{instance}}"),
              steps=((None, GREEN), (0.7, YELLOW), (0.9, RED)), width=6),
    ))  # fmt: skip


def _deliveries() -> Row:
    return Row("Webhooks", (
        lines("Webhook deliveries", "Attempts per second to deliver webhooks, by how they ended.", "cps",
              Query(rate("shieldx_webhook_deliveries_total", "result"), "{{result}}"), width=12),
        lines("Webhook backlog", "Deliveries that wait to be sent or sent again.", "none",
              Query(highest("shieldx_webhook_backlog"), "waiting"), width=12),
    ))  # fmt: skip


def overview() -> Board:
    """Return the dashboard of the whole: users' requests first, then the parts that serve them."""
    return Board(
        "shieldx-overview", "shieldx / Overview",
        "Requests, credit operations, the way into the chain, replicas and their limits.",
        (_now(), _requests(), _credits(), _commit(), _replicas(), _deliveries()),
    )  # fmt: skip
