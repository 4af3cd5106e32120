"""Two servers on one pair of stores: one is killed and one is paused in the middle of batches, and every total is exact."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import aiohttp
import pytest

from tests.credits.ledger_client import Client, fresh
from tests.credits.ledger_house import house_of
from tests.server import ShieldxServer
from tests.shadow.conftest import until

BATCHES: Final = 60
BATCH: Final = 50
CALL_TIMEOUT_S: Final = 1.0  # shorter than the pause: what was sent to the paused server is sent to the other, too
KILLED_AT: Final = 8  # answered batches
PAUSED_FOR: Final = 6  # more answered batches


def batch(number: int) -> list[dict[str, Any]]:
    """Return the outcomes of a batch: every second one of b, every tenth a success, every fourth an error."""
    return [
        {"event_id": f"{number}-{i}", "success": i % 10 == 0, "error": i % 4 == 0, "variant": "ab"[i % 2], "latency_ms": i}
        for i in range(BATCH)
    ]


class Load:
    """Sends every batch until it is answered, to one server and then to the other."""

    def __init__(self, clients: list[Client], path: str) -> None:
        """`path` is that of the outcomes."""
        self.clients = clients
        self.path = path
        self.answered = 0
        self.accepted = 0
        self.repeated = 0

    async def send(self, number: int) -> None:
        """Send one batch; AssertionError when a server answers anything but 200 or 503."""
        turn = number
        while True:
            client = self.clients[turn % 2]
            turn += 1
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    reply = await client.call("POST", self.path, {"outcomes": batch(number)})
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                await asyncio.sleep(0.01)
                continue
            assert reply.status in {200, 503}, reply.raw
            await asyncio.sleep(0.02)  # so that the load outlasts the disturbances
            if reply.status == 200:
                self.answered += 1
                self.accepted += reply.body["accepted"]
                self.repeated += reply.body["duplicates"]
                return
            await asyncio.sleep(0.05)

    async def worker(self, first: int) -> None:
        """Send every fourth batch."""
        for number in range(first, BATCHES, 4):
            await self.send(number)


async def disturb(one: ShieldxServer, two: ShieldxServer, load: Load) -> None:
    """Kill one server in mid-batch, later pause the other, and start the first again."""
    await until(lambda: load.answered >= KILLED_AT, "batches before the kill")
    one.kill()
    one.launch()

    async def takes_outcomes() -> bool:
        return (await one.readiness())[1].get("checks", {}).get("shadow", {}).get("state") == "ok"

    await until(takes_outcomes, "the first server again")
    two.pause()
    before = load.answered
    await until(lambda: load.answered >= min(before + PAUSED_FOR, BATCHES - 4), "batches during the pause")
    two.resume()


async def test_totals_are_exact_when_one_replica_is_killed_and_one_is_paused(pytestconfig: pytest.Config) -> None:
    house = house_of(pytestconfig)
    ledger = await house.make_ledger()
    one, two = house.server_on(ledger, "shadow-one"), house.server_on(ledger, "shadow-two")
    await one.start()
    await two.start()
    async with aiohttp.ClientSession() as session:
        clients = [Client(session, server.url) for server in (one, two)]
        name = fresh("exp")
        variants = [{"name": "a", "control": True}, {"name": "b"}]
        await clients[0].done("/v1/experiments", {"name": name, "variants": variants, "allocation": "fixed"})
        load = Load(clients, f"/v1/experiments/{name}/outcomes")

        await asyncio.gather(disturb(one, two, load), *(load.worker(first) for first in range(4)))
        seen = [(await client.get(f"/v1/experiments/{name}/analysis?draws=10")).body for client in clients]

    total = BATCHES * BATCH
    assert load.accepted + load.repeated == total
    for analysis in seen:
        assert [one["samples"] for one in analysis["variants"]] == [total // 2, total // 2]
        assert sum(one["successes"] for one in analysis["variants"]) == total // 10
        assert sum(one["errors"] for one in analysis["variants"]) == BATCHES * (BATCH // 4 + 1)
    assert two.pauses == 1
    assert [server.stop() for server in (one, two)] == [0, 0]
