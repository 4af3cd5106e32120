"""A running server on real stores, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.credits.ledger_client import Client
from tests.credits.ledger_house import Ledger, LedgerHouse, house_of
from tests.server import ShieldxServer


@pytest.fixture(scope="session")
def house(pytestconfig: pytest.Config) -> LedgerHouse:
    return house_of(pytestconfig)


@pytest.fixture(scope="session")
def server(house: LedgerHouse) -> ShieldxServer:
    return house.server(1)[0]


@pytest.fixture(scope="session")
def ledger(house: LedgerHouse) -> Ledger:
    return house.server(1)[1]


@pytest.fixture
async def client(server: ShieldxServer) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(session, server.url)


@pytest.fixture
async def wide(house_of_two: ShieldxServer) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(session, house_of_two.url)


@pytest.fixture(scope="session")
def house_of_two(house: LedgerHouse) -> ShieldxServer:
    return house.server(2)[0]
