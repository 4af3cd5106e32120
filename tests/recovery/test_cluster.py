"""The ledger on a Redis Cluster: sixteen shards on three masters, a slot that moves, a node that dies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from recovery_house import House
from recovery_scene import Scene
from redis.crc import key_slot

from app.db.keys import shard_tag
from tests.redis_groups import PrivateCluster
from tests.stores import PrivatePostgres, remove_sockets_directory, run_apart, store_directory

SHARDS = 16


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateCluster]:
    with store_directory("cluster") as root:
        made = run_apart(PrivateCluster.make(root))
        try:
            for node in made.nodes:
                node.launch()
            run_apart(made.form())
            yield made
        finally:
            made.kill()
            for node in made.nodes:
                remove_sockets_directory(node.socket.parent)


@pytest.fixture
async def clustered_scene(
    cluster: PrivateCluster, recovery_postgres: PrivatePostgres, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> AsyncIterator[Scene]:
    url = await recovery_postgres.make_migrated_database()
    house = House(tmp_path_factory.mktemp("cluster"), recovery_postgres, cluster, url, shards=SHARDS)
    scene = Scene(house, seed)
    yield scene
    await scene.close()
    house.kill_servers()


async def test_a_slot_moves_and_a_node_dies_under_load(clustered_scene: Scene, cluster: PrivateCluster) -> None:
    scene = clustered_scene
    shard = scene.random.randrange(SHARDS)
    slot = key_slot(shard_tag(shard).encode())

    async with scene.load(clients=8):
        source = await cluster.owner_of(slot)
        target = scene.random.choice([node for node in cluster.nodes if node is not source])
        moved = await cluster.move_slot(slot, target)
        print(f"slot {slot} of shard {shard} moved with {moved} keys")
        await scene.some_time()
        target.kill()
        await scene.outage()
        await target.start()
        await cluster.wait_agreed()

    assert moved > 0
    assert await cluster.owner_of(slot) is target
