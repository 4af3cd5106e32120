"""Which keys each log is signed with, and was: a change is an entry, so that who trusts an old key can learn the new one.

The entry `log_key.rotate` carries the verifier keys. While two keys overlap, both sign the checkpoint that covers it: a
verifier who has the old key checks the entry's receipt by it, and takes the new key from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from app.db.sql import query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from app.audit.note import Verifier
    from app.audit.shard import Shard
    from app.db.statements import Statements


class NotedKey(NamedTuple):
    """A key that signs a log or has signed it, and the sizes between which all of its checkpoints lie; None: no end."""

    shard: int
    vkey: str
    since: datetime
    from_size: int
    retired_at: datetime | None
    until_size: int | None


class LogKeys:
    """Notes what the shards that this process writes are signed with."""

    def __init__(self, statements: Statements, shards: Sequence[Shard], keys: Mapping[int, Sequence[Verifier]]) -> None:
        """`keys` by shard: those that sign in this process."""
        self._statements = statements
        self._shards = shards
        self._keys = keys
        self._noted: dict[int, int] = {}

    async def note(self) -> None:
        """Note the keys of shards that this process has begun to write. Raises what asyncpg raises, and TimeoutError.

        The first keys of a log are no change, so they make no entry.
        """
        for shard in self._shards:
            epoch = shard.epoch
            if not shard.leading or self._noted.get(shard.number) == epoch:
                continue
            keys = self._keys[shard.number]
            vkeys, signers = [key.vkey for key in keys], "+".join(key.key_id.hex() for key in keys)
            await self._statements.rows(query("note_log_keys"), shard.number, shard.origin, vkeys, signers)
            self._noted[shard.number] = epoch

    async def known(self) -> list[NotedKey]:
        """Return all keys that were noted, by shard, those that sign first, then the newest first."""
        rows = await self._statements.rows(
            "SELECT shard, vkey, since, from_size, retired_at, until_size FROM log_keys "
            "ORDER BY shard, retired_at DESC NULLS FIRST, from_size DESC, vkey"
        )
        return [NotedKey(*row) for row in rows]
