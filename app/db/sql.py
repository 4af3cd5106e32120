"""SQL statements that are longer than a line live in sql/queries, one statement a file."""

from __future__ import annotations

from functools import cache

from app.db.resources import resource_dir


@cache
def query(name: str) -> str:
    """Return the text of sql/queries/<name>.sql."""
    return (resource_dir("sql") / "queries" / f"{name}.sql").read_text()
