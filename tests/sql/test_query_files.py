"""Every file in sql/queries: Postgres takes it, its header is true, somebody uses it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import app
from app.db.resources import resource_dir
from app.db.sql import query

FILES = sorted((resource_dir("sql") / "queries").glob("*.sql"))
MIGRATIONS = sorted((resource_dir("sql") / "migrations").glob("*.sql"))
SOURCE = "\n".join(path.read_text() for path in Path(app.__file__).parent.rglob("*.py"))


def header_of(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if line.startswith("--"))


def params(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\$(\d+)", text)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_postgres_takes_the_statement_as_the_servers_role(server_role: asyncpg.Connection[Any], path: Path) -> None:
    statement = await server_role.prepare(query(path.stem))

    assert len(statement.get_parameters()) == len(params(header_of(path)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_names_exactly_the_parameters(path: Path) -> None:
    header = header_of(path)
    body = path.read_text().replace(header, "")

    assert params(header) == params(body) == set(range(1, len(params(body)) + 1))
    assert re.search(r"\bParams[:,] |\bNo params\b", header)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_statement_is_one_and_is_used(path: Path) -> None:
    assert ";" not in re.sub(r"--[^\n]*", "", path.read_text()).rstrip().rstrip(";")
    assert f'query("{path.stem}")' in SOURCE


def test_no_query_is_asked_for_that_is_not_there() -> None:
    assert set(re.findall(r'\bquery\("(\w+)"\)', SOURCE)) == {path.stem for path in FILES}


def test_every_migration_goes_both_ways_and_numbers_have_no_gap() -> None:
    ups = [path.name.removesuffix(".up.sql") for path in MIGRATIONS if path.name.endswith(".up.sql")]
    downs = [path.name.removesuffix(".down.sql") for path in MIGRATIONS if path.name.endswith(".down.sql")]

    assert ups == downs
    assert [int(name[:4]) for name in ups] == list(range(1, len(ups) + 1))
    assert len(ups) + len(downs) == len(MIGRATIONS)


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.name)
def test_a_migration_says_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("-- ")
