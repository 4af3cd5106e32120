"""Whether what a verification reads is what everybody reads: plain tables, and one view that shows all of the chain.

Rows can be proved only as they are shown. Whoever may change the schema could leave the true rows where a verifier looks
and put others where the server reads; so tables that are something else, that show each reader other rows, or a view that
leaves the tables of the chain, are a fault of their own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncpg

_PLAIN: Final = frozenset({
    "ledger", "ledger_shards", "audit_tree", "audit_leaf_tiles", "audit_checkpoints", "archived_partitions",
    "credit_accounts", "credit_refunds", "credit_alerts", "private_keys", "private_records", "api_keys", "pending_entries",
})  # fmt: skip
_PARTITIONED: Final = frozenset({"audit_entries", "credit_reservations"})
_RELATIONS: Final = """
    SELECT c.relname, c.relkind::text, c.relrowsecurity FROM pg_class c WHERE c.oid = ANY (
      SELECT to_regclass('public.' || name) FROM unnest($1::text[]) AS name
      UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
        WHERE p.relkind = 'p' AND p.oid = ANY (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) AS name)
      UNION ALL SELECT to_regclass('ledger_archive.' || quote_ident(name)) FROM archived_partitions)
    ORDER BY c.relname
"""
_VIEW: Final = "SELECT pg_get_viewdef('public.audit_chain'::regclass)"
_COLUMNS: Final = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = 'public.audit_entries'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_ARCHIVED: Final = "SELECT name FROM archived_partitions WHERE parent = 'audit_entries'"
_BRANCH: Final = re.compile(r"SELECT ([\w., \n\"]+?)\s+FROM ([\w.\"]+)")


async def ground_fault(connection: asyncpg.Connection[Any]) -> str | None:
    """Return why the rows that this connection reads may not be those that others read, None when they are.

    The connection has `public` as its search path.
    """
    names = sorted(_PLAIN | _PARTITIONED)
    for name, kind, hidden in await connection.fetch(_RELATIONS, names):
        if kind != ("p" if name in _PARTITIONED else "r") or hidden:
            return f"{name} is no plain table: it may show other rows to other readers"
    columns = [row[0] for row in await connection.fetch(_COLUMNS)]
    tables = {"audit_entries", *(f"ledger_archive.{row[0]}" for row in await connection.fetch(_ARCHIVED))}
    if not shows_all(await connection.fetchval(_VIEW), columns, tables):
        return "the view audit_chain does not show the tables of the chain as they are: SELECT make_audit_chain() mends it"
    return None


def shows_all(definition: str, columns: list[str], tables: set[str]) -> bool:
    """Return whether a view's definition, as PostgreSQL writes it, is all of these columns of each of these tables. Pure."""
    branches = re.split(r"\s+UNION ALL\s+", definition.strip().removesuffix(";"))
    shown = []
    for branch in branches:
        match = _BRANCH.fullmatch(branch.strip())
        # Releases before 16 write the table before each column of a UNION.
        if match is None or [name.split(".")[-1].strip(' "\n') for name in match[1].split(",")] != columns:
            return False
        shown.append(match[2].replace('"', ""))
    return sorted(shown) == sorted(tables)
