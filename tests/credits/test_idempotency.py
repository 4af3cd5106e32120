"""Idempotency keys: what a second request with the same key gets."""

from __future__ import annotations

import asyncio

import pytest

from tests.credits.ledger_client import Client, Reply, fresh


def same(first: Reply, second: Reply) -> None:
    """The second answer is the first one again, and says so."""
    assert (second.status, second.raw) == (first.status, first.raw)
    assert (first.replayed, second.replayed) == (False, True)
    assert second.headers.get("ETag") == first.headers.get("ETag")
    assert second.headers["Content-Type"] == first.headers["Content-Type"]


@pytest.mark.parametrize("call", ["topup", "consume", "reserve"])
async def test_the_same_request_again_is_answered_but_not_applied(client: Client, call: str) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    body = {"tenant_id": tenant, "amount": 10, "description": "d", "metadata": {"m": [1]}}

    first = await client.post(f"/v1/credits/{call}", body, key=key)
    await client.consume(tenant, 1)
    second = await client.post(f"/v1/credits/{call}", body, key=key)

    assert first.status == 200
    same(first, second)
    assert (await client.numbers(tenant))[2] == 4


@pytest.mark.parametrize("verb", ["commit", "abort"])
async def test_closing_a_reservation_again_is_answered_but_not_applied(client: Client, verb: str) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    hold = await client.reserve(tenant, 10)

    first = await client.post(f"/v1/credits/reservations/{hold['reservation_id']}/{verb}", key=key)
    second = await client.post(f"/v1/credits/reservations/{hold['reservation_id']}/{verb}", key=key)

    assert first.status == 200
    same(first, second)


async def test_a_refund_again_is_answered_but_not_applied(client: Client) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    body = {"transaction_id": (await client.consume(tenant, 10))["transaction_id"]}

    first = await client.post("/v1/credits/refund", body, key=key)
    second = await client.post("/v1/credits/refund", body, key=key)

    assert first.status == 200
    same(first, second)
    assert (await client.numbers(tenant))[0] == 100


async def test_a_transaction_again_is_answered_but_not_applied(client: Client) -> None:
    giver, taker, key = await client.tenant(100), await client.tenant(), fresh("key")
    body = {"legs": [{"tenant_id": giver, "amount": -10}, {"tenant_id": taker, "amount": 10}]}

    first = await client.post("/v1/transactions", body, key=key)
    second = await client.post("/v1/transactions", body, key=key)

    assert first.status == 200
    same(first, second)
    assert (await client.numbers(taker))[0] == 10


async def test_refusals_are_remembered_even_when_the_reason_is_gone(client: Client) -> None:
    tenant, key = await client.tenant(5), fresh("key")
    body = {"tenant_id": tenant, "amount": 10}

    first = await client.post("/v1/credits/consume", body, key=key)
    await client.topup(tenant, 100)
    second = await client.post("/v1/credits/consume", body, key=key)

    assert first.refusal == (402, "insufficient_credits")
    same(first, second)
    assert (await client.numbers(tenant))[0] == 105


async def test_not_found_is_remembered(client: Client) -> None:
    tenant, key = fresh("later"), fresh("key")
    body = {"tenant_id": tenant, "amount": 10}

    first = await client.post("/v1/credits/topup", body, key=key)
    await client.done("/v1/accounts", {"tenant_id": tenant})
    second = await client.post("/v1/credits/topup", body, key=key)

    assert first.refusal == (404, "no_account")
    same(first, second)


async def test_a_conflict_is_remembered(client: Client) -> None:
    tenant, key = await client.tenant(5), fresh("key")
    body = {"tenant_id": tenant, "amount": 1, "expected_version": 3}

    first = await client.post("/v1/credits/consume", body, key=key)
    await client.topup(tenant, 1)
    second = await client.post("/v1/credits/consume", body, key=key)

    assert first.refusal == (409, "version_conflict")
    same(first, second)


async def test_a_replayed_refusal_keeps_its_first_request_id(client: Client) -> None:
    tenant, key = await client.tenant(), fresh("key")
    body = {"tenant_id": tenant, "amount": 1}

    first = await client.post("/v1/credits/consume", body, key=key, X_Request_ID="first-request")
    second = await client.post("/v1/credits/consume", body, key=key, X_Request_ID="second-request")

    assert first.body["request_id"] == second.body["request_id"] == "first-request"
    assert second.headers["X-Request-ID"] == "second-request"


OTHERS = [{"amount": 11}, {"description": "other"}, {"metadata": {}}, {"expected_version": 2}, {"tenant_id": "other"}]


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: next(iter(change)))
async def test_another_request_with_the_key_is_refused(client: Client, change: dict[str, object]) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    body = {"tenant_id": tenant, "amount": 10}
    if "tenant_id" in change:
        change = {"tenant_id": await client.tenant(100)}

    await client.post("/v1/credits/consume", body, key=key)
    reply = await client.post("/v1/credits/consume", body | change, key=key)

    assert reply.refusal == (422, "idempotency_key_reused")
    assert await client.numbers(tenant) == (90, 0, 3)


