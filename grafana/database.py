"""Database performance: pools, round trips, statements and commits, breakers, and how well it is all kept."""

from __future__ import annotations

from typing import Final

from grafana.board import Board, Row
from grafana.panels import GREEN, RED, SOME_IS_GOOD, YELLOW, Steps, heat, lines, number, states
from grafana.promql import Query, highest, increase, lowest, mean, quantile, quantiles, rate, total
from grafana.served import BREAKER_WORDS, POOL_STEPS

POSTGRES: Final = "shieldx_postgres_roundtrip_seconds"
REDIS: Final = "shieldx_redis_roundtrip_seconds"
ACTIVE, LIMIT = "db_pool_connections_active", "db_pool_connections_limit"
TRIP_STEPS: Final[Steps] = ((None, GREEN), (0.05, YELLOW), (0.2, RED))  # seconds; red is where CreditsSlowCommits fires
FAULT_STEPS: Final[Steps] = ((None, GREEN), (0.01, YELLOW), (1, RED))  # per second
DAILY_STEPS: Final[Steps] = ((None, GREEN), (26 * 3_600, YELLOW), (48 * 3_600, RED))  # seconds since what is done once a day
USED = f"{total(ACTIVE, 'pool')} / {total(LIMIT, 'pool')}"
ALERTS: Final = {
    "Fullest pool": ("CreditsDatabasePoolExhausted",),
    "Use of the pools": ("CreditsDatabasePoolExhausted",),
    "Slow statements": ("ShieldxSlowQueries",),
    "Postgres errors": ("ShieldxPostgresErrors",),
    "Redis errors": ("ShieldxRedisErrors",),
    "Commit time": ("CreditsSlowCommits",),
    "Round trip": ("ShieldxRedisSlow",),
    "Breakers": ("ShieldxBreakerOpen",),
    "Last verification": ("CreditsVerificationOverdue",),
    "Partitions ahead": ("CreditsPartitionsRunningOut",),
    "Last backup": ("ShieldxBackupTooOld", "ShieldxBackupUnwatched"),
    "Backup": ("ShieldxBackupFailed",),
}
"""The alerts on what panels show."""


def _now() -> Row:
    return Row(
        "Now",
        (
            number(
                "Fullest pool",
                "Share of the connections that a pool may use at once which is in use, of the fullest pool.",
                "percentunit",
                Query(f"max({USED})"),
                steps=POOL_STEPS,
            ),
            number(
                "Postgres p95",
                "95 of 100 statements of the slowest pool were answered within this time.",
                "s",
                Query(f"max({quantile(0.95, POSTGRES, 'pool')})"),
                steps=TRIP_STEPS,
            ),
            number(
                "Redis p95",
                "95 of 100 calls of Redis were answered within this time. One call serves a batch of operations.",
                "s",
                Query(quantile(0.95, REDIS)),
                steps=TRIP_STEPS,
            ),
            number(
                "Slow statements",
                "Statements per second that took longer than the server's limit for slow ones.",
                "cps",
                Query(rate("pg_slow_queries_total")),
                steps=FAULT_STEPS,
            ),
            number(
                "Postgres errors",
                "Statements per second that failed: connections lost, time limits, refusals.",
                "cps",
                Query(rate("shieldx_postgres_errors_total")),
                steps=FAULT_STEPS,
            ),
            number(
                "Redis errors",
                "Calls of Redis per second that failed.",
                "cps",
                Query(rate("shieldx_redis_errors_total")),
                steps=FAULT_STEPS,
            ),
        ),
    )


def _pools() -> Row:
    return Row(
        "Connection pools",
        (
            lines(
                "Connections in use",
                "Connections of each pool that run a statement, over all replicas.",
                "none",
                Query(total(ACTIVE, "pool"), "{{pool}}"),
            ),
            lines(
                "Idle connections",
                "Open connections of each pool that wait for work.",
                "none",
                Query(total("db_pool_connections_idle", "pool"), "{{pool}}"),
            ),
            lines(
                "Use of the pools",
                "Share of the connections that a pool may use at once which is in use. At 1 callers wait.",
                "percentunit",
                Query(USED, "{{pool}}"),
                steps=POOL_STEPS,
                top=1,
            ),
            lines(
                "Callers that wait",
                "Callers that wait for a connection now, of the replica where most do.",
                "none",
                Query(highest("db_pool_waiting", "pool"), "{{pool}}"),
            ),
            lines(
                "Time spent waiting",
                "Seconds that callers wait for connections, per second: at 1 one caller waits all the time.",
                "none",
                Query(rate("db_pool_wait_seconds_total", "pool"), "{{pool}}"),
            ),
            lines(
                "Given up waiting",
                "Callers per second that got no connection in time.",
                "cps",
                Query(rate("db_pool_timeouts_total", "pool"), "{{pool}}"),
                steps=FAULT_STEPS,
            ),
        ),
    )


