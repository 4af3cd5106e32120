"""Top-up, consume and refund over HTTP."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.credits.ledger_client import Client, fresh

AMOUNT_MAX = 10**14 - 1
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
NOBODY = "01890000-0000-7000-8000-000000000000"


async def test_a_topup_answers_with_the_transaction(client: Client) -> None:
    tenant = await client.tenant()

    reply = await client.post(
        "/v1/credits/topup", {"tenant_id": tenant, "amount": 100, "description": "first", "metadata": {"invoice": "A-1"}}
    )

    assert reply.status == 200
    assert reply.headers["ETag"] == '"2"'
    body = dict(reply.body)
    assert UUID7.fullmatch(body.pop("transaction_id"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body.pop("created_at"))
    assert isinstance(body.pop("seq"), int)
    assert body == {
        "type": "topup", "tenant_id": tenant, "amount": 100, "balance": 100, "reserved": 0, "available": 100, "version": 2,
        "shard": 0, "description": "first", "metadata": {"invoice": "A-1"},
    }  # fmt: skip


async def test_a_consume_takes_exactly_its_amount(client: Client) -> None:
    tenant = await client.tenant(100)

    body = await client.consume(tenant, 30)

    assert (body["type"], body["amount"], body["balance"], body["available"], body["version"]) == ("consume", 30, 70, 70, 3)
    assert await client.numbers(tenant) == (70, 0, 3)


async def test_all_available_credits_can_be_spent_but_not_one_more(client: Client) -> None:
    tenant = await client.tenant(10)

    refused = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 11})
    spent = await client.consume(tenant, 10)
    empty = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1})

    assert refused.refusal == (402, "insufficient_credits")
    assert refused.body["available"] == 10
    assert spent["balance"] == 0
    assert (empty.refusal, empty.body["available"]) == ((402, "insufficient_credits"), 0)


async def test_the_largest_balance_is_exact(client: Client) -> None:
    tenant = await client.tenant(AMOUNT_MAX)

    over = await client.post("/v1/credits/topup", {"tenant_id": tenant, "amount": 1})
    spent = await client.consume(tenant, 1)
    rest = await client.consume(tenant, AMOUNT_MAX - 1)

    assert over.refusal == (409, "balance_limit_exceeded")
    assert (spent["balance"], rest["amount"], rest["balance"]) == (AMOUNT_MAX - 1, AMOUNT_MAX - 1, 0)


@pytest.mark.parametrize("call", ["topup", "consume", "reserve"])
async def test_spending_without_an_account_is_refused(client: Client, call: str) -> None:
    reply = await client.post(f"/v1/credits/{call}", {"tenant_id": fresh("nobody"), "amount": 1})

    assert reply.refusal == (404, "no_account")


@pytest.mark.parametrize("call", ["topup", "consume", "reserve"])
async def test_expected_version_holds_or_nothing_happens(client: Client, call: str) -> None:
    tenant = await client.tenant(100)
    path, body = f"/v1/credits/{call}", {"tenant_id": tenant, "amount": 1}

    stale = await client.post(path, body | {"expected_version": 1})
    stale_header = await client.post(path, body, If_Match='"1"')
    fits = await client.post(path, body | {"expected_version": 2})
    fits_header = await client.post(path, body, If_Match='"3"')

    assert (stale.refusal, stale.body["version"]) == ((409, "version_conflict"), 2)
    assert stale_header.refusal == (409, "version_conflict")
    assert (fits.status, fits_header.status) == (200, 200)
    assert (await client.numbers(tenant))[2] == 4


async def test_body_and_header_that_name_two_versions_conflict_with_any(client: Client) -> None:
    tenant = await client.tenant(100)
    body = {"tenant_id": tenant, "amount": 1, "expected_version": 2}

    contradiction = await client.post("/v1/credits/consume", body, If_Match='"7"')
    agreement = await client.post("/v1/credits/consume", body, If_Match='"2"')

    assert (contradiction.refusal, contradiction.body["version"]) == ((409, "version_conflict"), 2)
    assert agreement.status == 200


async def test_a_refund_heeds_if_match(client: Client) -> None:
    tenant = await client.tenant(100)
    body = {"transaction_id": (await client.consume(tenant, 40))["transaction_id"]}

    stale = await client.post("/v1/credits/refund", body, If_Match='"2"')
    fits = await client.post("/v1/credits/refund", body, If_Match='"3"')

    assert (stale.refusal, stale.body["version"]) == ((409, "version_conflict"), 3)
    assert (fits.status, fits.body["balance"]) == (200, 100)


@pytest.mark.parametrize("tag", ['W/"2"', '"2", "3"', "two", '"-1"', '""', '"02"'])
async def test_if_match_takes_one_strong_version(client: Client, tag: str) -> None:
    tenant = await client.tenant(5)

    reply = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}, If_Match=tag)

    assert reply.refusal == (422, "invalid_request")
    assert await client.numbers(tenant) == (5, 0, 2)


async def test_one_hundred_consumers_of_fifty_credits_get_fifty(client: Client) -> None:
    tenant = await client.tenant(50)

    replies = await asyncio.gather(
        *(client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 1}) for _ in range(100))
    )

    assert sorted(reply.status for reply in replies) == [200] * 50 + [402] * 50
    assert await client.numbers(tenant) == (0, 0, 52)
    balances = sorted(reply.body["balance"] for reply in replies if reply.status == 200)
    assert balances == list(range(50))


async def test_a_refund_without_amount_gives_back_all(client: Client) -> None:
    tenant = await client.tenant(100)
    spent = await client.consume(tenant, 40)

    reply = await client.post("/v1/credits/refund", {"transaction_id": spent["transaction_id"]})

    assert reply.status == 200
    assert (reply.body["type"], reply.body["amount"], reply.body["balance"]) == ("refund", 40, 100)
    assert reply.body["refunded_transaction_id"] == spent["transaction_id"]
    assert reply.headers["ETag"] == '"4"'


async def test_refunds_never_exceed_what_was_consumed(client: Client) -> None:
    tenant = await client.tenant(100)
    refund = {"transaction_id": (await client.consume(tenant, 40))["transaction_id"]}

    part = await client.post("/v1/credits/refund", refund | {"amount": 15})
    over = await client.post("/v1/credits/refund", refund | {"amount": 26})
    rest = await client.post("/v1/credits/refund", refund)
    again = await client.post("/v1/credits/refund", refund)
    more = await client.post("/v1/credits/refund", refund | {"amount": 1})

    assert (part.status, part.body["balance"]) == (200, 75)
    assert (over.refusal, over.body["refundable"]) == ((422, "refund_exceeds_consumed"), 25)
    assert (rest.body["amount"], rest.body["balance"]) == (25, 100)
    assert again.refusal == (409, "already_refunded")
    assert more.refusal == (409, "already_refunded")
    assert await client.numbers(tenant) == (100, 0, 5)


async def test_concurrent_refunds_give_back_once(client: Client) -> None:
    tenant = await client.tenant(100)
    spent = await client.consume(tenant, 60)

    replies = await asyncio.gather(
        *(client.post("/v1/credits/refund", {"transaction_id": spent["transaction_id"], "amount": 20}) for _ in range(10))
    )

    assert sorted(reply.status for reply in replies) == [200] * 3 + [409] * 7
    assert (await client.numbers(tenant))[0] == 100


async def test_a_commit_can_be_refunded_up_to_what_was_committed(client: Client) -> None:
    tenant = await client.tenant(100)
    hold = await client.reserve(tenant, 50)
    commit = await client.done(f"/v1/credits/reservations/{hold['reservation_id']}/commit", {"amount": 30})

    over = await client.post("/v1/credits/refund", {"transaction_id": commit["transaction_id"], "amount": 31})
    back = await client.post("/v1/credits/refund", {"transaction_id": commit["transaction_id"]})

    assert over.refusal == (422, "refund_exceeds_consumed")
    assert (back.body["amount"], back.body["balance"], back.body["reserved"]) == (30, 100, 0)


async def test_only_what_was_spent_can_be_refunded(client: Client) -> None:
    tenant = await client.tenant()
    added = await client.topup(tenant, 100)
    hold = await client.reserve(tenant, 10)
    refunded = await client.done(
        "/v1/credits/refund", {"transaction_id": (await client.consume(tenant, 5))["transaction_id"]}
    )

    for identifier in (added["transaction_id"], hold["reservation_id"], refunded["transaction_id"]):
        reply = await client.post("/v1/credits/refund", {"transaction_id": identifier})

        assert reply.refusal == (409, "not_refundable")


async def test_a_refund_of_an_unknown_transaction_is_refused(client: Client) -> None:
    reply = await client.post("/v1/credits/refund", {"transaction_id": NOBODY})

    assert reply.refusal == (404, "no_transaction")


async def test_a_refund_cannot_lift_the_balance_over_the_limit(client: Client) -> None:
    tenant = await client.tenant(10)
    spent = await client.consume(tenant, 10)
    await client.topup(tenant, AMOUNT_MAX)

    reply = await client.post("/v1/credits/refund", {"transaction_id": spent["transaction_id"]})

    assert reply.refusal == (409, "balance_limit_exceeded")


@pytest.mark.parametrize(
    "text", ["", 'quote " backslash \\ slash /', "tab\tline\n\x01\x1f\x7f", "\u2028\u2029", "😀 \U0001d4b3 é", "<script>"]
)
async def test_free_text_comes_back_exactly(client: Client, text: str) -> None:
    tenant = await client.tenant(10)
    metadata = {text: text, "deep": {"list": [text, -(2**63), 2**63 - 1, 1.5, True, None]}}

    body = await client.done(
        "/v1/credits/consume", {"tenant_id": tenant, "amount": 1, "description": text, "metadata": metadata}
    )
    listed = (await client.get(f"/v1/accounts/{tenant}/transactions?limit=1")).body["data"][0]

    assert (body["description"], body["metadata"]) == (text, metadata)
    assert listed == body
