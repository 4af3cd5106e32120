"""Real groups of Redis servers for tests: a Cluster of three masters, and a master with a replica and Sentinels."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from server import free_port
from stores import POLL_S, START_TIMEOUT_S, PrivateRedis

from app.embedded.directory import DataDirectory
from app.embedded.redis_server import RedisServer

SLOTS: Final = 16_384
NODE_TIMEOUT_MS: Final = 1_000
MOVED_AT_ONCE: Final = 20  # keys


class TcpRedis(PrivateRedis):
    """A Redis that listens on a free TCP port as well, with settings of its own."""

    def __init__(self, directory: DataDirectory, server: RedisServer, options: Sequence[str] = ()) -> None:
        """`options` as on the server's command line."""
        self.port: Final = free_port()
        argv = (*server.command.argv, "--bind", "127.0.0.1", "--port", str(self.port), *options)
        command = dataclasses.replace(server.command, argv=argv)
        super().__init__(directory, dataclasses.replace(server, command=command))

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"


class PrivateCluster:
    """Three masters, each with a third of the slots, without replicas."""

    def __init__(self, nodes: Sequence[TcpRedis]) -> None:
        """Use `make` instead."""
        self.nodes: Final = tuple(nodes)

    @classmethod
    async def make(cls, root: Path) -> PrivateCluster:
        """Prepare three servers below `root`. They do not run yet."""
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
                   "--cluster-require-full-coverage", "no")  # fmt: skip
        nodes = []
        for number in range(3):
            plain = await PrivateRedis.make(root / f"node{number}")
            bus = ("--cluster-port", str(free_port()))
            nodes.append(TcpRedis(plain.directory, plain.server, (*options, *bus)))
        return cls(nodes)

    @property
    def url(self) -> str:
        """REDIS_URL of the Cluster, by two of its nodes."""
        return f"redis+cluster://{self.nodes[0].address},{self.nodes[1].address}"

    def client(self) -> Any:
        """Return a client that reads texts. Close it with `aclose`."""
        nodes = [ClusterNode("127.0.0.1", node.port) for node in self.nodes]
        return RedisCluster(startup_nodes=nodes, decode_responses=True)

    def aof_size(self) -> int:
        """Bytes in the append-only files."""
        return sum(node.aof_size() for node in self.nodes)

    async def form(self) -> None:
        """Make servers that have been launched one Cluster."""
        for node in self.nodes:
            await node.wait_ready()
        share = SLOTS // 3
        for number, node in enumerate(self.nodes):
            last = SLOTS - 1 if number == 2 else (number + 1) * share - 1
            await _say(node, "CLUSTER", "ADDSLOTSRANGE", number * share, last)
            if number:
                bus = _option(self.nodes[0], "--cluster-port")
                await _say(node, "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, bus)
        await self.wait_agreed()

    async def wait_agreed(self) -> None:
        """Wait until every node that runs knows who has all the slots."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            texts = [await _say(node, "CLUSTER", "INFO") for node in self.nodes if node.process is not None]
            if all("cluster_state:ok" in text and f"cluster_slots_ok:{SLOTS}" in text for text in texts):
                return
            assert time.monotonic() < deadline_s, f"the nodes do not agree: {texts}"
            await asyncio.sleep(POLL_S)

    async def owner_of(self, slot: int) -> TcpRedis:
        """Return the node that has a slot."""
        for first, last, master, *_ in await _say(self.nodes[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise AssertionError(f"nobody has slot {slot}")

    async def move_slot(self, slot: int, target: TcpRedis) -> int:
        """Move a slot key by key, as `redis-cli --cluster reshard` does; return how many keys went."""
        source = await self.owner_of(slot)
        source_id, target_id = [await _say(node, "CLUSTER", "MYID") for node in (source, target)]
        await _say(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await _say(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        moved = 0
        while keys := await _say(source, "CLUSTER", "GETKEYSINSLOT", slot, MOVED_AT_ONCE):
            await _say(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
            moved += len(keys)
        for node in (target, source, *self.nodes):
            await _say(node, "CLUSTER", "SETSLOT", slot, "NODE", target_id)
        return moved

    def kill(self) -> None:
        """SIGKILL every server."""
        for node in self.nodes:
            node.kill()


async def _say(node: PrivateRedis, *words: str | int) -> Any:
    client = node.client()
    try:
        return await client.execute_command(*words)
    finally:
        await client.aclose()


def _option(node: PrivateRedis, name: str) -> str:
    return node.command.argv[node.command.argv.index(name) + 1]


class Sentinel(TcpRedis):
    """One Sentinel that watches a master. It keeps what it learns in a file of its own."""

    def __init__(
        self, directory: DataDirectory, server: RedisServer, name: str, master: TcpRedis, replica: TcpRedis
    ) -> None:
        """`name` is what clients ask for. The replica is named, because a Sentinel asks the master only every 10 s."""
        super().__init__(directory, server)
        config = directory.redis / "sentinel.conf"
        lines = [
            f"port {self.port}", "bind 127.0.0.1", f"unixsocket {server.socket}", "unixsocketperm 700",
            f"sentinel monitor {name} 127.0.0.1 {master.port} 1", f"sentinel down-after-milliseconds {name} {NODE_TIMEOUT_MS}",
            f"sentinel known-replica {name} 127.0.0.1 {replica.port}",
        ]  # fmt: skip
        config.write_text("\n".join(lines) + "\n")
        if self.command.account is not None:
            os.chown(config, self.command.account.uid, self.command.account.gid)
        self.command = dataclasses.replace(self.command, argv=(self.command.argv[0], str(config), "--sentinel"))
