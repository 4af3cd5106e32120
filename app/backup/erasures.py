"""Erasures that a backup does not know of: carried from the database that it replaces, and done again.

Whoever was erased after a backup was made lies in it whole, record and wrapped key. A restore must not bring anybody back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import orjson

from app.backup.create import CONNECT_TIMEOUT_S
from app.privacy.store import ERASURE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_TABLE: Final = "SELECT to_regclass('public.private_erasures')"
_READ: Final = "SELECT erasure_id, tombstone, erased_at FROM public.private_erasures WHERE kind = $1 ORDER BY erased_at"
# Not yet in the chain that is restored, so the first server enters it.
_CARRY: Final = """
INSERT INTO public.private_erasures (erasure_id, kind, tombstone, erased_at) SELECT u.*
FROM unnest($1::uuid[], array_fill($2::text, ARRAY[cardinality($1::uuid[])]), $3::text[], $4::timestamptz[]) AS u
ON CONFLICT (erasure_id) DO NOTHING
"""
_RECORDS: Final = "DELETE FROM public.private_records WHERE dek_id = ANY ($1) RETURNING 1"
_KEYS: Final = "DELETE FROM public.private_keys WHERE dek_id = ANY ($1)"


class Erased(NamedTuple):
    """An erasure as private_erasures has it; it names keys, and nobody."""

    erasure_id: str
    tombstone: str
    erased_at: datetime

    @property
    def keys(self) -> list[bytes]:
        """Ids of the data keys that were destroyed; none if the row was spoilt by hand."""
        try:
            return [bytes.fromhex(key) for key in orjson.loads(self.tombstone)["keys"]]
        except (ValueError, KeyError, TypeError):
            return []


async def read_erasures(url: str) -> list[Erased]:
    """Return what was erased in a database, oldest first; nothing if it has no private data yet."""
    connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        if await connection.fetchval(_TABLE) is None:
            return []
        return [Erased(str(row[0]), row[1], row[2]) for row in await connection.fetch(_READ, ERASURE)]
    finally:
        await connection.close()


async def erase_again(url: str, erased: Sequence[Erased]) -> int:
    """Destroy in a database what was erased in another, in one transaction; return how many records that were.

    Each erasure goes with it, and stands as not yet entered into the chain: the tombstone that the chain had is lost.
    """
    connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        if not erased or await connection.fetchval(_TABLE) is None:
            return 0
        keys = [key for one in erased for key in one.keys]
        async with connection.transaction():
            records: list[Any] = await connection.fetch(_RECORDS, keys)
            await connection.execute(_KEYS, keys)
            await connection.execute(
                _CARRY, [one.erasure_id for one in erased], ERASURE, [one.tombstone for one in erased],
                [one.erased_at for one in erased],
            )  # fmt: skip
        return len(records)
    finally:
        await connection.close()
