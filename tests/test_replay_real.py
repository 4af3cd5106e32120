"""One real hour of two metered services, played at full speed through a kill -9 of the server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from app.replay import ReplayOptions, replay
from tests.server import ROOT_KEY, ShieldxServer
from tests.stores import store_directory

DATA = Path(__file__).parent / "data"
CONNECTIONS = 64
TENANTS = 20
HALF_TIMEOUT_S = 120


async def _trial_balance(server: ShieldxServer) -> dict[str, int]:
    headers = {"Authorization": f"Bearer {ROOT_KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{server.url}/v1/ledger/trial-balance") as answer,
    ):
        return await answer.json()


async def _spent(server: ShieldxServer, credits_min: int) -> None:
    """Return once the tenants have spent this much; the server may be busy, but not away."""
    while (await _trial_balance(server))["accounts"]["system:revenue"] < credits_min:
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(("name", "credits"), [("code", 18_305_870), ("conv", 26_450_535)])
async def test_a_real_hour_ends_with_exactly_its_tokens_although_the_server_is_killed(name: str, credits: int) -> None:
    path = DATA / f"azure-llm-2023-{name}.csv"
    with store_directory("real") as root:
        server = ShieldxServer(root)
        await server.start()
        options = ReplayOptions(file=path, url=server.url, key=ROOT_KEY, tenants=TENANTS, connections=CONNECTIONS)
        try:
            played = asyncio.create_task(replay(options))
            await asyncio.wait_for(_spent(server, credits // 2), HALF_TIMEOUT_S)
            server.kill()
            await server.start()

            summary = await played

            books = await _trial_balance(server)
            verified = await asyncio.to_thread(server.run_command, "audit", "verify", "--json", "--data-dir", f"{root}/data")
        finally:
            server.stop()

    assert (summary.complete, summary.credits_consumed) == (True, credits)
    assert summary.retries > 0
    assert books["accounts"]["system:revenue"] == credits
    assert books["total"] == 0
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["ok"] is True
