"""Whether the archive is what archived_partitions says of it: the table of each quarter, its bounds, its rows, its ends.

The rows themselves are proved with the rest of the chain, through the view audit_chain. Here the table in which they stand
is judged: rows of one quarter in the table of another would be missed only when that is taken for too old and dropped.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import msgspec

from app.clock import ms_of, time_text

if TYPE_CHECKING:
    import asyncpg

    from app.audit.state import Findings

_LISTED: Final = """
    SELECT name, quote_ident(name) AS quoted, parent, bounds, entries, ends::text,
           to_regclass('ledger_archive.' || quote_ident(name)) IS NOT NULL AS there
    FROM archived_partitions ORDER BY name
"""
# Both ends of every shard's part, by the primary key.
_ENDS: Final = """
    SELECT s.shard, first.seq AS low, last.seq AS high, encode(last.hash, 'hex') AS hash, first.at AS since, last.at AS until
    FROM generate_series(0, $1::int - 1) AS s (shard)
    CROSS JOIN LATERAL (SELECT seq, at FROM ledger_archive.{name} e WHERE e.shard = s.shard ORDER BY seq LIMIT 1) AS first
    CROSS JOIN LATERAL (
      SELECT seq, hash, at FROM ledger_archive.{name} e WHERE e.shard = s.shard ORDER BY seq DESC LIMIT 1) AS last
"""
_COUNT: Final = """
    SELECT count(*), (SELECT reservation_id::text FROM ledger_archive.{name} ORDER BY reservation_id LIMIT 1),
           (SELECT reservation_id::text FROM ledger_archive.{name} ORDER BY reservation_id DESC LIMIT 1)
    FROM ledger_archive.{name}
"""
_NAME: Final = re.compile(r"(audit_entries|credit_reservations)_([0-9]{4})q([1-4])")
_BOUNDS: Final = re.compile(r"FOR VALUES FROM \('([^']+)'\) TO \('([^']+)'\)")
_QUARTER_MONTHS: Final = 3
_MONTHS: Final = 12


class Quarter(NamedTuple):
    """The time of a quarter's table, UTC: from `since` to before `until`."""

    parent: str
    since: datetime
    until: datetime

    def says(self, bounds: str) -> bool:
        """Return whether bounds, as PostgreSQL writes those of a partition, are those of this quarter."""
        match = _BOUNDS.fullmatch(bounds)
        if match is None:
            return False
        try:
            if self.parent == "credit_reservations":
                return (UUID(match[1]), UUID(match[2])) == (_floor(self.since), _floor(self.until))
            return (datetime.fromisoformat(match[1]), datetime.fromisoformat(match[2])) == (self.since, self.until)
        except (ValueError, TypeError):
            return False


def quarter_of(name: str) -> Quarter | None:
    """Return the quarter that the name of a partition states; None when it is not such a name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    year, months = int(match[2]), (int(match[3]) - 1) * _QUARTER_MONTHS
    until = months + _QUARTER_MONTHS
    try:
        return Quarter(
            match[1], datetime(year, months + 1, 1, tzinfo=UTC),
            datetime(year + until // _MONTHS, until % _MONTHS + 1, 1, tzinfo=UTC),
        )  # fmt: skip
    except ValueError:
        return None


def _floor(at: datetime) -> UUID:
    return UUID(int=ms_of(at) << 80)


async def check_archive(
    connection: asyncpg.Connection[Any], shard_count: int, findings: Findings, *, counted: bool = True
) -> dict[int, list[tuple[int, int]]]:
    """Hold archived_partitions against the tables of the archive; note the first fault.

    counted  whether archived reservations are counted too, which takes as long as there are many
    Returns which entries are archived, by shard: seq `low` to before `high`, ascending. They are meant to be without gaps,
    which the proof of the chain shows.
    """
    spans: dict[int, list[tuple[int, int]]] = {}
    for row in await connection.fetch(_LISTED):
        quarter = quarter_of(row["name"])
        if quarter is None or quarter.parent != row["parent"]:
            fault: str | None = "which is no partition of a quarter"
        elif not row["there"]:
            fault = "whose table is not in the archive"
        elif row["parent"] == "audit_entries":
            fault = await _entries_fault(connection, row, quarter, shard_count, spans)
        else:
            fault = await _reservations_fault(connection, row, quarter) if counted else None
        if fault is None and quarter is not None and not quarter.says(row["bounds"]):
            fault = "with the bounds of another time"
        if fault is not None:
            findings.note(None, None, f"archived_partitions has {row['name']} {fault}")
    for parts in spans.values():
        parts.sort()
    return spans


async def _entries_fault(
    connection: asyncpg.Connection[Any], row: asyncpg.Record, quarter: Quarter, shard_count: int,
    spans: dict[int, list[tuple[int, int]]],
) -> str | None:  # fmt: skip
    count, ends = 0, {}
    outside = None
    for part in await connection.fetch(_ENDS.format(name=row["quoted"]), shard_count):
        spans.setdefault(part["shard"], []).append((part["low"], part["high"] + 1))
        count += part["high"] + 1 - part["low"]
        ends[str(part["shard"])] = {"seq": part["high"], "hash": part["hash"]}
        if not quarter.since <= part["since"] <= part["until"] < quarter.until:
            at = part["since"] if part["since"] < quarter.since else part["until"]
            outside = outside or f"with an entry of shard {part['shard']} of {time_text(ms_of(at))}, another quarter"
    if outside is not None:
        return outside
    if msgspec.json.decode(row["ends"]) != ends:
        return f"with other ends than its table has: {msgspec.json.encode(ends).decode()}"
    return None if row["entries"] == count else f"with {row['entries']} entries, its table has {count}"


async def _reservations_fault(connection: asyncpg.Connection[Any], row: asyncpg.Record, quarter: Quarter) -> str | None:
    [(count, low, high)] = await connection.fetch(_COUNT.format(name=row["quoted"]))
    if row["entries"] != count:
        return f"with {row['entries']} reservations, its table has {count}"
    if count and not _floor(quarter.since) <= UUID(low) <= UUID(high) < _floor(quarter.until):
        return "with a reservation of another quarter"
    return None
