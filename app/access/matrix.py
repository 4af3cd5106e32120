"""Which role may call which route: the one table. A test holds it against the routes of the server.

    reader    sees accounts, transactions, usage, reservations, experiments, rules, instances
    auditor   what a reader sees, and the chain: entries, proofs, tiles, verification, who has keys
    writer    what a reader sees, and moves money in every direction within its tenants; assigns units, reports outcomes, has
              rules decide, registers instances
    operator  what a writer may, and runs the ledger: webhooks, metrics, trial balance, verification; experiments, rules,
              isolation of instances
    admin     everything, alone keys and erasures

A row is for the whole ledger when its answer or effect reaches beyond single tenants: a key that is limited to tenants
is refused there, whatever its role.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from app.access.scope import ROLES, Key, may_use
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping


class Right(NamedTuple):
    """Who may call one route.

    roles         the roles that may
    service       the service that it belongs to, `""` for what belongs to none
    whole_ledger  closed to keys that are limited to tenants
    noted         shows entries of the chain: who calls it becomes an entry too
    """

    roles: frozenset[str]
    service: str = "credits"
    whole_ledger: bool = False
    noted: bool = False


Row = tuple[str, str]  # method, path template

_ADMIN: Final = frozenset({"admin"})
_RUN: Final = frozenset({"admin", "operator"})
_WRITE: Final = frozenset({"admin", "operator", "writer"})
_READ: Final = frozenset(ROLES)
_AUDIT: Final = frozenset({"admin", "auditor"})
_VERIFY: Final = frozenset({"admin", "operator", "auditor"})

# Routes without a key: nothing of a tenant is behind them.
OPEN: Final[frozenset[Row]] = frozenset({("GET", "/health"), ("GET", "/ready"), ("GET", "/openapi.json"), ("GET", "/docs")})

_CREDITS: Final[dict[Row, Right]] = {
    ("POST", "/v1/accounts"): Right(_WRITE),
    ("GET", "/v1/accounts"): Right(_READ),
    ("GET", "/v1/accounts/{tenant_id}"): Right(_READ),
    ("PATCH", "/v1/accounts/{tenant_id}"): Right(_WRITE),
    ("GET", "/v1/accounts/{tenant_id}/transactions"): Right(_READ),
    ("GET", "/v1/accounts/{tenant_id}/balance"): Right(_READ),
    ("GET", "/v1/accounts/{tenant_id}/reservations"): Right(_READ),
    ("GET", "/v1/accounts/{tenant_id}/usage"): Right(_READ),
    ("POST", "/v1/credits/topup"): Right(_WRITE),
    ("POST", "/v1/credits/consume"): Right(_WRITE),
    ("POST", "/v1/credits/refund"): Right(_WRITE),
    ("POST", "/v1/credits/reserve"): Right(_WRITE),
    ("POST", "/v1/credits/reservations/{reservation_id}/commit"): Right(_WRITE),
    ("POST", "/v1/credits/reservations/{reservation_id}/abort"): Right(_WRITE),
    ("GET", "/v1/credits/reservations/{reservation_id}"): Right(_READ),
    ("POST", "/v1/credits/batch"): Right(_WRITE),
    ("POST", "/v1/transactions"): Right(_WRITE),
    ("GET", "/v1/transactions/{transaction_id}"): Right(_READ),
    ("GET", "/v1/ledger/trial-balance"): Right(_VERIFY, whole_ledger=True),
    ("GET", "/v1/alerts"): Right(_READ),
    ("POST", "/v1/webhooks"): Right(_RUN),
    ("GET", "/v1/webhooks"): Right(_RUN),
    ("GET", "/v1/webhooks/{endpoint_id}"): Right(_RUN),
    ("DELETE", "/v1/webhooks/{endpoint_id}"): Right(_RUN),
    ("POST", "/v1/webhooks/{endpoint_id}/enable"): Right(_RUN),
    ("POST", "/v1/webhooks/{endpoint_id}/rotate"): Right(_RUN),
    ("GET", "/v1/webhooks/{endpoint_id}/deliveries"): Right(_RUN),
}

# The chain holds all tenants' entries side by side: only a receipt is one tenant's.
_AUDIT_ROWS: Final[dict[Row, Right]] = {
    ("GET", "/v1/audit/shards"): Right(_VERIFY, "", whole_ledger=True),
    ("GET", "/v1/audit/entries"): Right(_AUDIT, "", whole_ledger=True, noted=True),
    ("GET", "/v1/audit/checkpoint"): Right(_READ, ""),
    ("GET", "/v1/audit/keys"): Right(_READ, ""),
    ("GET", "/v1/audit/proof/inclusion"): Right(_READ, ""),
    ("GET", "/v1/audit/proof/consistency"): Right(_READ, ""),
    ("GET", "/v1/audit/receipts/{transaction_id}"): Right(_READ, "", noted=True),
    ("POST", "/v1/audit/verify"): Right(_VERIFY, "", whole_ledger=True, noted=True),
    ("GET", "/tiles/{shard}/{tile:.+}"): Right(_AUDIT, "", whole_ledger=True, noted=True),
    ("POST", "/v1/privacy/erasures"): Right(_ADMIN, ""),
}

# Rules belong to no tenant; what their reports show comes from all.
_RULES: Final[dict[Row, Right]] = {
    ("POST", "/v1/rules"): Right(_RUN, "shadow", whole_ledger=True),
    ("GET", "/v1/rules"): Right(_READ, "shadow"),
    ("GET", "/v1/rules/{name}"): Right(_READ, "shadow"),
    ("PATCH", "/v1/rules/{name}"): Right(_RUN, "shadow", whole_ledger=True),
    ("DELETE", "/v1/rules/{name}"): Right(_RUN, "shadow", whole_ledger=True),
    ("POST", "/v1/rules/{name}/promote"): Right(_RUN, "shadow", whole_ledger=True),
    ("POST", "/v1/rules/{name}/evaluate"): Right(_WRITE, "shadow"),
    ("GET", "/v1/rules/{name}/report"): Right(_READ, "shadow", whole_ledger=True),
}

# Experiments belong to no tenant either: who changes one, or what it serves, does so for all.
_SHADOW: Final[dict[Row, Right]] = {
    ("POST", "/v1/experiments"): Right(_RUN, "shadow", whole_ledger=True),
    ("GET", "/v1/experiments"): Right(_READ, "shadow"),
    ("GET", "/v1/experiments/{name}"): Right(_READ, "shadow"),
    ("PATCH", "/v1/experiments/{name}"): Right(_RUN, "shadow", whole_ledger=True),
    ("DELETE", "/v1/experiments/{name}"): Right(_RUN, "shadow", whole_ledger=True),
    ("POST", "/v1/experiments/{name}/assign"): Right(_WRITE, "shadow"),
    ("POST", "/v1/experiments/{name}/outcomes"): Right(_WRITE, "shadow"),
    ("GET", "/v1/experiments/{name}/analysis"): Right(_READ, "shadow"),
    ("GET", "/v1/experiments/{name}/plot.svg"): Right(_READ, "shadow"),
    ("POST", "/v1/experiments/{name}/deploy"): Right(_RUN, "shadow", whole_ledger=True),
    ("POST", "/v1/experiments/{name}/rollback"): Right(_RUN, "shadow", whole_ledger=True),
    ("POST", "/v1/experiments/{name}/canary"): Right(_RUN, "shadow", whole_ledger=True),
}

_FLAGS: Final[dict[Row, Right]] = {
    ("POST", "/ofrep/v1/evaluate/flags/{key}"): Right(_WRITE, "shadow"),
    ("POST", "/ofrep/v1/evaluate/flags"): Right(_WRITE, "shadow"),
    ("GET", "/ofrep/v1/sse"): Right(_WRITE, "shadow"),
    ("POST", "/v1/track"): Right(_WRITE, "shadow"),
}

_KEYS: Final[dict[Row, Right]] = {
    ("POST", "/v1/keys"): Right(_ADMIN, ""),
    ("GET", "/v1/keys"): Right(_AUDIT, ""),
    ("GET", "/v1/keys/{key_id}"): Right(_AUDIT, ""),
    ("DELETE", "/v1/keys/{key_id}"): Right(_ADMIN, ""),
    ("POST", "/v1/keys/{key_id}/rotate"): Right(_ADMIN, ""),
}

# The registry is one for all tenants: who may change where calls go changes it for everybody.
_LOCATOR: Final[dict[Row, Right]] = {
    ("GET", "/v1/services"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/services/{service}"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/services/{service}/lookup"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/services/{service}/watch"): Right(_READ, "locator", whole_ledger=True),
    ("POST", "/v1/services/{service}/report"): Right(_WRITE, "locator", whole_ledger=True),
    ("PUT", "/v1/services/{service}/instances/{id}"): Right(_WRITE, "locator", whole_ledger=True),
    ("GET", "/v1/services/{service}/instances/{id}"): Right(_READ, "locator", whole_ledger=True),
    ("DELETE", "/v1/services/{service}/instances/{id}"): Right(_WRITE, "locator", whole_ledger=True),
    ("POST", "/v1/services/{service}/instances/{id}/heartbeat"): Right(_WRITE, "locator", whole_ledger=True),
    ("POST", "/v1/services/{service}/instances/{id}/drain"): Right(_WRITE, "locator", whole_ledger=True),
    ("POST", "/v1/services/{service}/instances/{id}/resume"): Right(_RUN, "locator", whole_ledger=True),
    ("POST", "/v1/services/{service}/instances/{id}/isolate"): Right(_RUN, "locator", whole_ledger=True),
    ("POST", "/v1/services/{service}/instances/{id}/reset"): Right(_RUN, "locator", whole_ledger=True),
    ("GET", "/v1/sd/prometheus"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/catalog/services"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/catalog/service/{service}"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/catalog/datacenters"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/catalog/nodes"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/health/service/{service}"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/health/checks/{service}"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/health/state/{state}"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/agent/self"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/agent/services"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/agent/checks"): Right(_READ, "locator", whole_ledger=True),
    ("GET", "/v1/agent/service/{id:(?!register$)[^/]+}"): Right(_READ, "locator", whole_ledger=True),
    ("PUT", "/v1/agent/service/register"): Right(_WRITE, "locator", whole_ledger=True),
    ("PUT", "/v1/agent/service/deregister/{id}"): Right(_WRITE, "locator", whole_ledger=True),
    ("PUT", "/v1/agent/service/maintenance/{id}"): Right(_RUN, "locator", whole_ledger=True),
    ("PUT", "/v1/agent/check/pass/{check_id}"): Right(_WRITE, "locator", whole_ledger=True),
    ("PUT", "/v1/agent/check/warn/{check_id}"): Right(_WRITE, "locator", whole_ledger=True),
    ("PUT", "/v1/agent/check/fail/{check_id}"): Right(_WRITE, "locator", whole_ledger=True),
    ("PUT", "/v1/agent/check/update/{check_id}"): Right(_WRITE, "locator", whole_ledger=True),
}

_OPERATIONS: Final[dict[Row, Right]] = {
    ("GET", "/metrics"): Right(_VERIFY, "", whole_ledger=True),
}

RIGHTS: Final[Mapping[Row, Right]] = MappingProxyType(
    {**_CREDITS, **_AUDIT_ROWS, **_SHADOW, **_RULES, **_FLAGS, **_LOCATOR, **_KEYS, **_OPERATIONS}
)


def forbidden(key: Key, right: Right) -> Problem | None:
    """Return the 403 for a key that may not call a route, None for one that may.

    Whether the tenant in the request is the key's is another question, which `app.access.scope.may_see` answers.
    """
    if key.role not in right.roles:
        return Problem(403, "forbidden", "The role of the key does not have the right for this call.")
    if not may_use(key, right.service):
        return Problem(403, "forbidden", "The key is not for this service.")
    if right.whole_ledger and key.tenants is not None:
        return Problem(403, "forbidden", "The call reaches all tenants, and the key is limited to some.")
    return None
