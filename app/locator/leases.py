"""Leases: every pick is lent to its caller, who reports once; what is never reported comes back by itself.

The number of calls in flight is the number of open leases, so a caller that dies cannot leave an instance looking
busy. One table a service. Bounded: beyond `open_max` the oldest lease is taken back early, and of closed ones only the
last `closed_max` are known as such.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Iterator
from enum import StrEnum
from itertools import count
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from app.locator.candidates import Candidates
    from app.locator.load import Load

LEASE_S: Final = 30.0  # longer than a call should take; what takes longer is reported late and still counts
OPEN_MAX: Final = 100_000  # leases of a service: 30 MB, 3,300 picks a second of which none is ever reported
CLOSED_MAX: Final = 50_000  # ids that are remembered to tell a repeated report from one that never was: 10 MB
REAP_MAX: Final = 1_000  # leases that one call of `reap` takes back: below a millisecond
_NONCES: Final = 1_024  # random numbers that are drawn from the system at once


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
    expires_at_s: float
    probe: bool = False  # the call that finds out whether an open breaker may close


def _nonces() -> Iterator[int]:
    """Yield random 32-bit numbers: a lease cannot be guessed, and reporting one that was not lent is refused."""
    while True:
        yield from struct.unpack(f"{_NONCES}I", os.urandom(4 * _NONCES))


class Leases:
    """The leases of one service. A lease's id is text: the replica's name, a number, a random part."""

    __slots__ = ("_closed", "_closed_max", "_expired", "_next", "_nonce", "_open", "_open_max", "_prefix", "lease_s")

    def __init__(
        self, replica: str = "", *, lease_s: float = LEASE_S, open_max: int = OPEN_MAX, closed_max: int = CLOSED_MAX
    ) -> None:
        """`replica` begins every id, so that a report that reaches another replica can be handed on."""
        self.lease_s = lease_s
        self._prefix = f"{replica}-"
        self._open_max = open_max
        self._closed_max = closed_max
        self._open: OrderedDict[str, Lease] = OrderedDict()
        self._expired: OrderedDict[str, Lease] = OrderedDict()
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._next = count(1).__next__
        self._nonce = _nonces().__next__

    def __len__(self) -> int:
        """Return how many are lent out."""
        return len(self._open)

    @property
    def is_full(self) -> bool:
        """Whether one more needs the oldest to be taken back first."""
        return len(self._open) >= self._open_max

    def lend(self, load: Load, candidates: Candidates, now_s: float, *, probe: bool = False) -> str:
        """Lend a call on this instance and return the lease's id."""
        lease_id = f"{self._prefix}{self._next():x}.{self._nonce():08x}"
        self._open[lease_id] = Lease(load, candidates, now_s + self.lease_s, probe)
        return lease_id

    def close(self, lease_id: str) -> tuple[Reported, Lease | None]:
        """Close a lease for good. The lease comes with COUNTED and LATE, when its outcome is to be counted."""
        lease = self._open.pop(lease_id, None)
        outcome = Reported.COUNTED
        if lease is None:
            lease = self._expired.pop(lease_id, None)
            outcome = Reported.LATE
            if lease is None:
                return (Reported.REPEATED if lease_id in self._closed else Reported.UNKNOWN), None
        self._closed[lease_id] = None
        if len(self._closed) > self._closed_max:
            self._closed.popitem(last=False)
        return outcome, lease

    def expire(self, now_s: float) -> Lease | None:
        """Take back the oldest lease if its time is over, or if the table is full. None when there is none such."""
        if not self._open:
            return None
        lease_id = next(iter(self._open))
        lease = self._open[lease_id]
        if now_s < lease.expires_at_s and not self.is_full:
            return None
        del self._open[lease_id]
        self._expired[lease_id] = lease
        if len(self._expired) > self._closed_max:
            self._expired.popitem(last=False)
        return lease


def replica_of(lease_id: str) -> str:
    """Return the name of the replica that lent it; empty for text that is no lease."""
    return lease_id.rpartition("-")[0]
