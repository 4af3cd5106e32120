"""What one key is, and what it may see: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

Role = Literal["admin", "operator", "writer", "reader", "auditor"]
ServiceName = Literal["credits", "shadow", "locator"]

ROLES: Final[tuple[str, ...]] = get_args(Role)
SERVICE_NAMES: Final[tuple[str, ...]] = get_args(ServiceName)


class Rate(msgspec.Struct, frozen=True):
    """A token bucket: `per_s` tokens a second flow in, at most `burst` are in it."""

    per_s: float
    burst: int


class Key(msgspec.Struct, frozen=True):
    """A key as the table holds it; never the secret, nor its hash. The edge calls it the principal.

    tenants, services   None for all
    expires_at_ms       Unix ms from which it is refused, None for never
    revoked_at_ms       Unix ms at which it was revoked, None while it was not
    rate                the limit of the key itself, None for none
    """

    key_id: str
    role: str
    tenants: frozenset[str] | None = None
    services: frozenset[str] | None = None
    expires_at_ms: int | None = None
    revoked_at_ms: int | None = None
    rate: Rate | None = None


ROOT: Final = Key(key_id="root", role="admin")


def may_see(key: Key, tenant_id: str) -> bool:
    """Whether a tenant exists for this key. If not, its ids answer 404, as those of a tenant that is not there."""
    return key.tenants is None or tenant_id in key.tenants


def may_use(key: Key, service: str) -> bool:
    """Whether a key may call a service. Calls that belong to no service (`""`) are open to keys of each."""
    return key.services is None or not service or service in key.services


def tenant_filter(key: Key) -> list[str] | None:
    """Return the tenants that lists are limited to, in order, or None for no limit.

    For SQL: `WHERE ($1::text[] IS NULL OR tenant_id = ANY($1))`.
    """
    return None if key.tenants is None else sorted(key.tenants)


def covers(key: Key, tenants: Iterable[str] | None, services: Iterable[str] | None) -> bool:
    """Whether all that another key may reach is within reach of this one: then it may make, see and end that key."""
    return _within(tenants, key.tenants) and _within(services, key.services)


def _within(inner: Iterable[str] | None, outer: frozenset[str] | None) -> bool:
    return outer is None or (inner is not None and outer.issuperset(inner))
