"""Every route of the server has its row of roles, and every row is a route."""

from __future__ import annotations

import itertools

import pytest

from app.access.api import KEY_ROUTES
from app.access.matrix import OPEN, RIGHTS, Right, forbidden
from app.access.scope import ROLES, ROOT, SERVICE_NAMES, Key
from app.credits.audit_api import AUDIT_ROUTES
from app.credits.privacy_api import PRIVACY_ROUTES
from app.credits.routes import ROUTES
from app.locator.routes import LOCATOR_ROUTES
from app.operations import OPERATION_ROUTES
from app.shadow.api import EXPERIMENT_ROUTES
from app.shadow.flags_api import FLAG_ROUTES
from app.shadow.rules_api import RULE_ROUTES
from app.web.docs import reference_routes
from app.webhooks.api import WEBHOOK_ROUTES

OWN = (
    *ROUTES, *AUDIT_ROUTES, *OPERATION_ROUTES, *KEY_ROUTES, *WEBHOOK_ROUTES, *PRIVACY_ROUTES, *EXPERIMENT_ROUTES,
    *RULE_ROUTES, *FLAG_ROUTES, *LOCATOR_ROUTES,
)  # fmt: skip
SERVED = (*OWN, *reference_routes(OWN, title="t", version="0"))


def test_every_route_of_the_server_stands_in_the_table() -> None:
    closed = {(route.method, route.path) for route in SERVED if not route.open}
    opened = {(route.method, route.path) for route in SERVED if route.open}

    assert closed - set(RIGHTS) == set()
    assert opened == OPEN


def test_every_row_of_the_table_is_a_route_of_the_server() -> None:
    assert set(RIGHTS) - {(route.method, route.path) for route in SERVED} == set()


def test_a_route_that_names_roles_itself_names_those_of_its_row() -> None:
    for route in SERVED:
        assert route.roles in {None, RIGHTS[route.method, route.path].roles if not route.open else None}


def test_only_known_roles_and_services_stand_in_the_table() -> None:
    for right in RIGHTS.values():
        assert right.roles <= set(ROLES)
        assert "admin" in right.roles
        assert right.service in {"", *SERVICE_NAMES}


@pytest.mark.parametrize(("row", "role"), list(itertools.product(sorted(RIGHTS), ROLES)), ids=str)
def test_a_role_may_call_exactly_what_its_row_says(row: tuple[str, str], role: str) -> None:
    right = RIGHTS[row]

    refused = forbidden(Key("k", role), right)

    assert (refused is None) == (role in right.roles)
    assert refused is None or (refused.status, refused.code) == (403, "forbidden")


@pytest.mark.parametrize("row", sorted(RIGHTS), ids=str)
def test_the_root_key_may_call_everything(row: tuple[str, str]) -> None:
    assert forbidden(ROOT, RIGHTS[row]) is None


def test_only_admins_make_keys_and_erase() -> None:
    alone = {row for row, right in RIGHTS.items() if right.roles == {"admin"}}

    assert alone == {
        ("POST", "/v1/keys"), ("DELETE", "/v1/keys/{key_id}"), ("POST", "/v1/keys/{key_id}/rotate"),
        ("POST", "/v1/privacy/erasures"),
    }  # fmt: skip


def test_readers_and_auditors_change_nothing() -> None:
    changing = [row for row, right in RIGHTS.items() if row[0] != "GET" and right.roles & {"reader", "auditor"}]

    assert changing == [("POST", "/v1/audit/verify")]


def test_a_key_of_some_tenants_does_not_see_the_whole_ledger() -> None:
    limited = Key("k", "admin", tenants=frozenset({"a"}))

    closed = {
        row[1] for row, right in RIGHTS.items() if forbidden(limited, right) is not None and right.service != "locator"
    }

    assert closed == {
        "/v1/ledger/trial-balance", "/v1/audit/shards", "/v1/audit/entries", "/v1/audit/verify",
        "/tiles/{shard}/{tile:.+}", "/metrics", "/v1/rules", "/v1/rules/{name}", "/v1/rules/{name}/promote",
        "/v1/rules/{name}/report", "/v1/experiments", "/v1/experiments/{name}", "/v1/experiments/{name}/deploy",
        "/v1/experiments/{name}/rollback", "/v1/experiments/{name}/canary",
    }  # fmt: skip


def test_a_key_of_some_tenants_takes_part_in_experiments_and_changes_none() -> None:
    limited = Key("k", "admin", tenants=frozenset({"a"}))
    rows = [row for row, right in RIGHTS.items() if "/v1/experiments" in row[1] and forbidden(limited, right) is None]

    assert sorted({path for method, path in rows if method != "GET"}) == [
        "/v1/experiments/{name}/assign", "/v1/experiments/{name}/outcomes",
    ]  # fmt: skip
    assert len(rows) == 6


def test_a_key_of_some_tenants_does_not_see_the_registry_which_is_one_for_all() -> None:
    limited = Key("k", "admin", tenants=frozenset({"a"}))
    rows = [right for right in RIGHTS.values() if right.service == "locator"]

    assert len(rows) == len(LOCATOR_ROUTES)
    assert all(forbidden(limited, right) is not None for right in rows)


def test_a_key_of_another_service_is_refused() -> None:
    key = Key("k", "writer", services=frozenset({"shadow"}))

    assert forbidden(key, Right(frozenset({"writer"}), "credits")) is not None
    assert forbidden(key, Right(frozenset({"writer"}), "shadow")) is None
    assert forbidden(key, Right(frozenset({"writer"}), "")) is None
