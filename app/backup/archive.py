"""Archives: pg_dump writes one, pg_restore reads it to its end, and both belong to the server's own major version."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from app.backup.directory import BackupRefused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from app.embedded.binaries import PostgresPrograms
    from app.progress import Progress

CHUNK_BYTES: Final = 1 << 20  # of an archive at a time: large enough that Python's share is small
COMPRESSION_LEVEL: Final = 6  # of gzip, which every build of PostgreSQL has; the embedded one has no other
REASON_CHARACTERS: Final = 1_000  # of what a program said last
RESTORE_JOBS_MAX: Final = 4  # sessions that load tables side by side; the server has other callers


def with_database(url: str, name: str) -> str:
    """Return the URL of another database on the same server."""
    parts = urlsplit(url)
    query = urlencode([pair for pair in parse_qsl(parts.query) if pair[0] not in {"dbname", "database"}], quote_via=quote)
    return urlunsplit(parts._replace(path=f"/{quote(name, safe='')}", query=query))


def _login(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without its password, and the environment that carries it: command lines are public."""
    parts = urlsplit(url)
    userinfo, at, hosts = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    pairs = parse_qsl(parts.query)
    password = dict(pairs).get("password", unquote(password))
    query = urlencode([pair for pair in pairs if pair[0] != "password"], quote_via=quote)
    environment = (
        os.environ | {"LC_ALL": "C", "PGAPPNAME": "shieldx backup"} | ({"PGPASSWORD": password} if password else {})
    )
    return urlunsplit(parts._replace(netloc=f"{user}{at}{hosts}", query=query)), environment


async def write_archive(
    programs: PostgresPrograms, url: str, snapshot: str, path: Path, progress: Progress
) -> tuple[int, str]:
    """Dump the database at `url`, as `snapshot` shows it, to a new file; return its bytes and SHA-256 in hex.

    The file is on disk when this returns. Raises BackupRefused with what pg_dump said, and for a full disk.
    """
    shown_url, environment = _login(url)
    process = await asyncio.create_subprocess_exec(
        programs.pg_dump, f"--dbname={shown_url}", "--format=custom", f"--compress={COMPRESSION_LEVEL}", "--no-password",
        f"--snapshot={snapshot}", "--lock-wait-timeout=60s",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
        limit=CHUNK_BYTES,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    said = asyncio.create_task(process.stderr.read())
    digest, size_bytes = hashlib.sha256(), 0
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            while chunk := await process.stdout.read(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                size_bytes += len(chunk)
                progress.update(size_bytes)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        if await process.wait() != 0:
            raise BackupRefused(f"pg_dump failed: {_last(await said)}")
    except OSError as error:
        raise BackupRefused(f"cannot write {path}: {error.strerror}. Free space there, or name another directory") from None
    finally:
        await _end(process)
        await said
        progress.close()
    return size_bytes, digest.hexdigest()


async def read_archive(programs: PostgresPrograms, path: Path, progress: Progress) -> str:
    """Read an archive from end to end, as a restore would; return its SHA-256 in hex.

    `pg_restore --list` would not do: it takes a file whose end is cut off. Raises BackupRefused when it cannot be read.
    """
    digest = await asyncio.to_thread(_digest, path, progress)
    progress.close()
    process = await asyncio.create_subprocess_exec(
        programs.pg_restore, "--file=/dev/null", path,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = await process.communicate()
    finally:
        await _end(process)
    if process.returncode != 0:
        raise BackupRefused(f"the archive {path.name} cannot be read to its end: {_last(said)}. Use another backup")
    return digest


def _digest(path: Path, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                progress.update(done)
    except OSError as error:
        raise BackupRefused(f"cannot read {path}: {error.strerror}. Use another backup") from None
    return digest.hexdigest()


async def load_archive(programs: PostgresPrograms, url: str, path: Path) -> None:
    """Load an archive into the empty database at `url`; what it holds belongs to the role of the URL then.

    Raises BackupRefused at the first statement that fails, with what pg_restore said.
    """
    shown_url, environment = _login(url)
    jobs = min(RESTORE_JOBS_MAX, len(os.sched_getaffinity(0)))
    words: Sequence[str] = ("--no-owner", "--exit-on-error", "--no-password", f"--jobs={jobs}")
    process = await asyncio.create_subprocess_exec(
        programs.pg_restore, f"--dbname={shown_url}", *words, path,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        _, said = await process.communicate()
    finally:
        await _end(process)
    if process.returncode != 0:
        raise BackupRefused(f"pg_restore failed: {_last(said)}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a program that still runs, because the work was cancelled or failed."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _last(said: bytes) -> str:
    return said.decode(errors="replace").strip()[-REASON_CHARACTERS:] or "it said nothing"