def _postgres() -> Row:
    return Row(
        "Postgres",
        (
            lines(
                "Statements", "Round trips per second by pool.", "ops", Query(rate(f"{POSTGRES}_count", "pool"), "{{pool}}")
            ),
            lines(
                "p95 by pool",
                "95 of 100 round trips of a pool took no longer.",
                "s",
                Query(quantile(0.95, POSTGRES, "pool"), "{{pool}}"),
                steps=TRIP_STEPS,
            ),
            lines(
                "Mean by pool",
                "Mean time of a round trip: with the rate it is how busy Postgres is for us.",
                "s",
                Query(mean(POSTGRES, "pool"), "{{pool}}"),
            ),
            lines(
                "Slow statements",
                "Statements per second over the server's limit for slow ones, by pool.",
                "cps",
                Query(rate("pg_slow_queries_total", "pool"), "{{pool}}"),
            ),
            lines(
                "Failed statements",
                "Failed statements per second by pool.",
                "cps",
                Query(rate("shieldx_postgres_errors_total", "pool"), "{{pool}}"),
            ),
            heat(
                "Round trips",
                "Round trips of the pools per second by how long they took. The writer's are the commits, below.",
                "s",
                rate(f"{POSTGRES}_bucket", "le", where='pool!="writer"'),
                width=8,
            ),
        ),
    )


def _commits() -> Row:
    return Row(
        "Commits to the chain",
        (
            lines(
                "Commits",
                "Group commits per second, and the entries they took along.",
                "ops",
                Query(rate("shieldx_commit_batch_entries_count"), "commits"),
                Query(rate("shieldx_commit_batch_entries_sum"), "entries"),
            ),
            lines(
                "Commit time",
                "Time of the append statement: one round trip and one write of the log to disk.",
                "s",
                *quantiles("shieldx_commit_seconds"),
                steps=TRIP_STEPS,
            ),
            heat(
                "Batch sizes",
                "Commits per second by how many entries they took along.",
                "none",
                rate("shieldx_commit_batch_entries_bucket", "le"),
                width=8,
            ),
        ),
    )


def _redis() -> Row:
    return Row(
        "Redis",
        (
            lines(
                "Calls",
                "Round trips to Redis per second, by replica.",
                "ops",
                Query(rate(f"{REDIS}_count", "instance"), "{{instance}}"),
            ),
            lines(
                "Round trip", "Quantiles of the time that Redis took to answer.", "s", *quantiles(REDIS), steps=TRIP_STEPS
            ),
            lines(
                "Failed calls",
                "Failed calls per second by replica.",
                "cps",
                Query(rate("shieldx_redis_errors_total", "instance"), "{{instance}}"),
            ),
        ),
    )


def _breakers() -> Row:
    return Row(
        "Circuit breakers",
        (
            states(
                "Breakers",
                "State of each breaker, the worst over all replicas. Open: calls fail at once and nobody waits.",
                BREAKER_WORDS,
                Query(highest("shieldx_breaker_state", "name"), "{{name}}"),
            ),
            lines(
                "Openings",
                "Times that breakers opened.",
                "none",
                Query(increase("shieldx_breaker_opened_total", "name"), "{{name}}"),
                width=12,
            ),
        ),
    )


def _upkeep() -> Row:
    return Row(
        "Upkeep",
        (
            number(
                "Last verification",
                "Time since the whole chain was last verified. It is done daily.",
                "s",
                Query(lowest("shieldx_verification_age_seconds")),
                steps=DAILY_STEPS,
            ),
            number(
                "Partitions ahead",
                "Days for which partitions of the chain exist already. At 0 nothing can be written.",
                "d",
                Query(lowest("shieldx_partition_days_ahead")),
                steps=((None, RED), (7, YELLOW), (30, GREEN)),
            ),
            number(
                "Last backup",
                "Time since the newest good backup was finished.",
                "s",
                Query("min(shieldx_backup_age_seconds)"),
                steps=DAILY_STEPS,
            ),
            number(
                "Backup",
                "Whether the last attempt made a good backup.",
                "none",
                Query("max(shieldx_backup_last_success)"),
                words={0: ("failed", RED), 1: ("good", GREEN)},
                steps=SOME_IS_GOOD,
            ),
            number(
                "Backup size",
                "Size of the newest good backup: about what the next one will need.",
                "bytes",
                Query("max(shieldx_backup_size_bytes)"),
                width=8,
            ),
        ),
    )


def database() -> Board:
    """Return the dashboard of what the server asks of Postgres and Redis, and of what keeps them safe."""
    return Board(
        "shieldx-database",
        "shieldx / Database performance",
        "What the server asks of Postgres and Redis: pools, round trips, commits, breakers, backups.",
        (_now(), _pools(), _postgres(), _commits(), _redis(), _breakers(), _upkeep()),
        ALERTS,
    )
