"""Reserve, commit, abort and expiry over HTTP."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.credits.ledger_client import Client

NOBODY = "01890000-0000-7000-8000-000000000000"
EXPIRY_DEADLINE_S = 90.0


def path(hold: dict[str, str], verb: str = "") -> str:
    return f"/v1/credits/reservations/{hold['reservation_id']}" + (f"/{verb}" if verb else "")


async def expired(client: Client, hold: dict[str, str]) -> dict[str, str]:
    """Wait until the sweeper has expired a hold."""
    deadline_s = time.monotonic() + EXPIRY_DEADLINE_S
    while (shown := (await client.get(path(hold))).body)["status"] == "held":
        assert time.monotonic() < deadline_s, "the hold does not expire"
        await asyncio.sleep(0.02)
    return dict(shown)


async def test_a_reservation_holds_credits_without_spending_them(client: Client) -> None:
    tenant = await client.tenant(100)

    reply = await client.post(
        "/v1/credits/reserve", {"tenant_id": tenant, "amount": 60, "description": "call", "metadata": {"m": 1}}
    )

    assert reply.status == 200
    assert reply.headers["ETag"] == '"3"'
    shown = {
        name: reply.body[name] for name in ("tenant_id", "amount", "status", "balance", "reserved", "available", "version")
    }
    assert shown == {
        "tenant_id": tenant, "amount": 60, "status": "held", "balance": 100, "reserved": 60, "available": 40, "version": 3,
    }  # fmt: skip
    assert (reply.body["description"], reply.body["metadata"]) == ("call", {"m": 1})
    assert await client.numbers(tenant) == (100, 60, 3)


async def test_held_credits_cannot_be_spent_or_held_again(client: Client) -> None:
    tenant = await client.tenant(100)
    await client.reserve(tenant, 60)

    spent = await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 41})
    held = await client.post("/v1/credits/reserve", {"tenant_id": tenant, "amount": 41})

    assert (spent.refusal, spent.body["available"]) == ((402, "insufficient_credits"), 40)
    assert (held.refusal, held.body["available"]) == ((402, "insufficient_credits"), 40)
    assert (await client.consume(tenant, 40))["available"] == 0


async def test_commit_without_body_spends_all_that_is_held(client: Client) -> None:
    tenant = await client.tenant(100)
    hold = await client.reserve(tenant, 60)

    reply = await client.post(path(hold, "commit"))

    assert reply.status == 200
    assert (reply.body["type"], reply.body["amount"], reply.body["reservation_id"]) == ("commit", 60, hold["reservation_id"])
    assert (reply.body["balance"], reply.body["reserved"], reply.headers["ETag"]) == (40, 0, '"4"')


@pytest.mark.parametrize("amount", [1, 25, 60])
async def test_partial_commit_gives_the_rest_back(client: Client, amount: int) -> None:
    tenant = await client.tenant(100)
    hold = await client.reserve(tenant, 60)

    body = await client.done(path(hold, "commit"), {"amount": amount})

    assert (body["amount"], body["balance"], body["reserved"], body["available"]) == (amount, 100 - amount, 0, 100 - amount)
    shown = (await client.get(path(hold))).body
    assert (shown["status"], shown["amount"], shown["committed"]) == ("committed", 60, amount)
    assert shown["closed_at"] == body["created_at"]


async def test_commit_above_the_held_amount_is_refused_and_the_hold_stays(client: Client) -> None:
    tenant = await client.tenant(100)
    hold = await client.reserve(tenant, 60)

    reply = await client.post(path(hold, "commit"), {"amount": 61})

    assert reply.refusal == (422, "amount_exceeds_reservation")
    assert reply.body["held"] == 60
    assert (await client.get(path(hold))).body["status"] == "held"
    assert await client.numbers(tenant) == (100, 60, 3)


async def test_a_shape_refusal_of_the_ledger_is_not_remembered(client: Client) -> None:
    tenant = await client.tenant(100)
    hold = await client.reserve(tenant, 60)
    key = f"once-{tenant}"

    refused = await client.post(path(hold, "commit"), {"amount": 61}, key=key)
    applied = await client.post(path(hold, "commit"), {"amount": 60}, key=key)

    assert refused.refusal == (422, "amount_exceeds_reservation")
    assert applied.status == 200


async def test_abort_gives_everything_back(client: Client) -> None:
    tenant = await client.tenant(100)
    hold = await client.reserve(tenant, 60)

    reply = await client.post(path(hold, "abort"))

    assert reply.status == 200
    assert (reply.body["status"], reply.body["reservation_id"], reply.body["amount"]) == (
        "aborted",
        hold["reservation_id"],
        60,
    )
    assert (reply.body["balance"], reply.body["reserved"], reply.body["version"]) == (100, 0, 4)
    assert (await client.get(path(hold))).body["status"] == "aborted"


@pytest.mark.parametrize("verb", ["commit", "abort"])
@pytest.mark.parametrize(("first", "code"), [("commit", "reservation_committed"), ("abort", "reservation_aborted")])
async def test_a_reservation_ends_once(client: Client, first: str, code: str, verb: str) -> None:
    tenant = await client.tenant(100)
    hold = await client.reserve(tenant, 60)
    await client.done(path(hold, first))
    before = await client.numbers(tenant)

    reply = await client.post(path(hold, verb))

    assert reply.refusal == (409, code)
    assert await client.numbers(tenant) == before


@pytest.mark.parametrize("verb", ["commit", "abort"])
async def test_an_unknown_reservation_is_refused(client: Client, verb: str) -> None:
    spent = await client.consume(await client.tenant(5), 5)

    for identifier in (NOBODY, spent["transaction_id"]):
        reply = await client.post(f"/v1/credits/reservations/{identifier}/{verb}")

        assert reply.refusal == (404, "no_reservation")
        assert (await client.get(f"/v1/credits/reservations/{identifier}")).refusal == (404, "no_reservation")


async def test_commit_and_abort_heed_if_match(client: Client) -> None:
    tenant = await client.tenant(100)
    hold = await client.reserve(tenant, 60)

    stale_commit = await client.post(path(hold, "commit"), If_Match='"2"')
    stale_abort = await client.post(path(hold, "abort"), If_Match='"2"')
    fits = await client.post(path(hold, "commit"), If_Match='"3"')

    assert stale_commit.refusal == (409, "version_conflict")
    assert stale_abort.refusal == (409, "version_conflict")
    assert fits.status == 200


async def test_racing_commits_and_aborts_have_one_winner(client: Client) -> None:
    tenant = await client.tenant(100)
    hold = await client.reserve(tenant, 60)

    replies = await asyncio.gather(*(client.post(path(hold, verb)) for verb in ("commit", "abort") * 5))

    assert sorted(reply.status for reply in replies) == [200] + [409] * 9
    codes = {reply.code for reply in replies if reply.status == 409}
    assert len(codes) == 1
    assert await client.numbers(tenant) in {(40, 0, 4), (100, 0, 4)}


async def test_the_sweeper_expires_a_hold_and_a_late_commit_learns_it(client: Client) -> None:
    tenant = await client.tenant(100)
    hold = await client.reserve(tenant, 60, ttl_seconds=1)

    shown = await expired(client, hold)
    commit = await client.post(path(hold, "commit"))
    abort = await client.post(path(hold, "abort"))

    assert shown["status"] == "expired"
    assert shown["closed_at"] >= shown["expires_at"]
    assert commit.refusal == (409, "reservation_expired")
    assert abort.refusal == (409, "reservation_expired")
    assert await client.numbers(tenant) == (100, 0, 4)
    kinds = [one["type"] for one in (await client.get(f"/v1/accounts/{tenant}/transactions")).body["data"]]
    assert kinds == ["expire", "reserve", "topup", "account"]


async def test_expires_at_is_ttl_seconds_after_the_creation(client: Client) -> None:
    tenant = await client.tenant(10)

    default = await client.done("/v1/credits/reserve", {"tenant_id": tenant, "amount": 1})
    longest = await client.reserve(tenant, 1, ttl_seconds=86_400)

    for hold, seconds in ((default, 300), (longest, 86_400)):
        shown = (await client.get(path(hold))).body
        created, expires = (time.strptime(shown[name][:19], "%Y-%m-%dT%H:%M:%S") for name in ("created_at", "expires_at"))
        assert time.mktime(expires) - time.mktime(created) == seconds
        assert shown["created_at"][19:] == shown["expires_at"][19:]
        assert shown["expires_at"] == hold["expires_at"]


async def test_reservations_are_listed_by_status_newest_first(client: Client) -> None:
    tenant = await client.tenant(100)
    holds = [await client.reserve(tenant, 1) for _ in range(5)]
    await client.done(path(holds[0], "commit"))
    await client.done(path(holds[1], "abort"))
    ids = [hold["reservation_id"] for hold in reversed(holds)]

    async def listed(query: str) -> list[str]:
        return [
            one["reservation_id"] for one in (await client.get(f"/v1/accounts/{tenant}/reservations?{query}")).body["data"]
        ]

    first = (await client.get(f"/v1/accounts/{tenant}/reservations?limit=3")).body
    rest = (await client.get(f"/v1/accounts/{tenant}/reservations?limit=3&cursor={first['next_cursor']}")).body
    assert [one["reservation_id"] for one in first["data"] + rest["data"]] == ids
    assert rest["next_cursor"] is None
    assert await listed("status=held") == ids[:3]
    assert await listed("status=committed") == [ids[4]]
    assert await listed("status=aborted") == [ids[3]]
    assert await listed("status=expired") == []
