"""A server that is about to end tells its clients so, by whichever path a request is answered."""

from __future__ import annotations

import pytest
from web_sample import Server, exchange, parse

from app.web.fastpath import PATHS


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["fast", "aiohttp", "no route"],
)
async def test_each_answer_of_a_server_that_leaves_ends_its_connection(server: Server, sent: bytes) -> None:
    server.runner.app[PATHS].leaving = True

    answer = parse(await exchange(server.port, sent))

    assert answer.status in {200, 404}
    assert answer.headers["connection"] == "close"
