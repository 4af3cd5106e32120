"""Leases: every pick is lent to its caller, who reports once; what is never reported comes back by itself.

The number of calls in flight is the number of open leases, so a caller that dies cannot leave an instance looking
busy. One table a service. Bounded: beyond `open_max` the oldest lease is taken back early, and of closed ones only the
last `closed_max` are known as such.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum
from itertools import count, islice, takewhile
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.locator.candidates import Candidates
    from app.locator.load import Load

LEASE_S: Final = 30.0  # longer than a call should take; what takes longer is reported late and still counts
OPEN_MAX: Final = 100_000  # leases of a service: 30 MB, 3,300 picks a second of which none is ever reported
CLOSED_MAX: Final = 50_000  # ids that are remembered to tell a repeated report from one that never was: 10 MB
REAP_MAX: Final = 1_000  # leases that one call of `reap` takes back: below a millisecond
TRIM_PART: Final = 64  # a full table is relieved of one part of so many
_NUMBERS: Final = tuple(f"{number:03x}" for number in range(4_096))  # of the ids that are made from one draw
_RANDOM_BYTES: Final = 4  # of an id: a lease that was not lent cannot be guessed


class Reported(StrEnum):
    """What became of a report."""

    COUNTED = "counted"
    LATE = "late"  # the lease had been taken back; the outcome counts all the same
    REPEATED = "repeated"  # reported before: nothing changed
    UNKNOWN = "unknown"  # never lent here, or too long ago: nothing changed


class Lease(msgspec.Struct, gc=False):
    """One call that is lent out."""

    load: Load
    candidates: Candidates
    lent_s: float
    probe: bool = False  # the call that finds out whether an open breaker may close


def _ids(replica: str) -> Iterator[str]:
    """Yield ids that were never given before: replica, number of the draw, number in the draw, random part."""
    for draw in count(1):
        start = f"{replica}-{draw:x}"
        digits = os.urandom(_RANDOM_BYTES * len(_NUMBERS)).hex()
        at = 0
        for number in _NUMBERS:
            yield start + number + digits[at : at + 2 * _RANDOM_BYTES]
            at += 2 * _RANDOM_BYTES


class Leases:
    """The leases of one service. Dictionaries keep the order of lending, so the oldest stand first."""

    __slots__ = ("_closed", "_closed_max", "_expired", "_next_id", "_on_expired", "_open", "_open_max", "lease_s")

    def __init__(
        self,
        replica: str,
        on_expired: Callable[[Lease], None],
        *,
        lease_s: float = LEASE_S,
        open_max: int = OPEN_MAX,
        closed_max: int = CLOSED_MAX,
    ) -> None:
        """`replica` begins every id, so that a report that reaches another replica can be handed on.

        `on_expired` gets every lease that is taken back.
        """
        self.lease_s: Final = lease_s
        self._on_expired = on_expired
        self._open_max = open_max
        self._closed_max = closed_max
        self._open: dict[str, Lease] = {}
        self._expired: dict[str, Lease] = {}
        self._closed: dict[str, None] = {}
        self._next_id = _ids(replica).__next__

    def __len__(self) -> int:
        """Return how many are lent out."""
        return len(self._open)

    def lend(self, load: Load, candidates: Candidates, now_s: float, probe: bool) -> str:  # noqa: FBT001 - hot path
        """Lend a call on this instance and return the lease's id."""
        lease_id = self._next_id()
        self._open[lease_id] = Lease(load, candidates, now_s, probe)
        if len(self._open) > self._open_max:
            self._expire(list(islice(self._open, 1 + self._open_max // TRIM_PART)))
        return lease_id

    def close(self, lease_id: str) -> tuple[Reported, Lease | None]:
        """Close a lease for good. The lease comes with COUNTED and LATE, when its outcome is to be counted."""
        outcome = Reported.COUNTED
        lease = self._open.pop(lease_id, None)
        if lease is None:
            outcome = Reported.LATE
            lease = self._expired.pop(lease_id, None)
            if lease is None:
                return (Reported.REPEATED if lease_id in self._closed else Reported.UNKNOWN), None
        self._closed[lease_id] = None
        _trim(self._closed, self._closed_max)
        return outcome, lease

    def reap(self, now_s: float, limit: int) -> int:
        """Take back leases whose time is over, at most `limit`; returns how many."""
        lent_s = now_s - self.lease_s
        over = list(islice(takewhile(lambda lease_id: self._open[lease_id].lent_s <= lent_s, self._open), limit))
        self._expire(over)
        return len(over)

    def _expire(self, lease_ids: list[str]) -> None:
        for lease_id in lease_ids:
            lease = self._expired[lease_id] = self._open.pop(lease_id)
            self._on_expired(lease)
        _trim(self._expired, self._closed_max)


def _trim(table: dict[str, Any], size_max: int) -> None:
    """Drop the oldest part of a table that is too long. In parts, because finding the oldest passes dropped ones."""
    if len(table) > size_max:
        for lease_id in list(islice(table, len(table) - size_max + size_max // TRIM_PART)):
            del table[lease_id]


def replica_of(lease_id: str) -> str:
    """Return the name of the replica that lent it; empty for text that is no lease."""
    return lease_id.rpartition("-")[0]
