"""API keys in Postgres. Each change and what the chain is to say of it are one statement: both happen, or neither."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from app.access.scope import Key, Rate
from app.clock import ms_of
from app.db.sql import query

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from app.access.key_text import Secret
    from app.db.statements import Statements

KEYS_MAX: Final = 10_000  # keys in use at once; every replica holds all of them, about 10 MB
NAMED_DAYS: Final = 30  # how long a denial can still name a key that has ended

_ALL: Final = ""  # below every key id


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One key as people see it: everything but the secret and its hash."""

    key_id: str
    shown: str
    name: str
    role: str
    tenants: list[str] | None
    services: list[str] | None
    rate_per_s: float | None
    burst: int | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    replaced_by: str | None
    last_used_at: datetime | None


class NewKeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a new key is to be. Names of `None` mean all."""

    name: str
    role: str
    tenants: Sequence[str] | None = None
    services: Sequence[str] | None = None
    rate: Rate | None = None
    expires_at: datetime | None = None


class KeyStore:
    """Reads and changes keys. Raises what asyncpg raises, and TimeoutError."""

    def __init__(self, statements: Statements) -> None:
        """`statements` reach Postgres as the server's role."""
        self._statements = statements

    async def create(
        self, key_id: str, secret: Secret, new: NewKeyRow, maker: str, details: dict[str, Any]
    ) -> KeyRow | None:
        """Make a key; None when there are KEYS_MAX. `details` become the entry `key.create`."""
        rows = await self._statements.rows(
            query("create_key"), key_id, secret.hash, secret.shown, new.name, new.role, _listed(new.tenants),
            _listed(new.services), new.rate.per_s if new.rate else None, new.rate.burst if new.rate else None,
            maker, new.expires_at, KEYS_MAX, orjson.dumps(details).decode(),
        )  # fmt: skip
        return _row(rows[0]) if rows else None

    async def page(
        self, after: str, limit: int, tenants: Sequence[str] | None = None, services: Sequence[str] | None = None
    ) -> list[KeyRow]:
        """Return keys by id from the first beyond `after`, only those within these tenants and services."""
        rows = await self._statements.rows(query("keys"), after, limit, None, _listed(tenants), _listed(services))
        return [_row(row) for row in rows]

    async def find(self, key_id: str) -> KeyRow | None:
        """Return a key, ended or not."""
        rows = await self._statements.rows(query("keys"), _ALL, 1, key_id, None, None)
        return _row(rows[0]) if rows else None

    async def revoke(self, key_id: str, details: dict[str, Any]) -> KeyRow | None:
        """End a key at once; None when it had ended before. `details` become the entry `key.revoke`."""
        rows = await self._statements.rows(query("revoke_key"), key_id, orjson.dumps(details).decode())
        return _row(rows[0]) if rows else None

    async def rotate(
        self, old_id: str, key_id: str, secret: Secret, maker: str, expires_at: datetime | None, overlap_s: float,
        details: dict[str, Any],
    ) -> tuple[KeyRow, datetime] | None:  # fmt: skip
        """Make the successor of a key and date the old one's end; None when the old one cannot have one any more.

        Returns the new key and the end of the old one. `details` become the entry `key.rotate`.
        """
        rows = await self._statements.rows(
            query("rotate_key"), old_id, key_id, secret.hash, secret.shown, maker, expires_at, overlap_s,
            orjson.dumps(details).decode(),
        )  # fmt: skip
        return (_row(rows[0]), rows[0]["old_expires_at"]) if rows else None


def loaded_key(row: asyncpg.Record) -> tuple[bytes, Key]:
    """Return the hash and the key of a row of load_keys."""
    digest, key_id, role, tenants, services, rate_per_s, burst, expires_at, revoked_at = row
    return digest, Key(
        key_id=key_id,
        role=role,
        tenants=None if tenants is None else frozenset(tenants),
        services=None if services is None else frozenset(services),
        expires_at_ms=None if expires_at is None else ms_of(expires_at),
        revoked_at_ms=None if revoked_at is None else ms_of(revoked_at),
        rate=None if rate_per_s is None else Rate(rate_per_s, burst),
    )


def _row(record: asyncpg.Record) -> KeyRow:
    return KeyRow(**{name: record[name] for name in KeyRow.__struct_fields__})


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else sorted(set(names))
