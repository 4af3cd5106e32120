"""Redis keys: one hash tag for all keys of a shard, and names that collide nowhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from app.db import keys
from app.db.keys import applied_channel, checkpoint_key, shard_keys, shard_tag

shards = st.integers(0, 4095)


@given(shards, shards)
def test_two_shards_share_no_key(first: int, second: int) -> None:
    mine, yours = ({*shard_keys(shard), applied_channel(shard), checkpoint_key(shard)} for shard in (first, second))

    assert (mine == yours) == (first == second)
    assert mine.isdisjoint(yours) == (first != second)
    assert len(mine) == 5


def test_all_keys_of_a_shard_fall_into_one_cluster_slot() -> None:
    for shard in (0, 7, 255):
        tag = shard_tag(shard)
        built = [f"{tag}{kind}:x" for kind in ("account", "holds", "reservation", "refunds", "idem")]

        slots = {
            key_slot(name.encode()) for name in (*shard_keys(shard), applied_channel(shard), checkpoint_key(shard), *built)
        }

        assert slots == {key_slot(tag[1 : tag.index("}")].encode())}


def test_every_key_is_described() -> None:
    assert keys.__doc__ is not None
    for name in (*shard_keys(0), applied_channel(0), checkpoint_key(0)):
        assert name in keys.__doc__
