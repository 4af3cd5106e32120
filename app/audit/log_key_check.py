"""Whether log_keys names the keys that the chain tells of: who asks a server for its keys is to get no other.

Each change is an entry `log_key.rotate`, written with the rows; it stands in pending_entries until the chain has it.
The first keys of a log make no entry: they are known from the first change, and before that from the newest checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from app.audit.key_check import PENDING_SQL
from app.audit.log import log_origin
from app.audit.note import NoteRefused, Verifier
from app.clock import ms_of, time_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import asyncpg

    from app.audit.entry import Record
    from app.audit.state import Findings

LOG_KEY_ENTRY: Final = "log_key.rotate"
_NOTED: Final = "SELECT shard, vkey, since, from_size, retired_at, until_size FROM log_keys ORDER BY shard, vkey"
_SIGNED: Final = "SELECT size, signers FROM audit_checkpoints WHERE shard = $1 ORDER BY size DESC, signed_at DESC LIMIT 1"


class ToldLogKey(NamedTuple):
    """A key as changes tell of it; None of what the first keys of a log had before the first change."""

    since: str | None
    from_size: int | None
    retired_at: str | None = None
    until_size: int | None = None


class Change(msgspec.Struct):
    """The details of a change, as far as they are compared."""

    shard: int
    size: int
    added: list[str]
    retired: list[str]
    signing: list[str]
    at: str = ""
    entry_id: str = ""


async def compare_log_keys(
    connection: asyncpg.Connection[Any], origin: str, records: Iterable[Record], findings: Findings
) -> None:
    """Hold log_keys against what the chain, pending entries and checkpoints tell, in both directions; note what differs."""
    if findings.broken:
        return
    changes: dict[str, Change] = {}
    for one in records:
        if one.type == LOG_KEY_ENTRY:
            change = msgspec.convert(one.details, Change)
            changes[change.entry_id] = change
    for row in await connection.fetch(PENDING_SQL, [LOG_KEY_ENTRY]):
        change = msgspec.json.decode(row["details"], type=Change)
        change.at = time_text(ms_of(row["at"]))
        changes.setdefault(row["entry_id"], change)
    told = _told(changes.values())
    for row in await connection.fetch(_NOTED):
        shard, vkey = row["shard"], row["vkey"]
        if shard in told:
            fault = _fault(row, told[shard].pop(vkey, None))
        else:
            fault = _first_fault(row, origin, await connection.fetchrow(_SIGNED, shard))
        if fault is not None:
            findings.note(None, None, f"log_keys has key {vkey} of shard {shard} {fault}")
            return
    for shard, keys in told.items():
        if keys:
            findings.note(None, None, f"log_keys has no row for key {min(keys)} of shard {shard}, which the chain tells of")
            return


def _told(changes: Iterable[Change]) -> dict[int, dict[str, ToldLogKey]]:
    """Return the keys of each shard that has changed its keys."""
    told: dict[int, dict[str, ToldLogKey]] = {}
    for one in sorted(changes, key=lambda change: (change.at, change.size)):
        first = one.shard not in told
        keys = told.setdefault(one.shard, {})
        if first:
            before = {*one.signing, *one.retired}.difference(one.added)
            keys.update((vkey, ToldLogKey(None, None)) for vkey in before)
        for vkey in one.added:
            known = keys.get(vkey, ToldLogKey(one.at, one.size))
            keys[vkey] = known._replace(retired_at=None, until_size=None)
        for vkey in one.retired:
            known = keys.get(vkey, ToldLogKey(None, None))
            keys[vkey] = known._replace(retired_at=one.at, until_size=one.size)
    return told


def _fault(row: Mapping[str, Any], told: ToldLogKey | None) -> str | None:
    """Return how a row differs from what is told of its key."""
    if told is None:
        return "of which the chain does not tell"
    retired_at = None if row["retired_at"] is None else time_text(ms_of(row["retired_at"]))
    if (retired_at, row["until_size"]) != (told.retired_at, told.until_size):
        return "which is retired otherwise than the chain tells"
    if told.from_size is not None and (time_text(ms_of(row["since"])), row["from_size"]) != (told.since, told.from_size):
        return "which signs from elsewhere on than the chain tells"
    return None


def _first_fault(row: Mapping[str, Any], origin: str, newest: Mapping[str, Any] | None) -> str | None:
    """Return what is wrong with a key of a log whose keys have never changed."""
    if row["retired_at"] is not None or row["until_size"] is not None:
        return "which is retired, and the chain does not tell of it"
    try:
        key = Verifier.from_vkey(row["vkey"])
    except NoteRefused as error:
        return f"which cannot be one: {error}"
    if key.name != log_origin(origin, row["shard"]):
        return "which is named after another log"
    # Keys are noted a moment before they sign; until then the newest checkpoint is of those before.
    if newest is None or newest["size"] <= row["from_size"] or key.key_id.hex() in newest["signers"].split("+"):
        return None
    return "which has not signed the newest checkpoint"
