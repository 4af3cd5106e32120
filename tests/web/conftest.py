"""Fixtures of the web floor: real servers on free ports."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
import uvloop
from web_sample import Server, start

from app.web.connections import ConnectionLimits


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test with a server runs on both event loops: their transports differ."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A sample server with the limits of production, except for lingering."""
    running = await start(ConnectionLimits(linger_s=0.2))
    yield running
    await running.runner.cleanup()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the sample server."""
    async with aiohttp.ClientSession(server.url) as session:
        yield session
