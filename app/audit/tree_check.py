"""Whether what was signed about a chain is true of it: its checkpoints, and the stored hashes of its tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from app.audit.checkpoint import Checkpoint, open_checkpoint
from app.audit.entry import HASH_BYTES
from app.audit.merkle import TILE_HEIGHT, TILE_WIDTH, Frontier, StoredHash
from app.audit.note import NoteRefused, parse_note
from app.audit.report import Bad
from app.audit.totals import SEAL_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from app.audit.rows import Proof
    from app.audit.trust import Trust

PAGE_CHECKPOINTS: Final = 500  # per round trip: about 250 KiB
_PAGE: Final = """
    SELECT size, signers, root, note FROM audit_checkpoints WHERE shard = $1 AND (size, signers) > ($2, $3)
    ORDER BY size, signers LIMIT $4
"""
UNSIGNED_MAX_S: Final = 60  # a signer is at most a second behind; one that was killed leaves what came in its last second
# Whether after the first entry without a signature others came for so long, and that is as long ago.
_UNSIGNED: Final = """
    SELECT EXISTS (
      SELECT FROM audit_chain WHERE shard = $1 AND seq > $2 AND seq <= $3 AND at < now() - make_interval(secs => $4)
        AND at > (SELECT at FROM audit_chain WHERE shard = $1 AND seq = $2) + make_interval(secs => $4))
"""
_LAST_SIGNERS: Final = "~"  # sorts behind any list of key ids, which are hex digits
# A level below 0 or above 7 is none that a tile has; of the others, what is beyond the tree that was signed.
_BEYOND: Final = """
    (SELECT level, number FROM audit_tree WHERE shard = $1 AND (level < 0 OR level > 7) LIMIT 1) UNION ALL
    SELECT l.level, t.number FROM unnest($2::smallint[], $3::bigint[]) AS l (level, low) CROSS JOIN LATERAL (
      SELECT number FROM audit_tree WHERE shard = $1 AND level = l.level AND number >= l.low ORDER BY number LIMIT 1) AS t
    LIMIT 1
"""
_LEVELS: Final = range(1, 8)
_LEAVES: Final = """
    SELECT count(*), coalesce(string_agg(hash, ''::bytea ORDER BY number), ''::bytea) FROM audit_tree
    WHERE shard = $1 AND level = 0 AND number >= $2 AND number < $3
