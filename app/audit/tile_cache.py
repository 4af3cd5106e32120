"""Tiles of hashes that were read once, kept because the hashes of a log never change. Pure.

A tile is kept from its first hash on; at the right edge of a tree it grows. Upper levels are few and every proof needs
them: a proof from ten million entries reads five tiles, of which four are kept after the first proofs. What was read is
held against what is kept: a full tile must hash to the node above it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from app.audit.entry import HASH_BYTES
from app.audit.merkle import NODE_PREFIX, TILE_HEIGHT, TILE_WIDTH, Node
from app.audit.tiles import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

UPPER_TILES_MAX: Final = 512  # of all logs, 16 KiB each, 8 MiB: all that 32 million entries have
LEAF_TILES_MAX: Final = 64  # of all logs, 1 MiB: proofs of new entries ask for the same ones again and again


class TileStale(Exception):
    """A tile does not hash to the node above it: one of the two was changed, or is of another history of the log."""


class TileKey(NamedTuple):
    """Which tile of which log."""

    shard: int
    level: int
    number: int


class HashTile:
    """The first hashes of a tile, and all nodes of the tree that consist of them."""

    __slots__ = ("heights", "width")

    def __init__(self, run: bytes) -> None:
        """`run` is one to 256 hashes of 32 bytes."""
        self.width: Final = len(run) // HASH_BYTES
        self.heights: Final = [run]
        sha256, pair_bytes = hashlib.sha256, 2 * HASH_BYTES
        for _ in range(TILE_HEIGHT):
            below = self.heights[-1]
            pairs = range(0, len(below) - HASH_BYTES, pair_bytes)
            # As `app.audit.merkle.node_hash` does, for two hashes that lie side by side.
            self.heights.append(b"".join([sha256(NODE_PREFIX + below[at : at + pair_bytes]).digest() for at in pairs]))

    def node(self, above: int, number: int) -> bytes:
        """Return the node `number`, counted in the tile, at a height above the tile's own of 0 to 8.

        Raises LookupError when the tile does not have it.
        """
        found = self.heights[above][number * HASH_BYTES : (number + 1) * HASH_BYTES]
        if not found:
            raise LookupError(f"node {number} at {above} above a tile of {self.width} hashes was not read")
        return found


class TileCache:
    """Tiles by log, level and number, the least used ones forgotten first: leaves and upper levels apart."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._upper: Final[OrderedDict[TileKey, HashTile]] = OrderedDict()
        self._leaves: Final[OrderedDict[TileKey, HashTile]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many tiles are kept."""
        return len(self._upper) + len(self._leaves)

    def clear(self) -> None:
        """Forget everything: what is stored now may be another history."""
        self._upper.clear()
        self._leaves.clear()

    def found(self, shard: int, runs: Iterable[Run]) -> dict[TileKey, HashTile]:
        """Return the tiles that hold all of their run; each run is of one tile."""
        found = {}
        for run in runs:
            key = tile_of(shard, run)
            kept = self._of(key)
            tile = kept.get(key)
            if tile is not None and run.high <= key.number * TILE_WIDTH + tile.width:
                kept.move_to_end(key)
                found[key] = tile
        return found

    def keep(self, tiles: Mapping[TileKey, HashTile]) -> None:
        """Keep tiles, in place of narrower ones."""
        for key, tile in tiles.items():
            kept = self._of(key)
            known = kept.get(key)
            if known is None or known.width < tile.width:
                kept[key] = tile
            kept.move_to_end(key)
        for tiles_kept, count in ((self._upper, UPPER_TILES_MAX), (self._leaves, LEAF_TILES_MAX)):
            while len(tiles_kept) > count:
                tiles_kept.popitem(last=False)

    def _of(self, key: TileKey) -> OrderedDict[TileKey, HashTile]:
        return self._upper if key.level else self._leaves


def tile_of(shard: int, run: Run) -> TileKey:
    """Return the tile that a run lies in."""
    return TileKey(shard, run.level, run.low // TILE_WIDTH)


def widened(run: Run, size: int) -> Run:
    """Return what is read for a run that is not kept: its tile, as far as the tree of `size` has it."""
    low = run.low - run.low % TILE_WIDTH
    return Run(run.level, low, min(low + TILE_WIDTH, size >> (TILE_HEIGHT * run.level)))


def check_tiles(tiles: Mapping[TileKey, HashTile]) -> None:
    """Hold every full tile against the tile above it, where both are there. Raises TileStale."""
    for key, tile in tiles.items():
        above = tiles.get(TileKey(key.shard, key.level + 1, key.number // TILE_WIDTH))
        place = key.number % TILE_WIDTH
        if tile.width < TILE_WIDTH or above is None or above.width <= place:
            continue
        if tile.node(TILE_HEIGHT, 0) != above.node(0, place):
            raise TileStale(
                f"shard {key.shard}: the {TILE_WIDTH} hashes of level {key.level} from {key.number * TILE_WIDTH} do not "
                f"hash to hash {key.number} of level {key.level + 1}"
            )


def nodes_of(tiles: Mapping[TileKey, HashTile], shard: int, nodes: Sequence[Node]) -> dict[Node, bytes]:
    """Return the hashes of nodes. Raises LookupError when the tiles do not have them."""
    hashes = {}
    for node in nodes:
        level, above = divmod(node.height, TILE_HEIGHT)
        number, place = divmod(node.number, TILE_WIDTH >> above)
        hashes[node] = tiles[TileKey(shard, level, number)].node(above, place)
    return hashes
