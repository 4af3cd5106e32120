"""The signer of a shard's log: at most a second after an entry was appended, it stands under a signed checkpoint.

One task per shard and process; it signs while this process writes the shard. A round takes the new hashes from
Postgres, extends the frontier, remembers in Redis what it is about to sign, and keeps the signed checkpoint and the
new hashes of the tree in one transaction, fenced by the epoch. A log must not sign two trees of which neither extends
the other; so before every signature the tree is held against the last signed checkpoint in Postgres and against the
memory in Redis. When one of them is not continued, as after the restore of an older backup, the signer refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import asyncpg
import redis.exceptions

from app.audit.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from app.audit.log import TreeDamaged
from app.audit.memory import MemoryUnreadable, remembered_tree
from app.audit.merkle import EMPTY_ROOT, Frontier, Span, StoredHash
from app.audit.note import NoteRefused, Signer, parse_note
from app.audit.tiles import Run, split_hashes
from app.db.keys import checkpoint_key
from app.db.lua import load_script
from app.db.retry import TRANSIENT
from app.db.sql import query
from app.turns import pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from app.audit.log import Log
    from app.audit.shard import Shard
    from app.db.redis import RedisLink

log = logging.getLogger(__name__)

SIGN_INTERVAL_S: Final = 0.9  # between rounds; with a round's 50 ms an entry waits a second at most
REFUSED_INTERVAL_S: Final = 5.0  # a refusal is looked at again: a person may have put the newer database back
CHECKPOINT_ENTRIES_MAX: Final = 65_536  # new entries under one checkpoint: 70 ms of hashing, 260 rows
FETCH_HASHES: Final = 4_096  # in one round trip: 128 KiB
SLICE_HASHES: Final = 512  # hashed at once: about 0.5 ms, then others have their turn
_KEEP: Final = "SELECT checkpoint_append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
_STORE_ERRORS: Final = (redis.exceptions.RedisError, asyncpg.PostgresError)

State = Literal["waiting", "following", "signing", "refused"]


class LogForked(Exception):
    """What is to be signed does not continue what was signed before; the text says what differs. A person has to act."""


class SignerLate(Exception):
    """Somebody else has signed meanwhile, or has taken the shard: look again."""


class Signed(NamedTuple):
    """The tree under the last checkpoint that is known; size -1 when there is none."""

    size: int
    root: bytes
    signers: str


NOTHING: Final = Signed(-1, b"", "")


class ShardSigner:
    """Signs one shard's log."""

    def __init__(
        self, shard: Shard, log_: Log, link: RedisLink, signers: Sequence[Signer],
        note_keys: Callable[[], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        """`link` is the signer's own; `signers` have the shard's origin as their name, the newest key first.

        note_keys  awaited before the first checkpoint under other keys than the last: no key signs that nobody knows of
        """
        assert signers, "a log needs a key"
        self._note_keys = note_keys
        self._shard = shard
        self._log = log_
        self._link = link
        self._signers = signers
        self._signed_by = "+".join(signer.verifier.key_id.hex() for signer in signers)
        self._frontier: Frontier | None = None
        self._last = NOTHING
        self._fresh: list[StoredHash] = []
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._published = asyncio.Event()
        self.state: State = "waiting"
        self.reason = "not started"
        self.checkpoints = 0
        self.signed_at_s = 0.0

    @property
    def size(self) -> int:
        """Entries under the last checkpoint that this signer knows; -1 before it knows any."""
        return self._last.size

    @property
    def lag_s(self) -> float:
        """Seconds since the last signature while durable entries wait for one; 0 when none does."""
        behind = self._shard.leading and self._shard.durable + 1 > self._last.size
        return time.monotonic() - self.signed_at_s if behind and self.signed_at_s else 0.0

    @property
    def age_s(self) -> float:
        """Seconds since this process signed a checkpoint; 0 before, and while another process writes the shard."""
        return time.monotonic() - self.signed_at_s if self._shard.leading and self.signed_at_s else 0.0

    @property
    def lag_entries(self) -> int:
        """Durable entries that no checkpoint covers; 0 while another process writes the shard."""
        return max(0, self._shard.durable + 1 - max(self._last.size, 0)) if self._shard.leading else 0

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Start the task; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name=f"signer s{self._shard.number:02d}")

    async def stop(self) -> None:
        """Sign what is durable by now, if this process writes the shard, and end."""
        self._stopping.set()
        if self._task is not None:
            await self._task
            if self._shard.leading and self.state == "signing":
                with contextlib.suppress(LogForked, TreeDamaged, SignerLate, *TRANSIENT, *_STORE_ERRORS):
                    await self.round()
        await self._link.close()

    async def wait_published(self, timeout_s: float) -> None:
        """Return when the next checkpoint is signed, or after `timeout_s`."""
        await pause(self._published, timeout_s)

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        while not self._stopping.is_set():
            pause_s = SIGN_INTERVAL_S
            try:
                if self._shard.leading:
                    await self.round()
                else:
                    self._forget("following", "another process writes the shard")
            except (LogForked, TreeDamaged) as error:
                if self.reason != str(error):
                    log.critical("log not signed", extra={"shard": self._shard.number, "reason": str(error)})
                self._forget("refused", str(error))
                pause_s = REFUSED_INTERVAL_S
            except (SignerLate, *TRANSIENT, *_STORE_ERRORS) as error:
                self._forget("waiting", f"{type(error).__name__}: {error}")
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return
            await pause(self._stopping, pause_s)

    def _forget(self, state: State, reason: str) -> None:
        """Start the next round from what is stored."""
        self.state, self.reason = state, reason
        self._frontier, self._last, self._fresh = None, NOTHING, []

    async def round(self) -> None:
        """Bring the log up to the durable head: sign one checkpoint, several when far behind, or none when none is new.

        Raises LogForked, TreeDamaged, SignerLate, and what Redis and Postgres raise.
        """
        if self._frontier is None:
            await self._load()
        if self._note_keys is not None and self._last.signers != self._signed_by:
            await self._note_keys()
        while self._last.size < self._shard.durable + 1 or self._last.signers != self._signed_by:
            epoch = self._shard.epoch
            known = await self._memory()
            size = min(self._shard.durable + 1, max(self._last.size, 0) + CHECKPOINT_ENTRIES_MAX)
            await self._check_memory(known, max(size, known.size))
            await self._sign(epoch, known)
        self.state, self.reason = "signing", ""

    async def _load(self) -> None:
        """Stand where the last checkpoint in Postgres stands. Raises LogForked when the stored tree is not its tree."""
        number = self._shard.number
        rows = await self._log.rows(query("last_checkpoint"), number)
        last, frontier = NOTHING, Frontier()
        if rows:
            size, root, note, signers = rows[0]
            last = Signed(size, root, signers)
            stated = _stated(note)
            if stated is None or stated[:3] != (self._shard.origin, size, root):
                raise LogForked(f"the last checkpoint of shard {number} is not what its row says, size {size}")
            frontier = Frontier(size, await self._log.nodes(number, [Span(0, size)]))
            if frontier.root() != root:
                raise LogForked(
                    f"the stored tree of shard {number} does not have the root of its last checkpoint, size {size}"
                )
        self._last, self._frontier, self._fresh = last, frontier, []

    async def _memory(self) -> Signed:
        """Return what Redis remembers as the last tree that was signed or about to be."""
        if not self._link.is_open:
            await self._link.open()
        try:
            known = await remembered_tree(self._link, self._shard.number)
        except MemoryUnreadable as error:
            raise LogForked(str(error)) from None
        return NOTHING if known is None else Signed(*known, "")

    async def _check_memory(self, known: Signed, size: int) -> None:
        """Extend the frontier to `size`, and hold the tree on the way against what Redis remembers."""
        assert self._frontier is not None
        number, durable = self._shard.number, self._shard.durable
        if known.size > durable + 1:
            raise LogForked(
                f"a checkpoint of {known.size} entries was signed, but the chain of shard {number} has {durable + 1}: this "
                "looks like an older backup. Restore the newer database; never sign on from this one."
            )
        if known.size > self._frontier.size:
            await self._extend(known.size)
            root = self._frontier.root()
        elif known.size == self._last.size:
            root = self._last.root
        elif known.size >= 0:
            (root,) = await self._log.hashes(number, [Span(0, known.size)]) if known.size else [EMPTY_ROOT]
        else:
            root = known.root
        if known.root != root:
            raise LogForked(
                f"a checkpoint of {known.size} entries with another root was signed for shard {number}: the chain was "
                "changed below it, or restored from a backup and continued"
            )
        await self._extend(size)

    async def _extend(self, size: int) -> None:
        """Append the hashes of the chain up to `size` to the frontier, a slice at a time."""
        assert self._frontier is not None
        while self._frontier.size < size:
            run = Run(0, self._frontier.size, min(self._frontier.size + FETCH_HASHES, size))
            hashes = split_hashes((await self._log.runs(self._shard.number, [run]))[run])
            for low in range(0, len(hashes), SLICE_HASHES):
                self._fresh += self._frontier.extend(hashes[low : low + SLICE_HASHES])
                await asyncio.sleep(0)

    async def _sign(self, epoch: int, known: Signed) -> None:
        """Sign the tree as the frontier has it: first into Redis, then into Postgres."""
        assert self._frontier is not None
        number = self._shard.number
        checkpoint = Checkpoint(self._shard.origin, self._frontier.size, self._frontier.root())
        if checkpoint.size == self._last.size and checkpoint.root != self._last.root:
            raise LogForked(f"shard {number} has two roots for {checkpoint.size} entries")
        expected = ("", "") if known is NOTHING else (known.size, known.root.hex())
        answer = await self._link.evaluate(
            load_script("checkpoint_keep"), [checkpoint_key(number)], [*expected, checkpoint.size, checkpoint.root.hex()]
        )
        if answer[0] != b"OK":
            raise SignerLate(f"another process is signing shard {number}")
        note = sign_checkpoint(checkpoint, self._signers)
        fresh = self._fresh
        await self._log.write(
            _KEEP, number, epoch, self._last.size, self._last.root, checkpoint.size, checkpoint.root, note, self._signed_by,
            f"{{{','.join(str(one.level) for one in fresh)}}}", f"{{{','.join(str(one.number) for one in fresh)}}}",
            b"".join(one.digest for one in fresh),
        )  # fmt: skip
        self._last, self._fresh = Signed(checkpoint.size, checkpoint.root, self._signed_by), []
        self.checkpoints += 1
        self.signed_at_s = time.monotonic()
        self._published.set()
        self._published = asyncio.Event()


def _stated(note: str) -> Checkpoint | None:
    try:
        return parse_checkpoint(parse_note(note).text)
    except NoteRefused:
        return None
