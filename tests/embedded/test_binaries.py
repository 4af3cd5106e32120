"""Which programs may open which data."""

import json
from pathlib import Path

import pytest

from app.embedded import DataDirectoryRefused, EmbeddedServers
from app.embedded.binaries import find_postgres, find_redis
from app.embedded.directory import DataDirectory


def ignore_exit(_name: str, _code: int) -> None:
    """Take no note of a restart."""


async def test_data_of_an_absent_postgres_is_refused_with_what_to_do(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit):
        pass
    (data_dir / "postgres" / "PG_VERSION").write_text("9\n")

    with pytest.raises(DataDirectoryRefused, match=r"PostgreSQL 9\b.*on PATH.*dump"):
        await EmbeddedServers(data_dir, on_exit=ignore_exit).__aenter__()


async def test_directory_without_a_postgres_version_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "precious").touch()

    with pytest.raises(DataDirectoryRefused, match="PG_VERSION"):
        await EmbeddedServers(data_dir, on_exit=ignore_exit).__aenter__()

    assert (data_dir / "postgres" / "precious").exists()


async def test_existing_data_decides_the_major_version() -> None:
    newest = await find_postgres(None)

    same = await find_postgres(newest.version[0])

    assert same == newest
    assert same.postgres.is_file()
    assert same.initdb.is_file()


@pytest.mark.parametrize(
    "mark",
    [
        {"kind": "valkey", "version": [99, 0, 0]},
        {"kind": "redis", "version": [99, 0, 0]},
        {"kind": "keydb", "version": [6, 0, 0]},
    ],
)
async def test_redis_data_of_a_later_version_or_another_kind_is_refused(data_dir: Path, mark: dict[str, object]) -> None:
    data = DataDirectory.at(data_dir)
    data.redis_mark.write_text(json.dumps(mark))

    with pytest.raises(DataDirectoryRefused, match=rf"written by {mark['kind']} "):
        await EmbeddedServers(data_dir, on_exit=ignore_exit).__aenter__()

    assert json.loads((data_dir / "redis.json").read_text()) == mark


async def test_redis_data_is_marked_with_what_wrote_it(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit):
        pass
    binary = await find_redis(None)

    mark = json.loads((data_dir / "redis.json").read_text())

    assert mark == {"kind": binary.kind, "version": list(binary.version)}
    older_patch = (binary.kind, (*binary.version[:2], 0))
    assert await find_redis(older_patch) == binary
