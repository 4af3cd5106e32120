"""Where keys live: what a URL names, and a real Sentinel whose master dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from app.db.redis import RedisLink, subscribe
from app.db.retry import TRANSIENT
from app.db.topology import Cluster, OneServer, Sentinels, make_topology
from tests.redis_groups import Sentinel, TcpRedis
from tests.stores import PrivateRedis, remove_sockets_directory, run_apart, store_directory

NAME = "money"
FAILOVER_TIMEOUT_S = 90.0


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://user:word@host:6379/3", OneServer),
        ("rediss://host:6379/0", OneServer),
        ("unix:///run/redis.sock?db=1", OneServer),
        ("redis+sentinel://:word@a:26379,b:26379/money/2", Sentinels),
        ("rediss+sentinel://[::1]:26379/money?sentinel_password=x", Sentinels),
        ("redis+cluster://user:word@10.0.0.1:7000,node-2.example:7001", Cluster),
        ("rediss+cluster://[2001:db8::1]:7000/0", Cluster),
    ],
)
def test_a_url_names_a_topology(url: str, kind: type) -> None:
    assert isinstance(make_topology(url), kind)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost", "redis+proxy://a:1", "redis+cluster://a", "redis+cluster://a:0", "redis+cluster://a:65536",
        "redis+cluster://a:1,", "redis+cluster://a:1/2", "redis+cluster://a b:1", "redis+sentinel://a:1",
        "redis+sentinel://a:1/money/two", "redis+cluster://",
    ],
)  # fmt: skip
def test_a_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected|scheme|database"):
        make_topology(url)


async def test_nobody_to_ask_is_an_error_that_passes_and_names_who_was_asked() -> None:
    topology = make_topology("redis+cluster://127.0.0.1:1,127.0.0.1:2")

    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1: ConnectionError; 127\.0\.0\.1:2: ConnectionError"):
        await topology.pool("{s00}:")
    await topology.close()


async def test_servers_that_have_no_keys_any_more_leave_nothing_behind() -> None:
    ports = iter(range(30_000, 30_100))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while first := await reader.readline():
            words = [(await reader.readline(), await reader.readline())[1] for _ in range(int(first[1:]))]
            master = b"*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % next(ports) if words[0] == b"CLUSTER\r\n" else b""
            writer.write(b"*1\r\n*3\r\n:0\r\n:16383\r\n" + master if master else b"+OK\r\n")
        writer.close()

    node = await asyncio.start_server(answer, "127.0.0.1", 0)
    topology = make_topology(f"redis+cluster://127.0.0.1:{node.sockets[0].getsockname()[1]}")
    seen = set()
    for _ in range(5):
        seen.add((await topology.pool("{t}:")).connection_kwargs["port"])
        topology.outdate()

    assert len(seen) == 5
    assert isinstance(topology, Cluster)
    assert [address.port for address in topology._pools] == [max(seen)]
    await topology.close()
    node.close()


class Watched(NamedTuple):
    """A master, its replica, and the Sentinel that watches both."""

    master: TcpRedis
    replica: TcpRedis
    sentinel: Sentinel


async def make_watched(root: Path) -> Watched:
    plain = [await PrivateRedis.make(root / name) for name in ("master", "replica", "sentinel")]
    master = TcpRedis(plain[0].directory, plain[0].server)
    replica = TcpRedis(plain[1].directory, plain[1].server, ("--replicaof", "127.0.0.1", str(master.port)))
    return Watched(master, replica, Sentinel(plain[2].directory, plain[2].server, NAME, master, replica))


@pytest.fixture
def watched() -> Iterator[Watched]:
    with store_directory("sentinel") as root:
        group = run_apart(make_watched(root))
        try:
            for server in group:
                server.launch()
                run_apart(server.wait_ready())
            yield group
        finally:
            for server in group:
                server.kill()
                remove_sockets_directory(server.socket.parent)


async def test_a_link_follows_the_master_that_the_sentinel_names(watched: Watched) -> None:
    topology = make_topology(f"redis+sentinel://127.0.0.1:1,{watched.sentinel.address}/{NAME}")
    link = RedisLink(topology, "{t}:")
    first = await link.open()
    await link.command("SET", "{t}:a", "1")
    async with asyncio.timeout(FAILOVER_TIMEOUT_S):
        while await link.command("WAIT", 1, 500) != 1:
            await link.command("INCR", "{t}:a")
    watched.master.kill()

    run_id = first
    async with asyncio.timeout(FAILOVER_TIMEOUT_S):
        while run_id == first:
            try:
                await link.command("INCR", "{t}:a")
            except TRANSIENT:
                await asyncio.sleep(0.02)
            if not link.is_open:
                with contextlib.suppress(*TRANSIENT):
                    run_id = await link.open()

    assert int(await link.command("GET", "{t}:a")) >= 1

    messages = await subscribe(topology, "{t}:news")
    await link.command("PUBLISH", "{t}:news", "x")
    async with asyncio.timeout(FAILOVER_TIMEOUT_S):
        while (message := await messages.get_message(timeout=1.0)) is None:
            pass
    assert message["data"] == b"x"
    await messages.aclose()
    await link.close()
    await topology.close()