"""
_PACKED: Final = "SELECT number, hashes FROM audit_leaf_tiles WHERE shard = $1 AND number >= $2 AND number < $3"
_PACKED_BEYOND: Final = "SELECT min(number) FROM audit_leaf_tiles WHERE shard = $1 AND number >= $2"
_NODES: Final = "SELECT number, hash FROM audit_tree WHERE shard = $1 AND level = $2 AND number >= $3 AND number <= $4"


def digests_of(proof: Proof) -> list[bytes]:
    """Return the hashes of the entries that a proof has found to be good by themselves, in order."""
    return [proof.seals[at : at + HASH_BYTES] for at in range(0, len(proof.seals), SEAL_BYTES)]


async def has_packed(connection: asyncpg.Connection[Any]) -> bool:
    """Whether the database has packed tiles: an older backup has none."""
    return bool(await connection.fetchval("SELECT to_regclass('public.audit_leaf_tiles') IS NOT NULL"))


class TreeCheck:
    """Grows the tree of a chain as its entries are proved, and holds it against what was signed on the way."""

    def __init__(
        self, connection: asyncpg.Connection[Any], shard: int, origin: str, trust: Trust, frontier: Frontier,
        archived: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        """`connection` stands in a snapshot; `frontier` is where the proved entries begin.

        archived  which entries, seq low to before high, are archived: the tree holds the hashes of those and of no others
        """
        self._connection = connection
        self._shard = shard
        self._origin = origin
        self._keys = trust.keys_of(origin)
        self._passed = [one for one in trust.passed_by(origin) if one.size >= frontier.size]
        self._frontier = frontier
        self._archived = archived
        self._start = self._good_size = frontier.size
        self._page: list[Any] = []
        self._after: tuple[int, str] = (frontier.size - 1, _LAST_SIGNERS)
        self._last_size: int | None = None
        self._has_packed = False  # before migration 0019 there is no such table
        self._ended = False
        self.signed_size = -1

    @property
    def root(self) -> bytes:
        """The root over the entries so far."""
        return self._frontier.root()

    async def feed(self, digests: list[bytes]) -> Bad | None:
        """Append the hashes of the next entries; the first fault that shows."""
        if self._last_size is None:
            newest = "SELECT max(size) FROM audit_checkpoints WHERE shard = $1"
            found = await self._connection.fetchval(newest, self._shard)
            self._last_size = -1 if found is None else found
            self._has_packed = await has_packed(self._connection)
        fresh: list[StoredHash] = []
        at, low = 0, self._frontier.size
        while True:
            row = await self._next()
            stops = [] if row is None else [row["size"]]
            stops += [one.size for one in self._passed[:1]]
            take = min([len(digests) - at, *(size - self._frontier.size for size in stops)])
            fresh += self._frontier.extend(digests[at : at + take])
            at += take
            if not stops or self._frontier.size < min(stops):
                break
            bad = self._compare_passed() or (self._compare(row) if row is not None else None)
            if bad is not None:
                return bad
        bad = await self._compare_leaves(low, digests) or await self._compare_packed(low, b"".join(digests))
        return bad or await self._compare_nodes(fresh)

    async def finish(self) -> Bad | None:
        """Return what is wrong at the end of the chain: it is shorter than what was signed, or the signature is bad."""
        bad = await self.feed([])
        bad = bad or await self._beyond_fault()
        if bad is not None:
            return bad
        row, size = await self._next(), self._frontier.size
        if row is not None:
            return Bad(size, f"a checkpoint of {self._last_size} entries was signed, the chain has {size}")
        if self._passed:
            return Bad(size, f"a tree of {self._passed[-1].size} entries is known from elsewhere, the chain has {size}")
        if not self._keys or size == 0:
            return None
        bad = await self._unsigned_fault()
        if bad is not None or self.signed_size < 0:
            return bad
        notes = await self._connection.fetch(
            "SELECT note FROM audit_checkpoints WHERE shard = $1 AND size = $2", self._shard, self.signed_size
        )
        return self._signature_fault([note[0] for note in notes])

    async def _unsigned_fault(self) -> Bad | None:
        """Say that entries wait for a signature which a signer would have given long ago."""
        first = max(self.signed_size, self._start)
        if await self._connection.fetchval(_UNSIGNED, self._shard, first, self._frontier.size - 1, UNSIGNED_MAX_S):
            return Bad(first, f"the entries from seq {first} on are under no checkpoint; one is signed every second")
        return None

    def _signature_fault(self, notes: Sequence[str]) -> Bad | None:
        reason = ""
        for note in notes:
            try:
                open_checkpoint(note, self._keys)
            except NoteRefused as error:
                reason = str(error)
            else:
                return None
        return Bad(None, f"the checkpoint of {self.signed_size} entries: {reason}")

    async def _next(self) -> Any | None:
        """Return the next checkpoint that was signed, in the order of sizes, from the start of the proved entries."""
        if not self._page and not self._ended:
            self._page = list(await self._connection.fetch(_PAGE, self._shard, *self._after, PAGE_CHECKPOINTS))
            self._ended = len(self._page) < PAGE_CHECKPOINTS
            if self._page:
                self._after = self._page[-1]["size"], self._page[-1]["signers"]
        return self._page[0] if self._page else None

    def _compare_passed(self) -> Bad | None:
        """Hold the tree against those of its size that are known from elsewhere."""
        size = self._frontier.size
        while self._passed and self._passed[0].size == size:
            if self._passed.pop(0).root != self._frontier.root():
                first = None if size == self._good_size else self._good_size
                return Bad(first, f"the first {size} entries are not those of the tree that is known from elsewhere")
            self._good_size = size
        return None

    def _compare(self, row: Any) -> Bad | None:
        """Hold the tree against a checkpoint that is in the database, if it has come to its size."""
        size, root = row["size"], self._frontier.root()
        if self._frontier.size < size:
            return None
        self._page.pop(0)
        if row["root"] != root:
            if size == self._good_size:
                return Bad(None, f"the checkpoint of {size} entries is for another tree")
            return Bad(
                self._good_size,
                f"the entries from seq {self._good_size} to {size - 1} are not those for which the checkpoint of {size} "
                "entries was signed",
            )
        try:
            text = parse_note(row["note"]).text
        except NoteRefused as error:
            return Bad(None, f"the checkpoint of {size} entries: {error}")
        if text != Checkpoint(self._origin, size, root).text:
            return Bad(None, f"the note of the checkpoint of {size} entries states something else")
        self._good_size = self.signed_size = size
        return None

    async def _compare_leaves(self, low: int, digests: Sequence[bytes]) -> Bad | None:
        """Hold the stored hashes of single entries, from seq `low` on, against those of the archived entries."""
        high = low + len(digests)
        if low == high:
            return None
        spans = [(max(low, since), min(high, until)) for since, until in self._archived if since < high and until > low]
        mine = [(number, digests[number - low]) for since, until in spans for number in range(since, until)]
        row = await self._connection.fetchrow(_LEAVES, self._shard, low, high)
        if row is not None and tuple(row) == (len(mine), b"".join(digest for _, digest in mine)):
            return None
        there = dict(await self._connection.fetch(_NODES, self._shard, 0, low, high - 1))
        for number, digest in mine:
            if there.pop(number, None) != digest:
                return Bad(number, f"hash {number} of level 0 of the stored tree is missing or not that of its entry")
        return Bad(min(there), f"hash {min(there)} of level 0 of the stored tree is of an entry that is not archived")

    async def _compare_packed(self, low: int, mine: bytes) -> Bad | None:
        """Hold packed tiles against the hashes of the entries from seq `low` on, as far as the two overlap."""
        if not (mine and self._has_packed):
            return None
        high = low + len(mine) // HASH_BYTES
        until = -(-high // TILE_WIDTH)
        for number, hashes in await self._connection.fetch(_PACKED, self._shard, low // TILE_WIDTH, until):
            start = number * TILE_WIDTH
            first, last = max(low, start), min(high, start + TILE_WIDTH)
            packed = hashes[(first - start) * HASH_BYTES : (last - start) * HASH_BYTES]
            if packed != mine[(first - low) * HASH_BYTES : (last - low) * HASH_BYTES]:
                return Bad(start, f"packed tile {number} of the stored tree does not hold the hashes of its entries")
        return None

    async def _beyond_fault(self) -> Bad | None:
        """Say that the stored tree has hashes of entries that no checkpoint covers: a signer would meet them there."""
        signed = max(self._last_size or 0, 0)
        levels, lows = [0, *_LEVELS], [self._frontier.size, *(signed >> (TILE_HEIGHT * level) for level in _LEVELS)]
        row = await self._connection.fetchrow(_BEYOND, self._shard, levels, lows)
        if self._has_packed:
            packed = await self._connection.fetchval(_PACKED_BEYOND, self._shard, signed // TILE_WIDTH)
            if packed is not None:
                return Bad(None, f"packed tile {packed} of the stored tree is of no entries that were signed")
        if row is None:
            return None
        return Bad(
            None, f"hash {row['number']} of level {row['level']} of the stored tree is of no entries that were signed"
        )

    async def _compare_nodes(self, fresh: Sequence[StoredHash]) -> Bad | None:
        """Hold stored hashes against those that were computed, as far as they are under a checkpoint."""
        assert self._last_size is not None
        for level in sorted({one.level for one in fresh}):
            entries = 1 << (TILE_HEIGHT * level)
            mine = {one.number: one.digest for one in fresh if one.level == level}
            rows = await self._connection.fetch(_NODES, self._shard, level, min(mine), max(mine))
            there = dict(rows)
            for number, digest in mine.items():
                if (number + 1) * entries <= self._last_size and there.get(number) != digest:
                    what = "is missing" if number not in there else "is not that of its entries"
                    return Bad(number * entries, f"hash {number} of level {level} of the stored tree {what}")
        return None
