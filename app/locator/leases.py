"""Leases: every pick is lent to its caller, who reports once; what is never reported comes back by itself.

The number of calls in flight is the number of open leases, so a caller that dies cannot leave an instance looking
busy. One table a service. Bounded: beyond `open_max` the oldest lease is taken back early, and of closed ones only the
last `known_max` that were lent are known as such.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.locator.candidates import Candidates
    from app.locator.load import Load

LEASE_S: Final = 30.0  # longer than a call should take; what takes longer is reported late and still counts
OPEN_MAX: Final = 100_000  # leases of a service: 30 MB, 3,300 picks a second of which none is ever reported
# Ids that are remembered to tell a repeated report from one that never was: half a minute at 8,000 a second, 0.2 MB.
KNOWN_MAX: Final = 1 << 18
EXPIRED_MAX: Final = 50_000  # leases of a service that were taken back and may still be reported: 15 MB
EXPIRED_S: Final = 60.0  # for so long at most: callers that never report must not fill the memory, service by service
REAP_MAX: Final = 1_000  # leases that one call of `reap` takes back: below a millisecond
TRIM_PART: Final = 64  # a full table is relieved of one part of so many
_NUMBER_BITS: Final = 8
_NUMBERS: Final = tuple(f"{number:02x}" for number in range(1 << _NUMBER_BITS))  # of the ids that are made from one draw
_RANDOM_BYTES: Final = 4  # of an id: a lease that was not lent cannot be guessed
_SECRET_BYTES: Final = 32
_RANDOM_DIGITS: Final = 2 * _RANDOM_BYTES
_SERIAL: Final = re.compile(rf"([0-9a-f]{{1,16}})([0-9a-f]{{{_RANDOM_DIGITS}}})")


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


class _Ids:
    """Makes ids that were never given before: replica, number of the draw, number in the draw, random part.

    Random parts follow from a secret and the number of the draw, so that any id is known again without being kept; of
    the last `known_max` it is kept, in a bit each, whether they are closed.
    """

    __slots__ = ("_closed", "_draw", "_known_max", "_made", "_oldest", "_secret", "_start")

    def __init__(self, replica: str, known_max: int) -> None:
        self._start = f"{replica}-"
        self._known_max = known_max
        self._secret = os.urandom(_SECRET_BYTES)
        self._draw = 0
        self._oldest = 0  # draw whose ids are known again
        self._made: Iterator[str] = iter(())
        self._closed: dict[int, int] = {}  # a bit for each id of a draw, once one of them was closed

    def make(self) -> str:
        made = next(self._made, None)
        if made is None:
            self._draw_next()
            made = next(self._made)
        return made

    def _draw_next(self) -> None:
        self._draw += 1
        start, size = f"{self._start}{self._draw:x}", _RANDOM_DIGITS
        digits = self._digits_of(self._draw)
        self._made = (start + number + digits[i * size : (i + 1) * size] for i, number in enumerate(_NUMBERS))
        self._oldest = self._draw + 1 - max(1, self._known_max >> _NUMBER_BITS)
        self._closed.pop(self._oldest - 1, None)

    def _digits_of(self, draw: int) -> str:
        """Return the random parts of a draw's ids: the keyed sponge of FIPS 202, 3 us for all of them."""
        return hashlib.shake_128(self._secret + draw.to_bytes(8)).hexdigest(_RANDOM_BYTES * len(_NUMBERS))

    def close(self, lease_id: str) -> None:
        """Take an id that was made here for closed."""
        serial = int(lease_id[len(self._start) : -_RANDOM_DIGITS], 16)
        draw = serial >> _NUMBER_BITS
        if draw >= self._oldest:
            self._closed[draw] = self._closed.get(draw, 0) | 1 << (serial & (len(_NUMBERS) - 1))

    def is_closed(self, lease_id: str) -> bool:
        """Whether a text is an id that was made here and closed, as far as is remembered."""
        match = _SERIAL.fullmatch(lease_id.removeprefix(self._start))
        if match is None or not lease_id.startswith(self._start):
            return False
        serial = int(match[1], 16)
        draw, number = serial >> _NUMBER_BITS, serial & (len(_NUMBERS) - 1)
        if match[1] != f"{serial:x}" or not self._closed.get(draw, 0) >> number & 1:
            return False
        at = number * _RANDOM_DIGITS
        return match[2] == self._digits_of(draw)[at : at + _RANDOM_DIGITS]


class Leases:
    """The leases of one service. Dictionaries keep the order of lending, so the oldest stand first."""

    __slots__ = ("_expired", "_expired_max", "_ids", "_make_id", "_on_expired", "_open", "_open_max", "lease_s")

    def __init__(
        self,
        replica: str,
        on_expired: Callable[[Lease], None],
        *,
        lease_s: float = LEASE_S,
        open_max: int = OPEN_MAX,
        known_max: int = KNOWN_MAX,
    ) -> None:
        """`replica` begins every id, so that a report that reaches another replica can be handed on.

        `on_expired` gets every lease that is taken back.
        """
        self.lease_s: Final = lease_s
        self._on_expired = on_expired
        self._open_max = open_max
        self._expired_max = EXPIRED_MAX
        self._open: dict[str, Lease] = {}
        self._expired: dict[str, Lease] = {}
        self._ids = _Ids(replica, known_max)
        self._make_id = self._ids.make

    def __len__(self) -> int:
        """Return how many are lent out."""
        return len(self._open)

    def lend(self, load: Load, candidates: Candidates, now_s: float, probe: bool) -> str:  # noqa: FBT001 - hot path
        """Lend a call on this instance and return the lease's id."""
        lease_id = self._make_id()
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
                return (Reported.REPEATED if self._ids.is_closed(lease_id) else Reported.UNKNOWN), None
        self._ids.close(lease_id)
        return outcome, lease

    def reap(self, now_s: float, limit: int) -> int:
        """Take back leases whose time is over, at most `limit`; returns how many. Forgets those that nobody has reported."""
        over = _lent_by(self._open, now_s - self.lease_s, limit)
        self._expire(over)
        for lease_id in _lent_by(self._expired, now_s - self.lease_s - EXPIRED_S, REAP_MAX):
            del self._expired[lease_id]
        return len(over)

    def _expire(self, lease_ids: list[str]) -> None:
        for lease_id in lease_ids:
            lease = self._expired[lease_id] = self._open.pop(lease_id)
            self._on_expired(lease)
        _trim(self._expired, self._expired_max)


def _lent_by(table: dict[str, Lease], lent_s: float, limit: int) -> list[str]:
    """Return the ids of the leases that were lent at a time or before it, at most `limit`."""
    if not table:
        return []
    return list(islice(takewhile(lambda lease_id: table[lease_id].lent_s <= lent_s, table), limit))


def _trim(table: dict[str, Any], size_max: int) -> None:
    """Drop the oldest part of a table that is too long. In parts, because finding the oldest passes dropped ones."""
    if len(table) > size_max:
        for lease_id in list(islice(table, len(table) - size_max + size_max // TRIM_PART)):
            del table[lease_id]


def replica_of(lease_id: str) -> str:
    """Return the name of the replica that lent it; empty for text that is no lease."""
    return lease_id.rpartition("-")[0]
