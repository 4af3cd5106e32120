"""What Redis remembers of the logs: the last tree of each that was signed or about to be.

Whoever may write to Postgres can take checkpoints away and state another history below them. Redis is another store, so a
verifier that may ask it knows trees that such a history does not have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.audit.checkpoint import Checkpoint
from app.db.keys import checkpoint_key, shard_tag
from app.db.redis import RedisLink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.db.topology import Topology


class MemoryUnreadable(Exception):
    """What Redis holds is not the memory of a tree."""


async def remembered_tree(link: RedisLink, shard: int) -> tuple[int, bytes] | None:
    """Return size and root of the tree that Redis remembers of a shard, None when it remembers none.

    Raises MemoryUnreadable, and what the open link raises.
    """
    size, root = await link.command("HMGET", checkpoint_key(shard), "size", "root")
    if size is None and root is None:
        return None
    try:
        return int(size), bytes.fromhex(root.decode("ascii"))
    except (TypeError, ValueError, AttributeError):
        raise MemoryUnreadable(f"what Redis remembers of shard {shard} cannot be read") from None


async def remembered_trees(topology: Topology, origins: Sequence[str]) -> tuple[Checkpoint, ...]:
    """Return the trees that Redis remembers of the logs with these origins, by shard, over connections of its own.

    Each is of durable entries, so every snapshot of Postgres that is taken afterwards holds them. Raises MemoryUnreadable,
    and what a link raises.
    """
    trees = []
    for shard, origin in enumerate(origins):
        link = RedisLink(topology, shard_tag(shard))
        await link.open()
        try:
            known = await remembered_tree(link, shard)
        finally:
            await link.close()
        if known is not None:
            trees.append(Checkpoint(origin, *known))
    return tuple(trees)
