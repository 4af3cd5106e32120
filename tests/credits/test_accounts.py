"""Accounts over HTTP: open, read, list, change."""

from __future__ import annotations

import pytest

from tests.credits.ledger_client import Client, fresh

QUOTA = {"limit": 1000, "period": "day"}
RATE = {"rate": 2.5, "burst": 10}


async def test_a_new_account_is_empty_and_has_version_1(client: Client) -> None:
    tenant = fresh("t")

    reply = await client.call("POST", "/v1/accounts", {"tenant_id": tenant})

    assert reply.status == 201
    assert reply.headers["ETag"] == '"1"'
    shown = {name: reply.body[name] for name in ("tenant_id", "balance", "reserved", "available", "version")}
    assert shown == {"tenant_id": tenant, "balance": 0, "reserved": 0, "available": 0, "version": 1}
    assert reply.body["created_at"].endswith("Z")
    assert (await client.get(f"/v1/accounts/{tenant}")).body == reply.body


async def test_settings_come_back_as_they_were_given(client: Client) -> None:
    settings = {
        "low_balance_threshold": 0,
        "quota": QUOTA,
        "rate_limit": RATE,
        "metadata": {"plan": "pro", "n": [1, None, "ü"]},
    }
    tenant = await client.tenant(**settings)

    account = await client.account(tenant)

    assert {name: account[name] for name in settings} == settings


async def test_a_second_account_of_a_tenant_is_refused(client: Client) -> None:
    tenant = await client.tenant(5)

    reply = await client.post("/v1/accounts", {"tenant_id": tenant})

    assert reply.refusal == (409, "account_exists")
    assert await client.numbers(tenant) == (5, 0, 2)


async def test_creating_with_the_same_key_again_gives_the_first_answer(client: Client) -> None:
    tenant, key = fresh("t"), fresh("key")
    first = await client.post("/v1/accounts", {"tenant_id": tenant}, key=key)

    second = await client.post("/v1/accounts", {"tenant_id": tenant}, key=key)
    other = await client.post("/v1/accounts", {"tenant_id": fresh("t")}, key=key)

    assert (second.status, second.raw, second.replayed) == (201, first.raw, True)
    assert other.refusal == (422, "idempotency_key_reused")


async def test_replayed_creation_shows_the_account_as_it_was(client: Client) -> None:
    tenant, key = fresh("t"), fresh("key")
    first = await client.post("/v1/accounts", {"tenant_id": tenant, "quota": QUOTA}, key=key)
    await client.topup(tenant, 10)
    await client.call("PATCH", f"/v1/accounts/{tenant}", {"quota": None})

    second = await client.post("/v1/accounts", {"tenant_id": tenant, "quota": QUOTA}, key=key)

    assert (second.status, second.raw) == (201, first.raw)


@pytest.mark.parametrize("path", ["", "/transactions", "/balance", "/reservations", "/usage"])
async def test_an_unknown_tenant_has_no_account(client: Client, path: str) -> None:
    reply = await client.get(f"/v1/accounts/{fresh('nobody')}{path}")

    assert reply.refusal == (404, "no_account")


async def test_accounts_are_listed_by_name_page_by_page(client: Client) -> None:
    opened = {await client.tenant() for _ in range(5)}
    listed: list[str] = []
    path = "/v1/accounts?limit=2"
    while True:
        page = (await client.get(path)).body
        assert len(page["data"]) <= 2
        listed += [account["tenant_id"] for account in page["data"]]
        if page["next_cursor"] is None:
            break
        path = f"/v1/accounts?limit=2&cursor={page['next_cursor']}"

    assert listed == sorted(set(listed))
    assert opened <= set(listed)


async def test_replayed_patch_is_the_first_answer(client: Client) -> None:
    tenant, key = await client.tenant(), fresh("key")
    path = f"/v1/accounts/{tenant}"
    first = await client.call("PATCH", path, {"metadata": {"x": 1}}, key=key)
    await client.call("PATCH", path, {"metadata": {"x": 2}})

    second = await client.call("PATCH", path, {"metadata": {"x": 1}}, key=key)

    assert (second.status, second.raw, second.replayed) == (200, first.raw, True)
    assert (await client.account(tenant))["metadata"] == {"x": 2}


async def test_patch_changes_what_is_named_and_leaves_the_rest(client: Client) -> None:
    tenant = await client.tenant(7, quota=QUOTA, rate_limit=RATE, metadata={"a": 1, "b": 2})

    reply = await client.call(
        "PATCH", f"/v1/accounts/{tenant}", {"quota": None, "metadata": {"c": 3}, "low_balance_threshold": 4}
    )

    assert reply.status == 200
    assert reply.headers["ETag"] == '"3"'
    assert "quota" not in reply.body
    assert (reply.body["rate_limit"], reply.body["metadata"], reply.body["low_balance_threshold"]) == (RATE, {"c": 3}, 4)
    assert (reply.body["balance"], reply.body["version"]) == (7, 3)
    assert await client.account(tenant) == reply.body


async def test_an_empty_patch_changes_no_setting(client: Client) -> None:
    tenant = await client.tenant(quota=QUOTA)

    reply = await client.call("PATCH", f"/v1/accounts/{tenant}", {})

    assert reply.status == 200
    assert reply.body["quota"] == QUOTA


async def test_patch_with_a_stale_version_changes_nothing(client: Client) -> None:
    tenant = await client.tenant(7)

    reply = await client.call("PATCH", f"/v1/accounts/{tenant}", {"metadata": {"late": True}}, If_Match='"1"')

    assert reply.refusal == (409, "version_conflict")
    assert reply.body["version"] == 2
    assert "metadata" not in await client.account(tenant)


async def test_patch_with_the_current_version_is_applied(client: Client) -> None:
    tenant = await client.tenant(7)

    reply = await client.call("PATCH", f"/v1/accounts/{tenant}", {"metadata": {"x": 1}}, If_Match='"2"')

    assert (reply.status, reply.body["version"]) == (200, 3)


async def test_patch_of_an_unknown_tenant_is_refused(client: Client) -> None:
    reply = await client.call("PATCH", f"/v1/accounts/{fresh('nobody')}", {})

    assert reply.refusal == (404, "no_account")


async def test_the_etag_of_a_read_allows_the_next_write(client: Client) -> None:
    tenant = await client.tenant(50)
    etag = (await client.get(f"/v1/accounts/{tenant}")).headers["ETag"]
    body = {"tenant_id": tenant, "amount": 1}

    first = await client.post("/v1/credits/consume", body, If_Match=etag)
    second = await client.post("/v1/credits/consume", body, If_Match=etag)

    assert (first.status, first.headers["ETag"]) == (200, '"3"')
    assert second.refusal == (409, "version_conflict")
    assert (await client.numbers(tenant))[0] == 49
