"""Whether what was signed about a chain is true of it: its checkpoints, and the stored hashes of its tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from app.audit.checkpoint import Checkpoint, open_checkpoint
from app.audit.entry import HASH_BYTES
from app.audit.merkle import TILE_HEIGHT, Frontier, StoredHash
from app.audit.note import NoteRefused, parse_note
from app.audit.report import Bad
from app.audit.totals import SEAL_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from app.audit.note import Verifier
    from app.audit.rows import Proof

PAGE_CHECKPOINTS: Final = 500  # per round trip: about 250 KiB
_PAGE: Final = """
    SELECT size, signers, root, note FROM audit_checkpoints WHERE shard = $1 AND (size, signers) > ($2, $3)
    ORDER BY size, signers LIMIT $4
"""
_LAST_SIGNERS: Final = "~"  # sorts behind any list of key ids, which are hex digits
_NODES: Final = "SELECT number, hash FROM audit_tree WHERE shard = $1 AND level = $2 AND number >= $3 AND number <= $4"


def digests_of(proof: Proof) -> list[bytes]:
    """Return the hashes of the entries that a proof has found to be good by themselves, in order."""
    return [proof.seals[at : at + HASH_BYTES] for at in range(0, len(proof.seals), SEAL_BYTES)]


class TreeCheck:
    """Grows the tree of a chain as its entries are proved, and holds it against what was signed on the way."""

    def __init__(
        self, connection: asyncpg.Connection[Any], shard: int, origin: str, keys: Sequence[Verifier], frontier: Frontier
    ) -> None:
        """`connection` stands in a snapshot; `frontier` is where the proved entries begin; `keys` are the log's."""
        self._connection = connection
        self._shard = shard
        self._origin = origin
        self._keys = keys
        self._frontier = frontier
        self._good_size = frontier.size
        self._page: list[Any] = []
        self._after: tuple[int, str] = (frontier.size - 1, _LAST_SIGNERS)
        self._last_size: int | None = None
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
        fresh: list[StoredHash] = []
        at = 0
        while True:
            row = await self._next()
            take = len(digests) - at if row is None else min(len(digests) - at, row["size"] - self._frontier.size)
            fresh += self._frontier.extend(digests[at : at + take])
            at += take
            if row is None or self._frontier.size < row["size"]:
                break
            bad = self._compare(row)
            if bad is not None:
                return bad
            self._page.pop(0)
        return await self._compare_nodes(fresh)

    async def finish(self) -> Bad | None:
        """Return what is wrong at the end of the chain: it is shorter than what was signed, or the signature is bad."""
        bad = await self.feed([])
        if bad is not None:
            return bad
        row = await self._next()
        if row is not None:
            size = self._frontier.size
            return Bad(size, f"a checkpoint of {self._last_size} entries was signed, the chain has {size}")
        if not self._keys or self.signed_size < 0:
            return None
        notes = await self._connection.fetch(
            "SELECT note FROM audit_checkpoints WHERE shard = $1 AND size = $2", self._shard, self.signed_size
        )
        return self._signature_fault([note[0] for note in notes])

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

    def _compare(self, row: Any) -> Bad | None:
        """Hold the tree against a checkpoint of its size."""
        size, root = row["size"], self._frontier.root()
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
