"""Fixtures of the web floor: real servers on free ports."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
import uvloop
from web_sample import Server, start

from app.web.connections import ConnectionLimits


@pytest.fixture(scope="session", params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Every test with a server runs on both event loops: their transports differ."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


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
