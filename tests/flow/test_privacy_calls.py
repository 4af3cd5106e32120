"""Payment data on a whole server: kept with the top-up, erased over HTTP, and a chain that verifies all the while."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from app.cli import main
from app.privacy.payment import Payment, commitment
from tests.credits.ledger_client import Client, fresh
from tests.credits.ledger_house import Ledger
from tests.server import MASTER_KEY

CARD = "4111111111111111"
PAYMENT = {"card_number": CARD, "cvv": "987", "cardholder_name": "John Doe", "expiry": "12/27"}
SOON_S = 20.0


async def pay(client: Client, tenant: str, key: str, amount: int = 5, **payment: str) -> Any:
    body = {"tenant_id": tenant, "amount": amount, "payment": PAYMENT | payment}
    return await client.post("/v1/credits/topup", body, key=key)


async def rows(ledger: Ledger, sql: str, *values: Any) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(ledger.database_url)
    try:
        found: list[asyncpg.Record] = await connection.fetch(sql, *values)
        return found
    finally:
        await connection.close()


async def shown(ledger: Ledger, tenant: str) -> list[Any]:
    found = await rows(ledger, "SELECT shown::text FROM private_records WHERE tenant_id = $1 ORDER BY created_at", tenant)
    return [json.loads(row[0]) for row in found]


async def test_a_payment_is_kept_once_under_its_key(client: Client, ledger: Ledger) -> None:
    tenant, key = await client.tenant(), fresh("pay")

    first = await pay(client, tenant, key)
    again = await pay(client, tenant, key, cvv="123")
    other = await pay(client, tenant, key, card_number="4222222222222")
    without = await client.post("/v1/credits/topup", {"tenant_id": tenant, "amount": 5}, key=key)

    assert (first.status, again.status, again.replayed) == (200, 200, True)
    assert first.body == again.body
    assert other.refusal == without.refusal == (422, "idempotency_key_reused")
    assert await client.numbers(tenant) == (5, 0, 2)
    assert await shown(ledger, tenant) == [
        {"card_number": "****-****-****-1111", "cardholder_name": "Jo****", "expiry": "**/**"}
    ]


async def test_nothing_is_kept_of_a_payment_that_was_refused(client: Client, ledger: Ledger) -> None:
    tenant, nobody = await client.tenant(), fresh("nobody")
    body = {"tenant_id": tenant, "amount": 5, "payment": PAYMENT, "expected_version": 9}

    refused = [await pay(client, nobody, fresh("pay")), await client.post("/v1/credits/topup", body)]
    again = await pay(client, nobody, "k" + fresh("pay"))

    assert [reply.code for reply in (*refused, again)] == ["no_account", "version_conflict", "no_account"]
    assert await shown(ledger, nobody) == await shown(ledger, tenant) == []
    assert await rows(ledger, "SELECT subject FROM private_keys WHERE subject = ANY($1)", [nobody, tenant]) == []


async def test_operations_of_a_batch_may_have_payments(client: Client, ledger: Ledger) -> None:
    tenant, key = await client.tenant(), fresh("batch")
    one = {"op": "topup", "tenant_id": tenant, "amount": 5, "payment": {"card_number": CARD}}
    operations = [one, {"op": "consume", "tenant_id": tenant, "amount": 1}, one | {"tenant_id": fresh("nobody")},
                  one | {"idempotency_key": f"{key}/0", "payment": {"card_number": "4222222222222"}}]  # fmt: skip

    first = await client.post("/v1/credits/batch", {"operations": operations}, key=key)
    again = await client.post("/v1/credits/batch", {"operations": operations}, key=key)
    many = await client.post("/v1/credits/batch", {"operations": [one] * 101})

    assert [result["status"] for result in first.body["results"]] == [200, 200, 404, 422]
    assert [result.get("seq") for result in again.body["results"]] == [result.get("seq") for result in first.body["results"]]
    assert await shown(ledger, tenant) == [{"card_number": "****-****-****-1111"}]
    assert many.refusal == (422, "invalid_request")


async def test_an_erasure_destroys_what_is_known_and_the_chain_verifies(
    client: Client, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    tenant, other = await client.tenant(), await client.tenant()
    for name in (tenant, tenant, other):
        assert (await pay(client, name, fresh("pay"))).status == 200

    erased = await client.post("/v1/privacy/erasures", {"subject": tenant})
    again = await client.post("/v1/privacy/erasures", {"subject": tenant})
    code = await asyncio.to_thread(main, ["audit", "verify", "--json", "--database-url", ledger.database_url])

    report = json.loads(capsys.readouterr().out)
    assert erased.body["records"] == {"payment": 2}
    assert (again.status, again.body) == (200, {"erasure_id": None, "records": {}})
    assert report["ok"], report
    assert (code, report["ok"], report["private"]["erased"], report["private"]["missing"]) == (0, True, 2, 0)
    assert report["private"]["verified"] >= 1
    assert (await shown(ledger, tenant), len(await shown(ledger, other))) == ([], 1)
    entries = await rows(ledger, "SELECT convert_from(entry, 'UTF8') FROM audit_chain WHERE type = 'privacy.erasure'")
    assert [erased.body["erasure_id"] in row[0] for row in entries].count(True) == 1
    assert not [row for row in entries if tenant in row[0]]


async def test_a_payment_is_shown_masked_and_in_the_clear_only_on_the_record(
    client: Client, ledger: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await client.tenant()
    paid = (await pay(client, tenant, fresh("pay"))).body["transaction_id"]
    plain = (await client.topup(tenant, 5))["transaction_id"]
    monkeypatch.setenv("SHIELDX_MASTER_KEYS", MASTER_KEY)
    command = ["payment", "show", paid, "--purpose", f"case 17 {CARD}", "--database-url", ledger.database_url]

    seen = [(await client.get(f"/v1/transactions/{one}")).body.get("payment") for one in (paid, plain)]
    code = await asyncio.to_thread(main, command)
    printed = json.loads(capsys.readouterr().out)
    await client.post("/v1/privacy/erasures", {"subject": tenant})
    after = (await client.get(f"/v1/transactions/{paid}")).body["payment"]
    codes = [await asyncio.to_thread(main, [*command[:2], one, *command[3:]]) for one in (paid, plain, fresh("x"))]

    assert seen == [{"card_number": "****-****-****-1111", "cardholder_name": "Jo****", "expiry": "**/**"}, None]
    payment = Payment(CARD, "John Doe", "12/27")
    assert (code, printed["payment"]) == (0, {"card_number": CARD, "cardholder_name": "John Doe", "expiry": "12/27"})
    assert commitment(bytes.fromhex(printed["salt"]), "payment", payment.canonical()).hex() == printed["commitment"]
    assert (after, codes) == ({"erased": True}, [2, 2, 2])
    pending = await rows(ledger, "SELECT details::text FROM pending_entries WHERE kind = 'privacy.read' ORDER BY at")
    assert "case 17 ****-****-****-1111" in pending[0][0]
    assert CARD not in "".join(row[0] for row in pending)


async def test_a_top_up_shows_a_payment_if_it_had_one_whatever_else_its_entry_says(client: Client) -> None:
    tenant = await client.tenant(low_balance_threshold=10)
    without = await client.topup(tenant, 50)
    paid = (await pay(client, tenant, fresh("pay"))).body

    seen = [(await client.get(f"/v1/transactions/{one['transaction_id']}")).body for one in (without, paid)]

    assert ([one["status"] for one in seen], "payment" in seen[0]) == (["committed"] * 2, False)
    assert seen[1]["payment"]["card_number"] == "****-****-****-1111"


async def test_a_limited_admin_erases_its_own_tenants_only(client: Client) -> None:
    mine, foreign = await client.tenant(), await client.tenant()
    for name in (mine, foreign):
        await pay(client, name, fresh("pay"))
    made = await client.done("/v1/keys", {"name": "limited", "role": "admin", "tenants": [mine]})
    bearer = f"Bearer {made['key']}"
    async with asyncio.timeout(SOON_S):
        while (await client.call("GET", f"/v1/accounts/{mine}", Authorization=bearer)).status != 200:
            await asyncio.sleep(0.05)

    denied = await client.call("POST", "/v1/privacy/erasures", {"subject": foreign}, Authorization=bearer)
    done = await client.call("POST", "/v1/privacy/erasures", {"subject": mine}, Authorization=bearer)

    assert denied.refusal == (404, "no_account")
    assert done.body["records"] == {"payment": 1}
    assert (await client.post("/v1/privacy/erasures", {"subject": foreign})).body["records"] == {"payment": 1}


async def test_reading_many_pages_of_the_chain_is_one_entry(client: Client, ledger: Ledger) -> None:
    made = await client.done("/v1/keys", {"name": "auditor", "role": "auditor"})
    bearer = f"Bearer {made['key']}"
    sql = "SELECT convert_from(entry, 'UTF8') FROM audit_chain WHERE type = 'audit.read' ORDER BY seq"
    async with asyncio.timeout(SOON_S):
        while (await client.call("GET", "/v1/audit/entries?limit=1", Authorization=bearer)).status != 200:
            await asyncio.sleep(0.05)

    for _ in range(40):
        assert (await client.call("GET", "/v1/audit/entries?limit=1", Authorization=bearer)).status == 200
    async with asyncio.timeout(SOON_S):
        while not (told := [row[0] for row in await rows(ledger, sql) if made["key_id"] in row[0]]):
            await asyncio.sleep(0.05)

    assert len(told) == 1
    assert '"route":"GET /v1/audit/entries"' in told[0]


async def test_usage_is_rolled_up_and_the_summary_is_made_by_the_server_itself(client: Client, ledger: Ledger) -> None:
    tenant = await client.tenant(100)
    await client.consume(tenant, 30)
    async with asyncio.timeout(SOON_S):
        while not await rows(ledger, "SELECT FROM usage_hourly WHERE tenant_id = $1 AND type = 'consume'", tenant):
            await asyncio.sleep(0.1)

    await client.consume(tenant, 5)
    buckets = (await client.get(f"/v1/accounts/{tenant}/usage")).body["data"]

    assert sum(bucket["consumed"] for bucket in buckets) == 35
    assert sum(bucket["transactions"] for bucket in buckets) == 3
    assert await rows(ledger, "SELECT FROM ledger_jobs WHERE name = 'balances summary'")
