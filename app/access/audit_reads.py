"""Reads of audit data become entries: who read what how often, and not one entry for each page.

The first read of a key on a route is recorded at once. Those that follow within SUMMARY_INTERVAL_S are counted, and the
count becomes one entry at its end: 1,000 pages are two entries.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from app.access.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

SUMMARY_INTERVAL_S: Final = 300.0  # how late the chain tells of reads after the first
SWEEP_INTERVAL_S: Final = 10.0  # how often summaries are looked for that are due
READERS_MAX: Final = 4_096  # pairs of key and route that are told apart; more are counted together


class _Reader(msgspec.Struct):
    """Reads of one key on one route. `untold` are those since the last entry, which was made at `told_s`."""

    untold: int
    told_s: float
    first: bool


class AuditReads(Recorder):
    """Counts reads by key and route, and tells of them."""

    def __init__(
        self,
        record: Callable[[str, dict[str, Any]], Awaitable[Any]],
        *,
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`record` puts one entry into the chain; what it fails to take is told with the next one."""
        super().__init__("audit reads", record, interval_s=SWEEP_INTERVAL_S, elapsed_s=elapsed_s)
        self._readers: dict[tuple[str, str], _Reader] = {}

    def note(self, key_id: str, method: str, route: str) -> None:
        """Take one read: `route` is a template of ours, never what the client sent."""
        place = (key_id, f"{method} {route}")
        if place not in self._readers and len(self._readers) >= READERS_MAX:
            place = ("", "")
        reader = self._readers.get(place)
        if reader is None:
            self._readers[place] = _Reader(1, self._elapsed_s(), first=True)
            self._woken.set()
        else:
            reader.untold += 1

    async def flush(self, *, everything: bool = False) -> None:
        """Record first reads and the summaries that are due; with `everything` all that is untold.

        Ends at the first entry that the chain does not take: at a stop, each would be waited for.
        """
        for place, reader in list(self._readers.items()):
            due = self._elapsed_s() - reader.told_s >= SUMMARY_INTERVAL_S
            if reader.untold and (reader.first or due or everything):
                if not await self._tell(place, reader):
                    return
            elif due:
                del self._readers[place]

    async def _tell(self, place: tuple[str, str], reader: _Reader) -> bool:
        reads, reader.untold = reader.untold, 0
        try:
            await self._record("audit.read", {"key_id": place[0], "route": place[1], "reads": reads})
        except BaseException as error:
            reader.untold += reads
            if not isinstance(error, Exception):
                raise
            log.warning("reads of audit data not recorded", extra={"reason": type(error).__name__, "reads": reads})
            return False
        reader.told_s, reader.first = self._elapsed_s(), False
        return True

    async def _round(self, *, woken: bool) -> None:
        del woken  # a first read is due at once, a summary by its time
        await self.flush()

    async def _finish(self) -> None:
        await self.flush(everything=True)
