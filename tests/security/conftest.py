"""The session's server, as an attacker meets it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.credits.ledger_client import Client
from tests.credits.ledger_house import LedgerHouse, house_of
from tests.server import ShieldxServer


@pytest.fixture(scope="session")
def house(pytestconfig: pytest.Config) -> LedgerHouse:
    return house_of(pytestconfig)


@pytest.fixture(scope="session")
def server(house: LedgerHouse) -> ShieldxServer:
    return house.server(1)[0]


@pytest.fixture
async def client(server: ShieldxServer) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(session, server.url)


@pytest.fixture
async def document(client: Client) -> Any:
    """The OpenAPI document of the running server."""
    reply = await client.call("GET", "/openapi.json", Authorization=None)
    assert reply.status == 200
    return reply.body
