"""Another master key: every wrapped data key is wrapped again, in batches, while servers go on.

First every server gets the new key as the current one with the old one behind it; then this runs; then the old one may go.
What is wrapped already is not touched, so a run that was cut off is simply run again. Encrypted data does not change.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from app.db.postgres import open_session
from app.db.sql import query
from app.privacy.envelope import MasterKeyRefused, Sealed, read_master_keys

if TYPE_CHECKING:
    from app.privacy.envelope import MasterKeys

BATCH: Final = 500  # keys of one transaction: rows are locked for some 20 ms
EXIT_DONE: Final = 0
EXIT_LEFT: Final = 1
EXIT_REFUSED: Final = 2


class Rotation(NamedTuple):
    """How many keys were wrapped again, how many could not be opened, and which master keys still hold how many."""

    rewrapped: int
    sealed: int
    left: dict[str, int]


async def rewrap(connection: asyncpg.Connection[Any], masters: MasterKeys, batch: int = BATCH) -> Rotation:
    """Wrap every data key by the current master key. Keys that cannot be opened stay as they are, and are counted."""
    done = sealed = 0
    after = ""
    while True:
        async with connection.transaction():
            rows = await connection.fetch(query("private_keys_under_others"), masters.current_id, after, batch)
            changed = []
            for subject, dek_id, kek_id, wrapped in rows:
                try:
                    changed.append((subject, dek_id, masters.current_id, masters.rewrap(kek_id, wrapped, subject, dek_id)))
                except Sealed:
                    sealed += 1
            await connection.executemany(
                "UPDATE private_keys SET kek_id = $3, wrapped = $4 WHERE subject = $1 AND dek_id = $2", changed
            )
        done += len(changed)
        if len(rows) < batch:
            break
        after = rows[-1]["subject"]
    left = await connection.fetch(
        "SELECT kek_id, count(*) FROM private_keys WHERE kek_id <> $1 GROUP BY 1", masters.current_id
    )
    return Rotation(done, sealed, {kek_id.hex(): count for kek_id, count in left})


def _given_keys() -> MasterKeys:
    masters = read_master_keys(os.environ)
    if masters is None:
        raise MasterKeyRefused("set SHIELDX_MASTER_KEYS or SHIELDX_MASTER_KEY_FILE: the new key first, then the old one")
    return masters


def run_rotation(database_url: str) -> int:
    """Rotate to the first key of SHIELDX_MASTER_KEYS or SHIELDX_MASTER_KEY_FILE; print the outcome, return the exit code.

    0: every key is under the current master key. 1: some are not. 2: the keys or the database cannot be used.
    """

    async def rotate(masters: MasterKeys) -> Rotation:
        connection = await open_session(database_url)
        try:
            return await rewrap(connection, masters)
        finally:
            await connection.close()

    try:
        masters = _given_keys()
        rotation = asyncio.run(rotate(masters))
    except (MasterKeyRefused, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        sys.stderr.write(f"could not rotate: {error}\n")
        return EXIT_REFUSED
    sys.stdout.write(f"{rotation.rewrapped} keys wrapped by master key {masters.current_id.hex()}\n")
    for kek_id, count in rotation.left.items():
        sys.stdout.write(f"{count} keys are still wrapped by master key {kek_id}\n")
    return EXIT_LEFT if rotation.left else EXIT_DONE
