"""POST /v1/transactions and GET /v1/transactions/{id}: all legs or none, in one shard and over two."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

import pytest

from app.audit.note import Verifier
from app.audit.receipt import parse_receipt, verify_receipt
from tests.credits.ledger_client import Client, fresh
from tests.flow.test_audit_calls import signed
from tests.flow.test_limited_keys import limited

AMOUNT_MAX = 10**14 - 1
NOBODY = "01890000-0000-7000-8000-000000000000"
PATH = "/v1/transactions"


def legs(*pairs: tuple[str, int]) -> dict[str, Any]:
    return {"legs": [{"tenant_id": tenant, "amount": amount} for tenant, amount in pairs]}


async def tenant_of(client: Client, shard: int, credits_: int = 0) -> str:
    """Open an account that belongs to this one of two shards."""
    while zlib.crc32((tenant := fresh("t")).encode()) % 2 != shard:
        pass
    await client.done("/v1/accounts", {"tenant_id": tenant})
    if credits_:
        await client.topup(tenant, credits_)
    return tenant


async def test_two_legs_move_credits_from_one_tenant_to_the_other(client: Client) -> None:
    giver, taker = await client.tenant(100), await client.tenant(5)

    body = await client.done(PATH, legs((giver, -30), (taker, 30)))

    assert body["status"] == "committed"
    assert [(leg["tenant_id"], leg["amount"], leg["balance"]) for leg in body["legs"]] == [(giver, -30, 70), (taker, 30, 35)]
    assert (await client.numbers(giver), await client.numbers(taker)) == ((70, 0, 3), (35, 0, 3))


async def test_the_history_of_each_tenant_says_who_paid(client: Client) -> None:
    giver, taker = await client.tenant(100), await client.tenant(5)

    await client.done(PATH, legs((giver, -30), (taker, 30)))

    shown = [(await client.get(f"/v1/accounts/{tenant}/transactions")).body["data"][0] for tenant in (giver, taker)]
    assert [(one["type"], one["amount"], one["balance"]) for one in shown] == [("transfer", -30, 70), ("transfer", 30, 35)]


async def test_one_hundred_legs_are_one_transaction(client: Client) -> None:
    giver = await client.tenant(99)
    takers = [await client.tenant() for _ in range(99)]

    body = await client.done(PATH, legs((giver, -99), *((taker, 1) for taker in takers)))

    assert len(body["legs"]) == 100
    assert await client.numbers(giver) == (0, 0, 3)
    assert {await client.numbers(taker) for taker in takers} == {(1, 0, 2)}
    shown = (await client.get(f"{PATH}/{body['transaction_id']}")).body
    assert shown["legs"] == body["legs"]


async def test_a_tenant_may_stand_in_several_legs(client: Client) -> None:
    giver, taker = await client.tenant(10), await client.tenant()

    body = await client.done(PATH, legs((giver, -4), (giver, -6), (taker, 3), (taker, 7)))
    over = await client.post(PATH, legs((taker, -6), (taker, -5), (giver, 11)))

    assert [leg["balance"] for leg in body["legs"]] == [6, 0, 3, 10]
    assert (over.refusal, over.body["leg"], over.body["available"]) == ((402, "insufficient_credits"), 1, 4)
    assert (await client.numbers(giver))[0] + (await client.numbers(taker))[0] == 10


async def test_an_insufficient_leg_refuses_all_legs_and_is_named(client: Client) -> None:
    rich, poor, taker = await client.tenant(100), await client.tenant(4), await client.tenant()

    reply = await client.post(PATH, legs((taker, 15), (rich, -10), (poor, -5)))

    assert reply.refusal == (402, "insufficient_credits")
    assert (reply.body["leg"], reply.body["available"]) == (2, 4)
    assert [await client.numbers(tenant) for tenant in (rich, poor, taker)] == [(100, 0, 2), (4, 0, 2), (0, 0, 1)]


async def test_held_credits_do_not_move(client: Client) -> None:
    giver, taker = await client.tenant(10), await client.tenant()
    await client.reserve(giver, 8)

    reply = await client.post(PATH, legs((giver, -3), (taker, 3)))

    assert (reply.refusal, reply.body["available"]) == ((402, "insufficient_credits"), 2)


async def test_an_unknown_tenant_refuses_all_legs_and_is_named(client: Client) -> None:
    giver = await client.tenant(10)

    reply = await client.post(PATH, legs((giver, -3), (fresh("nobody"), 3)))

    assert (reply.refusal, reply.body["leg"]) == ((404, "no_account"), 1)
    assert await client.numbers(giver) == (10, 0, 2)


async def test_a_leg_over_the_balance_limit_refuses_all_legs(client: Client) -> None:
    giver, full = await client.tenant(10), await client.tenant(AMOUNT_MAX)

    reply = await client.post(PATH, legs((giver, -3), (full, 3)))

    assert (reply.refusal, reply.body["leg"]) == ((409, "balance_limit_exceeded"), 1)
    assert await client.numbers(giver) == (10, 0, 2)


@pytest.mark.parametrize(
    ("amounts", "pointer"),
    [((-3, 2), "/legs"), ((3, 3), "/legs"), ((-3, 0, 3), "/legs/1/amount"), ((-3,), "/legs"), ((), "/legs"),
     ((-1, *[1] * 99, -98, -1), "/legs"), ((-AMOUNT_MAX - 1, AMOUNT_MAX + 1), "/legs/0/amount")],
)  # fmt: skip
async def test_legs_are_two_to_one_hundred_and_sum_to_zero(client: Client, amounts: tuple[int, ...], pointer: str) -> None:
    tenant = await client.tenant(10)

    reply = await client.post(PATH, legs(*((tenant, amount) for amount in amounts)))

    assert reply.refusal == (422, "invalid_request")
    assert reply.body["errors"][0]["pointer"] == pointer
    assert await client.numbers(tenant) == (10, 0, 2)


async def test_a_transaction_shows_its_place_in_the_chain(client: Client) -> None:
    tenant = await client.tenant(10)
    spent = await client.consume(tenant, 3)

    shown = (await client.get(f"{PATH}/{spent['transaction_id']}")).body

    audit = shown.pop("audit")
    assert shown == spent | {"status": "committed"}
    assert (audit["shard"], audit["seq"]) == (spent["shard"], spent["seq"])
    assert len(bytes.fromhex(audit["hash"])) == len(bytes.fromhex(audit["prev_hash"])) == 32


async def test_what_moved_between_tenants_is_found_and_not_refundable(client: Client, wide: Client) -> None:
    for caller, giver, taker in (
        (client, await client.tenant(10), await client.tenant(10)),
        (wide, await tenant_of(wide, 0, 10), await tenant_of(wide, 1, 10)),
    ):
        legs = [{"tenant_id": giver, "amount": -1}, {"tenant_id": taker, "amount": 1}]
        moved = await caller.post("/v1/transactions", {"legs": legs})

        refund = await caller.post("/v1/credits/refund", {"transaction_id": moved.body["transaction_id"]})

        assert refund.refusal == (409, "not_refundable")


async def test_an_unknown_transaction_is_not_found(client: Client, wide: Client) -> None:
    for one in (client, wide):
        assert (await one.get(f"{PATH}/{NOBODY}")).refusal == (404, "no_transaction")
        assert (await one.get(f"{PATH}/{NOBODY[:-1]}g")).refusal == (422, "invalid_request")


async def test_legs_over_two_shards_are_all_applied(wide: Client) -> None:
    giver, taker = await tenant_of(wide, 0, 100), await tenant_of(wide, 1, 5)

    body = await wide.done(PATH, legs((giver, -30), (taker, 30)))

    assert body["status"] == "committed"
    assert [(leg["tenant_id"], leg["amount"]) for leg in body["legs"]] == [(giver, -30), (taker, 30)]
    assert [(await wide.numbers(tenant))[:2] for tenant in (giver, taker)] == [(70, 0), (35, 0)]
    shown = (await wide.get(f"{PATH}/{body['transaction_id']}")).body
    assert (shown["status"], shown["transaction_id"]) == ("committed", body["transaction_id"])


async def test_a_transaction_over_two_shards_shows_its_place_in_the_chain(wide: Client) -> None:
    giver, taker = await tenant_of(wide, 0, 100), await tenant_of(wide, 1)
    body = await wide.done(PATH, legs((giver, -30), (taker, 30)))

    shown = (await wide.get(f"{PATH}/{body['transaction_id']}")).body

    assert "audit" in shown
    assert {"balance", "shard", "seq"} <= set(shown["legs"][0])


@pytest.mark.parametrize("giver_shard", [0, 1])
async def test_an_insufficient_leg_releases_the_other_shard(wide: Client, giver_shard: int) -> None:
    poor, rich = await tenant_of(wide, giver_shard, 2), await tenant_of(wide, 1 - giver_shard, 100)
    key = fresh("key")
    body = legs((rich, -5), (poor, -3), (rich, 8))

    first = await wide.post(PATH, body, key=key)
    second = await wide.post(PATH, body, key=key)

    assert first.refusal == (402, "insufficient_credits")
    assert (first.body["leg"], first.body["available"]) == (1, 2)
    assert (second.status, second.raw, second.replayed) == (402, first.raw, True)
    assert [(await wide.numbers(tenant))[:2] for tenant in (poor, rich)] == [(2, 0), (100, 0)]
    await wide.topup(rich, AMOUNT_MAX - 100)


async def test_an_unknown_tenant_in_the_other_shard_releases_the_first(wide: Client) -> None:
    giver = await tenant_of(wide, 0, 10)
    while zlib.crc32((nobody := fresh("nobody")).encode()) % 2 != 1:
        pass

    reply = await wide.post(PATH, legs((giver, -3), (nobody, 3)))

    assert (reply.refusal, reply.body["leg"]) == ((404, "no_account"), 1)
    assert (await wide.numbers(giver))[:2] == (10, 0)


async def test_an_overflow_in_the_other_shard_releases_the_first(wide: Client) -> None:
    giver, full = await tenant_of(wide, 0, 10), await tenant_of(wide, 1, AMOUNT_MAX - 2)

    reply = await wide.post(PATH, legs((giver, -3), (full, 3)))

    assert (reply.refusal, reply.body["leg"]) == ((409, "balance_limit_exceeded"), 1)
    assert (await wide.numbers(giver))[:2] == (10, 0)
    assert (await wide.post(PATH, legs((giver, -2), (full, 2)))).status == 200


async def test_a_transaction_over_two_shards_again_is_the_first_answer(wide: Client) -> None:
    giver, taker, key = await tenant_of(wide, 0, 100), await tenant_of(wide, 1), fresh("key")
    body = legs((giver, -30), (taker, 30))

    replies = await asyncio.gather(*(wide.post(PATH, body, key=key) for _ in range(10)))
    later = await wide.post(PATH, body, key=key)
    other = await wide.post(PATH, legs((giver, -31), (taker, 31)), key=key)

    assert {(reply.status, reply.raw) for reply in (*replies, later)} == {(200, replies[0].raw)}
    assert later.replayed
    assert other.refusal == (422, "idempotency_key_reused")
    assert [(await wide.numbers(tenant))[:2] for tenant in (giver, taker)] == [(70, 0), (30, 0)]


async def test_a_key_stands_for_one_request_whatever_shard_its_tenant_has(wide: Client) -> None:
    first, second, key = await tenant_of(wide, 0, 10), await tenant_of(wide, 1, 10), fresh("key")

    spent = await wide.post("/v1/credits/consume", {"tenant_id": first, "amount": 1}, key=key)
    reused = await wide.post("/v1/credits/consume", {"tenant_id": second, "amount": 1}, key=key)

    assert spent.status == 200
    assert reused.refusal == (422, "idempotency_key_reused")


async def test_crossing_transactions_keep_the_sum(wide: Client) -> None:
    tenants = [await tenant_of(wide, i % 2, 50) for i in range(4)]

    replies = await asyncio.gather(
        *(wide.post(PATH, legs((tenants[i % 4], -20), (tenants[(i + 1 + i // 4 % 3) % 4], 20))) for i in range(24))
    )

    assert {reply.status for reply in replies} <= {200, 402}
    numbers = [await wide.numbers(tenant) for tenant in tenants]
    assert sum(balance for balance, _, _ in numbers) == 200
    assert {reserved for _, reserved, _ in numbers} == {0}
    assert (await wide.get("/v1/ledger/trial-balance")).body["total"] == 0


async def test_legs_of_a_two_phase_commit_are_no_reservations_of_the_tenant(wide: Client) -> None:
    giver, taker = await tenant_of(wide, 0, 100), await tenant_of(wide, 1)
    await wide.done(PATH, legs((giver, -30), (taker, 30)))

    for tenant in (giver, taker):
        assert (await wide.get(f"/v1/accounts/{tenant}/reservations")).body["data"] == []
    history = (await wide.get(f"/v1/accounts/{giver}/transactions")).body["data"]
    assert [one["type"] for one in history] == ["settle_out", "prepare_out", "topup", "account"]
    identifier = history[1]["transaction_id"]
    assert (await wide.get(f"/v1/credits/reservations/{identifier}")).refusal == (404, "no_reservation")
    assert (await wide.post(f"/v1/credits/reservations/{identifier}/abort")).refusal == (404, "no_reservation")


@pytest.mark.parametrize("shards", [(0, 0), (0, 1), (1, 0)])
async def test_each_leg_has_a_receipt_that_proves_its_entry(wide: Client, shards: tuple[int, int]) -> None:
    giver, taker = await tenant_of(wide, shards[0], 50), await tenant_of(wide, shards[1])
    body = await wide.done(PATH, legs((giver, -20), (taker, 20)))
    path = f"/v1/audit/receipts/{body['transaction_id']}"
    keys = [Verifier.from_vkey(item["key"]) for item in (await wide.get("/v1/audit/keys")).body["data"]]

    receipts = [parse_receipt((await signed(wide, f"{path}{leg}")).raw) for leg in ("", "?leg=0", "?leg=1")]
    beyond = [await wide.get(f"{path}?leg={leg}") for leg in ("2", "100", "-1")]

    assert [receipt.seq for receipt in receipts] == [body["legs"][leg]["seq"] for leg in (0, 0, 1)]
    for receipt, leg in zip(receipts, (0, 0, 1), strict=True):
        assert verify_receipt(receipt, keys).checkpoint.origin.endswith(f"/s{body['legs'][leg]['shard']:02d}")
        assert body["legs"][leg]["tenant_id"].encode() in (receipt.entry or b"")
    assert [reply.status for reply in beyond] == [404, 422, 422]


@pytest.mark.parametrize("shards", [(0, 0), (0, 1)])
async def test_a_key_sees_a_transaction_of_its_tenants_alone_and_has_a_receipt_of_its_own_leg(
    wide: Client, shards: tuple[int, int]
) -> None:
    giver, taker = await tenant_of(wide, shards[0], 50), await tenant_of(wide, shards[1])
    body = await wide.done(PATH, legs((giver, -20), (taker, 20)))
    path = f"/v1/audit/receipts/{body['transaction_id']}"
    shown, receipts = [], []

    for tenants in ([giver], [taker], [giver, taker]):
        _, header = await limited(wide, "auditor", tenants=tenants)
        shown.append((await wide.call("GET", f"{PATH}/{body['transaction_id']}", Authorization=header)).status)
        replies = [await wide.call("GET", f"{path}?leg={leg}", Authorization=header) for leg in (0, 1)]
        receipts.append([reply.status == 404 and reply.code == "no_transaction" for reply in replies])

    assert shown == [404, 404, 200], "a transaction shows the balances of all its tenants"
    assert receipts == [[False, True], [True, False], [False, False]]
