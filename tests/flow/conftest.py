"""Whole servers, as an operator runs them."""

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


@pytest.fixture(scope="session")
def embedded(house: LedgerHouse) -> ShieldxServer:
    return house.embedded()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def client(session: aiohttp.ClientSession, server: ShieldxServer) -> Client:
    return Client(session, server.url)
