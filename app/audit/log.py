"""The reading side of the logs: checkpoints, proofs, tiles, bundles and receipts, from Postgres.

Only what is under a signed checkpoint is shown. A proof needs a few tiles of at most 256 hashes each, whatever the size
of the log; those that were read lately are kept, see `app.audit.tile_cache`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.audit.entry import HASH_BYTES
from app.audit.merkle import (
    SIZE_MAX,
    Node,
    Span,
    consistency_spans,
    full_subtrees,
    inclusion_spans,
    root_of_inclusion,
    span_hash,
)
from app.audit.note import Verifier
from app.audit.receipt import Receipt
from app.audit.tile_cache import HashTile, TileCache, TileStale, check_tiles, nodes_of, tile_of, widened
from app.audit.tiles import Run, Tile, bundle, node_in, runs_for, runs_of
from app.db.retry import retry
from app.db.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import asyncpg

    from app.db.pool import Pool

READ_TIMEOUT_S: Final = 1.2  # callers hear of an outage within 2 s
WRITE_TIMEOUT_S: Final = 5.0  # a commit takes about 3 ms; beyond this the connection is taken for dead
_RUNS: Final = "SELECT run FROM tree_runs($1, $2, $3, $4) AS run"
_ENTRIES: Final = "SELECT entry FROM audit_chain WHERE shard = $1 AND seq >= $2 AND seq < $3 ORDER BY seq"


class NotPublished(LookupError):
    """No signed checkpoint covers what was asked for: it is not there, or was appended less than a second ago."""


class TreeDamaged(Exception):
    """Hashes that have to be stored are missing, or do not lead to what was signed; the text says which."""


class Published(NamedTuple):
    """A signed checkpoint: `note` is its text with all signature lines, of witnesses too."""

    size: int
    root: bytes
    note: str


class InclusionProof(NamedTuple):
    """That the leaf `seq` is in the tree of `size`: hashes from the leaf's sibling upwards."""

    seq: int
    size: int
    leaf_hash: bytes
    hashes: list[bytes]
    root: bytes


class ConsistencyProof(NamedTuple):
    """That the tree of `size2` extends that of `size1`."""

    size1: int
    size2: int
    hashes: list[bytes]
    root1: bytes
    root2: bytes


