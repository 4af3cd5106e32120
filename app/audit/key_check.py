"""Whether the API keys in Postgres are those that the chain tells of: none slipped in, raised, swapped or brought back.

A key and the entry that tells of it are written together; until the chain has that entry it stands in pending_entries, which
counts as well, because it will be in the chain in a moment.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from app.clock import ms_of, time_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import asyncpg

    from app.audit.entry import Record
    from app.audit.state import Findings

ROUNDING_MS: Final = 1  # a time with microseconds and the same an overlap later may be rounded otherwise
KEY_ENTRIES: Final = ("key.create", "key.rotate", "key.revoke")  # as they may follow each other
PENDING_SQL: Final = """
    SELECT entry_id::text AS entry_id, at, kind, details::text AS details
    FROM pending_entries WHERE recorded_at IS NULL AND kind = ANY($1)
"""
_KEYS: Final = """
    SELECT key_id, encode(hash, 'hex') AS hash, role, tenants, services, rate_per_s, burst, expires_at, revoked_at,
           replaced_by
    FROM api_keys ORDER BY key_id
"""


class ToldKey(NamedTuple):
    """A key as entries tell of it. `hash` is None where an entry of an older release does not name it.

    replaced_end_ms  Unix ms at which it ends beside its successor; None when the entry does not say it
    """

    hash: str | None
    rights: tuple[Any, ...]
    expires_at: str | None
    successor: str | None = None
    replaced_end_ms: int | None = None
    revoked: bool = False


async def compare_keys(connection: asyncpg.Connection[Any], records: Iterable[Record], findings: Findings) -> None:
    """Hold api_keys against what the chain and pending entries tell, in both directions; note the first that differs."""
    if findings.broken:
        return
    changes = [
        (str((one.details or {}).get("at")), one.type, one.details or {}) for one in records if one.type in KEY_ENTRIES
    ]
    changes += [
        (time_text(ms_of(row["at"])), row["kind"], msgspec.json.decode(row["details"]))
        for row in await connection.fetch(PENDING_SQL, list(KEY_ENTRIES))
    ]
    told: dict[str, ToldKey] = {}
    # Replicas hand their entries over side by side, so the chain may have them in another order than they were made.
    for at, kind, details in sorted(changes, key=lambda change: (change[0], KEY_ENTRIES.index(change[1]))):
        _take(told, at, kind, details)
    for row in await connection.fetch(_KEYS):
        fault = key_fault(row, told.pop(row["key_id"], None))
        if fault is not None:
            findings.note(None, None, f"api_keys has key {row['key_id']} {fault}")
            return
    if told:
        findings.note(None, None, f"api_keys has no row for key {min(told)}, which the chain tells of")


def key_fault(row: Mapping[str, Any], told: ToldKey | None) -> str | None:
    """Return how a row differs from what is told of its key."""
    if told is None:
        return "of which the chain does not tell"
    if told.hash is not None and row["hash"] != told.hash:
        return "with another secret than the chain tells of"
    rate_milli = None if row["rate_per_s"] is None else round(row["rate_per_s"] * 1000)
    if _rights(row["role"], row["tenants"], row["services"], rate_milli, row["burst"]) != told.rights:
        return "with other rights than the chain tells of"
    if (row["revoked_at"] is not None, row["replaced_by"]) != (told.revoked, told.successor):
        return "which is revoked or replaced otherwise than the chain tells"
    ends = None if row["expires_at"] is None else time_text(ms_of(row["expires_at"]))
    right = ends == told.expires_at
    if told.successor is not None:  # the database has dated its end, not later than the one that it had
        right = ends is not None and ends <= (told.expires_at or ends)
        if right and told.replaced_end_ms is not None:
            right = abs(ms_of(row["expires_at"]) - told.replaced_end_ms) <= ROUNDING_MS
    return None if right else "which ends at another time than the chain tells"


def _take(told: dict[str, ToldKey], at: str, kind: str, details: Mapping[str, Any]) -> None:
    key_id = str(details.get("key_id"))
    known = told.get(key_id)
    if kind == "key.create":
        rights = (details.get(name) for name in ("role", "tenants", "services", "rate_milli", "burst"))
        told.setdefault(key_id, ToldKey(details.get("hash"), _rights(*rights), details.get("expires_at")))
    elif known is not None and kind == "key.revoke":
        told[key_id] = known._replace(revoked=True)
    elif known is not None:
        successor = str(details.get("new_key_id"))
        told[key_id] = known._replace(successor=successor, replaced_end_ms=_replaced_end_ms(known, at, details))
        told.setdefault(successor, ToldKey(details.get("hash"), known.rights, details.get("expires_at")))


def _replaced_end_ms(known: ToldKey, at: str, details: Mapping[str, Any]) -> int | None:
    """Return when a key ends that was replaced `at`: after the overlap, or when it would have ended anyway."""
    overlap_s = details.get("overlap_seconds")
    try:
        ends = [] if known.expires_at is None else [ms_of(datetime.fromisoformat(known.expires_at))]
        return None if overlap_s is None else min([*ends, ms_of(datetime.fromisoformat(at)) + int(overlap_s) * 1000])
    except (ValueError, TypeError, OverflowError):
        return None


def _rights(role: Any, tenants: Any, services: Any, rate_milli: Any, burst: Any) -> tuple[Any, ...]:
    return role, *(None if names is None else tuple(sorted(set(names))) for names in (tenants, services)), rate_milli, burst
