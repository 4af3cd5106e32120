"""Tombstones: entered into the chain for what was destroyed, and read from it to tell erased data from missing data."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import orjson

from app.clock import ms_of, time_text
from app.privacy.store import ERASURE, RETENTION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import asyncpg

    from app.privacy.store import PrivateStore, RecordFact

TOMBSTONES: Final = frozenset({ERASURE, RETENTION})
# A record is kept before its entry is made; a client that was told to try again may do so for a day.
ENTRY_LAG: Final = timedelta(hours=26)

State = Literal["verified", "erased", "missing"]

BATCH: Final = 100  # tombstones of one round; an erasure is a rare thing
# Destroyed with what names it in one transaction, but the chain has the tombstone only a moment later: until then it counts
# here, as pending entries of keys do.
WAITING_SQL: Final = "SELECT kind, tombstone FROM private_erasures WHERE entered_at IS NULL"
# A record whose key is gone can be read by nobody, so it is not there.
EVIDENCE_SQL: Final = "SELECT record_id, commitment, dek_id FROM private_records JOIN private_keys USING (subject, dek_id)"


async def enter_tombstones(store: PrivateStore, record: RecordFact) -> int:
    """Enter what is not known to be in the chain, oldest first; return how many. Cut off anywhere, the next run goes on.

    The erasure id is the `entry_id` of the details, under which `record` enters once: an entry that was made before a crash
    is not made again.
    """
    erasures = await store.open_erasures(BATCH)
    for erasure in erasures:
        await record(erasure.kind, orjson.loads(erasure.tombstone))
        await store.entered(erasure.erasure_id)
    return len(erasures)


class Claim(NamedTuple):
    """What an entry of the chain says of its private record; `at` is RFC 3339 UTC, as in the entry."""

    record_id: str
    commitment: bytes
    dek_id: bytes
    at: str
    kind: str

    @property
    def record(self) -> tuple[str, bytes, bytes]:
        """Of which record it speaks: a record id is given again when the first that had it was destroyed."""
        return self.record_id, self.commitment, self.dek_id


def _later(text: str) -> str:
    """Return a time as text, ENTRY_LAG later; empty when it is none."""
    try:
        return time_text(ms_of(datetime.fromisoformat(text) + ENTRY_LAG))
    except (ValueError, OverflowError):
        return ""


def _details(tombstone: str) -> Mapping[str, Any]:
    """Return what a tombstone says; nothing if somebody has spoilt it."""
    try:
        found = orjson.loads(tombstone)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


class Evidence:
    """What there is of private records, and what the chain says was destroyed of them. Pure but for `read`."""

    def __init__(
        self, records: Mapping[str, tuple[bytes, bytes]], tombstones: Iterable[tuple[str, Mapping[str, Any]]]
    ) -> None:
        """`records` are commitment and key id by record id; `tombstones` type and details of each that there is."""
        self._records = records
        self._keys: set[str] = set()
        self._before: dict[str, str] = {}
        self._told: dict[str, int] = {}
        self.hear(tombstones)

    def hear(self, tombstones: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Take further tombstones, type and details of each."""
        for kind, details in tombstones:
            self._count(kind, details)
            if kind == ERASURE:
                keys = details.get("keys")
                self._keys.update(map(str, keys if isinstance(keys, list) else ()))
            elif kind == RETENTION:
                name, before = str(details.get("class")), _later(str(details.get("before")))
                self._before[name] = max(self._before.get(name, ""), before)

    def tells_of(self, claims: Iterable[Claim]) -> bool:
        """Return whether it says of one of these records that it is destroyed."""
        return any(self.state(claim) == "erased" for claim in claims)

    def _count(self, kind: str, details: Mapping[str, Any]) -> None:
        records = details.get("records")
        counts = {str(details.get("class")): records} if kind == RETENTION else records
        for name, count in counts.items() if isinstance(counts, dict) else ():
            if isinstance(count, int):
                self._told[str(name)] = self._told.get(str(name), 0) + count

    def told(self, kind: str) -> int:
        """Return how many records of a class were destroyed, as the tombstones tell."""
        return self._told.get(kind, 0)

    @classmethod
    async def read(
        cls, connection: asyncpg.Connection[Any], tombstones: Iterable[tuple[str, Mapping[str, Any]]]
    ) -> Evidence:
        """Read the records over a connection, in whatever transaction it stands. About 150 bytes of memory a record.

        tombstones  those of the chain; those that wait for it are read as well
        """
        rows = await connection.fetch(EVIDENCE_SQL)
        waiting = [(row["kind"], _details(row["tombstone"])) for row in await connection.fetch(WAITING_SQL)]
        return cls({row[0]: (row[1], row[2]) for row in rows}, [*tombstones, *waiting])

    def state(self, claim: Claim) -> State:
        """Return what became of the record of an entry.

        verified  the record is there, with the commitment and the key that the entry names
        erased    it is not there, and there is a tombstone of its key, or of its class and a later time
        missing   neither: somebody has tampered, or put another record in its place
        """
        if self._records.get(claim.record_id) == (claim.commitment, claim.dek_id):
            return "verified"
        if claim.dek_id.hex() in self._keys or claim.at < self._before.get(claim.kind, ""):
            return "erased"
        return "missing"