class Log:
    """The logs of all shards of a ledger, over a pool of connections of the server's role."""

    def __init__(
        self,
        pool: Pool,
        ledger_origin: str,
        keys: Mapping[int, Sequence[Verifier]] | None = None,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        """`ledger_origin` is that of the table ledger; `keys` are the log's own verifiers by shard, to be handed out."""
        self._pool = pool
        self._read_timeout_s = read_timeout_s
        self._ledger_origin = ledger_origin
        self._tiles = TileCache()
        self._history = ""
        self.keys: Final = dict(keys or {})

    def origin(self, shard: int) -> str:
        """Return the origin of a shard's log: the first line of its checkpoints, and the name of its keys."""
        return log_origin(self._ledger_origin, shard)

    async def checkpoint(self, shard: int, size_min: int = 0, *, cosigned: bool = False) -> Published:
        """Return the newest checkpoint of at least this size; a cosigned one if asked for and there is any.

        Raises NotPublished when there is none.
        """
        possible = size_min <= SIZE_MAX
        rows = await self.rows(query("published_checkpoint"), shard, size_min, cosigned) if possible else []
        if not rows:
            raise NotPublished(f"shard {shard} has no checkpoint of {size_min} entries or more")
        return Published(*rows[0])

    async def inclusion(self, shard: int, seq: int, size: int) -> InclusionProof:
        """Prove that entry `seq` is in the tree of `size`. Raises NotPublished, ProofInvalid for seq >= size."""
        spans = [*inclusion_spans(seq, size), Span(seq, seq + 1)]
        (*hashes, leaf), root = await self._proved(shard, size, spans)
        if root_of_inclusion(seq, size, leaf, hashes) != root:
            raise TreeDamaged(f"what is stored of the tree of shard {shard} does not lead from entry {seq} to its root")
        return InclusionProof(seq, size, leaf, hashes, root)

    async def consistency(self, shard: int, size1: int, size2: int) -> ConsistencyProof:
        """Prove that the tree of `size2` extends that of `size1`, at least 1. Raises NotPublished, ProofInvalid."""
        spans = [*consistency_spans(size1, size2), Span(0, size1)]
        (*hashes, root1), root2 = await self._proved(shard, size2, spans)
        return ConsistencyProof(size1, size2, hashes, root1, root2)

    async def tile(self, shard: int, tile: Tile) -> bytes:
        """Return the bytes of a tile of hashes or of a bundle of entries. Raises NotPublished."""
        if not tile.is_in((await self.checkpoint(shard)).size):
            raise NotPublished(f"no checkpoint of shard {shard} covers {tile.path}")
        if tile.level == "entries":
            rows = await self.rows(_ENTRIES, shard, tile.low, tile.low + tile.width)
            if len(rows) < tile.width:
                raise TreeDamaged(f"entries of {tile.path} of shard {shard} are missing")
            return bundle([row[0] for row in rows])
        run = Run(tile.level, tile.low, tile.low + tile.width)
        return (await self.runs(shard, [run]))[run]

    async def receipt(self, shard: int, seq: int) -> Receipt:
        """Return a receipt for the entry at `seq`, with its bytes, under a cosigned checkpoint if there is one.

        Raises NotPublished while no checkpoint covers the entry, which is the case for a second at most.
        """
        published = await self.checkpoint(shard, seq + 1, cosigned=True)
        hashes, _ = await self._proved(shard, published.size, inclusion_spans(seq, published.size))
        entries = await self.rows(_ENTRIES, shard, seq, seq + 1)
        if not entries:
            raise TreeDamaged(f"entry {seq} of shard {shard} is missing")
        return Receipt(seq, tuple(hashes), published.note, entries[0][0])

    async def _proved(self, shard: int, size: int, spans: Sequence[Span]) -> tuple[list[bytes], bytes]:
        """Return the hash of each span, and the root of the tree of `size`, from tiles that are kept or read.

        Raises NotPublished, and TreeDamaged when hashes are missing or do not fit together or to the signed root.
        """
        try:
            return await self._from_tiles(shard, size, spans)
        except TileStale:
            self._tiles.clear()
        try:
            return await self._from_tiles(shard, size, spans)
        except TileStale as error:
            raise TreeDamaged(str(error)) from None

    async def _from_tiles(self, shard: int, size: int, spans: Sequence[Span]) -> tuple[list[bytes], bytes]:
        """Do what `_proved` does, once. Raises TileStale as well when what is kept and what is stored do not fit."""
        whole = Span(0, size)
        nodes = [node for span in (*spans, whole) for node in full_subtrees(span)]
        needed = runs_of(nodes)
        kept, history_kept = self._tiles.found(shard, needed), self._history
        missing = [widened(run, size) for run in needed if tile_of(shard, run) not in kept]
        levels, lows, highs = zip(*missing, strict=True) if missing else ((), (), ())
        ((history, published, root, runs),) = await self.rows(query("proof_runs"), shard, size, levels, lows, highs)
        if not published:
            raise NotPublished(f"shard {shard} has no checkpoint of {size} entries or more")
        if history != self._history:
            # What is kept is of another database, if anything is.
            self._history = history
            self._tiles.clear()
        if kept and history != history_kept:
            # Another proof may have met the new history first, while this one waited for what it read.
            raise TileStale(f"shard {shard} was restored")
        _check_runs(shard, missing, runs)
        read = {tile_of(shard, run): HashTile(data) for run, data in zip(missing, runs, strict=True)}
        tiles = kept | read
        check_tiles(tiles)
        lookup = nodes_of(tiles, shard, nodes).__getitem__
        computed = span_hash(whole, lookup)
        if root is not None and root != computed:
            raise TileStale(f"the tree of shard {shard} does not have the root of its checkpoint of {size} entries")
        self._tiles.keep(read)
        return [span_hash(span, lookup) for span in spans], computed

    async def hashes(self, shard: int, spans: Sequence[Span]) -> list[bytes]:
        """Return the hash of each span, from stored hashes. Raises TreeDamaged when some are missing."""
        lookup = await self.nodes(shard, spans)
        return [span_hash(span, lookup) for span in spans]

    async def nodes(self, shard: int, spans: Sequence[Span]) -> Callable[[Node], bytes]:
        """Return a lookup of the full subtrees that these spans consist of. Raises TreeDamaged."""
        return node_in(await self.runs(shard, runs_for(spans)))

    async def runs(self, shard: int, runs: Sequence[Run]) -> dict[Run, bytes]:
        """Return the hashes of runs, in one round trip. Raises TreeDamaged when some are missing."""
        if not runs:
            return {}
        levels, lows, highs = zip(*runs, strict=True)
        found = [row[0] for row in await self.rows(_RUNS, shard, levels, lows, highs)]
        _check_runs(shard, runs, found)
        return dict(zip(runs, found, strict=True))

    async def rows(self, sql: str, *values: Any) -> list[asyncpg.Record]:
        """Return all rows of one statement, within the time limit; transient errors are tried again meanwhile."""
        limit_s = self._read_timeout_s
        async with asyncio.timeout(limit_s):
            return await retry(lambda: self._pool.rows(limit_s, sql, values))

    async def write(self, sql: str, *values: Any) -> None:
        """Run one statement, once, within WRITE_TIMEOUT_S. When it raises it may have been carried out all the same."""
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await self._pool.rows(WRITE_TIMEOUT_S, sql, values)


def _check_runs(shard: int, runs: Sequence[Run], found: Sequence[bytes]) -> None:
    """Raise TreeDamaged when hashes of runs that were read are missing."""
    for run, data in zip(runs, found, strict=True):
        if len(data) != (run.high - run.low) * HASH_BYTES:
            there = len(data) // HASH_BYTES
            raise TreeDamaged(f"shard {shard} has {there} hashes of level {run.level} from {run.low} to before {run.high}")


def log_origin(ledger_origin: str, shard: int) -> str:
    """Return the origin of a shard's log, for example "shieldx/<ledger id>/s00": the one of its chain."""
    return f"{ledger_origin}/s{shard:02d}"
