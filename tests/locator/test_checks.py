"""Active checks: real connections, rise and fall, and one replica for each instance."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from app.locator.checks import FALL, RISE, owner_of, verdict
from app.locator.instance import Check, State
from app.locator.probe import probe
from app.locator.target import CheckTarget
from tests.locator.replicas import Replica, eventually, instance, replicas

LOCAL = (ipaddress.ip_network("127.0.0.0/8"),)


class Target:
    """A real listener that answers every request with what it is told to."""

    def __init__(self) -> None:
        """Answer 200 at first."""
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        self.requests: list[bytes] = []
        self.server: asyncio.Server | None = None
        self.port = 0

    async def start(self, port: int = 0) -> None:
        """Listen."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answer)
                await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        self.server = await asyncio.start_server(serve, "127.0.0.1", port)
        self.port = self.server.sockets[0].getsockname()[1]


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    made = Target()
    await made.start()
    yield made
    assert made.server is not None
    made.server.close()


async def test_a_check_is_good_when_the_target_answers_2xx_and_bad_otherwise(target: Target) -> None:
    http = CheckTarget("127.0.0.1", target.port, "/healthz")

    assert await probe(http, LOCAL)
    assert target.requests[0].startswith(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:")
    for answer in (
        b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
        b"HTTP/1.1 503 No\r\n\r\n",
        b"SSH-2.0\r\n",
        b"x" * 10_000,
        b"",
    ):
        target.answer = answer
        assert not await probe(http, LOCAL)
    assert await probe(CheckTarget("127.0.0.1", target.port), LOCAL)
    assert await probe(CheckTarget("localhost", target.port), (*LOCAL, ipaddress.ip_network("::1/128")))


async def test_a_check_connects_to_no_closed_address_and_waits_for_nobody(target: Target) -> None:
    assert not await probe(CheckTarget("127.0.0.1", target.port), ())
    assert not await probe(CheckTarget("localhost", target.port, "/"), ())
    assert not await probe(CheckTarget("nobody.invalid", 80), LOCAL)
    assert target.requests == []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert not await probe(CheckTarget("127.0.0.1", port, "/"), LOCAL, timeout_s=0.05)


def test_two_good_results_bring_an_instance_back_and_three_bad_ones_take_it_out() -> None:
    assert [verdict(row, "critical") for row in (1, RISE)] == ["critical", "passing"]
    assert [verdict(row, "passing") for row in (-1, -2, -FALL)] == ["passing", "passing", "critical"]
    assert verdict(1, "none") == "passing"


def test_every_replica_checks_its_share_and_a_lost_one_moves_only_its_own() -> None:
    fields = [f"web/i{number}" for number in range(600)]

    before = {field: owner_of(field, ("r1", "r2", "r3")) for field in fields}
    after = {field: owner_of(field, ("r1", "r3")) for field in fields}

    assert min(Counter(before.values()).values()) > 140
    assert all(after[field] == owner for field, owner in before.items() if owner != "r2")


async def checked(replica: Replica, times: int) -> None:
    """Let some rounds of checks pass."""
    assert replica.checks is not None
    for _ in range(times):
        made = replica.checks.made
        replica.clock.now_s += 5.0
        replica.checks.tick(replica.clock_s())
        await eventually(lambda made=made: replica.checks.made > made)


async def test_an_instance_whose_checks_fail_is_down_on_every_replica_until_they_pass(
    redis_url: str, target: Target
) -> None:
    async with replicas(redis_url, 2) as (one, other):
        check = Check("http", "/healthz", 1.0)
        await one.register("web", "a", None, instance(host="127.0.0.1", port=target.port, ttl_s=0.0, check=check))
        await eventually(lambda: other.state("web", "a") is State.UP)
        assert one.checks is not None
        one.checks.tick(one.clock_s())

        target.answer = b"HTTP/1.1 500 Broken\r\n\r\n"
        await checked(one, FALL)
        await eventually(lambda: other.state("web", "a") is State.DOWN)
        assert one.balancer.pick(one.directory.services["web"].snapshot, now_s=one.clock_s()) is None

        target.answer = b"HTTP/1.1 204 Well\r\n\r\n"
        await checked(one, RISE)
        await eventually(lambda: (one.state("web", "a"), other.state("web", "a")) == (State.UP, State.UP))
