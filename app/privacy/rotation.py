"""Another master key: every wrapped data key is wrapped again, in batches, while servers go on.

Servers know the new key as the current one, with the old one behind it, before it is used: those that read it from a file
read that again within seconds, or as soon as they meet a key that is wrapped by one they do not know. What is wrapped
already is not touched, so a run that was cut off is simply run again. Encrypted data does not change.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from app.db.postgres import open_session
from app.db.sql import query
from app.embedded.directory import write_whole
from app.privacy.envelope import (
    KEY_BYTES,
    MASTER_KEYS_MAX,
    MasterKeyRefused,
    Sealed,
    make_master_key_file,
    read_master_keys,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.privacy.envelope import MasterKeys

BATCH: Final = 500  # keys of one transaction: rows are locked for some 20 ms
RELOAD_WAIT_S: Final = 6.0  # servers read the file again every 5 s
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


def add_master_key(path: Path) -> MasterKeys:
    """Make a new key the current one of a key file; the file is replaced as a whole, mode 0600.

    Raises MasterKeyRefused when the file holds as many keys as it may; OSError.
    """
    masters = make_master_key_file(path)
    if len(masters.ids) >= MASTER_KEYS_MAX:
        raise MasterKeyRefused(f"{path} holds {MASTER_KEYS_MAX} keys: take out old ones that no backup needs")
    # It is there also after a power cut before anything is wrapped under the new key.
    write_whole(path, f"{secrets.token_hex(KEY_BYTES)}\n{path.read_text()}")
    return make_master_key_file(path)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Be the only rotation of a key file: of two that read it together, one would write over the key of the other, under
    which data keys may be wrapped already. The lock is on the directory, because the file itself is replaced.

    Raises MasterKeyRefused while another one runs; OSError.
    """
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MasterKeyRefused(f"another rotation of {path} is running: run this again when it has ended") from None
        yield
    finally:
        os.close(descriptor)


async def rotate(database_url: str, key_file: Path | None, wait_s: float = RELOAD_WAIT_S) -> tuple[MasterKeys, Rotation]:
    """Wrap every data key by the current master key, and return both that and what was done.

    key_file  of a data directory: gets a new key first, unless a rotation before was cut off. None: the keys are those of
              SHIELDX_MASTER_KEYS or SHIELDX_MASTER_KEY_FILE, and whoever set them has put the new one first.
    Raises MasterKeyRefused, OSError, asyncpg's errors.
    """
    if key_file is not None:
        with alone(key_file):
            return await _rotate_file(database_url, key_file, wait_s)
    masters = read_master_keys(os.environ)
    if masters is None:
        raise MasterKeyRefused("set SHIELDX_MASTER_KEYS or SHIELDX_MASTER_KEY_FILE: the new key first, then the old one")
    connection = await open_session(database_url)
    try:
        return masters, await rewrap(connection, masters)
    finally:
        await connection.close()


async def _rotate_file(database_url: str, key_file: Path, wait_s: float) -> tuple[MasterKeys, Rotation]:
    masters = make_master_key_file(key_file)
    connection = await open_session(database_url)
    try:
        done = await rewrap(connection, masters)
        # Something was wrapped: a rotation before was cut off, and this one has ended it. What nobody can open does not
        # stand in the way of a new key; but a file that opens nothing at all is the wrong one, and stays as it is.
        if not done.rewrapped and (not done.left or await _wraps_some(connection, masters)):
            masters = add_master_key(key_file)
            done = await rewrap(connection, masters)
        # Until they have read the file again, servers wrap the keys of new subjects by the key before.
        await asyncio.sleep(wait_s)
        late = await rewrap(connection, masters)
        return masters, late._replace(rewrapped=done.rewrapped + late.rewrapped)
    finally:
        await connection.close()


async def _wraps_some(connection: asyncpg.Connection[Any], masters: MasterKeys) -> bool:
    found = await connection.fetchval("SELECT EXISTS (SELECT FROM private_keys WHERE kek_id = $1)", masters.current_id)
    return bool(found)


def run_rotation(database_url: str, key_file: Path | None) -> int:
    """Rotate as `rotate` does; print the outcome, return the exit code.

    0: every key is under the current master key. 1: some are not. 2: the keys or the database cannot be used.
    """
    try:
        masters, rotation = asyncio.run(rotate(database_url, key_file))
    except asyncpg.UndefinedTableError:
        sys.stderr.write(
            "could not rotate: the database has no private data of this release yet: run `shieldx migrate up` on it\n"
        )
        return EXIT_REFUSED
    except (MasterKeyRefused, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        sys.stderr.write(f"could not rotate: {error}\n")
        return EXIT_REFUSED
    sys.stdout.write(f"{rotation.rewrapped} keys wrapped by master key {masters.current_id.hex()}\n")
    for kek_id, count in rotation.left.items():
        sys.stdout.write(f"{count} keys are still wrapped by master key {kek_id}\n")
    return EXIT_LEFT if rotation.left else EXIT_DONE