async def test_another_call_with_the_key_is_refused(client: Client) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    body = {"tenant_id": tenant, "amount": 10}
    await client.post("/v1/credits/consume", body, key=key)

    replies = [await client.post(f"/v1/credits/{call}", body, key=key) for call in ("topup", "reserve")]

    assert [reply.refusal for reply in replies] == [(422, "idempotency_key_reused")] * 2
    assert await client.numbers(tenant) == (90, 0, 3)


async def test_the_order_of_fields_and_spaces_make_no_other_request(client: Client) -> None:
    tenant, key = await client.tenant(100), fresh("key")

    first = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 10}, key=key)
    second = await client.call(
        "POST", "/v1/credits/consume", data=f'{{ "amount": 10,\n"tenant_id":"{tenant}" }}'.encode(), key=key
    )

    same(first, second)


async def test_requests_refused_for_their_shape_are_not_remembered(client: Client) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    path = "/v1/credits/consume"

    unauthorized = await client.post(path, {"tenant_id": tenant, "amount": 1}, key=key, Authorization=None)
    invalid = await client.post(path, {"tenant_id": tenant, "amount": 0}, key=key)
    malformed = await client.call("POST", path, data=b"{", key=key)
    applied = await client.post(path, {"tenant_id": tenant, "amount": 1}, key=key)

    assert [reply.status for reply in (unauthorized, invalid, malformed, applied)] == [401, 422, 400, 200]
    assert not applied.replayed


async def test_twenty_duplicates_at_once_are_applied_once(client: Client) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    body = {"tenant_id": tenant, "amount": 10}

    replies = await asyncio.gather(*(client.post("/v1/credits/consume", body, key=key) for _ in range(20)))

    assert {reply.raw for reply in replies} == {replies[0].raw}
    assert {reply.status for reply in replies} == {200}
    assert sorted(reply.replayed for reply in replies) == [False] + [True] * 19
    assert await client.numbers(tenant) == (90, 0, 3)


async def test_twenty_duplicate_refunds_at_once_are_applied_once(client: Client) -> None:
    tenant, key = await client.tenant(100), fresh("key")
    body = {"transaction_id": (await client.consume(tenant, 10))["transaction_id"], "amount": 1}

    replies = await asyncio.gather(*(client.post("/v1/credits/refund", body, key=key) for _ in range(20)))

    assert {(reply.status, reply.raw) for reply in replies} == {(200, replies[0].raw)}
    assert (await client.numbers(tenant))[0] == 91


@pytest.mark.parametrize(("bare", "quoted"), [("plain-key", '"plain-key"'), ('a"b', '"a\\"b"'), ("a\\b", '"a\\\\b"')])
async def test_a_quoted_key_is_the_bare_one(client: Client, bare: str, quoted: str) -> None:
    tenant = await client.tenant(100)
    body = {"tenant_id": tenant, "amount": 1}
    bare, quoted = f"{tenant}{bare}", f'"{tenant}{quoted[1:]}'

    first = await client.post("/v1/credits/consume", body, key=bare)
    second = await client.post("/v1/credits/consume", body, key=quoted)

    same(first, second)


async def test_keys_of_the_largest_length_differ_in_their_last_character(client: Client) -> None:
    tenant = await client.tenant(100)
    keys = [f"{tenant:k<254}{last}" for last in "ab"]

    replies = [await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=key) for key in keys]

    assert [reply.status for reply in replies] == [200, 200]
    assert (await client.numbers(tenant))[0] == 98


@pytest.mark.parametrize("path", ["topup", "consume", "refund", "reserve", "batch", f"reservations/{'0' * 8}/commit"])
async def test_money_does_not_move_without_a_key(client: Client, path: str) -> None:
    tenant = await client.tenant(5)
    spent = await client.consume(tenant, 1)
    hold = await client.reserve(tenant, 1)
    body = {
        "topup": {"tenant_id": tenant, "amount": 1},
        "consume": {"tenant_id": tenant, "amount": 1},
        "reserve": {"tenant_id": tenant, "amount": 1},
        "refund": {"transaction_id": spent["transaction_id"]},
        "batch": {"operations": [{"op": "consume", "tenant_id": tenant, "amount": 1}]},
    }.get(path)
    path = path.replace("0" * 8, hold["reservation_id"])
    before = await client.numbers(tenant)

    reply = await client.call("POST", f"/v1/credits/{path}", body)

    assert reply.refusal == (400, "idempotency_key_missing")
    assert await client.numbers(tenant) == before


async def test_a_transaction_needs_a_key(client: Client) -> None:
    giver, taker = await client.tenant(5), await client.tenant()

    reply = await client.call(
        "POST", "/v1/transactions", {"legs": [{"tenant_id": giver, "amount": -1}, {"tenant_id": taker, "amount": 1}]}
    )

    assert reply.refusal == (400, "idempotency_key_missing")


@pytest.mark.parametrize("key", ["", " ", "a" * 256, "tab\tinside", "ümlaut", '"open', '"a"b"', '""', " leading"])
async def test_a_key_outside_printable_ascii_is_refused(client: Client, key: str) -> None:
    tenant = await client.tenant(5)

    reply = await client.call("POST", "/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, key=key)

    expected = {" leading": (200, None)}.get(key, (400, "idempotency_key_invalid"))
    assert (reply.status, reply.body.get("code")) == expected
