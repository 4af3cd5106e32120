"""The backup directory: what lies in it, and who may write there.

    <id>.dump           archive of pg_dump, custom format, compressed
    <id>.json           its metadata, written last: a backup is there when this file is
    <id>.dump.partial   an archive that is being written, or whose writer was killed
    failed.json         why the last attempt failed; removed by the next good backup
    log.jsonl           every step of every command
    lock                flock of the command that writes

All files are readable by their owner alone: archives hold hashes of keys and encrypted payments.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from app.embedded.directory import sync_directory, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


class BackupRefused(Exception):
    """A backup or restore cannot be done, and nothing was changed; the text says why and what to do."""


class Head(msgspec.Struct, frozen=True):
    """Where a shard's chain ended. `hash` is that of its last entry, in hex."""

    shard: int
    generation: int
    seq: int
    hash: str


class SchemaRow(msgspec.Struct, frozen=True):
    """A migration that was applied."""

    service: str
    version: int
    name: str
    checksum: str


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of one backup. Everything but sizes is of one snapshot of the database.

    reason      why it was made: "manual", or "before 0012_serving"
    rows        rows by table, as schema.table; partitions one by one
    heads       of the chains; none before the ledger was founded
    verified_at when the archive was read from end to end after it was written
    """

    id: str
    reason: str
    database: str
    started_at: str
    finished_at: str
    verified_at: str
    app_version: str
    server_version_num: int
    server_version: str
    pg_dump_version: str
    schema_version: int
    schema: tuple[SchemaRow, ...]
    database_size_bytes: int
    size_bytes: int
    sha256: str
    rows: dict[str, int]
    heads: tuple[Head, ...]
    encoding: str
    collation: str
    character_type: str


class Failure(msgspec.Struct, frozen=True):
    """The last attempt that failed."""

    at: str
    reason: str


class BackupDirectory:
    """One directory of backups of one database."""

    def __init__(self, path: Path) -> None:
        """`path` is made by `prepare` when it is missing."""
        self.path: Final = path

    def prepare(self) -> None:
        """Make the directory. Raises BackupRefused when this user cannot write there."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError("it is not writable")
        except OSError as error:
            raise BackupRefused(
                f"uid {os.geteuid()} cannot write backups to {self.path}: {error}. "
                "Name another directory with --backup-dir or SHIELDX_BACKUP_DIR"
            ) from None

    def refuse_unreadable(self) -> None:
        """Refuse a directory that is there and cannot be looked into: it would look empty. Raises BackupRefused."""
        try:
            os.scandir(self.path).close()
        except FileNotFoundError:
            return
        except OSError as error:
            raise BackupRefused(
                f"uid {os.geteuid()} cannot read backups in {self.path}: {error.strerror}. Run this as the user who makes "
                "them, or name another directory with --backup-dir or SHIELDX_BACKUP_DIR"
            ) from None

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only one that writes here; what a killed writer left is removed. Raises BackupRefused."""
        self.prepare()
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BackupRefused(
                f"another shieldx command is writing to {self.path}: wait until it has ended, then run this again"
            ) from None
        try:
            for path in (*self.path.glob("*.partial"), *self.path.glob("*.json.*"), *self._strays()):
                path.unlink()
            yield
        finally:
            os.close(descriptor)

    def _strays(self) -> list[Path]:
        """Archives whose writer died before it wrote the metadata, or whose metadata is being pruned."""
        return [path for path in self.path.glob("shieldx-*.dump") if not path.with_suffix(".json").exists()]

    def archive(self, backup_id: str) -> Path:
        """Return the path of a backup's archive."""
        return self.path / f"{backup_id}.dump"

    def list(self) -> list[Backup]:
        """Return all backups whose metadata can be read, oldest first."""
        found = []
        for path in self.path.glob("*.json"):
            if path.name == "failed.json":
                continue
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found.append(msgspec.json.decode(path.read_bytes(), type=Backup))
        return sorted(found, key=lambda one: (one.started_at, one.id))

    def read(self, backup_id: str) -> Backup:
        """Return one backup; "latest" is the newest. Raises BackupRefused."""
        self.refuse_unreadable()
        known = self.list()
        if backup_id == "latest" and known:
            return known[-1]
        for one in known:
            if one.id == backup_id:
                return one
        if not _ID.match(backup_id):
            raise BackupRefused(f"{backup_id!r} is no backup's id; `shieldx backup list` shows them")
        names = ", ".join(one.id for one in known[-5:]) or "none"
        raise BackupRefused(f"there is no backup {backup_id} in {self.path} (newest: {names}); see `shieldx backup list`")

    def write(self, backup: Backup) -> None:
        """Make a backup known; its archive is on disk already."""
        write_whole(self.path / f"{backup.id}.json", msgspec.json.format(msgspec.json.encode(backup)).decode() + "\n")
        (self.path / "failed.json").unlink(missing_ok=True)

    def note_failure(self, failure: Failure) -> None:
        """Remember that an attempt failed, for the metrics of servers that watch this directory.

        A full disk, which is why most fail, takes no text any more: then an empty file says that one has.
        """
        path = self.path / "failed.json"
        try:
            write_whole(path, msgspec.json.encode(failure).decode() + "\n")
        except OSError:
            with contextlib.suppress(OSError):
                path.touch(mode=0o600)

    def last_failure(self) -> Failure | None:
        """Return the attempt that has failed since the last good backup; without its text where there was no room for it."""
        try:
            return msgspec.json.decode((self.path / "failed.json").read_bytes(), type=Failure)
        except msgspec.DecodeError:
            return Failure("", "see log.jsonl: there was no room to note the reason here")
        except OSError:
            return None

    def remove(self, backup: Backup) -> None:
        """Remove a backup: its metadata first, so that it is never known without its archive."""
        (self.path / f"{backup.id}.json").unlink(missing_ok=True)
        sync_directory(self.path)
        self.archive(backup.id).unlink(missing_ok=True)
