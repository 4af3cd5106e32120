"""The session's server, as an attacker meets it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.credits.ledger_client import Client


@pytest.fixture
async def document(client: Client) -> Any:
    """The OpenAPI document of the running server."""
    reply = await client.call("GET", "/openapi.json", Authorization=None)
    assert reply.status == 200
    return reply.body
