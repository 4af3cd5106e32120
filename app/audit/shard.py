"""What this process knows of one ledger shard: which Redis it belongs to, how far it is durable, whether it is open."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

State = Literal["opening", "open", "refused"]


class ShardRow(NamedTuple):
    """The shard's row in Postgres, ledger_shards."""

    epoch: int
    generation: int
    run_id: str
    head_seq: int
    head_hash: bytes


def shard_row(record: Sequence[Any] | None) -> ShardRow:
    """Return a row of ledger_shards from a record with its columns in order. Raises LookupError without one."""
    if record is None:
        raise LookupError("the shard has no row in ledger_shards")
    return ShardRow(*record)


class Shard:
    """A view that the keeper of the shard maintains and the ledger reads. No I/O.

    `durable` is the last seq known to be in Postgres; it counts within `generation`.
    """

    def __init__(self, number: int, origin: str) -> None:
        """`number` counts from 0; `origin` names the shard's chain, for example "shieldx/<ledger id>/s00"."""
        self.number: Final = number
        self.origin: Final = origin
        self.generation = 0
        self.run_id = ""
        self.durable = -1
        self.state: State = "opening"
        self.reason = "waiting for Postgres"
        self.closed_at_s = time.monotonic()  # when it was last open
        self.leading = False
        self.epoch = 0  # of this process's lease while it leads
        self.seen_epoch = 0  # the last one that Postgres named, whoever leads
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change of generation or durable head."""
        self._listeners.append(listener)

    def learn(self, generation: int, run_id: str, durable: int) -> None:
        """Take over what Postgres says. Neither number ever goes back within a process."""
        if (generation, durable) == (self.generation, self.durable) and run_id == self.run_id:
            return
        if generation < self.generation or (generation == self.generation and durable < self.durable):
            return
        self.generation, self.run_id, self.durable = generation, run_id, durable
        self._tell()

    def advance(self, durable: int) -> None:
        """Note that this seq of the current generation has become durable."""
        if durable > self.durable:
            self.durable = durable
            for listener in self._listeners:
                listener()

    def open(self) -> None:
        """Money may move."""
        self.state, self.reason = "open", ""
        self._tell()

    def close(self, reason: str, *, refused: bool = False) -> None:
        """Money may not move, because of `reason`; `refused` when a person has to act first."""
        if self.state == "open":
            self.closed_at_s = time.monotonic()
        self.state, self.reason = ("refused" if refused else "opening"), reason
        self._tell()

    async def wait_change(self, timeout_s: float) -> None:
        """Return at the next change, or after `timeout_s`."""
        event = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self._listeners:
            listener()
