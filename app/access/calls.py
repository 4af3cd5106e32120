"""The calls of /v1/keys: from a decoded body to an answer. HTTP is around them, Postgres below."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

from msgspec import Meta, Struct

from app.access.key_text import ID_PATTERN, new_key_id, new_secret
from app.access.scope import Key, Rate, Role, ServiceName, covers, tenant_filter
from app.access.store import NewKeyRow
from app.clock import ms_of, now_ms, time_of, time_text
from app.web.fields import Input, Name, Time
from app.web.problems import Problem, invalid

if TYPE_CHECKING:
    from app.access.store import KeyRow, KeyStore

TENANTS_MAX: Final = 100  # tenants of one key; more is a key for all
OVERLAP_DEFAULT_S: Final = 86_400  # a day to bring the new key everywhere
OVERLAP_MAX_S: Final = 30 * 86_400  # a month; what takes longer is no rotation

KeyId = Annotated[str, Meta(pattern=ID_PATTERN, description="Id of a key; not the key.")]
KeyName = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*\Z", description="For people.")]


class KeyRate(Input, frozen=True):
    """How many requests a second a key may make, and how many at once."""

    rate: Annotated[float, Meta(ge=0.001, le=1_000_000)]
    burst: Annotated[int, Meta(ge=1, le=1_000_000)]


class NewKey(Input, frozen=True):
    """Body of POST /v1/keys. Without `tenants` or `services` the key is for all that its maker may reach."""

    name: KeyName
    role: Role
    tenants: Annotated[list[Name], Meta(min_length=1, max_length=TENANTS_MAX)] | None = None
    services: Annotated[list[ServiceName], Meta(min_length=1, max_length=3)] | None = None
    rate_limit: KeyRate | None = None
    expires_at: Time | None = None


class Rotation(Input, frozen=True):
    """Body of POST /v1/keys/{key_id}/rotate: how long both keys are valid, and when the new one ends."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=OVERLAP_MAX_S)] = OVERLAP_DEFAULT_S
    expires_at: Time | None = None


class KeyView(Struct, kw_only=True):
    """A key as it is listed: everything but the secret."""

    key_id: str
    shown: str
    name: str
    role: str
    tenants: list[str] | None
    services: list[str] | None
    rate_limit: KeyRate | None
    status: str
    created_at: str
    created_by: str
    expires_at: str | None
    revoked_at: str | None
    replaced_by: str | None
    last_used_at: str | None


class MadeKey(KeyView, kw_only=True):
    """A key right after it was made: `key` is shown this once."""

    key: str


class RotatedKey(MadeKey, kw_only=True):
    """The successor of a key, and until when the old one is valid."""

    replaces: str
    old_expires_at: str


class KeyPage(Struct):
    """A page of keys."""

    data: list[KeyView]
    next_cursor: str | None


async def create(body: NewKey, actor: Key, store: KeyStore) -> MadeKey:
    """POST /v1/keys: make a key within what its maker may reach. 201.

    refuses  403 `forbidden` beyond the maker's own tenants and services; 409 `too_many_keys`; 422 for an end in the past
    """
    tenants = body.tenants if body.tenants is not None else tenant_filter(actor)
    services = list(body.services) if body.services is not None else _services_of(actor)
    if not covers(actor, tenants, services):
        raise Problem(403, "forbidden", "A key can reach no more tenants and services than the key that makes it.")
    expires_at = _end(body.expires_at, actor)
    rate = None if body.rate_limit is None else Rate(body.rate_limit.rate, body.rate_limit.burst)
    key_id, secret = new_key_id(), new_secret()
    new = NewKeyRow(name=body.name, role=body.role, tenants=tenants, services=services, rate=rate, expires_at=expires_at)
    details = _details(actor, key_id) | {
        "hash": secret.hash.hex(), "role": body.role, "tenants": tenants, "services": services,
        "expires_at": _text(expires_at),
        # An entry holds no fractions.
        "rate_milli": None if rate is None else round(rate.per_s * 1000), "burst": None if rate is None else rate.burst,
    }  # fmt: skip
    row = await store.create(key_id, secret, new, actor.key_id, details)
    if row is None:
        raise Problem(409, "too_many_keys", "There are as many keys in use as there can be; revoke one first.")
    return MadeKey(**_fields(row), key=secret.text)


async def list_keys(actor: Key, store: KeyStore, after: str, limit: int) -> tuple[list[KeyView], str | None]:
    """GET /v1/keys: keys within what the caller may reach, by id from the first beyond `after`; and the next `after`."""
    rows = await store.page(after, limit + 1, tenant_filter(actor), _services_of(actor))
    return [view(row) for row in rows[:limit]], rows[limit - 1].key_id if len(rows) > limit else None


