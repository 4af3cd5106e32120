"""C2SP tlog-tiles: how hashes and entries of a tree are cut into resources that any public verifier can read. Pure.

A tile at level l holds 256 neighbouring nodes of height 8 * l, fewer at the right edge of the tree. A bundle holds the
entries whose hashes are in the tile of level 0 with the same number. Source: https://c2sp.org/tlog-tiles
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from app.audit.entry import HASH_BYTES
from app.audit.merkle import SIZE_MAX, TILE_HEIGHT, TILE_WIDTH, Node, Span, fold, full_subtrees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

LEVEL_MAX: Final = 63  # of the specification
ENTRY_BYTES_MAX: Final = 65_535  # a bundle gives the length of an entry 16 bits
_LENGTH_BYTES: Final = 2
_PATH: Final = re.compile(r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII)


class TileRefused(ValueError):
    """The path or the bytes are not those of a tile; the text says why."""


class Tile(NamedTuple):
    """Which tile or bundle: `level` is "entries" for a bundle; `width` counts the hashes or entries in it."""

    level: int | Literal["entries"]
    number: int
    width: int = TILE_WIDTH

    @property
    def low(self) -> int:
        """The number, at its level, of the first hash in the tile."""
        return self.number * TILE_WIDTH

    @property
    def path(self) -> str:
        """The path below the prefix of the log, for example `tile/0/x001/x234/067.p/5`."""
        digits = f"{self.number % 1000:03d}"
        rest = self.number // 1000
        while rest:
            digits = f"x{rest % 1000:03d}/{digits}"
            rest //= 1000
        suffix = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{self.level}/{digits}{suffix}"

    def is_in(self, size: int) -> bool:
        """Whether a tree of this size has all hashes of the tile."""
        level = 0 if self.level == "entries" else self.level
        return self.low + self.width <= size >> (TILE_HEIGHT * level)


def parse_path(path: str) -> Tile:
    """Return the tile that a path below the log's prefix names. Raises TileRefused for any other spelling."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise TileRefused("this is no path of a tile")
    level: int | Literal["entries"] = "entries" if match[1] == "entries" else int(match[1])
    number = int(match[2].replace("/", "").replace("x", ""))
    tile = Tile(level, number, TILE_WIDTH if match[3] is None else int(match[3]))
    if level != "entries" and level > LEVEL_MAX:
        raise TileRefused(f"levels end at {LEVEL_MAX}")
    if match[3] is not None and tile.width >= TILE_WIDTH:
        raise TileRefused(f"a partial tile has at most {TILE_WIDTH - 1} hashes")
    if tile.low + tile.width > SIZE_MAX or tile.path != path:
        raise TileRefused("the number of the tile is too large or has leading zeros")
    return tile


def tiles_of_tree(size: int) -> list[Tile]:
    """Return the rightmost tile of every level and the rightmost bundle of a tree: those that a size needs anew."""
    tiles = []
    level, count = 0, size
    while count:
        number, width = divmod(count - 1, TILE_WIDTH)
        tiles.append(Tile(level, number, width + 1))
        if level == 0:
            tiles.append(Tile("entries", number, width + 1))
        level, count = level + 1, count >> TILE_HEIGHT
    return tiles


class Run(NamedTuple):
    """Neighbouring hashes of one tile: those numbered `low` to before `high` at this level."""

    level: int
    low: int
    high: int


def _run(node: Node) -> Run:
    """Return the hashes that a node is folded from: one to 128 of a tile."""
    level, above = divmod(node.height, TILE_HEIGHT)
    return Run(level, node.number << above, (node.number + 1) << above)


def runs_for(spans: Iterable[Span]) -> list[Run]:
    """Return what has to be read to hash these spans: at most one run for each tile, O(log n) tiles for a proof."""
    return runs_of(node for span in spans for node in full_subtrees(span))


def runs_of(nodes: Iterable[Node]) -> list[Run]:
    """Return what has to be read to hash these nodes: at most one run for each tile."""
    needed: dict[tuple[int, int], Run] = {}
    for node in nodes:
        run = _run(node)
        tile = run.level, run.low // TILE_WIDTH
        known = needed.get(tile)
        if known is None:
            needed[tile] = run
        elif run.low < known.low or run.high > known.high:
            needed[tile] = Run(run.level, min(known.low, run.low), max(known.high, run.high))
    return list(needed.values())


def node_in(runs: Mapping[Run, bytes]) -> Callable[[Node], bytes]:
    """Return a lookup of nodes over runs of hashes that were read, each 32 bytes times its length.

    The lookup raises LookupError for a node that is not in them.
    """
    tiles = {(run.level, run.low // TILE_WIDTH): (run, data) for run, data in runs.items()}

    def lookup(node: Node) -> bytes:
        wanted = _run(node)
        found, data = tiles[wanted.level, wanted.low // TILE_WIDTH]
        if wanted.low < found.low or wanted.high > found.high:
            raise LookupError(f"hashes {wanted} were not read")
        start, stop = (wanted.low - found.low) * HASH_BYTES, (wanted.high - found.low) * HASH_BYTES
        return fold(split_hashes(data[start:stop]))

    return lookup


def split_hashes(run: bytes) -> list[bytes]:
    """Return the hashes of a run of them. Raises TileRefused when it is not a multiple of 32 bytes."""
    if len(run) % HASH_BYTES:
        raise TileRefused(f"{len(run)} bytes are no whole number of hashes")
    return [run[at : at + HASH_BYTES] for at in range(0, len(run), HASH_BYTES)]


def bundle(entries: Sequence[bytes]) -> bytes:
    """Return a bundle of entries, each after its length as 16 bits, highest byte first.

    Raises TileRefused for an entry that is longer than a bundle can say.
    """
    parts = []
    for entry in entries:
        if len(entry) > ENTRY_BYTES_MAX:
            raise TileRefused(f"an entry has {len(entry)} bytes, a bundle can hold {ENTRY_BYTES_MAX}")
        parts += [len(entry).to_bytes(_LENGTH_BYTES, "big"), entry]
    return b"".join(parts)


def split_bundle(data: bytes) -> list[bytes]:
    """Return the entries of a bundle. Raises TileRefused when it is cut off."""
    entries, at = [], 0
    while at < len(data):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "big")
        if at > len(data) or start > len(data):
            raise TileRefused("the bundle is cut off")
        entries.append(data[start:at])
    return entries
