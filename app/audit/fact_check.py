"""Holds tables against the sums of `app.audit.facts`, and finds the row that differs when a sum does."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from app.audit.entry import ENTRY_PREFIX, Record
from app.audit.facts import (
    ACCOUNTS,
    AMOUNTS,
    CLOSED,
    COUNTS,
    MODULUS,
    OPENED,
    PURPOSES,
    STATUSES,
    WEIGHT_BYTES,
    account_line,
    closed_line,
    opened_line,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    import asyncpg

    from app.audit.state import Findings

USED: Final = ("topup", "consume", "commit", "refund")
BATCH: Final = 1_000  # entries that are looked up at once when a row is searched
# A year before Christ would be written like one after; ' AD' goes away again.
_ERA: Final = "rtrim(to_char({} AT TIME ZONE 'UTC', '{} AD'), ' AD')"
_MICROS: Final = _ERA.format("{}", 'YYYY-MM-DD"T"HH24:MI:SS.US')
OPENED_LINE: Final = (
    "reservation_id || '|' || tenant_id || '|' || amount || '|' || purpose || '|' || "
    + _MICROS.format("created_at") + " || '|' || "
    "coalesce(trim_scale(extract(epoch FROM expires_at) * 1000)::text, '') || '|' || "
    "coalesce(transfer_id::text, '') || '|' || coalesce(counted::text, '') || '|' || "
    "coalesce(octet_length(description)::text, '-') || '|' || coalesce(description, '') || '|' || coalesce(metadata, '-')"
)  # fmt: skip
CLOSED_LINE: Final = (
    "reservation_id || '|' || status || '|' || committed || '|' || coalesce("
    + _MICROS.format("closed_at") + ", '') || '|' || coalesce(closed_seq, -1)"
)  # fmt: skip
ACCOUNT_LINE: Final = "tenant_id || '|' || " + _MICROS.format("created_at")
HOUR_LINE: Final = "tenant_id || '|' || trim_scale(extract(epoch FROM start)) || '|' || type"
_WEIGHT: Final = (
    f"('x' || encode(substr(sha256($1::bytea || convert_to(coalesce({{}}, ''), 'UTF8')), 1, {WEIGHT_BYTES}), 'hex'))"
    f"::bit({8 * WEIGHT_BYTES})::bigint"
)
_USED_SUMS: Final = (
    "SELECT coalesce(sum(w * amount), 0), coalesce(sum(w * count), 0) FROM "  # noqa: S608 - constants
    "(SELECT amount, count, (" + _WEIGHT.format(HOUR_LINE) + ")::numeric AS w FROM usage_hourly) AS u"
)
_START: Final = "coalesce(" + _ERA.format("start", 'YYYY-MM-DD"T"HH24:MI"Z"') + ", start::text)"
_USED_DIFFERENCE: Final = f"""
    SELECT tenant_id, {_START} AS shown, type, u.amount, u.count, e.amount AS chain_amount, e.count AS chain_count
    FROM usage_hourly u FULL JOIN (
      SELECT c.tenant_id, date_trunc('hour', c.at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS start, c.type,
             sum(c.amount) AS amount, count(*) AS count
      FROM audit_chain c JOIN usage_marks m ON m.shard = c.shard AND c.seq <= m.seq WHERE c.type = ANY($1) GROUP BY 1, 2, 3
    ) AS e USING (tenant_id, start, type)
    WHERE (u.amount, u.count) IS DISTINCT FROM (e.amount, e.count) ORDER BY start, 1, 3 LIMIT 1
"""  # noqa: S608 - constants
_ENTRIES: Final = "SELECT seq, entry FROM audit_chain WHERE shard = $1 AND type = ANY($2) ORDER BY seq"
# A table that is listed and missing is a fault of its own: see app.audit.archive_check.
_ARCHIVED: Final = """
    SELECT 'ledger_archive.' || quote_ident(name) FROM archived_partitions
    WHERE parent = 'credit_reservations' AND to_regclass('ledger_archive.' || quote_ident(name)) IS NOT NULL ORDER BY name
"""
_BEYOND: Final = """
    SELECT m.shard, m.seq FROM usage_marks m LEFT JOIN ledger_shards s USING (shard)
    WHERE m.seq > coalesce(s.head_seq, -1) ORDER BY m.shard LIMIT 1
"""
_COLUMNS: Final = (
    "reservation_id, shard, tenant_id, amount, committed, status, purpose, created_at, expires_at, closed_at, closed_seq, "
    "transfer_id, description, metadata, counted"
)


class Fact(NamedTuple):
    """One kind of line: where its rows stand, and what they are held against.

    table  a table, or the SELECT of one; `key` is its column that `reference` of the record names
    """

    number: int
    what: str
    table: str
    where: str
    key: str
    line: str
    types: tuple[str, ...]
    of: Callable[[Record], str]
    reference: Callable[[Record], str | None]


async def all_reservations(connection: asyncpg.Connection[Any]) -> str:
    """Return the SELECT, in brackets, of all reservations, those of archived quarters included."""
    tables = ["credit_reservations", *(row[0] for row in await connection.fetch(_ARCHIVED))]
    rows = " UNION ALL ".join(f"SELECT {_COLUMNS} FROM {table}" for table in tables)  # noqa: S608 - names of partitions
    return f"({rows})"


async def facts_of(connection: asyncpg.Connection[Any]) -> tuple[Fact, ...]:
    """Return what is compared, the archived quarters of reservations included."""
    reservations = await all_reservations(connection)
    return (
        Fact(OPENED, "reservation", reservations, "true", "reservation_id", OPENED_LINE, tuple(PURPOSES), opened_line,
             lambda record: record.transaction_id),
        Fact(CLOSED, "end of reservation", reservations, "status <> 'held'", "reservation_id", CLOSED_LINE, tuple(STATUSES),
             closed_line, lambda record: record.reference),
        Fact(ACCOUNTS, "time of account", "credit_accounts", "true", "tenant_id", ACCOUNT_LINE, ("account",), account_line,
             lambda record: record.tenant_id),
    )  # fmt: skip


async def read_marks(connection: asyncpg.Connection[Any]) -> dict[int, int]:
    """Return up to which seq of each shard usage is rolled up."""
    return dict(await connection.fetch("SELECT shard, seq FROM usage_marks"))


async def compare_facts(
    connection: asyncpg.Connection[Any], key: bytes, sums: Mapping[int, list[int]], findings: Findings
) -> None:
    """Hold reservations, opened accounts and usage against the sums of the chains, by shard; note the first that differs.

    Nothing is said of a shard of which a fault is known, nor, once there is any, of usage, which belongs to no shard.
    """
    if None in findings.first:
        return
    for fact in await facts_of(connection):
        there: dict[int, int] = dict(await connection.fetch(
            f"SELECT shard, sum({_WEIGHT.format(fact.line)}) FROM {fact.table} AS t WHERE {fact.where} GROUP BY 1",  # noqa: S608 - constants
            key,
        ))  # fmt: skip
        for shard in sorted({*there, *sums} - findings.broken - set(findings.first)):
            mine = sums[shard][fact.number] if shard in sums else 0
            if _reduced(there.get(shard, 0)) != mine:
                findings.note(shard, *await _difference(connection, fact, shard))
    if findings.broken or findings.first:
        return
    beyond = await connection.fetchrow(_BEYOND)
    if beyond is not None:
        reason = f"usage_marks has seq {beyond['seq']}, at which shard {beyond['shard']} has not come"
        findings.note(None, None, reason)
    [used] = await connection.fetch(_USED_SUMS, key)
    mine_used = [sum(one[number] for one in sums.values()) % MODULUS for number in (AMOUNTS, COUNTS)]
    if [_reduced(one) for one in used] != mine_used:
        findings.note(None, None, await _used_difference(connection))


def _reduced(total: Decimal | int) -> int | None:
    """Return a sum modulo MODULUS; None for one of no entries: a numeric may have a fraction, be infinite or NaN."""
    number = Decimal(total)
    return int(number) % MODULUS if number.is_finite() and number == int(number) else None


async def _difference(connection: asyncpg.Connection[Any], fact: Fact, shard: int) -> tuple[int | None, str]:
    """Return the first entry of a shard whose row is another or missing, and why; or a row that no entry has made."""
    table = "credit_accounts" if fact.number == ACCOUNTS else "credit_reservations"
    row_of = (
        f"SELECT {fact.key}::text, {fact.line} FROM {fact.table} AS t "  # noqa: S608 - constants
        f"WHERE shard = $1 AND {fact.where} AND {fact.key}::text = ANY($2)"
    )
    keys: list[str] = []
    async for batch in _batches(connection, fact, shard):
        references = [fact.reference(record) or "" for record in batch]
        there = dict(await connection.fetch(row_of, shard, references))
        for record, reference in zip(batch, references, strict=True):
            row, wanted = there.get(reference), fact.of(record)
            if row is None:
                return record.seq, f"{table} has no {fact.what} {reference}, which this entry gives"
            if row != wanted:
                return record.seq, f"{table} has another {fact.what} {reference} than this entry gives: {row}, not {wanted}"
        keys += references
    surplus = await connection.fetchval(
        f"SELECT {fact.key}::text FROM {fact.table} AS t WHERE shard = $1 AND {fact.where} "  # noqa: S608 - constants
        f"AND NOT {fact.key}::text = ANY($2) ORDER BY 1 LIMIT 1", shard, keys,
    )  # fmt: skip
    return None, f"{table} has {fact.what} {surplus}, the chain has not"


async def _batches(connection: asyncpg.Connection[Any], fact: Fact, shard: int) -> AsyncIterator[list[Record]]:
    batch: list[Record] = []
    async for _, entry in connection.cursor(_ENTRIES, shard, list(fact.types), prefetch=BATCH):
        batch.append(msgspec.json.decode(entry[len(ENTRY_PREFIX) :], type=Record))
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


async def _used_difference(connection: asyncpg.Connection[Any]) -> str:
    row = await connection.fetchrow(_USED_DIFFERENCE, list(USED))
    if row is None:
        return "usage_marks has another end of the rollups than the chain"
    here, there = ((row["count"], row["amount"]), (row["chain_count"], row["chain_amount"]))
    return (
        f"usage_hourly has {_used_text(*here)} of type {row['type']} for tenant {row['tenant_id']} in the hour "
        f"from {row['shown']}, the chain gives {_used_text(*there)}"
    )


def _used_text(count: int | None, amount: int | None) -> str:
    return "nothing" if count is None else f"{count} of {amount} credits"