async def read(key_id: str, actor: Key, store: KeyStore) -> KeyView:
    """GET /v1/keys/{key_id}. refuses  404 `no_key`."""
    return view(await _visible(key_id, actor, store))


async def revoke(key_id: str, actor: Key, store: KeyStore) -> KeyView:
    """DELETE /v1/keys/{key_id}: end a key at once. 200, and again 200 for a key that has been revoked before.

    refuses  404 `no_key`
    """
    row = await _visible(key_id, actor, store)
    if row.revoked_at is None:
        ended = await store.revoke(key_id, _details(actor, key_id))
        row = ended if ended is not None else await _visible(key_id, actor, store)
    return view(row)


async def rotate(key_id: str, body: Rotation, actor: Key, store: KeyStore) -> RotatedKey:
    """POST /v1/keys/{key_id}/rotate: make a successor with the same rights, and date the old key's end. 201.

    Without `expires_at` the new key lives as long from now as the old one did from its beginning.
    refuses  404 `no_key`; 409 `key_revoked`, `key_expired`, `key_rotated`; 422 for an end in the past
    """
    old = await _visible(key_id, actor, store)
    if status_of(old, now_ms()) in {"revoked", "expired"}:
        _refuse_rotation(old)
    given = body.expires_at
    if given is None and old.expires_at is not None:
        given = time_of(now_ms()) + (old.expires_at - old.created_at)
    expires_at = _end(given, actor)
    new_id, secret = new_key_id(), new_secret()
    details = _details(actor, key_id) | {
        "new_key_id": new_id, "hash": secret.hash.hex(), "overlap_seconds": body.overlap_seconds,
        "expires_at": _text(expires_at),
    }  # fmt: skip
    made = await store.rotate(key_id, new_id, secret, actor.key_id, expires_at, float(body.overlap_seconds), details)
    if made is None:
        _refuse_rotation(await _visible(key_id, actor, store))
    row, old_end = made
    return RotatedKey(**_fields(row), key=secret.text, replaces=key_id, old_expires_at=time_text(ms_of(old_end)))


def view(row: KeyRow) -> KeyView:
    """Return a key as it is listed."""
    return KeyView(**_fields(row))


def status_of(row: KeyRow, at_ms: int) -> str:
    """Return `revoked`, `expired`, `rotated` (has a successor, still valid) or `active`."""
    if row.revoked_at is not None:
        return "revoked"
    if row.expires_at is not None and ms_of(row.expires_at) <= at_ms:
        return "expired"
    return "rotated" if row.replaced_by is not None else "active"


def _refuse_rotation(row: KeyRow) -> NoReturn:
    status = status_of(row, now_ms())
    texts = {
        "revoked": "The key has been revoked; make a new one.",
        "expired": "The key has expired; make a new one.",
    }
    code = status if status in texts else "rotated"
    raise Problem(409, f"key_{code}", texts.get(status, "The key has a successor already; rotate that one."))


async def _visible(key_id: str, actor: Key, store: KeyStore) -> KeyRow:
    row = await store.find(key_id)
    if row is None or not covers(actor, row.tenants, row.services):
        raise Problem(404, "no_key", "There is no key with this id.")
    return row


def _end(given: datetime | None, actor: Key) -> datetime | None:
    """Return the end of a new key: in the future, and not after that of a maker that has one."""
    limit = None if actor.expires_at_ms is None else time_of(actor.expires_at_ms)
    if given is None:
        return limit
    if given <= time_of(now_ms()) + timedelta(seconds=1):
        raise invalid("/expires_at", "Expected a time in the future")
    return given if limit is None or given <= limit else limit


def _services_of(actor: Key) -> list[str] | None:
    return None if actor.services is None else sorted(actor.services)


def _details(actor: Key, key_id: str) -> dict[str, Any]:
    return {"actor": actor.key_id, "key_id": key_id}


def _text(at: datetime | None) -> str | None:
    return None if at is None else time_text(ms_of(at))


def _fields(row: KeyRow) -> dict[str, Any]:
    return {
        "key_id": row.key_id,
        "shown": row.shown,
        "name": row.name,
        "role": row.role,
        "tenants": row.tenants,
        "services": row.services,
        "rate_limit": None if row.rate_per_s is None else KeyRate(rate=row.rate_per_s, burst=row.burst or 1),
        "status": status_of(row, now_ms()),
        "created_at": _text(row.created_at),
        "created_by": row.created_by,
        "expires_at": _text(row.expires_at),
        "revoked_at": _text(row.revoked_at),
        "replaced_by": row.replaced_by,
        "last_used_at": _text(row.last_used_at),
    }
