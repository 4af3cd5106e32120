"""Traffic of every kind that leaves a trace in the metrics: money, refusals, experiments, rules, look-ups."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import aiohttp

from tests.credits.ledger_client import Client, Reply, fresh

ROUNDS: Final = 15
PATIENCE_S: Final = 30.0
EXPERIMENT: Final = {
    "name": "live-checkout", "allocation": "fixed", "variants": [{"name": "old", "control": True}, {"name": "new"}],
}  # fmt: skip
RULE: Final = {
    "name": "live-limits",
    "versions": [
        {"name": "v1", "expression": 'input.amount > 1000 ? "review" : "allow"'},
        {"name": "v2", "expression": 'input.amount > 900 ? "review" : "allow"'},
    ],
    "champion": "v1",
    "challenger": "v2",
}


class Patient(Client):
    """A client that repeats, under the same key, what is answered with 503, as the API asks it to."""

    async def call(self, *arguments: Any, **fields: Any) -> Reply:
        """Call until the answer is not 503. TimeoutError when it stays so."""
        async with asyncio.timeout(PATIENCE_S):
            while (reply := await super().call(*arguments, **fields)).status == 503:
                await asyncio.sleep(0.1)
        return reply


async def open_everything(client: Client) -> str:
    """Make an account, an experiment, a rule and an instance; return the tenant."""
    await client.post("/v1/experiments", EXPERIMENT)
    await client.post("/v1/rules", RULE)
    await client.call("PUT", "/v1/services/live/instances/a", {"host": "10.0.0.7", "port": 8080, "zone": "a"})
    return await client.tenant(1_000_000)


async def money(client: Client, tenant: str) -> None:
    """Move credits in every way, once refused and once replayed."""
    spent = await client.consume(tenant, 5)
    await client.post("/v1/credits/refund", {"tenant_id": tenant, "transaction_id": spent["transaction_id"], "amount": 2})
    for verb, body in (("commit", {"amount": 3}), ("abort", {})):
        held = await client.reserve(tenant, 10)
        await client.post(f"/v1/credits/reservations/{held['reservation_id']}/{verb}", body)
    key = fresh("again")
    for amount in (1, 1, 2):  # the second is replayed, the third is a collision
        await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": amount}, key=key)
    await client.post("/v1/credits/consume", {"tenant_id": tenant, "amount": 10**12})
    await client.get(f"/v1/accounts/{tenant}")
    await client.get(f"/v1/accounts/{tenant}/transactions")


async def experiment(client: Client, number: int) -> None:
    """Assign a unit, report what became of it, evaluate the rule."""
    unit = f"unit-{number}"
    await client.post("/v1/experiments/live-checkout/assign", {"unit_id": unit})
    outcome: dict[str, Any] = {"unit_id": unit, "success": number % 3 == 0, "latency_ms": 20 + number}
    await client.post("/v1/experiments/live-checkout/outcomes", outcome | {"event_id": fresh("event")})
    await client.post("/v1/rules/live-limits/evaluate", {"input": {"amount": 880 + number}})


async def look_up(client: Client) -> None:
    """Ask the locator, with success and without, report a call, and call without a key."""
    lent = (await client.get("/v1/services/live/lookup")).body
    await client.post("/v1/services/live/report", {"lease_id": lent["lease_id"], "ok": True, "latency_ms": 3.5})
    await client.get("/v1/services/nobody/lookup")
    await client.call("GET", "/v1/accounts", Authorization=None)


async def bring_traffic(url: str, rounds: int = ROUNDS) -> None:
    """Play some rounds of everything, side by side."""
    async with aiohttp.ClientSession() as session:
        client = Patient(session, url)
        tenant = await open_everything(client)
        for number in range(rounds):
            await asyncio.gather(money(client, tenant), experiment(client, number), look_up(client))
